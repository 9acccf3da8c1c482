//! In steady state a packet allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use tsubame::clock::Now;
use tsubame::limits::REPLY_LEN_DEFAULT;
use tsubame::outcome::Outcome;
use tsubame::tracker::{Terms, Tracker};
use tsubame_storage::{Caps, Seconds, Settings, Swarms};
use tsubame_udp::connection_id::{ConnectionIds, Key};

/// Counts the allocations of each thread
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; a counter without a destructor is touched.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NOW: Now = Now { monotonic: Seconds(100), unix_secs: 1_700_000_000 };

fn tracker() -> Tracker {
    let terms = Terms {
        interval_secs: 1_800,
        min_interval_secs: 900,
        numwant_default: 50,
        numwant_max: 200,
        reply_len_max: REPLY_LEN_DEFAULT,
        trust_client_ip: Vec::new(),
        explain_wrong_connection_id: true,
    };
    let swarms = Swarms::new(Settings {
        peer_lifetime_secs: 2_700,
        keep_completed_secs: 86_400,
        memory_bytes: 1 << 30,
        source_share_per_10_000: 200,
        caps: Caps::default(),
        allow_private: false,
        hash_key: (1, 2),
        seed: 3,
    });
    Tracker::new(ConnectionIds::new(Key([9; 16]), &[Key([8; 16])], 120), terms, swarms)
}

fn source(number: u32) -> SocketAddr {
    match number % 4 {
        0 => ([0x2a00, 5, 0, 0, 0, 0, (number >> 16) as u16, number as u16], 6_881).into(),
        _ => ((0x5000_0000 + number).to_be_bytes(), 6_881).into(),
    }
}

fn request(id: u64, action: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([action, 7].map(u32::to_be_bytes).as_flattened());
    bytes.extend(body);
    bytes
}

fn announce_body(torrent: u32, event: u32) -> Vec<u8> {
    let mut body = vec![0; 82];
    body[..4].copy_from_slice(&torrent.to_be_bytes());
    body[48] = (torrent % 2) as u8;
    body[64..68].copy_from_slice(&event.to_be_bytes());
    body[76..80].copy_from_slice(&u32::MAX.to_be_bytes());
    body[80..].copy_from_slice(&6_881_u16.to_be_bytes());
    body
}

#[test]
fn a_packet_in_steady_state_allocates_nothing() {
    let ids = ConnectionIds::new(Key([9; 16]), &[], 120);
    let mut tracker = tracker();
    let mut requests = Vec::new();
    // Torrents of one peer up to some hundreds, over both families.
    for number in 0..4_000_u32 {
        let (source, torrent) = (source(number), number % (1 + number % 97));
        let id = ids.issue(NOW.unix_secs, source.ip());
        requests.push((source, request(id, 1, &announce_body(torrent, 2))));
        requests.push((source, request(0x0417_2710_1980, 0, &[])));
        requests.push((source, request(id, 2, &[7; 20])));
        requests.push((source, request(id, 2, &[0; 20 * 74])));
        requests.push((source, request(id ^ 1, 1, &announce_body(torrent, 2))));
        requests.push((source, vec![1; number as usize % 60]));
    }
    let mut reply = [0; 1472];
    for (source, request) in &requests {
        tracker.handle(NOW, *source, request, &mut reply);
    }
    let before = ALLOCATIONS.get();
    let mut announced = 0;
    for (source, request) in &requests {
        let verdict = tracker.handle(NOW, *source, request, &mut reply);
        announced += u64::from(verdict.outcome == Outcome::Refreshed);
    }
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!((allocations, announced), (0, 4_000));
    // The counter counts: a new torrent may allocate, a Vec does.
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
