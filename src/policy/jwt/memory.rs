//! What tokens came to: a table of fixed size, whoever sends what.

use super::LEEWAY_SECS_MAX;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use std::net::IpAddr;
use tsubame_storage::InfoHash;

/// Tokens that can share a set of places
const WAYS: usize = 4;

/// Sets of places: 32,768 tokens in 2 MiB
const SETS: usize = 1 << 13;

/// Seconds after which a refusal is thought over: a key may have come since
const REFUSED_SECS: u64 = 60;

/// What a token came to
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It approves a torrent for a time
    Good { hash: InfoHash, from: u64, until: u64, checked_at: u64 },
    /// It is none of this issuer, for this tracker
    Bad { checked_at: u64 },
    /// Its key was not in the key set of that number
    NoKey { checked_at: u64, key_set: u32 },
}

impl Known {
    /// Until when this is to be remembered
    fn lasts_until(&self) -> u64 {
        match self {
            // Longer than it is good by any clock, to be refused without being read again.
            Self::Good { until, checked_at, .. } => {
                until.saturating_add(LEEWAY_SECS_MAX).max(*checked_at).saturating_add(REFUSED_SECS)
            }
            Self::Bad { checked_at } | Self::NoKey { checked_at, .. } => checked_at + REFUSED_SECS,
        }
    }
}

/// A token by its hash, under keys that nobody knows: none can be made that is taken for another
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u128);

type Place = Option<(Tag, Known)>;

pub(super) struct Memory {
    keys: (u64, u64),
    /// How many key sets there were
    pub(super) key_set: u32,
    sets: Box<[[Place; WAYS]]>,
}

impl Memory {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let keys = (rng.u64(..), rng.u64(..));
        Self { keys, key_set: 0, sets: vec![[None; WAYS]; SETS].into() }
    }

    pub(super) fn tag(&self, token: &str) -> Tag {
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        hasher.write(token.as_bytes());
        Tag(hasher.finish128().as_u128())
    }

    /// A number for a source, an IPv4 address or an IPv6 /64, that nobody can choose
    pub(super) fn source_hash(&self, source: IpAddr) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.keys.1, self.keys.0);
        match source {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()[..8]),
        }
        hasher.finish128().h1
    }

    pub(super) fn find(&self, tag: Tag, now: u64) -> Option<Known> {
        let mut set = self.sets[tag.0 as usize % SETS].iter().flatten();
        let (_, known) = set.find(|(found, _)| *found == tag)?;
        let is_of_another_set =
            matches!(known, Known::NoKey { key_set, .. } if *key_set != self.key_set);
        (known.lasts_until() >= now && !is_of_another_set).then_some(*known)
    }

    /// Remembers a token in place of itself, or of the one that is of use for the shortest time
    pub(super) fn keep(&mut self, tag: Tag, known: Known, now: u64) {
        let set = &mut self.sets[tag.0 as usize % SETS];
        let same = set.iter().position(|it| it.is_some_and(|(found, _)| found == tag));
        // Refusals go before tokens that are good: a flood of the ones must not push out the others.
        let worth = |it: &Place| match it {
            None => (0, 0),
            Some((_, known)) if known.lasts_until() < now => (0, 0),
            Some((_, known @ Known::Good { .. })) => (2, known.lasts_until()),
            Some((_, known)) => (1, known.lasts_until()),
        };
        let least = (0..WAYS).min_by_key(|at| worth(&set[*at])).unwrap_or(0);
        let at = same.unwrap_or(least);
        if same.is_some() || worth(&set[at]).0 < 2 || matches!(known, Known::Good { .. }) {
            set[at] = Some((tag, known));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_tokens_are_not_pushed_out_by_bad_ones() {
        let mut memory = Memory::new(1);
        let good = Known::Good { hash: InfoHash([1; 20]), from: 0, until: 10_000, checked_at: 100 };
        let kept = memory.tag("good");
        memory.keep(kept, good, 100);
        for number in 0..200_000 {
            let tag = memory.tag(&number.to_string());
            memory.keep(tag, Known::Bad { checked_at: 100 }, 100);
        }
        assert_eq!(memory.find(kept, 100), Some(good));
        let last = memory.tag("199999");
        assert_eq!(memory.find(last, 100), Some(Known::Bad { checked_at: 100 }));
        assert_eq!(memory.find(last, 161), None, "it is thought over");
        assert_eq!(memory.find(kept, 10_061 + LEEWAY_SECS_MAX), None);
        memory.keep(last, good, 100);
        assert_eq!(memory.find(last, 100), Some(good));
        // One that was good long ago makes room for a refusal.
        let mut memory = Memory::new(2);
        for number in 0..200_000 {
            let tag = memory.tag(&number.to_string());
            memory.keep(tag, good, 100);
        }
        let (tag, bad) = (memory.tag("bad"), Known::Bad { checked_at: 20_000 });
        memory.keep(tag, bad, 20_000);
        assert_eq!(memory.find(tag, 20_000), Some(bad));
    }
}
