//! The main loop of the control plane: signals, reloads, steering and warnings.

use crate::control::history::POINT_SECS;
use crate::control::listeners::ControlListeners;
use crate::control::monitored::Monitored;
use crate::control::server;
use crate::control::torrents::{ShardRequest, Torrents};
use crate::process::error::RunError;
use crate::process::reload::{ReloadCommand, ReloadJob, Reloader};
use crate::process::service::ServiceManager;
use crate::process::steering::{ShardLoad, Steering};
use crate::process::supervisor::{ShardExit, Supervisor};
use crate::process::xdp::XdpThread;
use crate::process::{cpus, memory, report};
use crate::shard::mesh::MeshEndpoint;
use crate::shard::message::Message;
use crate::shard::update::ShardUpdate;
use crate::stats::client_samples::SampleReader;
use crate::stats::shard_stats::ShardStats;
use crate::stats::shared_stats::SharedStats;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tsubame_udp::steering::SteeringKeys;

/// Time that the shards may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

/// Interval at which the control plane checks shards and files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Number of checks between two reports of warnings.
const CHECKS_PER_REPORT: u32 = 10;

/// Time between two reports of warnings.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

const _: () = assert!(REPORT_INTERVAL.as_secs() == POINT_SECS as u64);

const _: () =
    assert!(CHECK_INTERVAL.as_secs() * CHECKS_PER_REPORT as u64 == REPORT_INTERVAL.as_secs());

/// A running tracker, with everything that the control plane needs to monitor it.
pub(crate) struct RunningTracker {
    pub(crate) supervisor: Supervisor,
    pub(crate) control: MeshEndpoint,
    pub(crate) monitored: Monitored,
    pub(crate) steering: Steering,
    pub(crate) reloader: Reloader,
    /// Receives replaced policies and settings, which are freed outside the shards.
    pub(crate) to_free: UnboundedReceiver<Box<ShardUpdate>>,
    /// Keys of the function that decides which shard owns a torrent, and the key by which distinct peers are counted.
    pub(crate) keys: (SteeringKeys, (u64, u64)),
    /// Client programs of sampled announces of each shard.
    pub(crate) sample_readers: Vec<SampleReader>,
    /// The thread that controls XDP, if it is in use.
    pub(crate) xdp: Option<XdpThread>,
}

/// Runs the control plane on this thread until the tracker ends. `started` is called once SIGINT and SIGTERM are
/// handled.
pub(crate) fn control_plane(
    runtime: &Runtime,
    (running, signals): (RunningTracker, Signals),
    listeners: ControlListeners,
    started: impl FnOnce(&ControlListeners),
) -> Result<(), RunError> {
    cpus::lower_priority();
    runtime.block_on(async {
        let stop = |kind| signal(kind).map_err(RunError::Runtime);
        let stop = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
        started(&listeners);
        let service = ServiceManager::new();
        service.ready("serving");
        let socket = listeners.socket_to_remove.clone();
        let (command_sender, commands) = unbounded_channel();
        let hosts = running.reloader.config().control.hosts.clone();
        let monitored = running.monitored.clone();
        let (request_sender, requests) = unbounded_channel();
        let (keys, distinct_key) = running.keys;
        let torrents = Torrents::new(request_sender, keys, distinct_key, monitored.clone());
        let torrents = Arc::new(torrents);
        let summaries = torrents.clone();
        tokio::spawn(async move { summaries.summarize_at_intervals().await });
        tokio::spawn(async move {
            let served = server::serve(listeners, hosts, monitored, torrents, command_sender).await;
            if let Err(error) = served {
                tracing::error!(
                    "control: the HTTP server of the control plane has failed: {error}; restart the tracker"
                );
            }
        });
        let ended = handle_events(running, stop, signals, (commands, requests), &service).await;
        if let Some(socket) = socket {
            // It may have been removed already.
            let _ = std::fs::remove_file(socket);
        }
        ended
    })
}

/// Handlers of the signals that do not end the process. They are installed before the lists are read.
pub(crate) struct Signals {
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    /// Signals that are ignored, although their default action would end the process.
    ignored: [Signal; 6],
}

impl Signals {
    /// Installs the handlers. The caller must have entered the runtime.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            ignored: [
                signal(SignalKind::alarm())?,
                signal(SignalKind::io())?,
                signal(SignalKind::pipe())?,
                // tokio has no names for these.
                signal(SignalKind::from_raw(libc::SIGVTALRM))?,
                signal(SignalKind::from_raw(libc::SIGPROF))?,
                signal(SignalKind::from_raw(libc::SIGPWR))?,
            ],
        })
    }
}

/// Waits for an ignored signal and returns its name.
async fn ignored(
    [alarm, io, pipe, virtual_alarm, profile, power]: &mut [Signal; 6],
) -> &'static str {
    tokio::select! {
        _ = alarm.recv() => "SIGALRM",
        _ = io.recv() => "SIGIO",
        _ = pipe.recv() => "SIGPIPE",
        _ = virtual_alarm.recv() => "SIGVTALRM",
        _ = profile.recv() => "SIGPROF",
        _ = power.recv() => "SIGPWR",
    }
}

/// Handles events until a signal stops the tracker or a shard ends.
async fn handle_events(
    mut running: RunningTracker,
    (mut interrupt, mut terminate): (Signal, Signal),
    signals: Signals,
    (mut commands, mut requests): (
        UnboundedReceiver<ReloadCommand>,
        UnboundedReceiver<ShardRequest>,
    ),
    service: &ServiceManager,
) -> Result<(), RunError> {
    let Signals { mut hangup, mut user1, mut user2, ignored: mut others } = signals;
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    let mut monitor = ShardMonitor::new(&running);
    let signal = loop {
        tokio::select! {
            _ = interrupt.recv() => break "SIGINT",
            _ = terminate.recv() => break "SIGTERM",
            _ = hangup.recv() => running.reloader.enqueue((ReloadJob::Config, None)),
            _ = user1.recv() => running.reloader.enqueue((ReloadJob::Config, None)),
            _ = user2.recv() => {
                tracing::info!("SIGUSR2 is ignored: it is reserved for a later version");
            }
            name = ignored(&mut others) => tracing::debug!("{name} is ignored"),
            Some(command) = commands.recv() => running.reloader.enqueue(command),
            Some((shard, request)) = requests.recv() => {
                // If the queue is full, the channel of the answer is dropped, which the requester notices.
                running.control.send(shard, Message::Admin(Box::new(request)));
                running.control.notify();
            }
            updates = running.reloader.next_update() => {
                if let Some(xdp) = &running.xdp && !updates.is_empty() {
                    xdp.apply(running.reloader.xdp_settings());
                }
                send(&mut running.control, updates).await;
            }
            Some(retired) = running.to_free.recv() => free(retired),
            _ = check.tick() => monitor.check(&mut running, service),
            exit = running.supervisor.exits.recv() => return Err(shard_error(exit)),
        }
    };
    tracing::info!("{signal}: stopping");
    service.stopping();
    // Before the sockets close, so that every request has one of the two ways.
    running.xdp.take().into_iter().for_each(XdpThread::stop);
    running.monitored.process.is_draining.store(true, Ordering::Relaxed);
    for shard in 0..running.monitored.shared_stats.len() {
        running.control.send(shard, Message::Stop);
    }
    running.control.notify();
    let ended = running.supervisor.wait_for_exits(STOP_TIMEOUT).await;
    report::stopped(&running.monitored.sum(), running.monitored.clock.elapsed(), ended);
    Ok(())
}

/// State of the shards at the last check of the control plane.
struct ShardMonitor {
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
    fn new(running: &RunningTracker) -> Self {
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

    fn check(&mut self, running: &mut RunningTracker, service: &ServiceManager) {
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
                let dropped = now.ring.dropped_by_kernel - before.ring.dropped_by_kernel;
                let waited = now.ring.out_of_buffers - before.ring.out_of_buffers;
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

/// Sends each shard its update, and waits while its queue is full.
async fn send(control: &mut MeshEndpoint, updates: Vec<ShardUpdate>) {
    for (shard, update) in updates.into_iter().enumerate() {
        // A queue that is full for a second means that the shard is stuck, which `/healthz` reports.
        for _ in 0..1_000 {
            if control.has_room(shard) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !control.send(shard, Message::Update(Box::new(update))) {
            tracing::error!(
                "shard {shard} accepts no messages and keeps its previous settings; restart the tracker"
            );
        }
    }
    control.notify();
}

/// Frees replaced policies and settings on a helper thread, where this delays nothing.
fn free(retired: Box<ShardUpdate>) {
    tokio::task::spawn_blocking(move || drop(retired));
}

/// Returns the error for the exit of a shard.
fn shard_error(exit: Option<ShardExit>) -> RunError {
    match exit {
        Some(ShardExit { number, result: Err(error) }) => {
            RunError::ShardDied(number, error.to_string())
        }
        Some(ShardExit { number, result: Ok(()) }) => {
            RunError::ShardDied(number, "it ended although the tracker was not stopped".to_owned())
        }
        None => RunError::ShardDied(0, "all shards have ended".to_owned()),
    }
}
