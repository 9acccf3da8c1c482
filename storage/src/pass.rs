//! A pass over the whole table in small steps: the torrents that come next in the order of their info hashes.
//!
//! A list of all torrents is handed out page by page, and each page costs a pass. So nothing is sorted or copied that
//! is larger than a page, however many torrents there are, and nobody can make it so by choosing info hashes.

use crate::swarms::Swarms;
use crate::types::{Census, Counts, InfoHash};
use std::collections::BinaryHeap;

/// What a step may do: visits, of which one that finds something counts for so many more
const STEP: usize = 4_096;
const FIND: usize = 16;

/// Torrents of a page: more of a large table, so that the passes it takes do not grow with its size twice
const PAGE_MIN: usize = 512;
const PAGE_MAX: usize = 16_384;
const PAGES: usize = 64;

/// Looks for a page of torrents
#[derive(Debug)]
pub struct Pass {
    /// Those of the page come after this one
    after: Option<InfoHash>,
    /// Torrents of the page, at most
    most: usize,
    /// Entries not yet visited
    left: usize,
    found: BinaryHeap<Found>,
}

/// Ordered by the info hash
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    info_hash: InfoHash,
    counts: [u32; 4],
}

impl Pass {
    /// Begins to look for the first torrents after one; from the first of all without
    pub fn begin(swarms: &Swarms, after: Option<InfoHash>) -> Self {
        let left = swarms.store.entries.len();
        let most = (left / PAGES).clamp(PAGE_MIN, PAGE_MAX);
        Self { after, most, left, found: BinaryHeap::with_capacity(most + 1) }
    }

    /// Visits some entries, of which those that are not served are not listed; true if all have been
    ///
    /// Downwards: meanwhile the sweep moves entries from the end into holes before it, so that some are visited twice
    /// and none is missed.
    pub fn step(&mut self, swarms: &Swarms, serves: impl Fn(&InfoHash) -> bool) -> bool {
        self.left = self.left.min(swarms.store.entries.len());
        let mut budget = STEP;
        while self.left > 0 && budget > 0 {
            self.left -= 1;
            // A shard holds fewer entries than 32 bits number.
            let found = self.visit(swarms, self.left as u32, &serves);
            budget = budget.saturating_sub(if found { FIND } else { 1 });
        }
        self.left == 0
    }

    /// Looks at an entry; true if it is of the page so far
    fn visit(
        &mut self,
        swarms: &Swarms,
        position: u32,
        serves: &impl Fn(&InfoHash) -> bool,
    ) -> bool {
        let info_hash = swarms.store.entry(position).info_hash();
        let is_full = self.found.len() == self.most;
        if self.after.is_some_and(|after| info_hash <= after)
            || is_full && self.found.peek().is_some_and(|last| last.info_hash <= info_hash)
            || !serves(&info_hash)
        {
            return false;
        }
        let Census { counts, partial_seeds } = swarms.census_at(position);
        let counts = [counts.seeders, counts.completed, counts.leechers, partial_seeds];
        if is_full {
            self.found.pop();
        }
        self.found.push(Found { info_hash, counts });
        true
    }

    /// What was found
    pub fn end(self) -> Page {
        let more = self.found.len() == self.most;
        Page { found: self.found.into_vec(), more }
    }
}

/// Torrents that a pass has found, not yet in order: to sort them takes longer than a shard may be held up
#[derive(Debug)]
pub struct Page {
    found: Vec<Found>,
    more: bool,
}

impl Page {
    /// The torrents in order, each once; and whether there may be more behind them
    pub fn sorted(self) -> (Vec<(InfoHash, Census)>, bool) {
        let mut found = self.found;
        found.sort_unstable();
        // Some were seen again at the place they had been moved to.
        found.dedup_by_key(|found| found.info_hash);
        let row = |Found { info_hash, counts: [seeders, completed, leechers, partial_seeds] }| {
            let counts = Counts { seeders, completed, leechers };
            (info_hash, Census { counts, partial_seeds })
        };
        (found.into_iter().map(row).collect(), self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Caps, Settings};
    use crate::space::PeerSpace;
    use crate::swarms::Announce;
    use crate::time::Seconds;
    use crate::types::{Endpoint, Event, Family, Role};
    use std::collections::BTreeSet;

    fn announce(swarms: &mut Swarms, now: u64, torrent: u32) {
        let mut info_hash = [7; 20];
        info_hash[..4].copy_from_slice(&torrent.wrapping_mul(0x9e37_79b9).to_be_bytes());
        let announce = Announce {
            info_hash: InfoHash(info_hash),
            endpoint: Endpoint::new([1, 2, 3, 4].into(), 5_000),
            role: Role::PartialSeed,
            event: Event::Paused,
        };
        let ahead = swarms.look_ahead(&announce.info_hash);
        swarms.announce(Seconds(now), ahead, &announce, PeerSpace::of(Family::V4, &mut []));
    }

    /// While torrents come and go, every one that was there all the time is listed once, in order
    #[test]
    fn pages_list_every_torrent_once_and_in_order() {
        let mut swarms = Swarms::new(Settings {
            peer_lifetime_secs: 1_200,
            keep_completed_secs: 1_200,
            memory_bytes: 1 << 30,
            source_share_per_10_000: 200,
            caps: Caps::default(),
            allow_private: false,
            hash_key: (1, 2),
            seed: 3,
        });
        // Every other one expires while the pages are made.
        let mut now = 10_000;
        (0..30_000).step_by(2).for_each(|torrent| announce(&mut swarms, now, torrent));
        now += 1_150;
        (1..30_000).step_by(2).for_each(|torrent| announce(&mut swarms, now, torrent));
        let stays: BTreeSet<InfoHash> = (1..30_000_u32)
            .step_by(2)
            .map(|torrent| {
                let mut info_hash = [7; 20];
                info_hash[..4].copy_from_slice(&torrent.wrapping_mul(0x9e37_79b9).to_be_bytes());
                InfoHash(info_hash)
            })
            .collect();
        let (mut seen, mut more) = (Vec::new(), true);
        while more {
            let after = seen.last().copied();
            let mut pass = Pass::begin(&swarms, after);
            while !pass.step(&swarms, |info_hash| info_hash.0[3] != 0) {
                now += 2;
                swarms.sweep(Seconds(now));
            }
            let page;
            (page, more) = pass.end().sorted();
            // One that has just expired may have no peers any more.
            assert!(page.iter().all(|(_, census)| census.partial_seeds == census.counts.leechers));
            seen.extend(page.iter().map(|(info_hash, _)| *info_hash));
        }
        assert!(seen.is_sorted_by(|a, b| a < b));
        assert!(seen.len() < 30_000, "some have expired");
        let listed: BTreeSet<InfoHash> = seen.into_iter().collect();
        assert!(stays.difference(&listed).all(|info_hash| info_hash.0[3] == 0));
        assert!(listed.iter().all(|info_hash| info_hash.0[3] != 0), "some are not served");
    }
}
