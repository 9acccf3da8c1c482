//! Errors of XDP, with what to do about them.

use super::{QueueProblem, XdpMode};
use std::io;
use thiserror::Error;

/// Reason for which the XDP program cannot be loaded, attached or changed.
#[derive(Debug, Error)]
pub enum XdpError {
    /// The process may not use BPF.
    #[error(
        "no permission to load an XDP program; grant CAP_BPF and CAP_NET_ADMIN (docs/xdp.md has a drop-in for the unit)"
    )]
    Forbidden,
    /// The kernel refuses the program; contains its message.
    #[error("this kernel refuses the XDP program ({0}); report it with the version of the kernel")]
    Refused(String),
    /// Another XDP program is attached to the interface.
    #[error(
        "another XDP program is attached to {0} (ip link show dev {0}), such as that of another tracker; stop what \
         attached it, or detach it (ip link set dev {0} xdp off; in generic mode xdpgeneric off), or remove the \
         interface from udp.xdp.interfaces"
    )]
    Attached(String),
    /// The interface cannot run XDP programs in a mode.
    #[error("{interface} cannot run XDP programs in {mode} mode ({error}){cure}")]
    Unsupported {
        /// Name of the interface.
        interface: String,
        /// The mode.
        mode: XdpMode,
        /// Error of the kernel.
        error: io::Error,
        /// What to do, after a semicolon.
        cure: &'static str,
    },
    /// There are more connection id keys than the program can check.
    #[error("{0} connection id keys are more than XDP can check (8); remove the oldest")]
    TooManyKeys(usize),
    /// An interface has more receive queues than the program distinguishes; contains its name and their number.
    #[error(
        "the {1} receive queues of {0} are more than can have AF_XDP sockets (128); reduce them (ethtool -L {0})"
    )]
    TooManyQueues(String, usize),
    /// The kernel has no AF_XDP.
    #[error(
        "this kernel has no AF_XDP, which the XDP program needs; use one with CONFIG_XDP_SOCKETS"
    )]
    NoSockets,
    /// A receive queue cannot have an AF_XDP socket.
    #[error("receive queue {queue} of {interface} cannot have an AF_XDP socket: {problem}")]
    Queue {
        /// Name of the interface.
        interface: String,
        /// Number of the queue.
        queue: u32,
        /// The reason.
        problem: QueueProblem,
    },
    /// A map could not be changed.
    #[error("cannot change the {map} of the XDP program: {error}")]
    Map {
        /// What the map contains.
        map: &'static str,
        /// Text of the error.
        error: String,
    },
}
