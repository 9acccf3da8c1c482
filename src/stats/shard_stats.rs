//! Statistics of a shard, and their conversion to counters that other threads can read.

use super::http_stats::HttpStats;
use super::outcome::Outcome;
use tsubame_storage::{
    AnnounceEvent, EvictionCounts, Family, SourceCount, SourceNetwork, TOP_SOURCES, TableStats,
};
use tsubame_udp::ring::RingCounts;

const OUTCOMES: usize = Outcome::ALL.len();

/// Number of classes of batch sizes: 1 datagram, 2 to 3, 4 to 7, and so on; the last is that of full batches.
pub const BATCH_SIZES: usize = 7;

/// Number of classes of replies by their number of peers: 0, 1, 2 to 3, 4 to 7, and so on; the last has no upper bound.
pub const REPLY_PEER_CLASSES: usize = 10;

/// Number of events of an announce.
pub const EVENTS: usize = 5;

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

/// Phases of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnPhase {
    /// Sends the replies of the turn before, and receives datagrams: system calls.
    Transfer,
    /// Parses requests, checks connection ids and policy, and prefetches.
    Admit,
    /// Updates swarms and writes replies.
    Answer,
    /// Handles messages of other shards.
    Messages,
}

impl TurnPhase {
    /// All phases, in the order of their counters.
    pub const ALL: [Self; 4] = [Self::Transfer, Self::Admit, Self::Answer, Self::Messages];

    /// Returns the name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transfer => "transfer",
            Self::Admit => "admit",
            Self::Answer => "answer",
            Self::Messages => "messages",
        }
    }
}

/// Time of sampled turns, by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnTimes {
    /// Number of turns that were sampled.
    pub turns: u64,
    /// Nanoseconds of each phase in these turns, indexed by [`TurnPhase`].
    pub phase_ns: [u64; TurnPhase::ALL.len()],
}

/// Announces over one protocol that were answered with a list of peers, which may be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnsweredAnnounces {
    /// Number of announces by event: the index is its number in BEP 15, and 4 for `paused` (BEP 21).
    pub events: [u64; EVENTS],
    /// Number of replies by the class of their number of peers.
    pub replies_by_peers: [u64; REPLY_PEER_CLASSES],
    /// Number of peers in these replies.
    pub peers: u64,
}

impl AnsweredAnnounces {
    /// Returns the class of a reply by its number of peers.
    fn reply_class(peers: usize) -> usize {
        match peers {
            0 => 0,
            peers => (peers.ilog2() as usize + 1).min(REPLY_PEER_CLASSES - 1),
        }
    }

    /// Returns the largest number of peers in a class of replies; `None` for the last class.
    pub fn class_peers_max(class: usize) -> Option<u64> {
        (class + 1 < REPLY_PEER_CLASSES).then(|| (1 << class) - 1)
    }
}

/// Statistics of a shard at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStats {
    outcomes: [[[u64; OUTCOMES]; 2]; 2],
    /// Answered announces, indexed by [`Protocol`].
    pub answered_announces: [AnsweredAnnounces; 2],
    /// Counters of the io_uring operations.
    pub ring: RingCounts,
    /// Payload bytes of received datagrams.
    pub received_bytes: u64,
    /// Payload bytes of replies over UDP.
    pub sent_bytes: u64,
    /// Number of turns by the class of their batch size. Turns without datagrams are not counted.
    pub batches: [u64; BATCH_SIZES],
    /// Number of datagrams in these batches.
    pub arrived: u64,
    /// Times of sampled turns.
    pub turn_times: TurnTimes,
    /// Number of messages to other shards that were queued.
    pub messages_sent: u64,
    /// Number of messages to other shards that were dropped because a queue was full.
    pub messages_dropped: u64,
    /// Time for which datagrams are gathered at present, in microseconds.
    pub gather_us: u64,
    /// Processor time of the thread of the shard in microseconds, at its last update.
    pub busy_us: u64,
    /// Statistics of the swarm table.
    pub table: TableStats,
    /// Counters of HTTP connections.
    pub http: HttpStats,
}

impl Default for ShardStats {
    fn default() -> Self {
        Self {
            outcomes: [[[0; OUTCOMES]; 2]; 2],
            answered_announces: [AnsweredAnnounces::default(); 2],
            ring: RingCounts::default(),
            received_bytes: 0,
            sent_bytes: 0,
            batches: [0; BATCH_SIZES],
            arrived: 0,
            turn_times: TurnTimes::default(),
            messages_sent: 0,
            messages_dropped: 0,
            gather_us: 0,
            busy_us: 0,
            table: TableStats::default(),
            http: HttpStats::default(),
        }
    }
}

impl ShardStats {
    /// Counts a request.
    pub fn count(&mut self, protocol: Protocol, family: Family, outcome: Outcome) {
        self.outcomes[protocol as usize][family as usize][outcome as usize] += 1;
    }

    /// Sets the number of requests with an outcome.
    pub fn set_requests(
        &mut self,
        protocol: Protocol,
        family: Family,
        outcome: Outcome,
        count: u64,
    ) {
        self.outcomes[protocol as usize][family as usize][outcome as usize] = count;
    }

    /// Counts an announce that was answered with a number of peers.
    pub fn count_announce(&mut self, protocol: Protocol, event: AnnounceEvent, peers: usize) {
        let announces = &mut self.answered_announces[protocol as usize];
        announces.events[event as usize] += 1;
        announces.replies_by_peers[AnsweredAnnounces::reply_class(peers)] += 1;
        announces.peers += peers as u64;
    }

    /// Counts a batch of at least one datagram.
    pub fn count_batch(&mut self, arrived: usize) {
        let class = arrived.max(1).ilog2() as usize;
        self.batches[class.min(BATCH_SIZES - 1)] += 1;
        self.arrived += arrived as u64;
    }

    /// Returns the number of requests with an outcome.
    pub fn requests(&self, outcome: Outcome) -> u64 {
        self.outcomes.iter().flatten().map(|outcomes| outcomes[outcome as usize]).sum()
    }

    /// Returns the number of requests of a protocol and a family with an outcome.
    pub fn requests_of(&self, protocol: Protocol, family: Family, outcome: Outcome) -> u64 {
        self.outcomes[protocol as usize][family as usize][outcome as usize]
    }

    /// Returns the number of announces that were answered, whether or not they were stored.
    pub fn announces(&self) -> u64 {
        let answered = Outcome::ALL.iter().filter(|it| it.is_answered() && it.kind() == "announce");
        answered.map(|outcome| self.requests(*outcome)).sum()
    }

    /// Returns the number of requests that are malformed, or whose source is not proven.
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
        rejected.iter().map(|outcome| self.requests(*outcome)).sum()
    }

    /// Returns the number of requests that hooks refused.
    pub fn refused_by_policy(&self) -> u64 {
        let is_refused = |outcome: &&Outcome| {
            outcome.hook().is_some()
                || matches!(outcome, Outcome::ScrapeWithoutProof | Outcome::CustomHook)
        };
        Outcome::ALL.iter().filter(is_refused).map(|outcome| self.requests(*outcome)).sum()
    }

    /// Returns the number of requests that were dropped or refused because this shard or another one was overloaded.
    pub fn shed(&self) -> u64 {
        let shed = [Outcome::ShedMesh, Outcome::ShedSlots, Outcome::ShedScrape, Outcome::ShedLate];
        shed.iter().map(|outcome| self.requests(*outcome)).sum()
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
        let (mut cells, mut stats) = ([0; CELLS], *self);
        let mut next = cells.iter_mut();
        stats.visit(&mut |value| {
            if let Some(cell) = next.next() {
                *cell = *value;
            }
        });
        cells
    }

    pub(super) fn of_cells(cells: &[u64; CELLS]) -> Self {
        let (mut stats, mut cells) = (Self::default(), cells.iter().copied());
        stats.visit(&mut |value| *value = cells.next().unwrap_or(0));
        stats
    }

    /// Calls a function with every value, always in the same order.
    fn visit(&mut self, visit: &mut impl FnMut(&mut u64)) {
        self.outcomes.iter_mut().flatten().flatten().for_each(&mut *visit);
        for AnsweredAnnounces { events, replies_by_peers, peers } in &mut self.answered_announces {
            events.iter_mut().chain(replies_by_peers).chain([peers]).for_each(&mut *visit);
        }
        let RingCounts {
            enters,
            sent,
            send_failed,
            out_of_buffers,
            receive_failed,
            dropped_by_kernel,
        } = &mut self.ring;
        let ring = [enters, sent, send_failed, out_of_buffers, receive_failed, dropped_by_kernel];
        ring.into_iter().for_each(&mut *visit);
        self.batches.iter_mut().for_each(&mut *visit);
        self.turn_times.phase_ns.iter_mut().for_each(&mut *visit);
        let rest = [
            &mut self.received_bytes,
            &mut self.sent_bytes,
            &mut self.arrived,
            &mut self.turn_times.turns,
            &mut self.messages_sent,
            &mut self.messages_dropped,
            &mut self.gather_us,
            &mut self.busy_us,
        ];
        rest.into_iter().for_each(&mut *visit);
        visit_table(&mut self.table, visit);
        self.http.visit(visit);
    }
}

/// Number of values of [`ShardStats`].
pub(super) const CELLS: usize = 2 * 2 * OUTCOMES
    + 2 * (EVENTS + REPLY_PEER_CLASSES + 1)
    + 6
    + BATCH_SIZES
    + TurnPhase::ALL.len()
    + 8
    + TABLE_CELLS
    + HttpStats::CELLS;

/// Number of values of [`TableStats`].
const TABLE_CELLS: usize = 12 + 2 * TOP_SOURCES;

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

/// Calls a function with every value of a table's statistics.
fn visit_table(table: &mut TableStats, visit: &mut impl FnMut(&mut u64)) {
    let mut visit_usize = |value: &mut usize| {
        let mut wide = *value as u64;
        visit(&mut wide);
        *value = wide as usize;
    };
    visit_usize(&mut table.torrents);
    visit_usize(&mut table.empty_torrents);
    visit_usize(&mut table.bytes);
    table.seeders.iter_mut().chain(&mut table.leechers).for_each(&mut *visit);
    let mut pressure = table.pressure_per_1_000.into();
    visit(&mut pressure);
    table.pressure_per_1_000 = pressure as u32;
    visit(&mut table.expired_peers);
    let EvictionCounts { episodes, empty_torrents, source_peers } = &mut table.evicted;
    [episodes, empty_torrents, source_peers].into_iter().for_each(&mut *visit);
    for top in &mut table.top_sources {
        // A source has at least one peer, so that 0 represents no source.
        let [mut source, mut peers] =
            top.map_or([0; 2], |it| [it.source.number(), it.peers.into()]);
        visit(&mut source);
        visit(&mut peers);
        let source = SourceNetwork::from_number(source);
        *top = (peers > 0).then_some(SourceCount { source, peers: peers as u32 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_classes_of_replies_are_right() {
        for class in 0..REPLY_PEER_CLASSES - 1 {
            let max = AnsweredAnnounces::class_peers_max(class).expect("it has a bound") as usize;
            let class_of = AnsweredAnnounces::reply_class;
            assert_eq!((class_of(max), class_of(max + 1)), (class, class + 1));
        }
        assert_eq!(AnsweredAnnounces::class_peers_max(REPLY_PEER_CLASSES - 1), None);
    }
}
