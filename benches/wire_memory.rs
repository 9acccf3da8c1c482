//! Fills a running tracker over the wire with the population, and reports its resident memory.
//!
//! `cargo run --release -p tsubame-bench --example wire_memory -- 127.0.0.1:6969 PID TORRENTS`

use std::net::UdpSocket;
use std::time::Duration;
use tsubame_bench::{announce_of, peers_of};
use tsubame_storage::Role;
use tsubame_udp::wire::{ACTION_ANNOUNCE, ACTION_CONNECT, PROTOCOL_MAGIC};

/// Announces on their way at once; what is lost of them is sent again
const WINDOW: usize = 64;

/// Announces for which one connection id serves: well within two minutes
const ANNOUNCES_PER_ID: u64 = 2_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tracker, process, torrents] = arguments.as_slice() else {
        eprintln!("usage: wire_memory HOST:PORT PID TORRENTS");
        std::process::exit(1);
    };
    let torrents: u32 = torrents.parse().expect("TORRENTS is a number");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback has free ports");
    socket.connect(tracker).expect("HOST:PORT is an address");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout above zero");
    let before = resident(process);
    let (mut id, mut peers, mut lost) = (0, 0_u64, 0_u64);
    let mut window = Vec::with_capacity(WINDOW);
    for round in 0..50 {
        for torrent in (0..torrents).filter(|torrent| peers_of(*torrent) > round) {
            if peers.is_multiple_of(ANNOUNCES_PER_ID) {
                id = connect(&socket);
            }
            window.push(request(id, torrent, round));
            peers += 1;
            if window.len() == WINDOW {
                lost += flush(&socket, &mut window);
            }
        }
    }
    lost += flush(&socket, &mut window);
    let after = resident(process);
    println!(
        "{torrents} torrents, {peers} peers ({lost} sent again): {:.1} MiB resident, {:.1} before; \
         {:.1} B/torrent, {:.1} B/peer, all included",
        after as f64 / 1_048_576.0,
        before as f64 / 1_048_576.0,
        after as f64 / f64::from(torrents),
        after as f64 / peers as f64,
    );
}

fn connect(socket: &UdpSocket) -> u64 {
    let mut request = PROTOCOL_MAGIC.to_be_bytes().to_vec();
    request.extend([ACTION_CONNECT, 7].map(u32::to_be_bytes).as_flattened());
    let mut reply = [0; 64];
    loop {
        socket.send(&request).expect("the tracker listens");
        while let Ok(len) = socket.recv(&mut reply) {
            if len == 16 && reply[..4] == [0; 4] {
                return reply[8..].first_chunk().copied().map(u64::from_be_bytes).unwrap_or(0);
            }
        }
    }
}

/// An announce; a peer of the population is told from another by its port
fn request(id: u64, torrent: u32, peer: u32) -> Vec<u8> {
    let announce = announce_of(torrent, peer);
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([ACTION_ANNOUNCE, torrent ^ peer << 24].map(u32::to_be_bytes).as_flattened());
    bytes.extend(announce.info_hash.0);
    bytes.extend([b'x'; 20]);
    let left = u64::from(announce.role != Role::Seeder);
    bytes.extend([0, left, 0].map(u64::to_be_bytes).as_flattened());
    bytes.extend([0_u32; 4].map(u32::to_be_bytes).as_flattened());
    bytes.extend((1_024 + peer as u16).to_be_bytes());
    bytes
}

/// Sends a window until all of it is answered; returns how many were sent again
fn flush(socket: &UdpSocket, window: &mut Vec<Vec<u8>>) -> u64 {
    let mut again = 0;
    let mut reply = [0; 2_048];
    while !window.is_empty() {
        for request in window.iter() {
            socket.send(request).expect("the tracker listens");
        }
        while !window.is_empty() && socket.recv(&mut reply).is_ok() {
            window.retain(|request| request[12..16] != reply[4..8]);
        }
        again += window.len() as u64;
    }
    again
}

fn resident(process: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024
}
