//! Has a ring watch other descriptors while it waits.

use super::Ring;
use super::watch::{WatchMode, WatchNumber};
use std::io;
use std::os::fd::OwnedFd;

impl Ring {
    /// Adds a descriptor that ends waits when it becomes readable, once [`Self::set_watch_enabled`] has enabled it.
    ///
    /// Each event counts, also if the descriptor was readable before: an eventfd need not be reset.
    pub fn add_watch(&mut self, descriptor: OwnedFd, mode: WatchMode) -> WatchNumber {
        self.state.watches.add(descriptor, mode)
    }

    /// Ends a watch and closes its descriptor; the kernel closes its own reference in the next turn.
    pub fn remove_watch(&mut self, number: WatchNumber) -> io::Result<()> {
        let operation = self.state.watches.remove(number);
        operation.map_or(Ok(()), |entry| self.push(entry))
    }

    /// Enables or disables a watched descriptor. This takes effect in the next turn.
    pub fn set_watch_enabled(&mut self, number: WatchNumber, is_enabled: bool) -> io::Result<()> {
        let operation = self.state.watches.set_enabled(number, is_enabled);
        operation.map_or(Ok(()), |entry| self.push(entry))
    }

    /// Returns whether a watched descriptor became readable since the last call.
    pub fn take_signal(&mut self, number: WatchNumber) -> bool {
        self.state.watches.take_signal(number)
    }

    /// Starts a poll of each enabled descriptor that has none in flight.
    pub(super) fn arm_watches(&mut self) -> io::Result<()> {
        let Some(first) = self.state.watches.next_poll() else { return Ok(()) };
        self.push(first)?;
        while let Some(poll) = self.state.watches.next_poll() {
            self.push(poll)?;
        }
        // Submitted at once: a wait expects that queued operations complete soon.
        self.enter()
    }
}
