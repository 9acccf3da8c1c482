//! Messages between shards, and from the control plane to a shard.

use super::admin::AdminRequest;
use super::datapath::ReplyPath;
use super::transfer::TransferRequest;
use super::update::ShardUpdate;
use crate::tracker::AdmittedAnnounce;
use crate::tracker::peer_list::PeerList;
use tokio::sync::mpsc::UnboundedSender;
use tsubame_storage::{InfoHash, SwarmStats, TorrentPage};
use tsubame_udp::wire::TransactionId;

/// Maximum number of scrape rows in a message.
pub const ROWS_MAX: usize = 5;

/// Bit that is set in the request ids of HTTP, and not in those of scrapes over UDP.
pub const HTTP_REQUEST: u32 = 1 << 31;

/// A message to a shard: two cache lines, so that as few as possible move between two cores.
#[derive(Debug)]
#[repr(align(64))]
pub enum Message {
    /// An announce over UDP that another shard received. The owner of the torrent sends the reply, by the path.
    Announce(AdmittedAnnounce, TransactionId, ReplyPath),
    /// An announce over HTTP, and a list to be filled and sent back.
    HttpAnnounce(AdmittedAnnounce, Box<PeerList>),
    /// The filled list of an announce over HTTP.
    HttpAnnounceReply(Box<PeerList>),
    /// A request for a page of the list of all torrents.
    PageRequest(PageRequest),
    /// A page of the list of all torrents.
    PageReply(Box<PageReply>),
    /// A request for the counts of some torrents.
    ScrapeRequest(ScrapeRows<InfoHash>),
    /// The counts of some torrents.
    ScrapeReply(ScrapeRows<SwarmStats>),
    /// From the control plane: a new policy, or new settings.
    Update(Box<ShardUpdate>),
    /// From the control plane: a request about torrents.
    Admin(Box<AdminRequest>),
    /// From the control plane: a request to export or import swarms.
    Transfer(Box<TransferRequest>),
    /// From the control plane: receive no more datagrams, and say when all that were received have been answered.
    Drain(UnboundedSender<()>),
    /// From the control plane: accept no more HTTP connections, and close each after its next reply. Another process
    /// serves the listening sockets.
    EndConnections,
    /// From the control plane: stop.
    Stop {
        /// Whether another process serves the listening sockets of HTTP from now on.
        keeps_listeners: bool,
    },
}

const _: () = assert!(size_of::<Message>() == 128);

/// Some rows of a scrape, sent between the shard that waits for them and the owner of the torrents: info hashes in a
/// request, counts in a reply.
#[derive(Clone, Copy, Debug)]
pub struct ScrapeRows<T> {
    /// Id of the scrape at the shard that waits for it.
    pub request_id: u32,
    len: u8,
    /// Numbers of the rows in the scrape.
    row_numbers: [u8; ROWS_MAX],
    values: [T; ROWS_MAX],
}

impl<T: Copy> ScrapeRows<T> {
    /// Creates a message without rows; `filler` is never read.
    pub fn new(request_id: u32, filler: T) -> Self {
        Self { request_id, len: 0, row_numbers: [0; ROWS_MAX], values: [filler; ROWS_MAX] }
    }

    /// Adds a row; returns whether the message is full now.
    pub fn push(&mut self, number: u8, value: T) -> bool {
        let at = usize::from(self.len);
        self.row_numbers[at] = number;
        self.values[at] = value;
        self.len += 1;
        usize::from(self.len) == ROWS_MAX
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the rows with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u8, T)> {
        let len = usize::from(self.len);
        self.row_numbers[..len].iter().copied().zip(self.values[..len].iter().copied())
    }

    /// Returns the same rows with other values.
    pub fn map<U: Copy>(&self, filler: U, mut value: impl FnMut(T) -> U) -> ScrapeRows<U> {
        let mut mapped = ScrapeRows::new(self.request_id, filler);
        for (number, old) in self.iter() {
            mapped.push(number, value(old));
        }
        mapped
    }
}

/// A request for a page of the list of all torrents.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Id of the request at the shard that waits for it.
    pub request_id: u32,
    /// The torrents of the page come after this one.
    pub after: Option<InfoHash>,
}

/// A page of the torrents of a shard.
#[derive(Debug)]
pub struct PageReply {
    /// Id of the request.
    pub request_id: u32,
    /// The torrents.
    pub page: TorrentPage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_numbers() {
        let mut rows = ScrapeRows::new(9, 0_u32);
        assert!(rows.is_empty());
        let full: Vec<bool> = (10..15).map(|number| rows.push(number, number.into())).collect();
        assert_eq!(full, [false, false, false, false, true]);
        let doubled = rows.map(0_u64, |value| u64::from(value) * 2);
        assert_eq!(doubled.iter().nth(4), Some((14, 28)));
        assert_eq!(doubled.request_id, 9);
    }
}
