//! Decides where an idle shard waits: in its ring, or in the runtime of its thread.
//!
//! A wait in the ring takes one system call, which also submits the replies; a wait in the runtime takes several. But
//! tasks of the runtime, which serve HTTP, only run while the shard waits there, and only the runtime submits their
//! operations. So the shard waits in the ring while there are no HTTP connections, and watches the epoll instance of
//! the runtime meanwhile: an event of the runtime, such as a new connection, ends the wait.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use tsubame_udp::ring::{Ring, WatchNumber, epoll_that_polls};

/// Time since the last HTTP connection or event of the runtime after which the shard waits in the ring. In this time
/// the runtime submits what its tasks have queued.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// Maximum time of a wait in the ring: timers of the runtime are late by at most this.
pub(super) const RING_WAIT_MAX: Duration = Duration::from_millis(100);

/// The watch on the runtime.
#[derive(Debug)]
pub(super) struct RuntimeWatch {
    /// `None` if the epoll instance was not found. Then the shard always waits in the runtime.
    watch: Option<WatchNumber>,
    /// Time of the last HTTP connection or event of the runtime.
    active_at: Duration,
    /// Time at which tasks of the runtime ran last.
    ran_at: Duration,
}

impl RuntimeWatch {
    /// Creates a watch on the runtime that polls a descriptor.
    pub(super) fn new(ring: &mut Ring, polled: BorrowedFd<'_>, now: Duration) -> Self {
        let watch = epoll_that_polls(polled).map(|epoll| ring.add_watch(epoll));
        Self { watch, active_at: now, ran_at: now }
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
            self.active_at = now;
        }
        let is_quiet = now.saturating_sub(self.active_at) >= QUIET_TIME;
        // The runtime polls the event of the ring: while that is enabled, the watch would trigger itself.
        ring.set_watch_enabled(watch, is_quiet)?;
        Ok(is_quiet)
    }

    /// Returns whether tasks of the runtime must run after a step that may have waited in the ring.
    pub(super) fn must_run_tasks(&mut self, ring: &mut Ring, now: Duration) -> bool {
        let has_event = self.watch.is_some_and(|watch| ring.take_signal(watch));
        if has_event {
            self.active_at = now;
        }
        let is_due = has_event || now.saturating_sub(self.ran_at) >= RING_WAIT_MAX;
        if is_due {
            self.ran_at = now;
        }
        is_due
    }
}
