//! Snapshots: any bytes are read without a panic, and without more memory than a multiple of their number. What was
//! read and is written again is the same.
//!
//! Input: if the first byte is odd, a stream; else payloads of blocks of up to 255 bytes, each after its length, which
//! get headers with valid checksums.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tsubame::state::{BlockReader, StreamTotals, write_block, write_end, write_header};
use tsubame_storage::StateRecord;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let stream = if first & 1 == 1 { rest.to_vec() } else { with_headers(rest) };
    let Some(records) = read(&stream) else { return };
    let mut written = Vec::new();
    write_header(1, &mut written);
    write_block(&records, 0, 2, &mut written);
    write_end(&StreamTotals::default(), 3, &mut written);
    assert_eq!(read(&written), Some(records));
});

/// Returns the records of a stream, or `None` if its header is invalid.
fn read(stream: &[u8]) -> Option<Vec<StateRecord>> {
    let mut reader = BlockReader::new(stream).ok()?;
    let mut records = Vec::new();
    while let Some(block) = reader.next_block().ok()? {
        let before = records.len();
        if !block.records(0, &mut records) {
            // The record of a torrent may state more peers than follow it.
            records.truncate(before);
        }
    }
    // A peer has at least 8 bytes.
    assert!(records.len() <= stream.len() / 8);
    let counts = reader.counts();
    assert!(counts.skipped_bytes <= stream.len() as u64);
    Some(records)
}

fn with_headers(bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    write_header(1, &mut stream);
    let mut rest = bytes;
    while let Some((len, after)) = rest.split_first() {
        let (payload, after) = after.split_at(after.len().min(usize::from(*len)));
        rest = after;
        let mut header = [0; 28];
        header[..4].copy_from_slice(b"BLCK");
        header[4] = 1;
        header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[20..24].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        let checksum = crc32fast::hash(&header[..24]);
        header[24..].copy_from_slice(&checksum.to_le_bytes());
        stream.extend_from_slice(&header);
        stream.extend_from_slice(payload);
    }
    stream
}
