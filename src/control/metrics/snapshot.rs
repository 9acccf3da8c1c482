//! The statistics of the page `/metrics`, read at one moment, and a handle from which its other values are read later.

use crate::control::clients::ClientShare;
use crate::control::monitored::Monitored;
use crate::process::memory;
use crate::stats::cluster_status::ClusterStatus;
use crate::stats::shard_stats::ShardStats;
use crate::stats::xdp_status::XdpInterfaceStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tsubame_storage::SwarmSummary;

/// The statistics of a shard at one moment.
#[derive(Debug)]
pub(super) struct ShardSnapshot {
    pub(super) number: usize,
    pub(super) stats: ShardStats,
    pub(super) last_update_age_secs: u64,
}

/// Statistics of the page, and a handle to the values that are read when the page is written.
#[derive(Debug)]
pub(super) struct MetricsSnapshot {
    pub(super) shards: Vec<ShardSnapshot>,
    /// Requests that XDP answered or dropped, if it is in use.
    pub(super) xdp: Option<ShardStats>,
    pub(super) uptime_secs: f64,
    pub(super) resident_bytes: Option<usize>,
    pub(super) stuck_reads: usize,
    pub(super) summary: Option<(u64, Arc<SwarmSummary>)>,
    pub(super) clients: Vec<ClientShare>,
    /// Names of the configured hooks.
    pub(super) hooks: Vec<&'static str>,
    /// State of the cluster, if the tracker is a node of one.
    pub(super) cluster: Option<ClusterStatus>,
    pub(super) monitored: Monitored,
}

impl MetricsSnapshot {
    /// Reads the statistics.
    pub(super) fn read(monitored: &Monitored) -> Self {
        let now = monitored.clock.now().monotonic;
        let shards =
            monitored.shared_stats.iter().enumerate().map(|(number, shared_stats)| ShardSnapshot {
                number,
                stats: shared_stats.read(),
                last_update_age_secs: now.0.saturating_sub(shared_stats.last_update().0),
            });
        Self {
            shards: shards.collect(),
            xdp: monitored.xdp.as_ref().map(|xdp| xdp.stats.read()),
            uptime_secs: monitored.uptime().as_secs_f64(),
            resident_bytes: memory::resident_bytes(),
            stuck_reads: monitored.slow_reads.stuck().len(),
            summary: monitored.summary().map(|(at, summary)| (now.0.saturating_sub(at.0), summary)),
            clients: monitored.clients(),
            hooks: monitored.served_config().hooks,
            cluster: monitored.cluster.as_ref().map(|cluster| cluster.read()),
            monitored: monitored.clone(),
        }
    }

    /// Returns the state of XDP on each configured interface.
    pub(super) fn xdp_interfaces(&self) -> Vec<XdpInterfaceStatus> {
        self.monitored.xdp.as_ref().map(|xdp| xdp.interfaces()).unwrap_or_default()
    }

    /// Returns the time since the last snapshot of the swarms, if there is one.
    pub(super) fn snapshot_age_secs(&self) -> Option<u64> {
        let written = self.monitored.process.snapshots.written_unix_secs.load(Ordering::Relaxed);
        (written > 0).then(|| self.monitored.clock.now().unix_secs.saturating_sub(written))
    }

    /// Returns whether the kernel steers requests now.
    pub(super) fn is_steering(&self) -> bool {
        self.monitored.process.steering_attached.load(Ordering::Relaxed)
    }
}
