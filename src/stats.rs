//! What a shard counts, and the board on which others read it.

use crate::outcome::Outcome;
use std::sync::atomic::{AtomicU64, Ordering};
use tsubame_storage::{
    EvictionCounts, Family, Seconds, SourceCount, SourceNetwork, TOP_SOURCES, TableStats,
};
use tsubame_udp::ring::RingCounts;

const OUTCOMES: usize = Outcome::ALL.len();
const RING: usize = 6;
const TABLE: usize = 11 + 2 * TOP_SOURCES;
const HTTP: usize = 6;
const CELLS: usize = 2 * 2 * OUTCOMES + RING + BATCH_SIZES + 2 + TABLE + HTTP;

/// Classes of batches: of 1 datagram, 2 to 3, 4 to 7, and so on; the last is of full ones
pub const BATCH_SIZES: usize = 7;

/// What a request came over
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A datagram
    Udp,
    /// A connection, encrypted or not
    Http,
}

impl Protocol {
    /// Both, in the order of their counters
    pub const ALL: [Self; 2] = [Self::Udp, Self::Http];
}

/// What became of connections
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpCounts {
    /// Connections that are open
    pub open: u64,
    /// Connections that were accepted
    pub accepted: u64,
    /// Connections that were ended as they were idle, or too slow
    pub timed_out: u64,
    /// Connections that were ended, or not begun, for want of room
    pub evicted: u64,
    /// Connections whose bytes were not TLS as it should be, most in their handshake
    pub tls_failed: u64,
    /// Accepts that failed, as no more files may be open
    pub accept_failed: u64,
}

/// A shard's figures at one moment
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    outcomes: [[[u64; OUTCOMES]; 2]; 2],
    /// What became of operations on the ring
    pub ring: RingCounts,
    /// Turns by the class of how many datagrams they took; those that took none are left out
    pub batches: [u64; BATCH_SIZES],
    /// Datagrams taken in turns
    pub arrived: u64,
    /// Processor time of the shard's thread in microseconds, as of the second it last published
    pub busy_us: u64,
    /// What the swarm table holds
    pub table: TableStats,
    /// What became of connections
    pub http: HttpCounts,
}

impl Default for Figures {
    fn default() -> Self {
        let (ring, table) = (RingCounts::default(), TableStats::default());
        let batches = [0; BATCH_SIZES];
        let (outcomes, http) = ([[[0; OUTCOMES]; 2]; 2], HttpCounts::default());
        Self { outcomes, ring, batches, arrived: 0, busy_us: 0, table, http }
    }
}

impl Figures {
    /// Counts a request
    pub fn count(&mut self, protocol: Protocol, family: Family, outcome: Outcome) {
        self.outcomes[protocol as usize][family as usize][outcome as usize] += 1;
    }

    /// Counts a turn that took so many datagrams, at least one
    pub fn count_batch(&mut self, arrived: usize) {
        let class = arrived.max(1).ilog2() as usize;
        self.batches[class.min(BATCH_SIZES - 1)] += 1;
        self.arrived += arrived as u64;
    }

    /// How many requests ended so
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes.iter().flatten().map(|outcomes| outcomes[outcome as usize]).sum()
    }

    /// How many requests of a protocol and a family ended so
    pub fn of_family(&self, protocol: Protocol, family: Family, outcome: Outcome) -> u64 {
        self.outcomes[protocol as usize][family as usize][outcome as usize]
    }

    /// Announces that were answered, whatever they changed
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

    /// Requests that were dropped or refused for what they were
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

    /// Requests that hooks have refused
    pub fn refused_by_policy(&self) -> u64 {
        use Outcome::{
            BadToken, EarlyToken, ExpiredToken, ForbiddenClient, ForbiddenNetwork,
            ForbiddenTorrent, NoPasskey, NoToken, OwnHook, ScrapeNotCovered, TokenNotChecked,
            TokenOfAnother, TooManyAnnounces, TooManyTorrents, UnknownTokenKey, WrongPasskey,
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
            TokenOfAnother,
            TokenNotChecked,
            ScrapeNotCovered,
            TooManyAnnounces,
            TooManyTorrents,
            OwnHook,
        ];
        refused.iter().map(|outcome| self.of(*outcome)).sum()
    }

    /// Requests that were dropped or refused because a queue was full
    pub fn shed(&self) -> u64 {
        let shed = [Outcome::ShedMesh, Outcome::ShedSlots, Outcome::ShedScrape, Outcome::ShedLate];
        shed.iter().map(|outcome| self.of(*outcome)).sum()
    }

    /// Peers in all swarms
    pub fn peers(&self) -> u64 {
        self.table.seeders.iter().chain(&self.table.leechers).sum()
    }

    /// Adds another shard's figures
    pub fn add(&mut self, other: &Self) {
        let mut cells = self.cells();
        for (cell, value) in cells.iter_mut().zip(other.cells()) {
            *cell += value;
        }
        let (pressure, top) = (self.table.pressure_per_1_000, self.table.top_sources);
        *self = Self::of_cells(&cells);
        // Of these there is no sum: the worst shard counts, and each has sources of its own.
        self.table.pressure_per_1_000 = pressure.max(other.table.pressure_per_1_000);
        self.table.top_sources = merged(top, other.table.top_sources);
    }

    fn cells(&self) -> [u64; CELLS] {
        let mut cells = [0; CELLS];
        let RingCounts {
            turns,
            sent,
            send_failed,
            out_of_buffers,
            receive_failed,
            dropped_by_kernel,
        } = self.ring;
        let ring: [u64; RING] =
            [turns, sent, send_failed, out_of_buffers, receive_failed, dropped_by_kernel];
        let table = table_cells(&self.table);
        let HttpCounts { open, accepted, timed_out, evicted, tls_failed, accept_failed } =
            self.http;
        let http: [u64; HTTP] = [open, accepted, timed_out, evicted, tls_failed, accept_failed];
        let values = self.outcomes.iter().flatten().flatten().copied().chain(ring);
        let values =
            values.chain(self.batches).chain([self.arrived, self.busy_us]).chain(table).chain(http);
        for (cell, value) in cells.iter_mut().zip(values) {
            *cell = value;
        }
        cells
    }

    fn of_cells(cells: &[u64; CELLS]) -> Self {
        let mut figures = Self::default();
        let mut cells = cells.iter().copied();
        let mut next = || cells.next().unwrap_or(0);
        let outcomes = figures.outcomes.iter_mut().flatten().flatten();
        outcomes.for_each(|outcome| *outcome = next());
        figures.ring = RingCounts {
            turns: next(),
            sent: next(),
            send_failed: next(),
            out_of_buffers: next(),
            receive_failed: next(),
            dropped_by_kernel: next(),
        };
        figures.batches.iter_mut().for_each(|batches| *batches = next());
        figures.arrived = next();
        figures.busy_us = next();
        figures.table = table_of_cells(std::array::from_fn(|_| next()));
        figures.http = HttpCounts {
            open: next(),
            accepted: next(),
            timed_out: next(),
            evicted: next(),
            tls_failed: next(),
            accept_failed: next(),
        };
        figures
    }
}

/// The sources that hold most of two shards' together: each shard has a part of a source's peers
fn merged(
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
    // No source has no peers.
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

/// Where a shard publishes its figures; read by the control plane
///
/// Each cell is whole, all of them together need not be of one moment.
#[derive(Debug)]
pub struct Board {
    cells: [AtomicU64; CELLS],
    written: AtomicU64,
}

impl Default for Board {
    fn default() -> Self {
        Self { cells: std::array::from_fn(|_| AtomicU64::new(0)), written: AtomicU64::new(0) }
    }
}

impl Board {
    /// Writes the figures of this moment
    pub fn publish(&self, figures: &Figures, now: Seconds) {
        self.written.store(now.0, Ordering::Relaxed);
        for (cell, value) in self.cells.iter().zip(figures.cells()) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// When the shard last published: it does so each second, also when there is nothing to do
    pub fn written(&self) -> Seconds {
        Seconds(self.written.load(Ordering::Relaxed))
    }

    /// Reads the figures
    pub fn read(&self) -> Figures {
        let mut cells = [0; CELLS];
        for (value, cell) in cells.iter_mut().zip(&self.cells) {
            *value = cell.load(Ordering::Relaxed);
        }
        Figures::of_cells(&cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_read() {
        let mut figures = Figures::default();
        figures.count(Protocol::Udp, Family::V6, Outcome::ShedScrape);
        figures.count(Protocol::Http, Family::V4, Outcome::Joined);
        figures.http.accept_failed = 3;
        figures.ring.receive_failed = 5;
        figures.ring.dropped_by_kernel = 8;
        [1, 3, 4, 63, 64].into_iter().for_each(|arrived| figures.count_batch(arrived));
        assert_eq!(figures.batches, [1, 1, 1, 0, 0, 1, 1]);
        assert_eq!(figures.arrived, 135);
        figures.busy_us = 77;
        figures.table = TableStats {
            torrents: 1,
            empty_torrents: 9,
            seeders: [2, 3],
            leechers: [4, 5],
            bytes: 6,
            pressure_per_1_000: 700,
            evicted: EvictionCounts { episodes: 1, empty_torrents: 2, source_peers: 3 },
            top_sources: [None; TOP_SOURCES],
        };
        let source = SourceNetwork::from_number(0x01_0203);
        figures.table.top_sources[0] = Some(SourceCount { source, peers: 12 });
        let board = Board::default();
        board.publish(&figures, Seconds(7));
        assert_eq!(board.written(), Seconds(7));
        assert_eq!(board.read(), figures);
        let mut sum = board.read();
        sum.add(&figures);
        assert_eq!((sum.announces(), sum.shed(), sum.peers(), sum.table.bytes), (2, 2, 28, 12));
        assert_eq!(sum.of_family(Protocol::Http, Family::V4, Outcome::Joined), 2);
        assert_eq!(sum.of_family(Protocol::Udp, Family::V4, Outcome::Joined), 0);
    }
}
