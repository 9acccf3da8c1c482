//! Passes the records of other nodes to the shards.

use crate::process::shard_export::SHARD_TIMEOUT;
use crate::shard::mesh::MeshEndpoint;
use crate::shard::message::Message;
use crate::shard::transfer::{ImportedPage, PAGE_RECORDS, TransferRequest};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tsubame_storage::StateRecord;
use tsubame_udp::steering::SteeringKeys;

/// Maximum number of pages that a shard has been sent and has not imported yet.
const PAGES_IN_FLIGHT: usize = 2;

/// Maximum number of records that wait for a shard: about 4 MiB. The oldest are dropped.
const WAITING_MAX: usize = 1 << 16;

/// Number of waiting records of a shard from which on it is busy.
const BUSY_RECORDS: usize = 4 * PAGE_RECORDS;

/// The records that wait for each shard, and the pages that the shards were sent.
#[derive(Debug)]
pub(super) struct ShardImport {
    endpoint: MeshEndpoint,
    keys: SteeringKeys,
    shards: Vec<ShardQueue>,
    reply: Sender<ImportedPage>,
    imported: Receiver<ImportedPage>,
    unused: Vec<Vec<StateRecord>>,
    /// Number of records that were imported.
    pub(super) imported_records: u64,
    /// Number of records that were not added because memory was short or a swarm was at its limit.
    pub(super) refused_records: u64,
    /// Number of records that were dropped because a shard was too busy.
    pub(super) dropped_records: u64,
}

#[derive(Debug, Default)]
struct ShardQueue {
    /// Begins with a torrent or a change.
    waiting: Vec<StateRecord>,
    /// The pages that were sent and have not been imported.
    sent: VecDeque<SentPage>,
    /// Number of records that were removed from the waiting ones: sent or dropped.
    removed: u64,
}

#[derive(Clone, Copy, Debug)]
struct SentPage {
    /// Number of records that were removed before this page, which identifies it.
    number: u64,
    records: usize,
    sent_at: Duration,
}

impl ShardQueue {
    /// Returns the number of records that were added.
    fn added(&self) -> u64 {
        self.removed + self.waiting.len() as u64
    }

    /// Returns the number of records before the first one that is neither imported nor dropped.
    fn done(&self) -> u64 {
        self.sent.front().map_or(self.removed, |page| page.number)
    }

    /// Removes waiting records from the front.
    fn remove(&mut self, count: usize) -> impl Iterator<Item = StateRecord> {
        self.removed += count as u64;
        self.waiting.drain(..count)
    }
}

impl ShardImport {
    pub(super) fn new(endpoint: MeshEndpoint, keys: SteeringKeys, shards: usize) -> Self {
        let (reply, imported) = channel();
        Self {
            endpoint,
            keys,
            shards: (0..shards).map(|_| ShardQueue::default()).collect(),
            reply,
            imported,
            unused: Vec::new(),
            imported_records: 0,
            refused_records: 0,
            dropped_records: 0,
        }
    }

    /// Adds records, of which the first is not a peer.
    pub(super) fn add(&mut self, records: &[StateRecord]) {
        let count = self.shards.len() as u16;
        let mut torrent = None;
        for record in records {
            torrent = record.info_hash().or(torrent);
            let Some(info_hash) = torrent else { continue };
            let shard = &mut self.shards[usize::from(self.keys.owner(info_hash, count))];
            shard.waiting.push(*record);
        }
        for shard in &mut self.shards {
            if shard.waiting.len() > WAITING_MAX {
                let surplus = end_of_page(&shard.waiting, shard.waiting.len() - WAITING_MAX);
                self.dropped_records += surplus as u64;
                drop(shard.remove(surplus));
            }
        }
    }

    /// Sends waiting records to the shards that have imported most of the earlier ones.
    pub(super) fn advance(&mut self, now: Duration) {
        while let Ok(page) = self.imported.try_recv() {
            let sent = &mut self.shards[page.shard].sent;
            // A page that came too late was counted as dropped.
            if let Some(at) = sent.iter().position(|sent| sent.number == page.number) {
                sent.remove(at);
                self.imported_records += page.counts.peers + page.counts.torrents;
                self.refused_records += page.counts.refused;
            }
            self.unused.push(page.records);
        }
        for (to, shard) in self.shards.iter_mut().enumerate() {
            // The shard has dropped a page that is late because it had too many requests.
            let is_late = |page: &mut SentPage| now.saturating_sub(page.sent_at) >= SHARD_TIMEOUT;
            while let Some(page) = shard.sent.pop_front_if(is_late) {
                self.dropped_records += page.records as u64;
            }
            while !shard.waiting.is_empty()
                && shard.sent.len() < PAGES_IN_FLIGHT
                && self.endpoint.can_send(to)
            {
                let end = end_of_page(&shard.waiting, PAGE_RECORDS);
                let mut records = self.unused.pop().unwrap_or_default();
                let page = SentPage { number: shard.removed, records: end, sent_at: now };
                records.extend(shard.remove(end));
                shard.sent.push_back(page);
                let (number, reply) = (page.number, self.reply.clone());
                let request = TransferRequest::ImportPage { number, records, reply };
                self.endpoint.send(to, Message::Transfer(Box::new(request)));
            }
        }
        self.endpoint.notify();
    }

    /// Returns the number of records that were added for each shard until now.
    pub(super) fn position(&self) -> Vec<u64> {
        self.shards.iter().map(ShardQueue::added).collect()
    }

    /// Returns whether everything before a position was imported.
    pub(super) fn has_passed(&self, position: &[u64]) -> bool {
        self.shards.iter().zip(position).all(|(shard, position)| shard.done() >= *position)
    }

    /// Returns the number of records that wait.
    pub(super) fn waiting_records(&self) -> usize {
        self.shards.iter().map(|shard| shard.waiting.len()).sum()
    }

    /// Returns whether a shard is far behind.
    pub(super) fn is_busy(&self) -> bool {
        self.shards.iter().any(|shard| shard.waiting.len() >= BUSY_RECORDS)
    }
}

/// Returns the end of a page of at least `len` records that does not separate peers from their torrent.
fn end_of_page(records: &[StateRecord], len: usize) -> usize {
    let len = len.min(records.len());
    len + records[len..].iter().take_while(|record| record.info_hash().is_none()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::mesh::mesh;
    use tsubame_storage::{ImportCounts, InfoHash, TorrentRecord};

    /// Returns an import, and the endpoint of its only shard.
    fn import_and_shard() -> (ShardImport, MeshEndpoint) {
        let mut endpoints = mesh(1, 1).unwrap();
        let (own, shard) = (endpoints.pop().unwrap(), endpoints.pop().unwrap());
        (ShardImport::new(own, SteeringKeys::new([1; _]), 1), shard)
    }

    fn torrents(count: usize) -> Vec<StateRecord> {
        let torrent = |number: usize| {
            let mut info_hash = [0; 20];
            info_hash[..8].copy_from_slice(&number.to_be_bytes());
            let info_hash = InfoHash(info_hash);
            StateRecord::Torrent(TorrentRecord { info_hash, completed: 0, used_at: 0 })
        };
        (0..count).map(torrent).collect()
    }

    /// A page that a shard has received, and where it sends the list back.
    type ReceivedPage = (u64, Vec<StateRecord>, Sender<ImportedPage>);

    fn received(shard: &mut MeshEndpoint) -> Vec<ReceivedPage> {
        let mut pages = Vec::new();
        shard.receive(|_, message| match message {
            Message::Transfer(request) => match *request {
                TransferRequest::ImportPage { number, records, reply } => {
                    pages.push((number, records, reply));
                }
                request => panic!("{request:?}"),
            },
            message => panic!("{message:?}"),
        });
        pages
    }

    /// Imports a page as a shard does; one record is refused.
    fn import_page((number, mut records, reply): ReceivedPage) -> usize {
        let count = records.len();
        records.clear();
        let counts =
            ImportCounts { torrents: count as u64 - 1, refused: 1, ..ImportCounts::default() };
        let _ = reply.send(ImportedPage { shard: 0, number, records, counts });
        count
    }

    #[test]
    fn a_shard_gets_two_pages_at_a_time() {
        let (mut import, mut shard) = import_and_shard();
        let all = torrents(5 * PAGE_RECORDS);
        import.add(&all[..4 * PAGE_RECORDS]);
        let position = import.position();
        import.add(&all[4 * PAGE_RECORDS..]);
        assert!(import.is_busy());
        let mut seen = 0;
        for pages in [2, 2, 1] {
            assert_eq!(import.has_passed(&position), seen == 4 * PAGE_RECORDS);
            import.advance(Duration::ZERO);
            let received = received(&mut shard);
            assert_eq!(received.len(), pages);
            for page in received {
                assert_eq!(page.1, all[seen..][..PAGE_RECORDS]);
                seen += import_page(page);
            }
            import.advance(Duration::ZERO);
        }
        assert!(import.has_passed(&import.position()) && !import.is_busy());
        assert_eq!((import.imported_records, import.refused_records), (seen as u64 - 5, 5));
    }

    #[test]
    fn the_oldest_records_are_dropped_and_counted() {
        let (mut import, mut shard) = import_and_shard();
        let all = torrents(WAITING_MAX + 100);
        import.add(&all);
        assert_eq!((import.waiting_records(), import.dropped_records), (WAITING_MAX, 100));
        import.advance(Duration::ZERO);
        assert_eq!(received(&mut shard)[0].1[0], all[100]);
    }

    #[test]
    fn pages_that_a_shard_does_not_import_are_counted_as_dropped() {
        let (mut import, mut shard) = import_and_shard();
        import.add(&torrents(10));
        let position = import.position();
        import.advance(Duration::ZERO);
        let late = received(&mut shard);
        import.advance(SHARD_TIMEOUT - Duration::from_millis(1));
        assert!(!import.has_passed(&position));
        import.advance(SHARD_TIMEOUT);
        assert!(import.has_passed(&position));
        late.into_iter().for_each(|page| _ = import_page(page));
        import.advance(SHARD_TIMEOUT);
        assert_eq!((import.imported_records, import.dropped_records), (0, 10));
    }
}
