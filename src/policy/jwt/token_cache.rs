//! Cache of the results of token checks: a table of fixed size.

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use std::net::IpAddr;
use tsubame_storage::InfoHash;

/// Maximum difference between clocks that can be configured, in seconds.
pub const LEEWAY_SECS_MAX: u64 = 3_600;

/// Number of slots in a set: the table is set-associative, as a CPU cache is.
const WAYS: usize = 4;

/// Number of sets: 32,768 tokens in 2 MiB.
const SETS: usize = 1 << 13;

/// Seconds for which a refusal is cached; the key set may have changed since.
const REFUSED_SECS: u64 = 60;

/// Result of the check of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenResult {
    /// The token approves a torrent for a time.
    Valid { hash: InfoHash, from: u64, until: u64, checked_at: u64 },
    /// It is not a valid token of this issuer for this tracker.
    Invalid { checked_at: u64 },
    /// Its key was not in the key set with this number.
    NoKey { checked_at: u64, key_set: u32 },
}

impl TokenResult {
    /// Returns the time in seconds until which the result is cached.
    fn lasts_until(&self) -> u64 {
        match self {
            // Longer than it is valid by any clock, so that an expired token is refused without verification.
            Self::Valid { until, checked_at, .. } => {
                until.saturating_add(LEEWAY_SECS_MAX).max(*checked_at).saturating_add(REFUSED_SECS)
            }
            Self::Invalid { checked_at } | Self::NoKey { checked_at, .. } => {
                checked_at + REFUSED_SECS
            }
        }
    }
}

/// Hash of a token under secret keys, which identifies the token: an attacker cannot construct a collision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenTag(u128);

type CacheSlot = Option<(TokenTag, TokenResult)>;

/// The results of token checks, by the hash of the token.
pub(super) struct TokenCache {
    keys: (u64, u64),
    /// Number of changes of the key set.
    pub(super) key_set: u32,
    sets: Box<[[CacheSlot; WAYS]]>,
}

impl TokenCache {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let keys = (rng.u64(..), rng.u64(..));
        Self { keys, key_set: 0, sets: vec![[None; WAYS]; SETS].into() }
    }

    pub(super) fn tag(&self, token: &str) -> TokenTag {
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        hasher.write(token.as_bytes());
        TokenTag(hasher.finish128().as_u128())
    }

    /// Returns the hash of a source, an IPv4 address or an IPv6 /64, under secret keys.
    pub(super) fn source_hash(&self, source: IpAddr) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.keys.1, self.keys.0);
        match source {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()[..8]),
        }
        hasher.finish128().h1
    }

    pub(super) fn find(&self, tag: TokenTag, now: u64) -> Option<TokenResult> {
        let mut set = self.sets[tag.0 as usize % SETS].iter().flatten();
        let (_, result) = set.find(|(found, _)| *found == tag)?;
        let is_of_another_key_set =
            matches!(result, TokenResult::NoKey { key_set, .. } if *key_set != self.key_set);
        (result.lasts_until() >= now && !is_of_another_key_set).then_some(*result)
    }

    /// Caches a result, in place of an older one of the token or of the least useful one in its set.
    ///
    /// A refusal does not replace the cached valid result of another token.
    pub(super) fn insert(&mut self, tag: TokenTag, result: TokenResult, now: u64) {
        let set = &mut self.sets[tag.0 as usize % SETS];
        let existing = set.iter().position(|it| it.is_some_and(|(found, _)| found == tag));
        // Refusals are evicted before valid tokens: a flood of bad tokens must not evict good ones.
        let worth = |it: &CacheSlot| match it {
            None => (0, 0),
            Some((_, result)) if result.lasts_until() < now => (0, 0),
            Some((_, result @ TokenResult::Valid { .. })) => (2, result.lasts_until()),
            Some((_, result)) => (1, result.lasts_until()),
        };
        let least = (0..WAYS).min_by_key(|at| worth(&set[*at])).unwrap_or(0);
        let at = existing.unwrap_or(least);
        if existing.is_some()
            || worth(&set[at]).0 < 2
            || matches!(result, TokenResult::Valid { .. })
        {
            set[at] = Some((tag, result));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_tokens_do_not_evict_valid_ones() {
        let mut cache = TokenCache::new(1);
        let good =
            TokenResult::Valid { hash: InfoHash([1; 20]), from: 0, until: 10_000, checked_at: 100 };
        let kept = cache.tag("good");
        cache.insert(kept, good, 100);
        for number in 0..200_000 {
            let tag = cache.tag(&number.to_string());
            cache.insert(tag, TokenResult::Invalid { checked_at: 100 }, 100);
        }
        assert_eq!(cache.find(kept, 100), Some(good));
        let last = cache.tag("199999");
        assert_eq!(cache.find(last, 100), Some(TokenResult::Invalid { checked_at: 100 }));
        assert_eq!(cache.find(last, 161), None, "refusals expire");
        assert_eq!(cache.find(kept, 10_061 + LEEWAY_SECS_MAX), None);
        cache.insert(last, good, 100);
        assert_eq!(cache.find(last, 100), Some(good));
        // A token that expired long ago is replaced by a refusal.
        let mut cache = TokenCache::new(2);
        for number in 0..200_000 {
            let tag = cache.tag(&number.to_string());
            cache.insert(tag, good, 100);
        }
        let (tag, bad) = (cache.tag("bad"), TokenResult::Invalid { checked_at: 20_000 });
        cache.insert(tag, bad, 20_000);
        assert_eq!(cache.find(tag, 20_000), Some(bad));
    }
}
