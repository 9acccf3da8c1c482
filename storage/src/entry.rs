//! A torrent's entry: 64 bytes, one cache line, with room for the few peers most torrents have.
//!
//! ```text
//!  0..20  info hash
//! 20..24  completed downloads
//! 24      tick of when the last peer left
//! 25      shape: the homes of the IPv4 (low nibble) and IPv6 peers
//! 26..28  inline: seeders (low nibble) and leechers of IPv4, then of IPv6
//! 28..64  body. Inline: 8-byte IPv4 records from the front, one 20-byte IPv6 record at the back.
//!         Else, for each family: handle 4, seeders 4, leechers 4, partial seeds among them 4; then whether more peers
//!         of one address have joined than a reply has 1
//! ```

use crate::blocks::Class;
use crate::part::{Roles, V4, V6, partial_seed};
use crate::types::{Family, InfoHash};

const COMPLETED: usize = 20;
const TICK: usize = 24;
const SHAPE: usize = 25;
const INLINE_ROLES: usize = 26;
const BODY: usize = 28;
const ENTRY_BYTES: usize = 64;

/// Where the body's IPv6 record begins
const BODY_V6: usize = ENTRY_BYTES - V6;

/// Bytes of the body that name one family's home and count its peers
const HOME_BYTES: usize = 16;

/// IPv4 records that fit alone, and beside one IPv6 record
const INLINE_V4_MAX: usize = (ENTRY_BYTES - BODY) / V4;
const INLINE_V4_BESIDE_V6: usize = (BODY_V6 - BODY) / V4;

const _: () = assert!(INLINE_V4_MAX == 4 && INLINE_V4_BESIDE_V6 == 2);
/// Where it says, unless inline, that some peers share an address
const SHARES_ADDRESSES: usize = BODY + 2 * HOME_BYTES;

const _: () = assert!(SHARES_ADDRESSES < ENTRY_BYTES);

/// Shape nibbles beside `1..=Class::COUNT`, a block
const NIBBLE_INLINE: u8 = 0;
const NIBBLE_NONE: u8 = 14;
const NIBBLE_MANY: u8 = 15;
const _: () = assert!(Class::COUNT < NIBBLE_NONE as usize);

/// Where one family's peers of a torrent are kept
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In the entry
    Inline,
    /// Nowhere: the other family needed the room, and this one has no peers
    None,
    /// In a block
    Block(Class, u32),
    /// Among the large swarms
    Many(u32),
}

/// Whether so many peers fit into an entry
pub(crate) fn fits_inline(v4: usize, v6: usize) -> bool {
    v6 == 0 && v4 <= INLINE_V4_MAX || v6 == 1 && v4 <= INLINE_V4_BESIDE_V6
}

/// One torrent
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

    pub(crate) fn is(&self, info_hash: &InfoHash) -> bool {
        self.0[..20] == info_hash.0
    }

    pub(crate) fn completed(&self) -> u32 {
        self.word(COMPLETED)
    }

    pub(crate) fn add_completed(&mut self) {
        self.set_word(COMPLETED, self.completed().saturating_add(1));
    }

    pub(crate) fn tick(&self) -> u8 {
        self.0[TICK]
    }

    pub(crate) fn set_tick(&mut self, tick: u8) {
        self.0[TICK] = tick;
    }

    /// The byte a batch reads early, so that the line is there when it is needed
    pub(crate) fn shape(&self) -> u8 {
        self.0[SHAPE]
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.0[SHAPE] == NIBBLE_INLINE
    }

    pub(crate) fn home(&self, family: Family) -> Home {
        let handle = || self.word(home_at(family));
        match self.0[SHAPE] >> nibble_shift(family) & 0xf {
            NIBBLE_INLINE => Home::Inline,
            NIBBLE_MANY => Home::Many(handle()),
            nibble => match Class::from_index(nibble - 1) {
                Some(class) => Home::Block(class, handle()),
                None => Home::None,
            },
        }
    }

    /// Writes where a family's peers went; both must have left the entry, or both be in it
    pub(crate) fn set_home(&mut self, family: Family, home: Home) {
        let (nibble, handle) = match home {
            Home::Inline => (NIBBLE_INLINE, None),
            Home::None => (NIBBLE_NONE, Some(0)),
            Home::Block(class, handle) => (class.index() + 1, Some(handle)),
            Home::Many(handle) => (NIBBLE_MANY, Some(handle)),
        };
        let shift = nibble_shift(family);
        self.0[SHAPE] = self.0[SHAPE] & !(0xf << shift) | nibble << shift;
        if let Some(handle) = handle {
            self.set_word(home_at(family), handle);
        }
    }

    pub(crate) fn roles(&self, family: Family) -> Roles {
        if self.is_inline() {
            let roles = self.0[INLINE_ROLES + family as usize];
            Roles { seeders: u32::from(roles & 0xf), leechers: u32::from(roles >> 4) }
        } else {
            let at = home_at(family) + 4;
            Roles { seeders: self.word(at), leechers: self.word(at + 4) }
        }
    }

    pub(crate) fn set_roles(&mut self, family: Family, roles: Roles) {
        if self.is_inline() {
            debug_assert!(roles.len() <= INLINE_V4_MAX);
            let packed = roles.seeders as u8 | (roles.leechers as u8) << 4;
            self.0[INLINE_ROLES + family as usize] = packed;
        } else {
            let at = home_at(family) + 4;
            self.set_word(at, roles.seeders);
            self.set_word(at + 4, roles.leechers);
        }
    }

    pub(crate) fn peers(&self) -> usize {
        Family::ALL.iter().map(|family| self.roles(*family).len()).sum()
    }

    /// Partial seeds of both families
    pub(crate) fn partial_seeds(&self) -> u32 {
        if !self.is_inline() {
            return Family::ALL.map(|family| self.partial_seeds_of(family)).iter().sum();
        }
        let [v4, v6] = Family::ALL.map(|family| self.roles(family).len());
        let of_v4 = self.inline::<V4>().iter().take(v4).map(partial_seed).sum::<u32>();
        of_v4 + self.inline::<V6>().iter().take(v6).map(partial_seed).sum::<u32>()
    }

    /// Partial seeds of a family whose records are not in the entry
    pub(crate) fn partial_seeds_of(&self, family: Family) -> u32 {
        if self.is_inline() { 0 } else { self.word(home_at(family) + 12) }
    }

    pub(crate) fn set_partial_seeds(&mut self, family: Family, partial_seeds: u32) {
        if !self.is_inline() {
            self.set_word(home_at(family) + 12, partial_seeds);
        }
    }

    /// Whether more peers of one address may be in the swarm than a reply has of it
    pub(crate) fn shares_addresses(&self) -> bool {
        !self.is_inline() && self.0[SHARES_ADDRESSES] != 0
    }

    /// Sets whether more peers of one address may be in the swarm; an inline entry has too few peers for that
    pub(crate) fn set_shares_addresses(&mut self, shares: bool) {
        self.0[SHARES_ADDRESSES] = u8::from(shares);
    }

    fn inline<const N: usize>(&self) -> &[[u8; N]] {
        self.0[self.inline_range::<N>()].as_chunks().0
    }

    /// The inline records of a family, as many as have room beside the other's
    pub(crate) fn inline_mut<const N: usize>(&mut self) -> &mut [[u8; N]] {
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

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..].first_chunk().copied().unwrap_or_default())
    }

    fn set_word(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
}

fn nibble_shift(family: Family) -> u32 {
    family as u32 * 4
}

fn home_at(family: Family) -> usize {
    BODY + family as usize * HOME_BYTES
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
        assert_eq!((entry.inline_mut::<V4>().len(), entry.inline_mut::<V6>().len()), (4, 1));
        entry.set_roles(Family::V4, Roles { seeders: 1, leechers: 2 });
        assert_eq!((entry.inline_mut::<V4>().len(), entry.inline_mut::<V6>().len()), (4, 0));
        entry.set_roles(Family::V4, Roles { seeders: 1, leechers: 1 });
        entry.set_roles(Family::V6, Roles { seeders: 0, leechers: 1 });
        assert_eq!((entry.inline_mut::<V4>().len(), entry.inline_mut::<V6>().len()), (2, 1));
        entry.inline_mut::<V6>()[0] = [9; V6];
        assert_eq!(entry.info_hash(), InfoHash([7; 20]));
    }

    #[test]
    fn homes_are_read_back() {
        let mut entry = Entry::new(&InfoHash([7; 20]));
        let class = Class::holding::<V6>(64).expect("64 records fit the largest block");
        entry.set_home(Family::V6, Home::Block(class, 77));
        entry.set_home(Family::V4, Home::Many(5));
        assert_eq!(entry.home(Family::V4), Home::Many(5));
        assert_eq!(entry.home(Family::V6), Home::Block(class, 77));
        entry.set_home(Family::V4, Home::None);
        assert_eq!(entry.home(Family::V4), Home::None);
        assert!(!entry.is_inline());
    }
}
