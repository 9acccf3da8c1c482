//! What the wire reads, written again, is read the same; what it writes stays within its slice.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tsubame_storage::Counts;
use tsubame_udp::wire::{
    AnnounceReply, Request, TransactionId, announce, header, write_connect, write_error,
    write_scrape_header, write_scrape_row,
};

fuzz_target!(|bytes: &[u8]| {
    match Request::parse(bytes) {
        Ok(Request::Announce(read)) => {
            let mut written = bytes.to_vec();
            written[header::CONNECTION_ID].copy_from_slice(&read.connection_id().to_be_bytes());
            written[header::TRANSACTION_ID].copy_from_slice(&read.transaction_id().0);
            written[announce::INFO_HASH].copy_from_slice(&read.info_hash().0);
            written[announce::PEER_ID].copy_from_slice(&read.peer_id().0);
            written[announce::DOWNLOADED].copy_from_slice(&read.downloaded().to_be_bytes());
            written[announce::LEFT].copy_from_slice(&read.left().to_be_bytes());
            written[announce::UPLOADED].copy_from_slice(&read.uploaded().to_be_bytes());
            written[announce::PORT].copy_from_slice(&read.port().to_be_bytes());
            assert_eq!(written, bytes);
            let url: usize = read.url_data().map(<[u8]>::len).sum();
            assert!(url <= bytes.len() - announce::OPTIONS);
            let _ = (read.event(), read.num_want(), read.ip());
        }
        Ok(Request::Scrape(read)) => {
            let rows = read.info_hashes().len();
            assert!((1..=74).contains(&rows) && rows * 20 + 16 <= bytes.len());
            for (hash, asked) in read.info_hashes().zip(bytes[16..].chunks(20)) {
                assert_eq!(hash.0, asked);
            }
        }
        Ok(Request::Connect(_)) | Err(_) => {}
    }
    let transaction = TransactionId([1, 2, 3, 4]);
    let mut reply = bytes.to_vec();
    let len = reply.len();
    assert!(write_connect(&mut reply, transaction, 1) <= len);
    assert!(write_error(&mut reply, transaction, &String::from_utf8_lossy(bytes)) <= len);
    assert!(write_scrape_header(&mut reply, transaction) <= len);
    let row = usize::from(bytes.first().copied().unwrap_or(0));
    let counts = Counts { seeders: 1, completed: 2, leechers: 3 };
    assert_eq!(write_scrape_row(&mut reply, row, counts), len >= 8 + 12 * (row + 1));
    if let Some(reply) = AnnounceReply::begin(&mut reply) {
        assert!(reply.finish(transaction, 1, counts, row) <= len);
    }
});
