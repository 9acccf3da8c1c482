//! `interval_variation` and `interval_load`: hooks that change the announce interval of replies.

/// Random increase of the interval of some replies. It spreads announces that would arrive at the same time.
#[derive(Clone, Debug, PartialEq)]
pub struct IntervalVariation {
    /// Share of the replies that are changed, from 0 to 1.
    pub probability: f64,
    /// Maximum number of seconds that are added.
    pub increase_secs: u32,
    /// Whether the minimum interval is increased by the same amount.
    pub min_interval: bool,
}

impl IntervalVariation {
    /// Returns the number of seconds to add to the interval of a reply; 0 if it is not changed.
    pub fn draw(&self, rng: &mut fastrand::Rng) -> u32 {
        if rng.f64() < self.probability { rng.u32(1..=self.increase_secs) } else { 0 }
    }
}

/// Increase of the interval under load: the more announces a shard gets, the less often clients announce.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadBasedInterval {
    /// Announces per second of a shard up to which the configured interval is used.
    pub from: u32,
    /// Announces per second of a shard from which the maximum interval is used.
    pub to: u32,
    /// Maximum interval in seconds.
    pub max_interval_secs: u32,
}

impl LoadBasedInterval {
    /// Returns the interval in seconds for a shard with this load; `interval_secs` is the configured interval.
    pub fn interval(&self, interval_secs: u32, announces_per_s: u32) -> u32 {
        let above = announces_per_s.clamp(self.from, self.to) - self.from;
        let span = u64::from(self.max_interval_secs.saturating_sub(interval_secs));
        let added = span * u64::from(above) / u64::from((self.to - self.from).max(1));
        interval_secs.saturating_add(added as u32)
    }
}

/// Moving average of the announces of a shard per second.
///
/// The last whole second counts half, so that the average follows the load quickly without jumping.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadMeter {
    second: u64,
    count: u32,
    average: u32,
}

impl LoadMeter {
    /// Takes over the counts of another meter, unless this one has counts already; returns whether it did.
    pub fn inherit(&mut self, from: &mut Self) -> bool {
        let takes = self.second == 0 && from.second > 0;
        if takes {
            *self = std::mem::take(from);
        }
        takes
    }

    /// Counts an announce; returns the average number of announces per second.
    pub fn count(&mut self, second: u64) -> u32 {
        if second != self.second {
            // Seconds without announces halve the average as well.
            let idle_secs = (second.saturating_sub(self.second) - 1).min(31);
            self.average = (self.average / 2 + self.count / 2) >> idle_secs;
            (self.second, self.count) = (second, 0);
        }
        self.count = self.count.saturating_add(1);
        self.average
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variation_has_the_configured_probability_and_range() {
        let variation =
            IntervalVariation { probability: 0.25, increase_secs: 60, min_interval: false };
        let mut rng = fastrand::Rng::with_seed(3);
        let draws: Vec<u32> = (0..20_000).map(|_| variation.draw(&mut rng)).collect();
        let changed: Vec<u32> = draws.into_iter().filter(|added| *added > 0).collect();
        assert!((4_700..5_300).contains(&changed.len()), "{}", changed.len());
        let (least, most) = (changed.iter().min(), changed.iter().max());
        assert_eq!((least, most), (Some(&1), Some(&60)));
        let mean = f64::from(changed.iter().sum::<u32>()) / changed.len() as f64;
        assert!((29.0..32.0).contains(&mean), "{mean}");
    }

    #[test]
    fn the_interval_grows_with_the_load() {
        let by_load = LoadBasedInterval { from: 1_000, to: 3_000, max_interval_secs: 3_600 };
        for (load, interval) in [(0, 1_800), (1_000, 1_800), (2_000, 2_700), (9_000, 3_600)] {
            assert_eq!(by_load.interval(1_800, load), interval, "{load}");
        }
        let mut load = LoadMeter::default();
        let mut at =
            |second: u64, announces: u32| (0..announces).map(|_| load.count(second)).last();
        at(10, 1_000);
        assert_eq!(at(11, 1_000), Some(500));
        assert_eq!(at(12, 1_000), Some(750));
        assert_eq!(at(13, 1), Some(875));
        assert_eq!(at(16, 1), Some(109));
        assert_eq!(at(1_000, 1), Some(0));
    }
}
