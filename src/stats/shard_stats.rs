//! Statistics of a shard, and their conversion to counters that other threads can read.

use super::outcome::Outcome;
use tsubame_storage::{
    EvictionCounts, Family, SourceCount, SourceNetwork, TOP_SOURCES, TableStats,
};
use tsubame_udp::ring::RingCounts;

const OUTCOMES: usize = Outcome::ALL.len();
const RING: usize = 6;
const TABLE: usize = 11 + 2 * TOP_SOURCES;
const HTTP: usize = 6;
pub(super) const CELLS: usize = 2 * 2 * OUTCOMES + RING + BATCH_SIZES + 2 + TABLE + HTTP;

/// Number of classes of batch sizes: 1 datagram, 2 to 3, 4 to 7, and so on; the last is that of full batches.
pub const BATCH_SIZES: usize = 7;

/// Protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// UDP datagrams.
    Udp,
    /// HTTP, with or without TLS.
    Http,
}

impl Protocol {
    /// Both protocols, in the order of their counters.
    pub const ALL: [Self; 2] = [Self::Udp, Self::Http];
}

/// Counters of HTTP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpStats {
    /// Number of open connections.
    pub open: u64,
    /// Number of accepted connections.
    pub accepted: u64,
    /// Number of connections that were closed because they were idle or too slow.
    pub timed_out: u64,
    /// Number of connections that were closed or refused to limit their number.
    pub evicted: u64,
    /// Number of connections with TLS errors, mostly in the handshake.
    pub tls_failed: u64,
    /// Number of accepts that failed because too many files were open.
    pub accept_failed: u64,
}

/// Statistics of a shard at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStats {
    outcomes: [[[u64; OUTCOMES]; 2]; 2],
    /// Counters of the io_uring operations.
    pub ring: RingCounts,
    /// Number of turns by the class of their batch size. Turns without datagrams are not counted.
    pub batches: [u64; BATCH_SIZES],
    /// Number of datagrams in these batches.
    pub arrived: u64,
    /// Processor time of the thread of the shard in microseconds, at its last update.
    pub busy_us: u64,
    /// Statistics of the swarm table.
    pub table: TableStats,
    /// Counters of HTTP connections.
    pub http: HttpStats,
}

impl Default for ShardStats {
    fn default() -> Self {
        let (ring, table) = (RingCounts::default(), TableStats::default());
        let batches = [0; BATCH_SIZES];
        let (outcomes, http) = ([[[0; OUTCOMES]; 2]; 2], HttpStats::default());
        Self { outcomes, ring, batches, arrived: 0, busy_us: 0, table, http }
    }
}

impl ShardStats {
    /// Counts a request.
    pub fn count(&mut self, protocol: Protocol, family: Family, outcome: Outcome) {
        self.outcomes[protocol as usize][family as usize][outcome as usize] += 1;
    }

    /// Counts a batch of at least one datagram.
    pub fn count_batch(&mut self, arrived: usize) {
        let class = arrived.max(1).ilog2() as usize;
        self.batches[class.min(BATCH_SIZES - 1)] += 1;
        self.arrived += arrived as u64;
    }

    /// Returns the number of requests with an outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes.iter().flatten().map(|outcomes| outcomes[outcome as usize]).sum()
    }

    /// Returns the number of requests of a protocol and a family with an outcome.
    pub fn of_family(&self, protocol: Protocol, family: Family, outcome: Outcome) -> u64 {
        self.outcomes[protocol as usize][family as usize][outcome as usize]
    }

    /// Returns the number of announces that were answered, whether or not they were stored.
    pub fn announces(&self) -> u64 {
        use Outcome::{
            Completed, Joined, NotStored, Refreshed, RefusedAddressCap, RefusedMemory,
            RefusedNewTorrent, RefusedSource, RefusedSwarmCap, Stopped,
        };
        let answered = [
            Joined,
            Refreshed,
            Completed,
            Stopped,
            NotStored,
            RefusedMemory,
            RefusedNewTorrent,
            RefusedSource,
            RefusedSwarmCap,
            RefusedAddressCap,
        ];
        answered.iter().map(|outcome| self.of(*outcome)).sum()
    }

    /// Returns the number of invalid requests.
    pub fn rejected(&self) -> u64 {
        use Outcome::{
            BadMagic, BadQuery, BadRequest, BrokenProxyHeader, HeadTooLong, MethodNotAllowed,
            NotFound, SourcePortZero, TooShort, UnknownAction, Unreadable, WrongConnectionId,
        };
        let rejected = [
            TooShort,
            UnknownAction,
            BadMagic,
            WrongConnectionId,
            SourcePortZero,
            Unreadable,
            BrokenProxyHeader,
            BadRequest,
            HeadTooLong,
            MethodNotAllowed,
            NotFound,
            BadQuery,
        ];
        rejected.iter().map(|outcome| self.of(*outcome)).sum()
    }

    /// Returns the number of requests that hooks refused.
    pub fn refused_by_policy(&self) -> u64 {
        use Outcome::{
            BadToken, CustomHook, EarlyToken, ExpiredToken, ForbiddenClient, ForbiddenNetwork,
            ForbiddenTorrent, NoPasskey, NoToken, ScrapeWithoutProof, TokenNotChecked,
            TokenOfAnotherTorrent, TooManyAnnounces, TooManyTorrents, UnknownTokenKey,
            WrongPasskey,
        };
        let refused = [
            ForbiddenNetwork,
            ForbiddenTorrent,
            ForbiddenClient,
            NoPasskey,
            WrongPasskey,
            NoToken,
            BadToken,
            UnknownTokenKey,
            ExpiredToken,
            EarlyToken,
            TokenOfAnotherTorrent,
            TokenNotChecked,
            ScrapeWithoutProof,
            TooManyAnnounces,
            TooManyTorrents,
            CustomHook,
        ];
        refused.iter().map(|outcome| self.of(*outcome)).sum()
    }

    /// Returns the number of requests that were dropped or refused because a queue was full.
    pub fn shed(&self) -> u64 {
        let shed = [Outcome::ShedMesh, Outcome::ShedSlots, Outcome::ShedScrape, Outcome::ShedLate];
        shed.iter().map(|outcome| self.of(*outcome)).sum()
    }

    /// Returns the number of peers in all swarms.
    pub fn peers(&self) -> u64 {
        self.table.seeders.iter().chain(&self.table.leechers).sum()
    }

    /// Adds the statistics of another shard.
    pub fn add(&mut self, other: &Self) {
        let mut cells = self.cells();
        for (cell, value) in cells.iter_mut().zip(other.cells()) {
            *cell += value;
        }
        let (pressure, top) = (self.table.pressure_per_1_000, self.table.top_sources);
        *self = Self::of_cells(&cells);
        // These cannot be added: the pressure is that of the worst shard, and sources are merged.
        self.table.pressure_per_1_000 = pressure.max(other.table.pressure_per_1_000);
        self.table.top_sources = merge_top_sources(top, other.table.top_sources);
    }

    pub(super) fn cells(&self) -> [u64; CELLS] {
        let mut cells = [0; CELLS];
        let RingCounts {
            enters,
            sent,
            send_failed,
            out_of_buffers,
            receive_failed,
            dropped_by_kernel,
        } = self.ring;
        let ring: [u64; RING] =
            [enters, sent, send_failed, out_of_buffers, receive_failed, dropped_by_kernel];
        let table = table_cells(&self.table);
        let HttpStats { open, accepted, timed_out, evicted, tls_failed, accept_failed } = self.http;
        let http: [u64; HTTP] = [open, accepted, timed_out, evicted, tls_failed, accept_failed];
        let values = self.outcomes.iter().flatten().flatten().copied().chain(ring);
        let values =
            values.chain(self.batches).chain([self.arrived, self.busy_us]).chain(table).chain(http);
        for (cell, value) in cells.iter_mut().zip(values) {
            *cell = value;
        }
        cells
    }

    pub(super) fn of_cells(cells: &[u64; CELLS]) -> Self {
        let mut stats = Self::default();
        let mut cells = cells.iter().copied();
        let mut next = || cells.next().unwrap_or(0);
        let outcomes = stats.outcomes.iter_mut().flatten().flatten();
        outcomes.for_each(|outcome| *outcome = next());
        stats.ring = RingCounts {
            enters: next(),
            sent: next(),
            send_failed: next(),
            out_of_buffers: next(),
            receive_failed: next(),
            dropped_by_kernel: next(),
        };
        stats.batches.iter_mut().for_each(|batches| *batches = next());
        stats.arrived = next();
        stats.busy_us = next();
        stats.table = table_of_cells(std::array::from_fn(|_| next()));
        stats.http = HttpStats {
            open: next(),
            accepted: next(),
            timed_out: next(),
            evicted: next(),
            tls_failed: next(),
            accept_failed: next(),
        };
        stats
    }
}

/// Returns the sources with the most peers of two shards together. Each shard has a part of the peers of a source.
fn merge_top_sources(
    a: [Option<SourceCount>; TOP_SOURCES],
    b: [Option<SourceCount>; TOP_SOURCES],
) -> [Option<SourceCount>; TOP_SOURCES] {
    let mut all: Vec<SourceCount> = Vec::new();
    for found in a.into_iter().chain(b).flatten() {
        match all.iter_mut().find(|it| it.source == found.source) {
            Some(known) => known.peers = known.peers.saturating_add(found.peers),
            None => all.push(found),
        }
    }
    all.sort_unstable_by_key(|it| std::cmp::Reverse(it.peers));
    std::array::from_fn(|at| all.get(at).copied())
}

fn table_cells(table: &TableStats) -> [u64; TABLE] {
    let TableStats { torrents, empty_torrents, seeders, leechers, bytes, .. } = *table;
    let EvictionCounts { episodes, empty_torrents: evicted_torrents, source_peers } = table.evicted;
    let [[sa, sb], [la, lb]] = [seeders, leechers];
    let (torrents, empty, bytes) = (torrents as u64, empty_torrents as u64, bytes as u64);
    let pressure = table.pressure_per_1_000.into();
    let numbers = [torrents, empty, sa, sb, la, lb, bytes, pressure, episodes, evicted_torrents];
    // A source has at least one peer, so that 0 represents no source.
    let top =
        table.top_sources.map(|top| top.map_or([0; 2], |it| [it.source.number(), it.peers.into()]));
    let mut cells = [0; TABLE];
    let values = numbers.into_iter().chain([source_peers]).chain(top.into_iter().flatten());
    cells.iter_mut().zip(values).for_each(|(cell, value)| *cell = value);
    cells
}

fn table_of_cells(cells: [u64; TABLE]) -> TableStats {
    let mut cells = cells.into_iter();
    let mut next = || cells.next().unwrap_or(0);
    TableStats {
        torrents: next() as usize,
        empty_torrents: next() as usize,
        seeders: [next(), next()],
        leechers: [next(), next()],
        bytes: next() as usize,
        pressure_per_1_000: next() as u32,
        evicted: EvictionCounts { episodes: next(), empty_torrents: next(), source_peers: next() },
        top_sources: std::array::from_fn(|_| {
            let (source, peers) = (SourceNetwork::from_number(next()), next() as u32);
            (peers > 0).then_some(SourceCount { source, peers })
        }),
    }
}
