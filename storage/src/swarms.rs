//! The swarm table of one shard: announces and scrapes.

use crate::announced::{Announced, Change, Refusal};
use crate::entry::Entry;
use crate::eviction::Eviction;
use crate::index::{POSITIONS_MAX, PositionIndex};
use crate::part::{EndpointKey, Part, Roles, Rules, V4, V6, flags, record_of, scope_flags};
use crate::room::{BLOCK_PEERS_MAX, Homes, Store, Width};
use crate::select::{Near, PER_ADDRESS_MAX, Requester, Wanted, select};
use crate::settings::{Settings, Totals};
use crate::sources::{Source, SourceCounts};
use crate::space::{PeerSpace, cut, v4_share};
use crate::subnets::{Lengths, Subnets};
use crate::sweep::Hand;
use crate::time::{Seconds, Ticks};
use crate::types::{Census, Counts, Endpoint, Event, Family, InfoHash, Role, Scope};
use siphasher::sip::SipHasher13;

/// Peers of one address in a swarm, where no fewer are permitted: their index slots lie in one run
const ADDRESS_RUN_MAX: u32 = 256;

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
    pub(crate) eviction: Eviction,
    totals: Totals,
    pub(crate) rng: fastrand::Rng,
}

/// Returns the memory that a table has for its counts by source from the start, beside what it accounts for.
pub const fn source_counts_bytes() -> usize {
    SourceCounts::bytes()
}

impl Swarms {
    /// An empty table
    pub fn new(settings: Settings) -> Self {
        let hasher = SipHasher13::new_with_keys(settings.hash_key.0, settings.hash_key.1);
        let ticks = Ticks::of_lifetime(settings.peer_lifetime_secs);
        Self {
            store: Store::new(hasher),
            index: PositionIndex::new(),
            rules: Rules { key: EndpointKey { hasher, capped: false }, ticks, tick: 0 },
            idle_ticks: Ticks::of_lifetime(settings.keep_completed_secs),
            subnets: Subnets::default(),
            now: Seconds(0),
            hand: Hand::default(),
            eviction: Eviction::default(),
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

    /// Uses other settings from now on; the keys and the seed stay as they were
    ///
    /// Lifetimes are cut at [`crate::longest_lifetime_secs`] of those the table was made with. Where a cap on peers per
    /// address is new, swarms of more than 64 peers of a family that are there already keep theirs uncapped; where
    /// there is none any more, they have one of 256.
    pub fn reconfigure(&mut self, settings: Settings) {
        let Settings { hash_key, seed, .. } = self.settings;
        let longest = self.rules.ticks.longest_lifetime_secs();
        let settings =
            Settings { peer_lifetime_secs: settings.peer_lifetime_secs.min(longest), ..settings };
        self.rules.ticks = self.rules.ticks.with_lifetime(settings.peer_lifetime_secs);
        self.idle_ticks = self.idle_ticks.with_lifetime(settings.keep_completed_secs);
        self.settings = Settings { hash_key, seed, ..settings };
    }

    /// What the table holds now
    pub fn totals(&self) -> Totals {
        Totals {
            torrents: self.store.entries.len(),
            bytes: self.bytes(),
            pressure_per_1_000: self.pressure_per_1_000(),
            evicted: self.eviction.counts(),
            top_sources: self.eviction.top(),
            ..self.totals
        }
    }

    /// Peers of a family in all swarms
    pub(crate) fn peers_of(&self, family: Family) -> u64 {
        self.totals.seeders[family as usize] + self.totals.leechers[family as usize]
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
        let position = match known {
            None if joins => match self.add_torrent(ahead.hash, announce) {
                Ok(position) => position,
                Err(refusal) => {
                    let mut counts = Counts::default();
                    counts.include(announce.role);
                    let change = Change::Refused(refusal);
                    return Announced { counts, change, ..Announced::of_nobody() };
                }
            },
            None => return Announced::of_nobody(),
            Some(position) => position,
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
        let mut counts = self.counts_at(position);
        if let Change::Refused(_) = entered.change {
            // As with anybody else, the announcer is counted.
            counts.include(announce.role);
        }
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

    /// Counts a change in the number of a torrent's peers of a family
    pub(crate) fn count_change(&mut self, before: Roles, position: u32, family: Family) {
        let entry = self.store.entry(position);
        let after = entry.roles(family);
        if before == after {
            return;
        }
        match (entry.peers(), entry.peers() + before.len() - after.len()) {
            (0, 1..) => self.totals.empty_torrents += 1,
            (1.., 0) => self.totals.empty_torrents -= 1,
            _ => {}
        }
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
        self.totals.empty_torrents -= 1;
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

    pub(crate) fn bytes(&self) -> usize {
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

    /// Adds a torrent without peers, for an announcer that is about to join
    fn add_torrent(&mut self, hash: u64, announce: &Announce) -> Result<u32, Refusal> {
        let endpoint = announce.endpoint;
        let exceeds = match endpoint.family() {
            Family::V4 => {
                record_of::<V4>(endpoint.address(), 0, 0, 0).map(|it| self.is_above_limit(&it))
            }
            Family::V6 => {
                record_of::<V6>(endpoint.address(), 0, 0, 0).map(|it| self.is_above_limit(&it))
            }
        };
        if exceeds == Some(true) {
            return Err(Refusal::Source);
        }
        let position = self.store.entries.len() as u32;
        if !self.has_room_for_torrent() || position >= POSITIONS_MAX - 1 {
            return Err(Refusal::NewTorrent);
        }
        self.store.entries.push(Entry::new(&announce.info_hash));
        let (store, hasher) = (&self.store, self.rules.key.hasher);
        let hash_of = |position: u32| hasher.hash(&store.entry(position).info_hash().0);
        if self.index.insert(hash, position, hash_of) {
            self.totals.empty_torrents += 1;
            return Ok(position);
        }
        self.store.entries.pop();
        Err(Refusal::NewTorrent)
    }

    /// Whether the source of a record holds as many peers as it may at the moment
    fn is_above_limit<const N: usize>(&self, record: &[u8; N]) -> bool {
        let limit = self.eviction.limit();
        limit < u32::MAX && self.store.sources.count(Source::of_record(record)) >= limit
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
            && !self.is_short()
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
        let part = self.store.part::<N>(position);
        let (has_room, counts_addresses) = (part.has_room(), part.counts_addresses());
        let shares_address = match counts_addresses {
            true => sharing >= PER_ADDRESS_MAX,
            false => part.seems_to_share_address(&record, &mut self.rng),
        };
        let address_cap = match address_cap {
            0 if counts_addresses && peers > BLOCK_PEERS_MAX => ADDRESS_RUN_MAX,
            cap => cap,
        };
        if address_cap > 0 && counts_addresses && sharing >= address_cap {
            return refused(Refusal::AddressCap);
        }
        if self.is_above_limit(&record) {
            return refused(Refusal::Source);
        }
        // A large swarm always has room, and grows all the same.
        if (!has_room || peers >= BLOCK_PEERS_MAX)
            && (self.is_full() || !self.store.make_room::<N>(position, rules.key))
        {
            return refused(Refusal::Memory);
        }
        if shares_address && !self.store.entry(position).is_inline() {
            self.store.entry_mut(position).set_shares_addresses(true);
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
        let limited = self.store.entry(position).shares_addresses();
        let part = self.store.part::<N>(position);
        let wanted = Wanted { requester, own, near: near.as_ref(), limited };
        select(&part, &wanted, &rules, &mut self.rng, out)
    }
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
