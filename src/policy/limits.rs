//! `limits`: limits the rate of requests from each source.
//!
//! Only proven sources are counted: otherwise an attacker could forge the address of a victim and have it refused. The
//! tables have a fixed size; if there are more sources than slots, the sources with the most requests keep theirs.

use super::refusal::{Refusal, RefusalReply};
use crate::stats::outcome::Outcome;
use ipnet::IpNet;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::net::IpAddr;
use tsubame_storage::{InfoHash, Seconds};

/// Number of slots in a set: the tables are set-associative, as a CPU cache is.
const WAYS: usize = 4;

/// Number of sets of source slots: 32,768 sources in 768 KiB.
const SOURCE_SETS: usize = 1 << 13;

/// Number of sets of pairs of a source and a torrent: 65,536 pairs in 256 KiB.
const PAIR_SETS: usize = 1 << 14;

const MICROS: u64 = 1_000_000;

/// Settings of the hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// Maximum number of announces of a source per second; 0 for no limit.
    pub announces_per_s: u32,
    /// Maximum number of announces of a source at once.
    pub burst: u32,
    /// Maximum number of different torrents of a source per minute; 0 for no limit.
    pub torrents_per_min: u32,
    /// Prefix length of the IPv4 network that is one source.
    pub ipv4_prefix: u8,
    /// Prefix length of the IPv6 network that is one source.
    pub ipv6_prefix: u8,
    /// Networks without limits.
    pub exempt: Vec<IpNet>,
    /// Reply to a source that exceeds its limit.
    pub excess: ExcessReply,
    /// Whether scrapes count as announces.
    pub scrapes: bool,
}

/// Reply to a request that exceeds a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExcessReply {
    /// No reply; over HTTP, an error.
    Drop,
    /// An empty list of peers, and an interval of this many seconds.
    Empty(u32),
}

/// The limit that a request exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitExceeded {
    /// The limit of announces per second.
    Announces,
    /// The limit of different torrents per minute.
    Torrents,
}

/// A source, with the theoretical arrival times of its next announce and next new torrent in microseconds (generic cell
/// rate algorithm).
#[derive(Clone, Copy, Debug, Default)]
struct SourceSlot {
    tag: u32,
    next_announce_us: u64,
    next_torrent_us: u64,
}

/// The request counts of a shard, by source.
pub struct Limits {
    settings: LimitSettings,
    /// Whether this instance has received the counts of another, or given its own away.
    has_exchanged: bool,
    /// Number of shards. A shard receives about 1/`shards` of the announces of a source, and applies 1/`shards` of each
    /// limit.
    shards: u64,
    key: (u64, u64),
    slots: Box<[[SourceSlot; WAYS]]>,
    /// Tags of pairs of source and torrent, with the minute in the lowest 8 bits.
    pairs: Box<[[u32; WAYS]]>,
}

/// Hides the counts of sources from logs.
impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Limits {
    /// Creates the counts of one of `shards` shards; `seed` determines the hash key.
    pub fn new(settings: LimitSettings, shards: u16, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            settings,
            has_exchanged: false,
            shards: shards.into(),
            key: (rng.u64(..), rng.u64(..)),
            slots: vec![Default::default(); SOURCE_SETS].into(),
            pairs: vec![Default::default(); PAIR_SETS].into(),
        }
    }

    /// Returns the settings of the hook.
    pub fn settings(&self) -> &LimitSettings {
        &self.settings
    }

    /// Takes over the counts of another instance; returns whether it did.
    ///
    /// Both must use the same prefix lengths. The caller tries hooks with equal settings first (`same_options`), and
    /// then those whose settings have changed.
    pub(super) fn inherit(&mut self, from: &mut Self, same_options: bool) -> bool {
        let (new, old) = (&self.settings, &from.settings);
        let prefixes = |settings: &LimitSettings| (settings.ipv4_prefix, settings.ipv6_prefix);
        let takes = !self.has_exchanged
            && !from.has_exchanged
            && (new == old) == same_options
            && prefixes(new) == prefixes(old);
        if takes {
            std::mem::swap(&mut self.slots, &mut from.slots);
            std::mem::swap(&mut self.pairs, &mut from.pairs);
            self.key = from.key;
            (self.has_exchanged, from.has_exchanged) = (true, true);
        }
        takes
    }

    /// Returns the refusal of a request that exceeds the limit of announces.
    pub(super) fn refusal(&self) -> Refusal {
        let reply = match self.settings.excess {
            ExcessReply::Drop => RefusalReply::Silence("too many requests; announce less often"),
            ExcessReply::Empty(secs) => RefusalReply::Empty(secs),
        };
        Refusal { outcome: Outcome::TooManyAnnounces, reply }
    }

    /// Counts a scrape as an announce without a torrent, unless it exceeds the limit.
    pub fn count_scrape(&mut self, now: Seconds, source: IpAddr) -> Result<(), LimitExceeded> {
        if self.is_exempt(source) {
            return Ok(());
        }
        let prefix = self.prefix(source);
        self.count_request(now, &prefix)
    }

    fn is_exempt(&self, source: IpAddr) -> bool {
        self.settings.exempt.iter().any(|network| network.contains(&source))
    }

    /// Counts a request of a source, unless it exceeds the rate of the source.
    fn count_request(&mut self, now: Seconds, prefix: &[u8]) -> Result<(), LimitExceeded> {
        let settings = &self.settings;
        if settings.announces_per_s == 0 {
            return Ok(());
        }
        let now_us = now_us(now);
        let each = MICROS * self.shards / u64::from(settings.announces_per_s);
        // The clock counts whole seconds: all requests of a second may arrive at once.
        let burst = u64::from(settings.burst.max(settings.announces_per_s)).div_ceil(self.shards);
        let slot_hash = self.hash(prefix, &[]);
        let slot = find(&mut self.slots, slot_hash, now_us);
        slot.next_announce_us =
            spend(slot.next_announce_us, now_us, each, burst).ok_or(LimitExceeded::Announces)?;
        Ok(())
    }

    /// Counts an announce, unless it exceeds the limit of announces. One that exceeds the limit of torrents counts,
    /// too.
    pub fn count(
        &mut self,
        now: Seconds,
        source: IpAddr,
        hash: &InfoHash,
    ) -> Result<(), LimitExceeded> {
        if self.is_exempt(source) {
            return Ok(());
        }
        let prefix = self.prefix(source);
        self.count_request(now, &prefix)?;
        let now_us = now_us(now);
        if self.settings.torrents_per_min > 0 {
            let minute = now.0 / 60;
            let pair = self.hash(&prefix, &hash.0);
            if self.is_new(pair, minute) {
                let per_min = u64::from(self.settings.torrents_per_min);
                let each = 60 * MICROS * self.shards / per_min;
                let slot_hash = self.hash(&prefix, &[]);
                let slot = find(&mut self.slots, slot_hash, now_us);
                let burst = per_min.div_ceil(self.shards);
                slot.next_torrent_us = spend(slot.next_torrent_us, now_us, each, burst)
                    .ok_or(LimitExceeded::Torrents)?;
                self.insert_pair(pair, minute);
            }
        }
        Ok(())
    }

    /// Returns the prefix of an address that identifies its source, with a byte for the family.
    fn prefix(&self, source: IpAddr) -> [u8; 17] {
        let mut prefix = [0; 17];
        match source.to_canonical() {
            IpAddr::V4(address) => {
                let mask =
                    u32::MAX.checked_shl(32 - u32::from(self.settings.ipv4_prefix)).unwrap_or(0);
                prefix[0] = 4;
                prefix[1..5].copy_from_slice(&(u32::from(address) & mask).to_be_bytes());
            }
            IpAddr::V6(address) => {
                let mask =
                    u128::MAX.checked_shl(128 - u32::from(self.settings.ipv6_prefix)).unwrap_or(0);
                prefix[1..].copy_from_slice(&(u128::from(address) & mask).to_be_bytes());
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

    /// Returns whether a pair has not been seen in this minute or the last one. A pair that has been seen is marked as
    /// seen in this minute.
    fn is_new(&mut self, pair: u64, minute: u64) -> bool {
        let set = &mut self.pairs[pair as usize % PAIR_SETS];
        let tag = tag_of(pair);
        let existing = set.iter_mut().find(|it| **it >> 8 == tag && age(**it, minute) <= 1);
        let is_new = existing.is_none();
        if let Some(existing) = existing {
            *existing = tag << 8 | minute as u32 & 0xff;
        }
        is_new
    }

    /// Stores a pair in place of the oldest of its set.
    fn insert_pair(&mut self, pair: u64, minute: u64) {
        let set = &mut self.pairs[pair as usize % PAIR_SETS];
        if let Some(oldest) = set.iter_mut().max_by_key(|it| age(**it, minute)) {
            *oldest = tag_of(pair) << 8 | minute as u32 & 0xff;
        }
    }
}

/// Returns the time in microseconds. It is never 0, the time of empty slots.
fn now_us(now: Seconds) -> u64 {
    (now.0 + 1) * MICROS
}

/// Returns the 24 bits that distinguish pairs of a set. They are never 0, the tag of an empty slot.
fn tag_of(pair: u64) -> u32 {
    (pair >> 40) as u32 | 1
}

/// Returns the number of minutes, modulo 256, since a pair was seen; `u32::MAX` for an empty slot.
fn age(slot: u32, minute: u64) -> u32 {
    if slot == 0 { u32::MAX } else { (minute as u32).wrapping_sub(slot) & 0xff }
}

/// Returns the slot of a source. A source without one gets that of the source in its set with the fewest recent
/// requests.
fn find(slots: &mut [[SourceSlot; WAYS]], hash: u64, now_us: u64) -> &mut SourceSlot {
    let set = &mut slots[hash as usize % SOURCE_SETS];
    let tag = (hash >> 32) as u32;
    let existing = set.iter().position(|slot| slot.tag == tag);
    let debt = |slot: &SourceSlot| slot.next_announce_us.max(slot.next_torrent_us).max(now_us);
    let least = set.iter().enumerate().min_by_key(|(_, slot)| debt(slot)).map_or(0, |(at, _)| at);
    let slot = &mut set[existing.unwrap_or(least)];
    if existing.is_none() {
        *slot = SourceSlot { tag, ..SourceSlot::default() };
    }
    slot
}

/// Returns the theoretical arrival time after one more request, or `None` if the request exceeds the burst.
fn spend(until: u64, now_us: u64, each: u64, burst: u64) -> Option<u64> {
    let next = until.max(now_us) + each;
    (next <= now_us + each * burst.max(1)).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LimitSettings {
        LimitSettings {
            announces_per_s: 2,
            burst: 10,
            torrents_per_min: 0,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            exempt: vec!["10.0.0.0/8".parse().unwrap()],
            excess: ExcessReply::Drop,
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

    /// Returns how many of `announces` announces, each of another torrent, are permitted.
    fn permitted(limits: &mut Limits, second: u64, source: &str, announces: u32) -> usize {
        let mut count = |number| limits.count(Seconds(second), address(source), &hash(number));
        (0..announces).filter(|number| count(*number).is_ok()).count()
    }

    #[test]
    fn a_source_has_a_burst_and_then_its_rate() {
        let mut limits = Limits::new(settings(), 1, 1);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 10);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.5", 100), 10, "another source");
        assert_eq!(permitted(&mut limits, 6, "1.2.3.4", 100), 2);
        assert_eq!(permitted(&mut limits, 9, "1.2.3.4", 100), 6);
        assert_eq!(permitted(&mut limits, 60, "1.2.3.4", 100), 10);
        assert_eq!(permitted(&mut limits, 60, "10.2.3.4", 100), 100, "exempt");
        assert_eq!(permitted(&mut limits, 60, "2001:db8::1", 100), 10);
        assert_eq!(permitted(&mut limits, 60, "2001:db8::2", 100), 0, "the same /64");
        assert_eq!(permitted(&mut limits, 60, "2001:db8:0:1::2", 100), 10);
        let mut second_of_two = Limits::new(settings(), 2, 1);
        assert_eq!(permitted(&mut second_of_two, 5, "1.2.3.4", 100), 5);
        assert_eq!(permitted(&mut second_of_two, 6, "1.2.3.4", 100), 1);
        let wide = LimitSettings { ipv4_prefix: 24, ..settings() };
        let mut limits = Limits::new(wide, 1, 1);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 10);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.5", 100), 0);
        let all = LimitSettings { ipv4_prefix: 0, ipv6_prefix: 0, ..settings() };
        let mut limits = Limits::new(all, 1, 1);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 10);
        assert_eq!(permitted(&mut limits, 5, "99.2.3.4", 100), 0);
    }

    #[test]
    fn a_repeated_torrent_is_not_counted_again() {
        let settings = LimitSettings { announces_per_s: 0, torrents_per_min: 30, ..settings() };
        let mut limits = Limits::new(settings, 1, 1);
        assert_eq!(permitted(&mut limits, 60, "1.2.3.4", 50), 30);
        assert_eq!(permitted(&mut limits, 70, "1.2.3.4", 30), 30, "the same torrents");
        let again = limits.count(Seconds(70), address("1.2.3.4"), &hash(99));
        assert_eq!(again, Ok(()), "ten seconds permit five more torrents");
        let refused = (100..200).map(|it| limits.count(Seconds(70), address("1.2.3.4"), &hash(it)));
        assert_eq!(refused.filter(|it| *it == Err(LimitExceeded::Torrents)).count(), 96);
    }

    #[test]
    fn a_flood_of_sources_does_not_evict_the_busiest_source() {
        let mut limits = Limits::new(settings(), 1, 1);
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 10);
        for number in 0..2_000_000_u32 {
            let source = IpAddr::from((0x2000_0000 + number).to_be_bytes());
            let _ = limits.count(Seconds(5), source, &hash(1));
        }
        assert_eq!(permitted(&mut limits, 5, "1.2.3.4", 100), 0);
    }
}
