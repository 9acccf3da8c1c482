//! Times at which requests are due.

use crate::options::LoadOptions;
use fastrand::Rng;

/// A Poisson process: independent arrivals with a fixed average rate.
///
/// Evenly spaced arrivals would never coincide, so latency would be lower than with independent clients.
pub(crate) struct Poisson {
    mean_gap_ns: f64,
    next_ns: f64,
}

impl Poisson {
    /// Creates a process with `rate` arrivals per second.
    pub(crate) fn new(rate: f64, start_ns: u64) -> Self {
        Self { mean_gap_ns: 1e9 / rate, next_ns: start_ns as f64 }
    }

    /// Returns the time of the next arrival, if it is not after `now_ns`.
    pub(crate) fn next(&mut self, rng: &mut Rng, now_ns: u64) -> Option<u64> {
        // A rate of 0 has an infinite gap and no arrivals.
        if self.mean_gap_ns.is_finite() && self.next_ns <= now_ns as f64 {
            let due_ns = self.next_ns as u64;
            self.next_ns -= self.mean_gap_ns * (1.0 - rng.f64()).ln();
            return Some(due_ns);
        }
        None
    }
}

/// Stands for the scheduled time of a request in closed loop, where there is none: the time of sending is used instead.
pub(crate) const UNSCHEDULED: u64 = u64::MAX;

/// Pace of a step of load.
pub(crate) enum Pace {
    /// Open loop: requests are sent whether the tracker keeps up or not.
    Open(Poisson),
    /// Closed loop with at most this many unanswered requests.
    Closed(usize),
}

impl Pace {
    /// Returns the pace of a step.
    pub(crate) fn new(load: &LoadOptions, segments: u16, start_ns: u64) -> Self {
        match load.rate {
            Some(rate) => {
                let each = load.mix.requests_per_send(segments);
                Self::Open(Poisson::new(rate / each, start_ns))
            }
            None => Self::Closed(load.in_flight),
        }
    }

    /// Returns the time for which the next request is scheduled, if it may be sent now: in open loop if it is due; in
    /// closed loop [`UNSCHEDULED`], if fewer requests than the limit are unanswered.
    pub(crate) fn next(&mut self, rng: &mut Rng, now_ns: u64, unanswered: usize) -> Option<u64> {
        match self {
            Self::Open(arrivals) => arrivals.next(rng, now_ns),
            Self::Closed(in_flight) => (unanswered < *in_flight).then_some(UNSCHEDULED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_given_rate() {
        let (mut rng, mut arrivals) = (Rng::with_seed(3), Poisson::new(10_000.0, 0));
        let mut due = Vec::new();
        while let Some(due_ns) = arrivals.next(&mut rng, 1_000_000_000) {
            due.push(due_ns);
        }
        assert!((9_600..10_400).contains(&due.len()), "{}", due.len());
        assert!(due.is_sorted());
        let close = due.windows(2).filter(|pair| pair[1] - pair[0] < 20_000).count();
        assert!(
            (1_600..2_000).contains(&close),
            "18 % of the gaps are below a fifth of the mean: {close}"
        );
        assert_eq!(Poisson::new(0.0, 0).next(&mut rng, u64::MAX), None);
    }
}
