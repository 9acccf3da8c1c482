//! The one place that reads clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tsubame_storage::Seconds;

/// Both clocks, read together once for a batch
///
/// Swarms live by the monotonic one, so a jump of the wall clock touches connection ids only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since the process started
    pub monotonic: Seconds,
    /// Since 1970
    pub unix_secs: u64,
}

/// Reads the clocks
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts counting
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    #[expect(clippy::new_without_default, reason = "a default that reads a clock would hide it")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Time since the clock was started
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn elapsed(&self) -> Duration {
        Instant::now().duration_since(self.start)
    }

    /// Both clocks
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: Seconds(self.elapsed().as_secs()), unix_secs: unix.as_secs() }
    }

    /// Pauses before something is tried again that only time can mend
    #[expect(clippy::disallowed_methods, reason = "bounded, and before anything is served")]
    pub fn pause_before_retry(&self) {
        std::thread::sleep(Duration::from_millis(20));
    }
}
