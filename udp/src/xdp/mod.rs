//! XDP: answers connect requests, drops malformed and forged requests, and receives the others, before the network
//! stack.
//!
//! * [`Filter`] loads the program `udp/bpf/filter.c`, attaches it to interfaces, and changes its settings while it runs
//! * [`FrameSocket`] is an AF_XDP socket, to which the program redirects the requests of a receive queue
//! * [`frame`] reads and writes the same frames in Rust
//!
//! Every frame that the program does not answer, drop or redirect takes the normal way to the UDP sockets. Connection
//! ids are those of [`crate::connection_id`], so all ways accept each other's.

mod error;
mod filter;
pub mod frame;
mod layout;
mod link;
mod socket;
#[cfg(test)]
mod tests;

pub use error::XdpError;
pub use filter::{AttachedInterface, Filter, FilterCounts, NETWORKS_MAX, NetworkRule};
pub use layout::{FilterOutcome, FilterSettings, FrameVerdict, KEYS_MAX, QUEUES};
pub use socket::{FrameCounts, FrameSocket, QueueProblem, ReceivedFrame};

use std::fmt;

/// Where the XDP program of an interface runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel has allocated anything for a frame.
    Native,
    /// In the network stack, at its beginning. Every driver supports it; it is slower.
    Generic,
}

impl XdpMode {
    /// Returns the name in the config and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
