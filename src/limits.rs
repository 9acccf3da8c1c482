//! Every size on which wire, ring and config must agree, derived from one another and checked when this
//! is compiled.

use tsubame_storage::Family;
use tsubame_udp::ring::{DATAGRAM_LEN_MAX, REPLY_LEN_MAX};
use tsubame_udp::wire::{
    ANNOUNCE_REPLY_LEN, CONNECT_REPLY_LEN, REQUEST_LEN_MAX, SCRAPE_HASHES_MAX, SCRAPE_REPLY_LEN,
    SCRAPE_ROW_LEN,
};

/// Bytes of UDP payload an announce reply has at most, unless configured: what gets through tunnels
/// within tunnels, 222 IPv4 or 74 IPv6 peers
pub const REPLY_LEN_DEFAULT: usize = 1352;

/// The least it can be configured to: what every IPv4 host must take
pub const REPLY_LEN_MIN: usize = 548;

/// The most it can be configured to: an Ethernet frame over IPv4
pub const REPLY_LEN_LIMIT: usize = REPLY_LEN_MAX;

/// Peers that a client can be permitted to ask for; over UDP no more than fit the reply are handed out
pub const NUMWANT_LIMIT: u32 = 1_000;

/// Peers of a family that fit an announce reply of so many bytes
pub const fn peers_fitting(family: Family, reply_len: usize) -> usize {
    reply_len.saturating_sub(ANNOUNCE_REPLY_LEN) / family.compact_len()
}

const SCRAPE_REPLY_MAX: usize = SCRAPE_REPLY_LEN + SCRAPE_HASHES_MAX * SCRAPE_ROW_LEN;

// The ring receives whole what the wire may hold.
const _: () = assert!(REQUEST_LEN_MAX <= DATAGRAM_LEN_MAX);
const _: () = assert!(REPLY_LEN_MIN <= REPLY_LEN_DEFAULT && REPLY_LEN_DEFAULT <= REPLY_LEN_LIMIT);
const _: () = assert!(SCRAPE_REPLY_MAX <= REPLY_LEN_LIMIT && CONNECT_REPLY_LEN <= REPLY_LEN_MIN);
const _: () = assert!(peers_fitting(Family::V4, REPLY_LEN_DEFAULT) == 222);
const _: () = assert!(peers_fitting(Family::V6, REPLY_LEN_DEFAULT) == 74);
