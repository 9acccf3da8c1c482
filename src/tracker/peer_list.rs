//! The result of an announce over HTTP, before it is encoded.

use crate::stats::outcome::Outcome;
use tsubame_storage::SwarmCounts;

/// Counts of a swarm, and peers of both families.
///
/// The shard that received the request allocates it, and the shard that owns the torrent fills it.
#[derive(Debug)]
pub struct PeerList {
    /// Id of the request that waits for it.
    pub request_id: u32,
    /// Outcome of the announce.
    pub outcome: Outcome,
    /// Counts of the swarm.
    pub counts: SwarmCounts,
    /// IPv4 peers, 6 bytes each.
    pub v4: Vec<u8>,
    /// IPv6 peers, 18 bytes each.
    pub v6: Vec<u8>,
}

impl Default for PeerList {
    fn default() -> Self {
        Self {
            request_id: 0,
            outcome: Outcome::NotStored,
            counts: SwarmCounts::default(),
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }
}
