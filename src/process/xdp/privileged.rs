//! Attaching the program, and the capabilities for it.

use crate::process::deadline::Deadline;
use rustix::thread::{CapabilitySet, CapabilitySets};
use tsubame_udp::xdp::{AttachedInterface, Filter, XdpError, XdpMode};

/// Capabilities that the program needs.
const FOR_PROGRAM: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::BPF);

/// Capabilities that XDP needs: those for the program, and that for AF_XDP sockets.
pub(crate) const CAPABILITIES: CapabilitySet = FOR_PROGRAM.union(CapabilitySet::NET_RAW);

/// Capabilities that are kept: with CAP_IPC_LOCK, the memory of sockets may exceed the limit on locked memory.
pub(crate) const KEPT_CAPABILITIES: CapabilitySet = CAPABILITIES.union(CapabilitySet::IPC_LOCK);

/// Attaches the program to an interface. Until `deadline` it waits for the end of another program: the kernel detaches
/// that of a process a moment after its end.
pub(super) fn attach(
    filter: &mut Filter,
    interface: (&str, u32),
    counters_and_mac: (u16, [u8; 6]),
    mode: XdpMode,
    deadline: Deadline,
) -> Result<AttachedInterface, XdpError> {
    loop {
        match filter.attach(interface, counters_and_mac, mode) {
            Err(XdpError::Attached(_)) if !deadline.has_passed() => deadline.pause(),
            result => return result,
        }
    }
}

/// Returns whether this thread may have the capabilities that the program needs. To be checked before anything else,
/// because the unit kills processes that use BPF unless its drop-in permits that.
pub(super) fn has_capabilities() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|now| now.permitted.contains(FOR_PROGRAM))
}

/// Keeps the capabilities of this thread when the process changes its user.
pub(crate) fn keep_capabilities() {
    // Without it, only a process that changes its user loses XDP.
    let _ = rustix::thread::set_keep_capabilities(true);
}

/// The capabilities of this thread: permitted, and effective only while they are used.
pub(super) struct Capabilities(Option<CapabilitySets>);

impl Capabilities {
    /// Makes the capabilities effective that XDP needs and this thread may have.
    pub(super) fn raise() -> Self {
        let now = rustix::thread::capabilities(None).ok();
        if let Some(now) = now {
            let effective = now.permitted & KEPT_CAPABILITIES;
            let _ = rustix::thread::set_capabilities(None, CapabilitySets { effective, ..now });
        }
        Self(now)
    }

    /// Gives up all capabilities but those that XDP needs, which stay permitted.
    pub(super) fn lower(&mut self) {
        if let Some(now) = self.0.take() {
            let sets = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: now.permitted & KEPT_CAPABILITIES,
                inheritable: CapabilitySet::empty(),
            };
            let _ = rustix::thread::set_capabilities(None, sets);
        }
    }
}
