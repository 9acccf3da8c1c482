//! What every datapath must do with requests over UDP, for clients on loopback or on another host.

use super::{Announce, AnnounceReply, Client, NO_REPLY_TIMEOUT, WAIT_TIMEOUT, head, info_hash_of};
use std::net::SocketAddr;

/// Replies to the same requests, from clients of both families.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Replies {
    announces: Vec<AnnounceReply>,
    scrapes: Vec<Vec<[u32; 3]>>,
}

/// Number of announces and of scrapes of [`replies`].
pub(crate) const REPLIES: (u64, u64) = (240, 8);

/// Announces and scrapes torrents of all shards. The tracker must be without peers.
pub(crate) fn replies(v4: &mut Client, v6: &mut Client) -> Replies {
    let (mut announces, mut scrapes) = (Vec::new(), Vec::new());
    for round in 0..3 {
        for torrent in 0..40 {
            let left = u64::from(torrent % 3);
            let announce = Announce { left, ..Announce::of(torrent, 7_000 + round) };
            announces.push(v4.announce(&announce));
            announces.push(v6.announce(&Announce { event: 0, ..announce }));
        }
    }
    let hashes: Vec<_> = (0..74).map(info_hash_of).collect();
    for count in [1, 2, 7, 74] {
        scrapes.push(v4.scrape(&hashes[..count]).unwrap());
        scrapes.push(v6.scrape(&hashes[74 - count..]).unwrap());
    }
    assert_eq!(scrapes[6].len(), 74);
    Replies { announces, scrapes }
}

/// Checks replies to announces and scrapes of a torrent that nobody has announced. The tracker must store any number of
/// peers of an address, and have replies of up to 200 peers of the family.
pub(crate) fn replies_follow_the_specification(client: &mut Client, torrent: u32) {
    for port in 7_000..7_300 {
        client.announce(&Announce { num_want: 0, ..Announce::of(torrent, port) });
    }
    let of = |port| Announce { event: 0, ..Announce::of(torrent, port) };
    let peers = |client: &mut Client, num_want| {
        client.announce(&Announce { num_want, ..of(7_000) }).peers.len()
    };
    // As many as fit into 1,352 bytes.
    let most = if client.tracker.is_ipv4() { 200 } else { 74 };
    assert_eq!(peers(client, -1), 50);
    assert_eq!(peers(client, i32::MIN), 50);
    assert_eq!(peers(client, 0), 0);
    assert_eq!(peers(client, 1), 1);
    assert_eq!(peers(client, 74), 74);
    assert_eq!(peers(client, i32::MAX), most);
    // Ports 0 and 1 are answered and not stored.
    for port in [0, 1] {
        let announced = client.announce(&Announce { num_want: 10, ..of(port) });
        assert_eq!((announced.leechers, announced.peers.len()), (300, 10));
    }
    // Events that no BEP defines count as none; paused is a leecher.
    for event in [4, 5, 77, u32::MAX] {
        assert_eq!(client.announce(&Announce { event, ..of(7_001) }).leechers, 300);
    }
    // The IP in the request is ignored; otherwise this would add a peer.
    assert_eq!(client.announce(&Announce { ip: [9, 9, 9, 9], ..of(7_002) }).leechers, 300);
    // Each peer is counted as completed once, and only if it was stored as a leecher before.
    let done = Announce { event: 1, left: 0, ..of(7_003) };
    for _ in 0..3 {
        client.announce(&done);
    }
    client.announce(&Announce { left: 5, ..of(7_003) });
    client.announce(&done);
    client.announce(&Announce { event: 1, left: 0, ..of(9_999) });
    let unknown = info_hash_of(torrent + 1_000_000);
    let rows = client.scrape(&[info_hash_of(torrent), unknown, info_hash_of(torrent)]);
    assert_eq!(rows.unwrap(), [[2, 1, 299], [0, 0, 0], [2, 1, 299]]);
    // A seeder gets leechers only.
    let announced = client.announce(&Announce { left: 0, num_want: 200, ..of(7_003) });
    assert!(announced.peers.iter().all(|(_, port)| *port != 9_999));
    // A peer that stops is removed and gets no peers.
    let announced = client.announce(&Announce { event: 3, ..of(7_004) });
    assert_eq!((announced.leechers, announced.peers.len()), (298, 0));
}

/// Checks that nothing but the reply to a connect is sent to a source that has not proven its address. The two clients
/// have different addresses, and the first one has no connection id.
pub(crate) fn replies_to_unproven_sources_do_not_amplify(client: &mut Client, other: &Client) {
    client.connect();
    let id = client.id;
    client.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    other.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    // A connection id is valid only for the address that it was issued to.
    assert_eq!(other.ask(&Announce::of(1, 7_000).bytes(id, 1)), None);
    assert_eq!(client.ask(&Announce::of(1, 7_000).bytes(id ^ 1, 1)), None);
    assert_eq!(client.ask(&[0; 1400]), None);
    assert_eq!(client.ask(&head(0x0417_2710_1981, 0, 1)), None);
    let mut padded = head(0x0417_2710_1980, 0, 1);
    padded.resize(1_400, 7);
    assert_eq!(client.ask(&padded).unwrap().len(), 16);
    // A scrape without an info hash gets no reply.
    assert_eq!(client.ask(&head(id, 2, 1)), None);
    client.socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    other.socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
}

/// Sends random and nearly valid datagrams, then checks that an honest client is answered. Both have connection ids.
pub(crate) fn random_datagrams_do_not_stop_the_service(flood: &Client, honest: &Client, seed: u64) {
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..6_000 {
        let len = match rng.u8(..20) {
            0 => rng.usize(..65_000),
            1..=9 => rng.usize(..120),
            10 => 16 + 20 * rng.usize(..201),
            11 => 0,
            _ => 98,
        };
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes);
        // Half of them are nearly valid: an existing action, and some with a valid connection id.
        if rng.bool() && len >= 16 {
            bytes[8..12].copy_from_slice(&rng.u32(..4).to_be_bytes());
            match rng.u8(..3) {
                0 => bytes[..8].copy_from_slice(&0x0417_2710_1980_u64.to_be_bytes()),
                1 => bytes[..8].copy_from_slice(&flood.id.to_be_bytes()),
                _ => {}
            }
        }
        // The queue of a slow interface may be full.
        let _ = flood.socket.send_to(&bytes, flood.tracker);
    }
    honest.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    let announce = Announce::of(424_242, 7_001);
    let answered = (0..20).any(|_| honest.ask(&announce.bytes(honest.id, 1)).is_some());
    assert!(answered, "the next honest announce is not answered");
    honest.socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
}

/// Sends announces with forged connection ids from a source address.
pub(crate) fn forged_announces(from: &str, tracker: SocketAddr, rng: &mut fastrand::Rng) {
    let client = Client::new(from, tracker);
    for _ in 0..10 {
        let announce = Announce::of(rng.u32(..), 7_000).bytes(rng.u64(..), 1);
        client.socket.send_to(&announce, tracker).unwrap();
    }
}
