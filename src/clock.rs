//! The one place that reads clocks.

use std::sync::atomic::{AtomicU64, Ordering};
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
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    System { start: Instant },
    Simulated(&'static AtomicU64),
}

impl Clock {
    /// Starts counting
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    #[expect(clippy::new_without_default, reason = "a default that reads a clock would hide it")]
    pub fn new() -> Self {
        Self { source: Source::System { start: Instant::now() } }
    }

    /// Returns a clock for simulations: both times are the number of seconds in `seconds`.
    pub fn simulated(seconds: &'static AtomicU64) -> Self {
        Self { source: Source::Simulated(seconds) }
    }

    /// Time since the clock was started
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn elapsed(&self) -> Duration {
        match self.source {
            Source::System { start } => Instant::now().duration_since(start),
            Source::Simulated(seconds) => Duration::from_secs(seconds.load(Ordering::Relaxed)),
        }
    }

    /// Both clocks
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now(&self) -> Now {
        let monotonic = self.elapsed();
        let unix = match self.source {
            Source::System { .. } => SystemTime::now().duration_since(UNIX_EPOCH),
            Source::Simulated(_) => Ok(monotonic),
        };
        let unix_secs = unix.unwrap_or_default().as_secs();
        Now { monotonic: Seconds(monotonic.as_secs()), unix_secs }
    }

    /// Returns the processor time of the calling thread, including its time in the kernel.
    pub fn thread_busy(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(time).unwrap_or_default()
    }

    /// Pauses before something is tried again that only time can mend
    #[expect(clippy::disallowed_methods, reason = "bounded, and before anything is served")]
    pub fn pause_before_retry(&self) {
        std::thread::sleep(Duration::from_millis(20));
    }
}
