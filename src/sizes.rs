//! Sizes on which protocol, ring and config must agree, derived from one another and checked at compile time.

use tsubame_storage::Family;
use tsubame_udp::ring::{DATAGRAM_LEN_MAX, REPLY_LEN_MAX};
use tsubame_udp::wire::{
    ANNOUNCE_REPLY_LEN, CONNECT_REPLY_LEN, REQUEST_LEN_MAX, SCRAPE_HASHES_MAX, SCRAPE_REPLY_LEN,
    SCRAPE_ROW_LEN,
};

/// Default maximum of the UDP payload of an announce reply in bytes. It fits through nested tunnels, and holds 222 IPv4
/// or 74 IPv6 peers.
pub const REPLY_LEN_DEFAULT: usize = 1352;

/// Minimum of `udp.max_reply_size`: the UDP payload of a datagram that every IPv4 host must accept.
pub const REPLY_LEN_MIN: usize = 548;

/// Maximum of `udp.max_reply_size`: the UDP payload of an IPv4 packet in an Ethernet frame (MTU 1500).
pub const REPLY_LEN_LIMIT: usize = REPLY_LEN_MAX;

/// Largest number of peers that a client can be permitted to request. Over UDP no more are returned than fit the reply.
pub const NUMWANT_LIMIT: u32 = 1_000;

/// Returns the number of peers of a family that fit an announce reply of `reply_len` bytes.
pub const fn peers_fitting(family: Family, reply_len: usize) -> usize {
    reply_len.saturating_sub(ANNOUNCE_REPLY_LEN) / family.compact_len()
}

/// Bytes of the longest scrape reply.
pub const SCRAPE_REPLY_LEN_MAX: usize = SCRAPE_REPLY_LEN + SCRAPE_HASHES_MAX * SCRAPE_ROW_LEN;

// The ring receives the longest request without truncation.
const _: () = assert!(REQUEST_LEN_MAX <= DATAGRAM_LEN_MAX);
const _: () = assert!(REPLY_LEN_MIN <= REPLY_LEN_DEFAULT && REPLY_LEN_DEFAULT <= REPLY_LEN_LIMIT);
const _: () =
    assert!(SCRAPE_REPLY_LEN_MAX <= REPLY_LEN_LIMIT && CONNECT_REPLY_LEN <= REPLY_LEN_MIN);
const _: () = assert!(ANNOUNCE_REPLY_LEN < REPLY_LEN_MIN && NUMWANT_LIMIT <= u16::MAX as u32);
const _: () = assert!(peers_fitting(Family::V4, REPLY_LEN_DEFAULT) == 222);
const _: () = assert!(peers_fitting(Family::V6, REPLY_LEN_DEFAULT) == 74);
