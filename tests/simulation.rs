//! Many clients and a tracker in one thread, without sockets: over UDP with loss, duplication, reordering, forged
//! sources and clock jumps; over HTTP in parts, with connections that end before the answer has come. The same seed
//! gives the same run.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;
#[path = "simulation/hooks.rs"]
mod hooks;

use common::http::Announced;
use hooks::Hooks;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use tsubame::clock::Now;
use tsubame::limits::REPLY_LEN_DEFAULT;
use tsubame::outcome::Outcome;
use tsubame::peer_list::PeerList;
use tsubame::policy::{Interrupted, Parameters};
use tsubame::tracker::{Terms, Tracker};
use tsubame_http::{head, query, reply};
use tsubame_storage::{Caps, Endpoint, Seconds, Swarms, TableSettings};
use tsubame_udp::connection_id::{ConnectionIds, Key};

const TORRENTS: usize = 30;
const CLIENTS: usize = 120;
const LIFETIME: u64 = 2_700;
const INTERVAL: u64 = 1_800;

/// A client, as far as it knows itself
#[derive(Clone, Copy, Debug)]
struct Client {
    address: SocketAddr,
    torrent: usize,
    left: u64,
    id: Option<u64>,
    /// When to do something next
    due: u64,
    started: bool,
    gone: bool,
}

/// A datagram on its way
#[derive(Clone, Debug)]
struct Flight {
    arrives: u64,
    from: SocketAddr,
    to_client: Option<usize>,
    bytes: Vec<u8>,
}

struct World {
    rng: fastrand::Rng,
    tracker: Tracker,
    now: u64,
    wall_offset: u64,
    clients: Vec<Client>,
    flights: VecDeque<Flight>,
    /// By torrent: who announced when, and whether it is a seeder, as the tracker received it
    truth: Vec<BTreeMap<SocketAddr, (u64, bool)>>,
    /// By torrent: who ever announced. A late reply may name somebody who has left since
    ever: Vec<BTreeSet<SocketAddr>>,
    answered: BTreeMap<&'static str, u64>,
    bytes_to_forged: (u64, u64),
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
        gone: false,
    }
}

/// A third of the clients of each family, and of each torrent
fn speaks_http(number: usize) -> bool {
    (number / TORRENTS).is_multiple_of(3)
}

impl World {
    fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let ids = ConnectionIds::new(Key([seed as u8; 16]), &[], 120);
        let terms = Terms {
            interval_secs: INTERVAL as u32,
            min_interval_secs: 900,
            numwant_default: 50,
            numwant_max: 200,
            reply_len_max: REPLY_LEN_DEFAULT,
            trust_client_ip: Vec::new(),
            explain_wrong_connection_id: seed % 2 == 1,
        };
        let swarms = Swarms::new(TableSettings {
            peer_lifetime_secs: LIFETIME as u32,
            keep_completed_secs: 86_400,
            memory_bytes: 1 << 30,
            source_share_per_10_000: 200,
            caps: Caps::default(),
            allow_private: false,
            hash_key: (seed, 1),
            seed,
        });
        Self {
            rng,
            tracker: Tracker::new(ids, terms, swarms),
            now: 5_000,
            wall_offset: 1_700_000_000,
            clients: (0..CLIENTS).map(client_of).collect(),
            flights: VecDeque::new(),
            truth: vec![BTreeMap::new(); TORRENTS],
            ever: vec![BTreeSet::new(); TORRENTS],
            answered: BTreeMap::new(),
            bytes_to_forged: (0, 0),
            hooks: None,
        }
    }

    fn run(mut self, seconds: u64) -> Self {
        let end = self.now + seconds;
        while self.now < end {
            self.now += 1;
            if self.rng.u16(..) < 40 {
                // The wall clock jumps, forward or back, by up to an hour.
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

    /// Puts a datagram on its way: lost, once or twice, at once or late
    fn send(&mut self, from: SocketAddr, to_client: Option<usize>, bytes: Vec<u8>) {
        let copies = match self.rng.u8(..20) {
            0 | 1 => 0,
            2 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let arrives = self.now + self.rng.u64(..4);
            self.flights.push_back(Flight { arrives, from, to_client, bytes: bytes.clone() });
        }
    }

    fn deliver(&mut self) {
        for _ in 0..self.flights.len() {
            let Some(flight) = self.flights.pop_front() else { break };
            if flight.arrives > self.now {
                self.flights.push_back(flight);
            } else if let Some(client) = flight.to_client {
                self.client_receives(client, &flight.bytes);
            } else {
                self.tracker_receives(&flight);
            }
        }
    }

    fn act(&mut self, number: usize) {
        let client = self.clients[number];
        if self.now < client.due {
            return;
        }
        // Asked again until answered, as clients do.
        self.clients[number].due = self.now + 15;
        if speaks_http(number) {
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
                let event: u32 = match (client.started, client.gone) {
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

    /// Announces over a connection, which may end before the answer has come
    fn act_over_http(&mut self, number: usize) {
        let client = self.clients[number];
        let event = match (client.started, client.gone) {
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
        let query = query::Announce::parse(head.query).unwrap();
        let clock = self.clock();
        let parameters = Parameters { key: None, query: head.query };
        let source = client.address.ip();
        let admitted = self.tracker.admit_query(clock, source, &query, parameters, None);
        let admitted = admitted.map_err(Interrupted::refusal);
        self.check_admitted(number, admitted.as_ref().err().map(|refusal| refusal.outcome));
        let Ok(announce) = admitted else { return };
        let mut list = PeerList::default();
        list.fill(&mut self.tracker, clock, &announce, None);
        *self.answered.entry(list.outcome.name()).or_default() += 1;
        *self.answered.entry("over http").or_default() += 1;
        self.book(number, client.left, client.gone);
        let mut body = Vec::new();
        let PeerList { counts, ref v4, ref v6, .. } = list;
        let external_ip = client.address.ip();
        let compact = query.compact;
        let (interval, min_interval) =
            (announce.told.interval_secs, announce.told.min_interval_secs);
        reply::Announce {
            counts,
            interval,
            min_interval,
            external_ip,
            v4,
            v6,
            compact,
            warning: None,
        }
        .write(&mut body);
        if self.rng.u8(..20) > 0 {
            self.client_reads(number, &body);
        }
    }

    fn client_reads(&mut self, number: usize, body: &[u8]) {
        let read = Announced::of(body);
        self.check_interval(read.interval as u32);
        let peers: Vec<_> = read.peers.iter().map(|(ip, port)| Endpoint::new(*ip, *port)).collect();
        self.check_peers(number, &peers);
        let ever = &self.ever[self.clients[number].torrent];
        assert!(read.seeders + read.leechers <= ever.len() as i64);
        self.announced(number);
    }

    /// Only who announced to this torrent, not the requester, and nobody twice
    fn check_peers(&self, number: usize, peers: &[Endpoint]) {
        let (client, distinct) = (self.clients[number], peers.iter().collect::<BTreeSet<_>>());
        assert_eq!(distinct.len(), peers.len());
        for peer in peers {
            let peer = SocketAddr::new(peer.address(), peer.port());
            assert_ne!(peer, client.address);
            assert!(self.ever[client.torrent].contains(&peer), "{peer} never announced");
        }
    }

    /// What a client does after its announce was answered
    fn announced(&mut self, number: usize) {
        let (now, client) = (self.now, &mut self.clients[number]);
        client.started = true;
        client.due = now + INTERVAL;
        client.id = None;
        if client.gone {
            // It comes back later as somebody new to its swarm.
            (client.started, client.gone) = (false, false);
            client.due = now + 3_600;
        } else if number.is_multiple_of(5) && now % 3 == 0 {
            client.gone = true;
        }
    }

    /// Asks for the figures of two swarms, one of them nobody's
    fn scrape(&mut self, number: usize, id: u64) {
        let client = self.clients[number];
        let mut request = id.to_be_bytes().to_vec();
        request.extend([2, number as u32].map(u32::to_be_bytes).as_flattened());
        request.extend([client.torrent as u8; 20]);
        request.extend([0xee; 20]);
        self.send(client.address, None, request);
    }

    fn client_receives(&mut self, number: usize, reply: &[u8]) {
        let (now, ever) = (self.now, &self.ever[self.clients[number].torrent]);
        let client = &mut self.clients[number];
        match reply[3] {
            0 => {
                assert_eq!(reply.len(), 16);
                client.id = Some(u64::from_be_bytes(reply[8..].try_into().unwrap()));
                client.due = now;
            }
            1 => {
                // Of the requester's family.
                let width = if client.address.is_ipv4() { 6 } else { 18 };
                assert_eq!((reply.len() - 20) % width, 0);
                self.check_interval(u32::from_be_bytes(reply[8..12].try_into().unwrap()));
                let read = |peer| Endpoint::from_compact(peer).unwrap();
                let peers: Vec<_> = reply[20..].chunks(width).map(read).collect();
                self.check_peers(number, &peers);
                self.announced(number);
            }
            2 => {
                let row = |row: usize| {
                    let words = reply[8 + 12 * row..][..12].as_chunks::<4>().0;
                    words.iter().map(|word| u32::from_be_bytes(*word)).collect::<Vec<_>>()
                };
                assert_eq!((reply.len(), row(1)), (32, vec![0, 0, 0]));
                // Never more than ever were there.
                assert!(row(0)[0] + row(0)[2] <= ever.len() as u32);
            }
            // An error: the id was too old, or the wall clock jumped.
            3 => client.id = None,
            action => panic!("action {action}"),
        }
    }

    fn tracker_receives(&mut self, flight: &Flight) {
        let mut reply = [0; 1472];
        let verdict = self.tracker.handle(self.clock(), flight.from, &flight.bytes, &mut reply);
        *self.answered.entry(verdict.outcome.name()).or_default() += 1;
        let proven = !matches!(
            verdict.outcome,
            Outcome::Connected
                | Outcome::WrongConnectionId
                | Outcome::TooShort
                | Outcome::UnknownAction
                | Outcome::BadMagic
                | Outcome::SourcePortZero
                | Outcome::ForbiddenNetwork
        );
        assert!(proven || verdict.reply_len <= flight.bytes.len(), "amplified: {verdict:?}");
        let client = self.clients.iter().position(|client| client.address == flight.from);
        match client {
            Some(number) => {
                let refused = hooks::is_refusal(verdict.outcome).then_some(verdict.outcome);
                if proven && flight.bytes[11] == 1 {
                    self.check_admitted(number, refused);
                }
                if proven && flight.bytes[11] == 2 {
                    self.check_scraped(number, &reply[..verdict.reply_len]);
                }
                if proven && flight.bytes[11] == 1 && refused.is_none() {
                    let left = u64::from_be_bytes(flight.bytes[64..72].try_into().unwrap());
                    self.book(number, left, flight.bytes[83] == 3);
                } else if verdict.outcome == Outcome::WrongConnectionId {
                    // As clients do that hear nothing: ask for a new one.
                    self.clients[number].id = None;
                }
                if verdict.reply_len > 0 {
                    let bytes = reply[..verdict.reply_len].to_vec();
                    self.send(flight.from, Some(number), bytes);
                }
            }
            None => {
                assert!(!proven, "a forged source was believed: {verdict:?}");
                self.bytes_to_forged.0 += flight.bytes.len() as u64;
                self.bytes_to_forged.1 += verdict.reply_len as u64;
            }
        }
    }

    fn book(&mut self, number: usize, left: u64, stops: bool) {
        let client = self.clients[number];
        self.ever[client.torrent].insert(client.address);
        let swarm = &mut self.truth[client.torrent];
        if stops {
            swarm.remove(&client.address);
        } else {
            swarm.insert(client.address, (self.now, left == 0));
        }
    }

    /// Datagrams from sources that never hear the replies: anything, and announces with guessed ids
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
            // An id that was given to somebody else.
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
            assert!(self.answered.contains_key(outcome), "no {outcome} in {:?}", self.answered);
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
        assert!(self.bytes_to_forged.1 <= self.bytes_to_forged.0);
        // What is left in the table are those who announced last within a lifetime and a sweep.
        let stats = self.tracker.swarms().stats();
        let peers: u64 = stats.seeders.iter().chain(&stats.leechers).sum();
        let seen = |grace: u64| {
            let fresh = |(at, _): &&(u64, bool)| self.now - at <= LIFETIME + grace;
            self.truth.iter().flat_map(|swarm| swarm.values()).filter(fresh).count() as u64
        };
        assert!((seen(0)..=seen(2 * LIFETIME / 4 + 60)).contains(&peers), "{peers} peers are left");
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
fn clients_are_served_through_loss_forgery_and_clock_jumps() {
    for seed in 1..=4 {
        println!("seed {seed}");
        World::new(seed).run(20_000).finish();
    }
}

/// The same while hooks refuse some, and are exchanged now and then
#[test]
fn hooks_hold_through_loss_forgery_and_clock_jumps() {
    for seed in 11..=14 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        world.hooks = Some(Hooks::new(seed));
        let world = world.run(20_000);
        for outcome in [
            "forbidden_network",
            "forbidden_torrent",
            "forbidden_client",
            "no_passkey",
            "wrong_passkey",
            "too_many_announces",
        ] {
            assert!(world.answered.contains_key(outcome), "{:?}", world.answered);
        }
        world.finish();
    }
}

/// A million sources, each with an id that was never issued to it, change nothing and get nothing
#[test]
fn forged_ids_from_a_million_sources_are_silence() {
    let mut world = World::new(2);
    let now = world.clock();
    let mut announce = vec![0; 98];
    announce[11] = 1;
    let mut reply = [0; 1472];
    for source in 0..1_000_000_u32 {
        let address: SocketAddr = match source % 4 {
            0 => ([0x2a00, 7, 0, 0, 0, 0, (source >> 16) as u16, source as u16], 6_881).into(),
            _ => ((0x5000_0000 + source).to_be_bytes(), 6_881).into(),
        };
        // The epoch is public, so a forger gets it right; the tag is a guess.
        let guess = (now.unix_secs / 64) << 56 | world.rng.u64(..) >> 8;
        announce[..8].copy_from_slice(&guess.to_be_bytes());
        let verdict = world.tracker.handle(now, address, &announce, &mut reply);
        assert_eq!((verdict.outcome, verdict.reply_len), (Outcome::WrongConnectionId, 0));
    }
    assert_eq!(world.tracker.swarms().stats().torrents, 0);
}

/// The simulation notices a tracker that believes forged sources
#[test]
#[should_panic(expected = "forged source was believed")]
fn the_simulation_would_notice() {
    let mut world = World::new(1);
    let from: SocketAddr = ([7, 7, 7, 7], 7).into();
    let ids = ConnectionIds::new(Key([1; 16]), &[], 120);
    let mut bytes = vec![0; 98];
    bytes[..8].copy_from_slice(&ids.issue(world.clock().unix_secs, from.ip()).to_be_bytes());
    bytes[11] = 1;
    world.tracker_receives(&Flight { arrives: 0, from, to_client: None, bytes });
}
