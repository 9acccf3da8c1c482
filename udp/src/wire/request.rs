//! Requests: views of the bytes of a datagram.

use super::layout::{
    ACTION_ANNOUNCE, ACTION_ANNOUNCE_V6, ACTION_CONNECT, ACTION_SCRAPE, CONNECT_LEN,
    PROTOCOL_MAGIC, SCRAPE_HASHES_MAX, SCRAPE_LEN_MIN, announce, connect, header, scrape,
};
use super::options::{UrlData, url_data};
use std::net::IpAddr;
use std::ops::Range;
use tsubame_storage::{AnnounceEvent, InfoHash, PeerId};

/// Number that a client chose for a request; it is copied to the reply and has no meaning here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionId(pub [u8; 4]);

/// A parsed request.
#[derive(Clone, Copy, Debug)]
pub enum UdpRequest<'a> {
    /// Requests a connection id.
    Connect(ConnectRequest),
    /// Announces a peer to a swarm and requests other peers.
    Announce(AnnounceRequest<'a>),
    /// Requests the counts of swarms.
    Scrape(ScrapeRequest<'a>),
}

/// Reason for which bytes are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The datagram is shorter than the shortest request of its action.
    TooShort,
    /// The action is not that of a request. This refuses most replies, and the connection id the others, so that two
    /// trackers cannot be made to answer each other.
    UnknownAction,
    /// A connect request lacks the magic number.
    BadMagic,
}

/// A connect request.
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest {
    transaction_id: TransactionId,
}

/// An announce request.
#[derive(Clone, Copy, Debug)]
pub struct AnnounceRequest<'a> {
    /// Bytes before the address field.
    before_ip: &'a [u8; announce::IP.start],
    /// Bytes from the address field on, including all fields up to the port.
    from_ip: &'a [u8],
    /// Whether the address field has 16 bytes.
    is_v6: bool,
}

/// A scrape request of at least one info hash.
#[derive(Clone, Copy, Debug)]
pub struct ScrapeRequest<'a> {
    header: &'a [u8; scrape::INFO_HASHES],
    info_hashes: &'a [[u8; 20]],
}

impl<'a> UdpRequest<'a> {
    /// Parses a datagram.
    ///
    /// Bytes after the fields of an action are ignored (BEP 15: "do not expect packets to be exactly of a certain
    /// size").
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Self, RequestError> {
        let (head, _) =
            datagram.split_first_chunk::<CONNECT_LEN>().ok_or(RequestError::TooShort)?;
        match u32::from_be_bytes(field(head, header::ACTION)) {
            ACTION_CONNECT => {
                if u64::from_be_bytes(field(head, connect::MAGIC)) != PROTOCOL_MAGIC {
                    return Err(RequestError::BadMagic);
                }
                Ok(Self::Connect(ConnectRequest { transaction_id: transaction_id(head) }))
            }
            action @ (ACTION_ANNOUNCE | ACTION_ANNOUNCE_V6) => {
                let is_v6 = action == ACTION_ANNOUNCE_V6;
                AnnounceRequest::parse(datagram, is_v6)
                    .map(Self::Announce)
                    .ok_or(RequestError::TooShort)
            }
            ACTION_SCRAPE => {
                ScrapeRequest::parse(datagram).map(Self::Scrape).ok_or(RequestError::TooShort)
            }
            _ => Err(RequestError::UnknownAction),
        }
    }
}

impl ConnectRequest {
    /// Returns the transaction id.
    pub fn transaction_id(&self) -> TransactionId {
        self.transaction_id
    }
}

impl<'a> AnnounceRequest<'a> {
    /// Parses an announce request; returns `None` if it is too short.
    fn parse(datagram: &'a [u8], is_v6: bool) -> Option<Self> {
        let (before_ip, from_ip) = datagram.split_first_chunk()?;
        let announce = Self { before_ip, from_ip, is_v6 };
        (from_ip.len() >= announce.ip_len() + announce::TAIL_LEN).then_some(announce)
    }

    /// Returns the length of the address field in bytes.
    fn ip_len(&self) -> usize {
        if self.is_v6 { 16 } else { 4 }
    }

    /// Returns whether the request has an IPv6 address: the action 4 of opentracker.
    pub fn is_v6(&self) -> bool {
        self.is_v6
    }

    /// Returns the connection id.
    pub fn connection_id(&self) -> u64 {
        u64::from_be_bytes(field(self.before_ip, header::CONNECTION_ID))
    }

    /// Returns the transaction id.
    pub fn transaction_id(&self) -> TransactionId {
        transaction_id(self.before_ip)
    }

    /// Returns the info hash of the torrent.
    pub fn info_hash(&self) -> InfoHash {
        InfoHash(field(self.before_ip, announce::INFO_HASH))
    }

    /// Returns the peer id, which the client chose.
    pub fn peer_id(&self) -> PeerId {
        PeerId(field(self.before_ip, announce::PEER_ID))
    }

    /// Returns the number of bytes downloaded since `started`, as reported by the client.
    pub fn downloaded(&self) -> u64 {
        u64::from_be_bytes(field(self.before_ip, announce::DOWNLOADED))
    }

    /// Returns the number of bytes that the client lacks; any value except 0 may mean "unknown".
    pub fn left(&self) -> u64 {
        u64::from_be_bytes(field(self.before_ip, announce::LEFT))
    }

    /// Returns the number of bytes uploaded since `started`, as reported by the client.
    pub fn uploaded(&self) -> u64 {
        u64::from_be_bytes(field(self.before_ip, announce::UPLOADED))
    }

    /// Returns the reason of the announce. Values that BEP 15 does not define count as none, except 4: `paused` of
    /// libtorrent (BEP 21).
    pub fn event(&self) -> AnnounceEvent {
        match u32::from_be_bytes(field(self.before_ip, announce::EVENT)) {
            1 => AnnounceEvent::Completed,
            2 => AnnounceEvent::Started,
            3 => AnnounceEvent::Stopped,
            4 => AnnounceEvent::Paused,
            _ => AnnounceEvent::None,
        }
    }

    /// Returns the address that the client claims to have, if any: of IPv6 if [`Self::is_v6`], else of IPv4.
    pub fn ip(&self) -> Option<IpAddr> {
        let ip = match self.is_v6 {
            true => IpAddr::from(field::<16>(self.from_ip, 0..16)),
            false => IpAddr::from(field::<4>(self.from_ip, 0..4)),
        };
        Some(ip).filter(|ip| !ip.is_unspecified())
    }

    /// Returns the number of wanted peers; `None` for a negative number, which leaves it to the tracker.
    pub fn num_want(&self) -> Option<u32> {
        let wanted = i32::from_be_bytes(self.field_after_ip(announce::NUM_WANT));
        u32::try_from(wanted).ok()
    }

    /// Returns the port on which the client listens.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.field_after_ip(announce::PORT))
    }

    /// Returns the pieces of the path and query of the announce URL (BEP 41).
    pub fn url_data(&self) -> UrlData<'a> {
        url_data(self.from_ip.get(self.ip_len() + announce::TAIL_LEN..).unwrap_or_default())
    }

    /// Returns a field after the address; `range` is its position in a request with an IPv4 address field.
    fn field_after_ip<const N: usize>(&self, range: Range<usize>) -> [u8; N] {
        let start = range.start - announce::IP.end + self.ip_len();
        field(self.from_ip, start..start + N)
    }
}

impl<'a> ScrapeRequest<'a> {
    /// Parses a scrape request with up to [`SCRAPE_HASHES_MAX`] info hashes; returns `None` without any.
    ///
    /// A truncated info hash is ignored.
    fn parse(datagram: &'a [u8]) -> Option<Self> {
        const { assert!(SCRAPE_LEN_MIN == scrape::INFO_HASHES + 20) };
        let (header, rest) = datagram.split_first_chunk()?;
        let (info_hashes, _) = rest.as_chunks::<20>();
        let info_hashes = info_hashes.get(..SCRAPE_HASHES_MAX).unwrap_or(info_hashes);
        (!info_hashes.is_empty()).then_some(Self { header, info_hashes })
    }

    /// Returns the connection id.
    pub fn connection_id(&self) -> u64 {
        u64::from_be_bytes(field(self.header, header::CONNECTION_ID))
    }

    /// Returns the transaction id.
    pub fn transaction_id(&self) -> TransactionId {
        transaction_id(self.header)
    }

    /// Returns the info hashes in the order of the request, with duplicates.
    pub fn info_hashes(&self) -> impl ExactSizeIterator<Item = InfoHash> + use<'a> {
        self.info_hashes.iter().copied().map(InfoHash)
    }
}

/// Returns the transaction id of a request.
fn transaction_id(bytes: &[u8]) -> TransactionId {
    TransactionId(field(bytes, header::TRANSACTION_ID))
}

/// Returns the bytes of a field, or zeros if they are missing, which callers exclude by checking the length.
fn field<const N: usize>(bytes: &[u8], range: Range<usize>) -> [u8; N] {
    bytes.get(range).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}
