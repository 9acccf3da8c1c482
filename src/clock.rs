//! The only module that reads clocks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tsubame_storage::Seconds;

/// The times of both clocks, read together once for each batch.
///
/// Swarms use the monotonic clock, so that a jump of the wall clock affects only connection ids and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Seconds since the process started; after upgrades, since the first process started.
    pub monotonic: Seconds,
    /// Seconds since 1970.
    pub unix_secs: u64,
}

/// Reads the clocks of the system, or simulated ones.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    source: TimeSource,
}

#[derive(Clone, Copy, Debug)]
enum TimeSource {
    System { start: Instant },
    Simulated(&'static AtomicU64),
}

impl Clock {
    /// Creates a clock of the system whose monotonic time starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    #[expect(clippy::new_without_default, reason = "a default that reads a clock would hide it")]
    pub fn new() -> Self {
        Self { source: TimeSource::System { start: Instant::now() } }
    }

    /// Creates a clock of the system whose monotonic time started at an [`Self::origin`], perhaps in another process.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn with_origin(origin: Duration) -> Self {
        let age = monotonic().saturating_sub(origin);
        let start = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        Self { source: TimeSource::System { start } }
    }

    /// Returns the start of the monotonic time, as a time of CLOCK_MONOTONIC, which all processes of a machine share.
    pub fn origin(&self) -> Duration {
        monotonic().saturating_sub(self.elapsed())
    }

    /// Creates a clock for simulations: both of its times are the number of seconds in `seconds`.
    pub fn simulated(seconds: &'static AtomicU64) -> Self {
        Self { source: TimeSource::Simulated(seconds) }
    }

    /// Returns the monotonic time: the time since the clock was created, or since its origin.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn elapsed(&self) -> Duration {
        match self.source {
            TimeSource::System { start } => Instant::now().duration_since(start),
            TimeSource::Simulated(seconds) => Duration::from_secs(seconds.load(Ordering::Relaxed)),
        }
    }

    /// Returns the times of both clocks.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now(&self) -> Now {
        let monotonic = self.elapsed();
        let unix = match self.source {
            TimeSource::System { .. } => SystemTime::now().duration_since(UNIX_EPOCH),
            TimeSource::Simulated(_) => Ok(monotonic),
        };
        let unix_secs = unix.unwrap_or_default().as_secs();
        Now { monotonic: Seconds(monotonic.as_secs()), unix_secs }
    }

    /// Returns the time of the wall clock in nanoseconds since 1970.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn unix_nanos(&self) -> u64 {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns the time of the wall clock in milliseconds since 1970.
    pub fn unix_millis(&self) -> u64 {
        self.unix_nanos() / 1_000_000
    }

    /// Returns the processor time of the calling thread, including its time in the kernel.
    pub fn thread_busy(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(time).unwrap_or_default()
    }

    /// Sleeps for 20 ms, before an operation is retried that may succeed later.
    #[expect(clippy::disallowed_methods, reason = "bounded, and never on the thread of a shard")]
    pub fn pause_before_retry(&self) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the time of CLOCK_MONOTONIC.
fn monotonic() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(time).unwrap_or_default()
}
