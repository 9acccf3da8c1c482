//! Requests over HTTP that wait for replies of other shards.

use super::message::{HTTP_REQUEST, PageReply, ScrapeRows};
use crate::tracker::peer_list::PeerList;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot::{Receiver, Sender, channel};
use tsubame_storage::SwarmStats;

/// Replies that requests wait for, by request id. A connection waits for one reply at a time; if it sends the list of
/// all torrents, it waits for a page of each shard.
#[derive(Debug, Default)]
pub(super) struct PendingReplies {
    last_id: u32,
    pending: FxHashMap<u32, PendingReply>,
}

#[derive(Debug)]
enum PendingReply {
    Announce(Sender<Box<PeerList>>),
    Page(Sender<Box<PageReply>>),
    Scrape {
        rows: Vec<SwarmStats>,
        /// Number of rows that have not arrived.
        missing: usize,
        sender: Sender<Vec<SwarmStats>>,
    },
}

impl PendingReplies {
    /// Returns the id of an announce, and the receiver of its reply.
    pub(super) fn add_announce(&mut self) -> (u32, Receiver<Box<PeerList>>) {
        let (sender, receiver) = channel();
        (self.add(PendingReply::Announce(sender)), receiver)
    }

    /// Returns the id of a scrape of which `missing` rows are still to arrive, and the receiver of all rows.
    pub(super) fn add_scrape(
        &mut self,
        rows: Vec<SwarmStats>,
        missing: usize,
    ) -> (u32, Receiver<Vec<SwarmStats>>) {
        let (sender, receiver) = channel();
        (self.add(PendingReply::Scrape { rows, missing, sender }), receiver)
    }

    /// Returns the id of a request for a page of the list of all torrents, and the receiver of the page.
    pub(super) fn add_page(&mut self) -> (u32, Receiver<Box<PageReply>>) {
        let (sender, receiver) = channel();
        (self.add(PendingReply::Page(sender)), receiver)
    }

    fn add(&mut self, pending: PendingReply) -> u32 {
        // Ids repeat after two thousand million requests; no request waits that long.
        self.last_id = self.last_id.wrapping_add(1) | HTTP_REQUEST;
        self.pending.insert(self.last_id, pending);
        self.last_id
    }

    /// Removes a request that does not wait any more.
    pub(super) fn cancel(&mut self, request_id: u32) {
        self.pending.remove(&request_id);
    }

    /// Passes the reply to an announce on to the request, unless it was cancelled.
    pub(super) fn complete_announce(&mut self, list: Box<PeerList>) {
        if let Some(PendingReply::Announce(sender)) = self.pending.remove(&list.request_id) {
            // The receiver is gone if the connection has ended.
            let _ = sender.send(list);
        }
    }

    /// Passes a page on to the request, unless it was cancelled.
    pub(super) fn complete_page(&mut self, page: Box<PageReply>) {
        if let Some(PendingReply::Page(sender)) = self.pending.remove(&page.request_id) {
            let _ = sender.send(page);
        }
    }

    /// Adds some rows to a scrape, and passes all on to the request when none is missing.
    pub(super) fn add_rows(&mut self, received: &ScrapeRows<SwarmStats>) {
        let id = received.request_id;
        let Some(PendingReply::Scrape { rows, missing, .. }) = self.pending.get_mut(&id) else {
            return;
        };
        for (number, stats) in received.iter() {
            if let Some(row) = rows.get_mut(usize::from(number)) {
                *row = stats;
            }
            *missing = missing.saturating_sub(1);
        }
        if *missing > 0 {
            return;
        }
        if let Some(PendingReply::Scrape { rows, sender, .. }) = self.pending.remove(&id) {
            let _ = sender.send(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsubame_storage::SwarmCounts;

    fn rows(request_id: u32, numbers: impl Iterator<Item = u8>) -> ScrapeRows<SwarmStats> {
        let mut rows = ScrapeRows::new(request_id, SwarmStats::default());
        for number in numbers {
            rows.push(
                number,
                SwarmStats {
                    counts: SwarmCounts { seeders: number.into(), ..SwarmCounts::default() },
                    partial_seeds: 0,
                },
            );
        }
        rows
    }

    #[test]
    fn a_scrape_is_answered_when_its_last_row_comes() {
        let mut pending = PendingReplies::default();
        let (first, _) = pending.add_announce();
        let (request_id, mut answer) = pending.add_scrape(vec![SwarmStats::default(); 5], 3);
        assert!(first != request_id && request_id & HTTP_REQUEST != 0);
        pending.add_rows(&rows(request_id, 1..3));
        assert!(answer.try_recv().is_err());
        pending.add_rows(&rows(request_id, 4..5));
        let seeders: Vec<u32> = answer
            .try_recv()
            .unwrap()
            .iter()
            .map(|swarm_stats| swarm_stats.counts.seeders)
            .collect();
        assert_eq!(seeders, [0, 1, 2, 0, 4]);
        assert_eq!(pending.pending.len(), 1);
        pending.cancel(first);
        pending.complete_announce(Box::new(PeerList { request_id: first, ..PeerList::default() }));
        assert!(pending.pending.is_empty());
    }
}
