//! A summary of the table, made by a scan in small steps: the sizes of swarms, the largest of them, and an estimate of
//! the number of distinct peers.

use crate::placement::{PeerStores, RecordWidth};
use crate::record::{V4, V6, compact};
use crate::swarms::Swarms;
use crate::types::{Family, InfoHash, SwarmStats};
use siphasher::sip::SipHasher13;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Number of visits of a step; a record counts as one.
const VISITS_PER_STEP: usize = 4_096;

/// Number of visits that an entry counts as: one cache miss.
const VISITS_PER_ENTRY: usize = 2;

/// Number of visits for an entry whose records are visited, too: they may be in a block or a large swarm.
const VISITS_PER_SWARM: usize = 8;

/// Number of classes of swarm sizes: 0, 1, 2, 3 to 4, 5 to 8, and so on; the last has no upper bound.
pub const SWARM_SIZE_CLASSES: usize = 20;

/// Returns the largest number of peers in a class of swarm sizes; `None` for the last class.
pub fn swarm_size_max(class: usize) -> Option<u64> {
    match class {
        0 => Some(0),
        class if class + 1 < SWARM_SIZE_CLASSES => Some(1 << (class - 1)),
        _ => None,
    }
}

/// Returns the class of a swarm by its number of peers.
fn class_of(peers: usize) -> usize {
    match peers {
        0 => 0,
        peers => (peers.next_power_of_two().ilog2() as usize + 1).min(SWARM_SIZE_CLASSES - 1),
    }
}

/// Result of a scan.
#[derive(Clone, Debug, Default)]
pub struct SwarmSummary {
    /// Number of torrents by the class of their number of peers: see [`swarm_size_max`].
    pub sizes: [u64; SWARM_SIZE_CLASSES],
    /// Number of peers in all swarms.
    pub peers: u64,
    /// The torrents with the most peers, largest first.
    pub largest: Vec<(InfoHash, SwarmStats)>,
    /// Counts distinct peers, unless the scan was to leave that out.
    pub distinct: Option<Box<DistinctCounter>>,
}

impl SwarmSummary {
    /// Adds the summary of another shard, of which no torrent is in this one. Keeps the `largest_max` largest torrents.
    pub fn add(&mut self, other: Self, largest_max: usize) {
        self.sizes.iter_mut().zip(other.sizes).for_each(|(sum, count)| *sum += count);
        self.peers += other.peers;
        self.largest.extend(other.largest);
        self.largest.sort_unstable_by_key(|(hash, stats)| (Reverse(peers_of(stats)), *hash));
        self.largest.truncate(largest_max);
        match (&mut self.distinct, other.distinct) {
            (Some(distinct), Some(other)) => distinct.merge(&other),
            (distinct @ None, other) => *distinct = other,
            (Some(_), None) => {}
        }
    }
}

fn peers_of(stats: &SwarmStats) -> u32 {
    stats.counts.seeders + stats.counts.leechers
}

/// A scan of the table for a summary.
///
/// Entries are visited from the last to the first. The sweep moves entries from the end into gaps, so some may be
/// visited twice but none is missed.
#[derive(Debug)]
pub struct SummaryScan {
    /// Number of entries that are still to be visited.
    left: usize,
    /// The torrent of which some records are still to be visited, its family, and their number.
    records_cursor: Option<(InfoHash, Family, usize)>,
    largest_max: usize,
    largest: BinaryHeap<Reverse<(u32, InfoHash)>>,
    summary: SwarmSummary,
}

impl SummaryScan {
    /// Starts a scan that reports the `largest_max` largest torrents. With a hash key, it counts distinct peers. The
    /// summaries of shards can be added only if they were made with the same key.
    pub fn begin(swarms: &Swarms, largest_max: usize, key: Option<(u64, u64)>) -> Self {
        let distinct = key.map(|key| Box::new(DistinctCounter::new(key)));
        Self {
            left: swarms.table.store.entries.len(),
            records_cursor: None,
            largest_max,
            largest: BinaryHeap::with_capacity(largest_max + 1),
            summary: SwarmSummary { distinct, ..SwarmSummary::default() },
        }
    }

    /// Visits some entries and records; returns whether all have been visited.
    pub fn step(&mut self, swarms: &mut Swarms) -> bool {
        let mut budget = VISITS_PER_STEP;
        while budget > 0 {
            let entries = swarms.table.store.entries.len();
            if self.records_cursor.is_none() {
                self.left = self.left.min(entries);
                if self.left == 0 {
                    return true;
                }
                self.left -= 1;
                self.visit_entry(swarms, self.left as u32);
                let cost =
                    if self.records_cursor.is_some() { VISITS_PER_SWARM } else { VISITS_PER_ENTRY };
                budget = budget.saturating_sub(cost);
            }
            self.visit_records(swarms, &mut budget);
        }
        self.left == 0 && self.records_cursor.is_none()
    }

    fn visit_entry(&mut self, swarms: &Swarms, position: u32) {
        let entry = swarms.table.store.entry(position);
        let (peers, info_hash) = (entry.peers(), entry.info_hash());
        self.summary.sizes[class_of(peers)] += 1;
        self.summary.peers += peers as u64;
        // A swarm has at most 2^23 peers.
        let size = (peers as u32, info_hash);
        let is_larger = |least: &Reverse<(u32, InfoHash)>| size.0 > least.0.0;
        if self.largest.len() < self.largest_max || self.largest.peek().is_some_and(is_larger) {
            // An entry that was moved is visited again.
            if peers > 0 && !self.largest.iter().any(|Reverse((_, known))| *known == info_hash) {
                self.largest.push(Reverse(size));
            }
            if self.largest.len() > self.largest_max {
                self.largest.pop();
            }
        }
        if self.summary.distinct.is_some() && peers > 0 {
            self.records_cursor = Some((info_hash, Family::V4, 0));
        }
    }

    /// Counts some of the peers of the torrent that is being visited.
    fn visit_records(&mut self, swarms: &mut Swarms, budget: &mut usize) {
        let Some((info_hash, family, from)) = self.records_cursor.take() else { return };
        let prefetch = swarms.table.prefetch_index(&info_hash);
        // The torrent may have been removed since the last step.
        let Some(position) = swarms.table.find(&prefetch, &info_hash) else { return };
        let Some(distinct) = self.summary.distinct.as_deref_mut() else { return };
        let next = match family {
            Family::V4 => count_distinct::<V4>(swarms, position, from, budget, distinct),
            Family::V6 => count_distinct::<V6>(swarms, position, from, budget, distinct),
        };
        self.records_cursor = match (next, family) {
            (Some(next), family) => Some((info_hash, family, next)),
            (None, Family::V4) => Some((info_hash, Family::V6, 0)),
            (None, Family::V6) => None,
        };
    }

    /// Ends the scan and returns its summary.
    pub fn finish(self, swarms: &Swarms) -> SwarmSummary {
        let stats = |Reverse((_, info_hash)): &Reverse<(u32, InfoHash)>| {
            (*info_hash, swarms.swarm_stats(&swarms.prefetch_index(info_hash), info_hash))
        };
        let mut summary = self.summary;
        summary.largest = self.largest.iter().map(stats).collect();
        summary.largest.sort_unstable_by_key(|(hash, stats)| (Reverse(peers_of(stats)), *hash));
        summary
    }
}

/// Counts peers of a family from the position `from` on, within the budget. Returns where to continue, or `None` when
/// all were visited.
fn count_distinct<const N: usize>(
    swarms: &mut Swarms,
    position: u32,
    from: usize,
    budget: &mut usize,
    distinct: &mut DistinctCounter,
) -> Option<usize>
where
    PeerStores: RecordWidth<N>,
{
    let peers = swarms.table.store.family_peers::<N>(position);
    let end = peers.roles.len().min(from + *budget);
    for at in from..end {
        distinct.insert(compact(peers.at(at)));
    }
    *budget -= end.saturating_sub(from);
    (end < peers.roles.len()).then_some(end)
}

/// Bits of a hash that select a register.
const REGISTER_BITS: u32 = 12;

/// Number of registers. The standard error of an estimate is 1.04 / sqrt(4,096), which is 1.6 %.
const REGISTERS: usize = 1 << REGISTER_BITS;

/// Estimates the number of distinct byte strings that were inserted, in 4 KiB: a HyperLogLog (Flajolet et al., 2007)
/// over a keyed 64-bit hash.
#[derive(Clone)]
pub struct DistinctCounter {
    hasher: SipHasher13,
    /// For each register, the largest number of leading zeros of a hash, plus one.
    registers: [u8; REGISTERS],
}

impl std::fmt::Debug for DistinctCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DistinctCounter").field(&self.estimate()).finish()
    }
}

impl DistinctCounter {
    fn new((first, second): (u64, u64)) -> Self {
        let hasher = SipHasher13::new_with_keys(first, second);
        Self { hasher, registers: [0; REGISTERS] }
    }

    fn insert(&mut self, bytes: &[u8]) {
        let hash = self.hasher.hash(bytes);
        let register = &mut self.registers[(hash >> (64 - REGISTER_BITS)) as usize];
        // At most 52: the bit that is set ends the count.
        let zeros = ((hash << REGISTER_BITS) | 1 << (REGISTER_BITS - 1)).leading_zeros() as u8;
        *register = (*register).max(zeros + 1);
    }

    fn merge(&mut self, other: &Self) {
        for (register, other) in self.registers.iter_mut().zip(other.registers) {
            *register = (*register).max(other);
        }
    }

    /// Returns the estimated number of distinct byte strings.
    pub fn estimate(&self) -> u64 {
        let registers = REGISTERS as f64;
        let sum: f64 = self.registers.iter().map(|zeros| 0.5_f64.powi(i32::from(*zeros))).sum();
        let estimate = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        let empty = self.registers.iter().filter(|zeros| **zeros == 0).count();
        // For small numbers, the number of empty registers is the better estimate.
        let counted = match empty {
            1.. if estimate <= 2.5 * registers => registers * (registers / empty as f64).ln(),
            _ => estimate,
        };
        counted.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::SwarmAnnounce;
    use crate::peer_output::PeerOutput;
    use crate::settings::TableSettings;
    use crate::time::Seconds;
    use crate::types::{AnnounceEvent, Endpoint, Role};
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::IpAddr;

    fn announce(swarms: &mut Swarms, now: u64, torrent: u32, peer: u32, event: AnnounceEvent) {
        let address: IpAddr = match peer % 3 {
            0 => ((0x2a00 << 112) | u128::from(peer)).to_be_bytes().into(),
            _ => (0x5000_0000 + peer).to_be_bytes().into(),
        };
        let announce = SwarmAnnounce {
            info_hash: info_hash(torrent),
            endpoint: Endpoint::new(address, 6_881),
            role: if peer.is_multiple_of(2) { Role::Seeder } else { Role::Leecher },
            event,
        };
        let prefetch = swarms.prefetch_index(&announce.info_hash);
        let output = PeerOutput::for_family(Family::V4, &mut []);
        swarms.announce(Seconds(now), prefetch, &announce, output);
    }

    fn info_hash(torrent: u32) -> InfoHash {
        let mut hash = [9; 20];
        hash[..4].copy_from_slice(&torrent.to_be_bytes());
        InfoHash(hash)
    }

    #[test]
    fn a_summary_is_that_of_the_model_in_bounded_steps() {
        let seed = 4;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut tables: Vec<Swarms> =
            (0..2).map(|table| Swarms::new(TableSettings::with_known_keys(table))).collect();
        let mut model: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let large_swarm = if cfg!(miri) { 200 } else { 30_000 };
        let members = (0..large_swarm).map(|peer| (7, peer));
        let others =
            (0..large_swarm / 2).map(|_| (rng.u32(..5_000).isqrt(), rng.u32(..large_swarm)));
        for (torrent, peer) in members.chain(others) {
            model.entry(torrent).or_default().insert(peer);
            announce(&mut tables[torrent as usize % 2], 0, torrent, peer, AnnounceEvent::Started);
        }
        let mut sum = SwarmSummary::default();
        for swarms in &mut tables {
            let mut scan = SummaryScan::begin(swarms, 5, Some((1, 2)));
            let mut steps = 1;
            while !scan.step(swarms) {
                steps += 1;
            }
            assert!(cfg!(miri) || swarms.table.peers() < 9_000 || steps > 2, "{steps} steps");
            sum.add(scan.finish(swarms), 5);
        }
        let mut sizes = [0; SWARM_SIZE_CLASSES];
        model.values().for_each(|peers| sizes[class_of(peers.len())] += 1);
        assert_eq!(sum.sizes, sizes, "seed {seed}");
        assert_eq!(sum.peers, model.values().map(|peers| peers.len() as u64).sum::<u64>());
        let mut by_size: Vec<_> =
            model.iter().map(|(torrent, peers)| (peers.len(), torrent)).collect();
        by_size.sort_unstable_by_key(|(peers, torrent)| (Reverse(*peers), info_hash(**torrent)));
        for ((info, stats), (peers, torrent)) in sum.largest.iter().zip(&by_size) {
            assert_eq!((*info, peers_of(stats) as usize), (info_hash(**torrent), *peers));
        }
        assert_eq!(sum.largest.len(), 5);
        let distinct = sum.distinct.map_or(0, |distinct| distinct.estimate()) as f64;
        let error = distinct / f64::from(large_swarm) - 1.0;
        assert!(error.abs() < 0.08, "{distinct} of {large_swarm}");
    }

    #[test]
    fn changes_during_a_scan_neither_break_nor_prolong_it() {
        let mut swarms = Swarms::new(TableSettings::with_known_keys(1));
        for torrent in 0..9_000 {
            announce(&mut swarms, 0, torrent, torrent, AnnounceEvent::Started);
        }
        let mut scan = SummaryScan::begin(&swarms, 3, Some((1, 2)));
        let mut steps = 0;
        while !scan.step(&mut swarms) {
            steps += 1;
            assert!(steps < 60);
            for torrent in 0..3_000 {
                announce(&mut swarms, 0, torrent, torrent, AnnounceEvent::Stopped);
                announce(&mut swarms, 0, 20_000 + torrent, torrent, AnnounceEvent::Started);
            }
        }
        let summary = scan.finish(&swarms);
        assert_eq!(summary.largest.len(), 3);
    }

    #[test]
    fn sizes_have_classes_with_powers_of_two_as_bounds() {
        for (peers, class) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (8, 4), (9, 5)] {
            assert_eq!(class_of(peers), class, "{peers}");
        }
        for class in 0..SWARM_SIZE_CLASSES - 1 {
            let max = swarm_size_max(class).expect("only the last class has no bound") as usize;
            assert_eq!((class_of(max), class_of(max + 1)), (class, class + 1));
        }
        assert_eq!(swarm_size_max(SWARM_SIZE_CLASSES - 1), None);
    }
}
