//! Requests whose source is proven. They are admitted once policy has permitted them, too.

use crate::policy::Intervals;
use tsubame_storage::{AnnounceEvent, Endpoint, Family, InfoHash, Role, SwarmCounts};
use tsubame_udp::wire::{
    self, SCRAPE_ROW_LEN, TransactionId, write_scrape_header, write_scrape_row,
};

/// An admitted announce. It is sent by value to the shard that owns the torrent.
#[derive(Clone, Copy, Debug)]
pub struct AdmittedAnnounce {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Endpoint of the peer.
    pub endpoint: Endpoint,
    /// Event of the announce.
    pub event: AnnounceEvent,
    /// Role of the peer.
    pub role: Role,
    /// Maximum number of peers in the reply.
    pub numwant: u16,
    /// Family that the request came over. Over UDP, the reply has peers of that family only (BEP 15).
    pub family: Family,
    /// Intervals of the reply.
    pub intervals: Intervals,
    /// Whether the request had action 4, which the reply repeats: an older form of the announce over IPv6.
    pub is_v6_action: bool,
}

/// An admitted scrape over UDP.
#[derive(Clone, Copy, Debug)]
pub struct AdmittedScrape {
    /// The first torrent; the others are in the datagram.
    pub first: InfoHash,
    /// Number of torrents.
    pub rows: u8,
    /// Transaction id of the request.
    pub transaction_id: TransactionId,
}

/// An admitted request over UDP.
#[derive(Clone, Copy, Debug)]
pub enum AdmittedRequest {
    /// An announce, and the transaction id of its reply.
    Announce(AdmittedAnnounce, TransactionId),
    /// A scrape.
    Scrape(AdmittedScrape),
}

// It is moved between threads by value.
const _: () = assert!(size_of::<AdmittedAnnounce>() <= 64);

impl AdmittedRequest {
    /// Returns the info hash of an announce, or the first one of a scrape: the kernel steers by it, and its entry is
    /// prefetched.
    pub fn info_hash(&self) -> InfoHash {
        match self {
            Self::Announce(announce, _) => announce.info_hash,
            Self::Scrape(scrape) => scrape.first,
        }
    }
}

impl AdmittedScrape {
    /// Returns the info hashes of the scrape, from the datagram that it came in.
    pub fn info_hashes<'a>(
        &self,
        datagram: &'a [u8],
    ) -> impl ExactSizeIterator<Item = InfoHash> + use<'a> {
        let hashes = datagram.get(wire::scrape::INFO_HASHES..).unwrap_or_default();
        let (hashes, _) = hashes.as_chunks::<20>();
        let rows = hashes.len().min(usize::from(self.rows));
        hashes[..rows].iter().copied().map(InfoHash)
    }

    /// Writes the header of the reply; returns its length.
    pub fn begin_reply(&self, reply: &mut [u8]) -> usize {
        write_scrape_header(reply, self.transaction_id)
    }

    /// Writes a row of the reply; returns its length.
    pub fn write_row(&self, reply: &mut [u8], row: usize, counts: SwarmCounts) -> usize {
        if write_scrape_row(reply, row, counts) { SCRAPE_ROW_LEN } else { 0 }
    }
}
