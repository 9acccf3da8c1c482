//! What the tracker reports to systemd: that it is ready, works and stops (sd_notify(3)). Without systemd nothing
//! happens.

use sd_notify::NotifyState;
use std::time::Duration;

/// Reports to the service manager.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    /// Interval after which the service manager ends a process that has not reported.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Reads from the environment whether there is a service manager, and whether it has a watchdog.
    pub(crate) fn new() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled() }
    }

    /// Reports that the tracker serves, with a line of status.
    pub(crate) fn ready(&self, status: &str) {
        send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Reports to the watchdog that no shard is stuck.
    pub(crate) fn alive(&self) {
        if self.watchdog.is_some() {
            send(&[NotifyState::Watchdog]);
        }
    }

    /// Reports a line of status.
    pub(crate) fn status(&self, status: &str) {
        send(&[NotifyState::Status(status)]);
    }

    /// Reports that another process serves in place of this one.
    pub(crate) fn replaced_by(&self, process: u32) {
        send(&[NotifyState::MainPid(process)]);
    }

    /// Reports that the tracker stops.
    pub(crate) fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }
}

/// Sends states. A service manager that cannot be reached is not needed for serving.
fn send(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
