//! The main loop of the control plane: signals, reloads, requests of the API and of snapshots, and the end.

use crate::control::listeners::ControlListeners;
use crate::control::server;
use crate::control::torrents::{ShardRequest, Torrents};
use crate::process::cluster::{ClusterResources, ClusterThread};
use crate::process::error::RunError;
use crate::process::monitor::{CHECK_INTERVAL, ShardMonitor};
use crate::process::reload::{ControlCommand, JobReply, ReloadJob};
use crate::process::running::{RunningTracker, UpgradeState};
use crate::process::service::ServiceManager;
use crate::process::shard_export::ShardSender;
use crate::process::signals::{Signals, ignored};
use crate::process::snapshot::{FinalSnapshot, SnapshotThread};
use crate::process::supervisor::ShardExit;
use crate::process::upgrade::hand_over::{Upgrade, UpgradeEvent, UpgradeParts};
use crate::process::xdp::XdpThread;
use crate::process::{cpus, report};
use crate::shard::mesh::MeshEndpoint;
use crate::shard::message::Message;
use crate::shard::update::ShardUpdate;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Interval, timeout_at};

/// Time that the shards may take to answer the datagrams that they have received before they stop.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Time for which HTTP connections are kept for one more request when another process takes over.
const CONNECTIONS_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two checks whether all connections have ended.
const CONNECTIONS_INTERVAL: Duration = Duration::from_millis(10);

/// Time that the process which takes over may take to import the last changes.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that the thread of the cluster may take to publish the last changes.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// Time that the thread that controls XDP may take until it redirects no more.
const XDP_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that the server of the control plane has to send its last reply.
const REPLY_TIME: Duration = Duration::from_millis(100);

/// Name of the command over the API that stops the tracker.
const STOP_COMMAND: &str = "POST /v1/stop";

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
        let (request_sender, requests) = unbounded_channel();
        let snapshots = running.snapshots.take();
        let shards = running.monitored.shared_stats.len();
        let export_lock = Arc::default();
        let shard_sender = ShardSender { requests: request_sender.clone(), shards, export_lock };
        let take_over = running.upgrade.take_over.take();
        let process = running.monitored.process.clone();
        let taking_over = take_over.map(|take_over| take_over.start(shard_sender.clone(), process));
        let taking_over = taking_over.transpose().map_err(RunError::Runtime)?;
        let (snapshots_start, taken_over) =
            taking_over.as_ref().map(|_| oneshot::channel()).unzip();
        let start = |settings| SnapshotThread::start(settings, shard_sender.clone(), taken_over);
        let snapshots = snapshots.map(start).transpose().map_err(RunError::Runtime)?;
        let control = command_sender.clone();
        let server = spawn_server(&running, listeners, request_sender, command_sender);
        let monitor = ShardMonitor::new(&running);
        let check = tokio::time::interval(CHECK_INTERVAL);
        let taking_over = taking_over.zip(snapshots_start);
        let has_predecessor = taking_over.is_some();
        let events = EventSources { stop, signals, commands, requests, taking_over, check };
        let mut event_loop = EventLoop {
            running,
            snapshots,
            cluster: None,
            control,
            monitor,
            service,
            events,
            shard_sender,
            unapplied_updates: 0,
            upgrade: None,
            is_stopping: false,
            server,
        };
        event_loop.start_cluster(has_predecessor)?;
        let ending = event_loop.run().await?;
        if let Some(socket) = socket.filter(|_| ending == Ending::Stopped) {
            // It may have been removed already.
            let _ = std::fs::remove_file(socket);
        }
        Ok(())
    })
}

/// Starts the tasks of the API: the server, and the summaries of all swarms. Returns the server.
fn spawn_server(
    running: &RunningTracker,
    listeners: ControlListeners,
    requests: UnboundedSender<ShardRequest>,
    commands: UnboundedSender<ControlCommand>,
) -> AbortHandle {
    let (keys, distinct_key) = running.keys;
    let monitored = running.monitored.clone();
    let hosts = running.reloader.config().control.hosts.clone();
    let torrents = Arc::new(Torrents::new(requests, keys, distinct_key, monitored.clone()));
    let summaries = torrents.clone();
    tokio::spawn(async move { summaries.summarize_at_intervals().await });
    let server = tokio::spawn(async move {
        let served = server::serve(listeners, hosts, monitored, torrents, commands).await;
        if let Err(error) = served {
            tracing::error!(
                "control: the HTTP server of the control plane has failed: {error}; restart the tracker"
            );
        }
    });
    server.abort_handle()
}

/// Where events come from.
struct EventSources {
    /// SIGINT and SIGTERM.
    stop: (Signal, Signal),
    signals: Signals,
    commands: UnboundedReceiver<ControlCommand>,
    requests: UnboundedReceiver<ShardRequest>,
    /// While this process takes over from another one: the channel that gets a message when it has all swarms, and that
    /// on which the thread of snapshots waits for the same.
    taking_over: Option<(oneshot::Receiver<()>, oneshot::Sender<()>)>,
    check: Interval,
}

/// The state of the main loop.
struct EventLoop {
    running: RunningTracker,
    snapshots: Option<SnapshotThread>,
    cluster: Option<ClusterThread>,
    /// Has commands executed.
    control: UnboundedSender<ControlCommand>,
    monitor: ShardMonitor,
    service: ServiceManager,
    events: EventSources,
    shard_sender: ShardSender,
    /// Number of updates that shards were sent and have not applied yet.
    unapplied_updates: usize,
    /// The upgrade that is in progress, and the channel of whoever waits for it.
    upgrade: Option<(Upgrade, Option<JobReply>)>,
    /// Whether the tracker is stopping.
    is_stopping: bool,
    /// The task that accepts connections to the control plane.
    server: AbortHandle,
}

/// Why the main loop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndCause {
    /// A signal or a command with this name stops the tracker.
    Stop(&'static str),
    /// The process with this number serves in place of this one.
    Replaced(u32),
}

/// How the main loop has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The tracker has stopped.
    Stopped,
    /// Another process serves in its place.
    Replaced,
}

/// A stop that waits until the final snapshot can be completed.
struct PendingStop {
    /// Time at which the tracker stops without it.
    deadline: Instant,
    snapshot: FinalSnapshot,
}

impl EventLoop {
    /// Handles events until the tracker stops, a shard ends, or another process has taken over.
    async fn run(mut self) -> Result<Ending, RunError> {
        let cause = loop {
            if let Some(cause) = self.handle_event().await? {
                break cause;
            }
        };
        match cause {
            EndCause::Stop(name) => self.stop(name).await.map(|()| Ending::Stopped),
            EndCause::Replaced(process) => self.hand_over(process).await.map(|()| Ending::Replaced),
        }
    }

    /// Stops the tracker, after the final snapshot if there are some.
    async fn stop(mut self, name: &'static str) -> Result<(), RunError> {
        tracing::info!("{name}: stopping");
        self.service.stopping();
        self.running.monitored.process.is_draining.store(true, Ordering::Relaxed);
        self.is_stopping = true;
        if let Some((upgrade, reply)) = self.upgrade.take() {
            upgrade.abort().await;
            reply.map(|reply| reply.send(Err("the tracker is stopping".to_owned())));
        }
        let mut stop = self.snapshots.as_ref().map(|snapshots| PendingStop {
            deadline: Instant::now() + self.running.reloader.config().storage.stop_timeout,
            snapshot: snapshots.write_final(),
        });
        while let Some(PendingStop { deadline, snapshot }) = &mut stop {
            tokio::select! {
                caught_up = timeout_at(*deadline, &mut snapshot.caught_up) => {
                    if caught_up.is_err() {
                        tracing::warn!(
                            "storage.stop_timeout: the snapshot at stop takes longer; the previous one stays"
                        );
                    }
                    break;
                }
                event = self.handle_event() => if let Some(EndCause::Stop(name)) = event? {
                    tracing::info!("{name}: stopping without a snapshot");
                    stop = None;
                },
            }
        }
        let running = &mut self.running;
        // Before the sockets close: after that, XDP must not answer connects to announces that nobody would receive.
        running.xdp.take().into_iter().for_each(XdpThread::stop);
        let ended = stop_shards(running, false).await;
        leave_cluster(self.cluster.take()).await;
        if let Some(PendingStop { deadline, snapshot }) = stop {
            // If it fails, the thread has logged why; if it takes too long, the previous snapshot stays.
            let _ = timeout_at(deadline, snapshot.done).await;
        }
        report::stopped(&running.monitored.sum(), running.monitored.uptime(), ended);
        if name == STOP_COMMAND {
            tokio::time::sleep(REPLY_TIME).await;
        }
        Ok(())
    }

    /// Stops the shards, now that another process serves, and waits until it has all swarms. Returns an error if it has
    /// ended, so that a service manager starts the tracker again.
    async fn hand_over(mut self, process: u32) -> Result<(), RunError> {
        tracing::info!("upgrade: process {process} serves; this one stops");
        self.service.replaced_by(process);
        // The other process accepts connections to the control plane, too, and answers them.
        self.server.abort();
        if let Some(xdp) = &self.running.xdp {
            let stopped = timeout_at(Instant::now() + XDP_TIMEOUT, xdp.stop_redirecting()).await;
            if stopped.is_err() {
                tracing::warn!(
                    "udp.xdp: networks are being written: requests may be lost that arrive while the AF_XDP sockets \
                     are closed"
                );
            }
        }
        let ended = stop_shards(&mut self.running, true).await;
        leave_cluster(self.cluster.take()).await;
        let mut died = None;
        if let Some((mut upgrade, reply)) = self.upgrade.take() {
            let deadline = Instant::now() + HAND_OVER_TIMEOUT;
            let last = timeout_at(deadline, upgrade.events.recv()).await;
            let result = match last {
                Ok(Some(UpgradeEvent::Complete)) => Ok(format!("process {process} has taken over")),
                Ok(Some(UpgradeEvent::Failed { reason, has_ended: true })) => {
                    died = Some(reason.clone());
                    Err(format!("process {process} has taken over and died: {reason}"))
                }
                Ok(Some(UpgradeEvent::Failed { reason, .. })) => Err(format!(
                    "process {process} serves, but lacks the changes of the last moments: {reason}"
                )),
                _ => Err(format!(
                    "process {process} serves, but does not say that it has all swarms"
                )),
            };
            if let Err(error) = &result
                && died.is_none()
            {
                tracing::error!("upgrade: {error}");
            }
            if let Some(reply) = reply {
                let _ = reply.send(result);
                // The server of the control plane sends the reply meanwhile.
                tokio::time::sleep(REPLY_TIME).await;
            }
        }
        // The other process may have duplicates of the links, and then replaces the program.
        self.running.xdp.take().into_iter().for_each(XdpThread::stop);
        let monitored = &self.running.monitored;
        report::stopped(&monitored.sum(), monitored.uptime(), ended);
        died.map_or(Ok(()), |reason| Err(RunError::SuccessorDied(process, reason)))
    }

    /// Waits for an event and handles it; returns why the loop is to end, if it is.
    async fn handle_event(&mut self) -> Result<Option<EndCause>, RunError> {
        let Self { running, monitor, service, events, upgrade, .. } = self;
        let EventSources { stop, signals, commands, requests, taking_over, check } = events;
        let (interrupt, terminate) = stop;
        tokio::select! {
            _ = interrupt.recv() => return Ok(Some(EndCause::Stop("SIGINT"))),
            _ = terminate.recv() => return Ok(Some(EndCause::Stop("SIGTERM"))),
            _ = signals.hangup.recv() => running.reloader.enqueue((ReloadJob::Config, None)),
            _ = signals.user1.recv() => running.reloader.enqueue((ReloadJob::Config, None)),
            _ = signals.user2.recv() => self.start_upgrade(None),
            name = ignored(&mut signals.ignored) => tracing::debug!("{name} is ignored"),
            Some(command) = commands.recv() => match command {
                ControlCommand::Job(command) => running.reloader.enqueue(command),
                ControlCommand::Upgrade(reply) => self.start_upgrade(Some(reply)),
                ControlCommand::Stop(reply) => {
                    let _ = reply.send(Ok("stopping".to_owned()));
                    return Ok(Some(EndCause::Stop(STOP_COMMAND)));
                }
            },
            event = next_event(upgrade.as_mut()) => match event {
                UpgradeEvent::Serving(process) => return Ok(Some(EndCause::Replaced(process))),
                UpgradeEvent::Failed { reason, .. } => self.end_failed_upgrade(reason),
                UpgradeEvent::Complete => {}
            },
            Some((shard, message)) = requests.recv() => {
                // If the queue stays full, the channel of the answer is dropped, which the requester notices.
                send_when_possible(&mut running.control, shard, message).await;
                running.control.notify();
            }
            updates = running.reloader.next_update() => self.update_shards(updates).await,
            () = end_take_over(taking_over) => {
                // Until now the XDP program of the other process has answered and passed requests.
                self.update_xdp();
                // Until now the other process was the node, and made changes of the access list.
                self.cluster.iter().for_each(ClusterThread::connect);
                let reloader = &mut self.running.reloader;
                if reloader.config().hooks.iter().any(|hook| hook.overrides_file().is_some()) {
                    reloader.reload_lists();
                }
            }
            Some(retired) = running.to_free.recv() => {
                free(retired);
                self.unapplied_updates = self.unapplied_updates.saturating_sub(1);
                self.update_xdp();
            }
            _ = check.tick() => monitor.check(running, service),
            exit = running.supervisor.exits.recv() => return Err(shard_error(exit)),
        }
        Ok(None)
    }

    /// Sends the shards their updates, and the other threads what has changed. There are no updates if a job has
    /// changed nothing that concerns the shards.
    async fn update_shards(&mut self, updates: Vec<ShardUpdate>) {
        let Self { running, snapshots, cluster, .. } = self;
        // The check of files each second changes nothing, and must not wake the thread of snapshots.
        if let Some(snapshots) = snapshots
            && !updates.is_empty()
        {
            snapshots.set_interval(running.reloader.config().storage.snapshot_interval);
        }
        let list_changes = running.reloader.take_list_changes();
        if let Some(cluster) = cluster {
            if !list_changes.is_empty() {
                cluster.publish_list_changes(list_changes);
            }
            if !updates.is_empty() {
                let key = running.reloader.connection_id_key();
                cluster.configure(running.reloader.config().announce.peer_lifetime, &key);
            }
        }
        self.unapplied_updates += send(&mut running.control, updates).await;
    }

    /// Applies the settings in force to XDP once all shards have applied them: shards must accept the connection ids
    /// that the XDP program issues.
    fn update_xdp(&self) {
        if let Some(xdp) = &self.running.xdp
            && self.events.taking_over.is_none()
            && self.unapplied_updates == 0
        {
            xdp.apply(self.running.reloader.xdp_settings());
        }
    }

    /// Starts an upgrade; if that is not possible, logs why and replies so.
    fn start_upgrade(&mut self, reply: Option<JobReply>) {
        match self.try_start_upgrade() {
            Ok(started) => {
                tracing::info!("upgrade: starting a new process");
                self.upgrade = Some((started, reply));
            }
            Err(reason) => {
                tracing::error!("upgrade: {reason}; the tracker serves on");
                reply.map(|reply| reply.send(Err(reason)));
            }
        }
    }

    fn try_start_upgrade(&self) -> Result<Upgrade, String> {
        let UpgradeState { program, starter, identity, sockets, .. } = &self.running.upgrade;
        let process = &self.running.monitored.process;
        if self.upgrade.is_some() {
            return Err("an upgrade is in progress already".to_owned());
        }
        if self.is_stopping {
            return Err("the tracker is stopping".to_owned());
        }
        if process.is_taking_over.load(Ordering::Relaxed)
            || process.snapshots.is_restoring.load(Ordering::Relaxed)
        {
            return Err("the swarms are still being read; try again later".to_owned());
        }
        if sockets.is_steered() && !self.running.steering.is_attached() {
            return Err("steering is switched off because of overload; try again later".to_owned());
        }
        if std::process::id() == 1 {
            return Err(
                "not as process 1 of a container, which ends with it: restart the container"
                    .to_owned(),
            );
        }
        let program = program.as_ref().map_err(|error| {
            format!("the path of the program is unknown: {error}; restart instead")
        })?;
        let parts = UpgradeParts {
            program: program.clone(),
            identity: identity.clone(),
            clock: self.running.monitored.clock,
            sockets: sockets.clone(),
            shards: self.shard_sender.clone(),
            starter: starter.clone(),
            table_bytes: self.running.monitored.sum().table.bytes,
            xdp: self.running.xdp.as_ref().map(XdpThread::links),
        };
        Upgrade::start(parts).map_err(|error| format!("a thread cannot be started: {error}"))
    }

    /// Starts the thread of the cluster if the tracker is to be a node of one.
    fn start_cluster(&mut self, has_predecessor: bool) -> Result<(), RunError> {
        let running = &mut self.running;
        let (links, status) = (running.cluster.take(), running.monitored.cluster.clone());
        let Some((links, status)) = links.zip(status) else { return Ok(()) };
        let parts = ClusterResources {
            links,
            shards: self.shard_sender.clone(),
            keys: running.keys.0,
            monitored: running.monitored.clone(),
            status,
            control: self.control.clone(),
            key: running.reloader.connection_id_key(),
            has_predecessor,
        };
        let started = ClusterThread::start(running.reloader.config(), parts);
        self.cluster = Some(started.map_err(RunError::Runtime)?);
        Ok(())
    }

    fn end_failed_upgrade(&mut self, reason: String) {
        tracing::error!("upgrade: {reason}; the tracker serves on");
        if let Some((_, Some(reply))) = self.upgrade.take() {
            let _ = reply.send(Err(reason));
        }
    }
}

/// Ends the thread of the cluster, which first publishes the last changes of the shards and tells the other nodes that
/// this node ends.
async fn leave_cluster(cluster: Option<ClusterThread>) {
    if let Some(cluster) = cluster {
        // The thread may wait for a server that does not answer.
        let _ = timeout_at(Instant::now() + LEAVE_TIMEOUT, cluster.end()).await;
    }
}

/// Waits for an event of the upgrade in progress, forever if there is none.
async fn next_event(upgrade: Option<&mut (Upgrade, Option<JobReply>)>) -> UpgradeEvent {
    let Some((upgrade, _)) = upgrade else { return pending().await };
    let reason = "its thread has ended".to_owned();
    let ended = UpgradeEvent::Failed { reason, has_ended: false };
    upgrade.events.recv().await.unwrap_or(ended)
}

/// Waits until this process has taken over from another one, and lets the thread of snapshots begin. Waits forever if
/// it takes over from none.
async fn end_take_over(taking_over: &mut Option<(oneshot::Receiver<()>, oneshot::Sender<()>)>) {
    let Some((receiver, _)) = taking_over else { return pending().await };
    // The channel is closed if the thread that takes over has ended otherwise.
    let _ = receiver.await;
    // There may be no snapshots.
    taking_over.take().map(|(_, snapshots_start)| snapshots_start.send(()));
}

/// Has all shards answer the datagrams that they have received, and then stop. `keeps_listeners` says whether another
/// process serves the listening sockets of HTTP. Returns whether all shards have ended in time.
async fn stop_shards(running: &mut RunningTracker, keeps_listeners: bool) -> bool {
    let shards = running.monitored.shared_stats.len();
    let (drained, mut all_drained) = unbounded_channel();
    for shard in 0..shards {
        running.control.send(shard, Message::Drain(drained.clone()));
        if keeps_listeners {
            running.control.send(shard, Message::EndConnections);
        }
    }
    running.control.notify();
    let drain_deadline = Instant::now() + DRAIN_TIMEOUT;
    for _ in 0..shards {
        // A stuck shard never reports; the deadline is that of all shards together.
        let _ = timeout_at(drain_deadline, all_drained.recv()).await;
    }
    if keeps_listeners {
        // Meanwhile each connection is closed after the reply to its next request.
        let deadline = Instant::now() + CONNECTIONS_TIMEOUT;
        while running.monitored.sum().http.open > 0 && Instant::now() < deadline {
            tokio::time::sleep(CONNECTIONS_INTERVAL).await;
        }
    }
    for shard in 0..shards {
        running.control.send(shard, Message::Stop { keeps_listeners });
    }
    running.control.notify();
    running.supervisor.wait_for_exits(STOP_TIMEOUT).await
}

/// Sends a message to a shard, and waits while its queue is full; returns whether it was sent.
async fn send_when_possible(control: &mut MeshEndpoint, shard: usize, message: Message) -> bool {
    // A queue that is full for a second means that the shard is stuck, which `/healthz` reports.
    for _ in 0..1_000 {
        if control.can_send(shard) {
            break;
        }
        control.notify();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    control.send(shard, message)
}

/// Sends each shard its update; returns the number of updates that were sent.
async fn send(control: &mut MeshEndpoint, updates: Vec<ShardUpdate>) -> usize {
    let mut sent = 0;
    for (shard, update) in updates.into_iter().enumerate() {
        if send_when_possible(control, shard, Message::Update(Box::new(update))).await {
            sent += 1;
        } else {
            tracing::error!(
                "shard {shard} accepts no messages and keeps its previous settings; restart the tracker"
            );
        }
    }
    control.notify();
    sent
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
