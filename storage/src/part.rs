//! The peers of one family in one swarm, however they are kept: seeders before leechers, each part
//! in random order.
//!
//! A record is the compact endpoint (6 or 18 bytes), a byte of flags and a tick. Its place says its
//! role. New records swap with a random place of their part, so any run of records is a uniform
//! sample, and 50 peers are a few cache lines.

use crate::effort;
use crate::many::{Many, PEERS_MAX};
use crate::sources::{Source, SourceCounts};
use crate::subnets::{Group, Lengths, Prefix};
use crate::time::Ticks;
use crate::types::{Family, Scope};
use siphasher::sip::SipHasher13;
use std::net::IpAddr;

/// Bytes of a record: compact endpoint, flags, tick
pub(crate) const V4: usize = Family::V4.compact_len() + 2;
pub(crate) const V6: usize = Family::V6.compact_len() + 2;

/// A record's flags; the high half is free
pub(crate) mod flags {
    /// Not handed to seeders or partial seeds (BEP 21)
    pub(crate) const PARTIAL_SEED: u8 = 1;
    /// Its completed download has been counted
    pub(crate) const COMPLETED: u8 = 2;
    /// Where the scope is
    pub(crate) const SCOPE: u8 = 0b1100;
}

/// The flags of a peer in this scope
pub(crate) fn scope_flags(scope: Scope) -> u8 {
    match scope {
        Scope::Global => 0,
        Scope::Private => 0b0100,
        Scope::LinkLocal => 0b1000,
        Scope::Loopback => 0b1100,
    }
}

/// The scope in a record's flags
pub(crate) fn scope_of(flags: u8) -> Scope {
    match flags & flags::SCOPE {
        0 => Scope::Global,
        0b0100 => Scope::Private,
        0b1000 => Scope::LinkLocal,
        _ => Scope::Loopback,
    }
}

/// Whether a record is a partial seed's: 1 or 0
pub(crate) fn partial_seed<const N: usize>(record: &[u8; N]) -> u32 {
    u32::from(record[N - 2] & flags::PARTIAL_SEED)
}

/// A record's endpoint in compact form
pub(crate) fn compact<const N: usize>(record: &[u8; N]) -> &[u8] {
    &record[..N - 2]
}

fn address<const N: usize>(record: &[u8; N]) -> &[u8] {
    &record[..N - 4]
}

/// The address of a record, to be compared with others
pub(crate) fn prefix_of<const N: usize>(record: &[u8; N]) -> Prefix {
    Prefix::of(address(record))
}

pub(crate) fn record_of<const N: usize>(
    ip: IpAddr,
    port: u16,
    flags: u8,
    tick: u8,
) -> Option<[u8; N]> {
    let mut record = [0; N];
    match ip {
        IpAddr::V4(ip) if N == V4 => record[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) if N == V6 => record[..16].copy_from_slice(&ip.octets()),
        _ => return None,
    }
    record[N - 4..N - 2].copy_from_slice(&port.to_be_bytes());
    record[N - 2] = flags;
    record[N - 1] = tick;
    Some(record)
}

/// What an address shares its cap with: an IPv4 address, or an IPv6 /64
pub(crate) fn cap_group<const N: usize>(record: &[u8; N]) -> &[u8] {
    if N == V6 { &record[..8] } else { address(record) }
}

/// Records that are compared to find out whether an address has many peers: a cache line of IPv4
const ADDRESS_SAMPLE: usize = 8;

/// Hashes a record to where the index of a large swarm looks for it.
///
/// With a cap on peers per address the port (and, of IPv6, the lower half) is left out: peers that share
/// a cap then lie in one run, no longer than the cap, and are counted on the way. A large swarm keeps the way
/// it was made with, whatever becomes of the cap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointKey {
    pub(crate) hasher: SipHasher13,
    pub(crate) capped: bool,
}

impl EndpointKey {
    pub(crate) fn hash<const N: usize>(self, record: &[u8; N]) -> u64 {
        self.hasher.hash(if self.capped { cap_group(record) } else { compact(record) })
    }
}

/// What every operation on a part goes by
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) key: EndpointKey,
    pub(crate) ticks: Ticks,
    pub(crate) tick: u8,
}

impl Rules {
    pub(crate) fn is_expired<const N: usize>(&self, record: &[u8; N]) -> bool {
        self.ticks.is_expired(self.tick, record[N - 1])
    }
}

/// Where records lie
#[derive(Debug)]
pub(crate) enum Records<'a, const N: usize> {
    /// In an entry or a block; its length is its capacity
    Few(&'a mut [[u8; N]]),
    /// In chunks with an index
    Many(&'a mut Many<N>),
}

/// How many of either role a part holds
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) seeders: u32,
    pub(crate) leechers: u32,
}

impl Roles {
    pub(crate) fn len(self) -> usize {
        (self.seeders + self.leechers) as usize
    }
}

/// One family's peers
#[derive(Debug)]
pub(crate) struct Part<'a, const N: usize> {
    pub(crate) records: Records<'a, N>,
    pub(crate) roles: Roles,
    /// How many partial seeds have come since it was looked up, less those that have gone
    pub(crate) more_partial_seeds: i32,
    pub(crate) sources: &'a mut SourceCounts,
}

/// What a search found
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) position: Option<usize>,
    /// Others seen that share its cap; exact when caps are set
    pub(crate) sharing: u32,
}

impl<const N: usize> Part<'_, N> {
    pub(crate) fn at(&self, position: usize) -> &[u8; N] {
        match &self.records {
            Records::Few(records) => &records[position],
            Records::Many(many) => many.at(position),
        }
    }

    /// Records that lie together from a position on: at least one, and perhaps not all
    pub(crate) fn run_from(&self, position: usize) -> &[[u8; N]] {
        match &self.records {
            Records::Few(records) => &records[position..],
            Records::Many(many) => many.run_from(position),
        }
    }

    fn at_mut(&mut self, position: usize) -> &mut [u8; N] {
        match &mut self.records {
            Records::Few(records) => &mut records[position],
            Records::Many(many) => many.at_mut(position),
        }
    }

    /// Writes a record over that of the same peer in the same role
    pub(crate) fn replace(&mut self, position: usize, record: [u8; N]) {
        self.more_partial_seeds += partial_seed(&record) as i32;
        self.more_partial_seeds -= partial_seed(self.at(position)) as i32;
        *self.at_mut(position) = record;
    }

    /// Number of stored peers of the source of the peer at a position
    pub(crate) fn source_count(&self, position: usize) -> u32 {
        self.sources.count(Source::of_record(self.at(position)))
    }

    fn count(&mut self, record: &[u8; N]) {
        self.more_partial_seeds += partial_seed(record) as i32;
        self.sources.add(Source::of_record(record));
    }

    /// Decrements the count of the source of a peer that is about to be removed
    fn discount(&mut self, position: usize) {
        let record = *self.at(position);
        self.more_partial_seeds -= partial_seed(&record) as i32;
        self.sources.remove(Source::of_record(&record));
    }

    /// Whether the number of peers that share an address is known: [`Found::sharing`] is exact then
    pub(crate) fn counts_addresses(&self) -> bool {
        match &self.records {
            Records::Few(_) => true,
            Records::Many(many) => many.counts_addresses(),
        }
    }

    /// Whether one of a few peers drawn at random has the address of a record: where many have it, soon one is
    pub(crate) fn seems_to_share_address(&self, record: &[u8; N], rng: &mut fastrand::Rng) -> bool {
        let at = rng.usize(..self.roles.len().max(1));
        let run = self.run_from(at).iter().take((self.roles.len() - at).min(ADDRESS_SAMPLE));
        run.filter(|other| cap_group(other) == cap_group(record)).count() > 0
    }

    /// Looks for the record with this one's endpoint
    pub(crate) fn find(&self, sought: &[u8; N], rules: &Rules) -> Found {
        let mut sharing = 0;
        let mut is_it = |record: &[u8; N]| {
            effort::records(N);
            let found = compact(record) == compact(sought);
            sharing += u32::from(!found && cap_group(record) == cap_group(sought));
            found
        };
        let position = match &self.records {
            Records::Few(records) => records[..self.roles.len()].iter().position(&mut is_it),
            Records::Many(many) => many.find(sought, rules.key, &mut is_it),
        };
        Found { position, sharing }
    }

    pub(crate) fn is_seeder(&self, position: usize) -> bool {
        position < self.roles.seeders as usize
    }

    /// Whether a record can be added without moving to a larger home
    pub(crate) fn has_room(&self) -> bool {
        match &self.records {
            Records::Few(records) => self.roles.len() < records.len(),
            Records::Many(_) => self.roles.len() < PEERS_MAX,
        }
    }

    /// Removes a record: the last of its part fills the gap. Returns the index slots that visited
    pub(crate) fn remove(&mut self, position: usize, rules: &Rules) -> usize {
        let visited = self.unindex(position, rules);
        self.discount(position);
        self.close(position, rules);
        visited
    }

    /// Adds a record at a random place of its part; there must be room
    ///
    /// A record that would be moved towards the end, where the sweep has been already, is checked first:
    /// an expired one gives its place. So the sweep misses nobody, however many join while it runs.
    /// Returns where the record went; nowhere if the index cannot take it.
    pub(crate) fn insert(
        &mut self,
        seeder: bool,
        record: [u8; N],
        rules: &Rules,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let seeders = self.roles.seeders as usize;
        let end = self.roles.len();
        let (start, gap) = if seeder { (0, seeders) } else { (seeders, end) };
        let place = rng.usize(start..=gap);
        if place < gap && rules.is_expired(self.at(place)) {
            self.unindex(place, rules);
            self.discount(place);
            return self.put(place, record, rules);
        }
        if seeder && seeders < end && rules.is_expired(self.at(seeders)) {
            self.unindex(seeders, rules);
            self.discount(seeders);
            self.roles.leechers -= 1;
        } else {
            self.extend();
            if seeder {
                self.relocate(seeders, end, rules);
            }
        }
        self.relocate(place, gap, rules);
        if seeder {
            self.roles.seeders += 1;
        } else {
            self.roles.leechers += 1;
        }
        self.put(place, record, rules)
    }

    /// Writes a record where none is indexed; if the index refuses it, the place is closed again
    fn put(&mut self, place: usize, record: [u8; N], rules: &Rules) -> Option<usize> {
        *self.at_mut(place) = record;
        self.count(&record);
        if let Records::Many(many) = &mut self.records
            && !many.index_record(place, rules.key)
        {
            self.discount(place);
            self.close(place, rules);
            return None;
        }
        Some(place)
    }

    /// Takes out a place whose record is not indexed
    fn close(&mut self, place: usize, rules: &Rules) {
        let end = self.roles.len() - 1;
        let mut gap = place;
        if self.is_seeder(place) {
            self.roles.seeders -= 1;
            gap = self.roles.seeders as usize;
            self.relocate(gap, place, rules);
        } else {
            self.roles.leechers -= 1;
        }
        self.relocate(end, gap, rules);
        self.truncate(end);
    }

    /// Lets the peer at a position be found by its neighbours
    pub(crate) fn introduce(
        &mut self,
        position: usize,
        lengths: Lengths,
        rules: &Rules,
        rng: &mut fastrand::Rng,
    ) {
        // A few are all looked at, whoever asks.
        if let Records::Many(many) = &mut self.records {
            many.introduce(position, lengths, rules.key, rng);
        }
    }

    /// Gives up what is known of neighbours by other lengths
    pub(crate) fn keep_neighbours(&mut self, lengths: Lengths) {
        if let Records::Many(many) = &mut self.records {
            many.keep_neighbours(lengths);
        }
    }

    /// Those that share a record's prefix of the length at this place; of a large swarm some of them
    pub(crate) fn group(
        &self,
        lengths: Lengths,
        level: usize,
        record: &[u8; N],
        rules: &Rules,
        rng: &mut fastrand::Rng,
    ) -> Group {
        let records = match &self.records {
            Records::Few(records) => &records[..self.roles.len()],
            Records::Many(many) => return many.group(lengths, level, record, rules.key, rng),
        };
        let mut group = Group::EMPTY;
        let Some(length) = lengths.iter().nth(level) else { return group };
        for (position, other) in records.iter().enumerate() {
            if prefix_of(record).shares(prefix_of(other), length) {
                group.push(position as u32);
            }
        }
        group
    }

    fn relocate(&mut self, from: usize, to: usize, rules: &Rules) {
        if from == to {
            return;
        }
        effort::records(N);
        match &mut self.records {
            Records::Few(records) => records[to] = records[from],
            Records::Many(many) => many.relocate(from, to, rules.key),
        }
    }

    fn unindex(&mut self, position: usize, rules: &Rules) -> usize {
        match &mut self.records {
            Records::Few(_) => 0,
            Records::Many(many) => many.unindex_record(position, rules.key),
        }
    }

    fn extend(&mut self) {
        if let Records::Many(many) = &mut self.records {
            many.push([0; N]);
        }
    }

    fn truncate(&mut self, len: usize) {
        if let Records::Many(many) = &mut self.records {
            many.pop();
            debug_assert_eq!(many.len(), len);
        }
    }
}
