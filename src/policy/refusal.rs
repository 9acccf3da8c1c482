//! Refusals: the replies to requests that the policy does not permit.

use super::request::Intervals;
use crate::stats::outcome::Outcome;

/// Reply to a request that policy refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReply {
    /// An error text, which clients show to their users. Clients send the request again soon.
    Error(&'static str),
    /// To an announce, an empty swarm and this interval in seconds, which keeps clients away for longer than an error.
    /// To a scrape, no reply over UDP, and an error over HTTP.
    Empty(u32),
    /// Over HTTP, status 410 and the demand never to retry (BEP 31); over UDP, the text as an error.
    Gone(&'static str),
    /// No reply; over HTTP, the text as an error.
    Silence(&'static str),
}

impl RefusalReply {
    /// Returns the text that an HTTP client gets, if it gets one.
    pub fn text(self) -> Option<&'static str> {
        match self {
            Self::Error(text) | Self::Gone(text) | Self::Silence(text) => Some(text),
            Self::Empty(_) => None,
        }
    }
}

/// A refusal of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The outcome that is counted.
    pub outcome: Outcome,
    /// The reply.
    pub reply: RefusalReply,
}

/// Reason why the hooks have not permitted a request.
#[derive(Clone, Copy, Debug)]
pub enum PolicyStop {
    /// A hook refused it.
    Refused(Refusal),
    /// The signature of a token must be checked, and this turn has no checks left. The request continues at the same
    /// hook when a check is permitted.
    Paused(PausedRequest),
}

/// Position at which the hooks continue with a request that waited for the check of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PausedRequest {
    /// Number of the hook that checks the token.
    pub(super) hook: usize,
    /// Generation of the policy that paused it.
    pub(super) generation: u64,
    /// Intervals as changed by the hooks before it.
    pub(super) intervals: Intervals,
}

impl From<Refusal> for PolicyStop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl PolicyStop {
    /// Returns the refusal. A paused request, which cannot wait for a check, is refused so that the client sends it
    /// again.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Paused(_) => {
                // Over UDP the client repeats the request by itself; after an error it would wait longer.
                let reply = RefusalReply::Silence("too many new tokens at once; try again");
                Refusal { outcome: Outcome::TokenNotChecked, reply }
            }
        }
    }
}
