//! The thread of the cluster: connects [`ClusterNode`] with the shards and with NATS.
//!
//! Every 20 ms it publishes the changes of the shards, and passes them the records of other nodes. A shard never waits
//! for this thread.

mod connection;
mod export;
mod import;
mod list_changes;

use crate::clock::Clock;
use crate::cluster::{
    Action, ClusterNode, ClusterSettings, MessageSource, MessageSubject, SwarmState, is_node_name,
    subject_token,
};
use crate::config::{ClusterConfig, Config};
use crate::control::monitored::Monitored;
use crate::policy::overrides::ListChange;
use crate::process::cpus;
use crate::process::reload::ControlCommand;
use crate::process::shard_export::ShardSender;
use crate::process::snapshot;
use crate::shard::mesh::MeshEndpoint;
use crate::shard::publication::PublicationReceiver;
use crate::stats::cluster_status::SharedClusterStatus;
use connection::{ConnectionError, ConnectionEvent, NatsConnection};
use export::ExportEvent;
use import::ShardImport;
use list_changes::RemoteListChanges;
use siphasher::sip::SipHasher13;
use std::collections::BTreeSet;
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

/// Time between two batches. With 10 ms the thread takes 13 ms of processor time a second instead of 8.
const BATCH_INTERVAL: Duration = Duration::from_millis(20);

/// Number of batch intervals between two updates of the status.
const TICKS_PER_STATUS: u32 = 10;

/// Time after a failed connection before the next one is tried.
const CONNECT_PAUSE: Duration = Duration::from_secs(2);

/// Time after a connection on which a subscription was denied before the next one is tried. The server does not grant
/// it later on the same connection.
const DENIED_PAUSE: Duration = Duration::from_secs(30);

/// Maximum number of different problems that are logged until the next connection.
const PROBLEMS_MAX: usize = 16;

/// The queues between the thread and the shards.
#[derive(Debug)]
pub(crate) struct ClusterLinks {
    pub(crate) endpoint: MeshEndpoint,
    /// The changes of each shard.
    pub(crate) changes: Vec<PublicationReceiver>,
}

/// Arguments of [`ClusterThread::start`].
pub(crate) struct ClusterResources {
    pub(crate) links: ClusterLinks,
    pub(crate) shards: ShardSender,
    pub(crate) keys: SteeringKeys,
    pub(crate) monitored: Monitored,
    pub(crate) status: Arc<SharedClusterStatus>,
    /// Changes of the access list by other nodes.
    pub(crate) control: UnboundedSender<ControlCommand>,
    /// The key of connection ids in use.
    pub(crate) key: ConnectionIdKey,
    /// Whether this process replaces another one.
    pub(crate) has_predecessor: bool,
}

/// A message to the thread.
#[derive(Debug)]
enum ClusterCommand {
    /// Connects to NATS, now that this process has replaced another one.
    Connect,
    /// Publishes changes of the access list.
    PublishListChanges(Vec<ListChange>),
    /// Applies new settings: the digest is that of the key of connection ids.
    Configure { peer_lifetime_secs: u32, key_digest: u64 },
    /// Publishes the last changes of the shards, says that this node ends, and ends the thread.
    End(oneshot::Sender<()>),
}

/// The thread of the cluster.
#[derive(Debug)]
pub(crate) struct ClusterThread {
    commands: UnboundedSender<ClusterCommand>,
}

/// Returns `cluster.node`, or the name of the host; `node` if that is not valid.
pub(crate) fn node_name(config: &ClusterConfig) -> String {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = config.node.clone().unwrap_or_else(host);
    if is_node_name(&name) { name } else { "node".to_owned() }
}

impl ClusterThread {
    /// Starts the thread. If this process is replacing another one, which is still the node of this name, the thread
    /// keeps the changes of the shards and does not connect until [`Self::connect`].
    ///
    /// # Errors
    ///
    /// Returns an error if the thread or its runtime cannot be started.
    pub(crate) fn start(config: &Config, parts: ClusterResources) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, receiver) = unbounded_channel();
        let node = node_name(&config.cluster);
        let (served, has_predecessor) = (parts.monitored.served_config(), parts.has_predecessor);
        let settings = ClusterSettings {
            node: node.clone(),
            boot: parts.monitored.clock.unix_nanos(),
            peer_lifetime_secs: config.announce.peer_lifetime.as_secs() as u32,
            key_digest: key_digest(&parts.key),
            has_older_state: snapshot::may_exist(config)
                || has_predecessor
                || served.access_list.is_some_and(|list| !list.changes().is_empty()),
        };
        parts.status.update(|status| status.node = node);
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
            list_changes: RemoteListChanges::new(parts.control),
            import: ShardImport::new(endpoint, parts.keys, shards),
            shards: parts.shards,
            changes,
            records: Vec::new(),
            connection: None,
            export: None,
            unsent_messages: 0,
            reported: BTreeSet::new(),
            ticks: 0,
            swarms: SwarmState::default(),
            export_after: None,
        };
        let thread = std::thread::Builder::new().name("cluster".to_owned());
        thread.spawn(move || {
            cpus::lower_priority();
            runtime.block_on(job.run(receiver, !has_predecessor));
            // A name that is being resolved must not delay the end.
            runtime.shutdown_background();
        })?;
        Ok(Self { commands })
    }

    /// Has the thread connect to NATS, now that this process has replaced another one.
    pub(crate) fn connect(&self) {
        // The thread has ended only when the tracker stops.
        let _ = self.commands.send(ClusterCommand::Connect);
    }

    /// Has changes of the access list published.
    pub(crate) fn publish_list_changes(&self, changes: Vec<ListChange>) {
        let _ = self.commands.send(ClusterCommand::PublishListChanges(changes));
    }

    /// Applies new settings.
    pub(crate) fn configure(&self, peer_lifetime: Duration, key: &ConnectionIdKey) {
        let peer_lifetime_secs = peer_lifetime.as_secs() as u32;
        let key_digest = key_digest(key);
        let _ = self.commands.send(ClusterCommand::Configure { peer_lifetime_secs, key_digest });
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

type Connecting = Pin<Box<dyn Future<Output = Result<NatsConnection, ConnectionError>>>>;

/// State of the thread.
struct ClusterJob {
    prefix: String,
    /// The name of this node in subjects.
    token: String,
    node: ClusterNode,
    config: ClusterConfig,
    clock: Clock,
    monitored: Monitored,
    status: Arc<SharedClusterStatus>,
    shards: ShardSender,
    import: ShardImport,
    changes: Vec<PublicationReceiver>,
    /// Buffer for changes, empty between calls.
    records: Vec<StateRecord>,
    connection: Option<NatsConnection>,
    export: Option<Receiver<ExportEvent>>,
    unsent_messages: u64,
    /// The problems that were logged since the last connection.
    reported: BTreeSet<String>,
    ticks: u32,
    swarms: SwarmState,
    /// Position in the imported records after which an export is to begin.
    export_after: Option<Vec<u64>>,
    list_changes: RemoteListChanges,
}

impl ClusterJob {
    /// Runs until the tracker stops. `connects` says whether to connect to NATS at once.
    async fn run(mut self, mut commands: UnboundedReceiver<ClusterCommand>, connects: bool) {
        let mut ticks: Interval = interval(BATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connecting: Connecting = match connects {
            true => Box::pin(self.connect(Duration::ZERO)),
            false => Box::pin(pending()),
        };
        loop {
            let wants_block = self.node.wants_block();
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                command = commands.recv() => match command {
                    Some(ClusterCommand::Connect) => {
                        connecting = Box::pin(self.connect(Duration::ZERO));
                    }
                    Some(ClusterCommand::PublishListChanges(changes)) => {
                        self.node.publish_list_changes(self.clock.elapsed(), &changes);
                    }
                    Some(ClusterCommand::Configure { peer_lifetime_secs, key_digest }) => {
                        self.node.reconfigure(peer_lifetime_secs, key_digest);
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
                        self.report_problem(&format!(
                            "{error}; this node serves alone and tries again every few seconds"
                        ));
                        connecting = Box::pin(self.connect(CONNECT_PAUSE));
                    }
                },
                event = next_event(&mut self.connection) => {
                    self.handle(event);
                    if self.connection.is_none() {
                        connecting = Box::pin(self.connect(DENIED_PAUSE));
                    }
                }
                event = next_export_event(&mut self.export), if wants_block => self.handle_export(event),
            }
            self.act();
        }
    }

    /// Connects after a pause.
    fn connect(
        &self,
        pause: Duration,
    ) -> impl Future<Output = Result<NatsConnection, ConnectionError>> + use<> {
        let subjects =
            ["hello.*", "v1.delta.*"].map(|subject| format!("{}.{subject}", self.prefix));
        let own =
            ["request", "reply"].map(|kind| format!("{}.v1.{kind}.{}", self.prefix, self.token));
        let (config, node) = (self.config.clone(), self.token.clone());
        async move {
            tokio::time::sleep(pause).await;
            NatsConnection::open(config, node, subjects.into_iter().chain(own).collect()).await
        }
    }

    fn connected(&mut self, connection: NatsConnection) {
        let (server, node) = (connection.server(), self.status.read().node);
        tracing::info!("cluster: connected to NATS server {server:?} as node {node:?}");
        self.reported.clear();
        self.node.connected(self.clock.elapsed(), connection.message_bytes_max());
        self.connection = Some(connection);
        self.update_status();
    }

    /// Does what is due in each batch interval.
    fn tick(&mut self) {
        self.publish_changes();
        if self.ticks.is_multiple_of(TICKS_PER_STATUS) {
            self.update_status();
            let process = &self.monitored.process;
            self.swarms.torrents = self.monitored.sum().table.torrents as u64;
            self.swarms.is_restoring = process.snapshots.is_restoring.load(Ordering::Relaxed);
        }
        self.ticks = self.ticks.wrapping_add(1);
        self.update_connection();
        let now = self.clock.elapsed();
        self.list_changes.advance(now);
        self.swarms.is_busy = self.import.is_busy() || self.list_changes.is_busy(now);
        self.node.tick(now, self.swarms);
        if self.list_changes.blocks_records(now) {
            return;
        }
        self.import.advance(now);
        // The snapshot includes all that was received of other nodes before it was requested.
        let is_due = |position: &mut Vec<u64>| self.import.has_passed(position);
        if self.export_after.take_if(is_due).is_some() {
            self.begin_export();
        }
    }

    /// Tells the node of a change of the connection whose event was dropped.
    fn update_connection(&mut self) {
        let Some(connection) = &self.connection else { return };
        match (connection.is_connected(), self.node.is_connected()) {
            (true, false) => {
                self.node.connected(self.clock.elapsed(), connection.message_bytes_max());
            }
            (false, true) => self.node.disconnected(),
            _ => {}
        }
    }

    fn begin_export(&mut self) {
        self.export = export::start(self.shards.clone(), self.clock);
        if self.export.is_none() {
            // The other node asks again.
            return self.node.abort_export();
        }
        // A snapshot without changes of the other nodes does not include their batches.
        if self.list_changes.has_pending() {
            self.node.exclude_other_nodes();
        }
        if let Some(list) = self.monitored.served_config().access_list {
            self.node.add_list_changes(self.clock.elapsed(), &list.changes());
        }
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
                let source = from.map_or(MessageSource::ToThisNode, MessageSource::FromNode);
                self.node.receive(now, source, &message.payload);
            }
            ConnectionEvent::Reconnected => {
                if let Some(connection) = &self.connection {
                    tracing::info!("cluster: reconnected to NATS server {:?}", connection.server());
                    self.reported.clear();
                    self.node.connected(now, connection.message_bytes_max());
                }
                self.update_status();
            }
            ConnectionEvent::Lost => {
                tracing::warn!(
                    "cluster: lost the connection to NATS; this node serves alone until it is reconnected"
                );
                self.node.disconnected();
                self.update_status();
            }
            ConnectionEvent::Problem(problem) => self.report_problem(&problem.to_string()),
            ConnectionEvent::Denied(problem) => {
                self.report_problem(&format!(
                    "{problem}; this node serves alone and tries again every {} s",
                    DENIED_PAUSE.as_secs()
                ));
                self.connection = None;
                self.node.disconnected();
                self.update_status();
            }
        }
    }

    /// Logs a problem, once until the next connection.
    fn report_problem(&mut self, problem: &str) {
        if self.reported.len() < PROBLEMS_MAX && self.reported.insert(problem.to_owned()) {
            tracing::warn!("cluster: {problem}");
        }
    }

    fn handle_export(&mut self, event: Option<ExportEvent>) {
        let now = self.clock.elapsed();
        match event {
            Some(ExportEvent::Records(records)) => self.node.add_block(now, &records, false),
            Some(ExportEvent::Complete) => self.node.add_block(now, &[], true),
            None => {
                self.node.abort_export();
                self.export = None;
            }
        }
    }

    /// Performs the actions that the node has returned.
    fn act(&mut self) {
        for action in self.node.take_actions() {
            match action {
                Action::Publish(subject, message) => self.publish(&subject, &message),
                Action::Import(records) => self.import.add(&records),
                Action::ApplyListChanges(changes) => self.list_changes.add(changes),
                Action::BeginExport => self.export_after = Some(self.import.position()),
                Action::EndExport => (self.export, self.export_after) = (None, None),
                Action::Report(event) if event.is_warning() => tracing::warn!("cluster: {event}"),
                Action::Report(event) => tracing::info!("cluster: {event}"),
            }
        }
    }

    fn publish(&mut self, subject: &MessageSubject, message: &[u8]) {
        let prefix = &self.prefix;
        let subject = match subject {
            MessageSubject::Hello => format!("{prefix}.hello.{}", self.token),
            MessageSubject::Delta => format!("{prefix}.v1.delta.{}", self.token),
            MessageSubject::Request(node) => format!("{prefix}.v1.request.{}", subject_token(node)),
            MessageSubject::Reply(node) => format!("{prefix}.v1.reply.{}", subject_token(node)),
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
        let mut nodes = self.node.nodes(now);
        let is_connected = self.connection.as_ref().is_some_and(NatsConnection::is_connected);
        for node in &mut nodes {
            node.is_present &= is_connected;
        }
        self.status.update(|status| {
            status.is_connected = is_connected;
            status.is_refused = self.node.is_refused();
            status.is_complete = status.is_connected && self.node.is_complete();
            status.counts = self.node.counts();
            status.nodes = nodes;
            status.lost_changes = self.changes.iter().map(PublicationReceiver::lost).sum();
            status.unsent_messages = self.unsent_messages;
            status.imported_records = self.import.imported_records;
            status.refused_records = self.import.refused_records;
            status.dropped_records = self.import.dropped_records + self.list_changes.dropped;
            status.waiting_records = self.import.waiting_records() as u64;
        });
    }
}

/// Waits for a message or an event of the connection, forever if there is none.
async fn next_event(connection: &mut Option<NatsConnection>) -> ConnectionEvent {
    match connection {
        Some(connection) => connection.next().await,
        None => pending().await,
    }
}

/// Waits for an event of the export, forever if there is none.
async fn next_export_event(export: &mut Option<Receiver<ExportEvent>>) -> Option<ExportEvent> {
    match export {
        Some(export) => export.recv().await,
        None => pending().await,
    }
}
