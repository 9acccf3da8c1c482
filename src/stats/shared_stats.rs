//! Statistics of a shard that other threads can read.

use super::shard_stats::{CELLS, ShardStats};
use std::sync::atomic::{AtomicU64, Ordering};
use tsubame_storage::Seconds;

/// Statistics that a shard publishes and the control plane reads.
///
/// Each counter is consistent; different counters may be of different moments.
#[derive(Debug)]
pub struct SharedStats {
    cells: [AtomicU64; CELLS],
    last_update: AtomicU64,
}

impl Default for SharedStats {
    fn default() -> Self {
        Self { cells: std::array::from_fn(|_| AtomicU64::new(0)), last_update: AtomicU64::new(0) }
    }
}

impl SharedStats {
    /// Publishes the statistics of the shard.
    pub fn publish(&self, stats: &ShardStats, now: Seconds) {
        self.last_update.store(now.0, Ordering::Relaxed);
        for (cell, value) in self.cells.iter().zip(stats.cells()) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Returns the time of the last update. A shard publishes every second, also when it is idle.
    pub fn last_update(&self) -> Seconds {
        Seconds(self.last_update.load(Ordering::Relaxed))
    }

    /// Returns the statistics published last.
    pub fn read(&self) -> ShardStats {
        let mut cells = [0; CELLS];
        for (value, cell) in cells.iter_mut().zip(&self.cells) {
            *value = cell.load(Ordering::Relaxed);
        }
        ShardStats::of_cells(&cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::outcome::Outcome;
    use crate::stats::shard_stats::Protocol;
    use tsubame_storage::{
        AnnounceEvent, EvictionCounts, Family, SourceCount, SourceNetwork, TOP_SOURCES, TableStats,
    };

    #[test]
    fn every_value_has_a_cell() {
        let cells = std::array::from_fn(|cell| cell as u64 + 1);
        assert_eq!(ShardStats::of_cells(&cells).cells(), cells);
    }

    #[test]
    fn published_statistics_are_read_back() {
        let mut stats = ShardStats::default();
        stats.count(Protocol::Udp, Family::V6, Outcome::ShedScrape);
        stats.count(Protocol::Http, Family::V4, Outcome::Joined);
        stats.http.accept_failed = 3;
        stats.ring.receive_failed = 5;
        stats.ring.dropped_by_kernel = 8;
        [1, 3, 4, 63, 64].into_iter().for_each(|arrived| stats.count_batch(arrived));
        assert_eq!(stats.batches, [1, 1, 1, 0, 0, 1, 1]);
        assert_eq!(stats.arrived, 135);
        stats.busy_us = 77;
        stats.table = TableStats {
            torrents: 1,
            empty_torrents: 9,
            seeders: [2, 3],
            leechers: [4, 5],
            bytes: 6,
            pressure_per_1_000: 700,
            expired_peers: 11,
            evicted: EvictionCounts { episodes: 1, empty_torrents: 2, source_peers: 3 },
            top_sources: [None; TOP_SOURCES],
        };
        stats.http.count_closed(61);
        stats.count_announce(Protocol::Http, AnnounceEvent::Paused, 8);
        (stats.turn_times.turns, stats.turn_times.phase_ns) = (1, [2, 3, 4, 5]);
        (stats.messages_sent, stats.messages_dropped, stats.sent_bytes) = (6, 7, 8);
        let source = SourceNetwork::from_number(0x01_0203);
        stats.table.top_sources[0] = Some(SourceCount { source, peers: 12 });
        let shared_stats = SharedStats::default();
        shared_stats.publish(&stats, Seconds(7));
        assert_eq!(shared_stats.last_update(), Seconds(7));
        assert_eq!(shared_stats.read(), stats);
        let mut sum = shared_stats.read();
        sum.add(&stats);
        assert_eq!((sum.announces(), sum.shed(), sum.peers(), sum.table.bytes), (2, 2, 28, 12));
        assert_eq!(sum.requests_of(Protocol::Http, Family::V4, Outcome::Joined), 2);
        assert_eq!(sum.requests_of(Protocol::Udp, Family::V4, Outcome::Joined), 0);
    }
}
