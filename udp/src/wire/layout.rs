//! Where the fields are (BEP 15), and how long datagrams get. Checked at compile time.

use std::ops::Range;

/// Field offsets every request but connect begins with
pub mod header {
    use super::Range;

    /// What connect was answered with
    pub const CONNECTION_ID: Range<usize> = 0..8;
    /// Which request it is
    pub const ACTION: Range<usize> = 8..12;
    /// Chosen by the client, echoed as it is
    pub const TRANSACTION_ID: Range<usize> = 12..16;
}

/// Field offsets of a connect request
pub mod connect {
    use super::Range;

    /// In place of a connection id: the magic number of the protocol
    pub const MAGIC: Range<usize> = super::header::CONNECTION_ID;
}

/// Field offsets of an announce request, behind the header
pub mod announce {
    use super::Range;

    /// The torrent
    pub const INFO_HASH: Range<usize> = 16..36;
    /// What the client calls itself
    pub const PEER_ID: Range<usize> = 36..56;
    /// Bytes downloaded since `started`
    pub const DOWNLOADED: Range<usize> = 56..64;
    /// Bytes the client still lacks
    pub const LEFT: Range<usize> = 64..72;
    /// Bytes uploaded since `started`
    pub const UPLOADED: Range<usize> = 72..80;
    /// 0 none, 1 completed, 2 started, 3 stopped; 4 paused, which libtorrent sends
    pub const EVENT: Range<usize> = 80..84;
    /// An IPv4 address to use instead of the source, or 0
    pub const IP: Range<usize> = 84..88;
    /// Tells a client's announces from another's; clients do not agree how long it lasts
    pub const KEY: Range<usize> = 88..92;
    /// Peers wanted, signed; -1 is "as you like"
    pub const NUM_WANT: Range<usize> = 92..96;
    /// Where the client listens
    pub const PORT: Range<usize> = 96..98;
    /// Bytes of key, number of wanted peers and port, which stand behind the address
    pub const TAIL_LEN: usize = PORT.end - IP.end;
    /// Options (BEP 41)
    pub const OPTIONS: usize = PORT.end;
}

/// Field offsets of a scrape request, behind the header
pub mod scrape {
    /// Info hashes of 20 bytes up to the end
    pub const INFO_HASHES: usize = 16;
}

/// The connect request's magic number
pub const PROTOCOL_MAGIC: u64 = 0x0417_2710_1980;

/// `connect`, in requests and replies
pub const ACTION_CONNECT: u32 = 0;
/// `announce`, in requests and replies
pub const ACTION_ANNOUNCE: u32 = 1;
/// `scrape`, in requests and replies
pub const ACTION_SCRAPE: u32 = 2;
/// `error`, in replies
pub const ACTION_ERROR: u32 = 3;
/// `announce` over IPv6 as opentracker had it before BEP 15 did, in requests and replies: with room for an IPv6
/// address, so that all that follows it stands 12 bytes later
pub const ACTION_ANNOUNCE_V6: u32 = 4;

/// Bytes of a connect request, at least
pub const CONNECT_LEN: usize = header::TRANSACTION_ID.end;
/// Bytes of an announce request, at least
pub const ANNOUNCE_LEN: usize = announce::OPTIONS;
/// Bytes of an announce request with an IPv6 address, at least
pub const ANNOUNCE_V6_LEN: usize = ANNOUNCE_LEN + 12;
/// Bytes of a scrape request with one info hash
pub const SCRAPE_LEN_MIN: usize = scrape::INFO_HASHES + 20;
/// Info hashes a scrape is answered for: "up to about 74" (BEP 15)
pub const SCRAPE_HASHES_MAX: usize = 74;
/// Where both announce and scrape have their first info hash
pub const INFO_HASH_OFFSET: usize = announce::INFO_HASH.start;
/// Bytes of the longest request that is read whole: a scrape of 74. An announce with longer options is
/// read up to here.
pub const REQUEST_LEN_MAX: usize = scrape::INFO_HASHES + SCRAPE_HASHES_MAX * 20;

/// Bytes of a connect reply; clients drop any other length
pub const CONNECT_REPLY_LEN: usize = 16;
/// Bytes of an announce reply without peers
pub const ANNOUNCE_REPLY_LEN: usize = 20;
/// Bytes of a scrape reply without rows
pub const SCRAPE_REPLY_LEN: usize = 8;
/// Bytes of a scrape reply's row: seeders, completed, leechers
pub const SCRAPE_ROW_LEN: usize = 12;
/// Bytes of an error reply without text
pub const ERROR_REPLY_LEN: usize = 8;

const _: () = assert!(CONNECT_LEN == 16 && ANNOUNCE_LEN == 98 && SCRAPE_LEN_MIN == 36);
const _: () = assert!(ANNOUNCE_V6_LEN == 110 && announce::TAIL_LEN == 10);
const _: () = assert!(REQUEST_LEN_MAX == 1496);
const _: () = assert!(INFO_HASH_OFFSET == scrape::INFO_HASHES);
// The connect reply reveals nothing to be amplified.
const _: () = assert!(CONNECT_REPLY_LEN <= CONNECT_LEN);
