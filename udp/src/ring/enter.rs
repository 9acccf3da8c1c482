//! Enters the kernel: to submit operations, to run the work that it deferred to this thread, and to wait for a short
//! time.

#![expect(unsafe_code, reason = "operations handed to the kernel")]

use super::Ring;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, squeue};
use std::io;
use std::time::Duration;

/// Number of completions at which a turn with a timeout stops waiting.
const COMPLETIONS_WANTED: usize = 32;

/// Maximum number of system calls to submit one operation.
const PUSHES_MAX: u32 = 1_000;

impl Ring {
    /// Queues an operation; submits the queued ones if the queue is full.
    pub(super) fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // The kernel accepts submissions each time it is entered, or returns an error.
        for _ in 0..PUSHES_MAX {
            // SAFETY: the memory that the entry points to (messages, buffers, slots) is owned by this ring, and is
            // neither freed nor used otherwise before the completion.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.enter()?;
        }
        Err(io::Error::other("the kernel accepts no submissions"))
    }

    /// Enters the kernel once, to submit queued operations and to run deferred work; does nothing if there is none.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        let submission = self.ring.submission();
        let pushed = submission.len() as u32;
        let idle = pushed == 0 && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        if idle {
            return Ok(());
        }
        self.state.counts.enters += 1;
        let submitter = self.ring.submitter();
        // SAFETY: no argument is passed, and the number of entries is the number of queued ones.
        let entered = unsafe {
            submitter.enter::<libc::sigset_t>(pushed, 0, EnterFlags::GETEVENTS.bits(), None)
        };
        self.entered(entered)
    }

    /// Does what [`Self::enter`] does, and waits until [`COMPLETIONS_WANTED`] completions besides those of the replies
    /// are there, or for `time`.
    ///
    /// The kernel counts a socket with datagrams as one completion until they are read, so a wait mostly lasts its full
    /// time.
    pub(super) fn enter_and_gather(&mut self, time: Duration) -> io::Result<()> {
        self.enter_with_timeout(COMPLETIONS_WANTED, SubmitArgs::new().timespec(&time.into()))
    }

    /// Does what [`Self::enter`] does, and waits for a completion besides those of the replies, at most for `timeout`
    /// and at least for `gather` or until there are [`COMPLETIONS_WANTED`].
    pub(super) fn enter_and_wait(&mut self, gather: Duration, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::from(timeout);
        let arguments = SubmitArgs::new().timespec(&timeout);
        if gather.is_zero() {
            return self.enter_with_timeout(1, arguments);
        }
        if self.ring.params().is_feature_min_timeout() {
            let gather = u32::try_from(gather.as_micros()).unwrap_or(u32::MAX);
            return self.enter_with_timeout(COMPLETIONS_WANTED, arguments.min_wait_usec(gather));
        }
        self.enter_with_timeout(1, arguments)?;
        // After a timeout there is nothing that more could be gathered for.
        if self.ring.completion().is_empty() { Ok(()) } else { self.enter_and_gather(gather) }
    }

    /// Submits the queued operations, and waits for their completions and `wanted` others.
    ///
    /// A reply completes when it is submitted, as its send does not wait.
    fn enter_with_timeout(
        &mut self,
        wanted: usize,
        arguments: SubmitArgs<'_, '_>,
    ) -> io::Result<()> {
        let sending = self.ring.submission().len();
        self.state.counts.enters += 1;
        let wanted = (sending + wanted) as u32;
        let mut flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        if self.ring.params().is_feature_no_iowait() {
            // Otherwise the wait would be accounted as waiting for disks.
            flags |= EnterFlags::NO_IOWAIT;
        }
        let submitter = self.ring.submitter();
        // SAFETY: the argument has the type that EXT_ARG requires; it and the time that it points to outlive the call.
        // The number of entries is the number of queued ones.
        let entered =
            unsafe { submitter.enter(sending as u32, wanted, flags.bits(), Some(&arguments)) };
        self.entered(entered)
    }

    /// Handles the result of a system call: a timeout or an interruption is not an error.
    fn entered(&mut self, result: io::Result<usize>) -> io::Result<()> {
        let Err(error) = result else { return Ok(()) };
        match error.raw_os_error() {
            // The timeout has passed, a signal arrived, or completions must be handled first: the next turn continues.
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {
                self.reap();
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Handles all completions that are there.
    pub(super) fn reap(&mut self) {
        for completion in self.ring.completion() {
            self.state.complete(&completion);
        }
    }
}
