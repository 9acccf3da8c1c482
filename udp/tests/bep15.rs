//! Tests of BEP 15, clause by clause, with the bytes of the datagrams.

use proptest::prelude::*;
use tsubame_storage::{AnnounceEvent, InfoHash, PeerId, SwarmCounts};
use tsubame_udp::wire::{
    AnnounceReply, REQUEST_LEN_MAX, RequestError, SCRAPE_HASHES_MAX, TransactionId, UdpRequest,
    write_connect, write_error, write_scrape_header, write_scrape_row,
};

const TRANSACTION: TransactionId = TransactionId([0xde, 0xad, 0xbe, 0xef]);

const CONNECT: [u8; 16] = [
    0, 0, 0x04, 0x17, 0x27, 0x10, 0x19, 0x80, // protocol magic
    0, 0, 0, 0, // action: connect
    0xde, 0xad, 0xbe, 0xef, // transaction id
];

/// Returns an announce with two zeros at the end, which aria2 always appends: 100 bytes.
fn announce() -> Vec<u8> {
    let mut bytes = vec![1, 2, 3, 4, 5, 6, 7, 8]; // connection id
    bytes.extend([0, 0, 0, 1]); // action: announce
    bytes.extend(TRANSACTION.0);
    bytes.extend([0xaa; 20]); // info hash
    bytes.extend(*b"-AB1230-abcdefghijkl"); // peer id
    bytes.extend(7_u64.to_be_bytes()); // downloaded
    bytes.extend(8_u64.to_be_bytes()); // left
    bytes.extend(9_u64.to_be_bytes()); // uploaded
    bytes.extend([0, 0, 0, 2]); // event: started
    bytes.extend([10, 1, 2, 3]); // ip
    bytes.extend([0xca, 0xfe, 0xba, 0xbe]); // key
    bytes.extend([0xff, 0xff, 0xff, 0xff]); // num_want: -1
    bytes.extend([0x1a, 0xe1]); // port 6881
    bytes.extend([0, 0]);
    bytes
}

fn scrape(hashes: usize) -> Vec<u8> {
    let mut bytes = vec![1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 2];
    bytes.extend(TRANSACTION.0);
    bytes.extend((0..hashes).flat_map(|hash| [hash as u8; 20]));
    bytes
}

#[test]
fn connect_is_recognised_by_its_magic() {
    let Ok(UdpRequest::Connect(connect)) = UdpRequest::parse(&CONNECT) else {
        panic!("no connect")
    };
    assert_eq!(connect.transaction_id(), TRANSACTION);
    for byte in 0..8 {
        let mut bytes = CONNECT;
        bytes[byte] ^= 0x10;
        assert_eq!(UdpRequest::parse(&bytes).unwrap_err(), RequestError::BadMagic);
    }
}

#[test]
fn connect_reply_is_exactly_sixteen_bytes() {
    let mut reply = [0xff; 32];
    let len = write_connect(&mut reply, TRANSACTION, 0x0102_0304_0506_0708);
    let expected = [0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(reply[..len], expected);
    assert_eq!(reply[len..], [0xff; 16]);
}

#[test]
fn announce_fields_are_read_at_the_offsets_of_bep_15() {
    let bytes = announce();
    let Ok(UdpRequest::Announce(announce)) = UdpRequest::parse(&bytes) else {
        panic!("no announce")
    };
    assert_eq!(announce.connection_id(), 0x0102_0304_0506_0708);
    assert_eq!(announce.transaction_id(), TRANSACTION);
    assert_eq!(announce.info_hash(), InfoHash([0xaa; 20]));
    assert_eq!(announce.peer_id(), PeerId(*b"-AB1230-abcdefghijkl"));
    assert_eq!((announce.downloaded(), announce.left(), announce.uploaded()), (7, 8, 9));
    assert_eq!(announce.event(), AnnounceEvent::Started);
    assert_eq!(announce.ip(), Some([10, 1, 2, 3].into()));
    assert_eq!(announce.num_want(), None);
    assert_eq!(announce.port(), 6881);
    assert_eq!(announce.url_data().count(), 0);
}

/// The action 4 of opentracker: the fields after the address are 12 bytes later.
#[test]
fn an_announce_with_an_ipv6_address_is_parsed() {
    let (mut bytes, v4) = (announce(), announce());
    bytes[11] = 4;
    bytes.truncate(84);
    bytes.extend([0x2a; 16]);
    bytes.extend(&v4[88..98]);
    let Ok(UdpRequest::Announce(announce)) = UdpRequest::parse(&bytes) else { panic!() };
    assert!(announce.is_v6());
    assert_eq!(announce.ip(), Some([0x2a; 16].into()));
    assert_eq!((announce.num_want(), announce.event()), (None, AnnounceEvent::Started));
    let Ok(UdpRequest::Announce(same)) = UdpRequest::parse(&v4) else { panic!() };
    assert_eq!((announce.port(), announce.info_hash()), (same.port(), same.info_hash()));
    assert!(!same.is_v6());
    assert!(matches!(UdpRequest::parse(&bytes[..109]), Err(RequestError::TooShort)));
    let mut reply = [0; 20];
    let written = AnnounceReply::begin(&mut reply).unwrap().with_v6_action(true);
    written.finish(TRANSACTION, 1, SwarmCounts::default(), 0);
    assert_eq!(reply[..4], [0, 0, 0, 4]);
}

#[test]
fn every_event_value_is_parsed() {
    let events = [
        AnnounceEvent::None,
        AnnounceEvent::Completed,
        AnnounceEvent::Started,
        AnnounceEvent::Stopped,
        AnnounceEvent::Paused,
    ];
    let values = (0..5)
        .zip(events)
        .chain([5, 255, 256, 1 << 24, u32::MAX].map(|v| (v, AnnounceEvent::None)));
    for (value, event) in values {
        let mut bytes = announce();
        bytes[80..84].copy_from_slice(&u32::to_be_bytes(value));
        let Ok(UdpRequest::Announce(announce)) = UdpRequest::parse(&bytes) else {
            panic!("{value}")
        };
        assert_eq!(announce.event(), event, "{value}");
    }
}

#[test]
fn num_want_is_signed() {
    for (value, wanted) in [(0, Some(0)), (74, Some(74)), (-1, None), (i32::MIN, None)] {
        let mut bytes = announce();
        bytes[92..96].copy_from_slice(&i32::to_be_bytes(value));
        let Ok(UdpRequest::Announce(announce)) = UdpRequest::parse(&bytes) else {
            panic!("{value}")
        };
        assert_eq!(announce.num_want(), wanted);
    }
}

#[test]
fn an_ip_of_zero_means_the_source_address() {
    let mut bytes = announce();
    bytes[84..88].fill(0);
    let Ok(UdpRequest::Announce(announce)) = UdpRequest::parse(&bytes) else {
        panic!("no announce")
    };
    assert_eq!(announce.ip(), None);
}

#[test]
fn announce_reply_has_leechers_before_seeders_and_then_peers() {
    let mut bytes = [0xff; 40];
    let mut reply = AnnounceReply::begin(&mut bytes).unwrap();
    assert_eq!(reply.peers().len(), 20);
    reply.peers()[..6].copy_from_slice(&[192, 0, 2, 1, 0x1a, 0xe1]);
    let counts = SwarmCounts { seeders: 3, completed: 9, leechers: 2 };
    let len = reply.finish(TRANSACTION, 1800, counts, 6);
    let mut expected = vec![0, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0x07, 0x08];
    expected.extend([0, 0, 0, 2, 0, 0, 0, 3, 192, 0, 2, 1, 0x1a, 0xe1]);
    assert_eq!(bytes[..len], expected);
    assert!(AnnounceReply::begin(&mut [0; 19]).is_none());
}

#[test]
fn scrape_has_up_to_seventy_four_hashes() {
    for (hashes, read) in [(1, 1), (2, 2), (60, 60), (74, 74), (75, 74), (200, 74)] {
        let bytes = scrape(hashes);
        let Ok(UdpRequest::Scrape(scrape)) = UdpRequest::parse(&bytes) else { panic!("{hashes}") };
        assert_eq!(scrape.connection_id(), 0x0102_0304_0506_0708);
        assert_eq!(scrape.transaction_id(), TRANSACTION);
        let expected: Vec<_> = (0..read).map(|hash| InfoHash([hash as u8; 20])).collect();
        assert_eq!(scrape.info_hashes().collect::<Vec<_>>(), expected);
    }
    assert_eq!(scrape(SCRAPE_HASHES_MAX).len(), REQUEST_LEN_MAX);
    assert_eq!(UdpRequest::parse(&scrape(0)).unwrap_err(), RequestError::TooShort);
}

#[test]
fn a_truncated_info_hash_is_ignored() {
    let mut bytes = scrape(3);
    bytes.truncate(16 + 2 * 20 + 19);
    let Ok(UdpRequest::Scrape(scrape)) = UdpRequest::parse(&bytes) else { panic!("no scrape") };
    assert_eq!(scrape.info_hashes().len(), 2);
}

#[test]
fn scrape_reply_has_seeders_completed_leechers() {
    let mut reply = [0xff; 8 + 2 * 12 + 5];
    assert_eq!(write_scrape_header(&mut reply, TRANSACTION), 8);
    assert!(write_scrape_row(&mut reply, 1, SwarmCounts { seeders: 1, completed: 2, leechers: 3 }));
    assert!(write_scrape_row(&mut reply, 0, SwarmCounts::default()));
    assert!(!write_scrape_row(&mut reply, 2, SwarmCounts::default()));
    let mut expected = vec![0, 0, 0, 2, 0xde, 0xad, 0xbe, 0xef];
    expected.extend([0; 12]);
    expected.extend([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
    assert_eq!(reply[..32], expected);
}

#[test]
fn an_error_text_is_truncated_between_characters() {
    let mut reply = [0xff; 13];
    assert_eq!(write_error(&mut reply, TRANSACTION, "no"), 10);
    assert_eq!(reply[..10], [0, 0, 0, 3, 0xde, 0xad, 0xbe, 0xef, b'n', b'o']);
    assert_eq!(write_error(&mut reply, TRANSACTION, "abcdü"), 12);
    assert_eq!(write_error(&mut reply[..7], TRANSACTION, "abc"), 0);
}

#[test]
fn requests_may_be_longer_but_not_shorter() {
    for (request, shortest) in [(CONNECT.to_vec(), 16), (announce(), 98), (scrape(1), 36)] {
        for len in 0..shortest {
            assert_eq!(
                UdpRequest::parse(&request[..len]).unwrap_err(),
                RequestError::TooShort,
                "{len}"
            );
        }
        let mut longer = request;
        longer.extend([0; 7]);
        assert!(UdpRequest::parse(&longer).is_ok());
    }
}

#[test]
fn replies_are_not_requests() {
    // Otherwise two trackers could be made to answer each other forever.
    for action in [3, 5, 255, u32::MAX] {
        let mut bytes = announce();
        bytes[8..12].copy_from_slice(&action.to_be_bytes());
        assert_eq!(UdpRequest::parse(&bytes).unwrap_err(), RequestError::UnknownAction);
    }
    // Action 4 also exists as a request, an announce with an IPv6 address (110 bytes); a shorter datagram is refused.
    let mut bytes = announce();
    bytes[8..12].copy_from_slice(&4_u32.to_be_bytes());
    assert_eq!(UdpRequest::parse(&bytes).unwrap_err(), RequestError::TooShort);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        action in 0_u8..5,
    ) {
        let mut bytes = bytes;
        if let Some(last) = bytes.get_mut(11) {
            *last = action;
        }
        if let Ok(UdpRequest::Announce(announce)) = UdpRequest::parse(&bytes) {
            prop_assert!(announce.url_data().map(<[u8]>::len).sum::<usize>() <= bytes.len());
            prop_assert!(announce.num_want().is_none_or(|wanted| wanted <= i32::MAX as u32));
        }
    }

    #[test]
    fn writers_do_not_exceed_their_slice(len in 0_usize..64, row in 0_usize..9, text in ".{0,20}") {
        let mut reply = vec![0; len];
        prop_assert!(write_connect(&mut reply, TRANSACTION, 1) <= len);
        prop_assert!(write_error(&mut reply, TRANSACTION, &text) <= len);
        prop_assert!(write_scrape_header(&mut reply, TRANSACTION) <= len);
        let fits = len >= 8 + 12 * (row + 1);
        prop_assert_eq!(write_scrape_row(&mut reply, row, SwarmCounts::default()), fits);
        if let Some(reply) = AnnounceReply::begin(&mut reply) {
            prop_assert!(reply.finish(TRANSACTION, 1, SwarmCounts::default(), row * 6) <= len);
        }
    }
}
