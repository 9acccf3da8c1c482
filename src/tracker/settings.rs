//! Settings of announces.

use crate::policy::Intervals;
use ipnet::IpNet;

/// Settings of announce replies, and the limits of what an announce may request.
#[derive(Clone, Debug)]
pub struct AnnounceSettings {
    /// Intervals of announce replies; over UDP, the minimum interval is not sent.
    pub intervals: Intervals,
    /// Number of peers for a client that does not say how many it wants.
    pub numwant_default: u32,
    /// Maximum number of peers that a client gets.
    pub numwant_max: u32,
    /// Maximum bytes of an announce reply over UDP.
    pub reply_len_max: usize,
    /// Networks whose clients may announce for another address than their own.
    pub trust_client_ip: Vec<IpNet>,
    /// Whether a wrong connection id is answered with an error instead of silence.
    pub explain_wrong_connection_id: bool,
}
