//! What an announce comes to.

use crate::types::{Counts, Role};

/// What an announce came to
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The swarm's figures, the announcer included
    pub counts: Counts,
    /// Bytes of IPv4 peers written
    pub v4_len: usize,
    /// Bytes of IPv6 peers written
    pub v6_len: usize,
    /// What it changed
    pub change: Change,
    /// What the announcer was before, if it was known
    pub previous: Option<Role>,
}

/// What an announce changed in its swarm
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new peer
    Joined,
    /// A known peer, perhaps in a new role
    Refreshed,
    /// A known peer finished its download
    Completed,
    /// The peer is gone
    Left,
    /// Nothing: it left without being there, or nobody could connect to it
    Nothing,
    /// It was answered but not stored
    Refused(Refusal),
}

/// Why a peer was not stored
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The memory ceiling is near, or a swarm is as large as the table can handle
    Memory,
    /// The memory ceiling is near, and the torrent is new
    NewTorrent,
    /// Memory is short, and the peer's source holds more than its share:
    /// see [`crate::Settings::source_share_per_10_000`]
    Source,
    /// The swarm has as many peers as [`crate::Caps::swarm`] permits
    SwarmCap,
    /// The swarm has as many peers of that address as [`crate::Caps`] permit
    AddressCap,
}

impl Announced {
    /// For a torrent that is not known
    pub(crate) fn of_nobody() -> Self {
        let counts = Counts::default();
        Self { counts, v4_len: 0, v6_len: 0, change: Change::Nothing, previous: None }
    }
}
