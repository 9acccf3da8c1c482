//! Calls into the kernel: to submit, to run what it has deferred to this thread, and to wait a little.

#![expect(unsafe_code, reason = "operations handed to the kernel")]

use super::Ring;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, squeue};
use std::io;
use std::time::Duration;

/// Datagrams for which a patient turn does not wait any longer
const WORTH_A_TURN: usize = 32;

/// Calls into the kernel for one submission, before it is given up
const PUSHES_MAX: u32 = 1_000;

impl Ring {
    pub(super) fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // The kernel takes submissions each time it is entered, or says why not.
        for _ in 0..PUSHES_MAX {
            // SAFETY: what the entry points to (messages, buffers, slots) is owned by this ring and is
            // neither freed nor used otherwise before its completion.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.enter()?;
        }
        Err(io::Error::other("the kernel takes no submissions"))
    }

    /// One call into the kernel: submits what was pushed, and runs what it has deferred
    pub(super) fn enter(&mut self) -> io::Result<()> {
        let submission = self.ring.submission();
        let pushed = submission.len() as u32;
        let idle = pushed == 0 && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        if idle {
            return Ok(());
        }
        self.state.counts.turns += 1;
        let submitter = self.ring.submitter();
        // SAFETY: no argument is passed, and the number of entries is that of those pushed.
        let entered = unsafe {
            submitter.enter::<libc::sigset_t>(pushed, 0, EnterFlags::GETEVENTS.bits(), None)
        };
        self.entered(entered)
    }

    /// As [`Self::enter`], but returns only when a turn's worth of completions is there, or after `patience`
    ///
    /// The kernel counts a socket with datagrams as one until they are taken, so a wait that has begun mostly lasts
    /// its full time.
    pub(super) fn enter_and_wait(&mut self, patience: Duration) -> io::Result<()> {
        let sending = self.ring.submission().len();
        self.state.counts.turns += 1;
        let timeout = Timespec::from(patience);
        let arguments = SubmitArgs::new().timespec(&timeout);
        // Each reply completes at once and is not what is waited for.
        let wanted = (sending + WORTH_A_TURN) as u32;
        let mut flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        if self.ring.params().is_feature_no_iowait() {
            // Else operators would see the core wait for disks.
            flags |= EnterFlags::NO_IOWAIT;
        }
        let submitter = self.ring.submitter();
        // SAFETY: the argument is what EXT_ARG announces and outlives the call, as does the time it points to; the
        // number of entries is that of those pushed.
        let entered =
            unsafe { submitter.enter(sending as u32, wanted, flags.bits(), Some(&arguments)) };
        self.entered(entered)
    }

    fn entered(&mut self, result: io::Result<usize>) -> io::Result<()> {
        let Err(error) = result else { return Ok(()) };
        match error.raw_os_error() {
            // The time is up, a signal came, or completions must be reaped first: the next turn goes on.
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {
                self.reap();
                Ok(())
            }
            _ => Err(error),
        }
    }

    pub(super) fn reap(&mut self) {
        for completion in self.ring.completion() {
            self.state.complete(&completion);
        }
    }
}
