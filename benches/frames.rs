//! Benchmarks of what AF_XDP adds to an announce: the headers of its frame, and the queues between two shards.
//!
//! `cargo bench -p tsubame-bench --bench frames`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tsubame::clock::Now;
use tsubame::policy::Intervals;
use tsubame::shard::datapath::ReplyPath;
use tsubame::shard::mesh::mesh;
use tsubame::shard::message::Message;
use tsubame::tracker::{AdmittedAnnounce, Tracker};
use tsubame_bench::{announce_of, announce_to, empty_table, fill, peers_of, tracker};
use tsubame_storage::{Family, Role, Seconds, SwarmAnnounce};
use tsubame_udp::wire::{ACTION_ANNOUNCE, ACTION_CONNECT, PROTOCOL_MAGIC, TransactionId};
use tsubame_udp::xdp::frame::{FrameHeaders, FrameReplyPath};

const TORRENTS: u32 = 1_000_000;
const BATCH: usize = 64;
/// Number of batches of random announces: together they touch more entries than the caches hold.
const BATCHES: usize = 4_096;
const NOW: Now = Now { monotonic: Seconds(1), unix_secs: 1_000_000 };
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Offset of the payload in a frame over IPv4 without a VLAN tag.
const PAYLOAD_OFFSET: usize = 14 + 20 + 8;

/// Length of a buffer of an AF_XDP socket after its headroom.
const BUFFER_LEN: usize = 1_792;

fn benches(criterion: &mut Criterion) {
    announces(criterion);
    mesh_throughput(criterion);
}

/// Compares an announce in the table alone, from datagram to reply, and from frame to frame.
fn announces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("announce");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut table = empty_table();
    fill(&mut table, Seconds(0), 0..TORRENTS);
    let (mut rng, mut reply) = (Rng::with_seed(7), [0; 1_472]);
    let batch = |_| -> Vec<SwarmAnnounce> { (0..BATCH).map(|_| draw(&mut rng)).collect() };
    let batches: Vec<Vec<SwarmAnnounce>> = (0..BATCHES).map(batch).collect();
    group.bench_function("table", |bencher| {
        let mut next = batches.iter().cycle();
        bencher.iter(|| {
            for announce in next.next().into_iter().flatten() {
                black_box(announce_to(&mut table, Seconds(1), announce, &mut reply[..300]));
            }
        });
    });
    drop(table);
    let mut tracker = tracker(1);
    for round in 0..50 {
        for torrent in (0..TORRENTS).filter(|torrent| peers_of(*torrent) > round) {
            let (source, request) = request(&mut tracker, &announce_of(torrent, round));
            tracker.handle(NOW, source, &request, &mut reply);
        }
    }
    group.bench_function("datagram", |bencher| {
        let requests = |batch: &Vec<SwarmAnnounce>| -> Vec<(SocketAddr, Vec<u8>)> {
            batch.iter().map(|announce| request(&mut tracker, announce)).collect()
        };
        let prepared: Vec<_> = batches.iter().map(requests).collect();
        let mut next = prepared.iter().cycle();
        bencher.iter(|| {
            for (source, request) in next.next().into_iter().flatten() {
                black_box(tracker.handle(NOW, *source, request, &mut reply));
            }
        });
    });
    group.bench_function("frame", |bencher| {
        let frames = |batch: &Vec<SwarmAnnounce>| -> Vec<Vec<u8>> {
            batch.iter().map(|announce| frame(&request(&mut tracker, announce))).collect()
        };
        let prepared: Vec<_> = batches.iter().map(frames).collect();
        let (mut next, mut buffers) = (prepared.iter().cycle(), [[0; BUFFER_LEN]; BATCH]);
        bencher.iter(|| {
            for (frame, buffer) in next.next().into_iter().flatten().zip(&mut buffers) {
                // The kernel has copied the frame just before.
                buffer[..frame.len()].copy_from_slice(frame);
                let bytes = &buffer[..frame.len()];
                let Some(headers) = FrameHeaders::parse(bytes) else { continue };
                black_box(headers.has_valid_checksum(bytes));
                let payload = &buffer[PAYLOAD_OFFSET..][..headers.payload_len()];
                let answer = tracker.handle(NOW, headers.source, payload, &mut reply);
                black_box(headers.write_payload(buffer, &reply[..answer.len]));
            }
        });
    });
    group.finish();
}

/// Measures the time for an announce when one thread sends through the mesh without a pause and another receives.
fn mesh_throughput(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mesh");
    group.throughput(Throughput::Elements(1));
    let announce = draw(&mut Rng::with_seed(1));
    let admitted = AdmittedAnnounce {
        info_hash: announce.info_hash,
        endpoint: announce.endpoint,
        event: announce.event,
        role: announce.role,
        numwant: 50,
        family: Family::V4,
        intervals: Intervals { interval_secs: 1_800, min_interval_secs: 900 },
        is_v6_action: false,
    };
    let bytes = frame(&(([10, 0, 0, 2], 6_881).into(), vec![0; 98]));
    let Some(headers) = FrameHeaders::parse(&bytes) else { panic!("the frame is invalid") };
    let path = ReplyPath::Frame(FrameReplyPath::new(&bytes, &headers, 0));
    group.bench_function("announce", |bencher| {
        bencher.iter_custom(|count| {
            let Ok(mut endpoints) = mesh(2, 1) else { panic!("cannot create a mesh") };
            // The third endpoint is that of the control plane.
            endpoints.truncate(2);
            let (Some(mut receiver), Some(mut sender)) = (endpoints.pop(), endpoints.pop()) else {
                panic!("a mesh of two shards has their endpoints")
            };
            let received = AtomicU64::new(0);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut all = 0;
                    while all < count {
                        let new = receiver.receive(|_, message| _ = black_box(message));
                        all += new as u64;
                    }
                    received.store(all, Ordering::Release);
                });
                let begun = now();
                for number in 0..count {
                    let message = || Message::Announce(admitted, TransactionId([0, 0, 0, 7]), path);
                    while !sender.send(1, message()) {
                        sender.notify();
                        std::hint::spin_loop();
                    }
                    if number % BATCH as u64 == 0 {
                        sender.notify();
                    }
                }
                sender.notify();
                while received.load(Ordering::Acquire) < count {
                    std::hint::spin_loop();
                }
                begun.elapsed()
            })
        });
    });
    group.finish();
}

#[expect(clippy::disallowed_methods, reason = "measures a benchmark")]
fn now() -> Instant {
    Instant::now()
}

/// Returns an announce of a known peer of a random torrent.
fn draw(rng: &mut Rng) -> SwarmAnnounce {
    let torrent = rng.u32(..TORRENTS);
    announce_of(torrent, rng.u32(..peers_of(torrent)))
}

/// Returns an announce as a request, and its source.
fn request(tracker: &mut Tracker, announce: &SwarmAnnounce) -> (SocketAddr, Vec<u8>) {
    let source = SocketAddr::new(announce.endpoint.address(), announce.endpoint.port());
    let head = |id: u64, action: u32| {
        [id.to_be_bytes().as_slice(), [action, 7].map(u32::to_be_bytes).as_flattened()].concat()
    };
    let mut reply = [0; 1_472];
    tracker.handle(NOW, source, &head(PROTOCOL_MAGIC, ACTION_CONNECT), &mut reply);
    let id = reply[8..].first_chunk().copied().map_or(0, u64::from_be_bytes);
    let mut bytes = head(id, ACTION_ANNOUNCE);
    bytes.extend(announce.info_hash.0);
    bytes.extend([b'x'; 20]);
    let left = u64::from(announce.role != Role::Seeder);
    bytes.extend([0, left, 0].map(u64::to_be_bytes).as_flattened());
    bytes.extend([0_u32, 0, 0, 50].map(u32::to_be_bytes).as_flattened());
    bytes.extend(source.port().to_be_bytes());
    (source, bytes)
}

/// Returns the frame of a request over IPv4.
fn frame((source, payload): &(SocketAddr, Vec<u8>)) -> Vec<u8> {
    let SocketAddr::V4(source) = source else { panic!("{source} is not an IPv4 address") };
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((28 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(source.ip().octets());
    frame.extend(SERVER.octets());
    let words = frame[14..].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(
        [source.port(), 6_969, 8 + payload.len() as u16].map(u16::to_be_bytes).as_flattened(),
    );
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

criterion_group!(all, benches);
criterion_main!(all);
