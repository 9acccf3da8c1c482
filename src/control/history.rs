//! The last hour of some rates and sizes, in fixed memory, for the plots of the status page.

use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::ShardStats;
use std::collections::VecDeque;

/// Seconds between two points.
pub const POINT_SECS: u32 = 10;

/// Number of points: an hour.
pub const POINTS_MAX: usize = 360;

/// Values at one moment; rates are those of the ten seconds before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HistoryPoint {
    /// Connects, announces and scrapes that were answered, per second.
    pub answered: f64,
    /// Requests that were rejected as invalid or refused by hooks, per second.
    pub refused: f64,
    /// Requests that were dropped by the kernel or because of overload, per second.
    pub dropped: f64,
    /// Share of the time in which the busiest shard was busy, from 0 to 1.
    pub busy: f64,
    /// Peers in all swarms.
    pub peers: f64,
    /// Bytes of all swarm tables.
    pub table_bytes: f64,
}

/// Points of the last hour, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<HistoryPoint>,
    before: Option<Vec<ShardStats>>,
}

impl History {
    /// Adds a point for the statistics of the shards, [`POINT_SECS`] seconds after the last ones.
    pub fn add(&mut self, shards: Vec<ShardStats>) {
        if let Some(before) = &self.before
            && before.len() == shards.len()
        {
            if self.points.len() == POINTS_MAX {
                self.points.pop_front();
            }
            self.points.push_back(point(before, &shards));
        }
        self.before = Some(shards);
    }

    /// Returns the points, oldest first.
    pub fn points(&self) -> impl ExactSizeIterator<Item = &HistoryPoint> {
        self.points.iter()
    }
}

fn point(before: &[ShardStats], now: &[ShardStats]) -> HistoryPoint {
    let seconds = f64::from(POINT_SECS);
    let total =
        |shards: &[ShardStats], of: fn(&ShardStats) -> u64| shards.iter().map(of).sum::<u64>();
    let rate = |of| total(now, of).saturating_sub(total(before, of)) as f64 / seconds;
    let busy = before
        .iter()
        .zip(now)
        .map(|(before, now)| now.busy_us.saturating_sub(before.busy_us) as f64 / 1e6 / seconds);
    HistoryPoint {
        answered: rate(|it| {
            let answered = Outcome::ALL.into_iter().filter(|outcome| outcome.is_answered());
            answered.map(|outcome| it.requests(outcome)).sum()
        }),
        refused: rate(|it| it.rejected() + it.refused_by_policy()),
        dropped: rate(|it| it.shed() + it.ring.dropped_by_kernel),
        busy: busy.fold(0.0, f64::max).min(1.0),
        peers: total(now, ShardStats::peers) as f64,
        table_bytes: total(now, |it| it.table.bytes as u64) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::shard_stats::Protocol;
    use tsubame_storage::Family;

    #[test]
    fn points_are_rates_of_an_hour() {
        let mut history = History::default();
        let mut stats = [ShardStats::default(); 2];
        for number in 0..1_000 {
            for _ in 0..20 {
                stats[1].count(Protocol::Udp, Family::V4, Outcome::Joined);
            }
            stats[0].busy_us += 5_000_000;
            stats[0].ring.dropped_by_kernel += 10;
            stats[1].table.leechers = [number, 1];
            history.add(stats.to_vec());
        }
        assert_eq!(history.points().len(), POINTS_MAX);
        let last = history.points().last().expect("there are points");
        assert_eq!((last.answered, last.dropped, last.busy, last.peers), (2.0, 1.0, 0.5, 1_000.0));
    }
}
