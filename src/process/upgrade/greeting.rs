//! What the processes of an upgrade know of each other.

use super::sockets::SocketList;
use crate::process::identity::Identity;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Version of the messages. Processes of different versions do not take over from each other.
pub(super) const PROTOCOL_VERSION: u32 = 2;

/// Environment variable that tells a process that its standard input is the channel to its predecessor.
pub(super) const ENVIRONMENT: &str = "TSUBAME_UPGRADE";

/// Time that each step of the other process may take.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// A link that keeps the XDP program attached to an interface.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct LinkEntry {
    /// Index of the interface.
    pub(super) interface: u32,
    /// Whether the program runs in the driver.
    pub(super) is_native: bool,
}

/// What the new process needs to know of the old one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Greeting {
    pub(super) version: u32,
    pub(super) process: u32,
    pub(super) identity: Identity,
    /// Start of the monotonic clock: see [`crate::clock::Clock::origin`].
    pub(super) clock_origin: Duration,
    pub(super) sockets: SocketList,
    /// Links of the XDP program, whose descriptors follow those of the sockets.
    pub(super) links: Vec<LinkEntry>,
}
