//! How a node sends its swarms to another one, and receives those of another one.

use super::event::ClusterEvent;
use super::message::{BatchPosition, Body, EncodedListChange, Sender, encode_list_changes};
use super::node::{ClusterNode, LIST_CHANGES_MAX, Membership};
use super::snapshot::{BLOCKS_IN_FLIGHT, SnapshotSink, SnapshotSource};
use super::types::{Action, MessageSubject};
use crate::policy::overrides::ListChange;
use crate::state::encode_records;
use std::time::Duration;
use tsubame_storage::StateRecord;

/// Time after a snapshot that has failed before the next one is asked for.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(2);

/// The snapshot that is being received.
impl ClusterNode {
    /// Asks for a snapshot if there are batches that no node can send any more.
    pub(super) fn request_snapshot(&mut self, now: Duration) {
        if self.sink.is_some() || self.swarms.is_busy || now < self.no_snapshot_before {
            return;
        }
        let lacking = self.nodes.iter().filter(|(_, node)| {
            node.is_present && node.is_active() && node.missed_before.is_some()
        });
        let best = lacking.max_by_key(|(name, node)| {
            let has_failed = self.failed_source.as_ref() == Some(*name);
            (!has_failed, node.hello.is_complete, node.hello.torrents)
        });
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
        let Some(sink) = &mut self.sink else { return };
        let (session, received) = (sink.session, sink.next);
        let end = match self.swarms.is_busy {
            true => sink.end.max(received),
            false => received.saturating_add(BLOCKS_IN_FLIGHT),
        };
        sink.end = end;
        let subject = MessageSubject::Request(sink.from.clone());
        let message = self.encode(&Body::SnapshotRequest { session, received, end }, &[]);
        self.send(subject, message.into());
    }

    pub(super) fn tick_sink(&mut self, now: Duration) {
        let Some(sink) = &mut self.sink else { return };
        let has_all_requested = sink.next >= sink.end;
        if has_all_requested && self.swarms.is_busy {
            sink.restart_wait(now);
        } else if sink.has_failed(now) {
            let from = sink.from.clone();
            self.sink = None;
            self.failed_source = Some(from.clone());
            self.no_snapshot_before = now + SNAPSHOT_PAUSE;
            self.report(ClusterEvent::SnapshotFailed(from));
        } else if has_all_requested || sink.is_request_due(now) {
            self.request_blocks();
        }
    }

    /// Gives up the snapshot that is being received, because the other node sends another one. Later it is asked again,
    /// or another node is.
    pub(super) fn receive_refusal(&mut self, now: Duration, from: &str, session: u64) {
        let refused = self.sink.take_if(|sink| sink.session == session && sink.from == from);
        if refused.is_some() {
            self.failed_source = Some(from.to_owned());
            self.no_snapshot_before = now + SNAPSHOT_PAUSE;
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
        for BatchPosition { node: name, boot, next } in covered {
            if let Some(node) = self.nodes.get_mut(&name).filter(|node| node.boot == boot) {
                node.cover(now, next);
                self.apply_waiting(now, &name);
            }
        }
        self.counts.received_snapshots += 1;
        self.failed_source = None;
        self.settings.has_older_state = true;
        let time = now.saturating_sub(began);
        self.report(ClusterEvent::SnapshotReceived(from, records, time));
    }
}

/// The snapshot that is being sent.
impl ClusterNode {
    pub(super) fn receive_snapshot_request(
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
                return self.send(MessageSubject::Reply(from.to_owned()), message.into());
            }
            // That node has given up the other one.
            self.source = None;
            self.actions.push(Action::EndExport);
        }
        let is_ready = self.membership == Membership::Active && !self.swarms.is_restoring;
        if received > 0 || !is_ready || self.swarms.is_busy {
            let message = self.encode(&Body::SnapshotRefused { session }, &[]);
            return self.send(MessageSubject::Reply(from.to_owned()), message.into());
        }
        let own = BatchPosition {
            node: self.settings.node.clone(),
            boot: self.settings.boot,
            next: self.sent_batches.next(),
        };
        // What was missed of a node is in no snapshot of this one.
        let others = self.nodes.iter().filter(|(_, node)| node.missed_before.is_none());
        let others = others.map(|(name, node)| BatchPosition {
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

    pub(super) fn tick_source(&mut self, now: Duration) {
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
            self.send(MessageSubject::Reply(to), message.into());
        }
    }

    /// Returns whether records of the export are wanted: see [`Action::BeginExport`].
    pub fn wants_block(&self) -> bool {
        self.source.as_ref().is_some_and(SnapshotSource::wants_block)
    }

    /// Adds changes of the access list to the snapshot that is being sent, before its records.
    pub fn add_list_changes(&mut self, now: Duration, changes: &[ListChange]) {
        for part in changes.chunks(LIST_CHANGES_MAX) {
            self.push_block(now, encode_list_changes(part), &[], false);
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
        list_changes: Vec<EncodedListChange>,
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
            self.send(MessageSubject::Reply(source.to), message.into());
        }
    }

    /// Encodes records in parts that fit in a message; at least one.
    fn parts(&self, now: Duration, records: &[StateRecord]) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        let mut encoded = Vec::new();
        encode_records(records, now.as_secs() as i64, &mut encoded);
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
        parts.extend(self.parts(now, &records[..middle]));
        parts.extend(self.parts(now, &second));
        parts
    }
}
