//! `interval_variation` and `interval_load`: when clients are asked to come back.

/// Spreads announces that would come together: some clients are asked to come back later than others
#[derive(Clone, Debug, PartialEq)]
pub struct Variation {
    /// The share of replies that are changed
    pub probability: f64,
    /// Seconds that are added, at most
    pub increase_secs: u32,
    /// Whether the minimum grows as much
    pub min_interval: bool,
}

impl Variation {
    /// Seconds to add to this reply
    pub fn draw(&self, rng: &mut fastrand::Rng) -> u32 {
        if rng.f64() < self.probability { rng.u32(1..=self.increase_secs) } else { 0 }
    }
}

/// Sheds work where there is too much: the busier a shard, the later clients are asked to come back
#[derive(Clone, Debug, PartialEq)]
pub struct ByLoad {
    /// Announces a second of a shard up to which the interval is the configured one
    pub from: u32,
    /// From so many on, it is the longest
    pub to: u32,
    /// The longest interval
    pub longest_secs: u32,
}

impl ByLoad {
    /// The interval of a shard that has this load, where the configured one is `interval_secs`
    pub fn interval(&self, interval_secs: u32, announces_per_s: u32) -> u32 {
        let above = announces_per_s.clamp(self.from, self.to) - self.from;
        let span = u64::from(self.longest_secs.saturating_sub(interval_secs));
        let added = span * u64::from(above) / u64::from((self.to - self.from).max(1));
        interval_secs.saturating_add(added as u32)
    }
}

/// What a shard has to do, in announces a second: the last whole second's, so that it follows quickly, halved with what
/// came before, so that it does not jump
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    second: u64,
    count: u32,
    smooth: u32,
}

impl Load {
    /// Takes over what another has counted, unless this has been taken over already; true if it has
    pub fn take_over(&mut self, from: &mut Self) -> bool {
        let takes = self.second == 0 && from.second > 0;
        if takes {
            *self = std::mem::take(from);
        }
        takes
    }

    /// Counts an announce; returns the load
    pub fn count(&mut self, second: u64) -> u32 {
        if second != self.second {
            // Seconds in which nothing came halve it as well.
            let quiet = (second.saturating_sub(self.second) - 1).min(31);
            self.smooth = (self.smooth / 2 + self.count / 2) >> quiet;
            (self.second, self.count) = (second, 0);
        }
        self.count = self.count.saturating_add(1);
        self.smooth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variation_is_as_often_and_as_much_as_said() {
        let variation = Variation { probability: 0.25, increase_secs: 60, min_interval: false };
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
        let by_load = ByLoad { from: 1_000, to: 3_000, longest_secs: 3_600 };
        for (load, interval) in [(0, 1_800), (1_000, 1_800), (2_000, 2_700), (9_000, 3_600)] {
            assert_eq!(by_load.interval(1_800, load), interval, "{load}");
        }
        let mut load = Load::default();
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
