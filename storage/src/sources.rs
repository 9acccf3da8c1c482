//! Number of stored peers by source network, in fixed memory.

use crate::record::V6;
use siphasher::sip::SipHasher13;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Rows of the sketch. A count is too large only if other sources share a cell in every row.
const ROWS: usize = 4;

/// Cells of a row, a `u32` each: 256 KiB in all rows.
const COLUMNS: usize = 1 << COLUMN_BITS;

/// Bits of the hash that select a cell of a row.
const COLUMN_BITS: u32 = 14;

/// Number of sources that are reported when memory becomes short.
pub const TOP_SOURCES: usize = 10;

/// A network that is counted as one source of announces: an IPv4 /24 or an IPv6 /48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceNetwork(u64);

/// Bit that is set in the number of an IPv6 source.
const IS_V6: u64 = 1 << 63;

impl SourceNetwork {
    /// Returns the source of a record's address.
    pub(crate) fn of_record<const N: usize>(record: &[u8; N]) -> Self {
        let prefix = if N == V6 { &record[..6] } else { &record[..3] };
        let number = prefix.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Self(if N == V6 { number | IS_V6 } else { number })
    }

    /// Returns a number that [`Self::from_number`] turns into this source again.
    pub fn number(self) -> u64 {
        self.0
    }

    /// Returns the source of a number that [`Self::number`] returned.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// Writes the prefix, as `192.0.2.0/24` or `2001:db8::/48`.
impl std::fmt::Display for SourceNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 & IS_V6 == 0 {
            // 24 bits.
            write!(f, "{}/24", Ipv4Addr::from((self.0 as u32) << 8))
        } else {
            write!(f, "{}/48", Ipv6Addr::from(u128::from(self.0 & !IS_V6) << 80))
        }
    }
}

/// A source and how many peers of it are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceCount {
    /// The source.
    pub source: SourceNetwork,
    /// Number of stored peers: exact or too large.
    pub peers: u32,
}

/// Number of stored peers of every source: a count-min sketch with removal.
///
/// Each source has one cell in each row, and its count is the smallest of them. A count is never too small. It is too
/// large by what other sources add to the smallest cell: with a keyed hash on average peers / 16,384, and no attacker
/// can choose whose cells it shares.
pub(crate) struct SourceCounts {
    hasher: SipHasher13,
    cells: Box<[[u32; COLUMNS]; ROWS]>,
    total: u64,
}

impl std::fmt::Debug for SourceCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceCounts").field("total", &self.total).finish_non_exhaustive()
    }
}

impl SourceCounts {
    pub(crate) fn new(hasher: SipHasher13) -> Self {
        let rows: Box<[[u32; COLUMNS]]> = vec![[0; COLUMNS]; ROWS].into_boxed_slice();
        let cells = rows.try_into().expect("as many rows as were made");
        Self { hasher, cells, total: 0 }
    }

    /// Returns the bytes of the counts of a table.
    pub(crate) const fn bytes() -> usize {
        ROWS * COLUMNS * size_of::<u32>()
    }

    /// Counts a peer that was stored.
    pub(crate) fn add(&mut self, source: SourceNetwork) {
        self.total += 1;
        self.for_each_cell(source, |cell| *cell = cell.saturating_add(1));
    }

    /// Decrements the count of the source of a removed peer.
    pub(crate) fn remove(&mut self, source: SourceNetwork) {
        self.total = self.total.saturating_sub(1);
        self.for_each_cell(source, |cell| *cell = cell.saturating_sub(1));
    }

    /// Returns the number of stored peers of a source: exact or too large.
    pub(crate) fn count(&self, source: SourceNetwork) -> u32 {
        let columns = self.columns(source);
        self.cells.iter().zip(columns).map(|(row, column)| row[column]).min().unwrap_or(0)
    }

    /// Returns an upper bound of the mean error of a count.
    pub(crate) fn error(&self) -> u32 {
        u32::try_from(self.total.div_ceil(COLUMNS as u64)).unwrap_or(u32::MAX)
    }

    fn columns(&self, source: SourceNetwork) -> [usize; ROWS] {
        let hash = self.hasher.hash(&source.0.to_ne_bytes());
        std::array::from_fn(|row| (hash >> (row as u32 * COLUMN_BITS)) as usize % COLUMNS)
    }

    fn for_each_cell(&mut self, source: SourceNetwork, mut change: impl FnMut(&mut u32)) {
        let columns = self.columns(source);
        self.cells.iter_mut().zip(columns).for_each(|(row, column)| change(&mut row[column]));
    }
}

const _: () = assert!(SourceCounts::bytes() < 1 << 20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{V4, record_of};
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    fn source_of(address: &str) -> SourceNetwork {
        match address.parse().unwrap() {
            address @ IpAddr::V4(_) => {
                SourceNetwork::of_record(&record_of::<V4>(address, 1, 0, 0).unwrap())
            }
            address @ IpAddr::V6(_) => {
                SourceNetwork::of_record(&record_of::<V6>(address, 1, 0, 0).unwrap())
            }
        }
    }

    impl PartialEq for SourceCounts {
        fn eq(&self, other: &Self) -> bool {
            self.cells == other.cells && self.total == other.total
        }
    }

    #[test]
    fn sources_are_prefixes_and_are_written_as_such() {
        for (address, prefix) in [
            ("192.0.2.77", "192.0.2.0/24"),
            ("0.0.0.1", "0.0.0.0/24"),
            ("2001:db8:7:8::1", "2001:db8:7::/48"),
            ("::1", "::/48"),
        ] {
            let source = source_of(address);
            assert_eq!(source.to_string(), prefix);
            assert_eq!(SourceNetwork::from_number(source.number()), source);
        }
        assert_eq!(source_of("10.1.2.3"), source_of("10.1.2.250"));
        assert_ne!(source_of("10.1.2.3"), source_of("10.1.3.3"));
        assert_ne!(source_of("::1"), source_of("0.0.0.1"));
    }

    #[test]
    fn counts_are_never_too_small_and_seldom_too_large() {
        let seed = 5;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut counts = SourceCounts::new(SipHasher13::new_with_keys(1, 2));
        let mut model = BTreeMap::<SourceNetwork, u32>::new();
        let steps = if cfg!(miri) { 2_000 } else { 400_000 };
        for _ in 0..steps {
            // One step in four uses one of eight sources, which therefore have many peers.
            let number = if rng.u8(..4) == 0 { rng.u32(..8) } else { rng.u32(..40_000) };
            let source = SourceNetwork::from_number(number.into());
            let stored = model.entry(source).or_default();
            if *stored > 0 && rng.u8(..3) == 0 {
                *stored -= 1;
                counts.remove(source);
            } else {
                *stored += 1;
                counts.add(source);
            }
        }
        let total: u64 = model.values().map(|stored| u64::from(*stored)).sum();
        assert_eq!(counts.total, total, "seed {seed}");
        let mut over = 0;
        for (source, stored) in &model {
            let found = counts.count(*source);
            assert!(found >= *stored, "seed {seed}: {source} has {stored}, not {found}");
            over += usize::from(found > stored + 2 * counts.error());
        }
        assert!(over * 100 < model.len(), "{over} of {} are far off", model.len());
        for (source, stored) in &model {
            (0..*stored).for_each(|_| counts.remove(*source));
        }
        assert!(counts.cells.as_flattened().iter().all(|cell| *cell == 0));
    }
}
