//! The state of the process that the control plane reports.

use crate::clock::Clock;
use crate::slow_reads::SlowReads;
use crate::stats::shared_stats::SharedStats;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Number of seconds without an update after which a shard is stuck. Shards publish once a second.
const STUCK_SECS: u64 = 5;

/// State of the process and of all shards that the control plane reports.
#[derive(Clone, Debug)]
pub struct Monitored {
    /// Statistics of each shard.
    pub shared_stats: Arc<[Arc<SharedStats>]>,
    /// Clock from which the age of the statistics is determined.
    pub clock: Clock,
    /// Reads of files that take too long.
    pub slow_reads: SlowReads,
    /// Statistics of the process.
    pub process: Arc<ProcessStats>,
}

/// Statistics of the process that belong to no shard.
#[derive(Debug, Default)]
pub struct ProcessStats {
    /// Whether the kernel steers announces now.
    pub steering_attached: AtomicBool,
    /// Number of times that steering was switched off because of overload.
    pub steering_detached: AtomicU64,
    /// Bytes of the queues between shards.
    pub mesh_bytes: u64,
    /// Maximum bytes of all swarm tables and of the queues between shards.
    pub memory_ceiling_bytes: AtomicU64,
}

impl Monitored {
    /// Returns the numbers of the shards that are stuck.
    pub(super) fn stuck_shards(&self) -> Vec<usize> {
        let now = self.clock.now().monotonic.0;
        let is_stuck = |shared_stats: &SharedStats| {
            now.saturating_sub(shared_stats.last_update().0) > STUCK_SECS
        };
        let shards = self.shared_stats.iter().enumerate();
        shards.filter(|(_, shared_stats)| is_stuck(shared_stats)).map(|(shard, _)| shard).collect()
    }
}
