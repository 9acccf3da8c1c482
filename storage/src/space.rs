//! The room for peers in a reply, and how both families share it.

use crate::types::Family;

/// Where the peers go, in compact form (BEP 23, BEP 7); as many as there is room for
///
/// An empty slice asks for none of that family.
#[derive(Debug)]
pub struct PeerSpace<'a> {
    /// 6 bytes a peer
    pub v4: &'a mut [u8],
    /// 18 bytes a peer
    pub v6: &'a mut [u8],
    /// Peers of both families together, at most; neither gets less than a quarter if it has as many
    pub most: usize,
}

impl<'a> PeerSpace<'a> {
    /// Room for peers of one family
    pub fn of(family: Family, out: &'a mut [u8]) -> Self {
        match family {
            Family::V4 => Self { v4: out, v6: &mut [], most: usize::MAX },
            Family::V6 => Self { v4: &mut [], v6: out, most: usize::MAX },
        }
    }
}

/// Leaves room for so many peers at most
pub(crate) fn cut(room: &mut &mut [u8], family: Family, peers: usize) {
    let len = peers.saturating_mul(family.compact_len()).min(room.len());
    *room = &mut std::mem::take(room)[..len];
}

/// How many of `most` peers are IPv4, with so many of either family to pick from
///
/// As it is in the swarm, so that every peer has the same chance; but a family that is rare gets a quarter, since a
/// client that has only that one can use no other.
pub(crate) fn v4_share(most: usize, of_v4: usize, of_v6: usize) -> usize {
    let all = of_v4 + of_v6;
    if all <= most {
        return of_v4;
    }
    let (least_v4, least_v6) = (of_v4.min(most / 4), of_v6.min(most / 4));
    let exact = (most as u64 * of_v4 as u64 / all as u64) as usize;
    exact.clamp(least_v4, most - least_v6)
}
