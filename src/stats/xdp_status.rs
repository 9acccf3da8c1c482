//! What the XDP program does on each interface, written by its thread and read by the control plane.

use super::shared_stats::SharedStats;
use std::sync::{Mutex, PoisonError};
use tsubame_udp::xdp::{FrameVerdict, XdpMode};

/// State of XDP.
#[derive(Debug, Default)]
pub struct XdpStatus {
    /// Requests that the program answered or dropped.
    pub stats: SharedStats,
    interfaces: Mutex<Vec<XdpInterfaceStatus>>,
}

/// State of XDP on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XdpInterfaceStatus {
    /// Name of the interface.
    pub name: String,
    /// Where the program runs; `None` while it is not attached.
    pub mode: Option<XdpMode>,
    /// Number of receive queues with AF_XDP sockets.
    pub sockets: usize,
    /// Whether the driver uses the buffers of all of them (zero copy).
    pub is_zero_copy: bool,
    /// Frames by receive queue and verdict, in the order of [`FrameVerdict::ALL`].
    pub frames: Vec<[u64; FrameVerdict::ALL.len()]>,
}

impl XdpStatus {
    /// Returns the state of each configured interface.
    pub fn interfaces(&self) -> Vec<XdpInterfaceStatus> {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the state of all interfaces.
    pub fn set_interfaces(&self, interfaces: Vec<XdpInterfaceStatus>) {
        *self.interfaces.lock().unwrap_or_else(PoisonError::into_inner) = interfaces;
    }
}
