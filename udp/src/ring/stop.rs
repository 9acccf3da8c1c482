//! Stopping a ring: `stop_receiving` lets the caller answer what was received; `stop` discards it and closes the
//! sockets.

use super::Ring;
use super::operation_id::OperationId;
use io_uring::opcode;
use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use std::io;
use std::time::Duration;

impl Ring {
    /// Cancels all receives. Datagrams that were received before can still be taken with [`Self::take`] after a turn,
    /// until [`Self::has_drained`] returns true.
    ///
    /// # Errors
    ///
    /// If the system call fails.
    pub fn stop_receiving(&mut self) -> io::Result<()> {
        self.state.stopping = true;
        self.cancel()
    }

    /// Returns whether, after [`Self::stop_receiving`], all receives have ended, all datagrams were taken, and no reply
    /// is being sent.
    pub fn has_drained(&self) -> bool {
        self.state.arrived.is_empty() && self.state.has_no_transfers()
    }

    /// Cancels all receives, waits up to `timeout` until all receives and replies have ended, and closes the sockets.
    /// Received datagrams that were not taken are discarded.
    ///
    /// Returns whether they have ended. The sockets are closed here, because the kernel takes tens of
    /// milliseconds to destroy a ring, and the ports would stay in use until then.
    pub fn stop(&mut self, timeout: Duration) -> bool {
        self.state.stopping = true;
        let mut ended = self.cancel().is_ok();
        let slice = Duration::from_millis(10);
        for _ in 0..timeout.as_millis().div_ceil(slice.as_millis()).max(1) {
            while let Some(completed) = self.state.arrived.pop_front() {
                self.state.provide(completed.buffer);
            }
            if self.state.has_no_transfers() {
                break;
            }
            let timeout = Timespec::from(slice);
            let arguments = SubmitArgs::new().timespec(&timeout);
            // A timeout is reported as an error here; the loop then checks again.
            let _ = self.ring.submitter().submit_with_args(1, &arguments);
            self.reap();
        }
        ended &= self.state.has_no_transfers();
        let _ = self.ring.submitter().unregister_files();
        self.state.sockets.clear();
        ended
    }

    /// Submits the cancellation of all receives.
    fn cancel(&mut self) -> io::Result<()> {
        for socket in 0..self.state.armed.len() as u16 {
            if self.state.armed[usize::from(socket)] {
                let receive = CancelBuilder::user_data(OperationId::Receive { socket }.pack());
                let entry = opcode::AsyncCancel2::new(receive).build();
                self.push(entry.user_data(OperationId::Cancel.pack()))?;
            }
        }
        self.enter()
    }
}
