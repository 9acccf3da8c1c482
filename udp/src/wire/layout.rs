//! Offsets of the fields and lengths of the datagrams of BEP 15, checked at compile time.

/// Offsets of the fields with which all requests except connect begin.
pub mod header {
    use std::ops::Range;

    /// Connection id: the number that the reply to connect contained.
    pub const CONNECTION_ID: Range<usize> = 0..8;
    /// Type of the request.
    pub const ACTION: Range<usize> = 8..12;
    /// Transaction id: chosen by the client and copied to the reply.
    pub const TRANSACTION_ID: Range<usize> = 12..16;
}

/// Offsets of the fields of a connect request.
pub mod connect {
    use std::ops::Range;

    /// Magic number of the protocol, in place of a connection id.
    pub const MAGIC: Range<usize> = crate::wire::layout::header::CONNECTION_ID;
}

/// Offsets of the fields of an announce request, after the header.
pub mod announce {
    use std::ops::Range;

    /// Info hash of the torrent.
    pub const INFO_HASH: Range<usize> = 16..36;
    /// Peer id: chosen by the client.
    pub const PEER_ID: Range<usize> = 36..56;
    /// Bytes downloaded since `started`.
    pub const DOWNLOADED: Range<usize> = 56..64;
    /// Bytes that the client lacks.
    pub const LEFT: Range<usize> = 64..72;
    /// Bytes uploaded since `started`.
    pub const UPLOADED: Range<usize> = 72..80;
    /// Event: 0 none, 1 completed, 2 started, 3 stopped; 4 paused, which libtorrent sends.
    pub const EVENT: Range<usize> = 80..84;
    /// IPv4 address to use instead of the source address, or 0.
    pub const IP: Range<usize> = 84..88;
    /// Key: identifies a client across announces; how long one is kept depends on the client.
    pub const KEY: Range<usize> = 88..92;
    /// Number of wanted peers, signed; -1 leaves the number to the tracker.
    pub const NUM_WANT: Range<usize> = 92..96;
    /// Port on which the client listens.
    pub const PORT: Range<usize> = 96..98;
    /// Bytes of the fields after the address: key, number of wanted peers and port.
    pub const TAIL_LEN: usize = PORT.end - IP.end;
    /// Options (BEP 41).
    pub const OPTIONS: usize = PORT.end;
}

/// Offsets of the fields of a scrape request, after the header.
pub mod scrape {
    /// Info hashes of 20 bytes, up to the end of the datagram.
    pub const INFO_HASHES: usize = 16;
}

/// Magic number of a connect request.
pub const PROTOCOL_MAGIC: u64 = 0x0417_2710_1980;

/// Action `connect`, in requests and replies.
pub const ACTION_CONNECT: u32 = 0;
/// Action `announce`, in requests and replies.
pub const ACTION_ANNOUNCE: u32 = 1;
/// Action `scrape`, in requests and replies.
pub const ACTION_SCRAPE: u32 = 2;
/// Action `error`, in replies.
pub const ACTION_ERROR: u32 = 3;
/// Action `announce` with an IPv6 address, in requests and replies: an extension of opentracker from before BEP 15
/// supported IPv6. The address field has 16 bytes, so all fields after it are 12 bytes later.
pub const ACTION_ANNOUNCE_V6: u32 = 4;

/// Minimum bytes of a connect request.
pub const CONNECT_LEN: usize = header::TRANSACTION_ID.end;
/// Minimum bytes of an announce request.
pub const ANNOUNCE_LEN: usize = announce::OPTIONS;
/// Minimum bytes of an announce request with an IPv6 address.
pub const ANNOUNCE_V6_LEN: usize = ANNOUNCE_LEN + 12;
/// Bytes of a scrape request with one info hash.
pub const SCRAPE_LEN_MIN: usize = scrape::INFO_HASHES + 20;
/// Maximum number of info hashes of a scrape that are answered: "up to about 74" (BEP 15).
pub const SCRAPE_HASHES_MAX: usize = 74;
/// Offset of the first info hash, in announce and scrape requests.
pub const INFO_HASH_OFFSET: usize = announce::INFO_HASH.start;
/// Maximum bytes of a request that are read: a scrape of 74 info hashes. The options of an announce beyond them are
/// ignored.
pub const REQUEST_LEN_MAX: usize = scrape::INFO_HASHES + SCRAPE_HASHES_MAX * 20;

/// Bytes of a connect reply; clients drop a reply of any other length.
pub const CONNECT_REPLY_LEN: usize = 16;
/// Bytes of an announce reply without peers.
pub const ANNOUNCE_REPLY_LEN: usize = 20;
/// Bytes of a scrape reply without rows.
pub const SCRAPE_REPLY_LEN: usize = 8;
/// Bytes of a row of a scrape reply: seeders, completed, leechers.
pub const SCRAPE_ROW_LEN: usize = 12;
/// Bytes of an error reply without text.
pub const ERROR_REPLY_LEN: usize = 8;

const _: () = assert!(CONNECT_LEN == 16 && ANNOUNCE_LEN == 98 && SCRAPE_LEN_MIN == 36);
const _: () = assert!(ANNOUNCE_V6_LEN == 110 && announce::TAIL_LEN == 10);
const _: () = assert!(REQUEST_LEN_MAX == 1496);
const _: () = assert!(INFO_HASH_OFFSET == scrape::INFO_HASHES);
// A connect reply does not amplify: it is sent to sources that may be forged.
const _: () = assert!(CONNECT_REPLY_LEN <= CONNECT_LEN);
