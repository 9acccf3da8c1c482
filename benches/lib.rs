//! Shared code of the benchmarks: a population, batches of datagrams, and records of runs.
//!
//! The population is that of a public tracker: 60 % of torrents have 1 peer, 20 % 2, 10 % 3, 5 % 5, 4 % 10, 1 % 50, on
//! average 2.45.

pub mod attack;
pub mod batch;
pub mod observe;
pub mod record;

use fastrand::Rng;
use tsubame::policy::Intervals;
use tsubame::tracker::{AnnounceSettings, Tracker};
use tsubame_storage::{
    AnnounceEvent, AnnounceOutcome, Caps, Endpoint, Family, InfoHash, PeerOutput, Role, Seconds,
    SwarmAnnounce, Swarms, TableSettings,
};
use tsubame_udp::connection_id::{ConnectionIdKey, ConnectionIds};

/// Numbers of peers by cumulative percentage of torrents.
const SHAPE: [(u32, u32); 6] = [(60, 1), (80, 2), (90, 3), (95, 5), (99, 10), (100, 50)];

/// Seconds after which a peer of the table of a benchmark expires.
pub const LIFETIME_SECS: u32 = 2_700;

/// Returns the number of peers of a torrent of the population.
pub fn peers_of(torrent: u32) -> u32 {
    // The number is hashed, so that any range of torrents has about the same distribution.
    let percent = torrent.wrapping_mul(0x9e37_79b9) % 100;
    SHAPE.iter().find(|(below, _)| percent < *below).map_or(1, |(_, peers)| *peers)
}

/// Returns the info hash of a torrent.
pub fn info_hash_of(torrent: u32) -> InfoHash {
    let mut bytes = [0; 20];
    Rng::with_seed(u64::from(torrent)).fill(&mut bytes);
    InfoHash(bytes)
}

/// Returns the endpoint of a peer: addresses are spread over the IPv4 space and nearly all differ; ports are 1024 to
/// 1073.
pub fn endpoint_of(torrent: u32, peer: u32) -> Endpoint {
    let mixed = torrent.wrapping_mul(0x85eb_ca6b) ^ peer.wrapping_mul(0xc2b2_ae35);
    Endpoint::new((mixed | 0x2000_0000).to_be_bytes().into(), 1_024 + peer as u16)
}

/// Returns an announce of a peer; one in four is a seeder.
pub fn announce_of(torrent: u32, peer: u32) -> SwarmAnnounce {
    let role = if (torrent ^ peer).is_multiple_of(4) { Role::Seeder } else { Role::Leecher };
    let endpoint = endpoint_of(torrent, peer);
    SwarmAnnounce { info_hash: info_hash_of(torrent), endpoint, role, event: AnnounceEvent::None }
}

/// Returns an empty table with a memory limit that no benchmark reaches.
pub fn empty_table() -> Swarms {
    Swarms::new(TableSettings {
        peer_lifetime_secs: LIFETIME_SECS,
        memory_bytes: 64 << 30,
        caps: Caps { swarm: 0, per_ipv4: 16, per_ipv6_64: 16 },
        allow_private: true,
        hash_key: (1, 2),
        ..TableSettings::with_known_keys(3)
    })
}

/// Returns a tracker with the default settings of an operator, and a table with a memory limit that no benchmark
/// reaches.
pub fn tracker(key: u8) -> Tracker {
    let settings = AnnounceSettings {
        intervals: Intervals { interval_secs: 1_800, min_interval_secs: 900 },
        numwant_default: 50,
        numwant_max: 200,
        reply_len_max: 1_352,
        trust_client_ip: Vec::new(),
        explain_wrong_connection_id: false,
    };
    Tracker::new(ConnectionIds::new(ConnectionIdKey([key; 16]), &[], 120), settings, empty_table())
}

/// Processes an announce; `reply` receives the peers.
pub fn announce_to(
    table: &mut Swarms,
    now: Seconds,
    announce: &SwarmAnnounce,
    reply: &mut [u8],
) -> AnnounceOutcome {
    let prefetch = table.prefetch_index(&announce.info_hash);
    table.announce(now, prefetch, announce, PeerOutput::for_family(Family::V4, reply))
}

/// Fills a table with torrents of the population, in rounds: the first peer of each torrent, then the second of each,
/// and so on. Returns the number of peers.
pub fn fill(table: &mut Swarms, now: Seconds, torrents: std::ops::Range<u32>) -> u64 {
    let mut peers = 0;
    for round in 0..50 {
        for torrent in torrents.clone().filter(|torrent| peers_of(*torrent) > round) {
            announce_to(table, now, &announce_of(torrent, round), &mut []);
            peers += 1;
        }
    }
    peers
}
