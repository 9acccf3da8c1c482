//! Settings of a swarm table.

/// Settings of a swarm table, and the random keys it uses.
#[derive(Clone, Copy, Debug)]
pub struct TableSettings {
    /// Seconds that a peer is kept after its last announce.
    pub peer_lifetime_secs: u32,
    /// Seconds that a torrent without peers keeps its count of completed downloads.
    pub keep_completed_secs: u32,
    /// Memory limit of the table in bytes, by its own accounting.
    pub memory_bytes: usize,
    /// Share of the memory limit, in ten-thousandths, that the peers of one source (an IPv4 /24 or IPv6 /48) may take
    /// while memory is short.
    pub source_share_per_10_000: u32,
    /// Limits on the peers of one swarm.
    pub caps: Caps,
    /// Whether peers with private addresses are returned to everybody: for closed networks.
    pub allow_private: bool,
    /// Key of the hash that finds torrents and peers. It must be secret: with it, an attacker could choose info hashes
    /// and endpoints that collide.
    pub hash_key: (u64, u64),
    /// Seed of the random number generator that selects peers.
    pub seed: u64,
}

impl TableSettings {
    /// Returns default settings without caps and with known keys, for tests and benchmarks.
    ///
    /// A tracker must not use them: its keys have to be random and secret.
    pub fn with_known_keys(seed: u64) -> Self {
        Self {
            peer_lifetime_secs: 2_700,
            keep_completed_secs: 86_400,
            memory_bytes: 1 << 30,
            source_share_per_10_000: 200,
            caps: Caps::default(),
            allow_private: false,
            hash_key: (seed, seed),
            seed,
        }
    }
}

/// Limits on the number of peers in one swarm; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Peers of both families.
    pub swarm: u32,
    /// Peers with the same IPv4 address.
    pub per_ipv4: u32,
    /// Peers in the same IPv6 /64.
    pub per_ipv6_64: u32,
}
