//! Requests and replies, independent of the protocol that carries them.

/// Event of an announce, with its number in the UDP protocol (BEP 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadEvent {
    None = 0,
    Completed = 1,
    Started = 2,
    Stopped = 3,
}

/// An announce to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadAnnounce {
    pub(crate) info_hash: [u8; 20],
    pub(crate) peer: u32,
    pub(crate) left: u64,
    pub(crate) event: LoadEvent,
    pub(crate) num_want: i32,
    pub(crate) port: u16,
}

impl LoadAnnounce {
    /// Returns the peer id.
    pub(crate) fn peer_id(&self) -> [u8; 20] {
        let mut peer_id = *b"-TL0001-............";
        peer_id[8..12].copy_from_slice(&self.peer.to_be_bytes());
        peer_id
    }
}

/// A reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrackerReply<'a> {
    /// Reply to a connect.
    Connect { connection_id: u64 },
    /// Reply to an announce.
    Announce {
        interval: u32,
        leechers: u32,
        seeders: u32,
        /// Compact peers of the address family of the client.
        peers: &'a [u8],
        /// Compact peers of the other address family, which only HTTP has.
        other_family: &'a [u8],
    },
    /// Reply to a scrape, with seeders, completed and leechers in each row.
    Scrape { rows: &'a [[u8; 12]] },
    /// An error message.
    Error,
    /// A reply that cannot be parsed; the reason is counted separately.
    Unreadable,
}

impl TrackerReply<'_> {
    /// Returns the name of the kind in records.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Announce { .. } => "announce",
            Self::Scrape { .. } => "scrape",
            Self::Error => "error",
            Self::Unreadable => "unreadable",
        }
    }
}
