//! Eviction: what is removed when memory runs short, worst first.
//!
//! 1. Torrents without peers, however long their completed downloads were to be kept.
//! 2. Peers of the sources that hold most, down to a limit for every source.
//! 3. Where neither is enough, new torrents are refused (`Swarms::add_torrent`).
//!
//! Meanwhile no source joins more peers than the limit permits. Each call does a bounded bit of work, as the sweep
//! does.

use crate::part::{V4, V6};
use crate::sources::{Source, SourceCount, TOP_SOURCES};
use crate::swarms::Swarms;
use crate::sweep::{BUDGET, Fate, TableCursor};
use crate::time::Seconds;
use crate::types::Family;

/// Bytes that a stored peer costs at most: the only peer of a torrent, with its entry and index slot
const PEER_BYTES_MAX: usize = 72;

/// Peers that every source may have, however short memory is
const SOURCE_PEERS_MIN: u32 = 64;

/// Torrents that are looked at to find the sources that hold most, and how many of them in one call
const SAMPLE: u32 = 4_096;
const SAMPLE_STEP: u32 = 256;

/// Seconds after which eviction starts again when it has found nothing to remove
const RETRY_SECS: u64 = 5;

/// What eviction is doing
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Memory is not short
    Off,
    /// Looking for the sources that hold most; this many torrents are still to be looked at
    Sampling(u32),
    /// Removing torrents without peers
    EmptyTorrents,
    /// Removing peers of sources above the limit; whether one was found
    Sources(bool),
    /// There is nothing to remove; look again from this time on
    Exhausted(Seconds),
}

/// Progress of eviction in a table
#[derive(Debug)]
pub(crate) struct Eviction {
    phase: Phase,
    cursor: TableCursor,
    /// Peers that a source may have: `u32::MAX` while memory is not short
    limit: u32,
    /// Torrents without peers are all to be removed, whether memory is short or not
    drop_empty: Option<TableCursor>,
    counts: EvictionCounts,
    /// Sources that hold most by the last sample, the largest first
    top: [Option<SourceCount>; TOP_SOURCES],
}

/// What eviction has removed since the table was made
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvictionCounts {
    /// Times that memory has become short
    pub episodes: u64,
    /// Torrents without peers that were removed before their time
    pub empty_torrents: u64,
    /// Peers removed because their source held too many
    pub source_peers: u64,
}

impl Default for Eviction {
    fn default() -> Self {
        Self {
            phase: Phase::Off,
            cursor: TableCursor::default(),
            limit: u32::MAX,
            drop_empty: None,
            counts: EvictionCounts::default(),
            top: [None; TOP_SOURCES],
        }
    }
}

impl Eviction {
    /// Peers that a source may have at the moment; `u32::MAX` is no limit
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    pub(crate) fn counts(&self) -> EvictionCounts {
        self.counts
    }

    /// Sources that held most when memory became short
    pub(crate) fn top(&self) -> [Option<SourceCount>; TOP_SOURCES] {
        self.top
    }

    fn note_sampled(&mut self, found: SourceCount) {
        let known = self.top.iter().position(|it| it.is_some_and(|it| it.source == found.source));
        let least = self.top.iter().enumerate().min_by_key(|(_, it)| it.map_or(0, |it| it.peers));
        let Some(at) = known.or(least.map(|(at, _)| at)) else { return };
        if known.is_some() || self.top[at].is_none_or(|least| least.peers < found.peers) {
            self.top[at] = Some(found);
        }
    }
}

impl Swarms {
    /// Whether so little memory is left that eviction begins
    pub(crate) fn is_short(&self) -> bool {
        self.room() < self.settings.memory_bytes / 16
    }

    /// Whether eviction has made enough room to stop
    fn is_relieved(&self) -> bool {
        self.room() >= self.settings.memory_bytes / 16 + self.settings.memory_bytes / 64
    }

    /// Whether a torrent can be added
    pub(crate) fn has_room_for_torrent(&self) -> bool {
        let more = self.store.entries.next_bytes();
        self.bytes() + more <= self.torrents_ceiling()
    }

    /// Whether nothing that needs memory can be added; the last part of the ceiling is kept for peers of swarms that
    /// are there
    pub(crate) fn is_full(&self) -> bool {
        let limit = self.settings.memory_bytes;
        // A block comes with its slab.
        self.bytes() >= limit - limit / 64
    }

    /// How short memory is: 0 while there is enough, 1,000 where new torrents are refused
    pub(crate) fn pressure_per_1_000(&self) -> u32 {
        let enough = self.settings.memory_bytes / 16;
        // At most 1,000.
        (enough.saturating_sub(self.room()) as u64 * 1_000 / enough.max(1) as u64) as u32
    }

    fn torrents_ceiling(&self) -> usize {
        self.settings.memory_bytes - self.settings.memory_bytes / 32
    }

    /// Bytes of torrents that can be added: unused entries, and what the ceiling permits in whole chunks of entries
    fn room(&self) -> usize {
        let free = self.torrents_ceiling().saturating_sub(self.bytes());
        if free == 0 {
            return 0;
        }
        let chunk = self.store.entries.next_chunk_bytes();
        self.store.entries.unused_bytes() + free / chunk * chunk
    }

    /// Removes all torrents without peers in the following calls of [`Swarms::sweep`]; returns how many there are
    pub fn drop_empty_torrents(&mut self) -> usize {
        self.eviction.drop_empty = Some(TableCursor::default());
        self.totals().empty_torrents
    }

    /// Does a bounded part of the eviction; true if it should be called again at once
    pub(crate) fn evict(&mut self) -> bool {
        if let Some(mut cursor) = self.eviction.drop_empty.take() {
            let more = self.remove_empty(&mut cursor);
            self.eviction.drop_empty = more.then_some(cursor);
            return true;
        }
        match self.eviction.phase {
            Phase::Off if self.is_short() => {
                self.eviction.counts.episodes += 1;
                self.begin_eviction();
            }
            Phase::Off => return false,
            Phase::Exhausted(_) if self.is_relieved() => self.end_eviction(),
            Phase::Exhausted(retry) if self.now < retry => return false,
            Phase::Exhausted(_) => self.begin_eviction(),
            Phase::Sampling(left) => self.sample(left),
            Phase::EmptyTorrents => {
                let mut cursor = std::mem::take(&mut self.eviction.cursor);
                let more = self.remove_empty(&mut cursor);
                self.eviction.cursor = cursor;
                if self.is_relieved() {
                    self.end_eviction();
                } else if !more {
                    self.begin_phase(Phase::Sources(false));
                }
            }
            Phase::Sources(found) => self.remove_above_limit(found),
        }
        true
    }

    fn begin_eviction(&mut self) {
        // From now on, before it is known who holds most.
        self.eviction.limit = self.source_budget();
        self.eviction.top = [None; TOP_SOURCES];
        self.begin_phase(Phase::Sampling(SAMPLE));
    }

    fn end_eviction(&mut self) {
        self.eviction.limit = u32::MAX;
        self.begin_phase(Phase::Off);
    }

    fn begin_phase(&mut self, phase: Phase) {
        (self.eviction.phase, self.eviction.cursor) = (phase, TableCursor::default());
    }

    /// Peers that a source may have while memory is short, by the configured share
    fn source_budget(&self) -> u32 {
        let share = self.settings.memory_bytes as u64 / 10_000;
        let bytes = share * u64::from(self.settings.source_share_per_10_000);
        u32::try_from(bytes / PEER_BYTES_MAX as u64).unwrap_or(u32::MAX - 1).max(SOURCE_PEERS_MIN)
    }

    /// Looks at some torrents, a peer of each family of each
    fn sample(&mut self, left: u32) {
        for _ in 0..SAMPLE_STEP.min(left) {
            let entries = self.store.entries.len() as u32;
            if entries == 0 {
                break;
            }
            let position = self.rng.u32(..entries);
            let found = [self.sampled::<V4>(position), self.sampled::<V6>(position)];
            for source in found.into_iter().flatten() {
                let peers = self.store.sources.count(source);
                self.eviction.note_sampled(SourceCount { source, peers });
            }
        }
        let left = left.saturating_sub(SAMPLE_STEP);
        if left > 0 {
            self.eviction.phase = Phase::Sampling(left);
            return;
        }
        self.eviction.top.sort_unstable_by_key(|it| std::cmp::Reverse(it.map_or(0, |it| it.peers)));
        // Where nobody exceeds the budget, those who hold most give up a quarter. Counts below the sketch's own error
        // tell nobody from anybody else.
        let largest = self.eviction.top[0].map_or(0, |largest| largest.peers);
        let least = SOURCE_PEERS_MIN.max(self.store.sources.error().saturating_mul(4));
        self.eviction.limit = self.source_budget().min(least.max(largest - largest / 4));
        let empty = self.totals().empty_torrents > 0;
        self.begin_phase(if empty { Phase::EmptyTorrents } else { Phase::Sources(false) });
    }

    fn sampled<const N: usize>(&mut self, position: u32) -> Option<Source>
    where
        crate::room::Homes: crate::room::Width<N>,
    {
        let part = self.store.part::<N>(position);
        let peers = part.roles.len();
        (peers > 0).then(|| Source::of_record(part.at(self.rng.usize(..peers))))
    }

    /// Removes some torrents without peers; true if there may be more
    fn remove_empty(&mut self, cursor: &mut TableCursor) -> bool {
        let before = self.store.entries.len();
        let more = self.walk(cursor, &mut BUDGET.clone(), |swarms, position| {
            (swarms.store.entry(position).peers() == 0).then_some(Fate::Condemned)
        });
        self.eviction.counts.empty_torrents += (before - self.store.entries.len()) as u64;
        more
    }

    fn remove_above_limit(&mut self, found: bool) {
        let before: u64 = Family::ALL.iter().map(|family| self.peers_of(*family)).sum();
        let torrents = self.store.entries.len();
        let (limit, mut cursor) = (self.eviction.limit, std::mem::take(&mut self.eviction.cursor));
        let more =
            self.walk(&mut cursor, &mut BUDGET.clone(), |_, _| Some(Fate::AboveLimit(limit)));
        self.eviction.cursor = cursor;
        let after: u64 = Family::ALL.iter().map(|family| self.peers_of(*family)).sum();
        self.eviction.counts.source_peers += before - after;
        self.eviction.counts.empty_torrents += (torrents - self.store.entries.len()) as u64;
        let found = found || after < before;
        if self.is_relieved() {
            self.end_eviction();
        } else if more {
            self.eviction.phase = Phase::Sources(found);
        } else if found {
            // There may be others who hold too much now.
            self.begin_phase(Phase::Sampling(SAMPLE));
        } else {
            self.begin_phase(Phase::Exhausted(Seconds(self.now.0 + RETRY_SECS)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Caps, Settings};
    use crate::swarms::Announce;
    use crate::types::{Endpoint, Event, InfoHash, Role};
    use crate::{PeerSpace, sources::SourceCounts};
    use std::net::IpAddr;

    /// Through joins, refreshes in other roles, departures, expiry and eviction, a source's count is that of its
    /// records
    #[test]
    fn counts_by_source_follow_every_change() {
        let seed = 9;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut swarms = Swarms::new(Settings {
            peer_lifetime_secs: 600,
            keep_completed_secs: 3_600,
            memory_bytes: 600 << 10,
            source_share_per_10_000: 200,
            caps: Caps { swarm: 400, per_ipv4: 3, per_ipv6_64: 2 },
            allow_private: false,
            hash_key: (1, 2),
            seed,
        });
        let steps = if cfg!(miri) { 500 } else { 200_000 };
        for step in 0..steps {
            let number = rng.u16(..2_000);
            let address: IpAddr = match number % 3 {
                0 => [0x2a00, 1, number % 40, 0, 0, 0, 0, number].into(),
                _ => [93, 5, (number % 40) as u8, (number / 40) as u8].into(),
            };
            let torrent = if rng.bool() { rng.u32(..4) } else { rng.u32(..60_000) };
            let mut info_hash = InfoHash([7; 20]);
            info_hash.0[..4].copy_from_slice(&torrent.to_be_bytes());
            let announce = Announce {
                info_hash,
                endpoint: Endpoint::new(address, 1_000 + number),
                role: [Role::Seeder, Role::Leecher, Role::PartialSeed][rng.usize(..3)],
                event: [Event::None, Event::Completed, Event::Stopped][rng.usize(..3)],
            };
            let now = Seconds(step / 40);
            let ahead = swarms.look_ahead(&info_hash);
            swarms.announce(now, ahead, &announce, PeerSpace::of(Family::V4, &mut []));
            swarms.sweep(now);
        }
        assert!(cfg!(miri) || swarms.totals().evicted.source_peers > 0, "nothing was evicted");
        let mut expected = SourceCounts::new(swarms.rules.key.hasher);
        let mut empty = 0;
        for position in 0..swarms.store.entries.len() as u32 {
            let v4 = swarms.store.part::<V4>(position);
            (0..v4.roles.len()).for_each(|at| expected.add(Source::of_record(v4.at(at))));
            let v6 = swarms.store.part::<V6>(position);
            (0..v6.roles.len()).for_each(|at| expected.add(Source::of_record(v6.at(at))));
            empty += usize::from(swarms.store.entry(position).peers() == 0);
        }
        assert_eq!(swarms.totals().empty_torrents, empty);
        assert!(expected == swarms.store.sources, "seed {seed}");
    }
}
