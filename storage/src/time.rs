//! Time as the swarm table keeps it: one wrapping byte per peer. Reads no clock.

/// Seconds of a monotonic clock, counted from anywhere
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u64);

/// How many ticks a lifetime is cut into; what is left of the byte's 256 is the slack of a late sweep
const TICKS_PER_LIFETIME: u32 = 120;

/// Turns seconds into wrapping one-byte ticks, and two ticks into "too old"
///
/// A peer older than 256 ticks would look young again. The sweep visits everything each quarter of a
/// lifetime (30 ticks), so it may be more than 100 ticks late before that happens; `Swarms` makes up
/// for a longer gap with one full pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    tick_secs: u32,
    lifetime_ticks: u8,
}

impl Ticks {
    /// Ticks for a lifetime in seconds, rounded up to whole seconds each
    pub(crate) fn of_lifetime(lifetime_secs: u32) -> Self {
        let lifetime_secs = lifetime_secs.max(1);
        let tick_secs = lifetime_secs.div_ceil(TICKS_PER_LIFETIME);
        // At most 120: `tick_secs` is rounded up.
        let lifetime_ticks = lifetime_secs.div_ceil(tick_secs) as u8;
        Self { tick_secs, lifetime_ticks }
    }

    pub(crate) fn at(self, now: Seconds) -> u8 {
        (now.0 / u64::from(self.tick_secs)) as u8
    }

    pub(crate) fn is_expired(self, now: u8, tick: u8) -> bool {
        now.wrapping_sub(tick) > self.lifetime_ticks
    }

    /// Seconds after which a tick written before can no longer be told from a young one
    pub(crate) fn ambiguous_secs(self) -> u64 {
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
            let slack = u64::from(lifetime.div_ceil(120)) * 2;
            for start in 0..600 {
                let written = ticks.at(Seconds(start));
                let expired =
                    |after: u64| ticks.is_expired(ticks.at(Seconds(start + after)), written);
                assert!(!expired(u64::from(lifetime)), "lifetime {lifetime}, start {start}");
                assert!(expired(u64::from(lifetime) + slack), "lifetime {lifetime}, start {start}");
            }
        }
    }
}
