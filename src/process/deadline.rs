//! How long the end of a previous process is waited for.

use crate::clock::Clock;
use std::time::Duration;

/// Time for which sockets, locks and programs of a previous process may remain.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(2);

/// A time until which something is tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    clock: Clock,
    at: Duration,
}

impl Deadline {
    /// Returns the time until which sockets, locks and programs of a previous process may remain.
    pub(crate) fn of_predecessor(clock: Clock) -> Self {
        Self { clock, at: clock.elapsed() + PREDECESSOR_TIMEOUT }
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.clock.elapsed() >= self.at
    }

    /// Waits a moment before the next try.
    pub(crate) fn pause(&self) {
        self.clock.pause_before_retry();
    }
}
