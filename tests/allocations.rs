//! In steady state, processing a datagram allocates nothing, neither in the tracker nor in a shard with hooks that
//! forwards it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "shards/datapath.rs"]
mod datapath;

use datapath::{DatapathHandle, Model};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::mpsc::unbounded_channel;
use tsubame::clock::{Clock, Now};
use tsubame::config::Config;
use tsubame::policy::Intervals;
use tsubame::policy::{CompiledPolicy, ReadMode};
use tsubame::process::identity::Identity;
use tsubame::process::settings::StartupState;
use tsubame::shard::mesh::mesh;
use tsubame::shard::node::NodeResources;
use tsubame::shard::update::ShardSettings;
use tsubame::shard::{NextStep, Shard, ShardResources};
use tsubame::sizes::REPLY_LEN_DEFAULT;
use tsubame::stats::client_samples::ClientSamples;
use tsubame::stats::outcome::Outcome;
use tsubame::stats::shard_stats::ShardStats;
use tsubame::stats::shared_stats::SharedStats;
use tsubame::tracker::{AnnounceSettings, Tracker};
use tsubame_storage::{Seconds, Swarms, TableSettings};
use tsubame_udp::connection_id::{ConnectionIdKey, ConnectionIds};

/// Allocator that counts the allocations of each thread.
struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all calls go to the system's allocator; the counter is a thread local without a destructor.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NOW: Now = Now { monotonic: Seconds(100), unix_secs: 1_700_000_000 };

fn tracker() -> Tracker {
    let settings = AnnounceSettings {
        intervals: Intervals { interval_secs: 1_800, min_interval_secs: 900 },
        numwant_default: 50,
        numwant_max: 200,
        reply_len_max: REPLY_LEN_DEFAULT,
        trust_client_ip: Vec::new(),
        explain_wrong_connection_id: true,
    };
    let swarms = Swarms::new(TableSettings::with_known_keys(3));
    Tracker::new(
        ConnectionIds::new(ConnectionIdKey([9; 16]), &[ConnectionIdKey([8; 16])], 120),
        settings,
        swarms,
    )
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
    let ids = ConnectionIds::new(ConnectionIdKey([9; 16]), &[], 120);
    let mut tracker = tracker();
    let mut requests = Vec::new();
    // Torrents with one peer to some hundreds of peers, of both families.
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
    // Proves that the counter works.
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}

static SECONDS: AtomicU64 = AtomicU64::new(1_000);

struct SimulatedShard {
    shard: Shard<Model>,
    handle: Rc<DatapathHandle>,
    shared_stats: Arc<SharedStats>,
}

/// Creates two shards with hooks of several kinds.
fn shards(keys: &std::path::Path) -> Vec<SimulatedShard> {
    let source = format!(
        "udp:\n  connection_id_keys: [\"{}\"]\nannounce: {{peer_lifetime: 1h}}\nhooks:\n\
         - {{name: networks, options: {{mode: deny, networks: [10.0.0.0/8]}}}}\n\
         - {{name: access_list, options: {{mode: deny, info_hashes: [{}]}}}}\n\
         - {{name: clients, options: {{mode: deny, clients: [XX]}}}}\n\
         - {{name: passkey, options: {{file: {}}}}}\n\
         - {{name: limits, options: {{announces_per_second: 1000, burst: 1000}}}}\n\
         - {{name: interval_variation, options: {{increase: 60s}}}}\n",
        "09".repeat(16),
        "ff".repeat(20),
        keys.display()
    );
    let config = Arc::new(Config::parse("test", &source).unwrap());
    let (identity, addresses) = (Identity::random(2).unwrap(), [const { Vec::new() }; 3]);
    let files_for_connections = 100;
    let startup =
        StartupState { config: config.clone(), identity, addresses, files_for_connections };
    let policy =
        CompiledPolicy::load(&config.hooks, &CompiledPolicy::default(), 1, ReadMode::AtStart)
            .unwrap()
            .policy;
    let (retired, _) = unbounded_channel();
    let clock = Clock::simulated(&SECONDS);
    let node = |(number, endpoint)| {
        let ShardSettings { ids, announce, table, .. } = startup.shard_settings(&config, number);
        let mut tracker = Tracker::new(ids, announce, Swarms::new(table));
        tracker.exchange_policy(clock.now(), &mut policy.policy(2, 7));
        let (handle, shared_stats) =
            (Rc::<DatapathHandle>::default(), Arc::<SharedStats>::default());
        handle.discards_replies.set(true);
        let (keys, datapath) = (startup.identity.steering_keys(), Model::new(handle.clone()));
        let retired = retired.clone();
        let node = NodeResources {
            number,
            shards: 2,
            keys,
            tracker,
            endpoint,
            retired,
            client_samples: ClientSamples::new().0,
            shared_stats: shared_stats.clone(),
            clock,
            gather: None,
            publication: None,
        };
        let shard = Shard::new(ShardResources { node, datapath });
        SimulatedShard { shard, handle, shared_stats }
    };
    (0..2).zip(mesh(2, 1).unwrap()).map(node).collect()
}

#[test]
fn a_packet_through_shards_and_hooks_allocates_nothing() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "sesame\n").unwrap();
    let mut nodes = shards(keys.path());
    let ids = ConnectionIds::new(ConnectionIdKey([9; 16]), &[], 120);
    let requests = || {
        let mut requests = Vec::new();
        for number in 0..300 {
            let source = source(number);
            let id = ids.issue(1_000, source.ip());
            let mut announce = request(id, 1, &announce_body(number % 30, 2));
            announce.extend(b"\x02\x10/sesame/announce");
            requests.push((source, announce.clone()));
            // Two announces that are refused, for a wrong passkey and for a missing one.
            announce[101] = b'S';
            requests.push((source, announce));
            requests.push((source, request(id, 1, &announce_body(u32::MAX, 2))));
            let hashes: Vec<u8> =
                (0..30).flat_map(|it| announce_body(it, 0)[..20].to_vec()).collect();
            requests.push((source, request(id, 2, &hashes)));
        }
        requests
    };
    let pass = |nodes: &mut [SimulatedShard], requests: Vec<(SocketAddr, Vec<u8>)>| {
        let before = ALLOCATIONS.get();
        for (number, (source, bytes)) in requests.into_iter().enumerate() {
            assert!(nodes[number / 4 % 2].handle.arrive(source, bytes));
            let mut at_rest = 0;
            while at_rest < 4 {
                for SimulatedShard { shard, .. } in &mut *nodes {
                    let step = shard.step().unwrap();
                    at_rest = if step == NextStep::Sleep { at_rest + 1 } else { 0 };
                    shard.wake_up();
                }
            }
        }
        ALLOCATIONS.get() - before
    };
    // The first passes may allocate.
    assert!((0..2).map(|_| pass(&mut nodes, requests())).sum::<u64>() > 0);
    let stats = |nodes: &[SimulatedShard]| {
        let mut all = ShardStats::default();
        nodes.iter().for_each(|node| all.add(&node.shared_stats.read()));
        let of = |outcome| all.requests(outcome);
        [Outcome::Refreshed, Outcome::Forwarded, Outcome::Scraped, Outcome::WrongPasskey].map(of)
    };
    let before = stats(&nodes);
    assert_eq!(pass(&mut nodes, requests()), 0);
    let after = stats(&nodes);
    assert_eq!([after[0] - before[0], after[2] - before[2]], [300, 300]);
    assert!(after[1] > before[1] && after[3] > before[3], "{after:?}");
}
