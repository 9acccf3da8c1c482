//! Writes the parts of a stream.

use super::encoding::{encode_number, encode_records};
use super::format::{
    BLOCK_HEADER_BYTES, BLOCK_MAGIC, BLOCK_RECORDS_MAX, MAGIC, PAYLOAD_BYTES_MAX, VERSION, kind,
};
use tsubame_storage::StateRecord;

/// Number of torrents and peers in a stream, as its last block has them. A record that is there twice counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTotals {
    /// Records of torrents.
    pub torrents: u64,
    /// Records of peers.
    pub peers: u64,
    /// Changes by announces.
    pub changes: u64,
}

impl StreamTotals {
    /// Counts records.
    pub fn count(&mut self, records: &[StateRecord]) {
        for record in records {
            match record {
                StateRecord::Torrent(_) => self.torrents += 1,
                StateRecord::Peer(_) => self.peers += 1,
                StateRecord::Change(..) => self.changes += 1,
            }
        }
    }
}

/// Appends the header of a stream that is written at a time, in seconds since 1970.
pub fn write_header(unix_secs: u64, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&unix_secs.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let checksum = crc32fast::hash(&bytes[start..]);
    bytes.extend_from_slice(&checksum.to_le_bytes());
}

/// Appends records as blocks of up to [`BLOCK_RECORDS_MAX`]. `now` is the present time on the clock of the records,
/// `unix_secs` the same time in seconds since 1970.
///
/// The first record must not be a peer, and no torrent may have more than [`BLOCK_RECORDS_MAX`] - 1 peers in a row. An
/// export has at most 2,176.
pub fn write_block(records: &[StateRecord], now: i64, unix_secs: u64, bytes: &mut Vec<u8>) {
    let is_peer = |record: &StateRecord| matches!(record, StateRecord::Peer(_));
    let mut rest = records;
    while !rest.is_empty() {
        // The next block must not begin with a peer.
        let mut end = rest.len().min(BLOCK_RECORDS_MAX);
        while end > 1 && rest.get(end).is_some_and(is_peer) {
            end -= 1;
        }
        let (first, others) = rest.split_at(end);
        debug_assert!(!first.first().is_some_and(is_peer));
        write_payload(kind::RECORDS, unix_secs, bytes, |bytes| encode_records(first, now, bytes));
        rest = others;
    }
}

/// Appends the last block.
pub fn write_end(totals: &StreamTotals, unix_secs: u64, bytes: &mut Vec<u8>) {
    write_payload(kind::END, unix_secs, bytes, |bytes| {
        for number in [totals.torrents, totals.peers, totals.changes] {
            encode_number(number, bytes);
        }
    });
}

fn write_payload(kind: u8, unix_secs: u64, bytes: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; BLOCK_HEADER_BYTES]);
    write(bytes);
    let (header, payload) = bytes[start..].split_at_mut(BLOCK_HEADER_BYTES);
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    header[..4].copy_from_slice(&BLOCK_MAGIC);
    header[4] = kind;
    // At most 1 MiB.
    header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[12..20].copy_from_slice(&unix_secs.to_le_bytes());
    header[20..24].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let checksum = crc32fast::hash(&header[..24]);
    header[24..].copy_from_slice(&checksum.to_le_bytes());
}
