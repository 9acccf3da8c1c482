//! Simulation of a cluster in one thread: nodes with several shards each, and clients that announce to any of them.
//!
//! The network loses, delays and reorders messages, and is divided for a while; nodes crash and start again without
//! swarms or with those of before, or lose their connection; some are slow to import. At the end the network works, and
//! within one announce interval all nodes have all living peers; within a lifetime they have the same swarms. The same
//! seed gives the same run.
//!
//! `TSUBAME_SEEDS=5000` sets the number of runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tsubame::cluster::{
    Action, ClusterNode, ClusterSettings, MessageSource, MessageSubject, SwarmState, subject_token,
};
use tsubame_storage::{
    AnnounceEvent, Endpoint, ExportProgress, Family, ImportCursor, InfoHash, PeerOutput, Role,
    Seconds, StateRecord, SwarmAnnounce, Swarms, TableSettings,
};

const SEEDS: u64 = 1_000;
const TORRENTS: u8 = 6;
const PEERS: u32 = 40;
/// Lifetime of peers and time between two announces of a client, in seconds.
const LIFETIME: u64 = 180;
const INTERVAL: u64 = 110;
/// Milliseconds of a tick.
const TICK_MS: u64 = 50;
/// Seconds of faults.
const FAULTS: u64 = 200;

/// A peer of a torrent.
type Member = (InfoHash, Endpoint);

struct Node {
    cluster: ClusterNode,
    shards: Vec<Swarms>,
    /// Records of other nodes that were not imported yet.
    waiting: Vec<StateRecord>,
    /// The shard that is being exported, and those after it.
    exporting: Option<usize>,
    /// Time of its clock minus that of the simulation, in milliseconds.
    clock_offset_ms: u64,
    /// Whether it is connected to the network.
    is_connected: bool,
    group: u8,
}

/// Receiver of a message, its sender if that is a part of its subject, and its bytes.
type MessageInFlight = (usize, Option<usize>, Arc<[u8]>);

struct Client {
    member: Member,
    role: Role,
    /// Number of the node that it announces to.
    node: usize,
    /// Second of its next announce.
    due: u64,
    is_alive: bool,
}

struct Simulation {
    rng: fastrand::Rng,
    now_ms: u64,
    boots: u64,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    /// Messages on their way, by time of arrival in milliseconds and number.
    in_flight: BTreeMap<(u64, u64), MessageInFlight>,
    sent: u64,
    has_faults: bool,
}

fn name(node: usize) -> String {
    format!("node{node}")
}

fn shard_of(info_hash: &InfoHash, shards: usize) -> usize {
    usize::from(info_hash.0[0]) % shards
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(2..=4);
        let client = |number: u32, rng: &mut fastrand::Rng| {
            let info_hash = InfoHash([rng.u8(..TORRENTS); 20]);
            let endpoint = Endpoint::new((0x5000_0000 + number).to_be_bytes().into(), 6_881);
            let (role, due) = (Role::Leecher, 1_000 + rng.u64(..INTERVAL));
            let node = rng.usize(..count);
            Client { member: (info_hash, endpoint), role, node, due, is_alive: true }
        };
        let clients = (0..PEERS).map(|number| client(number, &mut rng)).collect();
        let mut simulation = Self {
            rng,
            now_ms: 1_000_000,
            boots: 0,
            nodes: Vec::new(),
            clients,
            in_flight: BTreeMap::new(),
            sent: 0,
            has_faults: true,
        };
        for number in 0..count {
            let node = simulation.start(number, None, 0);
            simulation.nodes.push(node);
        }
        simulation
    }

    /// Starts a node, with the tables and the clock of before if they were kept.
    fn start(&mut self, number: usize, kept: Option<Vec<Swarms>>, kept_offset_ms: u64) -> Node {
        self.boots += 1;
        let new_offset_ms = self.rng.u64(..100_000_000);
        let clock_offset_ms = if kept.is_some() { kept_offset_ms } else { new_offset_ms };
        let settings = ClusterSettings {
            node: name(number),
            boot: self.boots,
            peer_lifetime_secs: LIFETIME as u32,
            key_digest: 1,
            has_older_state: kept.is_some(),
        };
        let shard = |shard: u64| {
            let seed = self.boots * 10 + shard;
            let mut swarms = Swarms::new(TableSettings {
                peer_lifetime_secs: LIFETIME as u32,
                ..TableSettings::with_known_keys(seed)
            });
            swarms.begin_publication(1_000);
            swarms
        };
        let shards = kept.unwrap_or_else(|| (0..1 + number as u64 % 3).map(shard).collect());
        let mut cluster = ClusterNode::new(settings);
        cluster.connected(Duration::from_millis(self.now_ms + clock_offset_ms), 64 << 10);
        Node {
            cluster,
            shards,
            waiting: Vec::new(),
            exporting: None,
            clock_offset_ms,
            is_connected: true,
            group: 0,
        }
    }

    fn now(&self) -> Seconds {
        Seconds(self.now_ms / 1_000)
    }

    /// Sends a message to each node that gets it.
    fn publish(&mut self, from: usize, subject: &MessageSubject, message: &Arc<[u8]>) {
        for to in 0..self.nodes.len() {
            let sender = match subject {
                MessageSubject::Hello | MessageSubject::Delta if to != from => Some(from),
                MessageSubject::Request(of) | MessageSubject::Reply(of) if *of == name(to) => None,
                _ => continue,
            };
            let (a, b) = (&self.nodes[from], &self.nodes[to]);
            let is_reachable = a.is_connected && b.is_connected && a.group == b.group;
            let is_lost = self.has_faults && self.rng.u8(..100) < 5;
            if !is_reachable || is_lost {
                continue;
            }
            let delay = match self.has_faults {
                true => self.rng.u64(..300),
                false => self.rng.u64(..5),
            };
            self.sent += 1;
            self.in_flight.insert((self.now_ms + delay, self.sent), (to, sender, message.clone()));
        }
    }

    fn step(&mut self) {
        self.now_ms += TICK_MS;
        if self.has_faults {
            self.draw_fault();
        }
        self.announce_due();
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > self.now_ms {
                break;
            }
            let (to, sender, message) = entry.remove();
            let token = sender.map(|sender| subject_token(&name(sender)));
            let source =
                token.as_deref().map_or(MessageSource::ToThisNode, MessageSource::FromNode);
            let time = self.nodes[to].time(self.now_ms);
            self.nodes[to].cluster.receive(time, source, &message);
            self.act(to);
        }
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            let time = node.time(self.now_ms);
            let now = Seconds(time.as_secs());
            let changes: Vec<StateRecord> =
                node.shards.iter_mut().flat_map(|shard| shard.take_published(100)).collect();
            node.cluster.publish(time, &changes);
            let torrents = node.shards.iter().map(|shard| shard.stats().torrents as u64).sum();
            let is_busy = self.has_faults && self.rng.u8(..10) < 3;
            node.cluster.tick(time, SwarmState { torrents, is_busy, is_restoring: false });
            if !is_busy {
                let waiting = std::mem::take(&mut node.waiting);
                node.import(now, &waiting);
                node.export(time);
            }
            for shard in &mut node.shards {
                while shard.sweep(now) {}
            }
            self.act(number);
        }
    }

    /// Does what a node wants.
    fn act(&mut self, number: usize) {
        for action in self.nodes[number].cluster.take_actions() {
            match action {
                Action::Publish(subject, message) => self.publish(number, &subject, &message),
                Action::Import(records) => self.nodes[number].waiting.extend(records),
                Action::BeginExport => {
                    let node = &mut self.nodes[number];
                    node.shards.iter_mut().for_each(|shard| shard.begin_export(0));
                    node.exporting = Some(0);
                }
                Action::EndExport => self.nodes[number].exporting = None,
                Action::ApplyListChanges { .. } | Action::Report(_) => {}
            }
        }
    }

    fn draw_fault(&mut self) {
        let count = self.nodes.len();
        match self.rng.u32(..4_000) {
            // A crash.
            0..4 => {
                let number = self.rng.usize(..count);
                let tables = std::mem::take(&mut self.nodes[number].shards);
                let kept = self.rng.bool().then_some(tables);
                let offset = self.nodes[number].clock_offset_ms;
                self.nodes[number] = self.start(number, kept, offset);
            }
            // The network is divided, or whole again.
            4..10 => {
                for number in 0..count {
                    self.nodes[number].group = self.rng.u8(..2);
                }
            }
            10..20 => self.nodes.iter_mut().for_each(|node| node.group = 0),
            20..26 => {
                let node = &mut self.nodes[self.rng.usize(..count)];
                node.is_connected = false;
                // It may not notice.
                if self.rng.bool() {
                    node.cluster.disconnected();
                }
            }
            26..40 => self.connect_all(),
            _ => {}
        }
    }

    fn connect_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| !node.is_connected) {
            node.is_connected = true;
            node.cluster.connected(node.time(self.now_ms), 64 << 10);
        }
    }

    fn announce_due(&mut self) {
        let now = self.now();
        for number in 0..self.clients.len() {
            if !self.clients[number].is_alive || self.clients[number].due > now.0 {
                continue;
            }
            let draw = if self.has_faults { self.rng.u8(..100) } else { 99 };
            let node = self.rng.usize(..self.nodes.len());
            let client = &mut self.clients[number];
            let mut event = AnnounceEvent::None;
            match draw {
                0..10 => (client.is_alive, event) = (false, AnnounceEvent::Stopped),
                10..30 if client.role == Role::Leecher => {
                    (client.role, event) = (Role::Seeder, AnnounceEvent::Completed);
                }
                30..50 => client.node = node,
                _ => {}
            }
            client.due = now.0 + if draw < 60 { draw.into() } else { INTERVAL };
            let ((info_hash, endpoint), role) = (client.member, client.role);
            let announce = SwarmAnnounce { info_hash, endpoint, role, event };
            let node_now = Seconds(self.nodes[client.node].time(self.now_ms).as_secs());
            let shards = &mut self.nodes[client.node].shards;
            let count = shards.len();
            let shard = &mut shards[shard_of(&info_hash, count)];
            let prefetch = shard.prefetch_index(&info_hash);
            let output = PeerOutput::for_family(Family::V4, &mut []);
            shard.announce(node_now, prefetch, &announce, output);
        }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 1_000 / TICK_MS {
            self.step();
        }
    }

    /// Returns the members of all swarms of a node, with their roles.
    fn members(&mut self, number: usize) -> BTreeSet<(Member, bool)> {
        let mut members = BTreeSet::new();
        for shard in &mut self.nodes[number].shards {
            for torrent in (0..TORRENTS).map(|torrent| InfoHash([torrent; 20])) {
                let Some(details) = shard.inspect(&torrent, 1_000) else { continue };
                let peers = details.peers.iter();
                members.extend(
                    peers.map(|peer| ((torrent, peer.endpoint), peer.role == Role::Seeder)),
                );
            }
        }
        members
    }
}

impl Node {
    /// Returns the time of its clock.
    fn time(&self, now_ms: u64) -> Duration {
        Duration::from_millis(now_ms + self.clock_offset_ms)
    }

    fn import(&mut self, now: Seconds, records: &[StateRecord]) {
        let count = self.shards.len();
        let mut pages = vec![Vec::new(); count];
        let mut owner = 0;
        for record in records {
            if let Some(info_hash) = record.info_hash() {
                owner = shard_of(info_hash, count);
            }
            pages[owner].push(*record);
        }
        for (shard, page) in self.shards.iter_mut().zip(pages) {
            let mut cursor = ImportCursor::default();
            while shard.import(now, &mut cursor, &page, |_| true) {}
            assert_eq!(cursor.counts().refused, 0);
        }
    }

    fn export(&mut self, now: Duration) {
        while self.cluster.wants_block()
            && let Some(number) = self.exporting
        {
            let mut records = Vec::new();
            let is_last = match self.shards.get_mut(number) {
                None => true,
                Some(shard) => {
                    if shard.export(&mut records) == ExportProgress::Complete {
                        shard.end_export();
                        self.exporting = Some(number + 1);
                    }
                    false
                }
            };
            self.cluster.add_block(now, &records, is_last);
        }
    }
}

/// Returns what is wrong at the end of a run.
fn run(seed: u64) -> Result<(), String> {
    let mut simulation = Simulation::new(seed);
    simulation.run(FAULTS);
    simulation.has_faults = false;
    for node in &mut simulation.nodes {
        node.group = 0;
    }
    simulation.connect_all();
    // A node that has just crashed needs some seconds to join, and a gap is given up after 15.
    simulation.run(INTERVAL + 30);
    let living = |simulation: &Simulation| -> BTreeSet<(Member, bool)> {
        let clients = simulation.clients.iter().filter(|client| client.is_alive);
        clients.map(|client| (client.member, client.role == Role::Seeder)).collect()
    };
    let expected = living(&simulation);
    for number in 0..simulation.nodes.len() {
        let members = simulation.members(number);
        let missing: Vec<_> = expected.difference(&members).collect();
        if !missing.is_empty() {
            return Err(format!("{} lacks {missing:?}", name(number)));
        }
        if !simulation.nodes[number].cluster.is_complete() {
            return Err(format!("{} is not complete", name(number)));
        }
    }
    // By now the peers that have ended without an announce have expired.
    simulation.run(LIFETIME);
    for number in 0..simulation.nodes.len() {
        let members = simulation.members(number);
        if members != expected {
            return Err(format!("{} has {members:?} instead of {expected:?}", name(number)));
        }
    }
    Ok(())
}

#[test]
fn after_faults_all_nodes_have_the_same_swarms_within_an_interval() {
    let seeds =
        std::env::var("TSUBAME_SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    let threads = 2;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..seeds).step_by(threads as usize) {
                    if let Err(error) = run(seed) {
                        panic!("seed {seed}: {error}");
                    }
                }
            });
        }
    });
    println!("{seeds} runs, seeds 0 to {}", seeds - 1);
}
