//! Space for the peers of a reply, and how both address families share it.

use crate::types::Family;

/// Slices that an announce writes peers to in compact form (BEP 23, BEP 7), as many as fit.
///
/// An empty slice requests no peers of that family.
#[derive(Debug)]
pub struct PeerOutput<'a> {
    /// Space for IPv4 peers, 6 bytes each.
    pub v4: &'a mut [u8],
    /// Space for IPv6 peers, 18 bytes each.
    pub v6: &'a mut [u8],
    /// Maximum number of peers of both families together. Each family gets at least a quarter of them, or all
    /// of its peers if the swarm has fewer.
    pub peers_max: usize,
}

impl<'a> PeerOutput<'a> {
    /// Creates an output for peers of one family.
    pub fn for_family(family: Family, out: &'a mut [u8]) -> Self {
        match family {
            Family::V4 => Self { v4: out, v6: &mut [], peers_max: usize::MAX },
            Family::V6 => Self { v4: &mut [], v6: out, peers_max: usize::MAX },
        }
    }
}

/// Shortens a slice to the space of at most `peers` peers.
pub(crate) fn cut(out: &mut &mut [u8], family: Family, peers: usize) {
    let len = peers.saturating_mul(family.compact_len()).min(out.len());
    *out = &mut std::mem::take(out)[..len];
}

/// Returns how many of `peers_max` peers are IPv4, if a swarm has `v4` and `v6` peers to select from.
///
/// The reply has the same proportion of IPv4 peers as the swarm, so that every peer is selected with the same
/// probability. But a rare family gets a quarter: a client that has only that family can use no other peers.
pub(crate) fn v4_share(peers_max: usize, v4: usize, v6: usize) -> usize {
    let all = v4 + v6;
    if all <= peers_max {
        return v4;
    }
    let (least_v4, least_v6) = (v4.min(peers_max / 4), v6.min(peers_max / 4));
    let exact = (peers_max as u64 * v4 as u64 / all as u64) as usize;
    exact.clamp(least_v4, peers_max - least_v6)
}
