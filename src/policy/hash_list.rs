//! An immutable set of info hashes that takes less than 24 bytes for each. Most lookups of hashes that are not in the
//! set cost a single cache miss.
//!
//! The hashes are stored in one array, ordered by bucket. The bucket is selected by a keyed hash: an attacker whose
//! torrents are on the list cannot fill a single bucket. A Bloom filter is checked first, as most requested torrents
//! are on no list.

use tsubame_storage::InfoHash;

/// Average number of hashes in a bucket, 80 bytes.
const PER_BUCKET: usize = 4;

/// Keys of the bucket hash.
#[derive(Clone, Copy)]
struct HashKeys([u64; 4]);

/// Number of bits of the filter for each hash in the set.
const FILTER_BITS_PER_HASH: usize = 20;
/// Number of bits that each hash sets in the filter. Of the hashes that are not in the set, three in a thousand pass.
const BITS_SET_PER_HASH: u32 = 4;

impl HashKeys {
    /// Returns the keyed hash of an info hash.
    fn hash(self, InfoHash(bytes): &InfoHash) -> u64 {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let [first, second, third, last] = self.0;
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        // The last word overlaps the second.
        let hash = fold(word(0) ^ first, word(8) ^ second);
        fold(hash ^ word(12) ^ third, last)
    }
}

/// Maps a keyed hash to an index below `len`. The upper bits of the hash select it.
fn scale(keyed: u64, len: usize) -> usize {
    ((u128::from(keyed) * len as u128) >> 64) as usize
}

/// Returns the bits that a keyed hash sets in its word of the filter. Its lower bits select them.
fn filter_bits(keyed: u64) -> u64 {
    (0..BITS_SET_PER_HASH).fold(0, |bits, index| bits | 1 << (keyed >> (6 * index) & 63))
}

/// An immutable set of info hashes.
pub struct HashList {
    keys: HashKeys,
    /// Bloom filter; all bits of a hash are in one word.
    filter: Box<[u64]>,
    /// Index of the first hash of each bucket, and the end of the last bucket.
    starts: Box<[u32]>,
    hashes: Box<[InfoHash]>,
}

/// Omits the hashes, which may be millions, and the keys from logs.
impl std::fmt::Debug for HashList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HashList").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl HashList {
    /// Creates a set, without duplicates; `seed` determines the hash keys.
    pub fn new(mut hashes: Vec<InfoHash>, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let keys = HashKeys([0; 4].map(|_: u64| rng.u64(..) | 1));
        let buckets = hashes.len().div_ceil(PER_BUCKET).max(1);
        hashes.sort_unstable_by_key(|hash| (scale(keys.hash(hash), buckets), *hash));
        hashes.dedup();
        let mut starts = vec![0; buckets + 1];
        let mut filter = vec![0; (hashes.len() * FILTER_BITS_PER_HASH).div_ceil(64).max(1)];
        for hash in &hashes {
            let keyed = keys.hash(hash);
            starts[scale(keyed, buckets) + 1] += 1;
            let word = scale(keyed, filter.len());
            filter[word] |= filter_bits(keyed);
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        Self { keys, filter: filter.into(), starts: starts.into(), hashes: hashes.into() }
    }

    /// Returns the number of hashes.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Returns whether there are no hashes.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Returns the number of bytes that the set occupies.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.filter) + size_of_val(&*self.starts) + size_of_val(&*self.hashes)
    }

    /// Returns whether a hash is in the set.
    pub fn contains(&self, hash: &InfoHash) -> bool {
        let keyed = self.keys.hash(hash);
        let bits = filter_bits(keyed);
        self.filter[scale(keyed, self.filter.len())] & bits == bits
            && self.bucket(keyed).contains(hash)
    }

    /// Returns all hashes, in unspecified order.
    pub fn iter(&self) -> impl Iterator<Item = &InfoHash> {
        self.hashes.iter()
    }

    fn bucket(&self, keyed: u64) -> &[InfoHash] {
        let bucket = scale(keyed, self.starts.len() - 1);
        &self.hashes[self.starts[bucket] as usize..self.starts[bucket + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_list_contains_exactly_its_hashes() {
        for len in [0, 1, 2, 3, 4, 5, 100, 5_000] {
            let mut rng = fastrand::Rng::with_seed(len);
            // The bytes have few values, so that there are many duplicates and near matches.
            let draw = |rng: &mut fastrand::Rng| {
                let mut hash = [0; 20];
                hash[rng.usize(..20)] = rng.u8(..40);
                hash[rng.usize(..20)] = rng.u8(..40);
                InfoHash(hash)
            };
            let hashes: Vec<_> = (0..len).map(|_| draw(&mut rng)).collect();
            let model: BTreeSet<_> = hashes.iter().copied().collect();
            let list = HashList::new(hashes, len);
            assert_eq!((list.len(), list.is_empty()), (model.len(), model.is_empty()));
            assert!(list.iter().copied().collect::<BTreeSet<_>>() == model);
            for _ in 0..5_000 {
                let hash = draw(&mut rng);
                assert_eq!(list.contains(&hash), model.contains(&hash), "seed {len}: {hash}");
            }
        }
    }

    #[test]
    fn a_hash_takes_at_most_24_bytes_and_buckets_are_even() {
        let mut rng = fastrand::Rng::with_seed(7);
        // Hashes as an attacker would choose them to fill a bucket: equal except for the end.
        let chosen = (0..100_000_u32).map(|number| {
            let mut hash = [b'x'; 20];
            hash[16..].copy_from_slice(&number.to_be_bytes());
            InfoHash(hash)
        });
        let list = HashList::new(chosen.collect(), rng.u64(..));
        assert!(list.bytes() <= list.len() * 24, "{} bytes", list.bytes());
        let longest = list.starts.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest.unwrap() < 24, "{longest:?} in a bucket of 4 on average");
    }
}
