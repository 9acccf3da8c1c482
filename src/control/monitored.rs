//! The state of the process that the control plane reports.

use crate::clock::Clock;
use crate::control::clients::{ClientCounts, ClientShare};
use crate::control::history::History;
use crate::control::token::ControlToken;
use crate::policy::ListSize;
use crate::policy::access_list::AccessList;
use crate::process::log;
use crate::slow_reads::SlowReads;
use crate::stats::client_samples::ClientPrefix;
use crate::stats::cluster_status::SharedClusterStatus;
use crate::stats::shard_stats::ShardStats;
use crate::stats::shared_stats::SharedStats;
use crate::stats::snapshot_status::SnapshotStatus;
use crate::stats::xdp_status::XdpStatus;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tsubame_storage::{Seconds, SwarmSummary};

/// Number of seconds without an update after which a shard is stuck. Shards publish once a second.
pub(super) const STUCK_SECS: u64 = 5;

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
    /// State of XDP, if it is in use.
    pub xdp: Option<Arc<XdpStatus>>,
    /// State of the cluster, if the tracker is a node of one.
    pub cluster: Option<Arc<SharedClusterStatus>>,
}

/// Statistics of the process that belong to no shard.
#[derive(Debug, Default)]
pub struct ProcessStats {
    /// Whether the kernel steers announces now.
    pub steering_attached: AtomicBool,
    /// Number of times that steering was switched off because of overload.
    pub steering_detached: AtomicU64,
    /// Time of the start in seconds since 1970.
    pub start_unix_secs: u64,
    /// Time of the clock at the start. In an upgrade the clock is that of the first process.
    pub started_at: Duration,
    /// Bytes of the queues between shards.
    pub mesh_bytes: u64,
    /// Maximum bytes of all swarm tables and of the queues between shards.
    pub memory_limit_bytes: AtomicU64,
    /// Whether no new clients are to be sent here: the operator has asked for that, or the tracker is stopping.
    pub is_draining: AtomicBool,
    /// Number of reloads that succeeded.
    pub reloads: AtomicU64,
    /// Number of reloads that failed.
    pub failed_reloads: AtomicU64,
    /// Whether the last reload failed.
    pub last_reload_failed: AtomicBool,
    /// Time of the last successful reload, or of the start, in seconds since 1970.
    pub last_reload_unix_secs: AtomicU64,
    /// End of the validity of the certificate in seconds since 1970; 0 without a certificate.
    pub certificate_expiry_unix_secs: AtomicU64,
    /// Whether this process has not received all swarms of the one before it yet.
    pub is_taking_over: AtomicBool,
    /// State of the snapshots.
    pub snapshots: SnapshotStatus,
    tables: Mutex<ProcessTables>,
}

/// The parts of the config that the control plane reports or needs, as they are served now.
#[derive(Clone, Debug, Default)]
pub struct ServedConfig {
    /// Names of the hooks, in their order.
    pub hooks: Vec<&'static str>,
    /// Sizes of the lists of the hooks.
    pub list_sizes: Vec<ListSize>,
    /// The access list, if there is exactly one.
    pub access_list: Option<AccessList>,
    /// Token that requests from other hosts must have.
    pub control_token: Option<ControlToken>,
    /// Values of all config keys.
    pub values: Arc<[ServedValue]>,
}

/// A config key with the value that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServedValue {
    /// Path of the key, such as `udp.listen`.
    pub key: String,
    /// The value as in a config, shortened, and without secrets.
    pub value: String,
    /// Whether the value is the default.
    pub is_default: bool,
    /// Value of the config file, if it takes effect only after a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_restart: Option<String>,
}

/// What changes as a whole, and is read by the control plane alone.
#[derive(Debug, Default)]
struct ProcessTables {
    served: ServedConfig,
    clients: ClientCounts,
    summary: Option<(Seconds, Arc<SwarmSummary>)>,
    history: History,
}

impl ProcessStats {
    /// Creates the statistics of a process that was started at `start_unix_secs` and whose queues between shards take
    /// `mesh_bytes` bytes.
    pub fn new(start_unix_secs: u64, started_at: Duration, mesh_bytes: u64) -> Self {
        Self { start_unix_secs, started_at, mesh_bytes, ..Self::default() }
    }

    fn tables(&self) -> MutexGuard<'_, ProcessTables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitored {
    /// Returns the statistics of each shard, and then those of XDP if it is in use.
    pub fn all_stats(&self) -> impl Iterator<Item = ShardStats> {
        let xdp = self.xdp.iter().map(|xdp| xdp.stats.read());
        self.shared_stats.iter().map(|shared_stats| shared_stats.read()).chain(xdp)
    }

    /// Returns the time since the start of this process.
    pub fn uptime(&self) -> Duration {
        self.clock.elapsed().saturating_sub(self.process.started_at)
    }

    /// Returns the sum of the statistics of all shards and of XDP.
    pub fn sum(&self) -> ShardStats {
        let mut sum = ShardStats::default();
        self.all_stats().for_each(|stats| sum.add(&stats));
        sum
    }

    /// Returns the numbers of the shards that are stuck.
    pub fn stuck_shards(&self) -> Vec<usize> {
        let now = self.clock.now().monotonic.0;
        let is_stuck = |shared_stats: &SharedStats| {
            now.saturating_sub(shared_stats.last_update().0) > STUCK_SECS
        };
        let shards = self.shared_stats.iter().enumerate();
        shards.filter(|(_, shared_stats)| is_stuck(shared_stats)).map(|(shard, _)| shard).collect()
    }

    /// Sets the parts of the config that are served now.
    pub fn set_served(&self, served: ServedConfig) {
        self.process.tables().served = served;
    }

    /// Returns the parts of the config that are served now.
    pub fn served_config(&self) -> ServedConfig {
        self.process.tables().served.clone()
    }

    /// Returns the values of all config keys that are in force. The level of the log is the current one, which the API
    /// can change.
    pub fn values_in_force(&self) -> Vec<ServedValue> {
        let mut values = self.served_config().values.to_vec();
        let level = log::level().name();
        if let Some(value) = values.iter_mut().find(|it| it.key == "log.level" && it.value != level)
        {
            (value.value, value.is_default) = (level.to_owned(), false);
        }
        values
    }

    /// Counts sampled announces by client program.
    pub fn count_clients(&self, prefixes: &[ClientPrefix]) {
        let mut tables = self.process.tables();
        prefixes.iter().for_each(|prefix| tables.clients.add(*prefix));
    }

    /// Returns the shares of the most frequent client programs.
    pub fn clients(&self) -> Vec<ClientShare> {
        let counts = self.process.tables().clients.clone();
        counts.shares()
    }

    /// Adds the current statistics to the history; to be called every [`crate::control::history::POINT_SECS`] seconds.
    pub fn record_history(&self) {
        let all = self.all_stats().collect();
        self.process.tables().history.add(all);
    }

    /// Returns the history of the last hour.
    pub fn history(&self) -> History {
        self.process.tables().history.clone()
    }

    /// Sets the summary of all swarms, which was made at this time.
    pub fn set_summary(&self, at: Seconds, summary: SwarmSummary) {
        self.process.tables().summary = Some((at, Arc::new(summary)));
    }

    /// Returns the last summary of all swarms, and the time at which it was made.
    pub fn summary(&self) -> Option<(Seconds, Arc<SwarmSummary>)> {
        self.process.tables().summary.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    #[test]
    fn a_shard_without_updates_is_stuck() {
        static SECONDS: AtomicU64 = AtomicU64::new(100);
        let clock = Clock::simulated(&SECONDS);
        let shared_stats: [Arc<SharedStats>; 2] = std::array::from_fn(|_| Arc::default());
        for (shared_stats, update) in shared_stats.iter().zip([100, 90]) {
            shared_stats.publish(&ShardStats::default(), Seconds(update));
        }
        let slow_reads = SlowReads::new(clock, Duration::ZERO);
        let process = Arc::default();
        let monitored = Monitored {
            shared_stats: Arc::new(shared_stats),
            clock,
            slow_reads,
            process,
            xdp: None,
            cluster: None,
        };
        assert_eq!(monitored.stuck_shards(), [1]);
        SECONDS.store(106, Ordering::Relaxed);
        assert_eq!(monitored.stuck_shards(), [0, 1]);
    }
}
