//! Sending all swarms to another node, and receiving those of another node.

use super::event::{ClusterEvent, SnapshotEvent};
use super::message::{BatchPosition, Body, EncodedListChange, Sender, encode_list_changes};
use super::node::{ClusterNode, LIST_CHANGES_PER_MESSAGE, Membership};
use super::snapshot::{BLOCKS_IN_FLIGHT, IncomingSnapshot, OutgoingSnapshot, TIME_MAX};
use super::types::{Action, MessageSubject};
use crate::policy::overrides::ListChange;
use crate::state::encode_records;
use std::cmp::Reverse;
use std::time::Duration;
use tsubame_storage::StateRecord;

/// Time after a snapshot before the next one is requested.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(2);

/// Methods that request and receive a snapshot of another node.
impl ClusterNode {
    /// Requests a snapshot if batches were missed that their sender no longer has.
    pub(super) fn request_snapshot(&mut self, now: Duration) {
        if self.incoming.is_some() || self.swarms.is_busy || now < self.no_snapshot_before {
            return;
        }
        let sources = self.nodes.iter().filter(|(_, node)| node.can_send_missed(now));
        let best = sources.max_by_key(|(name, node)| {
            let failed_at = self.failed_sources.get(*name);
            (Reverse(failed_at), node.hello.is_complete, node.hello.torrents)
        });
        if let Some((from, _)) = best {
            let from = from.clone();
            self.sessions += 1;
            let session = self.settings.boot.wrapping_add(self.sessions);
            self.incoming = Some(IncomingSnapshot::new(now, from, session));
            self.request_blocks();
        }
    }

    fn request_blocks(&mut self) {
        let Some(incoming) = &mut self.incoming else { return };
        let (session, received) = (incoming.session, incoming.next);
        let end = match self.swarms.is_busy {
            true => incoming.end.max(received),
            false => received.saturating_add(BLOCKS_IN_FLIGHT),
        };
        incoming.end = end;
        let subject = MessageSubject::Request(incoming.from.clone());
        let message = self.encode(&Body::SnapshotRequest { session, received, end }, &[]);
        self.send(subject, message.into());
    }

    pub(super) fn tick_incoming(&mut self, now: Duration) {
        let Some(incoming) = &mut self.incoming else { return };
        let has_all_requested = incoming.next >= incoming.end;
        let is_paused = has_all_requested && self.swarms.is_busy;
        if is_paused {
            incoming.pause(now);
        }
        if incoming.has_failed(now) {
            let from = incoming.from.clone();
            self.incoming = None;
            self.failed_sources.insert(from.clone(), now);
            self.no_snapshot_before = now + SNAPSHOT_PAUSE;
            self.report(now, ClusterEvent::Snapshot(SnapshotEvent::Failed(from)));
        } else if has_all_requested && !is_paused || incoming.take_due_request(now) {
            // While this node is busy, the request asks for no blocks: it tells the other node to keep the snapshot.
            self.request_blocks();
        }
    }

    /// Gives up the snapshot that `from` has refused to send. After a pause a snapshot is requested again, from another
    /// node first.
    pub(super) fn receive_refusal(&mut self, now: Duration, from: &str, session: u64) {
        let refused =
            self.incoming.take_if(|incoming| incoming.session == session && incoming.from == from);
        if refused.is_some() {
            self.failed_sources.insert(from.to_owned(), now);
            self.no_snapshot_before = now + SNAPSHOT_PAUSE;
            self.report_once(now, ClusterEvent::Snapshot(SnapshotEvent::Refused(from.to_owned())));
        }
    }

    pub(super) fn receive_block(
        &mut self,
        now: Duration,
        sender: &Sender<'_>,
        block: Body,
        records: &[u8],
    ) {
        let Body::SnapshotBlock { session, block, sent_at, is_last, covered, list_changes } = block
        else {
            return;
        };
        let Some(incoming) = &mut self.incoming else { return };
        if incoming.session != session || incoming.from != sender.node || incoming.next != block {
            return;
        }
        // The times of a node that has restarted are understood after its first hello: the block is requested again.
        let Some(node) = self.nodes.get(sender.node).filter(|node| node.boot == sender.boot) else {
            return;
        };
        let local_time = node.local_time(sent_at);
        incoming.advance(now);
        if block == 0 {
            incoming.covered = covered;
            self.report(now, ClusterEvent::Snapshot(SnapshotEvent::Begun(sender.node.to_owned())));
        }
        let count = self.import(now, sender.node, local_time, records);
        self.apply_list_changes(list_changes);
        if let Some(incoming) = &mut self.incoming {
            incoming.records += count;
        }
        self.request_blocks();
        if !is_last {
            return;
        }
        let Some(IncomingSnapshot { from, covered, records, began, .. }) = self.incoming.take()
        else {
            return;
        };
        for BatchPosition { node: name, boot, next } in covered {
            if let Some(node) = self.nodes.get_mut(&name).filter(|node| node.boot == boot) {
                node.cover(now, next);
                self.apply_waiting(now, &name);
            }
        }
        self.counts.received_snapshots += 1;
        self.failed_sources.clear();
        self.no_snapshot_before = now + SNAPSHOT_PAUSE;
        let time = now.saturating_sub(began);
        self.report(now, ClusterEvent::Snapshot(SnapshotEvent::Received(from, records, time)));
    }
}

/// Methods that send a snapshot to another node.
impl ClusterNode {
    pub(super) fn receive_snapshot_request(
        &mut self,
        now: Duration,
        from: &str,
        session: u64,
        (received, end): (u32, u32),
    ) {
        if let Some(outgoing) = &mut self.outgoing {
            if outgoing.to == from && outgoing.session == session {
                return outgoing.request(now, received, end);
            }
            if outgoing.to != from {
                return self.refuse_snapshot(from.to_owned(), session);
            }
            // The node has given up its earlier request.
            self.end_outgoing();
        }
        let is_ready = self.membership == Membership::Active && !self.swarms.is_restoring;
        if received > 0 || !is_ready || self.swarms.is_busy {
            return self.refuse_snapshot(from.to_owned(), session);
        }
        let own = BatchPosition {
            node: self.settings.node.clone(),
            boot: self.settings.boot,
            next: self.sent_batches.next(),
        };
        // A node whose changes were missed is not covered.
        let others = self.nodes.iter().filter(|(_, node)| !node.needs_snapshot());
        let others = others.map(|(name, node)| BatchPosition {
            node: name.clone(),
            boot: node.boot,
            next: node.batches.next(),
        });
        let covered = others.chain([own]).collect();
        let mut outgoing = OutgoingSnapshot::new(now, from.to_owned(), session, covered);
        outgoing.request(now, received, end);
        self.outgoing = Some(outgoing);
        self.actions.push(Action::BeginExport);
    }

    pub(super) fn tick_outgoing(&mut self, now: Duration) {
        let mut messages = Vec::new();
        let Some(outgoing) = &mut self.outgoing else { return };
        while let Some(message) = outgoing.next_message(now) {
            messages.push((outgoing.to.clone(), message));
        }
        let (is_received, is_too_slow) = (outgoing.is_received(), outgoing.is_too_slow(now));
        if is_received || is_too_slow || outgoing.has_failed(now) {
            self.counts.sent_snapshots += u64::from(is_received);
            if is_too_slow && !is_received {
                let event = SnapshotEvent::TooSlow(outgoing.to.clone(), TIME_MAX);
                self.report(now, ClusterEvent::Snapshot(event));
            }
            self.end_outgoing();
        }
        for (to, message) in messages {
            self.send(MessageSubject::Reply(to), message.into());
        }
    }

    /// Returns whether records of the export are wanted: see [`Action::BeginExport`].
    pub fn wants_block(&self) -> bool {
        self.outgoing.as_ref().is_some_and(OutgoingSnapshot::wants_block)
    }

    /// Has the snapshot that is being sent include the batches of this node only: changes of the access list of other
    /// nodes have arrived, but are not made. To be called before anything is added.
    pub fn exclude_other_nodes(&mut self) {
        let own = &self.settings.node;
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.covered.retain(|position| position.node == *own);
        }
    }

    /// Adds changes of the access list to the snapshot that is being sent, before its records.
    pub fn add_list_changes(&mut self, now: Duration, changes: &[ListChange]) {
        for part in changes.chunks(LIST_CHANGES_PER_MESSAGE) {
            self.push_block(now, encode_list_changes(part), &[], false);
        }
    }

    /// Adds records of the export to the snapshot that is being sent. The first one is not a peer.
    pub fn add_block(&mut self, now: Duration, records: &[StateRecord], is_last: bool) {
        let parts = self.encode_parts(now, records);
        let count = parts.len();
        for (number, part) in parts.into_iter().enumerate() {
            self.push_block(now, Vec::new(), &part, is_last && number + 1 == count);
        }
    }

    fn push_block(
        &mut self,
        now: Duration,
        list_changes: Vec<EncodedListChange>,
        records: &[u8],
        is_last: bool,
    ) {
        let Some(outgoing) = &mut self.outgoing else { return };
        let (session, block) = (outgoing.session, outgoing.next_block());
        let covered = std::mem::take(&mut outgoing.covered);
        let sent_at = now.as_secs() as i64;
        let body = Body::SnapshotBlock { session, block, sent_at, is_last, covered, list_changes };
        let message = self.encode(&body, records);
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.add(message, is_last);
        }
    }

    /// Gives up the snapshot that is being sent, because the export has failed.
    pub fn abort_export(&mut self) {
        if let Some(outgoing) = self.outgoing.take() {
            self.refuse_snapshot(outgoing.to, outgoing.session);
        }
    }

    fn refuse_snapshot(&mut self, to: String, session: u64) {
        let message = self.encode(&Body::SnapshotRefused { session }, &[]);
        self.send(MessageSubject::Reply(to), message.into());
    }

    /// Ends the snapshot that is being sent, if there is one, and its export.
    pub(super) fn end_outgoing(&mut self) {
        if self.outgoing.take().is_some() {
            self.actions.push(Action::EndExport);
        }
    }

    /// Encodes records in parts that fit into a message; at least one.
    fn encode_parts(&self, now: Duration, records: &[StateRecord]) -> Vec<Vec<u8>> {
        let mut encoded = Vec::new();
        encode_records(records, now.as_secs() as i64, &mut encoded);
        // A torrent and two peers cannot be divided further: the second part would be the same three records.
        if encoded.len() <= self.records_bytes_max || records.len() <= 3 {
            return vec![encoded];
        }
        // A part that would begin with a peer begins with its torrent.
        let middle = records.len() / 2;
        let is_peer = |record: &StateRecord| matches!(record, StateRecord::Peer(_));
        let torrent = records[..middle].iter().rfind(|record| !is_peer(record));
        let torrent = torrent.filter(|_| is_peer(&records[middle]));
        let second: Vec<StateRecord> =
            torrent.into_iter().chain(&records[middle..]).copied().collect();
        [self.encode_parts(now, &records[..middle]), self.encode_parts(now, &second)].concat()
    }
}
