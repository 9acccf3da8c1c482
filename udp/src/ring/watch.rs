//! Descriptors that end a wait of a ring when they become readable.

use super::operation_id::OperationId;
use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use std::os::fd::{AsRawFd, OwnedFd};

/// Number of a watched descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchNumber(u16);

/// How often an enabled watch reports events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// Every event. Each one costs time, even if the ring does not wait.
    Always,
    /// One event each time the watch is enabled: at once if the descriptor is readable, else the next one.
    Once,
}

/// A watched descriptor.
#[derive(Debug)]
struct Watch {
    /// `None` if the descriptor is not watched any more.
    descriptor: Option<OwnedFd>,
    mode: WatchMode,
    /// Whether the descriptor should be polled.
    is_enabled: bool,
    /// Whether a poll is in flight.
    is_armed: bool,
    /// Whether the descriptor became readable since [`Watches::take_signal`].
    is_signalled: bool,
}

/// The watched descriptors of a ring.
#[derive(Debug, Default)]
pub(super) struct Watches {
    watches: Vec<Watch>,
    /// Whether an enabled watch may have no poll in flight.
    has_unarmed: bool,
}

impl Watches {
    pub(super) fn add(&mut self, descriptor: OwnedFd, mode: WatchMode) -> WatchNumber {
        let [is_enabled, is_armed, is_signalled] = [false; 3];
        let descriptor = Some(descriptor);
        let watch = Watch { descriptor, mode, is_enabled, is_armed, is_signalled };
        let is_free = |watch: &Watch| watch.descriptor.is_none() && !watch.is_armed;
        let number = self.watches.iter().position(is_free).unwrap_or(self.watches.len());
        match self.watches.get_mut(number) {
            Some(free) => *free = watch,
            None => self.watches.push(watch),
        }
        WatchNumber(number as u16)
    }

    /// Ends a watch; returns an operation that must be submitted for this.
    pub(super) fn remove(&mut self, number: WatchNumber) -> Option<squeue::Entry> {
        let operation = self.set_enabled(number, false);
        if let Some(watch) = self.watches.get_mut(usize::from(number.0)) {
            watch.descriptor = None;
        }
        operation
    }

    /// Enables or disables a watch; returns an operation that must be submitted for this.
    pub(super) fn set_enabled(
        &mut self,
        number: WatchNumber,
        is_enabled: bool,
    ) -> Option<squeue::Entry> {
        let watch = self.watches.get_mut(usize::from(number.0))?;
        let was_enabled = std::mem::replace(&mut watch.is_enabled, is_enabled);
        self.has_unarmed |= is_enabled && !watch.is_armed;
        // What happened before a watch is enabled is no signal; a poll that is armed reports a readable descriptor.
        watch.is_signalled &= was_enabled;
        // Removing a poll instead of cancelling it would fail while an event of it is being handled.
        (was_enabled && !is_enabled && watch.is_armed).then(|| {
            let poll = OperationId::Watch { number: number.0 }.pack();
            opcode::AsyncCancel::new(poll).build().user_data(OperationId::Cancel.pack())
        })
    }

    /// Returns a poll of an enabled watch that has none in flight.
    pub(super) fn next_poll(&mut self) -> Option<squeue::Entry> {
        if !self.has_unarmed {
            return None;
        }
        let is_unarmed =
            |watch: &Watch| watch.is_enabled && !watch.is_armed && watch.descriptor.is_some();
        let Some(number) = self.watches.iter().position(is_unarmed) else {
            self.has_unarmed = false;
            return None;
        };
        let watch = &mut self.watches[number];
        let descriptor = Fd(watch.descriptor.as_ref()?.as_raw_fd());
        watch.is_armed = true;
        let is_multishot = watch.mode == WatchMode::Always;
        let poll = opcode::PollAdd::new(descriptor, libc::POLLIN as u32).multi(is_multishot);
        let poll = poll.build();
        Some(poll.user_data(OperationId::Watch { number: number as u16 }.pack()))
    }

    /// Handles the completion of a poll; `has_more` tells whether it continues.
    pub(super) fn completed(&mut self, number: u16, result: i32, has_more: bool) {
        let Some(watch) = self.watches.get_mut(usize::from(number)) else { return };
        watch.is_signalled |= result >= 0;
        watch.is_armed = has_more;
        watch.is_enabled &= watch.mode == WatchMode::Always;
        self.has_unarmed |= watch.is_enabled && !has_more;
    }

    /// Returns whether a descriptor became readable since the last call.
    pub(super) fn take_signal(&mut self, number: WatchNumber) -> bool {
        let watch = self.watches.get_mut(usize::from(number.0));
        watch.is_some_and(|watch| std::mem::take(&mut watch.is_signalled))
    }
}
