//! A simple model of the swarm table, and operations that compare the table with it. Also used by the fuzzer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use tsubame_storage::{
    AnnounceEvent, AnnounceOutcome, Caps, Endpoint, Family, InfoHash, JoinRefusal, PeerOutput,
    PrefixLengths, Role, Scope, Seconds, SubnetPreference, SwarmAnnounce, SwarmChange, SwarmCounts,
    Swarms, TableCursor, TableSettings,
};

pub(crate) const LIFETIME: u32 = 1_200;
const TICK: u64 = 20;
const LIFETIME_TICKS: u64 = 60;
/// Seconds of one pass of the sweep.
const SWEEP_PERIOD: u64 = LIFETIME as u64 / 4;
const KEEP_COMPLETED: u32 = 12_000;
/// Seconds without sweeps after which the next sweep removes every torrent.
const EVERYTHING_EXPIRED: u64 = LIFETIME as u64 + KEEP_COMPLETED as u64 + 1_000;

/// Prefix lengths of the subnet preference for IPv4 and IPv6, if one is set.
const PREFIX_LENGTHS: [&[u8]; 2] = [&[20, 17], &[124, 48]];
/// Maximum number of peers of a family up to which the table is sure to find all subnet peers.
const FULL_SEARCH_PEERS: usize = 48;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) kind: u8,
    pub(crate) torrent: u8,
    pub(crate) peer: u16,
    pub(crate) detail: u8,
}

impl Operation {
    pub(crate) fn from_bytes(bytes: [u8; 5]) -> Self {
        let [kind, torrent, high, low, detail] = bytes;
        Self { kind, torrent, peer: u16::from_be_bytes([high, low]), detail }
    }
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    role: Role,
    announced_at: u64,
    completed: bool,
}

#[derive(Clone, Debug, Default)]
struct Swarm {
    peers: BTreeMap<Endpoint, Peer>,
    completed: u32,
    emptied_at: u64,
}

/// The table under test and its model.
pub(crate) struct Checker {
    swarms: Swarms,
    model: BTreeMap<InfoHash, Swarm>,
    caps: Caps,
    prefers_subnets: bool,
    now: u64,
    /// Number of seconds that passed without a sweep.
    frozen: u64,
    /// Number of different peers: a small number makes small swarms, a large number large ones.
    pub(crate) peers: u16,
    /// Number of peers that joined, less those that stopped or were purged.
    joined: u64,
}

fn endpoint_of(peer: u16) -> Endpoint {
    // Both families, all scopes, and several ports on one address or /64.
    let [high, low] = peer.to_be_bytes();
    let address: IpAddr = match peer % 8 {
        0..=3 => [93, high, low & 0xf0, 7].into(),
        4 => [10, 0, high, low & 0xf8].into(),
        5 => [127, 0, 0, 1].into(),
        6 => [0x2a00, 1, u16::from(high), 0, 0, 0, 0, u16::from(low)].into(),
        _ => [0xfd00, 0, 0, u16::from(high), 0, 0, 0, 1].into(),
    };
    Endpoint::new(address, 1_000 + peer)
}

fn share_address_cap(a: Endpoint, b: Endpoint) -> bool {
    match (a.address(), b.address()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a == b,
        (IpAddr::V6(a), IpAddr::V6(b)) => a.segments()[..4] == b.segments()[..4],
        _ => false,
    }
}

/// Returns the index of the first prefix length that two endpoints share, or the number of lengths if they share none.
fn distance(a: Endpoint, b: Endpoint) -> usize {
    let bits = |endpoint: Endpoint| match endpoint.address() {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let lengths = PREFIX_LENGTHS[a.family() as usize];
    let shares = |length: &u8| (bits(a) ^ bits(b)).leading_zeros() >= u32::from(*length);
    let shared = lengths.iter().position(shares).filter(|_| a.family() == b.family());
    shared.unwrap_or(lengths.len())
}

/// Checks that the peers are returned in the order of the prefix lengths that they share with the requester.
fn check_subnet_order(requester: Endpoint, usable: &BTreeSet<Endpoint>, returned: &[u8]) {
    let len = if usable.first().is_some_and(|peer| peer.family() == Family::V6) { 18 } else { 6 };
    let returned: Vec<_> = returned.chunks(len).filter_map(Endpoint::from_compact).collect();
    let far: Vec<_> = returned.iter().map(|peer| distance(requester, *peer)).collect();
    assert!(far.is_sorted(), "{far:?}");
    let left_out = usable.iter().filter(|peer| !returned.contains(peer));
    if let (Some(farthest), Some(nearest)) =
        (far.last(), left_out.map(|peer| distance(requester, *peer)).min())
    {
        assert!(*farthest <= nearest, "{requester} got {returned:?} of {usable:?}");
    }
}

impl Checker {
    pub(crate) fn new(seed: u64, peers: u16, caps: Caps) -> Self {
        let settings = TableSettings {
            peer_lifetime_secs: LIFETIME,
            keep_completed_secs: KEEP_COMPLETED,
            caps,
            ..TableSettings::with_known_keys(seed)
        };
        let (swarms, model) = (Swarms::new(settings), BTreeMap::new());
        Self {
            swarms,
            model,
            caps,
            prefers_subnets: false,
            now: 1_000_000,
            frozen: 0,
            peers,
            joined: 0,
        }
    }

    /// Sets a subnet preference, or removes it.
    pub(crate) fn set_subnet_preference(&mut self, prefers_subnets: bool) {
        self.prefers_subnets = prefers_subnets;
        let [v4, v6] = PREFIX_LENGTHS.map(|lengths| PrefixLengths::new(lengths).unwrap());
        let subnets = if prefers_subnets {
            SubnetPreference { v4, v6, at_random_percent: 0 }
        } else {
            SubnetPreference::default()
        };
        self.swarms.set_subnet_preference(subnets);
    }

    /// Applies an operation to the table and the model, and compares the results.
    pub(crate) fn apply(&mut self, operation: Operation) {
        match operation.kind % 16 {
            0..=12 => self.announce(operation),
            13 => self.scrape(operation.torrent),
            14 => self.wait(u64::from(operation.detail) * 3),
            15 if operation.detail >= 240 => self.purge(operation.detail),
            15 if operation.detail >= 216 => self.set_subnet_preference(operation.detail >= 224),
            _ => self.wait(u64::from(operation.detail % 4)),
        }
    }

    fn announce(&mut self, operation: Operation) {
        let info_hash = InfoHash([operation.torrent; 20]);
        let endpoint = endpoint_of(operation.peer % self.peers);
        let event = match operation.detail % 8 {
            0 | 1 => AnnounceEvent::Stopped,
            2 | 3 => AnnounceEvent::Completed,
            4 => AnnounceEvent::Started,
            5 => AnnounceEvent::Paused,
            _ => AnnounceEvent::None,
        };
        let role = match (event, operation.detail / 8 % 2) {
            (AnnounceEvent::Paused, _) => Role::PartialSeed,
            (_, 0) => Role::Seeder,
            _ => Role::Leecher,
        };
        let announce = SwarmAnnounce { info_hash, endpoint, role, event };
        let wanted = usize::from(operation.detail / 16) * 9;
        let (mut v4, mut v6) = (vec![0; wanted * 6], vec![0; wanted * 18]);
        // A limit for both families together, or none.
        let peers_max = if operation.detail & 1 == 0 { wanted } else { usize::MAX };
        let before = self.bounds(info_hash);
        let prefetch = self.swarms.prefetch_index(&info_hash);
        self.swarms.prefetch_entry(&prefetch);
        let output = PeerOutput { v4: &mut v4, v6: &mut v6, peers_max };
        let announced = self.swarms.announce(Seconds(self.now), prefetch, &announce, output);
        self.record_announce(&announce, &announced);
        let returned = [&v4[..announced.v4_len], &v6[..announced.v6_len]];
        self.check_peers(&announce, [wanted, wanted, peers_max], returned);
        let mut counts = announced.counts;
        if let SwarmChange::Refused(_) = announced.change {
            // The requester is counted although it is not stored.
            match announce.role {
                Role::Seeder => counts.seeders -= 1,
                Role::Leecher | Role::PartialSeed => counts.leechers -= 1,
            }
        }
        self.check_counts(info_hash, counts, before);
    }

    fn is_alive(&self, peer: &Peer) -> bool {
        self.now / TICK - peer.announced_at / TICK <= LIFETIME_TICKS
    }

    fn record_announce(&mut self, announce: &SwarmAnnounce, announced: &AnnounceOutcome) {
        let known =
            self.model.get(&announce.info_hash).and_then(|s| s.peers.get(&announce.endpoint));
        let known = known.copied();
        let is_previous_role_certain = known.is_none_or(|peer| self.is_alive(&peer));
        let previous = announced.previous;
        self.check_expired(announced.change);
        if is_previous_role_certain {
            assert_eq!(previous, known.map(|peer| peer.role), "{announce:?}");
        }
        let abandoned = self.is_abandoned(announce.info_hash);
        let swarm = self.model.entry(announce.info_hash).or_default();
        if abandoned && announced.counts.completed == 0 {
            // The torrent was removed and is new again.
            swarm.completed = 0;
        }
        let mut peer = Peer { role: announce.role, announced_at: self.now, completed: false };
        peer.completed = previous.is_some() && known.is_some_and(|known| known.completed);
        let completes = announce.event == AnnounceEvent::Completed
            && announce.role == Role::Seeder
            && previous.is_some_and(|previous| previous != Role::Seeder)
            && !peer.completed;
        let expected = match (announce.event, previous) {
            (AnnounceEvent::Stopped, Some(_)) => SwarmChange::Stopped,
            (AnnounceEvent::Stopped, None) => SwarmChange::Nothing,
            (_, Some(_)) if completes => SwarmChange::Completed,
            (_, Some(_)) => SwarmChange::Refreshed,
            (_, None) => SwarmChange::Joined,
        };
        match announced.change {
            SwarmChange::Refused(refusal) => {
                assert_eq!(expected, SwarmChange::Joined);
                let sharing = swarm
                    .peers
                    .keys()
                    .filter(|other| share_address_cap(**other, announce.endpoint));
                match refusal {
                    JoinRefusal::SwarmCap => {
                        assert!(
                            self.caps.swarm > 0 && swarm.peers.len() >= self.caps.swarm as usize
                        )
                    }
                    JoinRefusal::AddressCap => {
                        let cap = self.caps.per_ipv4.min(self.caps.per_ipv6_64).max(1);
                        assert!(sharing.count() >= cap as usize);
                    }
                    JoinRefusal::Memory | JoinRefusal::NewTorrent | JoinRefusal::Source => {
                        panic!("refused for {refusal:?}: {announce:?}")
                    }
                }
                return;
            }
            change => assert_eq!(change, expected, "{announce:?} was {previous:?}"),
        }
        swarm.completed += u32::from(completes);
        peer.completed |= completes;
        if announce.event == AnnounceEvent::Stopped {
            // An expired peer may have been removed from the table long ago.
            let removed = swarm.peers.remove(&announce.endpoint);
            let left_at = match previous {
                Some(_) => self.now,
                None => removed.map_or(0, |peer| peer.announced_at + u64::from(LIFETIME)),
            };
            swarm.emptied_at = swarm.emptied_at.max(left_at);
        } else {
            swarm.peers.insert(announce.endpoint, peer);
            self.check_caps(announce);
        }
    }

    /// Checks that a swarm has no more living peers than the caps permit after one has joined.
    fn check_caps(&self, joined: &SwarmAnnounce) {
        let peers = &self.model[&joined.info_hash].peers;
        let living = peers.iter().filter(|(_, peer)| self.is_alive(peer));
        let sharing =
            living.clone().filter(|(other, _)| share_address_cap(**other, joined.endpoint));
        let address_cap = match joined.endpoint.family() {
            Family::V4 => self.caps.per_ipv4,
            Family::V6 => self.caps.per_ipv6_64,
        };
        for (count, cap) in [(sharing.count(), address_cap), (living.count(), self.caps.swarm)] {
            assert!(cap == 0 || count <= cap as usize, "{count} peers under a cap of {cap}");
        }
    }

    /// Returns whether a swarm has had no peers for [`KEEP_COMPLETED`] seconds, so that the table may have removed it.
    fn is_abandoned(&self, info_hash: InfoHash) -> bool {
        self.model.get(&info_hash).is_some_and(|swarm| {
            let expired = |peer: &Peer| peer.announced_at + u64::from(LIFETIME);
            let last = swarm.peers.values().map(expired).max().unwrap_or(0).max(swarm.emptied_at);
            self.now.saturating_sub(last) >= u64::from(KEEP_COMPLETED)
        })
    }

    /// Checks the peers of both families. `wanted` has the maximum number of IPv4 peers, of IPv6 peers, and of both
    /// together.
    fn check_peers(&self, announce: &SwarmAnnounce, wanted: [usize; 3], returned: [&[u8]; 2]) {
        let [v4, v6, peers_max] = wanted;
        let swarm = &self.model[&announce.info_hash].peers;
        let enough = peers_max >= swarm.len();
        for (family, wanted) in [(Family::V4, v4), (Family::V6, v6)] {
            let others = |endpoint: &&Endpoint| endpoint.family() != family;
            // The places are divided by the counts of both families, which include peers that the requester cannot
            // use: a quarter is guaranteed to each family.
            let least = match swarm.keys().filter(others).count() {
                _ if enough => wanted,
                0 => wanted.min(peers_max),
                _ => wanted.min(peers_max / 4),
            };
            self.check_family(announce, family, least..=wanted, returned[family as usize]);
        }
        let [v4, v6] = [returned[0].len() / 6, returned[1].len() / 18];
        assert!(v4 + v6 <= peers_max, "{v4} and {v6} peers exceed the maximum of {peers_max}");
    }

    fn check_family(
        &self,
        announce: &SwarmAnnounce,
        family: Family,
        wanted: RangeInclusive<usize>,
        returned: &[u8],
    ) {
        let len = family.compact_len();
        assert_eq!(returned.len() % len, 0);
        let peers: BTreeSet<Endpoint> =
            returned.chunks(len).map(|bytes| Endpoint::from_compact(bytes).unwrap()).collect();
        assert_eq!(peers.len(), returned.len() / len, "a peer was returned twice");
        let usable: BTreeSet<Endpoint> = self.model[&announce.info_hash]
            .peers
            .iter()
            .filter(|(endpoint, peer)| {
                let fits_role = match announce.role {
                    Role::Leecher => true,
                    Role::Seeder | Role::PartialSeed => peer.role == Role::Leecher,
                };
                let (scope, requester) =
                    (Scope::of(endpoint.address()), announce.endpoint.address());
                **endpoint != announce.endpoint
                    && endpoint.family() == family
                    && announce.event != AnnounceEvent::Stopped
                    && fits_role
                    && self.is_alive(peer)
                    && scope.reaches(Scope::of(requester))
            })
            .map(|(endpoint, _)| *endpoint)
            .collect();
        assert!(peers.is_subset(&usable), "{:?}", peers.difference(&usable));
        let swarm = &self.model[&announce.info_hash].peers;
        let of_family = swarm.keys().filter(|peer| peer.family() == family);
        if self.prefers_subnets && of_family.count() <= FULL_SEARCH_PEERS {
            check_subnet_order(announce.endpoint, &usable, returned);
        }
        if *wanted.start() >= swarm.len() {
            assert_eq!(peers, usable, "not all usable peers were returned for {announce:?}");
        }
        // The requested number, if no candidate had to be skipped.
        let has_skipped = swarm.iter().any(|(endpoint, peer)| {
            endpoint.family() == family
                && *endpoint != announce.endpoint
                && !usable.contains(endpoint)
                && (announce.role == Role::Leecher || peer.role != Role::Seeder)
        });
        if !has_skipped {
            let least = usable.len().min(*wanted.start());
            assert!(
                (least..=*wanted.end()).contains(&peers.len()),
                "wrong number of peers for {announce:?}"
            );
        }
    }

    /// Returns the minimum and maximum number of peers that a swarm may count: living peers, and those plus peers that
    /// may not have been swept yet.
    fn bounds(&self, info_hash: InfoHash) -> (u32, u32) {
        let Some(swarm) = self.model.get(&info_hash) else { return (0, 0) };
        let alive = swarm.peers.values().filter(|peer| self.is_alive(peer)).count();
        let grace = self.grace();
        let seen = |peer: &&Peer| self.now - peer.announced_at <= grace;
        (alive as u32, swarm.peers.values().filter(seen).count() as u32)
    }

    fn check_counts(&self, info_hash: InfoHash, counts: SwarmCounts, before: (u32, u32)) {
        let (least, peers_max) = self.bounds(info_hash);
        let peers = counts.seeders + counts.leechers;
        let peers_max = peers_max.max(before.1);
        assert!(
            (least..=peers_max).contains(&peers),
            "{peers} peers counted, {least} to {peers_max} exist"
        );
        let Some(swarm) = self.model.get(&info_hash) else {
            return assert_eq!(counts, SwarmCounts::default());
        };
        let kept = least > 0 || self.now - swarm.emptied_at < u64::from(KEEP_COMPLETED);
        if kept || counts.completed > 0 {
            assert_eq!(counts.completed, swarm.completed, "completed downloads of {info_hash}");
        }
        let seeders = |peer: &&Peer| peer.role == Role::Seeder && self.is_alive(peer);
        let partial = |peer: &&Peer| peer.role == Role::PartialSeed && self.is_alive(peer);
        let swarm_stats =
            self.swarms.swarm_stats(&self.swarms.prefetch_index(&info_hash), &info_hash);
        assert_eq!(swarm_stats.counts, counts);
        assert!(swarm_stats.partial_seeds <= counts.leechers, "{swarm_stats:?}");
        if peers_max == least {
            assert_eq!(counts.seeders as usize, swarm.peers.values().filter(seeders).count());
            let partial_seeds = swarm.peers.values().filter(partial).count();
            assert_eq!(swarm_stats.partial_seeds as usize, partial_seeds, "partial seeds");
        }
    }

    /// Checks after a change that each peer that joined is stored, or has stopped, expired or been purged.
    fn check_expired(&mut self, change: SwarmChange) {
        match change {
            SwarmChange::Joined => self.joined += 1,
            SwarmChange::Stopped => self.joined -= 1,
            _ => {}
        }
        assert_eq!(self.joined, self.stored() + self.swarms.stats().expired_peers);
    }

    /// Returns the number of stored peers.
    fn stored(&self) -> u64 {
        let stats = self.swarms.stats();
        stats.seeders.iter().chain(&stats.leechers).sum()
    }

    /// Removes one torrent in four, in steps with sweeps between them, which move other torrents.
    fn purge(&mut self, which: u8) {
        let serves = |hash: &InfoHash| !(hash.0[0] ^ which).is_multiple_of(4);
        let mut purge = TableCursor::default();
        let before = self.stored() + self.swarms.stats().expired_peers;
        while self.swarms.purge(&mut purge, serves) {
            self.now += 1;
            self.swarms.sweep(Seconds(self.now));
        }
        self.joined -= before - self.stored() - self.swarms.stats().expired_peers;
        self.model.retain(|info_hash, _| serves(info_hash));
        for torrent in (0..=255).filter(|torrent| !serves(&InfoHash([*torrent; 20]))) {
            self.scrape(torrent);
        }
        self.expire_in_model();
    }

    fn scrape(&mut self, torrent: u8) {
        let info_hash = InfoHash([torrent; 20]);
        let prefetch = self.swarms.prefetch_index(&info_hash);
        let counts = self.swarms.scrape(&prefetch, &info_hash);
        self.check_counts(info_hash, counts, (0, 0));
    }

    /// Advances the time, with sweeps as in a shard.
    pub(crate) fn wait(&mut self, seconds: u64) {
        let end = self.now + seconds;
        while self.now < end {
            self.now = end.min(self.now + SWEEP_PERIOD / 8);
            while self.swarms.sweep(Seconds(self.now)) {}
        }
        self.expire_in_model();
    }

    /// Advances the time without sweeps, as when the process is stopped.
    pub(crate) fn wait_without_sweeps(&mut self, seconds: u64) {
        self.now += seconds;
        self.frozen += seconds;
        while self.swarms.sweep(Seconds(self.now)) {}
        if seconds >= EVERYTHING_EXPIRED {
            assert_eq!(self.swarms.stats().torrents, 0, "torrents after a pause of {seconds} s");
            self.model.clear();
            self.frozen = 0;
        }
    }

    /// Returns the number of seconds without an announce after which a peer must have been swept.
    fn grace(&self) -> u64 {
        u64::from(LIFETIME) + 2 * SWEEP_PERIOD + 2 * TICK + self.frozen
    }

    /// Removes from the model the peers and counts that the table must have removed, too.
    fn expire_in_model(&mut self) {
        let grace = self.grace();
        for swarm in self.model.values_mut() {
            let last = swarm.peers.values().map(|peer| peer.announced_at).max();
            swarm.peers.retain(|_, peer| self.now - peer.announced_at <= grace);
            if let Some(last) = last.filter(|_| swarm.peers.is_empty()) {
                // The swarm became empty at this time or a little later. The earlier time is the safe bound for how
                // long its count of downloads must be kept.
                swarm.emptied_at = swarm.emptied_at.max(last + u64::from(LIFETIME));
            }
            if swarm.peers.is_empty()
                && self.now - swarm.emptied_at > 2 * u64::from(KEEP_COMPLETED) + 2 * grace
            {
                swarm.completed = 0;
            }
        }
    }

    /// Checks that table and model agree on every swarm, and that after a lifetime no peer is left.
    pub(crate) fn finish(mut self) {
        self.wait(1);
        for torrent in 0..=255 {
            self.scrape(torrent);
        }
        self.wait(u64::from(LIFETIME) + 3 * SWEEP_PERIOD);
        let stats = self.swarms.stats();
        assert_eq!((stats.seeders, stats.leechers), ([0; 2], [0; 2]));
        self.wait(3 * u64::from(KEEP_COMPLETED));
        assert_eq!(self.swarms.stats().torrents, 0);
        let held = self.swarms.stats().bytes;
        assert!(held < 256 << 10, "an empty table holds {held} bytes");
    }
}
