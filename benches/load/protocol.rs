//! What is asked and what is answered, whatever carries it.

/// Why a peer announces, as the UDP protocol numbers it
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    None = 0,
    Completed = 1,
    Started = 2,
    Stopped = 3,
}

/// An announce to be written
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announce {
    pub(crate) info_hash: [u8; 20],
    pub(crate) peer: u32,
    pub(crate) left: u64,
    pub(crate) event: Event,
    pub(crate) num_want: i32,
    pub(crate) port: u16,
}

impl Announce {
    /// What the peer calls itself
    pub(crate) fn peer_id(&self) -> [u8; 20] {
        let mut peer_id = *b"-TL0001-............";
        peer_id[8..12].copy_from_slice(&self.peer.to_be_bytes());
        peer_id
    }
}

/// A reply
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    Connect {
        connection_id: u64,
    },
    Announce {
        interval: u32,
        leechers: u32,
        seeders: u32,
        /// Compact, of the client's own address family
        peers: &'a [u8],
        /// Those of the other family, which only HTTP has
        others: &'a [u8],
    },
    /// Seeders, completed, leechers
    Scrape {
        rows: &'a [[u8; 12]],
    },
    Error,
    /// What cannot be read, for a reason that is told by itself
    Unreadable,
}

impl Reply<'_> {
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
