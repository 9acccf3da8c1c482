//! A table with one swarm, and announces to it.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

use tsubame_storage::{
    Announce, Caps, Endpoint, Event, InfoHash, PeerSpace, Role, Seconds, Settings, Swarms,
};

pub(crate) const TORRENT: InfoHash = InfoHash([0x5a; 20]);

pub(crate) fn settings(seed: u64) -> Settings {
    Settings {
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

/// Announces, and returns the peers of the announcer's family
pub(crate) fn announce(
    swarms: &mut Swarms,
    endpoint: Endpoint,
    role: Role,
    event: Event,
    wanted: usize,
) -> Vec<Endpoint> {
    let announce = Announce { info_hash: TORRENT, endpoint, role, event };
    let len = endpoint.family().compact_len();
    let mut out = vec![0; wanted * len];
    let ahead = swarms.look_ahead(&TORRENT);
    let space = PeerSpace::of(endpoint.family(), &mut out);
    let announced = swarms.announce(Seconds(5), ahead, &announce, space);
    let written = announced.v4_len + announced.v6_len;
    out[..written].chunks(len).filter_map(Endpoint::from_compact).collect()
}
