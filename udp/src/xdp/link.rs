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

/// The part of the kernel's `bpf_attr` that the commands for links read.
#[repr(C)]
#[derive(Debug)]
struct LinkAttributes {
    /// The program to attach; to replace that of a link: the link.
    program_or_link: u32,
    /// The index of the interface; to replace the program of a link: the new program.
    interface_or_program: u32,
    /// The type of the link; to replace its program: flags, of which none are used.
    kind: u32,
    /// Where the program runs.
    flags: u32,
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
        &LinkAttributes {
            program_or_link: program.as_raw_fd() as u32,
            interface_or_program: interface,
            kind: BPF_XDP,
            flags,
        },
    )?;
    // SAFETY: the kernel has just opened this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Replaces the program of a link: each frame is handled by one of both.
pub(super) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = LinkAttributes {
        program_or_link: link.as_raw_fd() as u32,
        interface_or_program: program.as_raw_fd() as u32,
        kind: 0,
        flags: 0,
    };
    bpf(BPF_LINK_UPDATE, &attributes).map(drop)
}

fn bpf(command: libc::c_int, attributes: &LinkAttributes) -> io::Result<libc::c_int> {
    let attributes: *const LinkAttributes = attributes;
    // SAFETY: the kernel only reads the attributes, whose size it is told, and takes those that follow as zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<LinkAttributes>()) };
    match libc::c_int::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
