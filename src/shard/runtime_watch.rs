//! Decides where an idle shard waits: in its ring, or in the runtime of its thread.
//!
//! A wait in the ring takes one system call, which also submits the replies; a wait in the runtime takes several. But
//! tasks of the runtime, which serve HTTP, run only while the shard waits there, and only the runtime submits their
//! operations. So the shard waits in the ring while there are no HTTP connections, and watches the epoll instance of
//! the runtime meanwhile: an event of the runtime, such as a new connection, ends the wait, and its tasks run.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use tsubame_udp::ring::{Ring, WatchMode, WatchNumber, epoll_that_polls};

/// Time since the last HTTP connection after which the shard waits in the ring.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// Maximum time of a wait in the ring. Timers of the runtime are late by at most twice this.
pub(super) const RING_WAIT_MAX: Duration = Duration::from_millis(100);

/// Tasks of the runtime that must run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DueTasks {
    /// None.
    None,
    /// Those whose timers may have ended.
    Timers,
    /// Those, and those that wait for an event.
    Events,
}

/// The watch on the runtime.
#[derive(Debug)]
pub(super) struct RuntimeWatch {
    /// `None` if the epoll instance was not found. Then the shard always waits in the runtime.
    watch: Option<WatchNumber>,
    /// Time of the last HTTP connection.
    connected_at: Duration,
    /// Time at which tasks of the runtime ran last.
    ran_at: Duration,
}

impl RuntimeWatch {
    /// Creates a watch on the runtime that polls a descriptor.
    pub(super) fn new(ring: &mut Ring, polled: BorrowedFd<'_>, now: Duration) -> Self {
        let epoll = epoll_that_polls(polled);
        let watch = epoll.map(|epoll| ring.add_watch(epoll, WatchMode::Always));
        Self { watch, connected_at: now, ran_at: now }
    }

    /// Returns whether the shard waits in the ring.
    pub(super) fn permits_ring_wait(
        &mut self,
        ring: &mut Ring,
        now: Duration,
        has_connections: bool,
    ) -> io::Result<bool> {
        let Some(watch) = self.watch else { return Ok(false) };
        if has_connections {
            self.connected_at = now;
        }
        let is_quiet = now.saturating_sub(self.connected_at) >= QUIET_TIME;
        // The runtime polls the event of the ring: while that is enabled, the watch would trigger itself.
        ring.set_watch_enabled(watch, is_quiet)?;
        Ok(is_quiet)
    }

    /// Returns which tasks of the runtime must run after a step that may have waited in the ring.
    pub(super) fn due_tasks(&mut self, ring: &mut Ring, now: Duration) -> DueTasks {
        let due = if self.watch.is_some_and(|watch| ring.take_signal(watch)) {
            DueTasks::Events
        } else if now.saturating_sub(self.ran_at) >= RING_WAIT_MAX {
            DueTasks::Timers
        } else {
            return DueTasks::None;
        };
        self.ran_at = now;
        due
    }
}
