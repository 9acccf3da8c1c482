//! Parsed requests that are written again equal their input, and writers stay within their slice.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;
use tsubame_storage::SwarmCounts;
use tsubame_udp::wire::{
    AnnounceReply, TransactionId, UdpRequest, announce, header, write_connect, write_error,
    write_scrape_header, write_scrape_row,
};

fuzz_target!(|bytes: &[u8]| {
    match UdpRequest::parse(bytes) {
        Ok(UdpRequest::Announce(read)) => {
            let mut written = bytes.to_vec();
            written[header::CONNECTION_ID].copy_from_slice(&read.connection_id().to_be_bytes());
            written[header::TRANSACTION_ID].copy_from_slice(&read.transaction_id().0);
            written[announce::INFO_HASH].copy_from_slice(&read.info_hash().0);
            written[announce::PEER_ID].copy_from_slice(&read.peer_id().0);
            written[announce::DOWNLOADED].copy_from_slice(&read.downloaded().to_be_bytes());
            written[announce::LEFT].copy_from_slice(&read.left().to_be_bytes());
            written[announce::UPLOADED].copy_from_slice(&read.uploaded().to_be_bytes());
            // Fields after an IPv6 address are shifted by 12 bytes.
            let shift = if read.is_v6() { 12 } else { 0 };
            let shifted = |range: std::ops::Range<usize>| range.start + shift..range.end + shift;
            written[shifted(announce::PORT)].copy_from_slice(&read.port().to_be_bytes());
            // Some values are parsed as absent; only those that are present are written again.
            if let Some(ip) = read.ip() {
                match ip {
                    IpAddr::V4(ip) => written[announce::IP].copy_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => written[84..100].copy_from_slice(&ip.octets()),
                }
            }
            if let Some(wanted) = read.num_want() {
                written[shifted(announce::NUM_WANT)].copy_from_slice(&wanted.to_be_bytes());
            }
            assert_eq!(written, bytes);
            let url: usize = read.url_data().map(<[u8]>::len).sum();
            assert!(url <= bytes.len() - announce::OPTIONS - shift);
            let _ = (read.event(), read.num_want(), read.ip());
        }
        Ok(UdpRequest::Scrape(read)) => {
            let rows = read.info_hashes().len();
            assert!((1..=74).contains(&rows) && rows * 20 + 16 <= bytes.len());
            for (hash, sent) in read.info_hashes().zip(bytes[16..].chunks(20)) {
                assert_eq!(hash.0, sent);
            }
        }
        Ok(UdpRequest::Connect(_)) | Err(_) => {}
    }
    let transaction = TransactionId([1, 2, 3, 4]);
    let mut reply = bytes.to_vec();
    let len = reply.len();
    assert!(write_connect(&mut reply, transaction, 1) <= len);
    assert!(write_error(&mut reply, transaction, &String::from_utf8_lossy(bytes)) <= len);
    assert!(write_scrape_header(&mut reply, transaction) <= len);
    let number = usize::from(bytes.first().copied().unwrap_or(0));
    let counts = SwarmCounts { seeders: 1, completed: 2, leechers: 3 };
    assert_eq!(write_scrape_row(&mut reply, number, counts), len >= 8 + 12 * (number + 1));
    // The peers are written by the caller, and `finish` leaves them unchanged.
    let mut reply = bytes.to_vec();
    if let Some(begun) = AnnounceReply::begin(&mut reply) {
        let peers_len = number;
        let written = begun.finish(transaction, 1, counts, peers_len);
        assert!(written <= len);
        let words: Vec<u32> = reply[..20]
            .chunks(4)
            .map(|word| word.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
            .collect();
        assert_eq!(words, [1, 0x0102_0304, 1, 3, 1]);
        assert_eq!(reply[20..written], bytes[20..written]);
    }
});
