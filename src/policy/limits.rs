//! `limits`: how much one source may ask.
//!
//! Only proven sources are counted: else whoever forges a victim's address would have it silenced. What is kept has a
//! fixed size, whoever comes; where more sources come than there are places, those who have asked most keep theirs.

use super::{Answer, Refusal};
use crate::outcome::Outcome;
use ipnet::IpNet;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::net::IpAddr;
use tsubame_storage::{InfoHash, Seconds};

/// Sources that can share a set of places
const WAYS: usize = 4;

/// Sets of places for sources: 32,768 of them in 768 KiB
const SOURCE_SETS: usize = 1 << 13;

/// Sets of places for what a source has announced lately: 65,536 pairs in 256 KiB
const PAIR_SETS: usize = 1 << 14;

const MICROS: u64 = 1_000_000;

/// What is permitted
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitTerms {
    /// Announces a second; 0 for any number
    pub announces_per_s: u32,
    /// Announces at once
    pub burst: u32,
    /// Different torrents a minute; 0 for any number
    pub torrents_per_min: u32,
    /// Bits of an IPv4 address that make a source
    pub ipv4_prefix: u8,
    /// Bits of an IPv6 address that make a source
    pub ipv6_prefix: u8,
    /// Networks without a limit
    pub exempt: Vec<IpNet>,
    /// Reply to a source that exceeds its limit
    pub excess: Excess,
    /// Whether scrapes count as announces do
    pub scrapes: bool,
}

/// What is done with what is too much
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// Nothing is answered; over HTTP, an error
    Drop,
    /// An empty list is, and to come back after so many seconds
    Empty(u32),
}

/// What is too much
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMuch {
    /// Announces
    Announces,
    /// Torrents
    Torrents,
}

/// A source, and until when it has used up what it may ask: the time at which it would have asked all that at an even
/// pace (the generic cell rate algorithm)
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    tag: u32,
    announces: u64,
    torrents: u64,
}

/// A shard's counts
pub struct Limits {
    terms: LimitTerms,
    /// Whether these counts were taken over from another already
    inherited: bool,
    /// Of all announces, a shard sees those of its torrents: one in so many
    shards: u64,
    key: (u64, u64),
    places: Box<[[Place; WAYS]]>,
    /// Tags of pairs of source and torrent, with the minute in their lowest bits
    pairs: Box<[[u32; WAYS]]>,
}

/// Who has asked how much does not show in logs
impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits").field("terms", &self.terms).finish_non_exhaustive()
    }
}

impl Limits {
    /// Counts for one of so many shards
    pub fn new(terms: LimitTerms, shards: u16, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            terms,
            inherited: false,
            shards: shards.into(),
            key: (rng.u64(..), rng.u64(..)),
            places: vec![Default::default(); SOURCE_SETS].into(),
            pairs: vec![Default::default(); PAIR_SETS].into(),
        }
    }

    /// What is permitted
    pub fn terms(&self) -> &LimitTerms {
        &self.terms
    }

    /// Takes over the counts of another, if their limits are `alike` or not but sources are told apart alike; true if
    /// it has
    pub(super) fn inherit(&mut self, from: &mut Self, alike: bool) -> bool {
        let (new, old) = (&self.terms, &from.terms);
        let prefixes = |terms: &LimitTerms| (terms.ipv4_prefix, terms.ipv6_prefix);
        let takes = !self.inherited
            && !from.inherited
            && (new == old) == alike
            && prefixes(new) == prefixes(old);
        if takes {
            std::mem::swap(&mut self.places, &mut from.places);
            std::mem::swap(&mut self.pairs, &mut from.pairs);
            self.key = from.key;
            (self.inherited, from.inherited) = (true, true);
        }
        takes
    }

    /// What a request beyond the limits is answered
    pub(super) fn refusal(&self) -> Refusal {
        let answer = match self.terms.excess {
            Excess::Drop => Answer::Silence("too many requests; announce less often"),
            Excess::Empty(secs) => Answer::Empty(secs),
        };
        Refusal { outcome: Outcome::TooManyAnnounces, answer }
    }

    /// Counts a scrape as an announce of no torrent, unless it is too much
    pub fn count_scrape(&mut self, now: Seconds, source: IpAddr) -> Result<(), TooMuch> {
        if self.is_exempt(source) {
            return Ok(());
        }
        let prefix = self.prefix(source);
        self.count_request(now, &prefix)
    }

    fn is_exempt(&self, source: IpAddr) -> bool {
        self.terms.exempt.iter().any(|network| network.contains(&source))
    }

    /// Counts a request against the rate of its source
    fn count_request(&mut self, now: Seconds, prefix: &[u8]) -> Result<(), TooMuch> {
        let terms = &self.terms;
        if terms.announces_per_s == 0 {
            return Ok(());
        }
        let now_us = now_us(now);
        let each = MICROS * self.shards / u64::from(terms.announces_per_s);
        // The clock goes in seconds: what is permitted in one may come at once.
        let burst = u64::from(terms.burst.max(terms.announces_per_s)).div_ceil(self.shards);
        let place_hash = self.hash(prefix, &[]);
        let place = find(&mut self.places, place_hash, now_us);
        place.announces = spend(place.announces, now_us, each, burst).ok_or(TooMuch::Announces)?;
        Ok(())
    }

    /// Counts an announce, unless it is too much
    pub fn count(&mut self, now: Seconds, source: IpAddr, hash: &InfoHash) -> Result<(), TooMuch> {
        if self.is_exempt(source) {
            return Ok(());
        }
        let prefix = self.prefix(source);
        self.count_request(now, &prefix)?;
        let now_us = now_us(now);
        if self.terms.torrents_per_min > 0 {
            let minute = now.0 / 60;
            let pair = self.hash(&prefix, &hash.0);
            if self.is_new(pair, minute) {
                let per_min = u64::from(self.terms.torrents_per_min);
                let each = 60 * MICROS * self.shards / per_min;
                let place_hash = self.hash(&prefix, &[]);
                let place = find(&mut self.places, place_hash, now_us);
                let burst = per_min.div_ceil(self.shards);
                place.torrents =
                    spend(place.torrents, now_us, each, burst).ok_or(TooMuch::Torrents)?;
                self.remember(pair, minute);
            }
        }
        Ok(())
    }

    /// The bytes of a source that are told apart
    fn prefix(&self, source: IpAddr) -> [u8; 17] {
        let mut prefix = [0; 17];
        match source.to_canonical() {
            IpAddr::V4(address) => {
                let kept =
                    u32::MAX.checked_shl(32 - u32::from(self.terms.ipv4_prefix)).unwrap_or(0);
                prefix[0] = 4;
                prefix[1..5].copy_from_slice(&(u32::from(address) & kept).to_be_bytes());
            }
            IpAddr::V6(address) => {
                let kept =
                    u128::MAX.checked_shl(128 - u32::from(self.terms.ipv6_prefix)).unwrap_or(0);
                prefix[1..].copy_from_slice(&(u128::from(address) & kept).to_be_bytes());
            }
        }
        prefix
    }

    fn hash(&self, prefix: &[u8], hash: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        hasher.write(prefix);
        hasher.write(hash);
        hasher.finish()
    }

    /// Whether a pair has not been seen in this minute or the last
    fn is_new(&mut self, pair: u64, minute: u64) -> bool {
        let set = &mut self.pairs[pair as usize % PAIR_SETS];
        let tag = tag_of(pair);
        let known = set.iter_mut().find(|it| **it >> 8 == tag && age(**it, minute) <= 1);
        let is_new = known.is_none();
        if let Some(known) = known {
            *known = tag << 8 | minute as u32 & 0xff;
        }
        is_new
    }

    fn remember(&mut self, pair: u64, minute: u64) {
        let set = &mut self.pairs[pair as usize % PAIR_SETS];
        if let Some(oldest) = set.iter_mut().max_by_key(|it| age(**it, minute)) {
            *oldest = tag_of(pair) << 8 | minute as u32 & 0xff;
        }
    }
}

/// Microseconds; a time of 0 would be one that has long passed
fn now_us(now: Seconds) -> u64 {
    (now.0 + 1) * MICROS
}

/// 24 bits that tell pairs of a set apart; never 0, which is an empty place
fn tag_of(pair: u64) -> u32 {
    (pair >> 40) as u32 | 1
}

/// Minutes since a pair was seen; the longest if none was
fn age(place: u32, minute: u64) -> u32 {
    if place == 0 { u32::MAX } else { (minute as u32).wrapping_sub(place) & 0xff }
}

/// The place of a source; if it has none, that of the one which has asked least lately
fn find(places: &mut [[Place; WAYS]], hash: u64, now_us: u64) -> &mut Place {
    let set = &mut places[hash as usize % SOURCE_SETS];
    let tag = (hash >> 32) as u32;
    let known = set.iter().position(|place| place.tag == tag);
    let debt = |place: &Place| place.announces.max(place.torrents).max(now_us);
    let least = set.iter().enumerate().min_by_key(|(_, place)| debt(place)).map_or(0, |(at, _)| at);
    let place = &mut set[known.unwrap_or(least)];
    if known.is_none() {
        *place = Place { tag, ..Place::default() };
    }
    place
}

/// Spends one of what may be asked; the new time, unless that is too far ahead
fn spend(until: u64, now_us: u64, each: u64, burst: u64) -> Option<u64> {
    let next = until.max(now_us) + each;
    (next <= now_us + each * burst.max(1)).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> LimitTerms {
        LimitTerms {
            announces_per_s: 2,
            burst: 10,
            torrents_per_min: 0,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            exempt: vec!["10.0.0.0/8".parse().unwrap()],
            excess: Excess::Drop,
            scrapes: true,
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn hash(number: u32) -> InfoHash {
        let mut hash = [0; 20];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        InfoHash(hash)
    }

    /// How many of so many announces are let through
    fn permitted(limits: &mut Limits, second: u64, source: &str, announces: u32) -> usize {
        let mut count = |number| limits.count(Seconds(second), address(source), &hash(number));
        (0..announces).filter(|number| count(*number).is_ok()).count()
    }

    #[test]
    fn a_source_has_a_burst_and_then_its_rate() {
        let mut limits = Limits::new(terms(), 1, 1);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 10);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.5", 100), 10, "another source");
        assert_eq!(permitted(&mut limits, 6, "1.2.3.4", 100), 2);
        assert_eq!(permitted(&mut limits, 9, "1.2.3.4", 100), 6);
        assert_eq!(permitted(&mut limits, 60, "1.2.3.4", 100), 10);
        assert_eq!(permitted(&mut limits, 60, "10.2.3.4", 100), 100, "exempt");
        assert_eq!(permitted(&mut limits, 60, "2001:db8::1", 100), 10);
        assert_eq!(permitted(&mut limits, 60, "2001:db8::2", 100), 0, "of the same /64");
        assert_eq!(permitted(&mut limits, 60, "2001:db8:0:1::2", 100), 10);
        let mut second_of_two = Limits::new(terms(), 2, 1);
        assert_eq!(permitted(&mut second_of_two, 5, "1.2.3.4", 100), 5);
        assert_eq!(permitted(&mut second_of_two, 6, "1.2.3.4", 100), 1);
        let wide = LimitTerms { ipv4_prefix: 24, ..terms() };
        let mut limits = Limits::new(wide, 1, 1);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 10);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.5", 100), 0);
        let all = LimitTerms { ipv4_prefix: 0, ipv6_prefix: 0, ..terms() };
        let mut limits = Limits::new(all, 1, 1);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 10);
        assert_eq!(permitted(&mut limits, 5, "99.2.3.4", 100), 0);
    }

    #[test]
    fn the_same_torrent_again_is_not_another_one() {
        let terms = LimitTerms { announces_per_s: 0, torrents_per_min: 30, ..terms() };
        let mut limits = Limits::new(terms, 1, 1);
        assert_eq!(permitted(&mut limits, 60, "1.2.3.4", 50), 30);
        assert_eq!(permitted(&mut limits, 70, "1.2.3.4", 30), 30, "the same ones");
        let again = limits.count(Seconds(70), address("1.2.3.4"), &hash(99));
        assert_eq!(again, Ok(()), "a sixth of a minute has passed");
        let refused = (100..200).map(|it| limits.count(Seconds(70), address("1.2.3.4"), &hash(it)));
        assert_eq!(refused.filter(|it| *it == Err(TooMuch::Torrents)).count(), 96);
    }

    #[test]
    fn who_asks_most_is_not_forgotten_for_strangers() {
        let mut limits = Limits::new(terms(), 1, 1);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 10);
        for stranger in 0..2_000_000_u32 {
            let source = IpAddr::from((0x2000_0000 + stranger).to_be_bytes());
            let _ = limits.count(Seconds(5), source, &hash(1));
        }
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 0);
    }
}
