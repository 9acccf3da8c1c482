//! Finds neighbours among the peers of a large swarm, without looking at all of them.

use crate::chunks::Chunks;
use crate::index::PositionIndex;
use crate::part::{compact, prefix_of};
use crate::room::BLOCK_PEERS_MAX;
use crate::subnets::{Group, Lengths, mix};
use siphasher::sip::SipHasher13;

/// Records that are looked at when a swarm gets this: as many as it has when it becomes a large one
const FIRST_LOOK: usize = BLOCK_PEERS_MAX + 1;

/// Peers of a prefix are known by lanes, so that few of them have the same hash: long runs would make each change of
/// the index look at many slots
const LANES: u8 = 8;
const LANE_MAX: usize = 16;

/// For each length of prefix an index of peers, of each prefix no more than fill its lanes
///
/// A peer that finds its lane full takes the place of any in it: those that are known are a sample of those who
/// announced lately, and nobody is handed out to everybody for good.
#[derive(Debug)]
pub(crate) struct Neighbours {
    lengths: Lengths,
    levels: Vec<PositionIndex>,
}

/// The records of a swarm, and the key of its hashes
#[derive(Debug)]
pub(crate) struct Peers<'a, const N: usize, const CHUNK: usize> {
    pub(crate) records: &'a Chunks<[u8; N], CHUNK>,
    pub(crate) hasher: SipHasher13,
}

/// Which lane of its prefix a peer is in
fn lane<const N: usize>(record: &[u8; N]) -> u8 {
    (mix(compact(record)) >> 16) as u8 % LANES
}

impl<const N: usize, const CHUNK: usize> Peers<'_, N, CHUNK> {
    fn at(&self, position: u32) -> &[u8; N] {
        self.records.at(position as usize)
    }

    /// Where a peer of a prefix is looked for
    fn hash(&self, record: &[u8; N], length: u8) -> u64 {
        self.hash_of_lane(record, length, lane(record))
    }

    fn hash_of_lane(&self, record: &[u8; N], length: u8, lane: u8) -> u64 {
        let mut bytes = prefix_of(record).cut(length).bytes();
        // Of two prefixes that come to the same by this, each is looked for among both.
        bytes[15] ^= lane;
        self.hasher.hash(&bytes)
    }

    /// Whether the peer at a position is of this lane of a record's prefix: what is seen on the way need not be
    fn is_of(&self, record: &[u8; N], length: u8, of: u8, position: u32) -> bool {
        let other = self.at(position);
        lane(other) == of && prefix_of(record).shares(prefix_of(other), length)
    }
}

impl Neighbours {
    /// Knows the first peers of a swarm
    pub(crate) fn new<const N: usize, const CHUNK: usize>(
        lengths: Lengths,
        peers: &Peers<'_, N, CHUNK>,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let levels = lengths.iter().map(|_| PositionIndex::new()).collect();
        let mut neighbours = Self { lengths, levels };
        for position in 0..peers.records.len().min(FIRST_LOOK) {
            neighbours.introduce(position as u32, peers, rng);
        }
        neighbours
    }

    pub(crate) fn lengths(&self) -> Lengths {
        self.lengths
    }

    /// Memory held
    pub(crate) fn bytes(&self) -> usize {
        let levels = self.levels.capacity() * size_of::<PositionIndex>();
        size_of::<Self>() + levels + self.levels.iter().map(PositionIndex::bytes).sum::<usize>()
    }

    /// Some that share a record's prefix of the length at this place
    pub(crate) fn group<const N: usize, const CHUNK: usize>(
        &self,
        level: usize,
        record: &[u8; N],
        peers: &Peers<'_, N, CHUNK>,
        rng: &mut fastrand::Rng,
    ) -> Group {
        let mut group = Group::EMPTY;
        let Some((index, length)) = self.levels().nth(level) else { return group };
        let first = rng.u8(..LANES);
        for lane in (first..LANES).chain(0..first) {
            index.find(peers.hash_of_lane(record, length, lane), |position| {
                if peers.is_of(record, length, lane, position) {
                    group.push(position);
                }
                group.is_full()
            });
        }
        group
    }

    /// Makes the peer at a position known, unless it is
    pub(crate) fn introduce<const N: usize, const CHUNK: usize>(
        &mut self,
        position: u32,
        peers: &Peers<'_, N, CHUNK>,
        rng: &mut fastrand::Rng,
    ) {
        let record = peers.at(position);
        let own = lane(record);
        for (index, length) in self.levels.iter_mut().zip(self.lengths.iter()) {
            let (hash, mut others) = (peers.hash(record, length), Group::EMPTY);
            let known = index.find(hash, |other| {
                if other != position && peers.is_of(record, length, own, other) {
                    others.push(other);
                }
                other == position
            });
            if known.is_some() {
                continue;
            }
            let others = others.positions();
            if others.len() >= LANE_MAX {
                let other = others[rng.usize(..others.len())];
                index.relocate(hash, other, position);
            } else {
                // Where the index is full, it stays unknown.
                index.insert(hash, position, |other| peers.hash(peers.at(other), length));
            }
        }
    }

    /// Forgets the peer at a position, whose record is still there; returns the index slots that were visited
    pub(crate) fn forget<const N: usize, const CHUNK: usize>(
        &mut self,
        position: u32,
        peers: &Peers<'_, N, CHUNK>,
    ) -> usize {
        let mut visited = 0;
        for (index, length) in self.levels.iter_mut().zip(self.lengths.iter()) {
            let hash = peers.hash(peers.at(position), length);
            if index.find(hash, |other| other == position).is_some() {
                let hash_of = |other| peers.hash(peers.at(other), length);
                visited += index.remove(hash, position, hash_of);
            }
        }
        visited
    }

    /// The peer at one position goes to another, which nobody has
    pub(crate) fn relocate<const N: usize, const CHUNK: usize>(
        &mut self,
        from: u32,
        to: u32,
        peers: &Peers<'_, N, CHUNK>,
    ) {
        for (index, length) in self.levels.iter_mut().zip(self.lengths.iter()) {
            let hash = peers.hash(peers.at(from), length);
            if index.find(hash, |other| other == from).is_some() {
                index.relocate(hash, from, to);
            }
        }
    }

    fn levels(&self) -> impl Iterator<Item = (&PositionIndex, u8)> {
        self.levels.iter().zip(self.lengths.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part::{V4, record_of};
    use std::collections::BTreeSet;

    /// Prefixes whose runs lie beside each other are told apart, and who has gone is not found
    #[test]
    fn a_group_is_of_its_prefix_and_names_nobody_twice() {
        let lengths = Lengths::new(&[28, 24]).expect("they fall");
        let mut records = Chunks::<_, 2048>::new();
        for number in 0..3_072_u16 {
            let [high, low] = number.to_be_bytes();
            let record = record_of::<V4>([10, 0, high, low].into(), 7_000, 0, 0);
            records.push(record.expect("it is an IPv4 address"));
        }
        let peers = Peers { records: &records, hasher: SipHasher13::new_with_keys(1, 2) };
        let mut rng = fastrand::Rng::with_seed(3);
        let mut neighbours = Neighbours::new(lengths, &peers, &mut rng);
        (0..3_072).for_each(|position| neighbours.introduce(position, &peers, &mut rng));
        for left in [3_072, 1_536] {
            (left..3_072).for_each(|position| _ = neighbours.forget(position, &peers));
            for asker in 0..left {
                let record = *peers.at(asker);
                for (level, length) in lengths.iter().enumerate() {
                    let group = neighbours.group(level, &record, &peers, &mut rng);
                    let distinct: BTreeSet<_> = group.positions().iter().collect();
                    assert_eq!(distinct.len(), group.positions().len());
                    let is_near = |position: &&u32| {
                        let other = prefix_of(peers.at(**position));
                        **position < left && prefix_of(&record).shares(other, length)
                    };
                    assert!(distinct.iter().all(is_near));
                    // All of a /28.
                    assert!(length == 24 || distinct.len() == 16, "{}", distinct.len());
                }
            }
        }
    }
}
