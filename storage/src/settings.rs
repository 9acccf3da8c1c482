//! How a swarm table behaves, and what it reports of itself.

use crate::eviction::EvictionCounts;
use crate::sources::{SourceCount, TOP_SOURCES};

/// How a table behaves, and the random keys it uses.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a peer is kept after its last announce
    pub peer_lifetime_secs: u32,
    /// How long a torrent without peers keeps its count of completed downloads
    pub keep_completed_secs: u32,
    /// Memory the table may hold, by its own accounting
    pub memory_bytes: usize,
    /// Share of that memory, in ten-thousandths, that the peers of one IPv4 /24 or IPv6 /48 may take while memory is
    /// short
    pub source_share_per_10_000: u32,
    /// Limits within a swarm
    pub caps: Caps,
    /// Hand out private peers like public ones: for closed networks
    pub allow_private: bool,
    /// Keys the hash that finds torrents and peers: whoever knew it could make every search long
    pub hash_key: (u64, u64),
    /// Starts the generator that picks peers
    pub seed: u64,
}

/// How many peers a swarm may have in all and from one place; 0 is no limit
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Of both families
    pub swarm: u32,
    /// From one IPv4 address
    pub per_ipv4: u32,
    /// From one IPv6 /64
    pub per_ipv6_64: u32,
}

/// What a table holds
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Torrents, those without peers that keep a count included
    pub torrents: usize,
    /// Torrents without peers
    pub empty_torrents: usize,
    /// Seeders by [`crate::Family`]
    pub seeders: [u64; 2],
    /// Leechers by [`crate::Family`]
    pub leechers: [u64; 2],
    /// Memory held, by the table's own accounting
    pub bytes: usize,
    /// How short memory is, in thousandths: 0 while there is enough, 1,000 where new torrents are refused
    pub pressure_per_1_000: u32,
    /// What was removed because memory was short
    pub evicted: EvictionCounts,
    /// Sources that held most peers when memory last became short
    pub top_sources: [Option<SourceCount>; TOP_SOURCES],
}
