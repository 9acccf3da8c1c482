//! The result of a request over UDP.

use crate::stats::outcome::Outcome;

/// Outcome of a datagram, and the length of the reply in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpReply {
    /// Outcome of the request.
    pub outcome: Outcome,
    /// Bytes of the reply; 0 if there is none.
    pub len: usize,
}

impl UdpReply {
    /// Returns an outcome without a reply.
    pub const fn none(outcome: Outcome) -> Self {
        Self { outcome, len: 0 }
    }
}
