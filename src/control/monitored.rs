//! What the control plane reports about.

use crate::clock::Clock;
use crate::slow_reads::SlowReads;
use crate::stats::shared_stats::SharedStats;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// A shard publishes each second; one that has not for so long is stuck
const STUCK_SECS: u64 = 5;

/// What the control plane watches
#[derive(Clone, Debug)]
pub struct Monitored {
    /// A board for each shard
    pub shared_stats: Arc<[Arc<SharedStats>]>,
    /// Tells how old they are
    pub clock: Clock,
    /// Reads of files that take too long
    pub slow_reads: SlowReads,
    /// State of the process beside that of the shards
    pub process: Arc<ProcessStats>,
}

/// What is known of the process as a whole.
#[derive(Debug, Default)]
pub struct ProcessStats {
    /// Whether the kernel steers announces to their owners at the moment
    pub steering_attached: AtomicBool,
    /// Times that steering was switched off for overload
    pub steering_detached: AtomicU64,
    /// Memory of the rings between shards
    pub mesh_bytes: u64,
    /// Memory that all swarm tables may hold
    pub memory_ceiling_bytes: AtomicU64,
}

impl Monitored {
    pub(super) fn stuck_shards(&self) -> Vec<usize> {
        let now = self.clock.now().monotonic.0;
        let is_stuck = |shared_stats: &SharedStats| {
            now.saturating_sub(shared_stats.last_update().0) > STUCK_SECS
        };
        let shards = self.shared_stats.iter().enumerate();
        shards.filter(|(_, shared_stats)| is_stuck(shared_stats)).map(|(shard, _)| shard).collect()
    }
}
