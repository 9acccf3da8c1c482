//! Decides how long a shard gathers datagrams: how long it waits for more of them before it answers.
//!
//! Waking up for a datagram can cost more than answering it, and a shard that waits a little wakes up for several at
//! once. But replies are delayed, and clients that wait for a reply before their next request (a closed loop) then send
//! fewer requests. What a wait saves depends on the machine: where a timer is expensive, as in most virtual machines, a
//! short wait saves nothing. So waits of different lengths are tried, and the shortest one that pays is kept.

use std::time::Duration;

/// The waits that are tried: none, and those that may replace it.
const CANDIDATES: [Duration; 3] =
    [Duration::ZERO, Duration::from_micros(40), Duration::from_micros(100)];

/// Number of datagrams that must be expected during a wait; a wait for fewer would only delay replies.
const EXPECTED_MIN: u128 = 2;

/// Datagrams per second from which waits are tried: the longest candidate then gathers [`EXPECTED_MIN`].
const TRIAL_RATE_MIN: u64 = 20_000;

/// Number of datagrams for which a candidate is used in a round of a trial.
const INTERVAL_DATAGRAMS: u64 = 512;
/// Maximum time for these datagrams; a trial that would take longer is abandoned.
const INTERVAL_MAX: Duration = Duration::from_millis(200);
/// Number of rounds of a trial. In each, all candidates are used in turn.
const ROUNDS: usize = 15;

/// A wait pays if an answer takes at most this share of the processor time that it takes without waits.
const BUSY_SHARE_MAX: f64 = 0.85;
/// A wait pays if the rate of datagrams is at least this share of the rate without waits. Random differences of a rate
/// that does not depend on waits are smaller in all but one trial of some thousands.
const RATE_SHARE_MIN: f64 = 0.93;

/// Time from a trial to the next one. It doubles with each trial that has the same result as the one before.
const PAUSE_MIN: Duration = Duration::from_secs(4);
/// Maximum time from a trial to the next one.
const PAUSE_MAX: Duration = Duration::from_secs(32);
/// Factor by which the rate must change for a trial before its time.
const RATE_CHANGE: u64 = 2;
/// Time from a trial to the next one if the rate has changed so.
const CHANGED_PAUSE: Duration = Duration::from_secs(1);

/// Time over which the rate of datagrams is measured.
const RATE_PERIOD: Duration = Duration::from_millis(100);

/// How long a shard gathers datagrams, and the measurements on which this is based.
#[derive(Debug)]
pub(super) struct GatherPolicy {
    /// The time that the config prescribes; zero disables gathering, and with `None` trials choose the time.
    fixed: Option<Duration>,
    rate: RateMeter,
    state: GatherState,
}

/// Rate of datagrams.
#[derive(Debug, Default)]
struct RateMeter {
    since: Duration,
    datagrams: u64,
    /// Datagrams per second in the last [`RATE_PERIOD`].
    per_second: u64,
}

#[derive(Debug)]
enum GatherState {
    Settled(GatherDecision),
    Trial(Box<GatherTrial>),
}

/// The result of a trial.
#[derive(Clone, Copy, Debug)]
struct GatherDecision {
    time: Duration,
    /// Time at which the trial ended.
    since: Duration,
    /// Time of the next trial.
    until: Duration,
    /// Time from the trial to the next one.
    pause: Duration,
    /// Datagrams per second since the trial, once it is measured.
    rate: Option<u64>,
}

/// A trial in progress.
#[derive(Debug)]
struct GatherTrial {
    before: GatherDecision,
    /// Datagrams per second before the trial.
    rate: u64,
    /// Number of intervals that have ended.
    intervals: usize,
    /// Start of this interval, and the processor time of the thread then.
    start: (Duration, Duration),
    /// Number of datagrams in this interval.
    datagrams: u64,
    /// Time and processor time of each interval for a datagram, in nanoseconds; by round and candidate.
    costs: [[(f64, f64); CANDIDATES.len()]; ROUNDS],
}

impl RateMeter {
    /// Adds datagrams; returns the rate when it has been measured.
    fn record(&mut self, datagrams: usize, now: Duration) -> Option<u64> {
        self.datagrams += datagrams as u64;
        let elapsed = now.saturating_sub(self.since);
        if elapsed < RATE_PERIOD {
            return None;
        }
        let per_second = u128::from(self.datagrams) * 1_000_000 / elapsed.as_micros();
        *self = Self { since: now, datagrams: 0, per_second: per_second as u64 };
        Some(self.per_second)
    }

    /// Starts to measure the rate anew.
    fn restart(&mut self, now: Duration) {
        (self.since, self.datagrams) = (now, 0);
    }

    /// Returns whether this rate differs from another by [`RATE_CHANGE`] or more.
    fn differs_from(&self, other: u64) -> bool {
        let (low, high) = (self.per_second.min(other), self.per_second.max(other));
        high >= low * RATE_CHANGE
    }
}

impl GatherPolicy {
    /// Creates the policy for a value of the config, which [`Self::set_fixed`] explains.
    pub(super) fn new(fixed: Option<Duration>) -> Self {
        let [time, since, until] = [Duration::ZERO; 3];
        let decision = GatherDecision { time, since, until, pause: PAUSE_MIN, rate: None };
        let state = GatherState::Settled(decision);
        Self { fixed, rate: RateMeter::default(), state }
    }

    /// Prescribes the time for which datagrams are gathered, or has it determined by trials.
    pub(super) fn set_fixed(&mut self, fixed: Option<Duration>) {
        self.fixed = fixed;
    }

    /// Returns for how long datagrams are gathered at present.
    pub(super) fn time(&self) -> Duration {
        let time = match (self.fixed, &self.state) {
            (Some(time), _) => time,
            (None, GatherState::Settled(decision)) => decision.time,
            (None, GatherState::Trial(trial)) => return trial.candidate(),
        };
        if gathers_several(time, self.rate.per_second) { time } else { Duration::ZERO }
    }

    /// Records the datagrams of a step that ended at `now`; `busy` returns the processor time of the thread.
    pub(super) fn record(
        &mut self,
        datagrams: usize,
        now: Duration,
        busy: impl FnOnce() -> Duration,
    ) {
        match &mut self.state {
            GatherState::Settled(decision) => {
                let Some(rate) = self.rate.record(datagrams, now) else { return };
                let settled_rate = *decision.rate.get_or_insert(rate);
                let has_changed =
                    self.rate.differs_from(settled_rate) && now >= decision.since + CHANGED_PAUSE;
                let is_due = now >= decision.until || has_changed;
                if rate >= TRIAL_RATE_MIN && is_due && self.fixed.is_none() {
                    let trial = GatherTrial::new(*decision, rate, (now, busy()));
                    self.state = GatherState::Trial(Box::new(trial));
                }
            }
            GatherState::Trial(trial) => {
                if let Some(decision) = trial.record(datagrams as u64, now, busy) {
                    self.rate.restart(now);
                    self.state = GatherState::Settled(decision);
                }
            }
        }
    }
}

impl GatherTrial {
    fn new(before: GatherDecision, rate: u64, start: (Duration, Duration)) -> Self {
        let costs = [[(0.0, 0.0); CANDIDATES.len()]; ROUNDS];
        Self { before, rate, intervals: 0, start, datagrams: 0, costs }
    }

    /// Returns the candidate that is used at present.
    fn candidate(&self) -> Duration {
        CANDIDATES[self.intervals % CANDIDATES.len()]
    }

    /// Records the datagrams of a step; returns the decision when the trial has ended.
    fn record(
        &mut self,
        datagrams: u64,
        now: Duration,
        busy: impl FnOnce() -> Duration,
    ) -> Option<GatherDecision> {
        self.datagrams += datagrams;
        let elapsed = now.saturating_sub(self.start.0);
        if self.datagrams < INTERVAL_DATAGRAMS {
            let is_abandoned = elapsed >= INTERVAL_MAX;
            let (since, until) = (now, now + PAUSE_MIN);
            let decision = GatherDecision { since, until, rate: None, ..self.before };
            return is_abandoned.then_some(decision);
        }
        let busy = busy();
        let per_datagram = |time: Duration| time.as_nanos() as f64 / self.datagrams as f64;
        let cost = (per_datagram(elapsed), per_datagram(busy.saturating_sub(self.start.1)));
        self.costs[self.intervals / CANDIDATES.len()][self.intervals % CANDIDATES.len()] = cost;
        self.intervals += 1;
        (self.start, self.datagrams) = ((now, busy), 0);
        (self.intervals == ROUNDS * CANDIDATES.len()).then(|| self.decide(now))
    }

    fn decide(&self, now: Duration) -> GatherDecision {
        let pays = |candidate: &usize| {
            if !gathers_several(CANDIDATES[*candidate], self.rate) {
                return false;
            }
            let ratio_to_none = |part: fn(&(f64, f64)) -> f64| {
                median(self.costs.map(|costs| part(&costs[*candidate]) / part(&costs[0])))
            };
            ratio_to_none(|cost| cost.0) <= 1.0 / RATE_SHARE_MIN
                && ratio_to_none(|cost| cost.1) <= BUSY_SHARE_MAX
        };
        let shortest = (1..CANDIDATES.len()).find(pays).unwrap_or(0);
        let (before, time) = (self.before, CANDIDATES[shortest]);
        let pause = if time == before.time { (before.pause * 2).min(PAUSE_MAX) } else { PAUSE_MIN };
        GatherDecision { time, since: now, until: now + pause, pause, rate: None }
    }
}

/// Returns whether [`EXPECTED_MIN`] datagrams are expected in a time at a rate.
fn gathers_several(time: Duration, rate: u64) -> bool {
    u128::from(rate) * time.as_micros() / 1_000_000 >= EXPECTED_MIN
}

/// Returns the median of an odd number of values.
fn median<const N: usize>(mut values: [f64; N]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[N / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: f64 = 1_000.0;

    /// A machine with clients, in which a shard answers.
    struct Machine {
        /// Datagrams per nanosecond that clients send, or would send if replies came at once.
        rate: f64,
        /// Maximum number of requests without a reply; infinite for clients that do not wait for replies.
        in_flight: f64,
        /// Processor time in nanoseconds: of a datagram, of waking up for a datagram, and of waking up by a timer.
        costs: [f64; 3],
        now: f64,
        busy: f64,
        /// Time of the next datagram.
        arrival: f64,
        rng: fastrand::Rng,
    }

    impl Machine {
        /// Returns a machine with 100,000 requests per second.
        fn new(costs: [f64; 3]) -> Self {
            let (rate, in_flight) = (0.1 / MICROSECOND, f64::INFINITY);
            let costs = costs.map(|cost| cost * MICROSECOND);
            let rng = fastrand::Rng::with_seed(7);
            Self { rate, in_flight, costs, now: 1e9, busy: 0.0, arrival: 1e9, rng }
        }

        /// Returns the random time until the next datagram.
        fn until_next(&mut self) -> f64 {
            -self.rng.f64().max(f64::MIN_POSITIVE).ln() / self.rate
        }

        /// Runs the policy for a time; returns the shares of the time by what it gathered.
        fn run(&mut self, policy: &mut GatherPolicy, seconds: f64) -> [f64; CANDIDATES.len()] {
            let (end, mut shares) = (self.now + seconds * 1e9, [0.0; CANDIDATES.len()]);
            while self.now < end {
                let time = policy.time();
                let [datagram, wake_up, timer] = self.costs;
                let wait = time.as_nanos() as f64;
                let wake_up = if time.is_zero() { wake_up } else { timer };
                // Clients that wait for replies send when they have them.
                if self.in_flight.is_finite() {
                    self.arrival = self.now;
                }
                // A wait without gathering ends at the next datagram.
                let idle_until =
                    if wait == 0.0 { self.arrival.max(self.now) } else { self.now + wait };
                let mut count = 0.0;
                while self.arrival <= idle_until + wake_up && count < self.in_flight {
                    (self.arrival, count) = (self.arrival + self.until_next(), count + 1.0);
                }
                let work = wake_up + datagram * count;
                let elapsed = idle_until - self.now + work;
                self.busy += work;
                self.now += elapsed;
                let at = CANDIDATES.iter().position(|it| *it == time).unwrap();
                shares[at] += elapsed / (seconds * 1e9);
                let nanos = |value: f64| Duration::from_nanos(value as u64);
                policy.record(count as usize, nanos(self.now), || nanos(self.busy));
            }
            shares
        }
    }

    #[test]
    fn a_short_wait_is_kept_where_timers_are_cheap() {
        let mut policy = GatherPolicy::new(None);
        let shares = Machine::new([3.0, 6.0, 6.0]).run(&mut policy, 60.0);
        assert!(shares[1] > 0.93, "{shares:?}");
        assert_eq!(policy.time(), CANDIDATES[1]);
    }

    #[test]
    fn a_long_wait_is_kept_where_timers_are_expensive() {
        let mut policy = GatherPolicy::new(None);
        let shares = Machine::new([3.0, 3.0, 20.0]).run(&mut policy, 60.0);
        assert!(shares[2] > 0.93, "{shares:?}");
    }

    #[test]
    fn nothing_is_gathered_where_it_does_not_pay() {
        // A wait that saves nothing, and clients that wait for replies.
        let mut none = GatherPolicy::new(None);
        let shares = Machine::new([3.0, 1.0, 9.0]).run(&mut none, 60.0);
        assert!(shares[0] > 0.93, "{shares:?}");
        let mut machine = Machine::new([3.0, 6.0, 6.0]);
        (machine.in_flight, machine.rate) = (4.0, 1.0);
        let shares = machine.run(&mut GatherPolicy::new(None), 60.0);
        assert!(shares[0] > 0.93, "{shares:?}");
    }

    /// With few requests in flight, a shard that gathers serves fewer.
    #[test]
    fn a_change_of_the_load_changes_the_decision() {
        let mut policy = GatherPolicy::new(None);
        let mut machine = Machine::new([3.0, 6.0, 6.0]);
        machine.run(&mut policy, 60.0);
        assert_eq!(policy.time(), CANDIDATES[1]);
        (machine.in_flight, machine.rate) = (4.0, 1.0);
        machine.run(&mut policy, 3.0);
        assert_eq!(policy.time(), Duration::ZERO);
        (machine.in_flight, machine.rate) = (f64::INFINITY, 0.1 / MICROSECOND);
        machine.run(&mut policy, 3.0);
        assert_eq!(policy.time(), CANDIDATES[1]);
        // The short wait would gather less than two datagrams, so the long one is chosen.
        machine.rate = 0.03 / MICROSECOND;
        machine.run(&mut policy, 3.0);
        assert_eq!(policy.time(), CANDIDATES[2]);
        // Too few datagrams for any wait.
        machine.rate = 0.005 / MICROSECOND;
        machine.run(&mut policy, 1.0);
        assert_eq!(policy.time(), Duration::ZERO);
    }

    #[test]
    fn a_prescribed_time_is_used_under_load() {
        let wanted = Duration::from_micros(70);
        for (fixed, rate, time) in [
            (wanted, 100_000, wanted),
            (wanted, 1_000, Duration::ZERO),
            (Duration::ZERO, 100_000, Duration::ZERO),
        ] {
            let mut policy = GatherPolicy::new(None);
            policy.set_fixed(Some(fixed));
            policy.record(0, Duration::from_secs(5), || panic!("no trial"));
            policy.record(rate, Duration::from_secs(6), || panic!("no trial"));
            assert_eq!(policy.time(), time);
        }
    }
}
