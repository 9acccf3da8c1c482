//! Handles so many requests of a kind, for callgrind to count what that takes: `benches/instructions`.
//!
//! `instructions connect|announce|scrape COUNT`. Two runs of different counts differ by the requests alone: what
//! setting up takes cancels out.

use std::hint::black_box;
use std::net::SocketAddr;
use tsubame::clock::Now;
use tsubame_bench::{announce_of, info_hash_of, peers_of, tracker};
use tsubame_storage::{Role, Seconds};
use tsubame_udp::wire::{ACTION_ANNOUNCE, ACTION_CONNECT, ACTION_SCRAPE, PROTOCOL_MAGIC};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TORRENTS: u32 = 10_000;

/// A swarm that many ask for: its peers fill a reply
const CROWD: u32 = 1_000;

const NOW: Now = Now { monotonic: Seconds(1), unix_secs: 1_000_000 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, count] = arguments.as_slice() else {
        eprintln!("usage: instructions connect|announce|scrape COUNT");
        std::process::exit(1);
    };
    let count: u32 = count.parse().expect("COUNT is a number");
    let mut tracker = tracker(1);
    let source: SocketAddr = "192.0.2.1:6881".parse().expect("an address");
    let mut reply = [0; 1_472];
    tracker.handle(NOW, source, &head(PROTOCOL_MAGIC, ACTION_CONNECT), &mut reply);
    let id = reply[8..].first_chunk().copied().map_or(0, u64::from_be_bytes);
    let requests = requests(kind, id);
    for round in 0..50 {
        for torrent in (0..TORRENTS).filter(|torrent| peers_of(*torrent) > round) {
            tracker.handle(NOW, source, &announce(id, torrent, round), &mut reply);
        }
    }
    for peer in 0..CROWD {
        tracker.handle(NOW, source, &announce(id, TORRENTS, peer), &mut reply);
    }
    for request in requests.iter().cycle().take(count as usize) {
        black_box(tracker.handle(NOW, source, black_box(request), black_box(&mut reply)));
    }
}

/// What is asked in turn: one announce in four is of the crowd
fn requests(kind: &str, id: u64) -> Vec<Vec<u8>> {
    let each = |of: &dyn Fn(u32) -> Vec<u8>| (0..1_000).map(of).collect();
    match kind {
        "connect" => each(&|_| head(PROTOCOL_MAGIC, ACTION_CONNECT)),
        "announce" => each(&|number| match number % 4 {
            0 => announce(id, TORRENTS, number % CROWD),
            _ => announce(id, number * 7 % TORRENTS, 0),
        }),
        "scrape" => each(&|number| {
            let mut bytes = head(id, ACTION_SCRAPE);
            (0..3).for_each(|row| bytes.extend(info_hash_of((number * 7 + row) % TORRENTS).0));
            bytes
        }),
        _ => panic!("{kind} is none of connect, announce, scrape"),
    }
}

fn head(id: u64, action: u32) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([action, 7].map(u32::to_be_bytes).as_flattened());
    bytes
}

/// A peer is told from another of its torrent by its port
fn announce(id: u64, torrent: u32, peer: u32) -> Vec<u8> {
    let mut bytes = head(id, ACTION_ANNOUNCE);
    let announce = announce_of(torrent, peer);
    bytes.extend(announce.info_hash.0);
    bytes.extend([b'x'; 20]);
    bytes.extend(
        [0, u64::from(announce.role != Role::Seeder), 0].map(u64::to_be_bytes).as_flattened(),
    );
    bytes.extend([0_u32, 0, 0, 50].map(u32::to_be_bytes).as_flattened());
    bytes.extend((1_024 + peer as u16).to_be_bytes());
    bytes
}
