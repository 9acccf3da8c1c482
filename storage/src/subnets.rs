//! Which peers are neighbours: those whose addresses begin alike.

use crate::room::BLOCK_PEERS_MAX;

/// Prefixes of one address family, at most
pub const LENGTHS_MAX: usize = 4;

/// Peers of one prefix that are looked at, at most: all of a small swarm
pub(crate) const GROUP_MAX: usize = BLOCK_PEERS_MAX;

/// Whose peers are handed out first
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subnets {
    /// Prefixes that make IPv4 addresses neighbours
    pub v4: Lengths,
    /// Prefixes that make IPv6 addresses neighbours
    pub v6: Lengths,
    /// Percent of a reply that come from anywhere all the same: neighbours who know only each other are an island,
    /// which lacks what none of them has
    pub at_random_percent: u8,
}

/// Lengths of prefixes in bits: the longest, which makes the nearest neighbours, first
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths([u8; LENGTHS_MAX]);

impl Lengths {
    /// Nothing if there are too many, or one is 0, more than 128 or no shorter than the one before it
    pub fn new(lengths: &[u8]) -> Option<Self> {
        let mut all = [0; LENGTHS_MAX];
        all.get_mut(..lengths.len())?.copy_from_slice(lengths);
        let falls = lengths.is_sorted_by(|longer, shorter| longer > shorter);
        let fits = lengths.iter().all(|length| (1..=128).contains(length));
        (falls && fits).then_some(Self(all))
    }

    /// Whether there is none
    pub fn is_empty(self) -> bool {
        self.0[0] == 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        self.0.into_iter().take_while(|length| *length > 0)
    }
}

/// The first bits of an address, from the top of the word
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(u128);

impl Prefix {
    pub(crate) fn of(address: &[u8]) -> Self {
        let mut bytes = [0; 16];
        bytes[..address.len()].copy_from_slice(address);
        Self(u128::from_be_bytes(bytes))
    }

    /// The same with so many bits, at least one
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

/// Spreads endpoints over a few places; not for what an attacker must not choose
pub(crate) fn mix(endpoint: &[u8]) -> u32 {
    let mix = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    endpoint.iter().fold(0x811c_9dc5, mix)
}

/// Positions of neighbours in their part
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    positions: [u32; GROUP_MAX],
    len: usize,
}

impl Group {
    pub(crate) const EMPTY: Self = Self { positions: [0; GROUP_MAX], len: 0 };

    pub(crate) fn push(&mut self, position: u32) {
        if let Some(place) = self.positions.get_mut(self.len) {
            *place = position;
            self.len += 1;
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == GROUP_MAX
    }

    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_fall() {
        assert!(Lengths::new(&[24, 16]).is_some());
        assert!(Lengths::new(&[]).is_some_and(Lengths::is_empty));
        for wrong in [&[16, 24][..], &[24, 24], &[129], &[24, 0], &[5, 4, 3, 2, 1]] {
            assert_eq!(Lengths::new(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn prefixes_are_compared_to_the_bit() {
        let (a, b) = (Prefix::of(&[10, 1, 0x80, 1]), Prefix::of(&[10, 1, 0xc0, 1]));
        assert!(a.shares(b, 17) && !a.shares(b, 18) && !a.shares(b, 128));
        assert!(a.shares(a, 1) && a.shares(a, 128));
    }
}
