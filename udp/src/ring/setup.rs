//! Creates the kernel's side of a ring, and says what is missing if it cannot.

use io_uring::opcode;
use io_uring::register::Probe;
use io_uring::{IoUring, squeue};
use std::io;
use thiserror::Error;

/// The oldest kernel with all that the ring needs
pub const KERNEL_OLDEST: &str = "6.1";

/// Why there is no ring
#[derive(Debug, Error)]
pub enum SetupError {
    /// The kernel has no io_uring
    #[error(
        "this kernel has no io_uring; Linux {KERNEL_OLDEST} or newer is needed, built with CONFIG_IO_URING"
    )]
    Missing,
    /// A sysctl forbids it
    #[error(
        "io_uring is switched off by the sysctl kernel.io_uring_disabled = {0}; \
         set it to 0 (sysctl -w kernel.io_uring_disabled=0)"
    )]
    SwitchedOff(String),
    /// Something else forbids it
    #[error(
        "io_uring is refused (permission denied) though kernel.io_uring_disabled permits it: most likely \
         by a seccomp filter, as container runtimes set by default; permit the io_uring_* system calls \
         (docker run --security-opt seccomp=unconfined, or a profile of your own)"
    )]
    Forbidden,
    /// Too little memory may be locked
    #[error(
        "the ring's memory is refused; raise the limit on locked memory (now {0}), \
         with LimitMEMLOCK=infinity in the unit or ulimit -l unlimited"
    )]
    Memory(String),
    /// The kernel is too old
    #[error("this kernel's io_uring lacks {0}; Linux {KERNEL_OLDEST} or newer is needed")]
    Lacking(&'static str),
    /// More addresses than a ring serves
    #[error("{0} addresses are to be served and a shard has room for {max}; list fewer", max = super::SOCKETS_MAX)]
    Sockets(usize),
    /// Anything else
    #[error("io_uring failed to {0}: {1}")]
    Failed(&'static str, #[source] io::Error),
}

/// Entries for operations not yet submitted: what is more is submitted on the way
pub(super) const SUBMISSIONS: u32 = 128;
/// Entries for completions not yet looked at
pub(super) const COMPLETIONS: u32 = 4096;

/// Memory of both queues
pub(super) const RING_BYTES: usize = SUBMISSIONS as usize * (size_of::<squeue::Entry>() + 4)
    + COMPLETIONS as usize * size_of::<io_uring::cqueue::Entry>();

/// Creates the ring; it belongs to the calling thread from then on
pub(super) fn create() -> Result<IoUring, SetupError> {
    let ring = IoUring::<squeue::Entry>::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSIONS)
        .map_err(|error| explain("create a ring", error))?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| explain("be asked for its operations", error))?;
    let needed = [
        (opcode::RecvMsgMulti::CODE, "recvmsg"),
        (opcode::Send::CODE, "send"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::AsyncCancel2::CODE, "cancellation"),
    ];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, missing)) => Err(SetupError::Lacking(missing)),
        None => Ok(ring),
    }
}

/// Turns an error of the kernel into its likely cause
pub(super) fn explain(what: &'static str, error: io::Error) -> SetupError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => SetupError::Missing,
        Some(libc::EPERM | libc::EACCES) => {
            let path = "/proc/sys/kernel/io_uring_disabled";
            match std::fs::read_to_string(path).as_deref().map(str::trim) {
                Ok(value) if value != "0" => SetupError::SwitchedOff(value.to_owned()),
                _ => SetupError::Forbidden,
            }
        }
        Some(libc::ENOMEM) => SetupError::Memory(memlock()),
        // Flags of setup that an old kernel does not know.
        Some(libc::EINVAL) if what == "create a ring" => {
            SetupError::Lacking("SINGLE_ISSUER and DEFER_TASKRUN")
        }
        Some(libc::EINVAL) => SetupError::Lacking("provided-buffer rings or multishot receive"),
        _ => SetupError::Failed(what, error),
    }
}

fn memlock() -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    limit.current.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_cause_and_the_cure() {
        for (errno, words) in [
            (libc::ENOSYS, ["no io_uring", "6.1"]),
            (libc::ENOMEM, ["locked memory", "LimitMEMLOCK"]),
            (libc::EINVAL, ["DEFER_TASKRUN", "6.1"]),
        ] {
            let text = explain("create a ring", io::Error::from_raw_os_error(errno)).to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
        let refused = explain("create a ring", io::Error::from_raw_os_error(libc::EPERM));
        assert!(refused.to_string().contains("io_uring_disabled"), "{refused}");
    }
}
