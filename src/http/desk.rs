//! Where requests wait for other shards' answers.

use crate::mesh::{HTTP_TICKET, Listed, Rows};
use crate::peer_list::PeerList;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot::{Receiver, Sender, channel};
use tsubame_storage::SwarmStats;

/// Who waits, by ticket: each connection for one answer, the list of all torrents for one of each shard
#[derive(Debug, Default)]
pub struct Desk {
    last: u32,
    waiting: FxHashMap<u32, Waiting>,
}

#[derive(Debug)]
enum Waiting {
    List(Sender<Box<PeerList>>),
    TorrentPage(Sender<Box<Listed>>),
    SwarmCounts {
        counts: Vec<SwarmStats>,
        /// Rows not yet answered
        missing: usize,
        sender: Sender<Vec<SwarmStats>>,
    },
}

impl Desk {
    /// A ticket for an announce, and where its answer comes
    pub fn wait_for_list(&mut self) -> (u32, Receiver<Box<PeerList>>) {
        let (sender, receiver) = channel();
        (self.seat(Waiting::List(sender)), receiver)
    }

    /// A ticket for a scrape of which so many rows are missing, and where the answer comes
    pub fn wait_for_counts(
        &mut self,
        counts: Vec<SwarmStats>,
        missing: usize,
    ) -> (u32, Receiver<Vec<SwarmStats>>) {
        let (sender, receiver) = channel();
        (self.seat(Waiting::SwarmCounts { counts, missing, sender }), receiver)
    }

    /// A ticket for a page of the list of all torrents, and where it comes
    pub fn wait_for_page(&mut self) -> (u32, Receiver<Box<Listed>>) {
        let (sender, receiver) = channel();
        (self.seat(Waiting::TorrentPage(sender)), receiver)
    }

    fn seat(&mut self, waiting: Waiting) -> u32 {
        // After two thousand million a number comes again; nobody has waited for so long.
        self.last = self.last.wrapping_add(1) | HTTP_TICKET;
        self.waiting.insert(self.last, waiting);
        self.last
    }

    /// Nobody waits any more
    pub fn forget(&mut self, ticket: u32) {
        self.waiting.remove(&ticket);
    }

    /// A list has come back; one that nobody waits for is dropped
    pub fn told(&mut self, list: Box<PeerList>) {
        if let Some(Waiting::List(sender)) = self.waiting.remove(&list.ticket) {
            // Who does not listen any more has gone.
            let _ = sender.send(list);
        }
    }

    /// A page has come
    pub fn listed(&mut self, page: Box<Listed>) {
        if let Some(Waiting::TorrentPage(sender)) = self.waiting.remove(&page.ticket) {
            let _ = sender.send(page);
        }
    }

    /// Some rows of a scrape have come
    pub fn counted(&mut self, rows: &Rows<SwarmStats>) {
        let Some(Waiting::SwarmCounts { counts, missing, .. }) = self.waiting.get_mut(&rows.ticket)
        else {
            return;
        };
        for (row, answer) in rows.iter() {
            if let Some(counts) = counts.get_mut(usize::from(row)) {
                *counts = answer;
            }
            *missing = missing.saturating_sub(1);
        }
        if *missing > 0 {
            return;
        }
        if let Some(Waiting::SwarmCounts { counts, sender, .. }) = self.waiting.remove(&rows.ticket)
        {
            let _ = sender.send(counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsubame_storage::SwarmCounts;

    fn rows(ticket: u32, numbers: impl Iterator<Item = u8>) -> Rows<SwarmStats> {
        let mut rows = Rows::new(ticket, SwarmStats::default());
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
        let mut desk = Desk::default();
        let (first, _) = desk.wait_for_list();
        let (ticket, mut answer) = desk.wait_for_counts(vec![SwarmStats::default(); 5], 3);
        assert!(first != ticket && ticket & HTTP_TICKET != 0);
        desk.counted(&rows(ticket, 1..3));
        assert!(answer.try_recv().is_err());
        desk.counted(&rows(ticket, 4..5));
        let seeders: Vec<u32> = answer
            .try_recv()
            .unwrap()
            .iter()
            .map(|swarm_stats| swarm_stats.counts.seeders)
            .collect();
        assert_eq!(seeders, [0, 1, 2, 0, 4]);
        assert_eq!(desk.waiting.len(), 1);
        desk.forget(first);
        desk.told(Box::new(PeerList { ticket: first, ..PeerList::default() }));
        assert!(desk.waiting.is_empty());
    }
}
