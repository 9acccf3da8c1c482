//! What the control plane checks each second: shards, steering, files, memory.

use crate::control::history::POINT_SECS;
use crate::process::running::RunningTracker;
use crate::process::service::ServiceManager;
use crate::process::steering::ShardLoad;
use crate::process::{memory, report};
use crate::stats::shard_stats::ShardStats;
use crate::stats::shared_stats::SharedStats;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Interval at which the control plane checks shards and files.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Number of checks between two reports of warnings.
const CHECKS_PER_REPORT: u32 = 10;

/// Time between two reports of warnings.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

const _: () = assert!(REPORT_INTERVAL.as_secs() == POINT_SECS as u64);

const _: () =
    assert!(CHECK_INTERVAL.as_secs() * CHECKS_PER_REPORT as u64 == REPORT_INTERVAL.as_secs());

/// State of the shards at the last check of the control plane.
pub(crate) struct ShardMonitor {
    /// Number of checks.
    checks: u32,
    /// For each shard, the second of its last update and its statistics then.
    shards: Vec<(u64, ShardStats)>,
    reported: ShardStats,
    /// Time and statistics at the last summary; `None` while summaries are off.
    summarized: Option<(Duration, ShardStats)>,
    /// Number of episodes of memory pressure at the last warning about one.
    reported_episodes: u64,
    stuck: Vec<String>,
    /// UDP ports that are checked for connection tracking; empty once a warning was logged.
    conntrack_ports: Vec<u16>,
}

impl ShardMonitor {
    pub(crate) fn new(running: &RunningTracker) -> Self {
        let read =
            |shared_stats: &Arc<SharedStats>| (shared_stats.last_update().0, shared_stats.read());
        let shards = running.monitored.shared_stats.iter().map(read).collect();
        Self {
            checks: 0,
            shards,
            reported: ShardStats::default(),
            summarized: None,
            reported_episodes: 0,
            stuck: Vec::new(),
            conntrack_ports: running.reloader.udp_ports(),
        }
    }

    /// Checks everything once.
    pub(crate) fn check(&mut self, running: &mut RunningTracker, service: &ServiceManager) {
        running.reloader.check_files();
        for reader in &mut running.sample_readers {
            let sampled: Vec<_> = std::iter::from_fn(|| reader.pop().ok()).collect();
            running.monitored.count_clients(&sampled);
        }
        self.check_steering(running);
        self.check_slow_reads(running);
        let monitored = &running.monitored;
        if monitored.stuck_shards().is_empty() {
            service.alive();
        }
        let stats = monitored.sum();
        let memory_limit = memory::limit(running.reloader.config().storage.memory);
        monitored.process.memory_limit_bytes.store(memory_limit.bytes as u64, Ordering::Relaxed);
        if stats.table.evicted.episodes > self.reported_episodes
            && stats.table.top_sources[0].is_some()
        {
            self.reported_episodes = stats.table.evicted.episodes;
            report::pressure(&stats);
        }
        self.checks += 1;
        self.summarize(running.reloader.config().log.summary, monitored.clock.elapsed(), stats);
        if self.checks.is_multiple_of(CHECKS_PER_REPORT) {
            monitored.record_history();
            report::warn_of_errors(&self.reported, &stats, running.steering.is_attached());
            service.status(&report::status_line(&self.reported, &stats, REPORT_INTERVAL));
            self.reported = stats;
            if report::connection_tracking(&self.conntrack_ports) {
                self.conntrack_ports.clear();
            }
        }
    }

    /// Logs a summary if one is due; an interval of zero is none.
    fn summarize(&mut self, interval: Duration, now: Duration, stats: ShardStats) {
        match &self.summarized {
            _ if interval.is_zero() => self.summarized = None,
            Some((last, before)) if now.saturating_sub(*last) >= interval => {
                report::summary(before, &stats, now.saturating_sub(*last));
                self.summarized = Some((now, stats));
            }
            Some(_) => {}
            None => self.summarized = Some((now, stats)),
        }
    }

    /// Switches steering off while one shard is overloaded and others are idle, and on again after that.
    fn check_steering(&mut self, running: &mut RunningTracker) {
        let monitored = &running.monitored;
        let read =
            |shared_stats: &Arc<SharedStats>| (shared_stats.last_update().0, shared_stats.read());
        let shards: Vec<(u64, ShardStats)> = monitored.shared_stats.iter().map(read).collect();
        // Shards publish once a second at different times: two checks may see the same statistics.
        let both = self.shards.iter().zip(&shards);
        if both.clone().any(|((before, _), (now, _))| before >= now) {
            return;
        }
        let load =
            |((before_secs, before), (now_secs, now)): (&(u64, ShardStats), &(u64, ShardStats))| {
                let seconds = (now_secs - before_secs) as f64;
                let busy = now.busy_us.saturating_sub(before.busy_us) as f64 / 1e6 / seconds;
                let per_second = |count: u64| (count as f64 / seconds) as u64;
                let dropped = now.ring.dropped_by_kernel - before.ring.dropped_by_kernel;
                let waited = now.ring.out_of_buffers - before.ring.out_of_buffers;
                let (dropped, waited) = (per_second(dropped), per_second(waited));
                ShardLoad { busy, dropped, waited }
            };
        let loads: Vec<ShardLoad> = both.map(load).collect();
        self.shards = shards;
        report::steering(running.steering.observe(monitored.clock.elapsed(), &loads));
        let process = &monitored.process;
        process.steering_attached.store(running.steering.is_attached(), Ordering::Relaxed);
        process.steering_detached.store(running.steering.detach_count(), Ordering::Relaxed);
    }

    /// Logs each read of a file that takes too long, once.
    fn check_slow_reads(&mut self, running: &RunningTracker) {
        let stuck = running.monitored.slow_reads.stuck();
        for (name, since) in stuck.iter().filter(|(name, _)| !self.stuck.contains(name)) {
            tracing::error!(
                "reading {name} takes longer than {} s; check its file system; the data read before stays in use",
                since.as_secs()
            );
        }
        self.stuck = stuck.into_iter().map(|(name, _)| name).collect();
    }
}
