//! The thread of the cluster: connects [`ClusterNode`] with the shards and with NATS.
//!
//! Every 10 ms it publishes what the shards have changed, and has them import what others have. A shard never waits for
//! it.

mod connection;
mod export;
mod import;

use crate::clock::Clock;
use crate::cluster::{
    Action, ClusterNode, ClusterSettings, Inbox, Subject, SwarmState, is_node_name, subject_token,
};
use crate::config::{ClusterConfig, Config};
use crate::control::monitored::Monitored;
use crate::policy::access_list::ListChange;
use crate::process::cpus;
use crate::process::reload::{ControlCommand, ReloadJob};
use crate::process::shard_export::ShardSender;
use crate::shard::mesh::MeshEndpoint;
use crate::shard::publication::PublicationReceiver;
use crate::stats::cluster_status::ClusterStatus;
use connection::{Connection, ConnectionError, ConnectionEvent};
use export::ExportPart;
use import::ShardImport;
use siphasher::sip::SipHasher13;
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tsubame_storage::StateRecord;
use tsubame_udp::connection_id::ConnectionIdKey;
use tsubame_udp::steering::SteeringKeys;

/// Time between two batches.
const BATCH_INTERVAL: Duration = Duration::from_millis(10);

/// Number of batch intervals between two updates of the status.
const TICKS_PER_STATUS: u32 = 20;

/// Time after a failed connection before the next one is tried.
const CONNECT_PAUSE: Duration = Duration::from_secs(2);

/// Maximum length of a message of NATS that is looked at.
const PROBLEM_CHARS_MAX: usize = 200;

/// What connects the thread with the shards.
#[derive(Debug)]
pub(crate) struct ClusterLinks {
    pub(crate) endpoint: MeshEndpoint,
    /// The changes of each shard.
    pub(crate) changes: Vec<PublicationReceiver>,
}

/// What the thread needs.
pub(crate) struct ClusterParts {
    pub(crate) links: ClusterLinks,
    pub(crate) shards: ShardSender,
    pub(crate) keys: SteeringKeys,
    pub(crate) monitored: Monitored,
    pub(crate) status: Arc<ClusterStatus>,
    /// Changes of the access list by other nodes.
    pub(crate) control: UnboundedSender<ControlCommand>,
    /// The key of connection ids in use.
    pub(crate) key: ConnectionIdKey,
    /// Whether this process has replaced another one.
    pub(crate) has_predecessor: bool,
}

/// A message to the thread.
#[derive(Debug)]
enum ClusterCommand {
    /// Publishes changes of the access list.
    ChangeList(Vec<ListChange>),
    /// Applies new settings: lifetime of peers in seconds, and digest of the key of connection ids.
    Configure(u32, u64),
    /// Publishes the last changes of the shards, says that this node ends, and ends the thread.
    End(oneshot::Sender<()>),
}

/// The thread of the cluster.
#[derive(Debug)]
pub(crate) struct ClusterThread {
    commands: UnboundedSender<ClusterCommand>,
}

/// Returns the name of this node.
pub(crate) fn node_name(config: &ClusterConfig) -> String {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = config.node.clone().unwrap_or_else(host);
    if is_node_name(&name) { name } else { "node".to_owned() }
}

impl ClusterThread {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the thread or its runtime cannot be started.
    pub(crate) fn start(config: &Config, parts: ClusterParts) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, receiver) = unbounded_channel();
        let node = node_name(&config.cluster);
        let settings = ClusterSettings {
            node: node.clone(),
            boot: parts.monitored.clock.unix_nanos(),
            peer_lifetime_secs: config.announce.peer_lifetime.as_secs() as u32,
            key_digest: key_digest(&parts.key),
            has_older_swarms: config.storage.directory.is_some() || parts.has_predecessor,
        };
        parts.status.update(|report| report.node = node);
        let ClusterLinks { endpoint, changes } = parts.links;
        let shards = parts.shards.shards;
        let job = ClusterJob {
            prefix: config.cluster.subject.clone(),
            token: subject_token(&settings.node),
            node: ClusterNode::new(settings),
            config: config.cluster.clone(),
            clock: parts.monitored.clock,
            monitored: parts.monitored,
            status: parts.status,
            control: parts.control,
            import: ShardImport::new(endpoint, parts.keys, shards),
            shards: parts.shards,
            changes,
            records: Vec::new(),
            connection: None,
            export: None,
            unsent_messages: 0,
            reported: String::new(),
            ticks: 0,
            swarms: SwarmState::default(),
        };
        let thread = std::thread::Builder::new().name("cluster".to_owned());
        thread.spawn(move || {
            cpus::lower_priority();
            runtime.block_on(job.run(receiver));
            // A name that is being resolved must not delay the end.
            runtime.shutdown_background();
        })?;
        Ok(Self { commands })
    }

    /// Has changes of the access list published.
    pub(crate) fn change_list(&self, changes: Vec<ListChange>) {
        // The thread has ended only when the tracker stops.
        let _ = self.commands.send(ClusterCommand::ChangeList(changes));
    }

    /// Applies new settings.
    pub(crate) fn configure(&self, peer_lifetime: Duration, key: &ConnectionIdKey) {
        let lifetime = peer_lifetime.as_secs() as u32;
        let _ = self.commands.send(ClusterCommand::Configure(lifetime, key_digest(key)));
    }

    /// Has the last changes of the shards published; the channel gets a message when the node has left.
    pub(crate) fn end(&self) -> oneshot::Receiver<()> {
        let (ended, has_ended) = oneshot::channel();
        let _ = self.commands.send(ClusterCommand::End(ended));
        has_ended
    }
}

/// Returns a number that is the same for the same key, and from which the key cannot be computed.
fn key_digest(key: &ConnectionIdKey) -> u64 {
    SipHasher13::new_with_key(&key.0).hash(b"digest of the key of connection ids")
}

type Connecting = Pin<Box<dyn Future<Output = Result<Connection, ConnectionError>>>>;

/// The state of the thread.
struct ClusterJob {
    prefix: String,
    /// The name of this node in subjects.
    token: String,
    node: ClusterNode,
    config: ClusterConfig,
    clock: Clock,
    monitored: Monitored,
    status: Arc<ClusterStatus>,
    control: UnboundedSender<ControlCommand>,
    shards: ShardSender,
    import: ShardImport,
    changes: Vec<PublicationReceiver>,
    /// An empty list, for changes.
    records: Vec<StateRecord>,
    connection: Option<Connection>,
    export: Option<Receiver<ExportPart>>,
    unsent_messages: u64,
    /// The last problem that was logged.
    reported: String,
    ticks: u32,
    swarms: SwarmState,
}

impl ClusterJob {
    async fn run(mut self, mut commands: UnboundedReceiver<ClusterCommand>) {
        let mut ticks: Interval = interval(BATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connecting: Connecting = Box::pin(self.connect(Duration::ZERO));
        loop {
            let wants_part = self.node.wants_block();
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                command = commands.recv() => match command {
                    Some(ClusterCommand::ChangeList(changes)) => {
                        self.node.publish_list_changes(self.clock.elapsed(), &changes);
                    }
                    Some(ClusterCommand::Configure(lifetime, digest)) => {
                        self.node.reconfigure(lifetime, digest);
                    }
                    Some(ClusterCommand::End(ended)) => {
                        self.end().await;
                        let _ = ended.send(());
                        return;
                    }
                    None => return,
                },
                connected = &mut connecting, if self.connection.is_none() => match connected {
                    Ok(connection) => self.connected(connection),
                    Err(error) => {
                        self.report_problem(&format!("{error}; until then this node serves alone"));
                        connecting = Box::pin(self.connect(CONNECT_PAUSE));
                    }
                },
                event = next_event(&mut self.connection) => self.handle(event),
                part = next_part(&mut self.export), if wants_part => self.add_part(part),
            }
            self.act();
        }
    }

    /// Connects after a pause.
    fn connect(
        &self,
        pause: Duration,
    ) -> impl Future<Output = Result<Connection, ConnectionError>> + use<> {
        let subjects =
            ["hello.*", "v1.delta.*"].map(|subject| format!("{}.{subject}", self.prefix));
        let own =
            ["request", "reply"].map(|kind| format!("{}.v1.{kind}.{}", self.prefix, self.token));
        let (config, node) = (self.config.clone(), self.token.clone());
        async move {
            tokio::time::sleep(pause).await;
            Connection::open(config, node, subjects.into_iter().chain(own).collect()).await
        }
    }

    fn connected(&mut self, connection: Connection) {
        tracing::info!("cluster: connected to NATS as node {:?}", self.status.read().node);
        self.reported.clear();
        self.node.connected(self.clock.elapsed(), connection.message_bytes_max());
        self.connection = Some(connection);
        self.update_status();
    }

    /// Does what is due every 10 ms.
    fn tick(&mut self) {
        self.publish_changes();
        if self.ticks.is_multiple_of(TICKS_PER_STATUS) {
            self.update_status();
            let process = &self.monitored.process;
            self.swarms.torrents = self.monitored.sum().table.torrents as u64;
            self.swarms.is_restoring = process.snapshots.is_restoring.load(Ordering::Relaxed);
        }
        self.ticks = self.ticks.wrapping_add(1);
        self.swarms.is_busy = self.import.is_busy();
        self.node.tick(self.clock.elapsed(), self.swarms);
        self.import.advance();
    }

    fn publish_changes(&mut self) {
        for changes in &mut self.changes {
            changes.receive(&mut self.records);
        }
        if !self.records.is_empty() {
            self.node.publish(self.clock.elapsed(), &self.records);
            self.records.clear();
        }
    }

    fn handle(&mut self, event: ConnectionEvent) {
        let now = self.clock.elapsed();
        match event {
            ConnectionEvent::Message(message) => {
                let subject = message.subject.as_str();
                let from = subject.strip_prefix(&*self.prefix).and_then(|rest| {
                    rest.strip_prefix(".hello.").or_else(|| rest.strip_prefix(".v1.delta."))
                });
                let inbox = from.map_or(Inbox::ToThisNode, Inbox::FromNode);
                self.node.receive(now, inbox, &message.payload);
            }
            ConnectionEvent::Connected => {
                if let Some(connection) = &self.connection {
                    tracing::info!("cluster: connected to NATS again");
                    self.reported.clear();
                    self.node.connected(now, connection.message_bytes_max());
                }
                self.update_status();
            }
            ConnectionEvent::Disconnected => {
                tracing::warn!(
                    "cluster: the connection to NATS has broken; until there is one again this node serves alone"
                );
                self.update_status();
            }
            ConnectionEvent::Problem(problem) => {
                let problem: String = problem.chars().take(PROBLEM_CHARS_MAX).collect();
                self.report_problem(&format!("NATS: {problem}"));
            }
        }
    }

    /// Logs a problem, unless it is the same as the last one.
    fn report_problem(&mut self, problem: &str) {
        if self.reported != problem {
            tracing::warn!("cluster: {problem}");
            self.reported = problem.to_owned();
        }
    }

    fn add_part(&mut self, part: Option<ExportPart>) {
        let now = self.clock.elapsed();
        match part {
            Some(ExportPart::Records(records)) => self.node.add_block(now, &records, false),
            Some(ExportPart::Complete) => self.node.add_block(now, &[], true),
            None => {
                self.node.abort_export();
                self.export = None;
            }
        }
    }

    /// Does what the node wants.
    fn act(&mut self) {
        for action in self.node.take_actions() {
            match action {
                Action::Publish(subject, message) => self.publish(&subject, &message),
                Action::Import(records) => self.import.add(&records),
                Action::ChangeList(changes) => {
                    let job = (ReloadJob::AdoptList(changes), None);
                    // Fails only when the tracker stops.
                    let _ = self.control.send(ControlCommand::Job(job));
                }
                Action::BeginExport => {
                    self.export = export::start(self.shards.clone(), self.clock);
                    match self.monitored.served_config().access_list {
                        // There is another export: the other node asks again.
                        _ if self.export.is_none() => self.node.abort_export(),
                        Some(list) => {
                            self.node.add_list_changes(self.clock.elapsed(), &list.overrides());
                        }
                        None => {}
                    }
                }
                Action::EndExport => self.export = None,
                Action::Report(event) if event.is_warning() => tracing::warn!("cluster: {event}"),
                Action::Report(event) => tracing::info!("cluster: {event}"),
            }
        }
    }

    fn publish(&mut self, subject: &Subject, message: &[u8]) {
        let prefix = &self.prefix;
        let subject = match subject {
            Subject::Hello => format!("{prefix}.hello.{}", self.token),
            Subject::Delta => format!("{prefix}.v1.delta.{}", self.token),
            Subject::Request(node) => format!("{prefix}.v1.request.{}", subject_token(node)),
            Subject::Reply(node) => format!("{prefix}.v1.reply.{}", subject_token(node)),
        };
        let is_sent =
            self.connection.as_ref().is_some_and(|connection| connection.publish(subject, message));
        self.unsent_messages += u64::from(!is_sent);
    }

    /// Publishes the last changes of the shards, which have stopped, and says that this node ends.
    async fn end(&mut self) {
        self.publish_changes();
        self.node.leave(self.clock.elapsed());
        self.act();
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    fn update_status(&self) {
        let now = self.clock.elapsed();
        let nodes = self.node.nodes(now);
        self.status.update(|report| {
            report.is_connected = self.connection.as_ref().is_some_and(Connection::is_connected);
            report.is_refused = self.node.is_refused();
            report.is_complete = self.node.is_complete();
            report.counts = self.node.counts();
            report.nodes = nodes;
            report.lost_changes = self.changes.iter().map(PublicationReceiver::lost).sum();
            report.unsent_messages = self.unsent_messages;
            report.imported_records = self.import.imported_records;
            report.dropped_records = self.import.dropped_records;
            report.waiting_records = self.import.waiting_records() as u64;
        });
    }
}

/// Waits for a message or an event of the connection, forever if there is none.
async fn next_event(connection: &mut Option<Connection>) -> ConnectionEvent {
    match connection {
        Some(connection) => connection.next().await,
        None => pending().await,
    }
}

/// Waits for a part of the export, forever if there is none.
async fn next_part(export: &mut Option<Receiver<ExportPart>>) -> Option<ExportPart> {
    match export {
        Some(export) => export.recv().await,
        None => pending().await,
    }
}
