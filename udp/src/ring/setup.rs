//! Creates an io_uring, and explains what is missing if that fails.

use crate::locked_memory::locked_memory_limit;
use io_uring::opcode;
use io_uring::register::Probe;
use io_uring::{IoUring, squeue};
use std::io;
use thiserror::Error;

/// Oldest Linux kernel that has all features of io_uring that the ring needs.
pub const KERNEL_MIN: &str = "6.1";

/// Maximum number of sockets of a ring.
pub const SOCKETS_MAX: usize = 1_024;

/// Reason for which a ring cannot be created.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The kernel has no io_uring.
    #[error(
        "this kernel has no io_uring; Linux {KERNEL_MIN} or newer is needed, built with CONFIG_IO_URING"
    )]
    Missing,
    /// A sysctl disables io_uring; contains its value.
    #[error(
        "io_uring is disabled by the sysctl kernel.io_uring_disabled = {0}; \
         set it to 0 (sysctl -w kernel.io_uring_disabled=0)"
    )]
    Disabled(String),
    /// The system call is not permitted, probably by a seccomp filter.
    #[error(
        "io_uring is refused (permission denied) although kernel.io_uring_disabled permits it, probably by \
         a seccomp filter, which container runtimes set by default; permit the io_uring_* system calls \
         (docker run --security-opt seccomp=unconfined, or a custom seccomp profile)"
    )]
    Forbidden,
    /// The limit on locked memory is too low; contains the limit.
    #[error(
        "the kernel refuses memory for io_uring; raise the limit on locked memory (now {0}): \
         set LimitMEMLOCK=infinity in the systemd unit, or run ulimit -l unlimited"
    )]
    Memory(String),
    /// The kernel is too old; contains the missing feature.
    #[error("this kernel's io_uring lacks {0}; Linux {KERNEL_MIN} or newer is needed")]
    MissingFeature(&'static str),
    /// There are more sockets than a ring supports; contains their number.
    #[error("{0} UDP addresses are configured, but a shard supports at most {max}; list fewer", max = SOCKETS_MAX)]
    TooManySockets(usize),
    /// Another error; contains the step that failed.
    #[error("io_uring failed to {0}: {1}")]
    Failed(&'static str, #[source] io::Error),
}

/// Number of entries of the submission queue. When it is full, the entries are submitted to make space.
pub(super) const SUBMISSIONS: u32 = 128;
/// Number of entries of the completion queue.
pub(super) const COMPLETIONS: u32 = 4096;

/// Bytes of memory of both queues.
pub(super) const RING_BYTES: usize = SUBMISSIONS as usize * (size_of::<squeue::Entry>() + 4)
    + COMPLETIONS as usize * size_of::<io_uring::cqueue::Entry>();

/// Creates an io_uring, which belongs to the calling thread, and checks that it has all needed operations.
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
        .map_err(|error| explain("report its operations", error))?;
    let needed = [
        (opcode::RecvMsgMulti::CODE, "recvmsg"),
        (opcode::Send::CODE, "send"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::AsyncCancel2::CODE, "cancellation"),
    ];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, missing)) => Err(SetupError::MissingFeature(missing)),
        None => Ok(ring),
    }
}

/// Converts an error of the kernel to its probable cause; `what` is the step that failed.
pub(super) fn explain(what: &'static str, error: io::Error) -> SetupError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => SetupError::Missing,
        Some(libc::EPERM | libc::EACCES) => {
            let path = "/proc/sys/kernel/io_uring_disabled";
            match std::fs::read_to_string(path).as_deref().map(str::trim) {
                Ok(value) if value != "0" => SetupError::Disabled(value.to_owned()),
                _ => SetupError::Forbidden,
            }
        }
        Some(libc::ENOMEM) => SetupError::Memory(locked_memory_limit()),
        // An old kernel does not know the setup flags.
        Some(libc::EINVAL) if what == "create a ring" => {
            SetupError::MissingFeature("SINGLE_ISSUER and DEFER_TASKRUN")
        }
        Some(libc::EINVAL) => {
            SetupError::MissingFeature("provided-buffer rings or multishot receive")
        }
        _ => SetupError::Failed(what, error),
    }
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
