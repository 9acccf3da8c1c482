//! The swarm table of one shard: announces and scrapes.

use crate::announced::{Announced, Change, Refusal};
use crate::entry::Entry;
use crate::index::{POSITIONS_MAX, PositionIndex};
use crate::part::{EndpointKey, Part, Roles, Rules, V4, V6, flags, record_of, scope_flags};
use crate::room::{BLOCK_PEERS_MAX, Homes, Store, Width};
use crate::select::{Near, Requester, select};
use crate::space::{PeerSpace, cut, v4_share};
use crate::subnets::{Lengths, Subnets};
use crate::sweep::Hand;
use crate::time::{Seconds, Ticks};
use crate::words::{Census, Counts, Endpoint, Event, Family, InfoHash, Role, Scope};
use siphasher::sip::SipHasher13;

/// A swarm with more peers than this is refused more when memory gets tight: it has plenty to hand out
const CROWDED_PEERS: usize = 200;

/// How a table behaves; what is drawn at start is handed in
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a peer is kept after its last announce
    pub peer_lifetime_secs: u32,
    /// How long a torrent without peers keeps its count of completed downloads
    pub keep_completed_secs: u32,
    /// Memory the table may hold, by its own accounting
    pub memory_bytes: usize,
    /// Limits within a swarm
    pub caps: Caps,
    /// Hand out private peers like public ones: for closed networks
    pub allow_private: bool,
    /// Keys the hash that finds torrents and peers: whoever knew it could make every search long
    pub hash_key: (u64, u64),
    /// Starts the generator that picks peers
    pub seed: u64,
}

/// How many peers a swarm may have in all and from one place; 0 is no limit
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Of both families
    pub swarm: u32,
    /// From one IPv4 address
    pub per_ipv4: u32,
    /// From one IPv6 /64
    pub per_ipv6_64: u32,
}

/// One announce, as far as the swarm is concerned
#[derive(Clone, Copy, Debug)]
pub struct Announce {
    /// The torrent
    pub info_hash: InfoHash,
    /// Who announces
    pub endpoint: Endpoint,
    /// What it is
    pub role: Role,
    /// Why it announces
    pub event: Event,
}

/// What a table holds
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Torrents, those without peers that keep a count included
    pub torrents: usize,
    /// Seeders by [`Family`]
    pub seeders: [u64; 2],
    /// Leechers by [`Family`]
    pub leechers: [u64; 2],
    /// Memory held, by the table's own accounting
    pub bytes: usize,
}

/// What a look ahead at the index found: the hash, and where the torrent's entry probably is
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    hash: u64,
    guess: Option<u32>,
}

/// Who is in which swarm
///
/// No call moves more than 64 KiB of records or visits more than 4,096 index slots, at any size, save
/// the first after the process was stopped for so long that every peer's age must be looked at. Where
/// neighbours are preferred, as many slots again for each length of prefix.
#[derive(Debug)]
pub struct Swarms {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    index: PositionIndex,
    pub(crate) rules: Rules,
    idle_ticks: Ticks,
    subnets: Subnets,
    pub(crate) now: Seconds,
    pub(crate) hand: Hand,
    totals: Totals,
    rng: fastrand::Rng,
}

impl Swarms {
    /// An empty table
    pub fn new(settings: Settings) -> Self {
        let hasher = SipHasher13::new_with_keys(settings.hash_key.0, settings.hash_key.1);
        let ticks = Ticks::of_lifetime(settings.peer_lifetime_secs);
        Self {
            store: Store::new(),
            index: PositionIndex::new(),
            rules: Rules { key: EndpointKey { hasher, capped: false }, ticks, tick: 0 },
            idle_ticks: Ticks::of_lifetime(settings.keep_completed_secs),
            subnets: Subnets::default(),
            now: Seconds(0),
            hand: Hand::default(),
            totals: Totals::default(),
            rng: fastrand::Rng::with_seed(settings.seed),
            settings,
        }
    }

    /// Hands out these neighbours first from now on
    ///
    /// Of a swarm that is large already, those who have announced since.
    pub fn prefer(&mut self, subnets: Subnets) {
        self.subnets = subnets;
    }

    /// What the table holds now
    pub fn totals(&self) -> Totals {
        Totals { torrents: self.store.entries.len(), bytes: self.bytes(), ..self.totals }
    }

    /// Reads the index slot of a torrent: the first of two passes over a batch
    ///
    /// A table of millions of torrents lies beyond the caches. Reading all slots of a batch, then all
    /// entries, lets the memory work on many at once.
    pub fn look_ahead(&self, info_hash: &InfoHash) -> Ahead {
        let hash = self.hash(info_hash);
        Ahead { hash, guess: self.index.guess(hash) }
    }

    /// Reads the entry of a torrent: the second pass; the value means nothing
    pub fn touch(&self, ahead: &Ahead) -> u8 {
        match ahead.guess {
            Some(position) if (position as usize) < self.store.entries.len() => {
                self.store.entry(position).shape()
            }
            _ => 0,
        }
    }

    /// Whether the table has a torrent
    pub fn knows(&self, ahead: &Ahead, info_hash: &InfoHash) -> bool {
        self.find(ahead, info_hash).is_some()
    }

    /// Enters an announce into its swarm and picks peers for it
    pub fn announce(
        &mut self,
        now: Seconds,
        ahead: Ahead,
        announce: &Announce,
        mut peers: PeerSpace<'_>,
    ) -> Announced {
        self.advance(now);
        debug_assert_eq!(ahead.hash, self.hash(&announce.info_hash));
        let known = self.find(&ahead, &announce.info_hash);
        let joins = announce.event != Event::Stopped && announce.endpoint.is_listening();
        let (position, refused) = match known {
            None if joins => match self.add_torrent(ahead.hash, &announce.info_hash) {
                Some(position) => (Some(position), None),
                None => (None, Some(Change::Refused(Refusal::Memory))),
            },
            known => (known, None),
        };
        let Some(position) = position else {
            let change = refused.unwrap_or(Change::Nothing);
            return Announced { change, ..Announced::of_nobody() };
        };
        let entered = match announce.endpoint.family() {
            Family::V4 => self.enter::<V4>(position, announce),
            Family::V6 => self.enter::<V6>(position, announce),
        };
        if entered.change == Change::Completed {
            self.store.entry_mut(position).add_completed();
        }
        let shared = !peers.v4.is_empty() && !peers.v6.is_empty();
        if shared {
            self.share_out(position, announce.role, &mut peers);
        }
        let own = |family| entered.own.filter(|_| announce.endpoint.family() == family);
        let (mut v4_len, mut v6_len) = (0, 0);
        if announce.event != Event::Stopped {
            v4_len = self.pick::<V4>(position, announce, own(Family::V4), peers.v4);
            if shared {
                // Also what IPv4 peers could not fill, as the requester has no use for them.
                let rest = peers.most - v4_len / Family::V4.compact_len();
                cut(&mut peers.v6, Family::V6, rest);
            }
            v6_len = self.pick::<V6>(position, announce, own(Family::V6), peers.v6);
        }
        let counts = self.counts_at(position);
        Announced { counts, v4_len, v6_len, change: entered.change, previous: entered.previous }
    }

    /// The figures of a swarm; zeros for one that is not known
    pub fn scrape(&self, ahead: &Ahead, info_hash: &InfoHash) -> Counts {
        match self.find(ahead, info_hash) {
            Some(position) => self.counts_at(position),
            None => Counts::default(),
        }
    }

    /// The same with what only HTTP reports, which takes a little longer
    pub fn census(&self, ahead: &Ahead, info_hash: &InfoHash) -> Census {
        match self.find(ahead, info_hash) {
            Some(position) => self.census_at(position),
            None => Census::default(),
        }
    }

    pub(crate) fn census_at(&self, position: u32) -> Census {
        let partial_seeds = self.store.entry(position).partial_seeds();
        Census { counts: self.counts_at(position), partial_seeds }
    }

    /// Lets the table's time follow the clock
    pub(crate) fn advance(&mut self, now: Seconds) {
        if now <= self.now {
            return;
        }
        if self.is_starved(now) {
            self.catch_up(now);
        }
        self.now = now;
        self.rules.tick = self.rules.ticks.at(now);
    }

    /// After a pause so long that one-byte ages would wrap: first everything is looked at as of the last
    /// time anybody could have announced, then as of one lifetime later, when nobody is left
    fn catch_up(&mut self, now: Seconds) {
        self.sweep_all();
        let lifetime = u64::from(self.settings.peer_lifetime_secs);
        self.now = now.min(Seconds(self.now.0 + lifetime + lifetime.div_ceil(60) + 2));
        self.rules.tick = self.rules.ticks.at(self.now);
        self.sweep_all();
        self.now = now;
        self.rules.tick = self.rules.ticks.at(now);
        self.hand.caught_up(now);
    }

    pub(crate) fn rules_for<const N: usize>(&self) -> Rules {
        let capped = self.address_cap::<N>() > 0;
        Rules { key: EndpointKey { capped, ..self.rules.key }, ..self.rules }
    }

    /// Books a change in the number of a torrent's peers
    pub(crate) fn count_change(&mut self, before: Roles, position: u32, family: Family) {
        let after = self.store.entry(position).roles(family);
        let book = |total: &mut u64, before: u32, after: u32| {
            *total = *total + u64::from(after) - u64::from(before);
        };
        book(&mut self.totals.seeders[family as usize], before.seeders, after.seeders);
        book(&mut self.totals.leechers[family as usize], before.leechers, after.leechers);
    }

    /// After peers have left: a smaller home for the rest, the time for a swarm without any
    pub(crate) fn settle(&mut self, position: u32) {
        self.store.fit(position);
        if self.store.entry(position).peers() == 0 {
            let tick = self.idle_ticks.at(self.now);
            self.store.entry_mut(position).set_tick(tick);
        }
    }

    /// Removes a torrent without peers, unless its completed downloads are still remembered
    ///
    /// Returns the index slots that visited.
    pub(crate) fn remove_if_forgotten(&mut self, position: u32) -> usize {
        let entry = self.store.entry(position);
        let tick = self.idle_ticks.at(self.now);
        if entry.completed() > 0 && !self.idle_ticks.is_expired(tick, entry.tick()) {
            return 0;
        }
        self.remove_entry(position)
    }

    /// Removes an entry without peers; returns the index slots that were visited for it
    pub(crate) fn remove_entry(&mut self, position: u32) -> usize {
        let (store, hasher) = (&self.store, self.rules.key.hasher);
        let hash_of = |position: u32| hasher.hash(&store.entry(position).info_hash().0);
        let visited = self.index.remove(hash_of(position), position, hash_of);
        if let Some(from) = self.store.remove(position) {
            let hash = self.hash(&self.store.entry(position).info_hash());
            self.index.relocate(hash, from, position);
        }
        visited
    }

    fn hash(&self, info_hash: &InfoHash) -> u64 {
        self.rules.key.hasher.hash(&info_hash.0)
    }

    fn find(&self, ahead: &Ahead, info_hash: &InfoHash) -> Option<u32> {
        let is_it = |position: u32| self.store.entry(position).is(info_hash);
        // Mostly the guess is right, and the index need not be looked at again.
        let guess =
            ahead.guess.filter(|it| (*it as usize) < self.store.entries.len() && is_it(*it));
        guess.or_else(|| self.index.find(ahead.hash, is_it))
    }

    fn bytes(&self) -> usize {
        self.store.bytes() + self.index.bytes()
    }

    fn counts_at(&self, position: u32) -> Counts {
        let entry = self.store.entry(position);
        let (v4, v6) = (entry.roles(Family::V4), entry.roles(Family::V6));
        Counts {
            seeders: v4.seeders + v6.seeders,
            completed: entry.completed(),
            leechers: v4.leechers + v6.leechers,
        }
    }

    fn add_torrent(&mut self, hash: u64, info_hash: &InfoHash) -> Option<u32> {
        let position = self.store.entries.len() as u32;
        let more = self.store.entries.next_bytes();
        if self.pressure(more) > Pressure::None || position >= POSITIONS_MAX - 1 {
            return None;
        }
        self.store.entries.push(Entry::new(info_hash));
        let (store, hasher) = (&self.store, self.rules.key.hasher);
        let hash_of = |position: u32| hasher.hash(&store.entry(position).info_hash().0);
        if self.index.insert(hash, position, hash_of) {
            return Some(position);
        }
        self.store.entries.pop();
        None
    }

    /// How near the ceiling would be with so much more
    fn pressure(&self, more: usize) -> Pressure {
        let (held, limit) = (self.bytes() + more, self.settings.memory_bytes);
        // The last sixteenth is kept for peers of swarms that need them; of the last sixty-fourth nothing
        // is given away: a block comes with its slab.
        if held >= limit - limit / 64 {
            Pressure::Full
        } else if held >= limit - limit / 16 {
            Pressure::Tight
        } else {
            Pressure::None
        }
    }

    fn address_cap<const N: usize>(&self) -> u32 {
        if N == V4 { self.settings.caps.per_ipv4 } else { self.settings.caps.per_ipv6_64 }
    }

    fn scope(&self, endpoint: Endpoint) -> Scope {
        match self.settings.allow_private {
            true => Scope::Global,
            false => Scope::of(endpoint.address()),
        }
    }

    /// Applies an announce to the peers of its family
    fn enter<const N: usize>(&mut self, position: u32, announce: &Announce) -> Entered
    where
        Homes: Width<N>,
    {
        let partial = match announce.role {
            Role::PartialSeed => flags::PARTIAL_SEED,
            Role::Seeder | Role::Leecher => 0,
        };
        let endpoint = announce.endpoint;
        let set = scope_flags(self.scope(endpoint)) | partial;
        let record = record_of::<N>(endpoint.address(), endpoint.port(), set, self.rules.tick);
        let Some(record) = record else { return Entered::default() };
        let rules = self.rules_for::<N>();
        let found = self.store.part::<N>(position).find(&record, &rules);
        let before = self.store.entry(position).roles(<Homes as Width<N>>::FAMILY);
        let entered = match (found.position, announce.event) {
            (Some(own), Event::Stopped) => {
                let previous = self.store.change(position, |part| {
                    let previous = role_at(part, own);
                    part.remove(own, &rules);
                    previous
                });
                self.settle(position);
                Entered { own: None, change: Change::Left, previous: Some(previous) }
            }
            (Some(own), _) => self.refresh(position, own, record, announce, &rules),
            (None, Event::Stopped) => Entered::default(),
            (None, _) if !endpoint.is_listening() => Entered::default(),
            (None, _) => self.join(position, record, announce, found.sharing, &rules),
        };
        self.count_change(before, position, <Homes as Width<N>>::FAMILY);
        let lengths = self.lengths(<Homes as Width<N>>::FAMILY);
        if let Some(own) = entered.own
            && !lengths.is_empty()
            && self.pressure(0) == Pressure::None
        {
            let rng = &mut self.rng;
            self.store.change(position, |part| part.introduce(own, lengths, &rules, rng));
        }
        entered
    }

    pub(crate) fn lengths(&self, family: Family) -> Lengths {
        match family {
            Family::V4 => self.subnets.v4,
            Family::V6 => self.subnets.v6,
        }
    }

    fn refresh<const N: usize>(
        &mut self,
        position: u32,
        own: usize,
        mut record: [u8; N],
        announce: &Announce,
        rules: &Rules,
    ) -> Entered
    where
        Homes: Width<N>,
    {
        let rng = &mut self.rng;
        self.store.change(position, |part| {
            let previous = role_at(part, own);
            let seeds = announce.role == Role::Seeder;
            let kept = part.at(own)[N - 2] & flags::COMPLETED;
            let completes = announce.event == Event::Completed
                && seeds
                && previous != Role::Seeder
                && kept == 0;
            record[N - 2] |= if completes { flags::COMPLETED } else { kept };
            let own = if part.is_seeder(own) == seeds {
                part.replace(own, record);
                Some(own)
            } else {
                part.remove(own, rules);
                part.insert(seeds, record, rules, rng)
            };
            let change = if completes { Change::Completed } else { Change::Refreshed };
            Entered { own, change, previous: Some(previous) }
        })
    }

    fn join<const N: usize>(
        &mut self,
        position: u32,
        record: [u8; N],
        announce: &Announce,
        sharing: u32,
        rules: &Rules,
    ) -> Entered
    where
        Homes: Width<N>,
    {
        let refused = |why| Entered { change: Change::Refused(why), ..Entered::default() };
        let (swarm_cap, address_cap) = (self.settings.caps.swarm, self.address_cap::<N>());
        let peers = self.store.entry(position).peers();
        if swarm_cap > 0 && peers >= swarm_cap as usize {
            return refused(Refusal::SwarmCap);
        }
        if address_cap > 0 && sharing >= address_cap {
            return refused(Refusal::AddressCap);
        }
        let tolerated = match peers {
            CROWDED_PEERS.. => Pressure::None,
            _ => Pressure::Tight,
        };
        // A large swarm always has room, and grows all the same.
        if !self.store.has_room::<N>(position) || peers >= BLOCK_PEERS_MAX {
            let permitted = self.pressure(0) <= tolerated;
            if !permitted || !self.store.make_room::<N>(position, rules.key) {
                return refused(Refusal::Memory);
            }
        }
        let (rng, seeds) = (&mut self.rng, announce.role == Role::Seeder);
        match self.store.change(position, |part| part.insert(seeds, record, rules, rng)) {
            Some(own) => Entered { own: Some(own), change: Change::Joined, previous: None },
            None => refused(Refusal::Memory),
        }
    }

    /// Cuts the room for IPv4 peers to their share of what there is room for in all
    #[inline(never)]
    fn share_out(&self, position: u32, role: Role, peers: &mut PeerSpace<'_>) {
        let of = |family| {
            let roles = self.store.entry(position).roles(family);
            match role {
                Role::Leecher => roles.len(),
                Role::Seeder | Role::PartialSeed => roles.leechers as usize,
            }
        };
        let (v4, v6) = (of(Family::V4), of(Family::V6));
        cut(&mut peers.v4, Family::V4, v4_share(peers.most, v4, v6));
    }

    fn pick<const N: usize>(
        &mut self,
        position: u32,
        announce: &Announce,
        own: Option<usize>,
        out: &mut [u8],
    ) -> usize
    where
        Homes: Width<N>,
    {
        if out.is_empty() {
            return 0;
        }
        let rules = self.rules_for::<N>();
        let lengths = self.lengths(<Homes as Width<N>>::FAMILY);
        let (endpoint, at_random_percent) = (announce.endpoint, self.subnets.at_random_percent);
        let requester = Requester { role: announce.role, scope: self.scope(endpoint) };
        let near = (!lengths.is_empty())
            .then(|| record_of::<N>(endpoint.address(), endpoint.port(), 0, 0))
            .flatten()
            .map(|record| Near { record, lengths, at_random_percent });
        let part = self.store.part::<N>(position);
        select(&part, requester, own, near.as_ref(), &rules, &mut self.rng, out)
    }
}

/// How near the memory ceiling is
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pressure {
    None,
    /// No new torrents, no new peers in crowded swarms
    Tight,
    /// Nothing that needs memory
    Full,
}

/// What became of the announcer in its own family
#[derive(Clone, Copy, Debug)]
struct Entered {
    own: Option<usize>,
    change: Change,
    previous: Option<Role>,
}

impl Default for Entered {
    fn default() -> Self {
        Self { own: None, change: Change::Nothing, previous: None }
    }
}

fn role_at<const N: usize>(part: &Part<'_, N>, position: usize) -> Role {
    if part.is_seeder(position) {
        Role::Seeder
    } else if part.at(position)[N - 2] & flags::PARTIAL_SEED != 0 {
        Role::PartialSeed
    } else {
        Role::Leecher
    }
}
