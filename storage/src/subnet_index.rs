//! An index that finds peers of the same subnet in a large swarm without comparing all peers.

use crate::blocks::BLOCK_PEERS_MAX;
use crate::chunks::Chunks;
use crate::index::{Elements, PositionIndex};
use crate::record::compact;
use crate::subnet::{PrefixLengths, SubnetPeers, fnv1a, prefix_of};
use siphasher::sip::SipHasher13;

/// Number of peers that are indexed when the index is created: as many as a swarm has when it becomes a large one.
const INITIAL_PEERS: usize = BLOCK_PEERS_MAX + 1;

/// Number of buckets that the peers of a prefix are divided into, so that few of them have the same hash. Long runs of
/// one hash would make each change of the index visit many slots.
const BUCKETS_PER_PREFIX: u8 = 8;
/// Maximum number of peers in a bucket.
const BUCKET_PEERS_MAX: usize = 16;

/// An index of peers for each prefix length. An index has at most 128 peers of a prefix: 8 buckets of 16.
///
/// A peer whose bucket is full replaces a random one in it. So the indexed peers are a sample of those that announced
/// recently, and no peer is returned to everybody forever.
#[derive(Debug)]
pub(crate) struct SubnetIndex {
    lengths: PrefixLengths,
    levels: Vec<PositionIndex>,
}

/// All records of a swarm, in the index or not, and the hash function of the index.
#[derive(Debug)]
pub(crate) struct SwarmRecords<'a, const N: usize, const CHUNK: usize> {
    pub(crate) records: &'a Chunks<[u8; N], CHUNK>,
    pub(crate) hasher: &'a SipHasher13,
}

/// Returns the number of the bucket of a peer within its prefix.
fn bucket<const N: usize>(record: &[u8; N]) -> u8 {
    (fnv1a(compact(record)) >> 16) as u8 % BUCKETS_PER_PREFIX
}

impl<const N: usize, const CHUNK: usize> SwarmRecords<'_, N, CHUNK> {
    fn at(&self, position: u32) -> &[u8; N] {
        self.records.at(position as usize)
    }

    /// Returns the hash of the bucket of a record.
    fn hash(&self, record: &[u8; N], length: u8) -> u64 {
        self.hash_of_bucket(record, length, bucket(record))
    }

    fn hash_of_bucket(&self, record: &[u8; N], length: u8, bucket: u8) -> u64 {
        let mut bytes = prefix_of(record).cut(length).bytes();
        // Two prefixes may get the same bytes by this; `is_in_bucket` tells their peers apart.
        bytes[15] ^= bucket;
        self.hasher.hash(&bytes)
    }

    /// Returns whether the peer at a position has the prefix of `record` and is in its bucket `number`: peers of other
    /// buckets may have the same hash.
    fn is_in_bucket(&self, record: &[u8; N], length: u8, number: u8, position: u32) -> bool {
        let other = self.at(position);
        bucket(other) == number && prefix_of(record).shares(prefix_of(other), length)
    }
}

impl SubnetIndex {
    /// Creates an index of the first peers of a swarm.
    pub(crate) fn new<const N: usize, const CHUNK: usize>(
        lengths: PrefixLengths,
        peers: &SwarmRecords<'_, N, CHUNK>,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let levels = lengths.iter().map(|_| PositionIndex::new()).collect();
        let mut subnet_index = Self { lengths, levels };
        for position in 0..peers.records.len().min(INITIAL_PEERS) {
            subnet_index.insert(position as u32, peers, rng);
        }
        subnet_index
    }

    pub(crate) fn lengths(&self) -> PrefixLengths {
        self.lengths
    }

    /// Returns the memory held.
    pub(crate) fn bytes(&self) -> usize {
        let levels = self.levels.capacity() * size_of::<PositionIndex>();
        size_of::<Self>() + levels + self.levels.iter().map(PositionIndex::bytes).sum::<usize>()
    }

    /// Returns peers that share the prefix of a record; `level` is the position of its length in [`Self::lengths`].
    pub(crate) fn subnet_peers<const N: usize, const CHUNK: usize>(
        &self,
        level: usize,
        record: &[u8; N],
        peers: &SwarmRecords<'_, N, CHUNK>,
        rng: &mut fastrand::Rng,
    ) -> SubnetPeers {
        let mut subnet_peers = SubnetPeers::EMPTY;
        let Some((index, length)) = self.levels().nth(level) else { return subnet_peers };
        let first = rng.u8(..BUCKETS_PER_PREFIX);
        for bucket in (first..BUCKETS_PER_PREFIX).chain(0..first) {
            index.find(peers.hash_of_bucket(record, length, bucket), |position| {
                if peers.is_in_bucket(record, length, bucket, position) {
                    subnet_peers.push(position);
                }
                subnet_peers.is_full()
            });
        }
        subnet_peers
    }

    /// Adds the peer at a position, unless it is indexed already.
    pub(crate) fn insert<const N: usize, const CHUNK: usize>(
        &mut self,
        position: u32,
        peers: &SwarmRecords<'_, N, CHUNK>,
        rng: &mut fastrand::Rng,
    ) {
        let record = peers.at(position);
        let own = bucket(record);
        for (index, length) in self.levels.iter_mut().zip(self.lengths.iter()) {
            let (hash, mut others) = (peers.hash(record, length), SubnetPeers::EMPTY);
            let known = index.find(hash, |other| {
                if other != position && peers.is_in_bucket(record, length, own, other) {
                    others.push(other);
                }
                other == position
            });
            if known.is_some() {
                continue;
            }
            let others = others.positions();
            if others.len() >= BUCKET_PEERS_MAX {
                let other = others[rng.usize(..others.len())];
                index.relocate(hash, other, position);
            } else {
                // If the index is full, the peer is not indexed.
                let hash_of = |record: &[u8; N]| peers.hash(record, length);
                index.insert(hash, position, Elements { key_of: |at| *peers.at(at), hash_of });
            }
        }
    }

    /// Removes the peer at a position, whose record is still there; returns the number of slots that were visited.
    pub(crate) fn remove<const N: usize, const CHUNK: usize>(
        &mut self,
        position: u32,
        peers: &SwarmRecords<'_, N, CHUNK>,
    ) -> usize {
        let mut visited = 0;
        for (index, length) in self.levels.iter_mut().zip(self.lengths.iter()) {
            let hash = peers.hash(peers.at(position), length);
            if index.find(hash, |other| other == position).is_some() {
                let hash_of = |record: &[u8; N]| peers.hash(record, length);
                let elements = Elements { key_of: |at| *peers.at(at), hash_of };
                visited += index.remove(hash, position, elements);
            }
        }
        visited
    }

    /// Updates the index before the record at `from` is moved to `to`. The record at `to` must not be in the index.
    pub(crate) fn relocate<const N: usize, const CHUNK: usize>(
        &mut self,
        from: u32,
        to: u32,
        peers: &SwarmRecords<'_, N, CHUNK>,
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
    use crate::record::{V4, record_of};
    use std::collections::BTreeSet;

    /// Subnet peers have the prefix, and none is returned twice or after its removal.
    #[test]
    fn subnet_peers_have_the_prefix_and_are_distinct() {
        let lengths = PrefixLengths::new(&[28, 24]).expect("the prefix lengths are descending");
        let mut records = Chunks::<_, 2048>::new();
        for number in 0..3_072_u16 {
            let [high, low] = number.to_be_bytes();
            let record = record_of::<V4>([10, 0, high, low].into(), 7_000, 0, 0);
            records.push(record.expect("it is an IPv4 address"));
        }
        let peers = SwarmRecords { records: &records, hasher: &SipHasher13::new_with_keys(1, 2) };
        let mut rng = fastrand::Rng::with_seed(3);
        let mut subnet_index = SubnetIndex::new(lengths, &peers, &mut rng);
        (0..3_072).for_each(|position| subnet_index.insert(position, &peers, &mut rng));
        for left in [3_072, 1_536] {
            (left..3_072).for_each(|position| _ = subnet_index.remove(position, &peers));
            for requester in 0..left {
                let record = *peers.at(requester);
                for (level, length) in lengths.iter().enumerate() {
                    let subnet_peers = subnet_index.subnet_peers(level, &record, &peers, &mut rng);
                    let distinct: BTreeSet<_> = subnet_peers.positions().iter().collect();
                    assert_eq!(distinct.len(), subnet_peers.positions().len());
                    let is_subnet_peer = |position: &&u32| {
                        let other = prefix_of(peers.at(**position));
                        **position < left && prefix_of(&record).shares(other, length)
                    };
                    assert!(distinct.iter().all(is_subnet_peer));
                    // All of a /28.
                    assert!(length == 24 || distinct.len() == 16, "{}", distinct.len());
                }
            }
        }
    }
}
