//! Processor times of the phases of sampled turns.

use crate::clock::Clock;
use crate::stats::shard_stats::{TurnPhase, TurnTimes};
use std::time::Duration;

/// One turn in so many is sampled: reading the clock in every turn would cost more than it tells. A prime number, so
/// that samples are not all of the same place in a step, which has 16 turns at most.
const TURNS_PER_SAMPLE: u32 = 61;

/// Measures the phases of sampled turns.
#[derive(Debug, Default)]
pub(super) struct PhaseTimer {
    /// Number of turns since the last sample.
    turns: u32,
    /// Processor time of the thread at the begin of the current phase, if the turn is sampled. A turn may wait, which
    /// this does not count.
    phase_start: Option<Duration>,
    /// Nanoseconds of the phases of this turn, indexed by [`TurnPhase`].
    phase_ns: [u64; TurnPhase::ALL.len()],
}

impl PhaseTimer {
    /// Begins a turn.
    pub(super) fn begin_turn(&mut self, clock: &Clock) {
        self.turns = self.turns.saturating_add(1);
        let is_sampled = self.turns >= TURNS_PER_SAMPLE;
        if is_sampled {
            self.turns = 0;
        }
        self.phase_start = is_sampled.then(|| clock.thread_busy());
    }

    /// Ends a phase and begins the next.
    pub(super) fn end_phase(&mut self, clock: &Clock, phase: TurnPhase) {
        if let Some(start) = self.phase_start {
            let now = clock.thread_busy();
            self.phase_ns[phase as usize] = now.saturating_sub(start).as_nanos() as u64;
            self.phase_start = Some(now);
        }
    }

    /// Ends a turn, and adds its times if it is sampled and had datagrams: others say nothing about the work for a
    /// datagram.
    pub(super) fn end_turn(&mut self, times: &mut TurnTimes, datagrams: usize) {
        if self.phase_start.take().is_some() && datagrams > 0 {
            times.turns += 1;
            times.phase_ns.iter_mut().zip(self.phase_ns).for_each(|(sum, ns)| *sum += ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_turn_in_61_with_datagrams_is_sampled() {
        let (clock, mut timer, mut times) =
            (Clock::new(), PhaseTimer::default(), TurnTimes::default());
        for turn in 0..610 {
            timer.begin_turn(&clock);
            TurnPhase::ALL.into_iter().for_each(|phase| timer.end_phase(&clock, phase));
            timer.end_turn(&mut times, usize::from(turn >= 305));
        }
        assert_eq!(times.turns, 5);
    }
}
