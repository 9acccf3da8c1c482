//! The main loop of the control plane: signals, reloads, requests of the API and of snapshots, and the end.

use crate::control::listeners::ControlListeners;
use crate::control::server;
use crate::control::torrents::{ShardRequest, Torrents};
use crate::process::error::RunError;
use crate::process::monitor::{CHECK_INTERVAL, ShardMonitor};
use crate::process::reload::{ReloadCommand, ReloadJob};
use crate::process::running::RunningTracker;
use crate::process::service::ServiceManager;
use crate::process::signals::{Signals, ignored};
use crate::process::snapshot::{LastSnapshot, SnapshotThread};
use crate::process::supervisor::ShardExit;
use crate::process::xdp::XdpThread;
use crate::process::{cpus, report};
use crate::shard::mesh::MeshEndpoint;
use crate::shard::message::Message;
use crate::shard::update::ShardUpdate;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, Interval, timeout_at};

/// Time that the shards may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

/// Runs the control plane on this thread until the tracker ends. `started` is called once SIGINT and SIGTERM are
/// handled.
pub(crate) fn control_plane(
    runtime: &Runtime,
    (mut running, signals): (RunningTracker, Signals),
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
        let snapshots = running.snapshots.take();
        let start = |settings| SnapshotThread::start(settings, request_sender.clone());
        let snapshots = snapshots.map(start).transpose().map_err(RunError::Runtime)?;
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
        let monitor = ShardMonitor::new(&running);
        let check = tokio::time::interval(CHECK_INTERVAL);
        let events = EventSources { stop, signals, commands, requests, check };
        let ended = EventLoop { running, snapshots, monitor, service, events }.run().await;
        if let Some(socket) = socket {
            // It may have been removed already.
            let _ = std::fs::remove_file(socket);
        }
        ended
    })
}

/// Where events come from.
struct EventSources {
    /// SIGINT and SIGTERM.
    stop: (Signal, Signal),
    signals: Signals,
    commands: UnboundedReceiver<ReloadCommand>,
    requests: UnboundedReceiver<ShardRequest>,
    check: Interval,
}

/// The state of the main loop.
struct EventLoop {
    running: RunningTracker,
    snapshots: Option<SnapshotThread>,
    monitor: ShardMonitor,
    service: ServiceManager,
    events: EventSources,
}

/// A stop that waits until the last snapshot can be completed.
struct PendingStop {
    /// Time at which the tracker stops without it.
    deadline: Instant,
    snapshot: LastSnapshot,
}

impl EventLoop {
    /// Handles events until a signal stops the tracker or a shard ends.
    async fn run(mut self) -> Result<(), RunError> {
        let signal = loop {
            if let Some(signal) = self.handle_event().await? {
                break signal;
            }
        };
        tracing::info!("{signal}: stopping");
        self.service.stopping();
        self.running.monitored.process.is_draining.store(true, Ordering::Relaxed);
        let mut stop = self.snapshots.as_ref().map(|snapshots| PendingStop {
            deadline: Instant::now() + self.running.reloader.config().storage.stop_timeout,
            snapshot: snapshots.write_last(),
        });
        while let Some(PendingStop { deadline, snapshot }) = &mut stop {
            tokio::select! {
                caught_up = timeout_at(*deadline, &mut snapshot.caught_up) => {
                    if caught_up.is_err() {
                        tracing::warn!(
                            "storage.stop_timeout: the last snapshot takes longer; the one before stays"
                        );
                    }
                    break;
                }
                event = self.handle_event() => if let Some(signal) = event? {
                    tracing::info!("{signal}: stopping without the last snapshot");
                    stop = None;
                },
            }
        }
        self.stop_shards(stop).await;
        Ok(())
    }

    /// Waits for an event and handles it; returns the name of the signal if it is to stop the tracker.
    async fn handle_event(&mut self) -> Result<Option<&'static str>, RunError> {
        let Self { running, snapshots, monitor, service, events } = self;
        let EventSources { stop: (interrupt, terminate), signals, commands, requests, check } =
            events;
        tokio::select! {
            _ = interrupt.recv() => return Ok(Some("SIGINT")),
            _ = terminate.recv() => return Ok(Some("SIGTERM")),
            _ = signals.hangup.recv() => running.reloader.enqueue((ReloadJob::Config, None)),
            _ = signals.user1.recv() => running.reloader.enqueue((ReloadJob::Config, None)),
            _ = signals.user2.recv() => {
                tracing::info!("SIGUSR2 is ignored: it is reserved for a later version");
            }
            name = ignored(&mut signals.ignored) => tracing::debug!("{name} is ignored"),
            Some(command) = commands.recv() => running.reloader.enqueue(command),
            Some((shard, message)) = requests.recv() => {
                // If the queue is full, the channel of the answer is dropped, which the requester notices.
                running.control.send(shard, message);
                running.control.notify();
            }
            updates = running.reloader.next_update() => {
                if let Some(xdp) = &running.xdp && !updates.is_empty() {
                    xdp.apply(running.reloader.xdp_settings());
                }
                if let Some(snapshots) = snapshots {
                    snapshots.set_interval(running.reloader.config().storage.snapshot_interval);
                }
                send(&mut running.control, updates).await;
            }
            Some(retired) = running.to_free.recv() => free(retired),
            _ = check.tick() => monitor.check(running, service),
            exit = running.supervisor.exits.recv() => return Err(shard_error(exit)),
        }
        Ok(None)
    }

    /// Stops all shards, and waits until the last snapshot is complete.
    async fn stop_shards(self, stop: Option<PendingStop>) {
        let Self { mut running, .. } = self;
        // Before the sockets close, so that every request has one of the two ways.
        running.xdp.take().into_iter().for_each(XdpThread::stop);
        for shard in 0..running.monitored.shared_stats.len() {
            running.control.send(shard, Message::Stop);
        }
        running.control.notify();
        let ended = running.supervisor.wait_for_exits(STOP_TIMEOUT).await;
        if let Some(PendingStop { deadline, snapshot }) = stop {
            // If it fails or takes too long, the thread has said so, or the one before stays.
            let _ = timeout_at(deadline, snapshot.done).await;
        }
        report::stopped(&running.monitored.sum(), running.monitored.clock.elapsed(), ended);
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
