//! Eviction: removes what is worth least when memory becomes short.
//!
//! 1. Torrents without peers, regardless of how long their completed downloads were to be kept.
//! 2. Peers of the sources that have the most peers, until no source is above a limit.
//! 3. If neither is enough, new torrents are refused (`Table::add_torrent`).
//!
//! While memory is short, no source may exceed the limit by joining. Like the sweep, each call does bounded work.

use crate::placement::{PeerStores, RecordWidth};
use crate::record::{V4, V6};
use crate::removal::{Removal, TableCursor, WORK_PER_CALL};
use crate::sources::{SourceCount, SourceNetwork, TOP_SOURCES};
use crate::stats::EvictionCounts;
use crate::table::Table;
use crate::time::Seconds;

/// Maximum cost of a stored peer in bytes: the only peer of its torrent, with the entry and the index slot.
const PEER_BYTES_MAX: usize = 72;

/// Number of peers that every source may have, however short memory is.
const SOURCE_PEERS_MIN: u32 = 64;

/// Number of torrents that are sampled to find the sources with the most peers.
const SAMPLED_TORRENTS: u32 = 4_096;

/// Number of torrents that are sampled in one call.
const SAMPLED_PER_CALL: u32 = 256;

/// Seconds after which eviction is tried again when it found nothing to remove.
const RETRY_SECS: u64 = 5;

/// State of eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Memory is not short.
    Off,
    /// Samples torrents to find the sources with the most peers; this many are left.
    Sampling(u32),
    /// Removes torrents without peers.
    EmptyTorrents,
    /// Removes peers of sources above the limit; true if one was removed in this pass.
    Sources(bool),
    /// Nothing could be removed; tries again at this time.
    Exhausted(Seconds),
}

/// Progress and results of eviction.
#[derive(Debug)]
pub(crate) struct Eviction {
    phase: Phase,
    cursor: TableCursor,
    /// Progress of removing all torrents without peers on request, whether memory is short or not.
    requested: Option<TableCursor>,
    counts: EvictionCounts,
    /// Sources with the most peers in the last sample, largest first once sampling has ended.
    top_sources: [Option<SourceCount>; TOP_SOURCES],
}

impl Default for Eviction {
    fn default() -> Self {
        Self {
            phase: Phase::Off,
            cursor: TableCursor::default(),
            requested: None,
            counts: EvictionCounts::default(),
            top_sources: [None; TOP_SOURCES],
        }
    }
}

impl Eviction {
    pub(crate) fn counts(&self) -> EvictionCounts {
        self.counts
    }

    pub(crate) fn top_sources(&self) -> [Option<SourceCount>; TOP_SOURCES] {
        self.top_sources
    }

    /// Has the following calls of [`Self::run`] remove all torrents without peers.
    pub(crate) fn request_empty_torrents(&mut self) {
        self.requested = Some(TableCursor::default());
    }

    /// Does a bounded step of eviction if it is needed. Returns whether more work is due.
    pub(crate) fn run(&mut self, table: &mut Table) -> bool {
        if let Some(mut cursor) = self.requested.take() {
            let more = self.remove_empty(table, &mut cursor);
            self.requested = more.then_some(cursor);
            return true;
        }
        match self.phase {
            Phase::Off if table.is_short_of_memory() => {
                self.counts.episodes += 1;
                self.begin(table);
            }
            Phase::Off => return false,
            Phase::Exhausted(_) if table.has_memory_again() => self.end(table),
            Phase::Exhausted(retry) if table.now < retry => return false,
            Phase::Exhausted(_) => self.begin(table),
            Phase::Sampling(left) => self.sample(table, left),
            Phase::EmptyTorrents => {
                let mut cursor = std::mem::take(&mut self.cursor);
                let more = self.remove_empty(table, &mut cursor);
                self.cursor = cursor;
                if table.has_memory_again() {
                    self.end(table);
                } else if !more {
                    self.begin_phase(Phase::Sources(false));
                }
            }
            Phase::Sources(found) => self.remove_above_limit(table, found),
        }
        true
    }

    fn begin(&mut self, table: &mut Table) {
        // The limit holds at once, before it is known which sources have the most peers.
        table.source_limit = source_share(table);
        self.top_sources = [None; TOP_SOURCES];
        self.begin_phase(Phase::Sampling(SAMPLED_TORRENTS));
    }

    fn end(&mut self, table: &mut Table) {
        table.source_limit = u32::MAX;
        self.begin_phase(Phase::Off);
    }

    fn begin_phase(&mut self, phase: Phase) {
        (self.phase, self.cursor) = (phase, TableCursor::default());
    }

    /// Samples some torrents, one peer of each family of each.
    fn sample(&mut self, table: &mut Table, left: u32) {
        for _ in 0..SAMPLED_PER_CALL.min(left) {
            let entries = table.store.entries.len() as u32;
            if entries == 0 {
                break;
            }
            let position = table.rng.u32(..entries);
            let found = [sampled::<V4>(table, position), sampled::<V6>(table, position)];
            for source in found.into_iter().flatten() {
                let peers = table.store.sources.count(source);
                self.add_sampled(SourceCount { source, peers });
            }
        }
        let left = left.saturating_sub(SAMPLED_PER_CALL);
        if left > 0 {
            self.phase = Phase::Sampling(left);
            return;
        }
        self.top_sources.sort_unstable_by_key(|it| std::cmp::Reverse(it.map_or(0, |it| it.peers)));
        // If no source exceeds its share, the largest lose a quarter of their peers. Counts below four times the error
        // of the sketch do not tell a large source from others.
        let largest = self.top_sources[0].map_or(0, |largest| largest.peers);
        let least = SOURCE_PEERS_MIN.max(table.store.sources.error().saturating_mul(4));
        table.source_limit = source_share(table).min(least.max(largest - largest / 4));
        let has_empty = table.empty_torrents() > 0;
        self.begin_phase(if has_empty { Phase::EmptyTorrents } else { Phase::Sources(false) });
    }

    /// Adds a sampled source to the largest ones if it is one of them.
    fn add_sampled(&mut self, sampled: SourceCount) {
        let top = &mut self.top_sources;
        let known = top.iter().position(|it| it.is_some_and(|it| it.source == sampled.source));
        let least = top.iter().enumerate().min_by_key(|(_, it)| it.map_or(0, |it| it.peers));
        let Some(at) = known.or(least.map(|(at, _)| at)) else { return };
        if known.is_some() || top[at].is_none_or(|least| least.peers < sampled.peers) {
            top[at] = Some(sampled);
        }
    }

    /// Removes some torrents without peers; returns whether entries are left to be visited.
    fn remove_empty(&mut self, table: &mut Table, cursor: &mut TableCursor) -> bool {
        let before = table.store.entries.len();
        let more = table.walk(cursor, &mut WORK_PER_CALL.clone(), |table, position| {
            (table.store.entry(position).peers() == 0).then_some(Removal::All)
        });
        self.counts.empty_torrents += (before - table.store.entries.len()) as u64;
        more
    }

    /// Removes some peers of sources above the limit; `found` tells whether this pass has removed any before.
    fn remove_above_limit(&mut self, table: &mut Table, found: bool) {
        let (peers, torrents) = (table.peers(), table.store.entries.len());
        let (limit, mut cursor) = (table.source_limit, std::mem::take(&mut self.cursor));
        let more = table.walk(&mut cursor, &mut WORK_PER_CALL.clone(), |_, _| {
            Some(Removal::AboveSourceLimit(limit))
        });
        self.cursor = cursor;
        let removed = peers - table.peers();
        self.counts.source_peers += removed;
        self.counts.empty_torrents += (torrents - table.store.entries.len()) as u64;
        let found = found || removed > 0;
        if table.has_memory_again() {
            self.end(table);
        } else if more {
            self.phase = Phase::Sources(found);
        } else if found {
            // Other sources may be the largest now.
            self.begin_phase(Phase::Sampling(SAMPLED_TORRENTS));
        } else {
            self.begin_phase(Phase::Exhausted(Seconds(table.now.0 + RETRY_SECS)));
        }
    }
}

/// Returns the number of peers that a source may have while memory is short, by the configured share.
fn source_share(table: &Table) -> u32 {
    let share = table.settings.memory_bytes as u64 / 10_000;
    let bytes = share * u64::from(table.settings.source_share_per_10_000);
    u32::try_from(bytes / PEER_BYTES_MAX as u64).unwrap_or(u32::MAX - 1).max(SOURCE_PEERS_MIN)
}

/// Returns the source of a random peer of the torrent at a position.
fn sampled<const N: usize>(table: &mut Table, position: u32) -> Option<SourceNetwork>
where
    PeerStores: RecordWidth<N>,
{
    let peers = table.store.family_peers::<N>(position);
    let len = peers.roles.len();
    (len > 0).then(|| SourceNetwork::of_record(peers.at(table.rng.usize(..len))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::SwarmAnnounce;
    use crate::peer_output::PeerOutput;
    use crate::settings::{Caps, TableSettings};
    use crate::sources::SourceCounts;
    use crate::swarms::Swarms;
    use crate::types::{AnnounceEvent, Endpoint, Family, InfoHash, Role};
    use std::net::IpAddr;

    /// After any sequence of announces, expiry and eviction, the count of a source is the number of its records.
    #[test]
    fn counts_by_source_follow_every_change() {
        let seed = 9;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut swarms = Swarms::new(TableSettings {
            peer_lifetime_secs: 600,
            keep_completed_secs: 3_600,
            memory_bytes: 600 << 10,
            caps: Caps { swarm: 400, per_ipv4: 3, per_ipv6_64: 2 },
            ..TableSettings::with_known_keys(seed)
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
            let announce = SwarmAnnounce {
                info_hash,
                endpoint: Endpoint::new(address, 1_000 + number),
                role: [Role::Seeder, Role::Leecher, Role::PartialSeed][rng.usize(..3)],
                event: [AnnounceEvent::None, AnnounceEvent::Completed, AnnounceEvent::Stopped]
                    [rng.usize(..3)],
            };
            let now = Seconds(step / 40);
            let prefetch = swarms.prefetch_index(&info_hash);
            swarms.announce(now, prefetch, &announce, PeerOutput::for_family(Family::V4, &mut []));
            swarms.sweep(now);
        }
        assert!(cfg!(miri) || swarms.stats().evicted.source_peers > 0, "nothing was evicted");
        let mut expected = SourceCounts::new(swarms.table.context.hasher);
        let mut empty = 0;
        for position in 0..swarms.table.store.entries.len() as u32 {
            let v4 = swarms.table.store.family_peers::<V4>(position);
            (0..v4.roles.len()).for_each(|at| expected.add(SourceNetwork::of_record(v4.at(at))));
            let v6 = swarms.table.store.family_peers::<V6>(position);
            (0..v6.roles.len()).for_each(|at| expected.add(SourceNetwork::of_record(v6.at(at))));
            empty += usize::from(swarms.table.store.entry(position).peers() == 0);
        }
        assert_eq!(swarms.stats().empty_torrents, empty);
        assert!(expected == swarms.table.store.sources, "seed {seed}");
    }
}
