//! Time in the swarm table: one wrapping byte per peer. Reads no clock.

/// Seconds of a monotonic clock with an arbitrary origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u64);

impl Seconds {
    /// Returns the seconds as a signed number, in which times before the origin of the clock are negative.
    pub fn signed(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

/// Maximum number of ticks of the lifetime that a table is created with. A peer is kept for up to two ticks longer than
/// its lifetime.
const TICKS_PER_LIFETIME: u32 = 60;

/// Ticks of the longest lifetime that a table can be changed to. The rest of the byte is slack for a late sweep.
const LIFETIME_TICKS_MAX: u32 = 150;

/// Returns the longest lifetime that a table can be changed to, if it was created with a lifetime of `at_start_secs`.
pub fn longest_lifetime_secs(at_start_secs: u32) -> u32 {
    Ticks::of_lifetime(at_start_secs).longest_lifetime_secs()
}

/// Converts seconds to wrapping one-byte ticks, and tells whether a tick has expired.
///
/// A peer of 256 ticks or more would look young again. The sweep visits everything in each quarter of a lifetime (at
/// most 38 ticks); ages are right as long as two visits are at most 105 ticks apart. After a longer gap everything is
/// visited at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    tick_secs: u32,
    lifetime_ticks: u8,
}

impl Ticks {
    /// Returns the longest lifetime that ticks of this length can represent.
    pub(crate) fn longest_lifetime_secs(self) -> u32 {
        self.tick_secs.saturating_mul(LIFETIME_TICKS_MAX)
    }

    /// Returns ticks for a lifetime. A tick is a whole number of seconds long.
    pub(crate) fn of_lifetime(lifetime_secs: u32) -> Self {
        let lifetime_secs = lifetime_secs.max(1);
        let tick_secs = lifetime_secs.div_ceil(TICKS_PER_LIFETIME);
        Self { tick_secs, lifetime_ticks: 0 }.with_lifetime(lifetime_secs)
    }

    /// Returns ticks of the same length for another lifetime, which is cut to [`longest_lifetime_secs`].
    pub(crate) fn with_lifetime(self, lifetime_secs: u32) -> Self {
        let ticks = lifetime_secs.max(1).div_ceil(self.tick_secs).min(LIFETIME_TICKS_MAX);
        // At most 150.
        Self { lifetime_ticks: ticks as u8, ..self }
    }

    pub(crate) fn at(self, now: Seconds) -> u8 {
        (now.0 / u64::from(self.tick_secs)) as u8
    }

    /// Returns the tick of a time, which may be before the origin of the clock.
    pub(crate) fn at_signed(self, time: i64) -> u8 {
        // Ticks wrap around.
        time.div_euclid(i64::from(self.tick_secs)) as u8
    }

    /// Returns the time at which a tick began, which is not in the future.
    pub(crate) fn start_of(self, now: i64, tick: u8) -> i64 {
        let tick_secs = i64::from(self.tick_secs);
        let age = self.at_signed(now).wrapping_sub(tick);
        (now.div_euclid(tick_secs) - i64::from(age)) * tick_secs
    }

    /// Returns whether a peer that announced at a time has expired. The time may be long ago.
    pub(crate) fn is_expired_at(self, now: i64, time: i64) -> bool {
        let tick_secs = i64::from(self.tick_secs);
        let ticks = now.div_euclid(tick_secs).saturating_sub(time.div_euclid(tick_secs));
        ticks > i64::from(self.lifetime_ticks)
    }

    /// Returns the number of the publication period of a time: a third of the lifetime of peers.
    pub(crate) fn publication_period_at(self, time: i64) -> i64 {
        let period_ticks = i64::from(self.lifetime_ticks / 3).max(1);
        time.div_euclid(i64::from(self.tick_secs)).div_euclid(period_ticks)
    }

    pub(crate) fn is_expired(self, now: u8, tick: u8) -> bool {
        now.wrapping_sub(tick) > self.lifetime_ticks
    }

    /// Returns the age of a tick in seconds, a multiple of the length of a tick.
    pub(crate) fn age_secs(self, now: u8, tick: u8) -> u32 {
        u32::from(now.wrapping_sub(tick)) * self.tick_secs
    }

    /// Returns the number of seconds after which everything that is stored now has expired.
    pub(crate) fn expiry_secs(self) -> u64 {
        u64::from(self.tick_secs) * (u64::from(self.lifetime_ticks) + 1)
    }

    /// Returns the longest time between two visits, in seconds, in which no expired peer looks young again.
    pub(crate) fn unambiguous_secs(self) -> u64 {
        u64::from(self.tick_secs) * u64::from(u8::MAX - self.lifetime_ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_lives_its_lifetime_and_at_most_two_ticks_more() {
        for lifetime in [1, 7, 60, 120, 121, 300, 2700, 86_400] {
            let ticks = Ticks::of_lifetime(lifetime);
            let slack = u64::from(lifetime.div_ceil(TICKS_PER_LIFETIME)) * 2;
            for start in 0..600 {
                let written = ticks.at(Seconds(start));
                let expired =
                    |after: u64| ticks.is_expired(ticks.at(Seconds(start + after)), written);
                assert!(!expired(u64::from(lifetime)), "lifetime {lifetime}, start {start}");
                assert!(expired(u64::from(lifetime) + slack), "lifetime {lifetime}, start {start}");
            }
        }
    }

    #[test]
    fn ticks_are_times_and_times_are_ticks() {
        let ticks = Ticks::of_lifetime(2_700);
        for now in [0, 44, 45, 3_000, 100_007] {
            for age in [0, 1, 44, 45, 46, 2_699, 2_700] {
                let time = now - age;
                let start = ticks.start_of(now, ticks.at_signed(time));
                assert!((time - 44..=time).contains(&start), "{now}, {time}: {start}");
                assert_eq!(ticks.at_signed(start), ticks.at_signed(time));
                assert!(!ticks.is_expired_at(now, time), "{now}, {time}");
            }
            assert!(ticks.is_expired_at(now, now - 2_790), "{now}");
            assert!(ticks.is_expired_at(now, now - 1_000_000), "{now}");
        }
        assert_eq!(ticks.at_signed(100_007), ticks.at(Seconds(100_007)));
    }

    #[test]
    fn a_lifetime_changes_without_changing_the_length_of_ticks() {
        assert_eq!(longest_lifetime_secs(2_700), 6_750);
        let ticks = Ticks::of_lifetime(2_700);
        for lifetime in [10, 300, 2_700, 5_400, 6_750] {
            let changed = ticks.with_lifetime(lifetime);
            let written = ticks.at(Seconds(1_000));
            let expired =
                |after: u64| changed.is_expired(changed.at(Seconds(1_000 + after)), written);
            assert!(!expired(u64::from(lifetime)), "{lifetime}");
            assert!(expired(u64::from(lifetime) + 90), "{lifetime}");
            assert!(changed.unambiguous_secs() >= 100 * 45);
        }
    }
}
