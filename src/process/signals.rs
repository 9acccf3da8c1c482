//! The signals that the tracker handles.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Handlers of the signals that do not end the process. They are installed before the lists are read.
pub(crate) struct Signals {
    pub(crate) hangup: Signal,
    pub(crate) user1: Signal,
    pub(crate) user2: Signal,
    /// Signals that are ignored, although their default action would end the process.
    pub(crate) ignored: [Signal; 6],
}

impl Signals {
    /// Installs the handlers. The caller must have entered the runtime.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            ignored: [
                signal(SignalKind::alarm())?,
                signal(SignalKind::io())?,
                signal(SignalKind::pipe())?,
                // tokio has no names for these.
                signal(SignalKind::from_raw(libc::SIGVTALRM))?,
                signal(SignalKind::from_raw(libc::SIGPROF))?,
                signal(SignalKind::from_raw(libc::SIGPWR))?,
            ],
        })
    }
}

/// Waits for an ignored signal and returns its name.
pub(crate) async fn ignored(
    [alarm, io, pipe, virtual_alarm, profile, power]: &mut [Signal; 6],
) -> &'static str {
    tokio::select! {
        _ = alarm.recv() => "SIGALRM",
        _ = io.recv() => "SIGIO",
        _ = pipe.recv() => "SIGPIPE",
        _ = virtual_alarm.recv() => "SIGVTALRM",
        _ = profile.recv() => "SIGPROF",
        _ = power.recv() => "SIGPWR",
    }
}
