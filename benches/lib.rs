//! What benches share: a population, datagrams in batches, records of runs.
//!
//! Of a public tracker's torrents 60 % have 1 peer, 20 % 2, 10 % 3, 5 % 5, 4 % 10, 1 % 50: 2.45 peers each.

pub mod attack;
pub mod batch;
pub mod observe;
pub mod record;

use fastrand::Rng;
use tsubame::tracker::{Terms, Tracker};
use tsubame_storage::{
    AnnounceEvent, AnnounceOutcome, Caps, Endpoint, Family, InfoHash, PeerOutput, Role, Seconds,
    SwarmAnnounce, Swarms, TableSettings,
};
use tsubame_udp::connection_id::{ConnectionIds, Key};

/// Peers by torrent, in cumulated per cent
const SHAPE: [(u32, u32); 6] = [(60, 1), (80, 2), (90, 3), (95, 5), (99, 10), (100, 50)];

/// Seconds after which a peer of a bench's table is gone
pub const LIFETIME_SECS: u32 = 2_700;

/// How many peers a torrent of the population has
pub fn peers_of(torrent: u32) -> u32 {
    // Spread by number, so that any part of the population has the same shape.
    let percent = torrent.wrapping_mul(0x9e37_79b9) % 100;
    SHAPE.iter().find(|(below, _)| percent < *below).map_or(1, |(_, peers)| *peers)
}

/// The info hash of a torrent
pub fn info_hash_of(torrent: u32) -> InfoHash {
    let mut bytes = [0; 20];
    Rng::with_seed(u64::from(torrent)).fill(&mut bytes);
    InfoHash(bytes)
}

/// The endpoint of a torrent's peer: addresses differ, ports are like clients'
pub fn endpoint_of(torrent: u32, peer: u32) -> Endpoint {
    let mixed = torrent.wrapping_mul(0x85eb_ca6b) ^ peer.wrapping_mul(0xc2b2_ae35);
    Endpoint::new((mixed | 0x2000_0000).to_be_bytes().into(), 1_024 + peer as u16)
}

/// An announce of a torrent's peer; one in four seeds
pub fn announce_of(torrent: u32, peer: u32) -> SwarmAnnounce {
    let role = if (torrent ^ peer).is_multiple_of(4) { Role::Seeder } else { Role::Leecher };
    let endpoint = endpoint_of(torrent, peer);
    SwarmAnnounce { info_hash: info_hash_of(torrent), endpoint, role, event: AnnounceEvent::None }
}

/// An empty table without a ceiling that a bench would reach
pub fn empty_table() -> Swarms {
    Swarms::new(TableSettings {
        peer_lifetime_secs: LIFETIME_SECS,
        keep_completed_secs: 86_400,
        memory_bytes: 64 << 30,
        source_share_per_10_000: 200,
        caps: Caps { swarm: 0, per_ipv4: 16, per_ipv6_64: 16 },
        allow_private: true,
        hash_key: (1, 2),
        seed: 3,
    })
}

/// A tracker as an operator gets it without a config, with a table without a ceiling
pub fn tracker(key: u8) -> Tracker {
    let terms = Terms {
        interval_secs: 1_800,
        min_interval_secs: 900,
        numwant_default: 50,
        numwant_max: 200,
        reply_len_max: 1_352,
        trust_client_ip: Vec::new(),
        explain_wrong_connection_id: false,
    };
    Tracker::new(ConnectionIds::new(Key([key; 16]), &[], 120), terms, empty_table())
}

/// Enters one announce, with peers wanted into `reply`
pub fn enter(
    table: &mut Swarms,
    now: Seconds,
    announce: &SwarmAnnounce,
    reply: &mut [u8],
) -> AnnounceOutcome {
    let prefetch = table.prefetch_index(&announce.info_hash);
    table.announce(now, prefetch, announce, PeerOutput::for_family(Family::V4, reply))
}

/// Fills a table with torrents of the population, in rounds as they would come in over an interval
pub fn fill(table: &mut Swarms, now: Seconds, torrents: std::ops::Range<u32>) -> u64 {
    let mut peers = 0;
    for round in 0..50 {
        for torrent in torrents.clone().filter(|torrent| peers_of(*torrent) > round) {
            enter(table, now, &announce_of(torrent, round), &mut []);
            peers += 1;
        }
    }
    peers
}
