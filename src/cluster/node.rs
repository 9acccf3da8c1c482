//! A node of a cluster: its state, and what it does when a message arrives or time passes.

use super::event::ClusterEvent;
use super::event_limits::EventLimits;
use super::message::{
    Body, DecodedMessage, EncodedListChange, HelloState, PROTOCOL_VERSION, Sender, decode,
    decode_list_changes, encode, encode_list_changes, subject_token,
};
use super::received_batches::{BatchOrder, REQUESTED_BATCHES_MAX};
use super::remote_node::RemoteNode;
use super::sent_batches::SentBatches;
use super::snapshot::{IncomingSnapshot, OutgoingSnapshot};
use super::types::{
    Action, ClusterCounts, ClusterSettings, MessageSource, MessageSubject, NodeStatus, SwarmState,
};
use crate::policy::overrides::ListChange;
use crate::state::{decode_records, encode_records};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::StateRecord;

/// Maximum bytes of the records of a message.
const RECORDS_BYTES_MAX: usize = 256 << 10;

/// Space in a message for everything but its records.
const MESSAGE_OVERHEAD_MAX: usize = 16 << 10;

/// Smallest `max_payload` of a NATS server with which a node works as it should.
const SERVER_PAYLOAD_MIN: usize = 64 << 10;

/// Maximum length of an encoded change.
const CHANGE_BYTES_MAX: usize = 64;

/// Maximum number of changes of the access list in a batch.
pub(super) const LIST_CHANGES_PER_MESSAGE: usize = 256;

/// Maximum bytes of batches that are sent again in a second.
const RESENT_BYTES_PER_SEC: usize = 16 << 20;

/// Maximum bytes of one reply to a request to send batches again; further ones are asked for again.
const RESENT_BYTES_MAX: usize = 4 << 20;

/// The cure for messages that no node sends.
const PERMIT_ONLY_NODES: &str = "permit only nodes to publish on the subjects of the cluster";

/// Whether this node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// Not connected since the start.
    Unconnected,
    /// Since this time it waits for hellos of another node of its name.
    Checking(Duration),
    Active,
    /// Another node of its name was started earlier. Its last hello arrived at this time.
    Refused(Duration),
}

/// A node of a cluster.
#[derive(Debug)]
pub struct ClusterNode {
    pub(super) settings: ClusterSettings,
    pub(super) membership: Membership,
    pub(super) is_connected: bool,
    pub(super) sent_batches: SentBatches,
    pub(super) nodes: BTreeMap<String, RemoteNode>,
    pub(super) incoming: Option<IncomingSnapshot>,
    pub(super) outgoing: Option<OutgoingSnapshot>,
    pub(super) actions: Vec<Action>,
    pub(super) counts: ClusterCounts,
    /// Maximum bytes of the records of a message.
    pub(super) records_bytes_max: usize,
    pub(super) swarms: SwarmState,
    pub(super) hello_at: Duration,
    /// The nodes that refused or failed to send their swarms since the last snapshot, and when they last did: other
    /// nodes are asked before them.
    pub(super) failed_sources: BTreeMap<String, Duration>,
    /// No snapshot is requested before this time.
    pub(super) no_snapshot_before: Duration,
    pub(super) sessions: u64,
    /// Bytes that were sent again in the second that began at the time.
    pub(super) resent: (Duration, usize),
    event_limits: EventLimits,
}

impl ClusterNode {
    /// Creates a node that is not connected.
    pub fn new(settings: ClusterSettings) -> Self {
        Self {
            settings,
            membership: Membership::Unconnected,
            is_connected: false,
            sent_batches: SentBatches::new(),
            nodes: BTreeMap::new(),
            incoming: None,
            outgoing: None,
            actions: Vec::new(),
            counts: ClusterCounts::default(),
            records_bytes_max: RECORDS_BYTES_MAX,
            swarms: SwarmState::default(),
            hello_at: Duration::ZERO,
            failed_sources: BTreeMap::new(),
            no_snapshot_before: Duration::ZERO,
            sessions: 0,
            resent: (Duration::ZERO, 0),
            event_limits: EventLimits::default(),
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

    /// Returns what is known of the other nodes, except of those that have said that they end.
    pub fn nodes(&self, now: Duration) -> Vec<NodeStatus> {
        let status = |(name, node): (&String, &RemoteNode)| NodeStatus {
            name: name.clone(),
            is_present: node.is_present,
            missing_batches: node.batches.missing(),
            lag: node.lag_since().map_or(Duration::ZERO, |since| now.saturating_sub(since)),
        };
        let is_expected =
            |(_, node): &(&String, &RemoteNode)| node.hello.state != HelloState::Leaving;
        self.nodes.iter().filter(is_expected).map(status).collect()
    }

    /// Returns whether the node takes part, and has the swarms of every node from which it has hellos.
    pub fn is_complete(&self) -> bool {
        let lacks = |node: &RemoteNode| node.is_present && node.lacks_swarms();
        self.membership == Membership::Active && !self.nodes.values().any(lacks)
    }

    /// Returns whether another node of the same name was started earlier.
    pub fn is_refused(&self) -> bool {
        matches!(self.membership, Membership::Refused(_))
    }

    /// Sets the lifetime of peers and the digest of the key of connection ids.
    pub fn reconfigure(&mut self, peer_lifetime_secs: u32, key_digest: u64) {
        (self.settings.peer_lifetime_secs, self.settings.key_digest) =
            (peer_lifetime_secs, key_digest);
    }

    /// Records that there is a connection, over which messages of up to `message_bytes_max` bytes can be sent.
    pub fn connected(&mut self, now: Duration, message_bytes_max: usize) {
        if message_bytes_max < SERVER_PAYLOAD_MIN {
            self.report(
                now,
                ClusterEvent::PayloadLimitTooSmall {
                    len: message_bytes_max,
                    min: SERVER_PAYLOAD_MIN,
                },
            );
        }
        self.records_bytes_max = message_bytes_max
            .saturating_sub(MESSAGE_OVERHEAD_MAX)
            .clamp(CHANGE_BYTES_MAX, RECORDS_BYTES_MAX);
        self.is_connected = true;
        self.membership = match self.membership {
            Membership::Unconnected | Membership::Checking(_) => Membership::Checking(now),
            Membership::Active => Membership::Active,
            Membership::Refused(_) => Membership::Refused(now),
        };
        // While there was no connection, no messages arrived.
        for node in self.nodes.values_mut().filter(|node| node.is_present) {
            node.last_hello_at = now;
            node.batches.restart_requests();
        }
        self.publish_hello(now);
    }

    /// Records that the connection was lost. Until the next one, no node is taken for lost, and batches are kept.
    pub fn disconnected(&mut self) {
        self.is_connected = false;
        self.incoming = None;
        self.end_outgoing();
    }

    /// Publishes changes in batches. The records are changes.
    pub fn publish(&mut self, now: Duration, changes: &[StateRecord]) {
        let local_time = now.as_secs() as i64;
        for part in changes.chunks(self.records_bytes_max / CHANGE_BYTES_MAX) {
            let mut records = Vec::new();
            encode_records(part, local_time, &mut records);
            if self.publish_batch(now, Vec::new(), &records) {
                self.counts.sent_changes += part.len() as u64;
            }
        }
    }

    /// Publishes changes of the access list.
    pub fn publish_list_changes(&mut self, now: Duration, changes: &[ListChange]) {
        for part in changes.chunks(LIST_CHANGES_PER_MESSAGE) {
            self.publish_batch(now, encode_list_changes(part), &[]);
        }
    }

    /// Keeps a batch and publishes it; returns false if the node takes no part yet.
    fn publish_batch(
        &mut self,
        now: Duration,
        list_changes: Vec<EncodedListChange>,
        records: &[u8],
    ) -> bool {
        let (sequence, sent_at) = (self.sent_batches.next(), now.as_secs() as i64);
        let batch = Body::Batch { sequence, sent_at, list_changes };
        let message: Arc<[u8]> = self.encode(&batch, records).into();
        self.sent_batches.push(now, message.clone());
        // Once it takes part, the other nodes request the batches of before.
        let is_active = self.membership == Membership::Active;
        if is_active {
            self.counts.sent_batches += 1;
            self.send(MessageSubject::Delta, message);
        }
        is_active
    }

    /// Does what is due. To be called every few milliseconds.
    pub fn tick(&mut self, now: Duration, swarms: SwarmState) {
        self.swarms = swarms;
        if !self.is_connected {
            return;
        }
        self.tick_membership(now);
        if self.membership == Membership::Active {
            self.request_missing(now);
            self.request_snapshot(now);
        }
        self.tick_incoming(now);
        self.tick_outgoing(now);
    }

    /// Requests batches that are missing.
    fn request_missing(&mut self, now: Duration) {
        let mut requests: Vec<(String, Range<u64>)> = Vec::new();
        let mut missed = Vec::new();
        for (name, node) in &mut self.nodes {
            if self.swarms.is_busy {
                node.batches.pause_requests();
            }
            if node.give_up_late_batches(now) {
                missed.push(name.clone());
                continue;
            }
            if !self.swarms.is_busy
                && let Some(numbers) = node.take_due_request(now)
            {
                requests.push((name.clone(), numbers));
            }
        }
        for name in missed {
            self.report_missed(now, &name);
        }
        for (name, Range { start: first, end }) in requests {
            self.counts.resend_requests += 1;
            let message = self.encode(&Body::ResendRequest { first, end }, &[]);
            self.send(MessageSubject::Request(name), message.into());
        }
    }

    /// Returns whether there is a connection: see [`Self::connected`] and [`Self::disconnected`].
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Handles a message.
    pub fn receive(&mut self, now: Duration, source: MessageSource<'_>, bytes: &[u8]) {
        if !self.is_connected {
            return;
        }
        self.counts.received_bytes += bytes.len() as u64;
        let (sender, body, records) = match decode(bytes) {
            Some(DecodedMessage::Message(sender, body, records)) => (sender, body, records),
            Some(DecodedMessage::OtherVersion(sender)) => {
                self.counts.ignored_messages += 1;
                let (node, version) = (sender.node.to_owned(), sender.version);
                return self.report_once(now, ClusterEvent::OtherVersion(node, version));
            }
            None => {
                let reason = "it is not a message of a node";
                return self.ignore(now, format!("{reason}; {PERMIT_ONLY_NODES}"));
            }
        };
        if let MessageSource::FromNode(token) = source
            && token != subject_token(sender.node)
        {
            let reason =
                format!("node {:?} has published it on the subject of {token:?}", sender.node);
            return self.ignore(now, format!("{reason}; {PERMIT_ONLY_NODES}"));
        }
        let is_own_name = sender.node == self.settings.node;
        match (source, body) {
            (MessageSource::FromNode(_), Body::Hello(hello)) if is_own_name => {
                self.receive_from_own_name(now, &sender, &hello);
            }
            _ if is_own_name || self.is_refused() => {}
            (MessageSource::FromNode(_), Body::Hello(hello)) => {
                self.receive_hello(now, &sender, &hello)
            }
            (_, Body::Batch { sequence, .. }) => self.receive_batch(now, &sender, sequence, bytes),
            (MessageSource::ToThisNode, Body::ResendRequest { first, end }) => {
                self.resend(now, sender.node, first..end);
            }
            (MessageSource::ToThisNode, Body::SnapshotRequest { session, received, end }) => {
                self.receive_snapshot_request(now, sender.node, session, (received, end));
            }
            (MessageSource::ToThisNode, block @ Body::SnapshotBlock { .. }) => {
                self.receive_block(now, &sender, block, records);
            }
            (MessageSource::ToThisNode, Body::SnapshotRefused { session }) => {
                self.receive_refusal(now, sender.node, session);
            }
            _ => self.ignore(
                now,
                format!(
                    "node {:?} has published it on a subject for other messages; {PERMIT_ONLY_NODES}",
                    sender.node
                ),
            ),
        }
    }

    fn receive_batch(&mut self, now: Duration, sender: &Sender<'_>, sequence: u64, bytes: &[u8]) {
        let Some(node) = self.nodes.get_mut(sender.node) else { return };
        if node.boot != sender.boot {
            return;
        }
        let next = node.hello.next;
        match node.accept_batch(now, sequence, bytes) {
            BatchOrder::Next => self.apply_batches(now, sender.node, Some(bytes.to_vec())),
            BatchOrder::Early | BatchOrder::Repeated => {}
            BatchOrder::Invalid => {
                let node = sender.node;
                self.ignore(
                    now,
                    format!(
                        "it is batch {sequence} of node {node:?}, whose last hello had {next} as the next one; \
                         {PERMIT_ONLY_NODES}"
                    ),
                );
            }
        }
    }

    /// Applies the batches of a node that wait and are the next ones.
    pub(super) fn apply_waiting(&mut self, now: Duration, name: &str) {
        let waiting = self.nodes.get_mut(name).and_then(|node| node.batches.take_waiting());
        self.apply_batches(now, name, waiting);
    }

    /// Applies the next batch of a node, and those after it that wait.
    fn apply_batches(&mut self, now: Duration, name: &str, mut next: Option<Vec<u8>>) {
        while let Some(message) = next {
            self.apply_batch(now, &message);
            next = self.nodes.get_mut(name).and_then(|node| node.batches.advance(now));
        }
    }

    /// Applies what waits behind batches that were given up, and reports that they are missing.
    pub(super) fn report_missed(&mut self, now: Duration, name: &str) {
        self.apply_waiting(now, name);
        self.report(now, ClusterEvent::Missed(name.to_owned()));
    }

    /// Applies a batch of a known node.
    fn apply_batch(&mut self, now: Duration, message: &[u8]) {
        let Some(DecodedMessage::Message(
            sender,
            Body::Batch { sent_at, list_changes, .. },
            records,
        )) = decode(message)
        else {
            return;
        };
        let Some(node) = self.nodes.get(sender.node) else { return };
        let local_time = node.local_time(sent_at);
        let changes = self.import(now, sender.node, local_time, records);
        self.counts.received_batches += 1;
        self.counts.received_changes += changes;
        self.apply_list_changes(list_changes);
    }

    pub(super) fn apply_list_changes(&mut self, changes: Vec<EncodedListChange>) {
        if !changes.is_empty() {
            self.add_older_state();
            self.actions.push(Action::ApplyListChanges(decode_list_changes(changes)));
        }
    }

    /// Records that this node has changes of other nodes, which are in none of its batches. Those that it gets before
    /// it takes part are in batches of nodes that are present.
    fn add_older_state(&mut self) {
        self.settings.has_older_state |= self.membership == Membership::Active;
    }

    /// Has records of another node imported whose ages are counted back from `local_time`; returns their number.
    pub(super) fn import(
        &mut self,
        now: Duration,
        from: &str,
        local_time: i64,
        records: &[u8],
    ) -> u64 {
        let mut imported = Vec::new();
        // A wrong time in a message must not make peers live longer.
        let local_time = local_time.min(now.as_secs() as i64);
        if !decode_records(records, local_time, &mut imported) {
            self.ignore(
                now,
                format!(
                    "it has records of node {from:?} that this version cannot read; run the same version on both"
                ),
            );
        }
        for record in &mut imported {
            if let StateRecord::Peer(peer) | StateRecord::Change(_, _, peer) = record {
                peer.is_remote = true;
            }
        }
        let count = imported.len() as u64;
        if count > 0 {
            self.add_older_state();
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
        for message in self.sent_batches.get(numbers) {
            if messages.len() >= REQUESTED_BATCHES_MAX as usize
                || bytes >= RESENT_BYTES_MAX
                || self.resent.1 >= RESENT_BYTES_PER_SEC
            {
                break;
            }
            bytes += message.len();
            self.resent.1 += message.len();
            messages.push(message.clone());
        }
        self.counts.resent_batches += messages.len() as u64;
        for message in messages {
            self.send(MessageSubject::Reply(to.to_owned()), message);
        }
    }

    pub(super) fn encode(&self, body: &Body, records: &[u8]) -> Vec<u8> {
        let ClusterSettings { node, boot, .. } = &self.settings;
        encode(&Sender { version: PROTOCOL_VERSION, node, boot: *boot }, body, records)
    }

    pub(super) fn send(&mut self, subject: MessageSubject, message: Arc<[u8]>) {
        self.counts.sent_bytes += message.len() as u64;
        self.actions.push(Action::Publish(subject, message));
    }

    /// Reports an event, unless there were too many in this minute.
    pub(super) fn report(&mut self, now: Duration, event: ClusterEvent) {
        let admitted = self.event_limits.admit(now, event);
        self.actions.extend(admitted.map(Action::Report));
    }

    /// Reports an event, unless the same was reported less than an hour ago.
    pub(super) fn report_once(&mut self, now: Duration, event: ClusterEvent) {
        let admitted = self.event_limits.admit_once(now, event);
        self.actions.extend(admitted.map(Action::Report));
    }

    /// Counts a message that is ignored, and reports it now and then.
    pub(super) fn ignore(&mut self, now: Duration, reason: String) {
        self.counts.ignored_messages += 1;
        let admitted = self.event_limits.admit_invalid(now, reason);
        self.actions.extend(admitted.map(Action::Report));
    }
}
