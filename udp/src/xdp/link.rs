//! Links: each keeps an XDP program attached to an interface while one of its descriptors is open, in whatever process.

#![expect(
    unsafe_code,
    reason = "the system call bpf, whose links aya does not let another process take over"
)]

use super::XdpMode;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Command of the system call that creates a link.
const BPF_LINK_CREATE: libc::c_int = 28;

/// Command of the system call that replaces the program of a link.
const BPF_LINK_UPDATE: libc::c_int = 29;

/// Type of links of XDP programs.
const BPF_XDP: u32 = 37;

/// Flag of a program that runs in the network stack (`XDP_FLAGS_SKB_MODE`).
const GENERIC: u32 = 1 << 1;

/// Flag of a program that runs in the driver (`XDP_FLAGS_DRV_MODE`).
const NATIVE: u32 = 1 << 2;

/// The part of the kernel's `bpf_attr` that `BPF_LINK_CREATE` needs, with the names of the kernel.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The part of `bpf_attr` that `BPF_LINK_UPDATE` needs.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    /// Only read with a flag that is not set.
    old_prog_fd: u32,
}

/// Attaches a program to the interface with an index.
pub(super) fn create(
    program: BorrowedFd<'_>,
    interface: u32,
    mode: XdpMode,
) -> io::Result<OwnedFd> {
    let flags = match mode {
        XdpMode::Generic => GENERIC,
        XdpMode::Native => NATIVE,
    };
    let link = bpf(
        BPF_LINK_CREATE,
        &LinkCreate {
            prog_fd: program.as_raw_fd() as u32,
            target_ifindex: interface,
            attach_type: BPF_XDP,
            flags,
        },
    )?;
    // SAFETY: the kernel has just opened this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Replaces the program of a link: each frame is handled by one of both.
pub(super) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &attributes).map(drop)
}

/// Calls `bpf`; `attributes` are those that the kernel reads for the command.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    let attributes: *const T = attributes;
    // SAFETY: the kernel only reads the attributes, up to the size that it is given; fields of `bpf_attr` after those
    // count as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
