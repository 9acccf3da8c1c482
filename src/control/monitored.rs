//! The state of the process that the control plane reports.

use crate::clock::Clock;
use crate::config::LogLevel;
use crate::control::clients::{ClientCounts, ClientShare};
use crate::control::token::ControlToken;
use crate::policy::ListSize;
use crate::policy::access_list::AccessList;
use crate::slow_reads::SlowReads;
use crate::stats::client_samples::ClientPrefix;
use crate::stats::shared_stats::SharedStats;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tsubame_storage::{Seconds, SwarmSummary};

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
    pub memory_limit_bytes: AtomicU64,
    /// Whether the operator has asked that no new clients be sent here.
    pub is_draining: AtomicBool,
    /// Number of reloads that succeeded.
    pub reloads: AtomicU64,
    /// Number of reloads that failed.
    pub failed_reloads: AtomicU64,
    /// Time of the last successful reload, or of the start, in seconds since 1970.
    pub last_reload_unix_secs: AtomicU64,
    /// End of the validity of the certificate in seconds since 1970; 0 without a certificate.
    pub certificate_expiry_unix_secs: AtomicU64,
    tables: Mutex<ProcessTables>,
}

/// The parts of the config that the control plane reports or needs, as they are served now.
#[derive(Clone, Debug)]
pub struct ServedConfig {
    /// Names of the hooks, in their order.
    pub hooks: Vec<&'static str>,
    /// Sizes of the lists of the hooks.
    pub list_sizes: Vec<ListSize>,
    /// The access list, if there is exactly one.
    pub access_list: Option<AccessList>,
    /// Token that requests from other hosts must have.
    pub control_token: Option<ControlToken>,
    /// Level of the log.
    pub log_level: LogLevel,
}

impl Default for ServedConfig {
    fn default() -> Self {
        Self {
            hooks: Vec::new(),
            list_sizes: Vec::new(),
            access_list: None,
            control_token: None,
            log_level: LogLevel::Info,
        }
    }
}

/// What changes as a whole, and is read by the control plane alone.
#[derive(Debug, Default)]
struct ProcessTables {
    served: ServedConfig,
    clients: ClientCounts,
    summary: Option<(Seconds, Arc<SwarmSummary>)>,
}

impl ProcessStats {
    /// Creates the statistics of a process whose queues between shards take `mesh_bytes` bytes.
    pub fn new(mesh_bytes: u64) -> Self {
        Self { mesh_bytes, ..Self::default() }
    }

    fn tables(&self) -> MutexGuard<'_, ProcessTables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitored {
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
    pub fn served(&self) -> ServedConfig {
        self.process.tables().served.clone()
    }

    /// Counts sampled announces by client program.
    pub fn count_clients(&self, prefixes: impl Iterator<Item = ClientPrefix>) {
        let mut tables = self.process.tables();
        prefixes.for_each(|prefix| tables.clients.add(prefix));
    }

    /// Returns the shares of the most frequent client programs.
    pub fn clients(&self) -> Vec<ClientShare> {
        let counts = self.process.tables().clients.clone();
        counts.shares()
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
