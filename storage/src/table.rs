//! The torrents of a shard: entries, the index that finds them, and the memory they take.

use crate::announce::{JoinRefusal, SwarmAnnounce};
use crate::entry::Entry;
use crate::index::{Elements, POSITIONS_MAX, PositionIndex};
use crate::placement::TorrentStore;
use crate::record::{RecordContext, RoleCounts, V4, V6, period_flags, record_of};
use crate::settings::TableSettings;
use crate::sources::SourceNetwork;
use crate::stats::TableStats;
use crate::subnet::{PrefixLengths, SubnetPreference};
use crate::time::{Seconds, Ticks};
use crate::types::{Endpoint, Family, InfoHash, Scope, SwarmCounts, SwarmStats};
use siphasher::sip::SipHasher13;
use std::hash::Hasher as _;

/// Result of a prefetch of the index: the hash of a torrent, and the probable position of its entry.
#[derive(Clone, Copy, Debug)]
pub struct Prefetch {
    pub(crate) hash: u64,
    guess: Option<u32>,
}

/// The torrents of a shard.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) settings: TableSettings,
    pub(crate) store: TorrentStore,
    index: PositionIndex,
    pub(crate) context: RecordContext,
    /// Ticks by which torrents without peers expire.
    pub(crate) idle_ticks: Ticks,
    pub(crate) subnets: SubnetPreference,
    pub(crate) now: Seconds,
    /// Number of peers that a source may have at the moment; `u32::MAX` is no limit.
    pub(crate) source_limit: u32,
    /// Whether the records of peers have the period in which they were published.
    has_publication: bool,
    stats: TableStats,
    pub(crate) rng: fastrand::Rng,
}

impl Table {
    pub(crate) fn new(settings: TableSettings) -> Self {
        let hasher = SipHasher13::new_with_keys(settings.hash_key.0, settings.hash_key.1);
        let ticks = Ticks::of_lifetime(settings.peer_lifetime_secs);
        Self {
            store: TorrentStore::new(hasher),
            index: PositionIndex::new(),
            context: RecordContext { hasher, ticks, tick: 0, period_flags: 0 },
            // A tick as long as that of peers, at least: the sweep is often enough for those.
            idle_ticks: Ticks::of_lifetime(
                settings.keep_completed_secs.max(settings.peer_lifetime_secs),
            )
            .with_lifetime(settings.keep_completed_secs),
            subnets: SubnetPreference::default(),
            now: Seconds(0),
            source_limit: u32::MAX,
            has_publication: false,
            stats: TableStats::default(),
            rng: fastrand::Rng::with_seed(settings.seed),
            settings,
        }
    }

    pub(crate) fn reconfigure(&mut self, settings: TableSettings) {
        let TableSettings { hash_key, seed, .. } = self.settings;
        let longest = self.context.ticks.longest_lifetime_secs();
        let peer_lifetime_secs = settings.peer_lifetime_secs.min(longest);
        self.context.ticks = self.context.ticks.with_lifetime(peer_lifetime_secs);
        self.idle_ticks = self.idle_ticks.with_lifetime(settings.keep_completed_secs);
        self.settings = TableSettings { hash_key, seed, peer_lifetime_secs, ..settings };
    }

    /// Sets the time by which peers are stored and expire.
    pub(crate) fn set_time(&mut self, now: Seconds) {
        self.now = now;
        self.context.tick = self.context.ticks.at(now);
        self.context.period_flags = self.period_flags(now.signed());
    }

    /// Has the records of peers that announce from now on say when they were published.
    pub(crate) fn begin_publication(&mut self) {
        self.has_publication = true;
        self.context.period_flags = self.period_flags(self.now.signed());
    }

    /// Returns the flags of a peer that was published at a time.
    pub(crate) fn period_flags(&self, time: i64) -> u8 {
        if self.has_publication {
            period_flags(self.context.ticks.publication_period_at(time))
        } else {
            0
        }
    }

    /// Returns the flags of a peer that was not published in the current period.
    pub(crate) fn previous_period_flags(&self) -> u8 {
        let period = self.context.ticks.publication_period_at(self.now.signed());
        if self.has_publication { period_flags(period - 1) } else { 0 }
    }

    /// Returns the statistics that the table itself knows: all but those of eviction.
    pub(crate) fn stats(&self) -> TableStats {
        TableStats {
            torrents: self.store.entries.len(),
            bytes: self.bytes(),
            pressure_per_1_000: self.pressure_per_1_000(),
            expired_peers: self.store.expired_peers,
            ..self.stats
        }
    }

    /// Returns the number of peers in all swarms.
    pub(crate) fn peers(&self) -> u64 {
        self.stats.seeders.iter().chain(&self.stats.leechers).sum()
    }

    /// Returns the number of torrents without peers.
    pub(crate) fn empty_torrents(&self) -> usize {
        self.stats.empty_torrents
    }

    pub(crate) fn prefetch_index(&self, info_hash: &InfoHash) -> Prefetch {
        let hash = self.hash(info_hash);
        Prefetch { hash, guess: self.index.guess(hash) }
    }

    pub(crate) fn prefetch_entry(&self, prefetch: &Prefetch) -> u8 {
        match prefetch.guess {
            Some(position) if (position as usize) < self.store.entries.len() => {
                self.store.entry(position).placements_byte()
            }
            _ => 0,
        }
    }

    /// Returns the position of the entry of a torrent.
    pub(crate) fn find(&self, prefetch: &Prefetch, info_hash: &InfoHash) -> Option<u32> {
        let matches = |position: u32| self.store.entry(position).has_info_hash(info_hash);
        // The guess is right in most cases; then the index need not be searched again.
        let guess =
            prefetch.guess.filter(|it| (*it as usize) < self.store.entries.len() && matches(*it));
        guess.or_else(|| self.index.find(prefetch.hash, matches))
    }

    /// Returns the position of the entry of a torrent with this hash.
    pub(crate) fn find_hashed(&self, hash: u64, info_hash: &InfoHash) -> Option<u32> {
        self.index.find(hash, |position| self.store.entry(position).has_info_hash(info_hash))
    }

    /// Reads the slot of the index at which the search for a hash starts.
    pub(crate) fn read_index_slot(&self, hash: u64) -> u32 {
        self.index.read_slot(hash)
    }

    pub(crate) fn hash(&self, info_hash: &InfoHash) -> u64 {
        hash_of(&self.context.hasher, info_hash)
    }

    /// Returns the seeders, leechers and completed downloads of the torrent at a position.
    pub(crate) fn counts_at(&self, position: u32) -> SwarmCounts {
        let entry = self.store.entry(position);
        let (v4, v6) = (entry.roles(Family::V4), entry.roles(Family::V6));
        SwarmCounts {
            seeders: v4.seeders + v6.seeders,
            completed: entry.completed(),
            leechers: v4.leechers + v6.leechers,
        }
    }

    /// Returns the counts of the torrent at a position with its partial seeds, which takes a little longer.
    pub(crate) fn stats_at(&self, position: u32) -> SwarmStats {
        let partial_seeds = self.store.entry(position).partial_seeds();
        SwarmStats { counts: self.counts_at(position), partial_seeds }
    }

    /// Adds a torrent without peers, for a peer that is about to join; returns its position.
    pub(crate) fn add_torrent(
        &mut self,
        hash: u64,
        announce: &SwarmAnnounce,
    ) -> Result<u32, JoinRefusal> {
        let address = announce.endpoint.address();
        let exceeds = match announce.endpoint.family() {
            Family::V4 => {
                record_of::<V4>(address, 0, 0, 0).map(|it| self.has_reached_source_limit(&it))
            }
            Family::V6 => {
                record_of::<V6>(address, 0, 0, 0).map(|it| self.has_reached_source_limit(&it))
            }
        };
        if exceeds == Some(true) {
            return Err(JoinRefusal::Source);
        }
        self.push_torrent(hash, &announce.info_hash)
    }

    /// Adds a torrent without peers; returns its position.
    pub(crate) fn push_torrent(
        &mut self,
        hash: u64,
        info_hash: &InfoHash,
    ) -> Result<u32, JoinRefusal> {
        let position = self.store.entries.len() as u32;
        if !self.has_memory_for_torrent() || position >= POSITIONS_MAX - 1 {
            return Err(JoinRefusal::NewTorrent);
        }
        self.store.entries.push(Entry::new(info_hash));
        let (store, hasher) = (&self.store, &self.context.hasher);
        let key_of = |position: u32| store.entry(position).info_hash();
        let elements = Elements { key_of, hash_of: |key: &InfoHash| hash_of(hasher, key) };
        if self.index.insert(hash, position, elements) {
            self.stats.empty_torrents += 1;
            return Ok(position);
        }
        self.store.entries.pop();
        Err(JoinRefusal::NewTorrent)
    }

    /// Removes a torrent without peers; returns the number of index slots that were visited.
    pub(crate) fn remove_torrent(&mut self, position: u32) -> usize {
        self.stats.empty_torrents -= 1;
        let (store, hasher) = (&self.store, &self.context.hasher);
        let key_of = |position: u32| store.entry(position).info_hash();
        let hash = hash_of(hasher, &key_of(position));
        let elements = Elements { key_of, hash_of: |key: &InfoHash| hash_of(hasher, key) };
        let visited = self.index.remove(hash, position, elements);
        if let Some(from) = self.store.remove(position) {
            let hash = self.hash(&self.store.entry(position).info_hash());
            self.index.relocate(hash, from, position);
        }
        visited
    }

    /// Removes a torrent without peers unless its completed downloads are still kept; returns the number of index
    /// slots that were visited.
    pub(crate) fn remove_torrent_if_expired(&mut self, position: u32) -> usize {
        let entry = self.store.entry(position);
        let tick = self.idle_ticks.at(self.now);
        if entry.completed() > 0 && !self.idle_ticks.is_expired(tick, entry.tick()) {
            return 0;
        }
        self.remove_torrent(position)
    }

    /// Updates the totals after the peers of one family have changed from `before`.
    pub(crate) fn count_change(&mut self, before: RoleCounts, position: u32, family: Family) {
        let entry = self.store.entry(position);
        let after = entry.roles(family);
        if before == after {
            return;
        }
        match (entry.peers(), entry.peers() + before.len() - after.len()) {
            (0, 1..) => self.stats.empty_torrents += 1,
            (1.., 0) => self.stats.empty_torrents -= 1,
            _ => {}
        }
        let update = |total: &mut u64, before: u32, after: u32| {
            *total = *total + u64::from(after) - u64::from(before);
        };
        update(&mut self.stats.seeders[family as usize], before.seeders, after.seeders);
        update(&mut self.stats.leechers[family as usize], before.leechers, after.leechers);
    }

    /// Moves the remaining peers of a torrent to a smaller placement after some were removed; a torrent that has none
    /// left gets the time from which its completed downloads are kept.
    pub(crate) fn after_removal(&mut self, position: u32) {
        self.store.shrink_to_fit(position);
        if self.store.entry(position).peers() == 0 {
            let tick = self.idle_ticks.at(self.now);
            self.store.entry_mut(position).set_tick(tick);
        }
    }

    /// Returns when the last peer of a torrent without peers has left.
    pub(crate) fn emptied_at(&self, position: u32) -> i64 {
        self.idle_ticks.start_of(self.now.signed(), self.store.entry(position).tick())
    }

    /// Returns the tick that stands for a time at which the last peer of a torrent has left; `None` if the torrent has
    /// expired since.
    pub(crate) fn idle_tick_at(&self, time: i64) -> Option<u8> {
        let has_expired = self.idle_ticks.is_expired_at(self.now.signed(), time);
        (!has_expired).then(|| self.idle_ticks.at_signed(time))
    }

    /// Returns the prefix lengths by which peers of a family are preferred.
    pub(crate) fn prefix_lengths(&self, family: Family) -> PrefixLengths {
        match family {
            Family::V4 => self.subnets.v4,
            Family::V6 => self.subnets.v6,
        }
    }

    pub(crate) fn address_cap<const N: usize>(&self) -> u32 {
        if N == V4 { self.settings.caps.per_ipv4 } else { self.settings.caps.per_ipv6_64 }
    }

    pub(crate) fn scope(&self, endpoint: Endpoint) -> Scope {
        match self.settings.allow_private {
            true => Scope::Global,
            false => Scope::of(endpoint.address()),
        }
    }

    /// Returns whether the source of a record has as many peers as it may have at the moment.
    pub(crate) fn has_reached_source_limit<const N: usize>(&self, record: &[u8; N]) -> bool {
        let limit = self.source_limit;
        limit < u32::MAX && self.store.sources.count(SourceNetwork::of_record(record)) >= limit
    }
}

/// Memory. Of the limit, the last 1/32 is for peers of torrents that are stored already, and the last 1/64 is not used.
impl Table {
    pub(crate) fn bytes(&self) -> usize {
        self.store.bytes() + self.index.bytes()
    }

    /// Returns whether so little memory is free that eviction starts.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        self.free_bytes() < self.settings.memory_bytes / 16
    }

    /// Returns whether enough memory is free for eviction to stop.
    pub(crate) fn has_memory_again(&self) -> bool {
        self.free_bytes() >= self.settings.memory_bytes / 16 + self.settings.memory_bytes / 64
    }

    /// Returns whether so much memory is free that an import may add torrents and peers: an eighth, so that it causes
    /// no eviction.
    pub(crate) fn has_memory_for_import(&self) -> bool {
        self.free_bytes() >= self.settings.memory_bytes / 8
    }

    /// Returns whether nothing that needs memory can be added any more.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        let limit = self.settings.memory_bytes;
        // A new block may need a new slab.
        self.bytes() >= limit - limit / 64
    }

    fn has_memory_for_torrent(&self) -> bool {
        self.bytes() + self.store.entries.next_push_bytes() <= self.torrents_limit()
    }

    fn torrents_limit(&self) -> usize {
        self.settings.memory_bytes - self.settings.memory_bytes / 32
    }

    /// Returns the bytes that are free for torrents: unused entries, and whole chunks of entries below the limit.
    fn free_bytes(&self) -> usize {
        let free = self.torrents_limit().saturating_sub(self.bytes());
        if free == 0 {
            return 0;
        }
        let chunk = self.store.entries.next_chunk_bytes();
        self.store.entries.unused_bytes() + free / chunk * chunk
    }

    fn pressure_per_1_000(&self) -> u32 {
        let enough = self.settings.memory_bytes / 16;
        // At most 1,000.
        (enough.saturating_sub(self.free_bytes()) as u64 * 1_000 / enough.max(1) as u64) as u32
    }
}

/// Returns the hash of an info hash.
///
/// It is that of [`SipHasher13::hash`], from words instead of a slice: the compiler then knows the length.
fn hash_of(hasher: &SipHasher13, info_hash: &InfoHash) -> u64 {
    let (first, second) = hasher.keys();
    let mut words = SipHasher13::new_with_keys(first, second);
    let (word, rest) = info_hash.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
    words.write_u64(u64::from_le_bytes(*word));
    let (word, rest) = rest.split_first_chunk().unwrap_or((&[0; 8], &[]));
    words.write_u64(u64::from_le_bytes(*word));
    words.write_u32(rest.first_chunk().map_or(0, |word| u32::from_le_bytes(*word)));
    words.finish()
}
