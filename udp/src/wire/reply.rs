//! Writers of replies. They write into a slice of the caller, which is the send buffer.

use super::layout::{
    ACTION_ANNOUNCE, ACTION_ANNOUNCE_V6, ACTION_CONNECT, ACTION_ERROR, ACTION_SCRAPE,
    ANNOUNCE_REPLY_LEN, CONNECT_REPLY_LEN, ERROR_REPLY_LEN, SCRAPE_REPLY_LEN, SCRAPE_ROW_LEN,
};
use super::request::TransactionId;
use tsubame_storage::SwarmCounts;

/// Writes a connect reply; returns its length, or 0 if it does not fit.
pub fn write_connect(reply: &mut [u8], transaction_id: TransactionId, connection_id: u64) -> usize {
    let Some(reply) = reply.first_chunk_mut::<CONNECT_REPLY_LEN>() else { return 0 };
    let [a, b, c, d] = ACTION_CONNECT.to_be_bytes();
    let TransactionId([e, f, g, h]) = transaction_id;
    let [i, j, k, l, m, n, o, p] = connection_id.to_be_bytes();
    *reply = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p];
    CONNECT_REPLY_LEN
}

/// Writes an error reply with as much of the text as fits; returns its length, or 0 if no reply fits.
///
/// The text does not end with NUL, as BEP 15 defines none.
pub fn write_error(reply: &mut [u8], transaction_id: TransactionId, text: &str) -> usize {
    let Some((head, rest)) = reply.split_first_chunk_mut() else { return 0 };
    write_head(head, ACTION_ERROR, transaction_id);
    let len = rest.len().min(text.len());
    // Truncated between characters, not within one.
    let len = (0..=len).rev().find(|len| text.is_char_boundary(*len)).unwrap_or(0);
    for (to, from) in rest.iter_mut().zip(text.bytes().take(len)) {
        *to = from;
    }
    ERROR_REPLY_LEN + len
}

/// Writes a scrape reply without rows; returns its length, or 0 if it does not fit.
pub fn write_scrape_header(reply: &mut [u8], transaction_id: TransactionId) -> usize {
    let Some(head) = reply.first_chunk_mut() else { return 0 };
    write_head(head, ACTION_SCRAPE, transaction_id);
    SCRAPE_REPLY_LEN
}

/// Writes the row number `row` of a scrape reply; returns false if it does not fit.
pub fn write_scrape_row(reply: &mut [u8], row: usize, counts: SwarmCounts) -> bool {
    let rows = reply.get_mut(SCRAPE_REPLY_LEN..).unwrap_or_default();
    let (rows, _) = rows.as_chunks_mut::<SCRAPE_ROW_LEN>();
    let Some(row) = rows.get_mut(row) else { return false };
    for (to, from) in row.iter_mut().zip(
        [counts.seeders, counts.completed, counts.leechers].map(u32::to_be_bytes).as_flattened(),
    ) {
        *to = *from;
    }
    true
}

/// Writer of an announce reply: the peers are written first, directly into the reply.
#[derive(Debug)]
pub struct AnnounceReply<'a> {
    head: &'a mut [u8; ANNOUNCE_REPLY_LEN],
    peers: &'a mut [u8],
    action: u32,
}

impl<'a> AnnounceReply<'a> {
    /// Begins a reply in a slice; returns `None` if not even a reply without peers fits.
    pub fn begin(reply: &'a mut [u8]) -> Option<Self> {
        let (head, peers) = reply.split_first_chunk_mut()?;
        Some(Self { head, peers, action: ACTION_ANNOUNCE })
    }

    /// Sets whether the reply has the action of an announce with an IPv6 address.
    #[must_use]
    pub fn with_v6_action(self, is_v6: bool) -> Self {
        Self { action: if is_v6 { ACTION_ANNOUNCE_V6 } else { ACTION_ANNOUNCE }, ..self }
    }

    /// Returns the bytes into which peers are written in compact form.
    pub fn peers(&mut self) -> &mut [u8] {
        self.peers
    }

    /// Completes a reply with `peers_len` bytes of peers; returns its length.
    ///
    /// Leechers precede seeders here, and follow them in a scrape reply (BEP 15).
    pub fn finish(
        self,
        transaction_id: TransactionId,
        interval_secs: u32,
        counts: SwarmCounts,
        peers_len: usize,
    ) -> usize {
        let (head, figures) = self.head.split_at_mut(ERROR_REPLY_LEN);
        if let Some(head) = head.first_chunk_mut() {
            write_head(head, self.action, transaction_id);
        }
        let words = [interval_secs, counts.leechers, counts.seeders].map(u32::to_be_bytes);
        for (to, from) in figures.iter_mut().zip(words.as_flattened()) {
            *to = *from;
        }
        ANNOUNCE_REPLY_LEN + peers_len.min(self.peers.len())
    }
}

/// Writes the action and the transaction id.
fn write_head(head: &mut [u8; 8], action: u32, transaction_id: TransactionId) {
    let [a, b, c, d] = action.to_be_bytes();
    let TransactionId([e, f, g, h]) = transaction_id;
    *head = [a, b, c, d, e, f, g, h];
}

const _: () = assert!(ERROR_REPLY_LEN == 8 && SCRAPE_REPLY_LEN == 8);
