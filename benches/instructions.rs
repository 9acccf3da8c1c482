//! Processes a number of requests of one kind. `benches/instructions` runs it under callgrind, which counts the
//! instructions.
//!
//! `instructions connect|announce|scrape COUNT`. Two runs with different counts differ by the requests only: the
//! instructions of the setup cancel out.

use std::hint::black_box;
use std::net::SocketAddr;
use tsubame::clock::Now;
use tsubame_bench::{announce_of, info_hash_of, peers_of, tracker};
use tsubame_storage::{Role, Seconds};
use tsubame_udp::wire::{ACTION_ANNOUNCE, ACTION_CONNECT, ACTION_SCRAPE, PROTOCOL_MAGIC};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Number of torrents of the table, without the large swarm.
const TORRENTS: u32 = 10_000;
/// Number of the torrent with a large swarm; the others have the numbers below it.
const LARGE_SWARM: u32 = TORRENTS;

/// Number of peers of the large swarm, more than a reply contains.
const LARGE_SWARM_PEERS: u32 = 1_000;

const NOW: Now = Now { monotonic: Seconds(1), unix_secs: 1_000_000 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, count] = arguments.as_slice() else {
        eprintln!("usage: instructions connect|announce|scrape COUNT");
        std::process::exit(1);
    };
    let count: u32 = count.parse().expect("COUNT must be a number");
    let mut tracker = tracker(1);
    let mut reply = [0; 1_472];
    let ids: Vec<u64> = (0..LARGE_SWARM_PEERS)
        .map(|peer| {
            let connect = head(PROTOCOL_MAGIC, ACTION_CONNECT);
            tracker.handle(NOW, source(peer), &connect, &mut reply);
            reply[8..].first_chunk().copied().map_or(0, u64::from_be_bytes)
        })
        .collect();
    let requests = requests(kind, &ids);
    for round in 0..50 {
        for torrent in (0..TORRENTS).filter(|torrent| peers_of(*torrent) > round) {
            let request = announce(ids[round as usize], torrent, round);
            tracker.handle(NOW, source(round), &request, &mut reply);
        }
    }
    for peer in 0..LARGE_SWARM_PEERS {
        let request = announce(ids[peer as usize], LARGE_SWARM, peer);
        tracker.handle(NOW, source(peer), &request, &mut reply);
    }
    for (source, request) in requests.iter().cycle().take(count as usize) {
        black_box(tracker.handle(NOW, *source, black_box(request), black_box(&mut reply)));
    }
}

/// Returns the source of a peer; each has its own address.
fn source(peer: u32) -> SocketAddr {
    ((0x5000_0000 + peer * 131).to_be_bytes(), 6_881).into()
}

/// Returns requests with their sources: one announce in four is for the large swarm.
fn requests(kind: &str, ids: &[u64]) -> Vec<(SocketAddr, Vec<u8>)> {
    let thousand =
        |request: &dyn Fn(u32) -> (SocketAddr, Vec<u8>)| (0..1_000).map(request).collect();
    match kind {
        "connect" => thousand(&|_| (source(0), head(PROTOCOL_MAGIC, ACTION_CONNECT))),
        "announce" => thousand(&|number| match number % 4 {
            0 => (source(number), announce(ids[number as usize], LARGE_SWARM, number)),
            _ => (source(0), announce(ids[0], number * 7 % TORRENTS, 0)),
        }),
        "scrape" => thousand(&|number| {
            let mut bytes = head(ids[0], ACTION_SCRAPE);
            (0..3).for_each(|row| bytes.extend(info_hash_of((number * 7 + row) % TORRENTS).0));
            (source(0), bytes)
        }),
        _ => panic!("{kind} is not one of connect, announce, scrape"),
    }
}

/// Returns the head of a request.
fn head(id: u64, action: u32) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([action, 7].map(u32::to_be_bytes).as_flattened());
    bytes
}

/// Returns an announce.
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
