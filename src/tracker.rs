//! What a tracker answers: parse, prove, policy, swarm, reply.
//!
//! Two functions decide. [`Tracker::admit`] needs no swarm and runs on any shard; [`Tracker::answer`] runs on
//! the one that owns the info hash. Neither does I/O, reads a clock, allocates or logs. The shards, the
//! simulation, the fuzzer and the benches all call these. What comes over HTTP goes the same way:
//! [`Tracker::admit_query`] in place of the first, and [`Tracker::enter`], which is what answering comes down to.

mod purge;

use crate::clock::Now;
use crate::limits::{NUMWANT_LIMIT, peers_fitting};
use crate::outcome::{Outcome, Verdict};
use crate::policy::{
    Answer, Asked, Carrier, Interrupted, Parameters, Paused, Policy, Refusal, Told,
};
use ipnet::IpNet;
use purge::Purging;
use std::net::{IpAddr, SocketAddr};
use tsubame_http::query;
use tsubame_storage::{
    AnnounceEvent, AnnounceOutcome, Endpoint, Family, InfoHash, PeerId, PeerOutput, Prefetch, Role,
    SwarmCounts, SwarmStats, Swarms, TableSettings,
};
use tsubame_udp::connection_id::ConnectionIds;
use tsubame_udp::wire::{
    self, ACTION_ANNOUNCE, ACTION_ANNOUNCE_V6, ANNOUNCE_REPLY_LEN, AnnounceReply, ERROR_REPLY_LEN,
    Request, SCRAPE_LEN_MIN, TransactionId, write_connect, write_error, write_scrape_header,
    write_scrape_row,
};

/// What the operator promises to clients
#[derive(Clone, Debug)]
pub struct Terms {
    /// Seconds between a client's announces
    pub interval_secs: u32,
    /// Seconds that a client waits at least; UDP has no field for it
    pub min_interval_secs: u32,
    /// Peers for a client that does not say how many it wants
    pub numwant_default: u32,
    /// Peers for a client that wants many
    pub numwant_max: u32,
    /// Bytes of an announce reply, at most
    pub reply_len_max: usize,
    /// Networks whose clients may say which address they announce for
    pub trust_client_ip: Vec<IpNet>,
    /// Answer a wrong connection id with a short error instead of silence
    pub explain_wrong_connection_id: bool,
}

impl Terms {
    fn told(&self) -> Told {
        Told { interval_secs: self.interval_secs, min_interval_secs: self.min_interval_secs }
    }
}

/// A shard's tracker: its policy and its swarms
#[derive(Debug)]
pub struct Tracker {
    ids: ConnectionIds,
    terms: Terms,
    policy: Policy,
    swarms: Swarms,
    /// Progress of removing the torrents that the current policy forbids
    purge: Purging,
}

/// A request of a proven source, ready for whoever owns the info hash
#[derive(Clone, Copy, Debug)]
pub enum Admitted {
    /// Enters a swarm; the answer carries the transaction id
    Announce(Announce, TransactionId),
    /// Asks for figures
    Scrape(Scrape),
}

/// A proven announce
#[derive(Clone, Copy, Debug)]
pub struct Announce {
    /// The torrent
    pub info_hash: InfoHash,
    /// What the client calls itself
    pub peer_id: PeerId,
    /// Where it listens
    pub endpoint: Endpoint,
    /// Why it announces
    pub event: AnnounceEvent,
    /// What it is
    pub role: Role,
    /// Bytes downloaded, by its own account
    pub downloaded: u64,
    /// Bytes uploaded, by its own account
    pub uploaded: u64,
    /// Bytes it lacks, by its own account
    pub left: u64,
    /// Peers it gets, at most
    pub numwant: u16,
    /// The family the request came over: over UDP, the reply's peers are of the same (BEP 15)
    pub family: Family,
    /// When the client is asked to come back
    pub told: Told,
    /// Whether it came with action 4, which the reply repeats: the old announce with room for an IPv6 address
    pub is_v6_action: bool,
}

/// A proven scrape
#[derive(Clone, Copy, Debug)]
pub struct Scrape {
    /// The first torrent; the others stand in the datagram
    pub first: InfoHash,
    /// How many there are
    pub rows: u8,
    transaction_id: TransactionId,
}

// It crosses the mesh by value.
const _: () = assert!(size_of::<Admitted>() <= 128);

/// Said to a source that has not proven itself, so shorter than the shortest request it can answer
const WRONG_CONNECTION_ID: &str = "wrong connection id";

const _: () = assert!(ERROR_REPLY_LEN + WRONG_CONNECTION_ID.len() <= SCRAPE_LEN_MIN);

impl Tracker {
    /// A tracker with an empty table, without hooks
    pub fn new(ids: ConnectionIds, terms: Terms, swarms: Swarms) -> Self {
        Self { ids, terms, policy: Policy::default(), swarms, purge: Purging::Done }
    }

    /// Goes by another policy from now on, which takes over the counts of the one until now; that one is left in its
    /// place
    pub fn exchange_policy(&mut self, now: Now, policy: &mut Policy) {
        policy.inherit(&mut self.policy);
        std::mem::swap(&mut self.policy, policy);
        self.swarms.set_subnet_preference(self.policy.subnets());
        if self.policy.serves_as(policy) {
            // Other hooks have changed: the key set of tokens, perhaps.
            return;
        }
        self.purge = Purging::after_exchange(now, self.policy.has_lists());
    }

    /// Uses other settings from now on, without losing a swarm.
    pub fn reconfigure(&mut self, ids: ConnectionIds, terms: Terms, swarms: TableSettings) {
        (self.ids, self.terms) = (ids, terms);
        self.swarms.reconfigure(swarms);
    }

    /// Begins a turn: see [`Policy::begin_turn`]
    pub fn begin_turn(&mut self) {
        self.policy.begin_turn();
    }

    /// Has policy look at a scrape that came over HTTP
    pub fn admit_scrape(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hashes: &[InfoHash],
        parameters: &Parameters<'_>,
        paused: Option<Paused>,
    ) -> Result<(), Interrupted> {
        let source = source.to_canonical();
        self.policy.judge_scrape(now, source, info_hashes, parameters, paused)
    }

    /// The policy it goes by
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The swarms of this shard
    pub fn swarms(&self) -> &Swarms {
        &self.swarms
    }

    /// The swarms of this shard, to be swept
    pub fn swarms_mut(&mut self) -> &mut Swarms {
        &mut self.swarms
    }

    /// Decides all that needs no swarm; a connect and every refusal end here
    ///
    /// Cheapest reject first: a flood's datagrams are to cost the least. Until the connection id proves that
    /// the source is not forged, no reply is longer than the request.
    pub fn admit(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Result<Admitted, Verdict> {
        self.admit_prefetched(now, source, datagram, reply, None)
    }

    /// The same; with a look ahead at the table for the datagram's torrent, which is known there or not
    ///
    /// What is in the table is on no list that forbids it, which spares a look at lists of millions.
    pub fn admit_prefetched(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        reply: &mut [u8],
        prefetch: Option<&Prefetch>,
    ) -> Result<Admitted, Verdict> {
        let unproven = reply.len().min(datagram.len());
        let unproven = &mut reply[..unproven];
        let request = Request::parse(datagram)
            .map_err(|malformed| Verdict::silence(Outcome::from(malformed)))?;
        if source.port() == 0 {
            return Err(Verdict::silence(Outcome::SourcePortZero));
        }
        let address = source.ip().to_canonical();
        if !self.policy.permits_source(address) {
            return Err(Verdict::silence(Outcome::ForbiddenNetwork));
        }
        let (connection_id, transaction_id) = match &request {
            Request::Connect(connect) => {
                let id = self.ids.issue(now.unix_secs, address);
                let reply_len = write_connect(unproven, connect.transaction_id(), id);
                return Err(Verdict { outcome: Outcome::Connected, reply_len });
            }
            Request::Announce(announce) => (announce.connection_id(), announce.transaction_id()),
            Request::Scrape(scrape) => (scrape.connection_id(), scrape.transaction_id()),
        };
        if !self.ids.accepts(now.unix_secs, address, connection_id) {
            let reply_len = match self.terms.explain_wrong_connection_id {
                true => write_error(unproven, transaction_id, WRONG_CONNECTION_ID),
                false => 0,
            };
            return Err(Verdict { outcome: Outcome::WrongConnectionId, reply_len });
        }
        match request {
            Request::Announce(announce) if announce.is_v6() && address.is_ipv4() => {
                Err(Verdict::silence(Outcome::UnknownAction))
            }
            Request::Announce(announce) => match self.judge(now, address, &announce, prefetch) {
                Ok(told) => {
                    let admitted = self.admit_announce(address, &announce, told);
                    Ok(Admitted::Announce(admitted, transaction_id))
                }
                Err(refusal) => Err(refuse(refusal, transaction_id, Some(announce.is_v6()), reply)),
            },
            Request::Scrape(scrape) => {
                if let Err(refusal) = self.policy.judge_udp_scrape(now, address) {
                    return Err(refuse(refusal, transaction_id, None, reply));
                }
                scrape_of(&scrape).map(Admitted::Scrape)
            }
            Request::Connect(_) => Err(Verdict::silence(Outcome::UnknownAction)),
        }
    }

    /// A look at the table for the torrent of an announce, where there are lists: see [`Self::admit_prefetched`]
    ///
    /// Before it is known whether its source is forged: a flood of forged announces costs a look each.
    pub fn prefetch_listed(&self, datagram: &[u8]) -> Option<Prefetch> {
        if !self.policy.has_lists()
            || ![ACTION_ANNOUNCE, ACTION_ANNOUNCE_V6]
                .map(u32::to_be_bytes)
                .contains(datagram.get(wire::header::ACTION)?.first_chunk()?)
        {
            return None;
        }
        let info_hash = datagram.get(wire::announce::INFO_HASH)?.first_chunk()?;
        Some(self.swarms.prefetch_index(&InfoHash(*info_hash)))
    }

    /// The first look at the table for a batch: see [`Swarms::prefetch_index`]
    pub fn prefetch_index(&self, admitted: &Admitted) -> Prefetch {
        self.swarms.prefetch_index(&admitted.info_hash())
    }

    /// The second look at the table for a batch: see [`Swarms::prefetch_entry`]
    pub fn prefetch_entry(&self, prefetch: &Prefetch) -> u8 {
        self.swarms.prefetch_entry(prefetch)
    }

    /// Answers an admitted request from the swarms, all of which this tracker must own
    ///
    /// A scrape of several info hashes reads them from its datagram again; an announce does not need it.
    pub fn answer(
        &mut self,
        now: Now,
        prefetch: Prefetch,
        admitted: &Admitted,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Verdict {
        match admitted {
            Admitted::Announce(announce, transaction_id) => {
                self.answer_announce(now, prefetch, announce, *transaction_id, reply)
            }
            Admitted::Scrape(scrape) => {
                let mut len = scrape.begin_reply(reply);
                for (row, info_hash) in scrape.info_hashes(datagram).enumerate() {
                    let counts = self.scrape(&info_hash);
                    len += scrape.write_row(reply, row, counts);
                }
                Verdict { outcome: Outcome::Scraped, reply_len: len }
            }
        }
    }

    /// Decides and answers one datagram, as the owner of every info hash
    pub fn handle(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Verdict {
        let known = self.prefetch_listed(datagram);
        match self.admit_prefetched(now, source, datagram, reply, known.as_ref()) {
            Ok(admitted) => {
                let prefetch = known.unwrap_or_else(|| self.prefetch_index(&admitted));
                self.answer(now, prefetch, &admitted, datagram, reply)
            }
            Err(verdict) => verdict,
        }
    }

    /// The figures of one swarm, for a scrape of which this tracker owns a part
    pub fn scrape(&self, info_hash: &InfoHash) -> SwarmCounts {
        if !self.policy.serves(info_hash) {
            return SwarmCounts::default();
        }
        self.swarms.scrape(&self.swarms.prefetch_index(info_hash), info_hash)
    }

    /// The same with what only HTTP reports
    pub fn swarm_stats(&self, info_hash: &InfoHash) -> SwarmStats {
        if !self.policy.serves(info_hash) {
            return SwarmStats::default();
        }
        self.swarms.swarm_stats(&self.swarms.prefetch_index(info_hash), info_hash)
    }

    /// Answers an announce from its swarm
    pub fn answer_announce(
        &mut self,
        now: Now,
        prefetch: Prefetch,
        announce: &Announce,
        transaction_id: TransactionId,
        reply: &mut [u8],
    ) -> Verdict {
        let len = reply.len().min(self.terms.reply_len_max);
        let Some(mut reply) = AnnounceReply::begin(&mut reply[..len]) else {
            return Verdict::silence(Outcome::Unreadable);
        };
        reply = reply.with_v6_action(announce.is_v6_action);
        let room = reply.peers().len() / announce.family.compact_len();
        let peers_len = room.min(usize::from(announce.numwant)) * announce.family.compact_len();
        let peers = &mut reply.peers()[..peers_len];
        let output = PeerOutput::for_family(announce.family, peers);
        let AnnounceOutcome { counts, v4_len, v6_len, change, .. } =
            self.enter(now, prefetch, announce, output);
        let interval = announce.told.interval_secs;
        let reply_len = reply.finish(transaction_id, interval, counts, v4_len + v6_len);
        Verdict { outcome: Outcome::from(change), reply_len }
    }

    /// Enters an announce into its swarm and picks peers into the room there is
    pub fn enter(
        &mut self,
        now: Now,
        prefetch: Prefetch,
        announce: &Announce,
        output: PeerOutput<'_>,
    ) -> AnnounceOutcome {
        let entered = tsubame_storage::SwarmAnnounce {
            info_hash: announce.info_hash,
            endpoint: announce.endpoint,
            role: announce.role,
            event: announce.event,
        };
        self.swarms.announce(now.monotonic, prefetch, &entered, output)
    }

    /// What the operator promises to clients
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Has policy look at an announce
    #[inline(always)]
    fn judge(
        &mut self,
        now: Now,
        source: IpAddr,
        announce: &wire::Announce<'_>,
        prefetch: Option<&Prefetch>,
    ) -> Result<Told, Refusal> {
        if !self.policy.has_hooks() {
            return Ok(self.terms.told());
        }
        let info_hash = announce.info_hash();
        let is_served = matches!(self.purge, Purging::Done)
            && prefetch.is_some_and(|prefetch| self.swarms.contains(prefetch, &info_hash));
        if is_served && self.policy.has_lists_alone() {
            return Ok(self.terms.told());
        }
        let peer_id = announce.peer_id();
        let (port, event, left) = (announce.port(), announce.event(), announce.left());
        let (info_hash, peer_id) = (&info_hash, &peer_id);
        let asked = Asked { now, source, info_hash, peer_id, port, event, left, is_served };
        let carrier = Carrier::Url(announce.url_data());
        self.policy.judge(&asked, carrier, self.terms.told(), None).map_err(Interrupted::refusal)
    }

    #[inline(always)] // Only called for announces over UDP: a call and a copy are 4 % of their instructions.
    fn admit_announce(
        &self,
        source: IpAddr,
        announce: &wire::Announce<'_>,
        told: Told,
    ) -> Announce {
        let family = Family::of(source);
        // An IPv6 client has no room for its address in an announce of BEP 15: what stands there is not one.
        let claimed = || announce.ip().filter(|ip| Family::of(*ip) == family);
        let (event, left) = (announce.event(), announce.left());
        let fitting = peers_fitting(family, self.terms.reply_len_max);
        Announce {
            info_hash: announce.info_hash(),
            peer_id: announce.peer_id(),
            endpoint: self.endpoint(source, claimed, announce.port()),
            event,
            role: role_of(event, left),
            downloaded: announce.downloaded(),
            uploaded: announce.uploaded(),
            left,
            numwant: self.numwant(announce.num_want()).min(fitting as u16),
            family,
            told,
            is_v6_action: announce.is_v6(),
        }
    }

    /// Admits an announce that came over HTTP, whose connection has proven the source
    ///
    /// Where a token's signature must be checked and may not be yet, policy pauses; it goes on where it `paused` once
    /// the check is permitted.
    pub fn admit_query(
        &mut self,
        now: Now,
        source: IpAddr,
        query: &query::Announce,
        parameters: Parameters<'_>,
        paused: Option<Paused>,
    ) -> Result<Announce, Interrupted> {
        let source = source.to_canonical();
        let query::Announce { info_hash, port, event, left, .. } = query;
        let peer_id = &match query.peer_id {
            Some(peer_id) => peer_id,
            None if self.policy.needs_peer_id() => {
                let answer = Answer::Error("peer_id is missing");
                return Err(Refusal { outcome: Outcome::BadQuery, answer }.into());
            }
            None => PeerId([0; 20]),
        };
        let (port, event, left) = (*port, *event, *left);
        let is_served = false;
        let asked = Asked { now, source, info_hash, peer_id, port, event, left, is_served };
        let carrier = Carrier::Http(parameters);
        let told = self.policy.judge(&asked, carrier, self.terms.told(), paused)?;
        Ok(Announce {
            info_hash: query.info_hash,
            peer_id: *peer_id,
            endpoint: self.endpoint(source, || query.claimed(source), query.port),
            event: query.event,
            role: role_of(query.event, query.left),
            downloaded: query.downloaded,
            uploaded: query.uploaded,
            left: query.left,
            numwant: self.numwant(query.numwant),
            family: Family::of(source),
            told,
            is_v6_action: false,
        })
    }

    /// Where a client listens: at the address it claims, if its source is trusted with that
    #[inline(always)]
    fn endpoint(
        &self,
        source: IpAddr,
        claimed: impl FnOnce() -> Option<IpAddr>,
        port: u16,
    ) -> Endpoint {
        let is_trusted = self.terms.trust_client_ip.iter().any(|net| net.contains(&source));
        Endpoint::new(if is_trusted { claimed() } else { None }.unwrap_or(source), port)
    }

    fn numwant(&self, wanted: Option<u32>) -> u16 {
        let wanted = wanted.unwrap_or(self.terms.numwant_default);
        // The config permits no more than fits 16 bits.
        wanted.min(self.terms.numwant_max) as u16
    }
}

/// Answers a request that policy refuses: of an announce, `is_v6_action` tells which action the reply has; a scrape has
/// none
#[cold]
fn refuse(
    Refusal { outcome, answer }: Refusal,
    transaction_id: TransactionId,
    is_v6_action: Option<bool>,
    reply: &mut [u8],
) -> Verdict {
    let reply_len = match (answer, is_v6_action) {
        (Answer::Error(text) | Answer::Gone(text), _) => write_error(reply, transaction_id, text),
        (Answer::Empty(secs), Some(is_v6_action)) => AnnounceReply::begin(reply)
            .map(|reply| reply.with_v6_action(is_v6_action))
            .map_or(0, |reply| reply.finish(transaction_id, secs, SwarmCounts::default(), 0)),
        // To tell a client that asks for figures that there are none would be false.
        (Answer::Empty(_), None) | (Answer::Silence(_), _) => 0,
    };
    Verdict { outcome, reply_len }
}

fn role_of(event: AnnounceEvent, left: u64) -> Role {
    match (event, left) {
        (AnnounceEvent::Paused, 1..) => Role::PartialSeed,
        (_, 0) => Role::Seeder,
        _ => Role::Leecher,
    }
}

const _: () = assert!(ANNOUNCE_REPLY_LEN < crate::limits::REPLY_LEN_MIN);
const _: () = assert!(NUMWANT_LIMIT <= u16::MAX as u32);

impl Admitted {
    /// The info hash that decides who answers
    pub fn info_hash(&self) -> InfoHash {
        match self {
            Self::Announce(announce, _) => announce.info_hash,
            Self::Scrape(scrape) => scrape.first,
        }
    }
}

impl Scrape {
    /// The info hashes of this scrape, from the datagram it came in
    pub fn info_hashes<'a>(
        &self,
        datagram: &'a [u8],
    ) -> impl ExactSizeIterator<Item = InfoHash> + use<'a> {
        let hashes = datagram.get(wire::scrape::INFO_HASHES..).unwrap_or_default();
        let (hashes, _) = hashes.as_chunks::<20>();
        let rows = hashes.len().min(usize::from(self.rows));
        hashes[..rows].iter().copied().map(InfoHash)
    }

    /// Writes what stands before the rows; returns its length
    pub fn begin_reply(&self, reply: &mut [u8]) -> usize {
        write_scrape_header(reply, self.transaction_id)
    }

    /// Writes a row; returns its length
    pub fn write_row(&self, reply: &mut [u8], row: usize, counts: SwarmCounts) -> usize {
        if write_scrape_row(reply, row, counts) { wire::SCRAPE_ROW_LEN } else { 0 }
    }
}

fn scrape_of(scrape: &wire::Scrape<'_>) -> Result<Scrape, Verdict> {
    let mut info_hashes = scrape.info_hashes();
    // At most 74 rows.
    let rows = info_hashes.len() as u8;
    let first = info_hashes.next().ok_or(Verdict::silence(Outcome::TooShort))?;
    Ok(Scrape { first, rows, transaction_id: scrape.transaction_id() })
}
