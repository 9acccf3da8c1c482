//! Requests as hooks see them.

use super::parameters::Parameters;
use crate::clock::Now;
use std::net::IpAddr;
use tsubame_storage::{AnnounceEvent, InfoHash, PeerId};
use tsubame_udp::wire::UrlData;

/// An announce as hooks see it.
#[derive(Clone, Copy, Debug)]
pub struct AnnounceContext<'a> {
    /// The current time.
    pub now: Now,
    /// Source address, which is proven.
    pub source: IpAddr,
    /// The torrent.
    pub info_hash: &'a InfoHash,
    /// Peer id of the client.
    pub peer_id: &'a PeerId,
    /// Port that the client claims to listen on.
    pub port: u16,
    /// Event of the announce.
    pub event: AnnounceEvent,
    /// Number of bytes that the client claims to lack.
    pub left: u64,
    /// Whether the torrent is known to be permitted by all lists, because it is stored; always false over HTTP.
    pub is_known_permitted: bool,
}

/// Intervals of an announce reply, which hooks may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intervals {
    /// Seconds until the next regular announce.
    pub interval_secs: u32,
    /// Minimum number of seconds between two announces.
    pub min_interval_secs: u32,
}

/// Where the parameters of an announce are read from, if a hook needs them.
#[derive(Clone, Copy, Debug)]
pub enum ParameterSource<'a> {
    /// The URL data of a UDP announce (BEP 41).
    Url(UrlData<'a>),
    /// The path and query of an HTTP request.
    Http(Parameters<'a>),
}
