//! What the control plane reports about.

use crate::clock::Clock;
use crate::slow_reads::SlowReads;
use crate::stats::shared_stats::SharedStats;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Seconds after which a shard that has not published its statistics is reported as stuck. Shards publish each second.
const STUCK_SECS: u64 = 5;

/// What the control plane reports about.
#[derive(Clone, Debug)]
pub struct Monitored {
    /// Statistics of each shard.
    pub shared_stats: Arc<[Arc<SharedStats>]>,
    /// The clock by which statistics age.
    pub clock: Clock,
    /// Reads of files that take too long.
    pub slow_reads: SlowReads,
    /// State of the process as a whole.
    pub process: Arc<ProcessStats>,
}

/// State of the process as a whole.
#[derive(Debug, Default)]
pub struct ProcessStats {
    /// Whether the kernel steers announces at the moment.
    pub steering_attached: AtomicBool,
    /// Number of times that steering was switched off for overload.
    pub steering_detached: AtomicU64,
    /// Memory of the queues between shards.
    pub mesh_bytes: u64,
    /// Memory limit of all swarm tables and the queues between shards.
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
