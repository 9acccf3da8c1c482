//! Requests: views over the bytes of a datagram.

use super::layout::{
    ACTION_ANNOUNCE, ACTION_ANNOUNCE_V6, ACTION_CONNECT, ACTION_SCRAPE, CONNECT_LEN,
    PROTOCOL_MAGIC, SCRAPE_HASHES_MAX, SCRAPE_LEN_MIN, announce, connect, header, scrape,
};
use super::options::{UrlData, url_data};
use std::net::IpAddr;
use std::ops::Range;
use tsubame_storage::{AnnounceEvent, InfoHash, PeerId};

/// A client's number for a request, echoed in the reply; opaque
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionId(pub [u8; 4]);

/// A request, told apart by its action
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// Asks for a connection id
    Connect(Connect),
    /// Enters a swarm and asks for peers
    Announce(Announce<'a>),
    /// Asks for the figures of swarms
    Scrape(Scrape<'a>),
}

/// Why bytes are not a request
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than the shortest request of its action
    TooShort,
    /// An action BEP 15 does not define for requests. Replies, too, end here, so that two trackers
    /// cannot be made to answer each other.
    UnknownAction,
    /// A connect without the magic number
    BadMagic,
}

/// A connect request
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    transaction_id: TransactionId,
}

/// An announce request
#[derive(Clone, Copy, Debug)]
pub struct Announce<'a> {
    /// All before the address
    fixed: &'a [u8; announce::IP.start],
    /// All from the address on, the fields behind it at least
    rest: &'a [u8],
    is_v6: bool,
}

/// A scrape request of at least one info hash
#[derive(Clone, Copy, Debug)]
pub struct Scrape<'a> {
    header: &'a [u8; scrape::INFO_HASHES],
    info_hashes: &'a [[u8; 20]],
}

impl<'a> Request<'a> {
    /// Reads a datagram; bytes behind what an action defines are ignored (BEP 15: "do not expect packets
    /// to be exactly of a certain size")
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let (head, _) = datagram.split_first_chunk::<CONNECT_LEN>().ok_or(Malformed::TooShort)?;
        match u32::from_be_bytes(field(head, header::ACTION)) {
            ACTION_CONNECT => {
                if u64::from_be_bytes(field(head, connect::MAGIC)) != PROTOCOL_MAGIC {
                    return Err(Malformed::BadMagic);
                }
                Ok(Self::Connect(Connect { transaction_id: transaction_id(head) }))
            }
            action @ (ACTION_ANNOUNCE | ACTION_ANNOUNCE_V6) => {
                let is_v6 = action == ACTION_ANNOUNCE_V6;
                Announce::parse(datagram, is_v6).map(Self::Announce).ok_or(Malformed::TooShort)
            }
            ACTION_SCRAPE => Scrape::parse(datagram).map(Self::Scrape).ok_or(Malformed::TooShort),
            _ => Err(Malformed::UnknownAction),
        }
    }
}

impl Connect {
    /// The client's number for this request
    pub fn transaction_id(&self) -> TransactionId {
        self.transaction_id
    }
}

impl<'a> Announce<'a> {
    fn parse(datagram: &'a [u8], is_v6: bool) -> Option<Self> {
        let (fixed, rest) = datagram.split_first_chunk()?;
        let announce = Self { fixed, rest, is_v6 };
        (rest.len() >= announce.ip_len() + announce::TAIL_LEN).then_some(announce)
    }

    fn ip_len(&self) -> usize {
        if self.is_v6 { 16 } else { 4 }
    }

    /// Whether it has room for an IPv6 address, as before BEP 15 had announces over IPv6
    pub fn is_v6(&self) -> bool {
        self.is_v6
    }

    /// What the client was given at connect
    pub fn connection_id(&self) -> u64 {
        u64::from_be_bytes(field(self.fixed, header::CONNECTION_ID))
    }

    /// The client's number for this request
    pub fn transaction_id(&self) -> TransactionId {
        transaction_id(self.fixed)
    }

    /// The torrent
    pub fn info_hash(&self) -> InfoHash {
        InfoHash(field(self.fixed, announce::INFO_HASH))
    }

    /// What the client calls itself
    pub fn peer_id(&self) -> PeerId {
        PeerId(field(self.fixed, announce::PEER_ID))
    }

    /// Bytes downloaded since `started`, by the client's account
    pub fn downloaded(&self) -> u64 {
        u64::from_be_bytes(field(self.fixed, announce::DOWNLOADED))
    }

    /// Bytes the client lacks; any value but 0 may stand for "unknown"
    pub fn left(&self) -> u64 {
        u64::from_be_bytes(field(self.fixed, announce::LEFT))
    }

    /// Bytes uploaded since `started`, by the client's account
    pub fn uploaded(&self) -> u64 {
        u64::from_be_bytes(field(self.fixed, announce::UPLOADED))
    }

    /// Why it announces; values BEP 15 does not define count as none, 4 is libtorrent's `paused` (BEP 21)
    pub fn event(&self) -> AnnounceEvent {
        match u32::from_be_bytes(field(self.fixed, announce::EVENT)) {
            1 => AnnounceEvent::Completed,
            2 => AnnounceEvent::Started,
            3 => AnnounceEvent::Stopped,
            4 => AnnounceEvent::Paused,
            _ => AnnounceEvent::None,
        }
    }

    /// The address the client asks to be stored under, if any: an IPv4 one, or an IPv6 one if [`Self::is_v6`]
    pub fn ip(&self) -> Option<IpAddr> {
        let ip = match self.is_v6 {
            true => IpAddr::from(field::<16>(self.rest, 0..16)),
            false => IpAddr::from(field::<4>(self.rest, 0..4)),
        };
        Some(ip).filter(|ip| !ip.is_unspecified())
    }

    /// Peers wanted; `None` for a negative number, "as you like"
    pub fn num_want(&self) -> Option<u32> {
        let wanted = i32::from_be_bytes(self.field_behind_ip(announce::NUM_WANT));
        u32::try_from(wanted).ok()
    }

    /// Where the client listens
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.field_behind_ip(announce::PORT))
    }

    /// Path and query of the announce URL (BEP 41), in pieces
    pub fn url_data(&self) -> UrlData<'a> {
        url_data(self.rest.get(self.ip_len() + announce::TAIL_LEN..).unwrap_or_default())
    }

    /// A field that stands behind the address
    fn field_behind_ip<const N: usize>(&self, range: Range<usize>) -> [u8; N] {
        let start = range.start - announce::IP.end + self.ip_len();
        field(self.rest, start..start + N)
    }
}

impl<'a> Scrape<'a> {
    /// Info hashes that arrived whole, up to [`SCRAPE_HASHES_MAX`]; `None` without any
    fn parse(datagram: &'a [u8]) -> Option<Self> {
        const { assert!(SCRAPE_LEN_MIN == scrape::INFO_HASHES + 20) };
        let (header, rest) = datagram.split_first_chunk()?;
        let (info_hashes, _) = rest.as_chunks::<20>();
        let info_hashes = info_hashes.get(..SCRAPE_HASHES_MAX).unwrap_or(info_hashes);
        (!info_hashes.is_empty()).then_some(Self { header, info_hashes })
    }

    /// What the client was given at connect
    pub fn connection_id(&self) -> u64 {
        u64::from_be_bytes(field(self.header, header::CONNECTION_ID))
    }

    /// The client's number for this request
    pub fn transaction_id(&self) -> TransactionId {
        transaction_id(self.header)
    }

    /// The torrents, in the order asked, with duplicates
    pub fn info_hashes(&self) -> impl ExactSizeIterator<Item = InfoHash> + use<'a> {
        self.info_hashes.iter().copied().map(InfoHash)
    }
}

fn transaction_id(bytes: &[u8]) -> TransactionId {
    TransactionId(field(bytes, header::TRANSACTION_ID))
}

/// The bytes of a field; zeros if they are not there, which callers rule out by length
fn field<const N: usize>(bytes: &[u8], range: Range<usize>) -> [u8; N] {
    bytes.get(range).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}
