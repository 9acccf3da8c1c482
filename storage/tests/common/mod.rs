//! Helpers for tests of the swarm table: settings, and announces to one torrent.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

use tsubame_storage::{
    AnnounceEvent, Endpoint, InfoHash, PeerOutput, Role, Seconds, SwarmAnnounce, Swarms,
};

pub(crate) const TORRENT: InfoHash = InfoHash([0x5a; 20]);

/// Announces to `TORRENT`, and returns the peers of the requester's family.
pub(crate) fn announce(
    swarms: &mut Swarms,
    endpoint: Endpoint,
    role: Role,
    event: AnnounceEvent,
    wanted: usize,
) -> Vec<Endpoint> {
    let announce = SwarmAnnounce { info_hash: TORRENT, endpoint, role, event };
    let len = endpoint.family().compact_len();
    let mut out = vec![0; wanted * len];
    let prefetch = swarms.prefetch_index(&TORRENT);
    let output = PeerOutput::for_family(endpoint.family(), &mut out);
    let announced = swarms.announce(Seconds(5), prefetch, &announce, output);
    let written = announced.v4_len + announced.v6_len;
    out[..written].chunks(len).filter_map(Endpoint::from_compact).collect()
}
