//! Statistics of a swarm table.

use crate::sources::{SourceCount, TOP_SOURCES};

/// Contents and memory of a swarm table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Number of torrents, including those without peers.
    pub torrents: usize,
    /// Number of torrents without peers, which keep their count of completed downloads for a while.
    pub empty_torrents: usize,
    /// Number of seeders, indexed by [`crate::Family`].
    pub seeders: [u64; 2],
    /// Number of leechers, indexed by [`crate::Family`].
    pub leechers: [u64; 2],
    /// Memory of the table in bytes, by its own accounting.
    pub bytes: usize,
    /// Memory pressure in thousandths: 0 while enough memory is free, 1,000 when new torrents are refused.
    pub pressure_per_1_000: u32,
    /// Number of peers that have expired since the table was created.
    pub expired_peers: u64,
    /// What was evicted since the table was created.
    pub evicted: EvictionCounts,
    /// The sources with the most peers when eviction last sampled them, largest first.
    pub top_sources: [Option<SourceCount>; TOP_SOURCES],
}

/// What eviction has removed since the table was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvictionCounts {
    /// Number of times that memory became short.
    pub episodes: u64,
    /// Number of torrents without peers that were removed early.
    pub empty_torrents: u64,
    /// Number of peers that were removed because their source had too many.
    pub source_peers: u64,
}
