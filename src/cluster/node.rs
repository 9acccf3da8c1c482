//! A node of a cluster: its state, and what it does when a message arrives or time passes.

use super::event::ClusterEvent;
use super::message::{
    Body, Covered, Hello, HelloState, PROTOCOL_VERSION, Received, Sender, decode, encode,
    list_changes, subject_token,
};
use super::outbox::Outbox;
use super::remote_node::{BatchOrder, RemoteNode, SILENCE_MAX};
use super::snapshot::{BLOCKS_IN_FLIGHT, SnapshotSink, SnapshotSource};
use crate::state::{decode_records, encode_records};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::{InfoHash, StateRecord};

/// Maximum number of other nodes.
pub const NODES_MAX: usize = 64;

/// Time between two hellos.
const HELLO_INTERVAL: Duration = Duration::from_secs(1);

/// Time for which a node that starts looks whether there is another one of its name, and who the others are.
const CHECK_TIME: Duration = Duration::from_secs(2);

/// Maximum bytes of the records of a message.
const RECORDS_BYTES_MAX: usize = 256 << 10;

/// Bytes of a message that are left for all but its records.
const HEAD_BYTES: usize = 16 << 10;

/// Maximum length of an encoded change.
const CHANGE_BYTES_MAX: usize = 64;

/// Maximum number of changes of the access list in a batch.
const LIST_CHANGES_MAX: usize = 256;

/// Maximum bytes of batches that are sent again in a second.
const RESENT_BYTES_PER_SEC: usize = 16 << 20;

/// Maximum bytes of one reply to a request to send batches again; further ones are asked for again.
const RESENT_BYTES_MAX: usize = 4 << 20;

/// Time after a snapshot that has failed before the next one is asked for.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(2);

/// Time between two reports of invalid messages.
const INVALID_PAUSE: Duration = Duration::from_secs(60);

/// Time for which a node that says nothing is remembered, in lifetimes of peers.
const FORGET_LIFETIMES: u32 = 2;

/// What a node of a cluster must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Its name.
    pub node: String,
    /// Time of the start in nanoseconds since 1970.
    pub boot: u64,
    /// How long a peer is stored after its last announce, in seconds.
    pub peer_lifetime_secs: u32,
    /// A number that depends on the key of connection ids, and from which the key cannot be computed.
    pub key_digest: u64,
    /// Whether it may have swarms of before its start.
    pub has_older_swarms: bool,
}

/// State of the swarms of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmState {
    /// Number of torrents.
    pub torrents: u64,
    /// Whether imports are far behind, so that no more of a snapshot is to be asked for.
    pub is_busy: bool,
    /// Whether swarms of before the start are still being read, so that no snapshot can be sent.
    pub is_restoring: bool,
}

/// Where a message is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Hellos of this node.
    Hello,
    /// Batches of this node.
    Delta,
    /// Requests to the node with this name.
    Request(String),
    /// Replies to the node with this name.
    Reply(String),
}

/// The subscription by which a message has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbox<'a> {
    /// Hellos and batches of the node with this name as a token: see [`subject_token`].
    FromNode(&'a str),
    /// Requests and replies to this node.
    ToThisNode,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Publish a message.
    Publish(Subject, Arc<[u8]>),
    /// Import records of other nodes. Their times are of the own clock.
    Import(Vec<StateRecord>),
    /// Add torrents to the access list, or remove them.
    ChangeList(Vec<(InfoHash, bool)>),
    /// Begin an export of all swarms: [`ClusterNode::wants_block`].
    BeginExport,
    /// End it.
    EndExport,
    /// Report an event.
    Report(ClusterEvent),
}

/// Counts of what has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterCounts {
    /// Batches that were published.
    pub sent_batches: u64,
    /// Changes in these.
    pub sent_changes: u64,
    /// Bytes of all messages that were published.
    pub sent_bytes: u64,
    /// Batches of other nodes that were applied.
    pub received_batches: u64,
    /// Changes in these.
    pub received_changes: u64,
    /// Bytes of all messages that were received.
    pub received_bytes: u64,
    /// Batches that were sent again.
    pub resent_batches: u64,
    /// Times that batches of another node were missed and asked for.
    pub gaps: u64,
    /// Snapshots that were sent.
    pub sent_snapshots: u64,
    /// Snapshots that were received.
    pub received_snapshots: u64,
    /// Messages that are invalid, or of a node that is ignored.
    pub ignored_messages: u64,
}

/// What is known of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Whether it takes part and was heard a short time ago.
    pub is_present: bool,
    /// Number of batches that are missing.
    pub missing_batches: u64,
    /// Time since batches are missing; zero if none are.
    pub lag: Duration,
}

/// Whether this node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    /// Not connected yet.
    Unconnected,
    /// Since this time it looks whether there is another node of its name.
    Checking(Duration),
    Active,
    /// There is an older node of its name, which was heard at this time.
    Refused(Duration),
}

/// A node of a cluster.
#[derive(Debug)]
pub struct ClusterNode {
    settings: ClusterSettings,
    membership: Membership,
    outbox: Outbox,
    nodes: BTreeMap<String, RemoteNode>,
    sink: Option<SnapshotSink>,
    source: Option<SnapshotSource>,
    actions: Vec<Action>,
    counts: ClusterCounts,
    /// Maximum bytes of the records of a message.
    records_bytes_max: usize,
    swarms: SwarmState,
    hello_at: Duration,
    /// No snapshot is asked for before this time.
    no_snapshot_before: Duration,
    sessions: u64,
    /// Bytes that were sent again in the second that began at the time.
    resent: (Duration, usize),
    invalid_reported_at: Option<Duration>,
    /// Nodes with newer versions, nodes that are too many and others of the own name that were reported.
    reported: BTreeSet<String>,
}

impl ClusterNode {
    /// Creates a node that is not connected.
    pub fn new(settings: ClusterSettings) -> Self {
        Self {
            settings,
            membership: Membership::Unconnected,
            outbox: Outbox::new(),
            nodes: BTreeMap::new(),
            sink: None,
            source: None,
            actions: Vec::new(),
            counts: ClusterCounts::default(),
            records_bytes_max: RECORDS_BYTES_MAX,
            swarms: SwarmState::default(),
            hello_at: Duration::ZERO,
            no_snapshot_before: Duration::ZERO,
            sessions: 0,
            resent: (Duration::ZERO, 0),
            invalid_reported_at: None,
            reported: BTreeSet::new(),
        }
    }

    /// Returns what is to be done.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Returns the counts.
    pub fn counts(&self) -> ClusterCounts {
        self.counts
    }

    /// Returns what is known of the other nodes.
    pub fn nodes(&self, now: Duration) -> Vec<NodeStatus> {
        let status = |(name, node): (&String, &RemoteNode)| NodeStatus {
            name: name.clone(),
            is_present: node.is_present,
            missing_batches: node.end - node.next,
            lag: node.gap_since().map_or(Duration::ZERO, |since| now.saturating_sub(since)),
        };
        self.nodes.iter().map(status).collect()
    }

    /// Returns whether the node takes part, and knows of no other node whose changes it lacks.
    pub fn is_complete(&self) -> bool {
        let lacks = |node: &RemoteNode| node.is_present && node.missed_before.is_some();
        self.membership == Membership::Active && !self.nodes.values().any(lacks)
    }

    /// Returns whether an older node has the same name.
    pub fn is_refused(&self) -> bool {
        matches!(self.membership, Membership::Refused(_))
    }

    /// Sets the lifetime of peers and the digest of the key of connection ids.
    pub fn reconfigure(&mut self, peer_lifetime_secs: u32, key_digest: u64) {
        (self.settings.peer_lifetime_secs, self.settings.key_digest) =
            (peer_lifetime_secs, key_digest);
    }

    /// Takes note of a connection, over which messages of up to `message_bytes_max` bytes can be sent.
    pub fn connected(&mut self, now: Duration, message_bytes_max: usize) {
        self.records_bytes_max =
            message_bytes_max.saturating_sub(HEAD_BYTES).clamp(CHANGE_BYTES_MAX, RECORDS_BYTES_MAX);
        if self.membership == Membership::Unconnected {
            self.membership = Membership::Checking(now);
        }
        self.say_hello(now);
    }

    /// Publishes changes in batches. The records are changes.
    pub fn publish(&mut self, now: Duration, changes: &[StateRecord]) {
        let own_time = now.as_secs() as i64;
        for part in changes.chunks(self.records_bytes_max / CHANGE_BYTES_MAX) {
            let mut records = Vec::new();
            encode_records(part, own_time, &mut records);
            self.publish_batch(now, Vec::new(), &records);
            self.counts.sent_changes += part.len() as u64;
        }
    }

    /// Publishes changes of the access list.
    pub fn publish_list_changes(&mut self, now: Duration, changes: &[(InfoHash, bool)]) {
        for part in changes.chunks(LIST_CHANGES_MAX) {
            self.publish_batch(now, list_changes(part), &[]);
        }
    }

    fn publish_batch(
        &mut self,
        now: Duration,
        list_changes: Vec<([u8; 20], bool)>,
        records: &[u8],
    ) {
        let (sequence, sent_at) = (self.outbox.next(), now.as_secs() as i64);
        let batch = Body::Batch { sequence, sent_at, list_changes };
        let message: Arc<[u8]> = self.encode(&batch, records).into();
        self.outbox.push(now, message.clone());
        // Before it takes part, the others ask for what they have missed.
        if self.membership == Membership::Active {
            self.counts.sent_batches += 1;
            self.send(Subject::Delta, message);
        }
    }

    /// Does what is due. To be called every few milliseconds.
    pub fn tick(&mut self, now: Duration, swarms: SwarmState) {
        self.swarms = swarms;
        match self.membership {
            Membership::Unconnected => return,
            Membership::Checking(since) if now.saturating_sub(since) >= CHECK_TIME => {
                self.membership = Membership::Active;
                self.say_hello(now);
            }
            Membership::Refused(heard_at) if now.saturating_sub(heard_at) >= SILENCE_MAX => {
                self.report(ClusterEvent::NameFree(self.settings.node.clone()));
                self.membership = Membership::Checking(now);
            }
            _ => {}
        }
        if now.saturating_sub(self.hello_at) >= HELLO_INTERVAL {
            self.outbox.expire(now);
            self.say_hello(now);
            self.forget_silent_nodes(now);
        }
        if self.membership == Membership::Active {
            self.request_missing(now);
        }
        self.tick_sink(now);
        self.tick_source(now);
    }

    /// Says that the node ends.
    pub fn leave(&mut self, now: Duration) {
        if self.membership == Membership::Active {
            self.send_hello(now, HelloState::Leaving);
        }
    }

    fn say_hello(&mut self, now: Duration) {
        let state = match self.membership {
            Membership::Unconnected => return,
            Membership::Checking(_) => HelloState::Checking,
            Membership::Active => HelloState::Active,
            Membership::Refused(_) => HelloState::Refused,
        };
        self.send_hello(now, state);
    }

    /// Says hello at once for a node that starts, but not more often than ten times a second.
    fn repeat_hello(&mut self, now: Duration) {
        if now.saturating_sub(self.hello_at) >= HELLO_INTERVAL / 10 {
            self.say_hello(now);
        }
    }

    fn send_hello(&mut self, now: Duration, state: HelloState) {
        self.hello_at = now;
        let hello = Hello {
            state,
            next: self.outbox.next(),
            oldest: self.outbox.oldest(),
            sent_at: now.as_secs() as i64,
            peer_lifetime_secs: self.settings.peer_lifetime_secs,
            key_digest: self.settings.key_digest,
            torrents: self.swarms.torrents,
            is_complete: self.is_complete(),
            has_older_swarms: self.settings.has_older_swarms,
        };
        let message = self.encode(&Body::Hello(hello), &[]);
        self.send(Subject::Hello, message.into());
    }

    fn forget_silent_nodes(&mut self, now: Duration) {
        let mut lost = Vec::new();
        for (name, node) in &mut self.nodes {
            let silence = now.saturating_sub(node.heard_at);
            if node.is_present && silence >= SILENCE_MAX {
                node.is_present = false;
                lost.push(ClusterEvent::NodeLost(name.clone(), silence));
            }
        }
        lost.into_iter().for_each(|event| self.report(event));
        let lifetime = Duration::from_secs(self.settings.peer_lifetime_secs.into());
        let forget_after = (lifetime * FORGET_LIFETIMES).max(SILENCE_MAX * 2);
        self.nodes.retain(|_, node| now.saturating_sub(node.heard_at) < forget_after);
    }

    /// Asks for batches that are missing, and for a snapshot if there are some that no node can send any more.
    fn request_missing(&mut self, now: Duration) {
        let mut requests: Vec<(String, Range<u64>)> = Vec::new();
        let mut missed = Vec::new();
        for (name, node) in &mut self.nodes {
            if node.give_up_late_batches(now) {
                missed.push(ClusterEvent::Missed(name.clone()));
            }
            if let Some(numbers) = node.batches_to_request(now) {
                requests.push((name.clone(), numbers));
            }
        }
        missed.into_iter().for_each(|event| self.report(event));
        for (name, Range { start: first, end }) in requests {
            self.counts.gaps += 1;
            let message = self.encode(&Body::ResendRequest { first, end }, &[]);
            self.send(Subject::Request(name), message.into());
        }
        if self.sink.is_some() || self.swarms.is_busy || now < self.no_snapshot_before {
            return;
        }
        let lacking = self.nodes.iter().filter(|(_, node)| {
            node.is_present && node.is_active() && node.missed_before.is_some()
        });
        let best = lacking.max_by_key(|(_, node)| (node.hello.is_complete, node.hello.torrents));
        if let Some((from, _)) = best {
            let from = from.clone();
            self.sessions += 1;
            let session = self.settings.boot.wrapping_add(self.sessions);
            self.report(ClusterEvent::SnapshotRequested(from.clone()));
            self.sink = Some(SnapshotSink::new(now, from, session));
            self.request_blocks();
        }
    }

    fn request_blocks(&mut self) {
        let Some(sink) = &self.sink else { return };
        let (session, received) = (sink.session, sink.next);
        let end = if self.swarms.is_busy { received } else { received + BLOCKS_IN_FLIGHT };
        let subject = Subject::Request(sink.from.clone());
        let message = self.encode(&Body::SnapshotRequest { session, received, end }, &[]);
        self.send(subject, message.into());
    }

    fn tick_sink(&mut self, now: Duration) {
        let Some(sink) = &mut self.sink else { return };
        if sink.has_failed(now) {
            self.end_sink(now);
        } else if sink.is_request_due(now) {
            self.request_blocks();
        }
    }

    /// Gives up the snapshot that is being received.
    fn end_sink(&mut self, now: Duration) {
        if let Some(sink) = self.sink.take() {
            self.no_snapshot_before = now + SNAPSHOT_PAUSE;
            self.report(ClusterEvent::SnapshotFailed(sink.from));
        }
    }

    fn tick_source(&mut self, now: Duration) {
        let mut messages = Vec::new();
        let Some(source) = &mut self.source else { return };
        while let Some(message) = source.next_message(now) {
            messages.push((source.to.clone(), message));
        }
        if source.has_ended(now) {
            self.source = None;
            self.actions.push(Action::EndExport);
        }
        for (to, message) in messages {
            self.send(Subject::Reply(to), message.into());
        }
    }

    /// Returns whether records of the export are wanted: see [`Action::BeginExport`].
    pub fn wants_block(&self) -> bool {
        self.source.as_ref().is_some_and(SnapshotSource::wants_block)
    }

    /// Adds changes of the access list to the snapshot that is being sent, before its records.
    pub fn add_list_changes(&mut self, now: Duration, changes: &[(InfoHash, bool)]) {
        for part in changes.chunks(LIST_CHANGES_MAX) {
            self.push_block(now, list_changes(part), &[], false);
        }
    }

    /// Adds records of the export to the snapshot that is being sent. The first one is not a peer.
    pub fn add_block(&mut self, now: Duration, records: &[StateRecord], is_last: bool) {
        let parts = self.parts(now, records);
        let count = parts.len();
        for (number, part) in parts.into_iter().enumerate() {
            self.push_block(now, Vec::new(), &part, is_last && number + 1 == count);
        }
    }

    fn push_block(
        &mut self,
        now: Duration,
        list_changes: Vec<([u8; 20], bool)>,
        records: &[u8],
        is_last: bool,
    ) {
        let Some(source) = &mut self.source else { return };
        let (session, block) = (source.session, source.next_block());
        let covered = std::mem::take(&mut source.covered);
        let sent_at = now.as_secs() as i64;
        let body = Body::SnapshotBlock { session, block, sent_at, is_last, covered, list_changes };
        let message = self.encode(&body, records);
        if let Some(source) = &mut self.source {
            source.add(message, is_last);
        }
        self.counts.sent_snapshots += u64::from(is_last);
    }

    /// Gives up the snapshot that is being sent: the export has failed.
    pub fn abort_export(&mut self) {
        if let Some(source) = self.source.take() {
            let message = self.encode(&Body::SnapshotRefused { session: source.session }, &[]);
            self.send(Subject::Reply(source.to), message.into());
        }
    }

    /// Encodes records in parts that fit in a message; at least one.
    fn parts(&self, now: Duration, records: &[StateRecord]) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        let mut encoded = Vec::new();
        encode_records(records, now.as_secs() as i64, &mut encoded);
        if encoded.len() <= self.records_bytes_max || records.len() <= 2 {
            return vec![encoded];
        }
        // A part that would begin with a peer begins with its torrent.
        let middle = records.len() / 2;
        let is_peer = |record: &StateRecord| matches!(record, StateRecord::Peer(_));
        let torrent = records[..middle].iter().rfind(|record| !is_peer(record));
        let torrent = torrent.filter(|_| is_peer(&records[middle]));
        let second: Vec<StateRecord> =
            torrent.into_iter().chain(&records[middle..]).copied().collect();
        parts.extend(self.parts(now, &records[..middle]));
        parts.extend(self.parts(now, &second));
        parts
    }

    /// Handles a message.
    pub fn receive(&mut self, now: Duration, inbox: Inbox<'_>, bytes: &[u8]) {
        if self.membership == Membership::Unconnected {
            return;
        }
        self.counts.received_bytes += bytes.len() as u64;
        let (sender, body, records) = match decode(bytes) {
            Some(Received::Message(sender, body, records)) => (sender, body, records),
            Some(Received::Newer(sender)) => {
                self.counts.ignored_messages += 1;
                self.report_once(sender.node, |node| {
                    ClusterEvent::NewerVersion(node, sender.version)
                });
                return;
            }
            None => return self.ignore(now, "it is not a message of a node".to_owned()),
        };
        if let Inbox::FromNode(token) = inbox
            && token != subject_token(sender.node)
        {
            let reason =
                format!("node {:?} has published on the subject of {token:?}", sender.node);
            return self.ignore(now, reason);
        }
        if sender.node == self.settings.node {
            return self.receive_from_own_name(now, &sender, &body);
        }
        if self.is_refused() {
            return;
        }
        match (inbox, body) {
            (Inbox::FromNode(_), Body::Hello(hello)) => self.receive_hello(now, &sender, &hello),
            (_, Body::Batch { sequence, .. }) => self.receive_batch(now, &sender, sequence, bytes),
            (Inbox::ToThisNode, Body::ResendRequest { first, end }) => {
                self.resend(now, sender.node, first..end);
            }
            (Inbox::ToThisNode, Body::SnapshotRequest { session, received, end }) => {
                self.receive_snapshot_request(now, sender.node, session, (received, end));
            }
            (Inbox::ToThisNode, block @ Body::SnapshotBlock { .. }) => {
                self.receive_block(now, &sender, block, records);
            }
            (Inbox::ToThisNode, Body::SnapshotRefused { session }) => {
                let is_own =
                    |sink: &SnapshotSink| sink.session == session && sink.from == sender.node;
                if self.sink.as_ref().is_some_and(is_own) {
                    self.end_sink(now);
                }
            }
            _ => self.ignore(now, format!("node {:?} has used a wrong subject", sender.node)),
        }
    }

    /// Handles a message of a node of the own name: itself, or another one. The older one takes part.
    fn receive_from_own_name(&mut self, now: Duration, sender: &Sender<'_>, body: &Body) {
        let Body::Hello(hello) = body else { return };
        if sender.boot == self.settings.boot || hello.state == HelloState::Leaving {
            return;
        }
        let name = self.settings.node.clone();
        if sender.boot > self.settings.boot {
            self.repeat_hello(now);
            self.report_once(&name, ClusterEvent::NameUsed);
        } else if hello.state != HelloState::Refused && !self.is_within_grace(now) {
            if !self.is_refused() {
                self.report(ClusterEvent::NameTaken(name));
                self.nodes.clear();
                self.sink = None;
                if self.source.take().is_some() {
                    self.actions.push(Action::EndExport);
                }
            }
            self.membership = Membership::Refused(now);
        }
    }

    /// Returns whether the process that this one has replaced may still be heard.
    fn is_within_grace(&self, now: Duration) -> bool {
        let grace = |since| now.saturating_sub(since) < CHECK_TIME / 2;
        matches!(self.membership, Membership::Checking(since) if grace(since))
    }

    fn receive_hello(&mut self, now: Duration, sender: &Sender<'_>, hello: &Hello) {
        let name = sender.node;
        let is_known = self.nodes.contains_key(name);
        if !is_known && self.nodes.len() >= NODES_MAX {
            self.counts.ignored_messages += 1;
            return self.report_once(name, ClusterEvent::TooManyNodes);
        }
        if matches!(hello.state, HelloState::Checking | HelloState::Refused) {
            // Its name may be that of another node. It wants to know the others soon.
            if !is_known && self.membership == Membership::Active {
                self.repeat_hello(now);
            }
            return;
        }
        let node = match self.nodes.get_mut(name) {
            Some(node) if node.boot == sender.boot => node,
            // Another node of this name: that which was heard first stays until it is silent.
            Some(node) if sender.boot < node.boot && node.is_present => return,
            _ if hello.state == HelloState::Leaving => return,
            _ => {
                let node = RemoteNode::new(now, sender.boot, hello, is_known);
                self.nodes.insert(name.to_owned(), node);
                let Some(node) = self.nodes.get_mut(name) else { return };
                node
            }
        };
        let was_present = node.is_present;
        let (lifetime, keys) = (node.hello.peer_lifetime_secs, node.hello.key_digest);
        let has_missed = node.hear(now, hello);
        node.is_present = hello.state == HelloState::Active;
        let is_present = node.is_present;
        if has_missed {
            self.report(ClusterEvent::Missed(name.to_owned()));
        }
        match (was_present, is_present) {
            (false, true) => self.report(ClusterEvent::NodeFound(name.to_owned())),
            (true, false) => self.report(ClusterEvent::NodeLeft(name.to_owned())),
            _ => {}
        }
        let (own_lifetime, own_keys) = (self.settings.peer_lifetime_secs, self.settings.key_digest);
        let is_new = !was_present && is_present;
        if hello.peer_lifetime_secs != own_lifetime
            && (is_new || hello.peer_lifetime_secs != lifetime)
        {
            let other = hello.peer_lifetime_secs;
            self.report(ClusterEvent::OtherLifetime(name.to_owned(), other, own_lifetime));
        }
        if hello.key_digest != own_keys && (is_new || hello.key_digest != keys) {
            self.report(ClusterEvent::OtherKeys(name.to_owned()));
        }
    }

    fn receive_batch(&mut self, now: Duration, sender: &Sender<'_>, sequence: u64, bytes: &[u8]) {
        let Some(node) = self.nodes.get_mut(sender.node) else { return };
        if node.boot != sender.boot || node.order(now, sequence, bytes) != BatchOrder::Next {
            return;
        }
        let mut next = Some(bytes.to_vec());
        while let Some(message) = next {
            self.apply_batch(now, &message);
            next = self.nodes.get_mut(sender.node).and_then(|node| node.advance(now));
        }
    }

    /// Applies a batch of a known node.
    fn apply_batch(&mut self, now: Duration, message: &[u8]) {
        let Some(Received::Message(sender, Body::Batch { sent_at, list_changes, .. }, records)) =
            decode(message)
        else {
            return;
        };
        let Some(node) = self.nodes.get(sender.node) else { return };
        let own_time = node.own_time(sent_at);
        let changes = self.import(now, own_time, records);
        self.counts.received_batches += 1;
        self.counts.received_changes += changes;
        self.change_list(list_changes);
    }

    fn change_list(&mut self, changes: Vec<([u8; 20], bool)>) {
        if !changes.is_empty() {
            let changes = changes.into_iter().map(|(hash, on)| (InfoHash(hash), on));
            self.actions.push(Action::ChangeList(changes.collect()));
        }
    }

    /// Has records imported whose ages are counted from a time; returns their number.
    fn import(&mut self, now: Duration, own_time: i64, records: &[u8]) -> u64 {
        let mut imported = Vec::new();
        // A lie about the time must not make peers live longer.
        let own_time = own_time.min(now.as_secs() as i64);
        if !decode_records(records, own_time, &mut imported) {
            self.ignore(now, "it has records that this version does not know".to_owned());
        }
        for record in &mut imported {
            if let StateRecord::Peer(peer) | StateRecord::Change(_, _, peer) = record {
                peer.is_remote = true;
            }
        }
        let count = imported.len() as u64;
        if count > 0 {
            self.actions.push(Action::Import(imported));
        }
        count
    }

    /// Sends batches again to a node that has missed them.
    fn resend(&mut self, now: Duration, to: &str, numbers: Range<u64>) {
        let mut messages = Vec::new();
        if now.saturating_sub(self.resent.0) >= Duration::from_secs(1) {
            self.resent = (now, 0);
        }
        let mut bytes = 0;
        for message in self.outbox.get(numbers) {
            if bytes >= RESENT_BYTES_MAX || self.resent.1 >= RESENT_BYTES_PER_SEC {
                break;
            }
            bytes += message.len();
            self.resent.1 += message.len();
            messages.push(message.clone());
        }
        self.counts.resent_batches += messages.len() as u64;
        for message in messages {
            self.send(Subject::Reply(to.to_owned()), message);
        }
    }

    fn receive_snapshot_request(
        &mut self,
        now: Duration,
        from: &str,
        session: u64,
        (received, end): (u32, u32),
    ) {
        if let Some(source) = &mut self.source {
            if source.to == from && source.session == session {
                return source.request(now, received, end);
            }
            if source.to != from {
                let message = self.encode(&Body::SnapshotRefused { session }, &[]);
                return self.send(Subject::Reply(from.to_owned()), message.into());
            }
            // That node has given up the other one.
            self.source = None;
            self.actions.push(Action::EndExport);
        }
        if received > 0 || self.membership != Membership::Active {
            return;
        }
        if self.swarms.is_restoring {
            let message = self.encode(&Body::SnapshotRefused { session }, &[]);
            return self.send(Subject::Reply(from.to_owned()), message.into());
        }
        let own = Covered {
            node: self.settings.node.clone(),
            boot: self.settings.boot,
            next: self.outbox.next(),
        };
        // What was missed of a node is in no snapshot of this one.
        let others = self.nodes.iter().filter(|(_, node)| node.missed_before.is_none());
        let others = others.map(|(name, node)| Covered {
            node: name.clone(),
            boot: node.boot,
            next: node.next,
        });
        let covered = others.chain([own]).collect();
        let mut source = SnapshotSource::new(now, from.to_owned(), session, covered);
        source.request(now, received, end);
        self.source = Some(source);
        self.actions.push(Action::BeginExport);
    }

    fn receive_block(&mut self, now: Duration, sender: &Sender<'_>, block: Body, records: &[u8]) {
        let Body::SnapshotBlock { session, block, sent_at, is_last, covered, list_changes } = block
        else {
            return;
        };
        let Some(sink) = &mut self.sink else { return };
        if sink.session != session || sink.from != sender.node || sink.next != block {
            return;
        }
        if block == 0 {
            sink.covered = covered;
        }
        sink.advance(now);
        let Some(node) = self.nodes.get(sender.node) else { return };
        let own_time = node.own_time(sent_at);
        let count = self.import(now, own_time, records);
        self.change_list(list_changes);
        if let Some(sink) = &mut self.sink {
            sink.records += count;
        }
        self.request_blocks();
        if !is_last {
            return;
        }
        let Some(SnapshotSink { from, covered, records, began, .. }) = self.sink.take() else {
            return;
        };
        for Covered { node: name, boot, next } in covered {
            if let Some(node) = self.nodes.get_mut(&name).filter(|node| node.boot == boot) {
                node.cover(now, next);
                let mut waiting = node.take_waiting();
                while let Some(message) = waiting {
                    self.apply_batch(now, &message);
                    waiting = self.nodes.get_mut(&name).and_then(|node| node.advance(now));
                }
            }
        }
        self.counts.received_snapshots += 1;
        self.settings.has_older_swarms = true;
        let time = now.saturating_sub(began);
        self.report(ClusterEvent::SnapshotReceived(from, records, time));
    }

    fn encode(&self, body: &Body, records: &[u8]) -> Vec<u8> {
        let ClusterSettings { node, boot, .. } = &self.settings;
        encode(&Sender { version: PROTOCOL_VERSION, node, boot: *boot }, body, records)
    }

    fn send(&mut self, subject: Subject, message: Arc<[u8]>) {
        self.counts.sent_bytes += message.len() as u64;
        self.actions.push(Action::Publish(subject, message));
    }

    fn report(&mut self, event: ClusterEvent) {
        self.actions.push(Action::Report(event));
    }

    /// Reports an event about a node, at most once for each node and for a bounded number of nodes.
    fn report_once(&mut self, node: &str, event: impl FnOnce(String) -> ClusterEvent) {
        if self.reported.len() < NODES_MAX && self.reported.insert(node.to_owned()) {
            self.report(event(node.to_owned()));
        }
    }

    /// Counts a message that is ignored, and reports it now and then.
    fn ignore(&mut self, now: Duration, reason: String) {
        self.counts.ignored_messages += 1;
        let is_due = |at| now.saturating_sub(at) >= INVALID_PAUSE;
        if self.invalid_reported_at.is_none_or(is_due) {
            self.invalid_reported_at = Some(now);
            self.report(ClusterEvent::Invalid(reason));
        }
    }
}
