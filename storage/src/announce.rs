//! Input and result of an announce to the swarm table.

use crate::types::{AnnounceEvent, Endpoint, InfoHash, Role, SwarmCounts};

/// The part of an announce that the swarm table needs.
#[derive(Clone, Copy, Debug)]
pub struct SwarmAnnounce {
    /// The torrent.
    pub info_hash: InfoHash,
    /// The peer that announces.
    pub endpoint: Endpoint,
    /// Role of the peer.
    pub role: Role,
    /// Event of the announce.
    pub event: AnnounceEvent,
}

/// Result of an announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceOutcome {
    /// Counts of the swarm after the announce. A peer that was refused is counted too.
    pub counts: SwarmCounts,
    /// Bytes of IPv4 peers that were written.
    pub v4_len: usize,
    /// Bytes of IPv6 peers that were written.
    pub v6_len: usize,
    /// What the announce changed.
    pub change: SwarmChange,
    /// Role of the peer before this announce, if it was stored.
    pub previous: Option<Role>,
    /// Flags of its record before this announce, if it was stored.
    pub(crate) previous_flags: u8,
}

/// What an announce changed in its swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwarmChange {
    /// The peer was added.
    Joined,
    /// The peer was stored already; its age, and perhaps its role, was updated.
    Refreshed,
    /// As [`Self::Refreshed`], and a completed download was counted.
    Completed,
    /// The peer was removed.
    Stopped,
    /// Nothing: the peer stopped without being stored, or its port cannot be connected to.
    Nothing,
    /// The peer was not stored.
    Refused(JoinRefusal),
}

/// Why a peer was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinRefusal {
    /// The memory limit is reached, or the swarm has the most peers that the table supports.
    Memory,
    /// The torrent is new, and the memory limit is nearly reached or the table has the maximum number of torrents.
    NewTorrent,
    /// Memory is short, and the source of the peer has its share:
    /// see [`crate::TableSettings::source_share_per_10_000`].
    Source,
    /// The swarm has [`crate::Caps::swarm`] peers.
    SwarmCap,
    /// The swarm has as many peers of this address as [`crate::Caps`] permit.
    AddressCap,
}

impl AnnounceOutcome {
    /// Returns the outcome of an announce that found no torrent and added none.
    pub(crate) fn unknown_torrent() -> Self {
        let counts = SwarmCounts::default();
        let change = SwarmChange::Nothing;
        Self { counts, v4_len: 0, v6_len: 0, change, previous: None, previous_flags: 0 }
    }
}
