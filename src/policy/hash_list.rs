//! A set of info hashes that is built once: less than 24 bytes each, and mostly one cache miss to see that one is not
//! among them.
//!
//! The hashes lie side by side, those of a bucket behind one another; a bucket is found by a keyed hash, so that
//! nobody who has torrents put on a list can fill one of them. Before them stands a filter, for most torrents that
//! the tracker is asked for are on no list.

use tsubame_storage::InfoHash;

/// Hashes of a bucket, on average: they and their neighbours come with one or two cache lines
const PER_BUCKET: usize = 4;

/// The keys of the bucket hash
#[derive(Clone, Copy)]
struct Keys([u64; 4]);

/// Bits of the filter for each hash, and how many of them it sets: three in a thousand pass that are not there
const FILTER_BITS: usize = 20;
const FILTER_SETS: u32 = 4;

impl Keys {
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
        // The last word overlaps the one before.
        let hash = fold(word(0) ^ first, word(8) ^ second);
        fold(hash ^ word(12) ^ third, last)
    }
}

/// One of so many places, by the upper bits of a hash
fn place(hash: u64, places: usize) -> usize {
    ((u128::from(hash) * places as u128) >> 64) as usize
}

/// The bits of its word that a hash sets in the filter, by its lower bits
fn filter_bits(hash: u64) -> u64 {
    (0..FILTER_SETS).fold(0, |bits, set| bits | 1 << (hash >> (6 * set) & 63))
}

/// Info hashes that are looked for
pub struct HashList {
    keys: Keys,
    /// Words with bits of those whose place it is
    filter: Box<[u64]>,
    /// Where each bucket begins, and where the last one ends
    starts: Box<[u32]>,
    hashes: Box<[InfoHash]>,
}

/// Millions of hashes and the keys do not show in logs
impl std::fmt::Debug for HashList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HashList").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl HashList {
    /// A list of these, each once; `seed` draws the keys
    pub fn new(mut hashes: Vec<InfoHash>, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let keys = Keys([0; 4].map(|_: u64| rng.u64(..) | 1));
        let buckets = hashes.len().div_ceil(PER_BUCKET).max(1);
        hashes.sort_unstable_by_key(|hash| (place(keys.hash(hash), buckets), *hash));
        hashes.dedup();
        let mut starts = vec![0; buckets + 1];
        let mut filter = vec![0; (hashes.len() * FILTER_BITS).div_ceil(64).max(1)];
        for hash in &hashes {
            let hash = keys.hash(hash);
            starts[place(hash, buckets) + 1] += 1;
            let word = place(hash, filter.len());
            filter[word] |= filter_bits(hash);
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        Self { keys, filter: filter.into(), starts: starts.into(), hashes: hashes.into() }
    }

    /// How many there are
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Bytes it takes
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.filter) + size_of_val(&*self.starts) + size_of_val(&*self.hashes)
    }

    /// Whether a hash is among them
    pub fn contains(&self, hash: &InfoHash) -> bool {
        let keyed = self.keys.hash(hash);
        let bits = filter_bits(keyed);
        self.filter[place(keyed, self.filter.len())] & bits == bits
            && self.bucket(keyed).contains(hash)
    }

    /// All, in no order that means anything
    pub fn iter(&self) -> impl Iterator<Item = &InfoHash> {
        self.hashes.iter()
    }

    fn bucket(&self, hash: u64) -> &[InfoHash] {
        let bucket = place(hash, self.starts.len() - 1);
        &self.hashes[self.starts[bucket] as usize..self.starts[bucket + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_list_has_what_was_put_on_it_and_nothing_else() {
        for len in [0, 1, 2, 3, 4, 5, 100, 5_000] {
            let mut rng = fastrand::Rng::with_seed(len);
            // Of few values, so that many are there twice and others only nearly.
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
    fn an_entry_takes_little_and_buckets_are_even() {
        let mut rng = fastrand::Rng::with_seed(7);
        // Hashes as somebody would choose them who wants them side by side: all but the end alike.
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
