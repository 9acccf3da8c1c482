//! The contents of a table as records, which one table exports and another imports.

use crate::types::{Endpoint, InfoHash, Role};

/// A part of the contents of a table, or a change of it.
///
/// Times are seconds on the clock of the table, negative if they are before its start. Except in a publication
/// ([`crate::Swarms::begin_publication`]), they are rounded down to the start of a tick (a sixtieth of the lifetime
/// with which the table was created).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateRecord {
    /// A torrent. The records of its peers follow it; those of a large swarm are divided, each part after a record of
    /// the torrent.
    Torrent(TorrentRecord),
    /// A peer of the torrent whose record is before it.
    Peer(PeerRecord),
    /// An announce has changed a torrent.
    Change(InfoHash, ChangeKind, PeerRecord),
}

impl StateRecord {
    /// Returns the torrent; `None` for a peer, whose torrent is that of the records before it.
    pub fn info_hash(&self) -> Option<&InfoHash> {
        match self {
            Self::Torrent(torrent) => Some(&torrent.info_hash),
            Self::Change(info_hash, ..) => Some(info_hash),
            Self::Peer(_) => None,
        }
    }
}

/// A torrent without its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorrentRecord {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Number of completed downloads.
    pub completed: u32,
    /// When it was last used: the time of the record if it has peers, else that at which the last peer left.
    pub used_at: i64,
}

/// A peer of a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// Its role.
    pub role: Role,
    /// Whether its completed download has been counted.
    pub is_counted: bool,
    /// Whether it was learned from another node of the cluster, and has not announced to this one since.
    pub is_remote: bool,
    /// When it last announced.
    pub announced_at: i64,
}

/// How an announce has changed a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The peer joined.
    Joined,
    /// The peer was stored and announced again.
    Refreshed,
    /// As [`Self::Refreshed`], and its completed download was counted.
    Completed,
    /// The peer has stopped.
    Stopped,
}
