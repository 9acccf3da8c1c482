//! When the next request is due.

use crate::options::Load;
use fastrand::Rng;

/// Arrivals that know nothing of each other, so many a second on average
///
/// Evenly spaced ones would never meet, and show the tracker at its best.
pub(crate) struct Poisson {
    gap_ns: f64,
    next_ns: f64,
}

impl Poisson {
    pub(crate) fn new(rate: f64, start_ns: u64) -> Self {
        Self { gap_ns: 1e9 / rate, next_ns: start_ns as f64 }
    }

    /// When the next one is due, if that is not after `now_ns`
    pub(crate) fn next(&mut self, rng: &mut Rng, now_ns: u64) -> Option<u64> {
        // Written so that a rate of 0, whose gap is infinite, never comes.
        if self.gap_ns.is_finite() && self.next_ns <= now_ns as f64 {
            let due_ns = self.next_ns as u64;
            self.next_ns -= self.gap_ns * (1.0 - rng.f64()).ln();
            return Some(due_ns);
        }
        None
    }
}

/// When a request is due that is not late, whenever it leaves
pub(crate) const WHEN_IT_LEAVES: u64 = u64::MAX;

/// The pace of a step's load
pub(crate) enum Pace {
    /// Open loop: requests come whether the tracker keeps up or not
    Open(Poisson),
    /// Closed loop: as many as this may be on their way
    Closed(usize),
}

impl Pace {
    pub(crate) fn new(load: &Load, segments: u16, start_ns: u64) -> Self {
        match load.rate {
            Some(rate) => {
                let each = load.mix.requests_per_departure(segments);
                Self::Open(Poisson::new(rate / each, start_ns))
            }
            None => Self::Closed(load.in_flight),
        }
    }

    /// When the next request is due, if it is
    pub(crate) fn next(&mut self, rng: &mut Rng, now_ns: u64, waiting: usize) -> Option<u64> {
        match self {
            Self::Open(arrivals) => arrivals.next(rng, now_ns),
            Self::Closed(in_flight) => (waiting < *in_flight).then_some(WHEN_IT_LEAVES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_their_rate_and_catch_up() {
        let (mut rng, mut arrivals) = (Rng::with_seed(3), Poisson::new(10_000.0, 0));
        let mut due = Vec::new();
        while let Some(due_ns) = arrivals.next(&mut rng, 1_000_000_000) {
            due.push(due_ns);
        }
        assert!((9_600..10_400).contains(&due.len()), "{}", due.len());
        assert!(due.is_sorted());
        let close = due.windows(2).filter(|pair| pair[1] - pair[0] < 20_000).count();
        assert!((1_600..2_000).contains(&close), "18 % come within a fifth of the mean: {close}");
        assert_eq!(Poisson::new(0.0, 0).next(&mut rng, u64::MAX), None);
    }
}
