//! A large swarm: the peers of one family in chunks of records, with an index that finds an endpoint.

use crate::chunks::Chunks;
use crate::index::{Elements, PositionIndex};
use crate::moved_records::MovedRecords;
use crate::record::EndpointHasher;
use crate::subnet::{PrefixLengths, SubnetPeers};
use crate::subnet_index::{SubnetIndex, SwarmRecords};
use siphasher::sip::SipHasher13;

/// Maximum number of records of a chunk, which then has 16 KiB (IPv4) or 40 KiB (IPv6).
const CHUNK: usize = 2048;

/// Maximum number of peers of one family in a swarm. It bounds the list of
/// chunks, which is copied as a whole when it grows.
pub(crate) const LARGE_SWARM_PEERS_MAX: usize = 4 << 20;

/// The peers of one family in a swarm that has had more than [`crate::blocks::BLOCK_PEERS_MAX`] of them.
#[derive(Debug)]
pub(crate) struct LargeSwarm<const N: usize> {
    records: Chunks<[u8; N], CHUNK>,
    index: PositionIndex,
    /// Whether the hash of the index leaves ports out, because a cap per address applied when the swarm was created:
    /// see [`EndpointHasher`].
    hashes_without_port: bool,
    /// Finds subnet peers, if they are preferred.
    subnet_index: Option<Box<SubnetIndex>>,
    /// While an export visits the swarm: the records that it would miss.
    moved: Option<Box<MovedRecords<N>>>,
}

impl<const N: usize> LargeSwarm<N> {
    /// Returns the allocated memory in bytes, without the records that are kept for an export.
    pub(crate) fn bytes(&self) -> usize {
        let subnet_index =
            self.subnet_index.as_ref().map_or(0, |subnet_index| subnet_index.bytes());
        size_of::<Self>() + self.records.bytes() + self.index.bytes() + subnet_index
    }

    /// Creates a large swarm from records, and adds all of them to its index; returns `None` if the index is full.
    pub(crate) fn from_records(
        records: &[[u8; N]],
        endpoint_hasher: EndpointHasher<'_>,
    ) -> Option<Self> {
        let index = PositionIndex::new();
        let mut large_swarm = Self {
            records: Chunks::new(),
            index,
            hashes_without_port: endpoint_hasher.hashes_without_port,
            subnet_index: None,
            moved: None,
        };
        for record in records {
            large_swarm.records.push(*record);
            if !large_swarm.index_endpoint(large_swarm.records.len() - 1, endpoint_hasher.hasher) {
                return None;
            }
        }
        Some(large_swarm)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether an unsuccessful search visits all peers of the same address, so that they can be counted.
    pub(crate) fn finds_all_of_address(&self) -> bool {
        self.hashes_without_port
    }

    /// Returns the hash function of the index.
    fn endpoint_hasher<'a>(&self, hasher: &'a SipHasher13) -> EndpointHasher<'a> {
        EndpointHasher { hasher, hashes_without_port: self.hashes_without_port }
    }

    pub(crate) fn at(&self, position: usize) -> &[u8; N] {
        self.records.at(position)
    }

    /// Returns records that are contiguous in memory from a position on.
    pub(crate) fn run_from(&self, position: usize) -> &[[u8; N]] {
        self.records.run_from(position)
    }

    pub(crate) fn at_mut(&mut self, position: usize) -> &mut [u8; N] {
        self.records.at_mut(position)
    }

    /// Calls `matches` with each record that may have the same endpoint, until it returns true; returns the position of
    /// that record.
    pub(crate) fn find(
        &self,
        record: &[u8; N],
        hasher: &SipHasher13,
        mut matches: impl FnMut(&[u8; N]) -> bool,
    ) -> Option<usize> {
        let at = |position: u32| self.records.at(position as usize);
        self.index
            .find(self.endpoint_hasher(hasher).hash(record), |position| matches(at(position)))
            .map(|p| p as usize)
    }

    /// Adds a record at the end, which is not indexed yet.
    pub(crate) fn push(&mut self, record: [u8; N]) {
        self.records.push(record);
    }

    pub(crate) fn pop(&mut self) {
        self.records.pop();
    }

    /// Adds the record at a position to the index; returns whether the index had room.
    pub(crate) fn index_endpoint(&mut self, position: usize, hasher: &SipHasher13) -> bool {
        let endpoint_hasher = self.endpoint_hasher(hasher);
        let records = &self.records;
        let hash = endpoint_hasher.hash(records.at(position));
        let key_of = |position: u32| *records.at(position as usize);
        let elements = Elements { key_of, hash_of: |it: &[u8; N]| endpoint_hasher.hash(it) };
        self.index.insert(hash, position as u32, elements)
    }

    /// Removes the record at a position from the indexes; returns the number of slots that were visited.
    pub(crate) fn remove_from_indexes(&mut self, position: usize, hasher: &SipHasher13) -> usize {
        let endpoint_hasher = self.endpoint_hasher(hasher);
        let records = &self.records;
        let hash = endpoint_hasher.hash(records.at(position));
        let key_of = |position: u32| *records.at(position as usize);
        let elements = Elements { key_of, hash_of: |it: &[u8; N]| endpoint_hasher.hash(it) };
        let visited = self.index.remove(hash, position as u32, elements);
        match &mut self.subnet_index {
            Some(subnet_index) => {
                let peers = SwarmRecords { records, hasher };
                visited + subnet_index.remove(position as u32, &peers)
            }
            None => visited,
        }
    }

    /// Has the swarm keep the records that an export would miss.
    pub(crate) fn keep_moved(&mut self, moved: Box<MovedRecords<N>>) {
        self.moved = Some(moved);
    }

    /// Returns the records that an export would have missed, and keeps no more of them.
    pub(crate) fn take_moved(&mut self) -> Option<Box<MovedRecords<N>>> {
        self.moved.take()
    }

    /// Keeps a record that is written to a position if an export would miss it; `from` is its position before.
    pub(crate) fn note_written(&mut self, positions: (Option<usize>, usize), record: &[u8; N]) {
        if let Some(moved) = &mut self.moved
            && !moved.keep(positions, record)
        {
            self.moved = None;
        }
    }

    /// Copies a record to a position whose record is not indexed any more.
    pub(crate) fn relocate(&mut self, from: usize, to: usize, hasher: &SipHasher13) {
        let record = *self.records.at(from);
        self.index.relocate(self.endpoint_hasher(hasher).hash(&record), from as u32, to as u32);
        if let Some(subnet_index) = &mut self.subnet_index {
            let peers = SwarmRecords { records: &self.records, hasher };
            subnet_index.relocate(from as u32, to as u32, &peers);
        }
        *self.records.at_mut(to) = record;
    }

    /// Adds the peer at a position to the subnet index.
    pub(crate) fn index_subnets(
        &mut self,
        position: usize,
        lengths: PrefixLengths,
        hasher: &SipHasher13,
        rng: &mut fastrand::Rng,
    ) {
        self.drop_other_subnet_index(lengths);
        let peers = SwarmRecords { records: &self.records, hasher };
        let subnet_index = self
            .subnet_index
            .get_or_insert_with(|| Box::new(SubnetIndex::new(lengths, &peers, rng)));
        subnet_index.insert(position as u32, &peers, rng);
    }

    /// Drops a subnet index that was built for other prefix lengths.
    pub(crate) fn drop_other_subnet_index(&mut self, lengths: PrefixLengths) {
        self.subnet_index.take_if(|subnet_index| subnet_index.lengths() != lengths);
    }

    /// Returns peers that share the first `lengths[level]` bits with a record; none if the subnet index was built for
    /// other lengths.
    pub(crate) fn subnet_peers(
        &self,
        lengths: PrefixLengths,
        level: usize,
        record: &[u8; N],
        hasher: &SipHasher13,
        rng: &mut fastrand::Rng,
    ) -> SubnetPeers {
        let peers = SwarmRecords { records: &self.records, hasher };
        let subnet_index = self.subnet_index.as_deref().filter(|it| it.lengths() == lengths);
        subnet_index.map_or(SubnetPeers::EMPTY, |it| it.subnet_peers(level, record, &peers, rng))
    }
}

/// All large swarms of one family, by handle.
///
/// Handles have no gaps: the last swarm fills the place of one that is freed. Each swarm is stored with the position of
/// the entry that owns it, so that the caller can update the handle in that entry.
#[derive(Debug)]
pub(crate) struct LargeSwarms<const N: usize> {
    swarms: Chunks<(u32, Box<LargeSwarm<N>>), 1024>,
    bytes: usize,
}

impl<const N: usize> LargeSwarms<N> {
    pub(crate) fn new() -> Self {
        Self { swarms: Chunks::new(), bytes: 0 }
    }

    /// Memory held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.swarms.bytes()
    }

    pub(crate) fn add(&mut self, large_swarm: LargeSwarm<N>, owner: u32) -> u32 {
        self.bytes += large_swarm.bytes();
        self.swarms.push((owner, Box::new(large_swarm)));
        (self.swarms.len() - 1) as u32
    }

    /// Frees a large swarm. If that moved another one to its handle, returns the owner of the moved one.
    pub(crate) fn free(&mut self, handle: u32) -> Option<u32> {
        self.bytes -= self.at(handle).bytes();
        let last = self.swarms.pop()?;
        if handle as usize == self.swarms.len() {
            return None;
        }
        let owner = last.0;
        *self.swarms.at_mut(handle as usize) = last;
        Some(owner)
    }

    pub(crate) fn set_owner(&mut self, handle: u32, owner: u32) {
        self.swarms.at_mut(handle as usize).0 = owner;
    }

    pub(crate) fn at_mut(&mut self, handle: u32) -> &mut LargeSwarm<N> {
        &mut self.swarms.at_mut(handle as usize).1
    }

    /// Updates the memory held after a large swarm of `before` bytes was changed.
    pub(crate) fn update_bytes(&mut self, before: usize, handle: u32) {
        self.bytes = self.bytes - before + self.at(handle).bytes();
    }

    fn at(&self, handle: u32) -> &LargeSwarm<N> {
        &self.swarms.at(handle as usize).1
    }
}
