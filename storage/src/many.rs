//! The peers of one family in a large swarm: chunks of records, and an index that finds an endpoint.

use crate::chunks::Chunks;
use crate::index::PositionIndex;
use crate::neighbours::{Neighbours, Peers};
use crate::part::EndpointKey;
use crate::subnets::{Group, Lengths};

/// Records a chunk holds: 16 KiB of IPv4, 40 KiB of IPv6
const CHUNK: usize = 2048;

/// Peers of one family a swarm may have: the list of chunks, too, stays small enough to move at once
pub(crate) const PEERS_MAX: usize = 4 << 20;

/// More than a block's worth of records of `N` bytes
#[derive(Debug)]
pub(crate) struct Many<const N: usize> {
    records: Chunks<[u8; N], CHUNK>,
    index: PositionIndex,
    /// Whether the index leaves ports out, so that peers of one address are counted: see [`EndpointKey`]
    capped: bool,
    /// Where neighbours are preferred
    neighbours: Option<Box<Neighbours>>,
}

impl<const N: usize> Many<N> {
    /// Memory held
    pub(crate) fn bytes(&self) -> usize {
        let neighbours = self.neighbours.as_ref().map_or(0, |neighbours| neighbours.bytes());
        size_of::<Self>() + self.records.bytes() + self.index.bytes() + neighbours
    }

    pub(crate) fn holding(records: &[[u8; N]], key: EndpointKey) -> Option<Self> {
        let index = PositionIndex::new();
        let mut many = Self { records: Chunks::new(), index, capped: key.capped, neighbours: None };
        for record in records {
            many.records.push(*record);
            if !many.index_record(many.records.len() - 1, key) {
                return None;
            }
        }
        Some(many)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether peers of one address are counted on the way to one of them
    pub(crate) fn counts_addresses(&self) -> bool {
        self.capped
    }

    /// The key of this swarm's index, which may be older than the cap of now
    fn own(&self, key: EndpointKey) -> EndpointKey {
        EndpointKey { capped: self.capped, ..key }
    }

    pub(crate) fn at(&self, position: usize) -> &[u8; N] {
        self.records.at(position)
    }

    /// Records that lie together from a position on
    pub(crate) fn run_from(&self, position: usize) -> &[[u8; N]] {
        self.records.run_from(position)
    }

    pub(crate) fn at_mut(&mut self, position: usize) -> &mut [u8; N] {
        self.records.at_mut(position)
    }

    /// Shows `visit` the positions of records whose key may be this one's, until it says "found"
    pub(crate) fn find(
        &self,
        record: &[u8; N],
        key: EndpointKey,
        mut is_it: impl FnMut(&[u8; N]) -> bool,
    ) -> Option<usize> {
        let at = |position: u32| self.records.at(position as usize);
        self.index
            .find(self.own(key).hash(record), |position| is_it(at(position)))
            .map(|p| p as usize)
    }

    /// Makes room for one more record at the end; what it holds counts only once indexed
    pub(crate) fn push(&mut self, record: [u8; N]) {
        self.records.push(record);
    }

    pub(crate) fn pop(&mut self) {
        self.records.pop();
    }

    /// Indexes the record at a position; false if the index cannot take it
    pub(crate) fn index_record(&mut self, position: usize, key: EndpointKey) -> bool {
        let key = self.own(key);
        let records = &self.records;
        let hash_of = |position: u32| key.hash(records.at(position as usize));
        self.index.insert(hash_of(position as u32), position as u32, hash_of)
    }

    /// Returns the index slots that were visited
    pub(crate) fn unindex_record(&mut self, position: usize, key: EndpointKey) -> usize {
        let key = self.own(key);
        let records = &self.records;
        let hash_of = |position: u32| key.hash(records.at(position as usize));
        let visited = self.index.remove(hash_of(position as u32), position as u32, hash_of);
        match &mut self.neighbours {
            Some(neighbours) => {
                let peers = Peers { records, hasher: key.hasher };
                visited + neighbours.forget(position as u32, &peers)
            }
            None => visited,
        }
    }

    /// Copies a record over one that is no longer indexed
    pub(crate) fn relocate(&mut self, from: usize, to: usize, key: EndpointKey) {
        let record = *self.records.at(from);
        self.index.relocate(self.own(key).hash(&record), from as u32, to as u32);
        if let Some(neighbours) = &mut self.neighbours {
            let peers = Peers { records: &self.records, hasher: key.hasher };
            neighbours.relocate(from as u32, to as u32, &peers);
        }
        *self.records.at_mut(to) = record;
    }

    /// Lets the peer at a position be found by its neighbours
    pub(crate) fn introduce(
        &mut self,
        position: usize,
        lengths: Lengths,
        key: EndpointKey,
        rng: &mut fastrand::Rng,
    ) {
        self.keep_neighbours(lengths);
        let peers = Peers { records: &self.records, hasher: key.hasher };
        let neighbours =
            self.neighbours.get_or_insert_with(|| Box::new(Neighbours::new(lengths, &peers, rng)));
        neighbours.introduce(position as u32, &peers, rng);
    }

    /// Gives up what is known of neighbours by other lengths
    pub(crate) fn keep_neighbours(&mut self, lengths: Lengths) {
        self.neighbours.take_if(|neighbours| neighbours.lengths() != lengths);
    }

    /// Neighbours of a record by the length at this place, as far as they are known by these lengths
    pub(crate) fn group(
        &self,
        lengths: Lengths,
        level: usize,
        record: &[u8; N],
        key: EndpointKey,
        rng: &mut fastrand::Rng,
    ) -> Group {
        let peers = Peers { records: &self.records, hasher: key.hasher };
        let neighbours = self.neighbours.as_deref().filter(|it| it.lengths() == lengths);
        neighbours.map_or(Group::EMPTY, |it| it.group(level, record, &peers, rng))
    }
}

/// The large swarms of a table in one family, by handle
///
/// They lie dense, as blocks do, each with the position of the entry that owns it.
#[derive(Debug)]
pub(crate) struct ManyStore<const N: usize> {
    swarms: Chunks<(u32, Box<Many<N>>), 1024>,
    bytes: usize,
}

impl<const N: usize> ManyStore<N> {
    pub(crate) fn new() -> Self {
        Self { swarms: Chunks::new(), bytes: 0 }
    }

    /// Memory held
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.swarms.bytes()
    }

    pub(crate) fn add(&mut self, many: Many<N>, owner: u32) -> u32 {
        self.bytes += many.bytes();
        self.swarms.push((owner, Box::new(many)));
        (self.swarms.len() - 1) as u32
    }

    /// Frees a large swarm; if that moved another one to its handle, that one's owner
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

    pub(crate) fn at_mut(&mut self, handle: u32) -> &mut Many<N> {
        &mut self.swarms.at_mut(handle as usize).1
    }

    /// Accounts for what a change of one swarm added or gave back
    pub(crate) fn account(&mut self, before: usize, handle: u32) {
        self.bytes = self.bytes - before + self.at(handle).bytes();
    }

    fn at(&self, handle: u32) -> &Many<N> {
        &self.swarms.at(handle as usize).1
    }
}
