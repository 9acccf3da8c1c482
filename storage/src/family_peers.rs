//! The peers of one address family in one swarm, independent of where their records are stored.
//!
//! Seeders come before leechers, each in random order: a new record swaps places with a random record of its role. So
//! any run of records is a uniform sample of the swarm, and reading 50 peers touches a few cache lines.

use crate::large_swarm::{LARGE_SWARM_PEERS_MAX, LargeSwarm};
use crate::record::{RecordContext, RoleCounts, cap_prefix, compact, partial_seed, role_of};
use crate::sources::{SourceCounts, SourceNetwork};
use crate::subnet::{PrefixLengths, SubnetPeers, prefix_of};
use crate::types::Role;
use crate::work_counter;

/// Number of records that are compared with a joining peer to estimate whether its address has many peers: one cache
/// line of IPv4 records.
const ADDRESS_SAMPLE: usize = 8;

/// Where the records are.
#[derive(Debug)]
pub(crate) enum RecordStorage<'a, const N: usize> {
    /// In an entry or a block; the length of the slice is its capacity.
    Slice(&'a mut [[u8; N]]),
    /// In chunks with an index.
    LargeSwarm(&'a mut LargeSwarm<N>),
}

/// The peers of one family in one swarm.
#[derive(Debug)]
pub(crate) struct FamilyPeers<'a, const N: usize> {
    pub(crate) records: RecordStorage<'a, N>,
    pub(crate) roles: RoleCounts,
    /// Change of the number of partial seeds since this was created.
    pub(crate) partial_seeds_change: i32,
    pub(crate) sources: &'a mut SourceCounts,
    /// Number of peers that were removed since this was created because they had expired.
    pub(crate) expired: u32,
}

/// Result of a search for an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundRecord {
    pub(crate) position: Option<usize>,
    /// Number of other peers with the same cap prefix that the search passed: all of them if no record
    /// was found and [`FamilyPeers::finds_all_of_address`].
    pub(crate) same_address: u32,
}

impl<const N: usize> FamilyPeers<'_, N> {
    pub(crate) fn at(&self, position: usize) -> &[u8; N] {
        match &self.records {
            RecordStorage::Slice(records) => &records[position],
            RecordStorage::LargeSwarm(large_swarm) => large_swarm.at(position),
        }
    }

    /// Returns records that are contiguous in memory from a position on: at least one, but not always all that follow.
    pub(crate) fn run_from(&self, position: usize) -> &[[u8; N]] {
        match &self.records {
            RecordStorage::Slice(records) => &records[position..],
            RecordStorage::LargeSwarm(large_swarm) => large_swarm.run_from(position),
        }
    }

    fn at_mut(&mut self, position: usize) -> &mut [u8; N] {
        match &mut self.records {
            RecordStorage::Slice(records) => &mut records[position],
            RecordStorage::LargeSwarm(large_swarm) => large_swarm.at_mut(position),
        }
    }

    /// Overwrites the record of a peer whose role has not changed.
    pub(crate) fn replace(&mut self, position: usize, record: [u8; N]) {
        self.partial_seeds_change += partial_seed(&record) as i32;
        self.partial_seeds_change -= partial_seed(self.at(position)) as i32;
        *self.at_mut(position) = record;
    }

    /// Returns the number of stored peers of the source of the peer at a position.
    pub(crate) fn source_count(&self, position: usize) -> u32 {
        self.sources.count(SourceNetwork::of_record(self.at(position)))
    }

    fn count(&mut self, record: &[u8; N]) {
        self.partial_seeds_change += partial_seed(record) as i32;
        self.sources.add(SourceNetwork::of_record(record));
    }

    /// Removes a peer from the counts, before its record is removed.
    fn uncount(&mut self, position: usize) {
        let record = *self.at(position);
        self.partial_seeds_change -= partial_seed(&record) as i32;
        self.sources.remove(SourceNetwork::of_record(&record));
    }

    /// Returns whether a search that finds no record counts all peers with the same cap prefix.
    pub(crate) fn finds_all_of_address(&self) -> bool {
        match &self.records {
            RecordStorage::Slice(_) => true,
            RecordStorage::LargeSwarm(large_swarm) => large_swarm.finds_all_of_address(),
        }
    }

    /// Returns whether a small random sample has a peer of the same address. If an address has many peers, one of the
    /// next joins finds out.
    pub(crate) fn seems_to_share_address(&self, record: &[u8; N], rng: &mut fastrand::Rng) -> bool {
        let at = rng.usize(..self.roles.len().max(1));
        let run = self.run_from(at).iter().take((self.roles.len() - at).min(ADDRESS_SAMPLE));
        run.filter(|other| cap_prefix(other) == cap_prefix(record)).count() > 0
    }

    /// Searches for the record of the same endpoint.
    pub(crate) fn find(&self, sought: &[u8; N], context: &RecordContext) -> FoundRecord {
        let mut same_address = 0;
        let mut matches = |record: &[u8; N]| {
            work_counter::count_records(N);
            let found = compact(record) == compact(sought);
            same_address += u32::from(!found && cap_prefix(record) == cap_prefix(sought));
            found
        };
        let position = match &self.records {
            RecordStorage::Slice(records) => {
                records[..self.roles.len()].iter().position(&mut matches)
            }
            RecordStorage::LargeSwarm(large_swarm) => {
                large_swarm.find(sought, &context.hasher, &mut matches)
            }
        };
        FoundRecord { position, same_address }
    }

    pub(crate) fn is_seeder(&self, position: usize) -> bool {
        position < self.roles.seeders as usize
    }

    /// Returns the role of the peer at a position.
    pub(crate) fn role(&self, position: usize) -> Role {
        role_of(self.at(position), self.is_seeder(position))
    }

    /// Returns whether a record can be added without a larger placement.
    pub(crate) fn has_free_slot(&self) -> bool {
        match &self.records {
            RecordStorage::Slice(records) => self.roles.len() < records.len(),
            RecordStorage::LargeSwarm(_) => self.roles.len() < LARGE_SWARM_PEERS_MAX,
        }
    }

    /// Removes a record and moves the last one of its role into the gap. Returns the number of index slots that were
    /// visited.
    pub(crate) fn remove(&mut self, position: usize, context: &RecordContext) -> usize {
        let visited = self.unindex(position, context);
        self.uncount(position);
        self.fill_gap(position, context);
        visited
    }

    /// Adds a record at a random position of its role; there must be room. Returns the position, or `None` if the index
    /// is full.
    ///
    /// A record that has to move towards the end, which the sweep has visited already, is checked first: if it has
    /// expired, it is replaced. So the sweep misses no expired record, however many peers join while it runs.
    pub(crate) fn insert(
        &mut self,
        seeder: bool,
        record: [u8; N],
        context: &RecordContext,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let seeders = self.roles.seeders as usize;
        let end = self.roles.len();
        let (start, gap) = if seeder { (0, seeders) } else { (seeders, end) };
        let place = rng.usize(start..=gap);
        if place < gap && context.is_expired(self.at(place)) {
            self.unindex(place, context);
            self.uncount(place);
            self.expired += 1;
            return self.put(place, record, context);
        }
        if seeder && seeders < end && context.is_expired(self.at(seeders)) {
            self.unindex(seeders, context);
            self.uncount(seeders);
            self.expired += 1;
            self.roles.leechers -= 1;
        } else {
            self.push_empty();
            if seeder {
                self.relocate(seeders, end, context);
            }
        }
        self.relocate(place, gap, context);
        if seeder {
            self.roles.seeders += 1;
        } else {
            self.roles.leechers += 1;
        }
        self.put(place, record, context)
    }

    /// Writes a record to a position that is not indexed. If the index is full, the gap is filled and `None` returned.
    fn put(&mut self, place: usize, record: [u8; N], context: &RecordContext) -> Option<usize> {
        *self.at_mut(place) = record;
        self.count(&record);
        if let RecordStorage::LargeSwarm(large_swarm) = &mut self.records {
            if !large_swarm.index_endpoint(place, &context.hasher) {
                self.uncount(place);
                self.fill_gap(place, context);
                return None;
            }
            large_swarm.note_written((None, place), &record);
        }
        Some(place)
    }

    /// Removes a position whose record is not indexed.
    fn fill_gap(&mut self, place: usize, context: &RecordContext) {
        let end = self.roles.len() - 1;
        let mut gap = place;
        if self.is_seeder(place) {
            self.roles.seeders -= 1;
            gap = self.roles.seeders as usize;
            self.relocate(gap, place, context);
        } else {
            self.roles.leechers -= 1;
        }
        self.relocate(end, gap, context);
        self.pop(end);
    }

    /// Adds the peer at a position to the subnet index of a large swarm. Small swarms have none: all of their peers are
    /// compared.
    pub(crate) fn index_subnets(
        &mut self,
        position: usize,
        lengths: PrefixLengths,
        context: &RecordContext,
        rng: &mut fastrand::Rng,
    ) {
        if let RecordStorage::LargeSwarm(large_swarm) = &mut self.records {
            large_swarm.index_subnets(position, lengths, &context.hasher, rng);
        }
    }

    /// Drops a subnet index that was built for other prefix lengths.
    pub(crate) fn drop_other_subnet_index(&mut self, lengths: PrefixLengths) {
        if let RecordStorage::LargeSwarm(large_swarm) = &mut self.records {
            large_swarm.drop_other_subnet_index(lengths);
        }
    }

    /// Returns peers that share the prefix of a record at a level of the prefix lengths: all of a small swarm, some of
    /// a large one.
    pub(crate) fn subnet_peers(
        &self,
        lengths: PrefixLengths,
        level: usize,
        record: &[u8; N],
        context: &RecordContext,
        rng: &mut fastrand::Rng,
    ) -> SubnetPeers {
        let records = match &self.records {
            RecordStorage::Slice(records) => &records[..self.roles.len()],
            RecordStorage::LargeSwarm(large_swarm) => {
                return large_swarm.subnet_peers(lengths, level, record, &context.hasher, rng);
            }
        };
        let mut subnet_peers = SubnetPeers::EMPTY;
        let Some(length) = lengths.iter().nth(level) else { return subnet_peers };
        for (position, other) in records.iter().enumerate() {
            if prefix_of(record).shares(prefix_of(other), length) {
                subnet_peers.push(position as u32);
            }
        }
        subnet_peers
    }

    fn relocate(&mut self, from: usize, to: usize, context: &RecordContext) {
        if from == to {
            return;
        }
        work_counter::count_records(N);
        match &mut self.records {
            RecordStorage::Slice(records) => records[to] = records[from],
            RecordStorage::LargeSwarm(large_swarm) => {
                let record = *large_swarm.at(from);
                large_swarm.relocate(from, to, &context.hasher);
                large_swarm.note_written((Some(from), to), &record);
            }
        }
    }

    fn unindex(&mut self, position: usize, context: &RecordContext) -> usize {
        match &mut self.records {
            RecordStorage::Slice(_) => 0,
            RecordStorage::LargeSwarm(large_swarm) => {
                large_swarm.remove_from_indexes(position, &context.hasher)
            }
        }
    }

    fn push_empty(&mut self) {
        if let RecordStorage::LargeSwarm(large_swarm) = &mut self.records {
            large_swarm.push([0; N]);
        }
    }

    fn pop(&mut self, len: usize) {
        if let RecordStorage::LargeSwarm(large_swarm) = &mut self.records {
            large_swarm.pop();
            debug_assert_eq!(large_swarm.len(), len);
        }
    }
}
