//! Subnets: peers whose addresses share a prefix with the requester can be preferred.

use crate::blocks::BLOCK_PEERS_MAX;
use crate::record::address;

/// Maximum number of prefix lengths of one address family.
pub const PREFIX_LENGTHS_MAX: usize = 4;

/// Maximum number of peers of a prefix that are considered: as many as a small swarm has.
pub(crate) const SUBNET_PEERS_MAX: usize = BLOCK_PEERS_MAX;

/// Subnets whose peers are selected first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubnetPreference {
    /// Prefix lengths for IPv4.
    pub v4: PrefixLengths,
    /// Prefix lengths for IPv6.
    pub v6: PrefixLengths,
    /// Percentage of the peers of a reply that are selected at random despite the preference. Clients that know only
    /// peers of their own subnet would lack the pieces that none of them has.
    pub at_random_percent: u8,
}

/// Prefix lengths in bits, the longest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixLengths([u8; PREFIX_LENGTHS_MAX]);

impl PrefixLengths {
    /// Returns `None` if there are more than [`PREFIX_LENGTHS_MAX`], or if a length is 0, above 128 or not below the
    /// one before it.
    pub fn new(lengths: &[u8]) -> Option<Self> {
        let mut all = [0; PREFIX_LENGTHS_MAX];
        all.get_mut(..lengths.len())?.copy_from_slice(lengths);
        let is_descending = lengths.is_sorted_by(|longer, shorter| longer > shorter);
        let fits = lengths.iter().all(|length| (1..=128).contains(length));
        (is_descending && fits).then_some(Self(all))
    }

    /// Returns whether there is no length.
    pub fn is_empty(self) -> bool {
        self.0[0] == 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        self.0.into_iter().take_while(|length| *length > 0)
    }
}

/// Leading bits of an address, from the most significant bit of the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(u128);

impl Prefix {
    pub(crate) fn of(address: &[u8]) -> Self {
        let mut bytes = [0; 16];
        bytes[..address.len()].copy_from_slice(address);
        Self(u128::from_be_bytes(bytes))
    }

    /// Returns the first `length` bits; `length` must be 1 to 128.
    pub(crate) fn cut(self, length: u8) -> Self {
        Self(self.0 & u128::MAX << (128 - u32::from(length)))
    }

    pub(crate) fn shares(self, other: Self, length: u8) -> bool {
        self.cut(length) == other.cut(length)
    }

    pub(crate) fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// Returns the address of a record as a prefix of full length.
pub(crate) fn prefix_of<const N: usize>(record: &[u8; N]) -> Prefix {
    Prefix::of(address(record))
}

/// Returns the FNV-1a hash of an endpoint or an address. It is not keyed: only for what an attacker may choose without
/// harm.
pub(crate) fn fnv1a(endpoint: &[u8]) -> u32 {
    let fnv1a = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    endpoint.iter().fold(0x811c_9dc5, fnv1a)
}

/// Positions of peers that share a prefix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubnetPeers {
    positions: [u32; SUBNET_PEERS_MAX],
    len: usize,
}

impl SubnetPeers {
    pub(crate) const EMPTY: Self = Self { positions: [0; SUBNET_PEERS_MAX], len: 0 };

    pub(crate) fn push(&mut self, position: u32) {
        if let Some(free) = self.positions.get_mut(self.len) {
            *free = position;
            self.len += 1;
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == SUBNET_PEERS_MAX
    }

    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_must_descend() {
        assert!(PrefixLengths::new(&[24, 16]).is_some());
        assert!(PrefixLengths::new(&[]).is_some_and(PrefixLengths::is_empty));
        for wrong in [&[16, 24][..], &[24, 24], &[129], &[24, 0], &[5, 4, 3, 2, 1]] {
            assert_eq!(PrefixLengths::new(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn prefixes_are_compared_to_the_bit() {
        let (a, b) = (Prefix::of(&[10, 1, 0x80, 1]), Prefix::of(&[10, 1, 0xc0, 1]));
        assert!(a.shares(b, 17) && !a.shares(b, 18) && !a.shares(b, 128));
        assert!(a.shares(a, 1) && a.shares(a, 128));
    }
}
