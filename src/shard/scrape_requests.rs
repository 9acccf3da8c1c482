//! Requests for the rows of a scrape that other shards own.

use super::mesh::MeshEndpoint;
use super::message::{Message, ScrapeRows};
use tsubame_storage::InfoHash;

/// Collects the rows of one scrape by owner, so that rows of the same owner share a message.
#[derive(Debug)]
pub(super) struct ScrapeRequests {
    request_id: u32,
    /// By owner.
    rows: Vec<ScrapeRows<InfoHash>>,
}

impl ScrapeRequests {
    pub(super) fn new(shards: usize) -> Self {
        let empty = ScrapeRows::new(0, InfoHash([0; 20]));
        Self { request_id: 0, rows: vec![empty; shards] }
    }

    /// Starts a scrape.
    pub(super) fn begin(&mut self, request_id: u32) {
        self.request_id = request_id;
        self.rows.fill(ScrapeRows::new(request_id, InfoHash([0; 20])));
    }

    /// Adds a row; returns false if a message had to be sent and the queue of the owner is full.
    pub(super) fn add(
        &mut self,
        endpoint: &mut MeshEndpoint,
        owner: usize,
        number: u8,
        info_hash: InfoHash,
    ) -> bool {
        if !self.rows[owner].push(number, info_hash) {
            return true;
        }
        let empty = ScrapeRows::new(self.request_id, info_hash);
        let full = std::mem::replace(&mut self.rows[owner], empty);
        endpoint.send(owner, Message::ScrapeRequest(full))
    }

    /// Sends the rows that were not sent yet; returns false if a queue is full.
    pub(super) fn flush(&mut self, endpoint: &mut MeshEndpoint) -> bool {
        let rest = self.rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        rest.fold(true, |all_sent, (owner, rows)| {
            endpoint.send(owner, Message::ScrapeRequest(*rows)) && all_sent
        })
    }
}
