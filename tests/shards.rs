//! Simulation of several shards and the mesh between them in one thread, over a model of the datapath.
//!
//! Datagrams arrive at any shard, shards stall and are woken late, buffers and slots run out, queues of the mesh fill
//! up, and settings change during the run. The same seed gives the same run.
//!
//! Peers join and do not leave, so each count has two bounds: at least the peers whose announce was answered, at most
//! the peers that announced. A scrape row of another torrent, or one that is zero because a shard did not reply, lies
//! outside these bounds.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "shards/datapath.rs"]
mod datapath;
#[path = "shards/http.rs"]
mod http;
#[path = "shards/transfer.rs"]
mod transfer;

use datapath::{BUFFERS, DatapathHandle, Model, SLOTS};
use http::PendingOverHttp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tsubame::clock::Clock;
use tsubame::config::Config;
use tsubame::policy::access_list::{ListMode, ListSources};
use tsubame::policy::{CompiledPolicy, HookConfig, ReadMode, RefusalReply};
use tsubame::process::identity::Identity;
use tsubame::process::settings::StartupState;
use tsubame::shard::mesh::{MeshEndpoint, WakeupReceiver, mesh};
use tsubame::shard::message::Message;
use tsubame::shard::node::NodeResources;
use tsubame::shard::update::{ShardSettings, ShardUpdate};
use tsubame::shard::{NextStep, Shard, ShardResources};
use tsubame::stats::client_samples::ClientSamples;
use tsubame::stats::outcome::Outcome;
use tsubame::stats::shard_stats::{Protocol, ShardStats};
use tsubame::stats::shared_stats::SharedStats;
use tsubame::tracker::Tracker;
use tsubame_storage::{Family, InfoHash, Swarms};
use tsubame_udp::connection_id::ConnectionIds;
use tsubame_udp::steering::KEY_WORDS;

const TORRENTS: usize = 60;

/// Minimum number of peers of a torrent.
const PEERS_MIN: usize = 3;

/// A torrent that an access list denies at times, which removes its peers.
const DENIED: usize = 0;

const KEY: &str = "00112233445566778899aabbccddeeff";

struct SimulatedShard {
    shard: Shard<Model>,
    handle: Rc<DatapathHandle>,
    waker: WakeupReceiver,
    shared_stats: Arc<SharedStats>,
    asleep: bool,
    /// Tick before which the shard takes no step.
    stalled_until: usize,
}

/// A request that has been sent and not answered.
enum Request {
    /// The announced torrent.
    Announce(usize),
    /// The scraped torrents, each with the number of its peers whose announce had been answered at that time.
    Scrape(Vec<(usize, usize)>),
}

#[derive(Default)]
struct Swarm {
    announced: BTreeSet<SocketAddr>,
    confirmed: BTreeSet<SocketAddr>,
}

struct ShardSimulation {
    rng: fastrand::Rng,
    /// Whether shards wait for datagrams in their datapath ([`Shard::step_with_wait`]) instead of sleeping.
    waits_in_datapath: bool,
    seconds: &'static AtomicU64,
    ids: ConnectionIds,
    shards: Vec<SimulatedShard>,
    control: MeshEndpoint,
    retired: UnboundedReceiver<Box<ShardUpdate>>,
    startup: StartupState,
    swarms: Vec<Swarm>,
    requests: BTreeMap<u32, (SocketAddr, Request)>,
    /// Pending HTTP requests by shard and request id, each with its deadline.
    over_http: BTreeMap<(usize, u32), (u64, PendingOverHttp)>,
    ticks: usize,
    last_transaction: u32,
    /// Number of datagrams that a socket accepted.
    arrived: u64,
    replies: u64,
    answered_over_http: u64,
    late_over_http: u64,
    shed_over_http: u64,
    page_scans_requested: u64,
    copy: Option<transfer::TableCopy>,
}

fn hash_of(torrent: usize) -> InfoHash {
    let mut rng = fastrand::Rng::with_seed(torrent as u64);
    InfoHash(std::array::from_fn(|_| rng.u8(..)))
}

fn peer_of(torrent: usize, number: usize) -> SocketAddr {
    let (torrent, number) = (torrent as u8, number as u16);
    let ip: IpAddr = match number % 3 {
        0 => [0x2a00, torrent.into(), number, 0, 0, 0, 0, 1].into(),
        _ => [81, torrent, number as u8, 1].into(),
    };
    SocketAddr::new(ip, 10_000 + number)
}

/// Creates an identity as at start, but from a seed.
fn seeded_identity(rng: &mut fastrand::Rng, shards: u16) -> Identity {
    let identity = serde_json::json!({
        "connection_id_key": vec![0; 16],
        "steering_words": std::array::from_fn::<u32, KEY_WORDS, _>(|_| rng.u32(..)),
        "table_hash_key": [rng.u64(..), rng.u64(..)],
        "seed": rng.u64(..),
        "policy_key": [rng.u64(..), rng.u64(..)],
        "distinct_key": [rng.u64(..), rng.u64(..)],
        "shards": shards,
    });
    serde_json::from_value(identity).unwrap()
}

fn config(interval_secs: u64) -> Config {
    let source = format!(
        "udp:\n  connection_id_keys: [{KEY}]\n\
         announce:\n  interval: {interval_secs}s\n  min_interval: 300s\n  peer_lifetime: 2h\n\
         storage:\n  memory: 8GiB\n"
    );
    Config::parse("simulation", &source).unwrap()
}

impl ShardSimulation {
    fn new(seed: u64, shards: u16) -> Self {
        let seconds: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(10_000)));
        let mut rng = fastrand::Rng::with_seed(seed);
        let identity = seeded_identity(&mut rng, shards);
        let config = Arc::new(config(1_800));
        let addresses = [const { Vec::new() }; 3];
        let files_for_connections = 100;
        let startup =
            StartupState { config: config.clone(), identity, addresses, files_for_connections };
        let (retired, retired_receiver) = unbounded_channel();
        let mut endpoints = mesh(shards, 1).unwrap();
        let control = endpoints.pop().unwrap();
        let simulated_shard = |(number, endpoint): (u16, MeshEndpoint)| {
            let ShardSettings { ids, announce, table, .. } =
                startup.shard_settings(&config, number);
            let (handle, waker) = (Rc::<DatapathHandle>::default(), endpoint.wakeup_receiver());
            let shared_stats = Arc::<SharedStats>::default();
            let node = NodeResources {
                number,
                shards,
                keys: startup.identity.steering_keys(),
                tracker: Tracker::new(ids, announce, Swarms::new(table)),
                endpoint,
                retired: retired.clone(),
                client_samples: ClientSamples::new().0,
                shared_stats: shared_stats.clone(),
                clock: Clock::simulated(seconds),
                gather: None,
                publication: None,
            };
            let datapath = Model::new(handle.clone());
            let shard = Shard::new(ShardResources { node, datapath });
            SimulatedShard { shard, handle, waker, shared_stats, asleep: false, stalled_until: 0 }
        };
        let shards = (0..).zip(endpoints).map(simulated_shard).collect();
        Self {
            waits_in_datapath: rng.bool(),
            rng,
            seconds,
            ids: ConnectionIds::new(config.udp.connection_id_keys.keys[0], &[], 120),
            shards,
            control,
            retired: retired_receiver,
            startup,
            swarms: (0..TORRENTS).map(|_| Swarm::default()).collect(),
            requests: BTreeMap::new(),
            over_http: BTreeMap::new(),
            ticks: 0,
            last_transaction: 0,
            arrived: 0,
            replies: 0,
            answered_over_http: 0,
            late_over_http: 0,
            shed_over_http: 0,
            page_scans_requested: 0,
            copy: None,
        }
    }

    fn now(&self) -> u64 {
        self.seconds.load(Ordering::Relaxed)
    }

    fn advance_clock(&mut self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
        // The tick of each second wakes all shards.
        self.shards.iter_mut().for_each(wake);
    }

    /// Sends a datagram to a random shard, as without steering.
    fn send(&mut self, from: SocketAddr, action: u32, request: Request, body: &[u8]) {
        let shard = self.rng.usize(..self.shards.len());
        self.last_transaction += 1;
        let transaction = self.last_transaction;
        let mut bytes = self.ids.issue(self.now(), from.ip()).to_be_bytes().to_vec();
        bytes.extend([action, transaction].map(u32::to_be_bytes).as_flattened());
        bytes.extend(body);
        if self.shards[shard].handle.arrive(from, bytes) {
            self.arrived += 1;
            self.requests.insert(transaction, (from, request));
        }
    }

    fn announce(&mut self, torrent: usize, number: usize) {
        let peer = peer_of(torrent, number);
        let mut body = hash_of(torrent).0.to_vec();
        body.extend(b"-TT0001-abcdefghijkl");
        body.extend([0, (number % 4) as u64, 0].map(u64::to_be_bytes).as_flattened());
        body.extend([2, 0, 7, u32::MAX].map(u32::to_be_bytes).as_flattened());
        body.extend(peer.port().to_be_bytes());
        self.swarms[torrent].announced.insert(peer);
        self.send(peer, 1, Request::Announce(torrent), &body);
    }

    fn rows(&mut self, most: usize) -> Vec<(usize, usize)> {
        let len = self.rng.usize(1..=most);
        (0..len)
            .map(|_| {
                let torrent = self.rng.usize(..TORRENTS);
                (torrent, self.swarms[torrent].confirmed.len())
            })
            .collect()
    }

    fn scrape(&mut self, rows: Vec<(usize, usize)>) {
        let body: Vec<u8> = rows.iter().flat_map(|(torrent, _)| hash_of(*torrent).0).collect();
        self.send(([93, 1, 1, 1], 5_000).into(), 2, Request::Scrape(rows), &body);
    }

    fn check_count(&self, torrent: usize, at_least: usize, count: u32) {
        if torrent == DENIED {
            return;
        }
        let at_most = self.swarms[torrent].announced.len();
        let range = at_least..=at_most;
        assert!(range.contains(&(count as usize)), "torrent {torrent}: {count}, not {range:?}");
    }

    /// Checks the replies that the datapaths have sent.
    fn receive(&mut self) {
        for shard in 0..self.shards.len() {
            let sent = std::mem::take(&mut *self.shards[shard].handle.sent.borrow_mut());
            for (to, reply) in sent {
                self.replies += 1;
                self.read(to, &reply);
            }
        }
    }

    fn read(&mut self, to: SocketAddr, reply: &[u8]) {
        let word = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().unwrap());
        let (from, request) = self.requests.remove(&word(4)).expect("a reply to no request");
        assert_eq!(from, to, "the reply to {from} went to {to}");
        match (word(0), request) {
            (1, Request::Announce(torrent)) => {
                assert!([1_800, 2_400].contains(&word(8)), "interval {}", word(8));
                self.check_count(torrent, 1, word(12) + word(16));
                let width = if to.is_ipv4() { 6 } else { 18 };
                assert_eq!((reply.len() - 20) % width, 0);
                let swarm = &mut self.swarms[torrent];
                for peer in reply[20..].chunks(width) {
                    let peer = tsubame_storage::Endpoint::from_compact(peer).unwrap();
                    let peer = SocketAddr::new(peer.address(), peer.port());
                    assert!(peer != to && swarm.announced.contains(&peer), "{peer} in {torrent}");
                }
                swarm.confirmed.insert(to);
            }
            (2, Request::Scrape(rows)) => {
                assert_eq!(reply.len(), 8 + 12 * rows.len());
                for (row, (torrent, at_least)) in rows.into_iter().enumerate() {
                    let at = 8 + 12 * row;
                    self.check_count(torrent, at_least, word(at) + word(at + 8));
                }
            }
            (3, Request::Announce(torrent)) => assert_eq!(torrent, DENIED),
            (action, _) => panic!("action {action} in reply to another"),
        }
    }

    /// Lets each shard take a step in random order, unless it sleeps or stalls.
    fn step_all(&mut self) {
        self.ticks += 1;
        let now = self.now();
        self.copy.iter_mut().for_each(|copy| copy.advance(&mut self.control, now));
        let mut order: Vec<usize> = (0..self.shards.len()).collect();
        self.rng.shuffle(&mut order);
        for number in order {
            let (ticks, late) = (self.ticks, self.rng.u8(..4) == 0);
            let simulated = &mut self.shards[number];
            if simulated.stalled_until > ticks || late {
                continue;
            }
            if simulated.asleep && (simulated.handle.has_event() || was_notified(&simulated.waker))
            {
                wake(simulated);
            }
            if !simulated.asleep {
                if self.waits_in_datapath {
                    // Each step usually ends after one turn here; one without waits takes up to 16 turns.
                    for _ in 0..16 {
                        assert_eq!(
                            simulated.shard.step_with_wait(Duration::MAX).unwrap(),
                            NextStep::Continue
                        );
                    }
                    continue;
                }
                match simulated.shard.step().unwrap() {
                    NextStep::Continue => {}
                    NextStep::Sleep => simulated.asleep = true,
                    NextStep::Stop => panic!("a shard stopped without a stop message"),
                }
            }
        }
        self.receive();
        self.poll_http_requests();
        while self.retired.try_recv().is_ok() {}
    }

    /// Sends new settings and a new access list to all shards.
    fn reload(&mut self) {
        let interval = if self.rng.bool() { 1_800 } else { 2_400 };
        let config = config(interval);
        let denied = if self.rng.bool() { vec![hash_of(DENIED)] } else { Vec::new() };
        let sources = ListSources { info_hashes: denied, ..ListSources::default() };
        let reply = RefusalReply::Error("denied");
        let hooks = [HookConfig::AccessList { mode: ListMode::Deny, sources, reply }];
        let policy = CompiledPolicy::load(&hooks, &CompiledPolicy::default(), 1, ReadMode::AtStart)
            .unwrap()
            .policy;
        let shards = self.shards.len() as u16;
        for number in 0..shards {
            let update = ShardUpdate {
                policy: Some(policy.policy(shards, self.rng.u64(..))),
                settings: Some(self.startup.shard_settings(&config, number)),
                evict_empty_torrents: self.rng.bool(),
            };
            // The queue of a stalled shard may be full; the control plane would retry.
            self.control.send(usize::from(number), Message::Update(Box::new(update)));
        }
        self.control.notify();
    }

    /// Injects a random event: a fault or its end, a reload, a second of time, or a request for pages.
    fn inject_event(&mut self) {
        let number = self.rng.usize(..self.shards.len());
        match self.rng.u8(..60) {
            0 => self.shards[number].stalled_until = self.ticks + self.rng.usize(..250),
            1 | 2 => self.shards[number].handle.holds_sends.set(true),
            3..6 => {
                self.shards.iter().for_each(|simulated| simulated.handle.holds_sends.set(false))
            }
            6 => self.reload(),
            7..12 => self.advance_clock(1),
            12 => {
                let shard = &self.shards[number].shard;
                self.page_scans_requested +=
                    u64::from(shard.node_mut().request_pages(None).is_some());
            }
            _ => {}
        }
    }

    fn run(&mut self, ticks: usize, per_tick: usize) {
        for _ in 0..ticks {
            self.inject_event();
            for _ in 0..per_tick {
                let torrent = self.rng.usize(..TORRENTS);
                match self.rng.u8(..8) {
                    0..4 => {
                        let number = self.rng.usize(..peers_of(torrent));
                        self.announce(torrent, number);
                    }
                    4..6 => {
                        let rows = self.rows(74);
                        self.scrape(rows);
                    }
                    _ => self.request_over_http(),
                }
            }
            self.step_all();
        }
    }

    /// Ends all faults, and runs until all shards sleep.
    fn settle(&mut self) {
        for simulated in &mut self.shards {
            simulated.handle.holds_sends.set(false);
            simulated.stalled_until = 0;
        }
        let is_idle = |simulated: &SimulatedShard| {
            simulated.asleep && !simulated.handle.has_event()
                || simulated.handle.has_waited_without_datagrams.get()
        };
        // Shards skip ticks at random and may still have messages, so all must be idle for 20 ticks in a row.
        let mut idle_ticks = 0;
        for _ in 0..100_000 {
            self.step_all();
            idle_ticks = if self.shards.iter().all(is_idle) { idle_ticks + 1 } else { 0 };
            if idle_ticks == 20 {
                break;
            }
        }
        assert_eq!(idle_ticks, 20, "the shards do not become idle");
        // Shards that wait in their datapath publish their statistics at intervals; this step publishes them at once.
        for simulated in self.shards.iter_mut().filter(|simulated| !simulated.asleep) {
            assert_eq!(simulated.shard.step().unwrap(), NextStep::Sleep);
            simulated.asleep = true;
        }
    }

    fn stats(&self) -> ShardStats {
        let mut all = ShardStats::default();
        self.shards.iter().for_each(|simulated| all.add(&simulated.shared_stats.read()));
        all
    }

    /// Ends all faults, and checks that each datagram was answered or counted as shed.
    fn finish(&mut self) -> ShardStats {
        self.settle();
        // Scrapes of which a part was lost end by timeout.
        self.advance_clock(5);
        self.settle();
        self.advance_clock(1);
        self.settle();
        let stats = self.stats();
        let count_of = |outcome: &Outcome| -> u64 {
            let of_family = |family| stats.requests_of(Protocol::Udp, family, *outcome);
            of_family(Family::V4) + of_family(Family::V6)
        };
        let total: u64 = Outcome::ALL.iter().map(count_of).sum();
        let shed: u64 =
            [Outcome::ShedMesh, Outcome::ShedSlots, Outcome::ShedScrape].iter().map(count_of).sum();
        assert_eq!(
            total - count_of(&Outcome::Forwarded),
            self.arrived,
            "each datagram is counted once"
        );
        assert_eq!(self.replies, self.arrived - shed, "each is answered, or counted as shed");
        assert_eq!(self.requests.len() as u64, shed);
        assert!(self.over_http.is_empty());
        for simulated in &self.shards {
            let free = simulated.handle.free.get();
            assert_eq!(free, (BUFFERS, SLOTS), "buffers and slots must be free again");
        }
        self.probe();
        stats
    }

    /// Announces each peer and scrapes each torrent, one at a time, so that nothing is shed.
    fn probe(&mut self) {
        self.requests.clear();
        for torrent in 1..TORRENTS {
            for number in 0..peers_of(torrent) {
                self.announce(torrent, number);
                self.settle();
            }
            self.scrape(vec![(torrent, peers_of(torrent)), (DENIED, 0)]);
            self.settle();
            assert!(self.requests.is_empty(), "a request was not answered");
            assert_eq!(self.swarms[torrent].confirmed.len(), peers_of(torrent));
        }
    }

    fn stop(mut self) {
        for number in 0..self.shards.len() {
            assert!(self.control.send(number, Message::Stop { keeps_listeners: false }));
        }
        self.control.notify();
        for simulated in &mut self.shards {
            assert!(was_notified(&simulated.waker), "a sleeping shard is woken to stop");
            wake(simulated);
            let mut steps = 0;
            while simulated.shard.step().unwrap() != NextStep::Stop {
                steps += 1;
                assert!(steps < 10);
            }
        }
    }
}

fn wake(simulated: &mut SimulatedShard) {
    if std::mem::take(&mut simulated.asleep) {
        simulated.shard.wake_up();
    }
}

/// Returns whether a shard was woken by another one since the last call.
fn was_notified(waker: &WakeupReceiver) -> bool {
    pin!(waker.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Returns the number of peers of a torrent, 3 to 14. It differs between consecutive torrents.
fn peers_of(torrent: usize) -> usize {
    PEERS_MIN + torrent % 12
}

#[test]
fn every_request_is_answered_correctly_or_counted_as_shed() {
    let mut seen = ShardStats::default();
    let (mut answered, mut late, mut shed, mut scanned) = (0, 0, 0, 0);
    for (seed, shards, ticks, per_tick) in [
        (1, 1, 2_000, 10),
        (2, 2, 6_000, 20),
        (3, 2, 6_000, 40),
        (4, 3, 6_000, 20),
        (5, 8, 4_000, 40),
        (6, 8, 4_000, 80),
        (7, 128, 1_000, 200),
    ] {
        println!("seed {seed}, {shards} shards");
        let mut simulation = ShardSimulation::new(seed, shards);
        simulation.run(ticks, per_tick);
        seen.add(&simulation.finish());
        answered += simulation.answered_over_http;
        late += simulation.late_over_http;
        shed += simulation.shed_over_http;
        scanned += simulation.page_scans_requested;
        simulation.stop();
    }
    for outcome in [
        Outcome::Joined,
        Outcome::Refreshed,
        Outcome::Scraped,
        Outcome::Forwarded,
        Outcome::ForbiddenTorrent,
        Outcome::ShedMesh,
        Outcome::ShedSlots,
        Outcome::ShedScrape,
    ] {
        assert!(seen.requests(outcome) > 0, "no {}", outcome.name());
    }
    for (what, count) in
        [("answered", answered), ("late", late), ("shed", shed), ("scanned", scanned)]
    {
        assert!(count > 0, "over HTTP, nothing was {what}");
    }
}

/// Scrapes that wait for a stalled shard are limited in number; further ones are dropped at once.
#[test]
fn scrapes_that_wait_are_bounded_and_answered_late() {
    let mut simulation = ShardSimulation::new(9, 2);
    for torrent in 1..TORRENTS {
        (0..peers_of(torrent)).for_each(|number| simulation.announce(torrent, number));
    }
    simulation.settle();
    let torrents_of_stalled = |simulation: &ShardSimulation| {
        let owner = |torrent: &usize| {
            simulation.startup.identity.steering_keys().owner(&hash_of(*torrent), 2) == 1
        };
        (1..TORRENTS).filter(owner).collect::<Vec<_>>()
    };
    let stalled_torrents = torrents_of_stalled(&simulation);
    simulation.shards[1].stalled_until = usize::MAX;
    for number in 0..3_000 {
        let torrent = stalled_torrents[number % stalled_torrents.len()];
        // The stalled shard owns both torrents.
        let rows = vec![(torrent, 1), (stalled_torrents[0], 1)];
        simulation.scrape(rows);
        if number % 50 == 0 {
            (0..20).for_each(|_| simulation.step_all());
        }
    }
    (0..400).for_each(|_| simulation.step_all());
    let shed = simulation.stats().requests(Outcome::ShedScrape);
    assert!(shed > 0, "no scrape was dropped");
    // The replies come before the timeout and reach the right clients.
    simulation.finish();
    assert!(simulation.stats().requests(Outcome::Scraped) > 1_000);
}
