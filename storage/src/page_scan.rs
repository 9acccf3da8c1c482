//! A scan of the table, in small steps, for the torrents that come next in the order of their info hashes.
//!
//! The list of all torrents is returned page by page, and each page takes a scan. So nothing larger than a page is
//! sorted or copied, however many torrents there are, and no choice of info hashes can change that.

use crate::swarms::Swarms;
use crate::types::{InfoHash, SwarmCounts, SwarmStats};
use std::collections::BinaryHeap;

/// Number of entries that a step may visit.
const VISITS_PER_STEP: usize = 4_096;
/// Number of visits that an entry on the page counts for.
const VISITS_PER_ROW: usize = 16;

/// Minimum number of torrents of a page.
const PAGE_ROWS_MIN: usize = 512;
/// Maximum number of torrents of a page.
const PAGE_ROWS_MAX: usize = 16_384;
/// Number of pages that a large table is divided into, so that the number of scans does not grow with its size.
const PAGES_WANTED: usize = 64;

/// A scan for one page of torrents.
#[derive(Debug)]
pub struct PageScan {
    /// The torrents of the page come after this one.
    after: Option<InfoHash>,
    /// Maximum number of torrents of the page.
    rows_max: usize,
    /// Number of entries that are still to be visited.
    left: usize,
    rows: BinaryHeap<PageRow>,
}

/// A torrent on the page, ordered by info hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PageRow {
    info_hash: InfoHash,
    counts: [u32; 4],
}

impl PageScan {
    /// Starts a scan for the first torrents after `after`, or for the first of all.
    pub fn begin(swarms: &Swarms, after: Option<InfoHash>) -> Self {
        let left = swarms.table.store.entries.len();
        let rows_max = (left / PAGES_WANTED).clamp(PAGE_ROWS_MIN, PAGE_ROWS_MAX);
        Self { after, rows_max, left, rows: BinaryHeap::with_capacity(rows_max + 1) }
    }

    /// Visits some entries; those for which `serves` returns false are left out. Returns whether all entries have been
    /// visited.
    ///
    /// Entries are visited from the last to the first. The sweep moves entries from the end into gaps, so some may be
    /// visited twice but none is missed.
    pub fn step(&mut self, swarms: &Swarms, serves: impl Fn(&InfoHash) -> bool) -> bool {
        self.left = self.left.min(swarms.table.store.entries.len());
        let mut budget = VISITS_PER_STEP;
        while self.left > 0 && budget > 0 {
            self.left -= 1;
            // A shard has fewer entries than 32 bits can number.
            let is_row = self.visit(swarms, self.left as u32, &serves);
            budget = budget.saturating_sub(if is_row { VISITS_PER_ROW } else { 1 });
        }
        self.left == 0
    }

    /// Visits an entry; returns whether it is on the page so far.
    fn visit(
        &mut self,
        swarms: &Swarms,
        position: u32,
        serves: &impl Fn(&InfoHash) -> bool,
    ) -> bool {
        let info_hash = swarms.table.store.entry(position).info_hash();
        let is_full = self.rows.len() == self.rows_max;
        if self.after.is_some_and(|after| info_hash <= after)
            || is_full && self.rows.peek().is_some_and(|last| last.info_hash <= info_hash)
            || !serves(&info_hash)
        {
            return false;
        }
        let SwarmStats { counts, partial_seeds } = swarms.table.stats_at(position);
        let counts = [counts.seeders, counts.completed, counts.leechers, partial_seeds];
        if is_full {
            self.rows.pop();
        }
        self.rows.push(PageRow { info_hash, counts });
        true
    }

    /// Ends the scan and returns the page.
    pub fn finish(self) -> TorrentPage {
        let more = self.rows.len() == self.rows_max;
        TorrentPage { rows: self.rows.into_vec(), more }
    }
}

/// Torrents that a scan has found, not sorted yet: sorting takes longer than a shard may be blocked.
#[derive(Debug)]
pub struct TorrentPage {
    rows: Vec<PageRow>,
    more: bool,
}

impl TorrentPage {
    /// Returns the torrents in order, each once, and whether there may be more after them.
    pub fn sorted(self) -> (Vec<(InfoHash, SwarmStats)>, bool) {
        let mut rows = self.rows;
        rows.sort_unstable();
        // Entries that were moved may have been visited twice.
        rows.dedup_by_key(|rows| rows.info_hash);
        let row = |PageRow { info_hash, counts: [seeders, completed, leechers, partial_seeds] }| {
            let counts = SwarmCounts { seeders, completed, leechers };
            (info_hash, SwarmStats { counts, partial_seeds })
        };
        (rows.into_iter().map(row).collect(), self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::SwarmAnnounce;
    use crate::peer_output::PeerOutput;
    use crate::settings::TableSettings;
    use crate::time::Seconds;
    use crate::types::{AnnounceEvent, Endpoint, Family, Role};
    use std::collections::BTreeSet;

    fn announce(swarms: &mut Swarms, now: u64, torrent: u32) {
        let mut info_hash = [7; 20];
        info_hash[..4].copy_from_slice(&torrent.wrapping_mul(0x9e37_79b9).to_be_bytes());
        let announce = SwarmAnnounce {
            info_hash: InfoHash(info_hash),
            endpoint: Endpoint::new([1, 2, 3, 4].into(), 5_000),
            role: Role::PartialSeed,
            event: AnnounceEvent::Paused,
        };
        let prefetch = swarms.prefetch_index(&announce.info_hash);
        swarms.announce(
            Seconds(now),
            prefetch,
            &announce,
            PeerOutput::for_family(Family::V4, &mut []),
        );
    }

    /// While torrents come and go, every torrent that was there all the time is listed once, in order.
    #[test]
    fn pages_list_every_torrent_once_and_in_order() {
        let mut swarms = Swarms::new(TableSettings {
            peer_lifetime_secs: 1_200,
            keep_completed_secs: 1_200,
            ..TableSettings::with_known_keys(3)
        });
        // Every other one expires while the pages are made.
        let mut now = 10_000;
        (0..30_000).step_by(2).for_each(|torrent| announce(&mut swarms, now, torrent));
        now += 1_150;
        (1..30_000).step_by(2).for_each(|torrent| announce(&mut swarms, now, torrent));
        let permanent: BTreeSet<InfoHash> = (1..30_000_u32)
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
            let mut page_scan = PageScan::begin(&swarms, after);
            while !page_scan.step(&swarms, |info_hash| info_hash.0[3] != 0) {
                now += 2;
                swarms.sweep(Seconds(now));
            }
            let page;
            (page, more) = page_scan.finish().sorted();
            // One that has just expired may have no peers any more.
            assert!(page.iter().all(|(_, stats)| stats.partial_seeds == stats.counts.leechers));
            seen.extend(page.iter().map(|(info_hash, _)| *info_hash));
        }
        assert!(seen.is_sorted_by(|a, b| a < b));
        assert!(seen.len() < 30_000, "some have expired");
        let listed: BTreeSet<InfoHash> = seen.into_iter().collect();
        assert!(permanent.difference(&listed).all(|info_hash| info_hash.0[3] == 0));
        assert!(listed.iter().all(|info_hash| info_hash.0[3] != 0), "some are not served");
    }
}
