//! Copies of all shards, made with their changes while they serve, as an upgrade makes one.

use super::{DENIED, PEERS_MIN, ShardSimulation, TORRENTS, hash_of, peers_of};
use std::sync::mpsc::{Receiver, Sender, channel};
use tsubame::shard::mesh::MeshEndpoint;
use tsubame::shard::message::Message;
use tsubame::shard::transfer::{ExportedPage, TransferRequest};
use tsubame_storage::{ExportProgress, ImportCursor, Seconds, StateRecord, Swarms, TableSettings};

/// A table to which all shards are copied.
pub(crate) struct TableCopy {
    table: Swarms,
    reply: Sender<ExportedPage>,
    pages: Receiver<ExportedPage>,
    /// Requests that were not sent yet, because the queue of the shard was full.
    requests: Vec<(usize, TransferRequest)>,
    /// By shard: whether it has exported everything at the moment.
    is_complete: Vec<bool>,
}

impl TableCopy {
    fn begin(shards: usize) -> Self {
        let mut table = Swarms::new(TableSettings {
            peer_lifetime_secs: 7_200,
            ..TableSettings::with_known_keys(5)
        });
        table.begin_import();
        let (reply, pages) = channel();
        let requests = (0..shards).flat_map(|shard| {
            let begin = TransferRequest::BeginExport { changes_max: 100_000, last_changes: None };
            let records = Vec::new();
            let page = TransferRequest::ExportPage { records, reply: reply.clone() };
            [(shard, begin), (shard, page)]
        });
        let requests = requests.collect();
        Self { table, reply, pages, requests, is_complete: vec![false; shards] }
    }

    /// Sends requests to the shards, and imports what they have exported.
    pub(crate) fn advance(&mut self, control: &mut MeshEndpoint, now: u64) {
        let requests = std::mem::take(&mut self.requests).into_iter();
        for (shard, request) in requests {
            let is_behind = self.requests.iter().any(|(waiting, _)| *waiting == shard);
            if is_behind || !control.can_send(shard) {
                self.requests.push((shard, request));
            } else {
                control.send(shard, Message::Transfer(Box::new(request)));
            }
        }
        control.notify();
        while let Ok(page) = self.pages.try_recv() {
            let ExportedPage { shard, records, progress, lost_changes } = page;
            assert_eq!(lost_changes, 0);
            let mut cursor = ImportCursor::default();
            while self.table.import(Seconds(now), &mut cursor, &records, |_| true) {}
            assert_eq!(cursor.counts().refused, 0);
            // A part of a torrent begins with the torrent.
            assert!(!matches!(records.first(), Some(StateRecord::Peer(_))));
            self.is_complete[shard] = progress == ExportProgress::Complete && records.is_empty();
            let (records, reply) = (Vec::new(), self.reply.clone());
            self.requests.push((shard, TransferRequest::ExportPage { records, reply }));
        }
    }

    /// Ends the exports.
    fn end(self, control: &mut MeshEndpoint) {
        for shard in 0..self.is_complete.len() {
            assert!(control.send(shard, Message::Transfer(Box::new(TransferRequest::EndExport))));
        }
        control.notify();
    }
}

/// At the end, a copy has what the shards have, although announces, reloads and faults went on while it was made, and
/// pages and changes arrived in any order with them.
#[test]
fn a_copy_that_is_made_under_load_is_complete() {
    for (seed, shards) in [(1, 1), (2, 2), (3, 5), (4, 16), (5, 3), (6, 2)] {
        println!("seed {seed}, {shards} shards");
        let mut simulation = ShardSimulation::new(seed, shards);
        simulation.run(300, 6);
        simulation.copy = Some(TableCopy::begin(usize::from(shards)));
        simulation.run(1_000, 6);
        // Every peer announces once more, one at a time, so that none is shed.
        simulation.finish_with_copy();
        let copy = simulation.copy.take().unwrap();
        for torrent in (0..TORRENTS).filter(|torrent| *torrent != DENIED) {
            let info_hash = hash_of(torrent);
            let counts = copy.table.scrape(&copy.table.prefetch_index(&info_hash), &info_hash);
            let peers = (counts.seeders + counts.leechers) as usize;
            assert_eq!(peers, peers_of(torrent), "seed {seed}, torrent {torrent}");
            assert!(peers >= PEERS_MIN);
        }
        copy.end(&mut simulation.control);
        simulation.finish_without_copy();
    }
}

impl ShardSimulation {
    /// Announces every peer, and waits until the copy has the changes.
    fn finish_with_copy(&mut self) {
        // Shards with pages to export are never idle, so faults end here without waiting for that.
        for node in &mut self.shards {
            node.handle.holds_sends.set(false);
            node.stalled_until = 0;
        }
        for _ in 0..500 {
            self.step_all();
        }
        // What has no reply by now was shed.
        self.requests.clear();
        for torrent in 1..TORRENTS {
            for number in 0..peers_of(torrent) {
                self.announce(torrent, number);
                self.step_until(|simulation| simulation.requests.is_empty());
            }
        }
        for _ in 0..200 {
            self.step_all();
        }
        self.step_until(|simulation| {
            simulation.copy.as_ref().is_some_and(|copy| !copy.is_complete.contains(&false))
        });
    }

    fn step_until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if holds(self) {
                return;
            }
            self.step_all();
        }
        panic!("the condition is not met");
    }

    fn finish_without_copy(mut self) {
        self.settle();
        self.stop();
    }
}
