//! The entry of a torrent: 64 bytes, one cache line, including the records of the few peers that most torrents have.
//!
//! ```text
//!  0..20  info hash
//! 20..24  completed downloads
//! 24      tick at which the last peer left
//! 25      placements of the IPv4 (low nibble) and the IPv6 peers
//! 26..28  if inline: seeders (low nibble) and leechers of IPv4, then of IPv6
//! 28..64  if inline: 8-byte IPv4 records from the front, one 20-byte IPv6 record at the end;
//!         else for each family: handle 4, seeders 4, leechers 4, partial seeds 4; then 1 byte that tells
//!         whether more peers of one address may have joined than a reply should have
//! ```

use crate::blocks::Class;
use crate::record::{RoleCounts, V4, V6, partial_seed};
use crate::types::{Family, InfoHash};

const COMPLETED: usize = 20;
const TICK: usize = 24;
const PLACEMENTS: usize = 25;
const INLINE_ROLES: usize = 26;
const BODY: usize = 28;
const ENTRY_BYTES: usize = 64;

/// Offset of the inline IPv6 record.
const BODY_V6: usize = ENTRY_BYTES - V6;

/// Bytes of the body for the placement and the counts of one family.
const PLACEMENT_BYTES: usize = 16;

/// Number of inline IPv4 records without an IPv6 record.
const INLINE_V4_MAX: usize = (ENTRY_BYTES - BODY) / V4;

/// Number of inline IPv4 records with an IPv6 record.
const INLINE_V4_BESIDE_V6: usize = (BODY_V6 - BODY) / V4;

const _: () = assert!(INLINE_V4_MAX == 4 && INLINE_V4_BESIDE_V6 == 2);
/// Offset of the byte that tells whether many peers share an address; not for inline entries.
const SHARES_ADDRESSES: usize = BODY + 2 * PLACEMENT_BYTES;

const _: () = assert!(SHARES_ADDRESSES < ENTRY_BYTES);

// Values of a placement nibble; 1 to `Class::COUNT` are blocks.
const NIBBLE_INLINE: u8 = 0;
const NIBBLE_NONE: u8 = 14;
const NIBBLE_LARGE: u8 = 15;
const _: () = assert!(Class::COUNT < NIBBLE_NONE as usize);

/// Where the records of one family of a torrent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// In the entry.
    Inline,
    /// Nowhere: the records of the other family are not inline, and this family has no peers.
    None,
    /// In a block.
    Block(Class, u32),
    /// In a large swarm.
    LargeSwarm(u32),
}

/// Returns whether a number of peers of each family fits in an entry.
pub(crate) fn fits_inline(v4: usize, v6: usize) -> bool {
    v6 == 0 && v4 <= INLINE_V4_MAX || v6 == 1 && v4 <= INLINE_V4_BESIDE_V6
}

/// The entry of a torrent.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Entry([u8; ENTRY_BYTES]);

impl Entry {
    pub(crate) fn new(info_hash: &InfoHash) -> Self {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..20].copy_from_slice(&info_hash.0);
        Self(bytes)
    }

    pub(crate) fn info_hash(&self) -> InfoHash {
        InfoHash(self.0.first_chunk().copied().unwrap_or_default())
    }

    pub(crate) fn has_info_hash(&self, info_hash: &InfoHash) -> bool {
        self.0[..20] == info_hash.0
    }

    pub(crate) fn completed(&self) -> u32 {
        self.read_u32(COMPLETED)
    }

    pub(crate) fn add_completed(&mut self) {
        self.set_completed(self.completed().saturating_add(1));
    }

    pub(crate) fn set_completed(&mut self, completed: u32) {
        self.write_u32(COMPLETED, completed);
    }

    pub(crate) fn tick(&self) -> u8 {
        self.0[TICK]
    }

    pub(crate) fn set_tick(&mut self, tick: u8) {
        self.0[TICK] = tick;
    }

    /// Returns the byte that a prefetch reads to bring the cache line in.
    pub(crate) fn placements_byte(&self) -> u8 {
        self.0[PLACEMENTS]
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.0[PLACEMENTS] == NIBBLE_INLINE
    }

    pub(crate) fn placement(&self, family: Family) -> Placement {
        let handle = || self.read_u32(placement_offset(family));
        match self.0[PLACEMENTS] >> nibble_shift(family) & 0xf {
            NIBBLE_INLINE => Placement::Inline,
            NIBBLE_LARGE => Placement::LargeSwarm(handle()),
            nibble => match Class::from_index(nibble - 1) {
                Some(class) => Placement::Block(class, handle()),
                None => Placement::None,
            },
        }
    }

    /// Sets where the records of a family are. If one family is inline, both must be.
    pub(crate) fn set_placement(&mut self, family: Family, placement: Placement) {
        let (nibble, handle) = match placement {
            Placement::Inline => (NIBBLE_INLINE, None),
            Placement::None => (NIBBLE_NONE, Some(0)),
            Placement::Block(class, handle) => (class.index() + 1, Some(handle)),
            Placement::LargeSwarm(handle) => (NIBBLE_LARGE, Some(handle)),
        };
        let shift = nibble_shift(family);
        self.0[PLACEMENTS] = self.0[PLACEMENTS] & !(0xf << shift) | nibble << shift;
        if let Some(handle) = handle {
            self.write_u32(placement_offset(family), handle);
        }
    }

    pub(crate) fn roles(&self, family: Family) -> RoleCounts {
        if self.is_inline() {
            let roles = self.0[INLINE_ROLES + family as usize];
            RoleCounts { seeders: u32::from(roles & 0xf), leechers: u32::from(roles >> 4) }
        } else {
            let at = placement_offset(family) + 4;
            RoleCounts { seeders: self.read_u32(at), leechers: self.read_u32(at + 4) }
        }
    }

    pub(crate) fn set_roles(&mut self, family: Family, roles: RoleCounts) {
        if self.is_inline() {
            debug_assert!(roles.len() <= INLINE_V4_MAX);
            let packed = roles.seeders as u8 | (roles.leechers as u8) << 4;
            self.0[INLINE_ROLES + family as usize] = packed;
        } else {
            let at = placement_offset(family) + 4;
            self.write_u32(at, roles.seeders);
            self.write_u32(at + 4, roles.leechers);
        }
    }

    pub(crate) fn peers(&self) -> usize {
        Family::ALL.iter().map(|family| self.roles(*family).len()).sum()
    }

    /// Returns the number of partial seeds of both families.
    pub(crate) fn partial_seeds(&self) -> u32 {
        if !self.is_inline() {
            return Family::ALL.map(|family| self.partial_seeds_of(family)).iter().sum();
        }
        let [v4, v6] = Family::ALL.map(|family| self.roles(family).len());
        let of_v4 = self.inline_records::<V4>().iter().take(v4).map(partial_seed).sum::<u32>();
        of_v4 + self.inline_records::<V6>().iter().take(v6).map(partial_seed).sum::<u32>()
    }

    /// Returns the number of partial seeds of a family whose records are not inline.
    pub(crate) fn partial_seeds_of(&self, family: Family) -> u32 {
        if self.is_inline() { 0 } else { self.read_u32(placement_offset(family) + 12) }
    }

    pub(crate) fn set_partial_seeds(&mut self, family: Family, partial_seeds: u32) {
        if !self.is_inline() {
            self.write_u32(placement_offset(family) + 12, partial_seeds);
        }
    }

    /// Returns whether the swarm may have more peers of one address than a reply should have.
    pub(crate) fn shares_addresses(&self) -> bool {
        !self.is_inline() && self.0[SHARES_ADDRESSES] != 0
    }

    /// Sets whether the swarm may have more peers of one address than a reply should have. Inline entries are too small
    /// for that.
    pub(crate) fn set_shares_addresses(&mut self, shares: bool) {
        self.0[SHARES_ADDRESSES] = u8::from(shares);
    }

    fn inline_records<const N: usize>(&self) -> &[[u8; N]] {
        self.0[self.inline_range::<N>()].as_chunks().0
    }

    /// Returns the space for inline records of a family, which depends on the records of the other family.
    pub(crate) fn inline_records_mut<const N: usize>(&mut self) -> &mut [[u8; N]] {
        let range = self.inline_range::<N>();
        self.0[range].as_chunks_mut().0
    }

    fn inline_range<const N: usize>(&self) -> std::ops::Range<usize> {
        let others = |family| self.roles(family).len();
        match N {
            V4 if others(Family::V6) == 0 => BODY..BODY + INLINE_V4_MAX * V4,
            V4 => BODY..BODY_V6,
            V6 if others(Family::V4) <= INLINE_V4_BESIDE_V6 => BODY_V6..ENTRY_BYTES,
            _ => ENTRY_BYTES..ENTRY_BYTES,
        }
    }

    fn read_u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..].first_chunk().copied().unwrap_or_default())
    }

    fn write_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
}

fn nibble_shift(family: Family) -> u32 {
    family as u32 * 4
}

fn placement_offset(family: Family) -> usize {
    BODY + family as usize * PLACEMENT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_cache_line() {
        assert_eq!((size_of::<Entry>(), align_of::<Entry>()), (64, 64));
    }

    #[test]
    fn inline_room_depends_on_the_other_family() {
        let mut entry = Entry::new(&InfoHash([7; 20]));
        assert_eq!(
            (entry.inline_records_mut::<V4>().len(), entry.inline_records_mut::<V6>().len()),
            (4, 1)
        );
        entry.set_roles(Family::V4, RoleCounts { seeders: 1, leechers: 2 });
        assert_eq!(
            (entry.inline_records_mut::<V4>().len(), entry.inline_records_mut::<V6>().len()),
            (4, 0)
        );
        entry.set_roles(Family::V4, RoleCounts { seeders: 1, leechers: 1 });
        entry.set_roles(Family::V6, RoleCounts { seeders: 0, leechers: 1 });
        assert_eq!(
            (entry.inline_records_mut::<V4>().len(), entry.inline_records_mut::<V6>().len()),
            (2, 1)
        );
        entry.inline_records_mut::<V6>()[0] = [9; V6];
        assert_eq!(entry.info_hash(), InfoHash([7; 20]));
    }

    #[test]
    fn placements_are_read_back() {
        let mut entry = Entry::new(&InfoHash([7; 20]));
        let class = Class::holding::<V6>(64).expect("64 records fit the largest block");
        entry.set_placement(Family::V6, Placement::Block(class, 77));
        entry.set_placement(Family::V4, Placement::LargeSwarm(5));
        assert_eq!(entry.placement(Family::V4), Placement::LargeSwarm(5));
        assert_eq!(entry.placement(Family::V6), Placement::Block(class, 77));
        entry.set_placement(Family::V4, Placement::None);
        assert_eq!(entry.placement(Family::V4), Placement::None);
        assert!(!entry.is_inline());
    }
}
