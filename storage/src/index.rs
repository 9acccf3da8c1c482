//! An open-addressing hash index of positions, divided into segments that grow one at a time.
//!
//! It stores hashes and positions, not the elements: the caller compares elements and computes their hashes. So the
//! same index finds torrents among entries and endpoints among the peers of a large swarm.

use crate::chunks::Chunks;
use crate::work_counter;

/// Maximum number of slots of a segment: what one call may visit.
pub(crate) const SEGMENT_SLOTS_MAX: usize = 4096;

/// Mean number of positions of a segment above which a segment is split, by linear hashing. A segment that is still to
/// be split has up to twice the mean: far below the limit, unless an attacker can choose hashes.
const SEGMENT_POSITIONS_MEAN: usize = 512;

/// Minimum number of slots of a segment that is not empty.
const SEGMENT_SLOTS_MIN: usize = 8;

/// Positions have 27 bits: 134 million torrents of a shard, or peers of a swarm.
pub(crate) const POSITIONS_MAX: u32 = (1 << POSITION_BITS) - 1;

const POSITION_BITS: u32 = 27;

/// The upper 5 bits of a slot hold a tag from the hash. Of the elements with other hashes that a search passes, it
/// compares only one in 32.
const TAG_SHIFT: u32 = POSITION_BITS;

/// Value of an empty slot, which is no position.
const EMPTY: u32 = u32::MAX;

/// Finds positions by a keyed 64-bit hash.
///
/// The segments use linear hashing: adding one splits one other, so no growth visits more than a segment. Each segment
/// is as large as it needs to be, in steps of a quarter.
#[derive(Debug)]
pub(crate) struct PositionIndex {
    segments: Chunks<Segment, 512>,
    len: usize,
    slots: usize,
}

/// How an index reads the elements whose positions it has.
///
/// Two steps, so that many keys can be read one after the other: most elements are not in the cache of the processor,
/// which waits for several at once if nothing is computed in between.
pub(crate) struct Elements<G, H> {
    /// Returns the key of the element at a position.
    pub(crate) key_of: G,
    /// Returns the hash of a key.
    pub(crate) hash_of: H,
}

/// A hash table with linear probing, without tombstones.
#[derive(Debug, Default)]
struct Segment {
    slots: Box<[u32]>,
    len: u32,
}

impl PositionIndex {
    pub(crate) fn new() -> Self {
        let mut segments = Chunks::new();
        segments.push(Segment::default());
        Self { segments, len: 0, slots: 0 }
    }

    /// Returns the memory held.
    pub(crate) fn bytes(&self) -> usize {
        self.slots * size_of::<u32>() + self.segments.bytes()
    }

    /// Returns the first position whose tag matches: probably the right one, without reading the element.
    pub(crate) fn guess(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// Reads the slot at which the search for a hash starts. Unlike [`Self::guess`], it does not compare what it reads,
    /// so that the processor goes on to the next read without waiting for this one.
    pub(crate) fn read_slot(&self, hash: u64) -> u32 {
        let segment = self.segments.at(self.segment_of(hash));
        segment.slots.get(segment.probe_start(hash)).copied().unwrap_or(EMPTY)
    }

    /// Returns the position for which `matches` returns true, among those that may have the hash.
    pub(crate) fn find(&self, hash: u64, matches: impl FnMut(u32) -> bool) -> Option<u32> {
        self.segments.at(self.segment_of(hash)).find(hash, matches)
    }

    /// Adds a position that is not in the index. Returns false if its segment is full and cannot grow.
    ///
    /// `elements` must be able to read the elements at all positions in the index, including the new one.
    pub(crate) fn insert<K>(
        &mut self,
        hash: u64,
        position: u32,
        elements: Elements<impl Fn(u32) -> K, impl Fn(&K) -> u64>,
    ) -> bool {
        debug_assert!(position < POSITIONS_MAX);
        let at = self.segment_of(hash);
        let segment = self.segments.at_mut(at);
        if segment.is_full() {
            let grown = segment.slots.len() + (segment.slots.len() / 4).max(SEGMENT_SLOTS_MIN);
            if segment.slots.len() >= SEGMENT_SLOTS_MAX {
                return false;
            }
            self.slots -= segment.slots.len();
            segment.resize(grown.min(SEGMENT_SLOTS_MAX), &elements);
            self.slots += segment.slots.len();
        }
        self.segments.at_mut(at).put(hash, position);
        self.len += 1;
        if self.len > self.segments.len() * SEGMENT_POSITIONS_MEAN {
            self.split(&elements);
        }
        true
    }

    /// Removes a position. Returns the number of slots that were visited to fill the gap, and to shrink a segment.
    pub(crate) fn remove<K>(
        &mut self,
        hash: u64,
        position: u32,
        elements: Elements<impl Fn(u32) -> K, impl Fn(&K) -> u64>,
    ) -> usize {
        let at = self.segment_of(hash);
        let segment = self.segments.at_mut(at);
        let visited = segment.remove(hash, position, &elements);
        self.len -= 1;
        let len = segment.len as usize;
        // A segment of which less than three eighths are used is shrunk until it is three quarters full: the next
        // insert does not grow it again.
        let before = segment.slots.len();
        if before <= SEGMENT_SLOTS_MIN || len * 8 >= before * 3 {
            return visited;
        }
        segment.resize(len + len / 3 + 2, &elements);
        self.slots -= before - segment.slots.len();
        visited + before
    }

    /// Replaces the position `from` by `to`.
    pub(crate) fn relocate(&mut self, hash: u64, from: u32, to: u32) {
        let at = self.segment_of(hash);
        let segment = self.segments.at_mut(at);
        let slot = segment.slot_holding(hash, from);
        segment.slots[slot] = pack(hash, to);
    }

    fn segment_of(&self, hash: u64) -> usize {
        let count = self.segments.len();
        let mask = count.next_power_of_two() - 1;
        let wide = hash as usize & mask;
        if wide < count { wide } else { wide & (mask >> 1) }
    }

    /// Adds a segment, and moves to it the positions that belong there.
    fn split<K>(&mut self, elements: &Elements<impl Fn(u32) -> K, impl Fn(&K) -> u64>) {
        let added = self.segments.len();
        // The number of the added segment without its highest bit.
        let source = added - (1 << added.ilog2());
        let old = std::mem::take(self.segments.at_mut(source));
        work_counter::count_slots(old.slots.len());
        self.segments.push(Segment::default());
        let (leaving, staying): (Vec<_>, Vec<_>) =
            old.hashes(elements).into_iter().partition(|(hash, _)| self.segment_of(*hash) == added);
        self.slots -= old.slots.len();
        for (at, positions) in [(source, staying), (added, leaving)] {
            let segment = Segment::holding(&positions);
            self.slots += segment.slots.len();
            *self.segments.at_mut(at) = segment;
        }
    }
}

impl Segment {
    /// Returns a segment, three quarters full, of positions with their hashes.
    fn holding(positions: &[(u64, u32)]) -> Self {
        let slots = positions.len() + positions.len() / 3 + 2;
        let mut segment = Self::with_slots(slots.min(SEGMENT_SLOTS_MAX));
        segment.put_all(positions);
        segment
    }

    fn with_slots(slots: usize) -> Self {
        Self { slots: vec![EMPTY; slots.max(SEGMENT_SLOTS_MIN)].into_boxed_slice(), len: 0 }
    }

    fn is_full(&self) -> bool {
        (self.len as usize + 1) * 8 > self.slots.len() * 7
    }

    /// Returns the positions with the hashes of their elements.
    fn hashes<K>(
        &self,
        elements: &Elements<impl Fn(u32) -> K, impl Fn(&K) -> u64>,
    ) -> Vec<(u64, u32)> {
        let used = self.slots.iter().filter(|slot| **slot != EMPTY);
        let positions: Vec<u32> = used.map(|slot| position_of(*slot)).collect();
        // All keys first: see [`Elements`]. An import of 4 million torrents took 1.4 times as long otherwise.
        let keys: Vec<K> = positions.iter().map(|at| (elements.key_of)(*at)).collect();
        keys.iter().map(&elements.hash_of).zip(positions).collect()
    }

    fn resize<K>(
        &mut self,
        slots: usize,
        elements: &Elements<impl Fn(u32) -> K, impl Fn(&K) -> u64>,
    ) {
        work_counter::count_slots(self.slots.len());
        let positions = self.hashes(elements);
        *self = Self::with_slots(slots);
        self.put_all(&positions);
    }

    fn put_all(&mut self, positions: &[(u64, u32)]) {
        for (hash, position) in positions {
            self.put(*hash, *position);
        }
    }

    /// Returns the slot at which the search for a hash starts.
    fn probe_start(&self, hash: u64) -> usize {
        (((hash >> 32) * self.slots.len() as u64) >> 32) as usize
    }

    fn next(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    fn find(&self, hash: u64, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let mut slot = self.probe_start(hash);
        loop {
            let value = self.slots[slot];
            if value == EMPTY {
                return None;
            }
            if value >> TAG_SHIFT == tag(hash) && matches(position_of(value)) {
                return Some(position_of(value));
            }
            slot = self.next(slot);
        }
    }

    fn put(&mut self, hash: u64, position: u32) {
        let mut slot = self.probe_start(hash);
        while self.slots[slot] != EMPTY {
            slot = self.next(slot);
        }
        self.slots[slot] = pack(hash, position);
        self.len += 1;
    }

    fn slot_holding(&self, hash: u64, position: u32) -> usize {
        let sought = pack(hash, position);
        let mut slot = self.probe_start(hash);
        while self.slots[slot] != sought {
            debug_assert_ne!(self.slots[slot], EMPTY, "position {position} is not indexed");
            slot = self.next(slot);
        }
        slot
    }

    /// Removes a position and moves back the following ones that the gap would make unreachable. Returns the number of
    /// slots that were visited.
    fn remove<K>(
        &mut self,
        hash: u64,
        position: u32,
        elements: &Elements<impl Fn(u32) -> K, impl Fn(&K) -> u64>,
    ) -> usize {
        let count = self.slots.len();
        let mut gap = self.slot_holding(hash, position);
        let (mut slot, mut visited) = (gap, 0);
        loop {
            slot = self.next(slot);
            visited += 1;
            let value = self.slots[slot];
            if value == EMPTY {
                break;
            }
            let probe_start =
                self.probe_start((elements.hash_of)(&(elements.key_of)(position_of(value))));
            let distance_from_start = (slot + count - probe_start) % count;
            let distance_from_gap = (slot + count - gap) % count;
            if distance_from_start >= distance_from_gap {
                self.slots[gap] = value;
                gap = slot;
            }
        }
        self.slots[gap] = EMPTY;
        self.len -= 1;
        work_counter::count_slots(visited);
        visited
    }
}

fn tag(hash: u64) -> u32 {
    // Other bits than those that select the segment (the low ones) and the start of the search (the upper 32).
    (hash >> POSITION_BITS) as u32 & (u32::MAX >> TAG_SHIFT)
}

fn pack(hash: u64, position: u32) -> u32 {
    tag(hash) << TAG_SHIFT | position
}

fn position_of(slot: u32) -> u32 {
    slot & POSITIONS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Returns elements whose keys are their positions.
    fn elements(
        hash_of: impl Fn(u32) -> u64,
    ) -> Elements<impl Fn(u32) -> u32, impl Fn(&u32) -> u64> {
        Elements { key_of: |position| position, hash_of: move |position: &u32| hash_of(*position) }
    }

    /// Returns an evenly distributed hash under the mask `narrow`: one with few bits makes runs of used slots long.
    fn hash_of(position: u32, narrow: u64) -> u64 {
        let mut mixed = fastrand::Rng::with_seed(u64::from(position));
        mixed.u64(..) & narrow
    }

    #[test]
    fn behaves_like_a_map() {
        for (seed, narrow) in [(1, u64::MAX), (2, 0x0000_0007_f800_0fff)] {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut index = PositionIndex::new();
            let mut model = BTreeMap::new();
            for step in 0..if cfg!(miri) { 400 } else { 60_000 } {
                // Grows to some thousands, shrinks to zero, and grows again.
                let grows = step % 20_000 < 12_000;
                let position = rng.u32(..5_000);
                let hash = hash_of(position, narrow);
                let found = index.find(hash, |candidate| candidate == position);
                assert_eq!(found.is_some(), model.contains_key(&position), "seed {seed}");
                match (found, grows) {
                    (None, true) => {
                        model.insert(position, hash);
                        assert!(index.insert(hash, position, elements(|p| hash_of(p, narrow))));
                    }
                    (Some(_), false) => {
                        model.remove(&position);
                        index.remove(hash, position, elements(|p| hash_of(p, narrow)));
                    }
                    _ => {}
                }
                let slots: usize =
                    (0..index.segments.len()).map(|at| index.segments.at(at).slots.len()).sum();
                assert_eq!((index.len, index.slots), (model.len(), slots), "seed {seed}");
            }
            for (position, hash) in &model {
                assert!(index.find(*hash, |candidate| candidate == *position).is_some());
            }
        }
    }

    #[test]
    fn relocated_positions_are_found_at_their_new_place() {
        let mut index = PositionIndex::new();
        assert!(index.insert(hash_of(3, u64::MAX), 3, elements(|p| hash_of(p, u64::MAX))));
        index.relocate(hash_of(3, u64::MAX), 3, 90);
        assert_eq!(index.find(hash_of(3, u64::MAX), |_| true), Some(90));
    }

    #[test]
    fn one_heavy_hash_among_others_neither_hangs_nor_overflows() {
        // Far more peers of one address than any cap permits.
        for frequent in 0..8_u64 {
            let hash = |position: u32| match position {
                0..6_000 => frequent << 40 | frequent,
                other => hash_of(other, u64::MAX),
            };
            let mut index = PositionIndex::new();
            let mut accepted = Vec::new();
            for position in (0..6_000).flat_map(|p| [p, p + 6_000]) {
                if index.insert(hash(position), position, elements(&hash)) {
                    accepted.push(position);
                }
            }
            assert!(accepted.len() > 9_000);
            for position in accepted {
                assert!(index.find(hash(position), |found| found == position).is_some());
                index.remove(hash(position), position, elements(&hash));
            }
            assert_eq!(index.len, 0);
        }
    }

    #[test]
    fn a_segment_that_cannot_grow_refuses() {
        // All have the same hash. A keyed hash makes that impossible, but it must not hang or overflow.
        let mut index = PositionIndex::new();
        let accepted = (0..5_000).take_while(|p| index.insert(0, *p, elements(|_| 0))).count();
        assert!((3_000..SEGMENT_SLOTS_MAX).contains(&accepted), "{accepted}");
        assert_eq!(index.find(0, |p| p == 2_999), Some(2_999));
    }
}
