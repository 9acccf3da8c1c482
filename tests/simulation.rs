//! Simulation of many clients and a tracker in one thread, without sockets.
//!
//! Over UDP, datagrams are lost, duplicated, reordered and forged, and the wall clock jumps. Over HTTP, requests arrive
//! in parts, and connections end before the reply. The same seed gives the same run.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;
#[path = "simulation/hooks.rs"]
mod hooks;

use common::http::HttpAnnounceReply;
use hooks::Hooks;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use tsubame::clock::Now;
use tsubame::policy::{Intervals, Parameters, PolicyStop};
use tsubame::sizes::REPLY_LEN_DEFAULT;
use tsubame::stats::outcome::Outcome;
use tsubame::tracker::peer_list::PeerList;
use tsubame::tracker::{AnnounceSettings, Tracker};
use tsubame_http::{head, query, reply};
use tsubame_storage::{Endpoint, Seconds, Swarms, TableSettings};
use tsubame_udp::connection_id::{ConnectionIdKey, ConnectionIds};

const TORRENTS: usize = 30;
const CLIENTS: usize = 120;
const LIFETIME: u64 = 2_700;
const INTERVAL: u64 = 1_800;

/// State of a client.
#[derive(Clone, Copy, Debug)]
struct Client {
    address: SocketAddr,
    torrent: usize,
    left: u64,
    id: Option<u64>,
    /// Time of the next action.
    due: u64,
    started: bool,
    stopping: bool,
}

/// A datagram that has been sent and has not arrived.
#[derive(Clone, Debug)]
struct DatagramInFlight {
    arrives: u64,
    from: SocketAddr,
    to_client: Option<usize>,
    bytes: Vec<u8>,
}

/// The tracker, its clients, and the datagrams between them.
struct TrackerSimulation {
    rng: fastrand::Rng,
    tracker: Tracker,
    now: u64,
    wall_offset: u64,
    clients: Vec<Client>,
    in_flight: VecDeque<DatagramInFlight>,
    /// For each torrent, its peers as the tracker should know them: time of the last announce, and whether it is a
    /// seeder.
    truth: Vec<BTreeMap<SocketAddr, (u64, bool)>>,
    /// For each torrent, all peers that ever announced. A late reply may contain a peer that has stopped since.
    ever_announced: Vec<BTreeSet<SocketAddr>>,
    /// Number of requests by outcome.
    outcomes: BTreeMap<&'static str, u64>,
    /// Bytes received from forged sources, and bytes of the replies to them.
    forged_bytes: (u64, u64),
    hooks: Option<Hooks>,
}

fn client_of(number: usize) -> Client {
    let number16 = number as u16;
    let ip: IpAddr = match number % 3 {
        0 => [0x2a00, 5, 0, 0, 0, 0, 0, number16].into(),
        _ => [81, 7, (number / 8) as u8, 1].into(),
    };
    let address = SocketAddr::new(ip, 10_000 + number16);
    let left = if number.is_multiple_of(4) { 0 } else { 1_000 };
    Client {
        address,
        torrent: number % TORRENTS,
        left,
        id: None,
        due: 0,
        started: false,
        stopping: false,
    }
}

/// Returns whether a client announces over HTTP: half of the clients of each family and of each torrent.
fn uses_http(number: usize) -> bool {
    (number / TORRENTS).is_multiple_of(3)
}

impl TrackerSimulation {
    fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let ids = ConnectionIds::new(ConnectionIdKey([seed as u8; 16]), &[], 120);
        let settings = AnnounceSettings {
            intervals: Intervals { interval_secs: INTERVAL as u32, min_interval_secs: 900 },
            numwant_default: 50,
            numwant_max: 200,
            reply_len_max: REPLY_LEN_DEFAULT,
            trust_client_ip: Vec::new(),
            explain_wrong_connection_id: seed % 2 == 1,
        };
        let swarms = Swarms::new(TableSettings {
            peer_lifetime_secs: LIFETIME as u32,
            ..TableSettings::with_known_keys(seed)
        });
        Self {
            rng,
            tracker: Tracker::new(ids, settings, swarms),
            now: 5_000,
            wall_offset: 1_700_000_000,
            clients: (0..CLIENTS).map(client_of).collect(),
            in_flight: VecDeque::new(),
            truth: vec![BTreeMap::new(); TORRENTS],
            ever_announced: vec![BTreeSet::new(); TORRENTS],
            outcomes: BTreeMap::new(),
            forged_bytes: (0, 0),
            hooks: None,
        }
    }

    fn run(mut self, seconds: u64) -> Self {
        let end = self.now + seconds;
        while self.now < end {
            self.now += 1;
            if self.rng.u16(..) < 40 {
                // The wall clock jumps forward or back by up to an hour.
                self.wall_offset = self.wall_offset + self.rng.u64(..7_200) - 3_600;
            }
            while self.tracker.swarms_mut().sweep(Seconds(self.now)) {}
            self.exchange_hooks();
            for client in 0..self.clients.len() {
                self.act(client);
            }
            self.forge();
            self.deliver();
        }
        self
    }

    fn clock(&self) -> Now {
        Now { monotonic: Seconds(self.now), unix_secs: self.now + self.wall_offset }
    }

    /// Sends a datagram, which is lost or arrives once or twice, with a delay of 0 to 3 seconds.
    fn send(&mut self, from: SocketAddr, to_client: Option<usize>, bytes: Vec<u8>) {
        let copies = match self.rng.u8(..20) {
            0 | 1 => 0,
            2 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let arrives = self.now + self.rng.u64(..4);
            self.in_flight.push_back(DatagramInFlight {
                arrives,
                from,
                to_client,
                bytes: bytes.clone(),
            });
        }
    }

    fn deliver(&mut self) {
        for _ in 0..self.in_flight.len() {
            let Some(datagram) = self.in_flight.pop_front() else { break };
            if datagram.arrives > self.now {
                self.in_flight.push_back(datagram);
            } else if let Some(client) = datagram.to_client {
                self.client_receives(client, &datagram.bytes);
            } else {
                self.tracker_receives(&datagram);
            }
        }
    }

    fn act(&mut self, number: usize) {
        let client = self.clients[number];
        if self.now < client.due {
            return;
        }
        // The request is repeated until there is a reply, as real clients do.
        self.clients[number].due = self.now + 15;
        if uses_http(number) {
            self.act_over_http(number);
            return;
        }
        let mut request = Vec::new();
        match client.id {
            None => {
                request.extend(0x0417_2710_1980_u64.to_be_bytes());
                request.extend([0, number as u32].map(u32::to_be_bytes).as_flattened());
            }
            Some(id) => {
                let event: u32 = match (client.started, client.stopping) {
                    (_, true) => 3,
                    (false, _) => 2,
                    _ => 0,
                };
                request.extend(id.to_be_bytes());
                request.extend([1, number as u32].map(u32::to_be_bytes).as_flattened());
                request.extend([client.torrent as u8; 20]);
                request.extend(hooks::peer_id_of(number));
                request.extend([0, client.left, 0].map(u64::to_be_bytes).as_flattened());
                request.extend([event, 0, 7, u32::MAX].map(u32::to_be_bytes).as_flattened());
                request.extend(client.address.port().to_be_bytes());
                request.extend(hooks::url_data_of(number));
                self.scrape(number, id);
            }
        }
        self.send(client.address, None, request);
    }

    /// Announces over a connection, which may end before the reply.
    fn act_over_http(&mut self, number: usize) {
        let client = self.clients[number];
        let event = match (client.started, client.stopping) {
            (_, true) => "stopped",
            (false, _) => "started",
            _ => "",
        };
        let (info_hash, compact) =
            (format!("%{:02x}", client.torrent).repeat(20), self.rng.u8(..2));
        let request = format!(
            "GET /announce?info_hash={info_hash}&peer_id={}&port={}&left={}&event={event}\
             &compact={compact}&{} HTTP/1.1\r\n\r\n",
            String::from_utf8_lossy(hooks::peer_id_of(number)),
            client.address.port(),
            client.left,
            hooks::query_of(number)
        );
        let part = self.rng.usize(..request.len());
        assert_eq!(head::parse(&request.as_bytes()[..part]), Ok(None));
        let (head, _) = head::parse(request.as_bytes()).unwrap().unwrap();
        let query = query::AnnounceQuery::parse(head.query).unwrap();
        let clock = self.clock();
        let parameters = Parameters { key: None, query: head.query };
        let source = client.address.ip();
        let admitted = self.tracker.admit_announce(clock, source, &query, parameters, None);
        let admitted = admitted.map_err(PolicyStop::refusal);
        self.check_admitted(number, admitted.as_ref().err().map(|refusal| refusal.outcome));
        let Ok(announce) = admitted else { return };
        let mut list = PeerList::default();
        self.tracker.fill_peer_list(clock, &announce, None, &mut list);
        *self.outcomes.entry(list.outcome.name()).or_default() += 1;
        *self.outcomes.entry("over http").or_default() += 1;
        self.record_announce(number, client.left, client.stopping);
        let mut body = Vec::new();
        let PeerList { counts, ref v4, ref v6, .. } = list;
        let external_ip = client.address.ip();
        let Intervals { interval_secs, min_interval_secs: min_interval } = announce.intervals;
        let empty = reply::AnnounceResponse::empty(external_ip, interval_secs, query.compact);
        reply::AnnounceResponse { counts, min_interval, v4, v6, ..empty }.write(&mut body);
        if self.rng.u8(..20) > 0 {
            self.client_receives_http(number, &body);
        }
    }

    fn client_receives_http(&mut self, number: usize, body: &[u8]) {
        let read = HttpAnnounceReply::of(body);
        self.check_interval(read.interval as u32);
        let peers: Vec<_> = read.peers.iter().map(|(ip, port)| Endpoint::new(*ip, *port)).collect();
        self.check_peers(number, &peers);
        let ever_announced = &self.ever_announced[self.clients[number].torrent];
        assert!(read.seeders + read.leechers <= ever_announced.len() as i64);
        self.finish_announce(number);
    }

    /// Checks that the peers have announced to this torrent, are distinct, and do not include the requester.
    fn check_peers(&self, number: usize, peers: &[Endpoint]) {
        let (client, distinct) = (self.clients[number], peers.iter().collect::<BTreeSet<_>>());
        assert_eq!(distinct.len(), peers.len());
        for peer in peers {
            let peer = SocketAddr::new(peer.address(), peer.port());
            assert_ne!(peer, client.address);
            assert!(self.ever_announced[client.torrent].contains(&peer), "{peer} never announced");
        }
    }

    /// Updates a client after the reply to its announce.
    fn finish_announce(&mut self, number: usize) {
        let (now, client) = (self.now, &mut self.clients[number]);
        client.started = true;
        client.due = now + INTERVAL;
        client.id = None;
        if client.stopping {
            // It rejoins the swarm later as a new peer.
            (client.started, client.stopping) = (false, false);
            client.due = now + 3_600;
        } else if number.is_multiple_of(5) && now % 3 == 0 {
            client.stopping = true;
        }
    }

    /// Scrapes two torrents, of which the second has no peers.
    fn scrape(&mut self, number: usize, id: u64) {
        let client = self.clients[number];
        let mut request = id.to_be_bytes().to_vec();
        request.extend([2, number as u32].map(u32::to_be_bytes).as_flattened());
        request.extend([client.torrent as u8; 20]);
        request.extend([0xee; 20]);
        self.send(client.address, None, request);
    }

    fn client_receives(&mut self, number: usize, reply: &[u8]) {
        let (now, ever_announced) = (self.now, &self.ever_announced[self.clients[number].torrent]);
        let client = &mut self.clients[number];
        match reply[3] {
            0 => {
                assert_eq!(reply.len(), 16);
                client.id = Some(u64::from_be_bytes(reply[8..].try_into().unwrap()));
                client.due = now;
            }
            1 => {
                // The peers are of the requester's family.
                let width = if client.address.is_ipv4() { 6 } else { 18 };
                assert_eq!((reply.len() - 20) % width, 0);
                self.check_interval(u32::from_be_bytes(reply[8..12].try_into().unwrap()));
                let read = |peer| Endpoint::from_compact(peer).unwrap();
                let peers: Vec<_> = reply[20..].chunks(width).map(read).collect();
                self.check_peers(number, &peers);
                self.finish_announce(number);
            }
            2 => {
                let row = |row: usize| {
                    let words = reply[8 + 12 * row..][..12].as_chunks::<4>().0;
                    words.iter().map(|word| u32::from_be_bytes(*word)).collect::<Vec<_>>()
                };
                assert_eq!((reply.len(), row(1)), (32, vec![0, 0, 0]));
                // At most the peers that ever announced.
                assert!(row(0)[0] + row(0)[2] <= ever_announced.len() as u32);
            }
            // An error: the id was too old, the wall clock jumped, or a hook refused the request.
            3 => client.id = None,
            action => panic!("action {action}"),
        }
    }

    fn tracker_receives(&mut self, datagram: &DatagramInFlight) {
        let mut reply = [0; 1472];
        let result = self.tracker.handle(self.clock(), datagram.from, &datagram.bytes, &mut reply);
        *self.outcomes.entry(result.outcome.name()).or_default() += 1;
        let proven = !matches!(
            result.outcome,
            Outcome::Connected
                | Outcome::WrongConnectionId
                | Outcome::TooShort
                | Outcome::UnknownAction
                | Outcome::BadMagic
                | Outcome::SourcePortZero
                | Outcome::ForbiddenNetwork
        );
        assert!(proven || result.len <= datagram.bytes.len(), "amplified: {result:?}");
        let client = self.clients.iter().position(|client| client.address == datagram.from);
        match client {
            Some(number) => {
                let refused = hooks::is_refusal(result.outcome).then_some(result.outcome);
                if proven && datagram.bytes[11] == 1 {
                    self.check_admitted(number, refused);
                }
                if proven && datagram.bytes[11] == 2 {
                    self.check_scraped(number, &reply[..result.len]);
                }
                if proven && datagram.bytes[11] == 1 && refused.is_none() {
                    let left = u64::from_be_bytes(datagram.bytes[64..72].try_into().unwrap());
                    self.record_announce(number, left, datagram.bytes[83] == 3);
                } else if result.outcome == Outcome::WrongConnectionId {
                    // Clients without a reply request a new connection id.
                    self.clients[number].id = None;
                }
                if result.len > 0 {
                    let bytes = reply[..result.len].to_vec();
                    self.send(datagram.from, Some(number), bytes);
                }
            }
            None => {
                assert!(!proven, "a request from a forged source was admitted: {result:?}");
                self.forged_bytes.0 += datagram.bytes.len() as u64;
                self.forged_bytes.1 += result.len as u64;
            }
        }
    }

    fn record_announce(&mut self, number: usize, left: u64, stops: bool) {
        let client = self.clients[number];
        self.ever_announced[client.torrent].insert(client.address);
        let swarm = &mut self.truth[client.torrent];
        if stops {
            swarm.remove(&client.address);
        } else {
            swarm.insert(client.address, (self.now, left == 0));
        }
    }

    /// Sends datagrams from sources that cannot receive replies: random bytes, and requests with stolen connection ids.
    fn forge(&mut self) {
        for _ in 0..6 {
            let from: SocketAddr = match self.rng.bool() {
                true => ([7, 7, 7, self.rng.u8(..)], self.rng.u16(..3)).into(),
                false => ([0x2a00, 9, 0, 0, 0, 0, 0, self.rng.u16(..)], 4_000).into(),
            };
            let len = self.rng.usize(..160);
            let mut bytes = vec![0; len];
            self.rng.fill(&mut bytes);
            if len >= 16 {
                bytes[8..12].copy_from_slice(&self.rng.u32(..5).to_be_bytes());
                if self.rng.bool() {
                    bytes[..8].copy_from_slice(&0x0417_2710_1980_u64.to_be_bytes());
                }
            }
            // A connection id that was issued to another source.
            if let Some(stolen) = self.clients[self.rng.usize(..CLIENTS)].id
                && len >= 16
                && self.rng.bool()
            {
                bytes[..8].copy_from_slice(&stolen.to_be_bytes());
            }
            self.send(from, None, bytes);
        }
    }

    fn finish(mut self) {
        let expect = |outcome| {
            assert!(self.outcomes.contains_key(outcome), "no {outcome} in {:?}", self.outcomes);
        };
        for outcome in [
            "connected",
            "joined",
            "refreshed",
            "stopped",
            "scraped",
            "wrong_connection_id",
            "too_short",
            "over http",
        ] {
            expect(outcome);
        }
        assert!(self.forged_bytes.1 <= self.forged_bytes.0);
        // The table still has the peers whose last announce is not older than a lifetime and a sweep.
        let stats = self.tracker.swarms().stats();
        let peers: u64 = stats.seeders.iter().chain(&stats.leechers).sum();
        let seen = |grace: u64| {
            let fresh = |(at, _): &&(u64, bool)| self.now - at <= LIFETIME + grace;
            self.truth.iter().flat_map(|swarm| swarm.values()).filter(fresh).count() as u64
        };
        assert!(
            (seen(0)..=seen(2 * LIFETIME / 4 + 60)).contains(&peers),
            "{peers} peers are stored"
        );
        self.now += 100_000;
        for _ in 0..LIFETIME {
            self.now += 10;
            while self.tracker.swarms_mut().sweep(Seconds(self.now)) {}
        }
        let stats = self.tracker.swarms().stats();
        assert_eq!((stats.seeders, stats.leechers), ([0, 0], [0, 0]));
    }
}

#[test]
fn clients_are_served_despite_loss_forgery_and_clock_jumps() {
    for seed in 1..=4 {
        println!("seed {seed}");
        TrackerSimulation::new(seed).run(20_000).finish();
    }
}

/// The same conditions with hooks, which refuse some requests and are exchanged at times.
#[test]
fn hooks_work_despite_loss_forgery_and_clock_jumps() {
    for seed in 11..=14 {
        println!("seed {seed}");
        let mut simulation = TrackerSimulation::new(seed);
        simulation.hooks = Some(Hooks::new(seed));
        let simulation = simulation.run(20_000);
        for outcome in [
            "forbidden_network",
            "forbidden_torrent",
            "forbidden_client",
            "no_passkey",
            "wrong_passkey",
            "too_many_announces",
        ] {
            assert!(simulation.outcomes.contains_key(outcome), "{:?}", simulation.outcomes);
        }
        simulation.finish();
    }
}

/// Announces of a million sources with connection ids that were not issued to them store nothing and get no reply.
#[test]
fn forged_ids_from_a_million_sources_get_no_reply() {
    let mut simulation = TrackerSimulation::new(2);
    let now = simulation.clock();
    let mut announce = vec![0; 98];
    announce[11] = 1;
    let mut reply = [0; 1472];
    for source in 0..1_000_000_u32 {
        let address: SocketAddr = match source % 4 {
            0 => ([0x2a00, 7, 0, 0, 0, 0, (source >> 16) as u16, source as u16], 6_881).into(),
            _ => ((0x5000_0000 + source).to_be_bytes(), 6_881).into(),
        };
        // The epoch is public, so an attacker knows it; the tag is a guess.
        let guess = (now.unix_secs / 64) << 56 | simulation.rng.u64(..) >> 8;
        announce[..8].copy_from_slice(&guess.to_be_bytes());
        let result = simulation.tracker.handle(now, address, &announce, &mut reply);
        assert_eq!((result.outcome, result.len), (Outcome::WrongConnectionId, 0));
    }
    assert_eq!(simulation.tracker.swarms().stats().torrents, 0);
}

/// Proves that the simulation fails if a request from a forged source is admitted.
#[test]
#[should_panic(expected = "from a forged source was admitted")]
fn the_simulation_detects_an_admitted_forged_source() {
    let mut simulation = TrackerSimulation::new(1);
    let from: SocketAddr = ([7, 7, 7, 7], 7).into();
    let ids = ConnectionIds::new(ConnectionIdKey([1; 16]), &[], 120);
    let mut bytes = vec![0; 98];
    bytes[..8].copy_from_slice(&ids.issue(simulation.clock().unix_secs, from.ip()).to_be_bytes());
    bytes[11] = 1;
    simulation.tracker_receives(&DatagramInFlight { arrives: 0, from, to_client: None, bytes });
}
