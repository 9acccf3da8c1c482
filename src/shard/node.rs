//! A shard without its datapath: its tracker, its end of the mesh, and the requests that wait for other shards.
//!
//! The datapath and HTTP both use it. HTTP connections are tasks of the shard's thread; they borrow the node for one
//! call and never across an await.

use super::admin::AdminJobs;
use super::gather::GatherPolicy;
use super::mesh::MeshEndpoint;
use super::message::{Message, PageReply, PageRequest, ScrapeRows};
use super::page_scans::PageScans;
use super::pending_replies::PendingReplies;
use super::publication::PublicationSender;
use super::scrape_requests::ScrapeRequests;
use super::token_queue::TokenQueue;
use super::transfer::Transfers;
use super::update::{ShardSettings, ShardUpdate};
use crate::clock::{Clock, Now};
use crate::http::settings::HttpSettings;
use crate::policy::{Parameters, PausedRequest, PolicyStop};
use crate::stats::client_samples::ClientSamples;
use crate::stats::http_stats::HttpStats;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, ShardStats};
use crate::stats::shared_stats::SharedStats;
use crate::tracker::peer_list::PeerList;
use crate::tracker::{AdmittedAnnounce, Tracker};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot::Receiver;
use tsubame_http::query::AnnounceQuery;
use tsubame_storage::{AnnounceEvent, Family, InfoHash, PeerId, Prefetch, Seconds, SwarmStats};
use tsubame_udp::steering::SteeringKeys;

/// Reply to a request that may need other shards.
#[derive(Debug)]
pub enum NodeReply<T> {
    /// The reply.
    Ready(T),
    /// Other shards will reply. If the caller stops waiting, it must pass the request id to [`Node::cancel`].
    Pending(u32, Receiver<T>),
    /// The queue to another shard is full.
    QueueFull,
}

/// What a node is made of.
#[derive(Debug)]
pub struct NodeResources {
    /// Number of the shard: also the number of its sockets in their SO_REUSEPORT groups.
    pub number: u16,
    /// Number of shards.
    pub shards: u16,
    /// Keys of the function that decides which shard owns an info hash.
    pub keys: SteeringKeys,
    /// The tracker.
    pub tracker: Tracker,
    /// End of the mesh.
    pub endpoint: MeshEndpoint,
    /// Queue to the control plane for updates that were applied: it frees the policies that they replaced, as lists may
    /// be large.
    pub retired: UnboundedSender<Box<ShardUpdate>>,
    /// Where the statistics are published.
    pub shared_stats: Arc<SharedStats>,
    /// Receives the client programs of sampled announces.
    pub client_samples: ClientSamples,
    /// The clock.
    pub clock: Clock,
    /// How long datagrams are gathered; zero disables it, and with `None` trials choose the time.
    pub gather: Option<Duration>,
    /// Passes changes of swarms to the thread of the cluster, if there is one.
    pub publication: Option<PublicationSender>,
}

/// A shard without its datapath.
#[derive(Debug)]
pub struct Node {
    pub(super) number: u16,
    pub(super) shards: u16,
    keys: SteeringKeys,
    pub(super) tracker: Tracker,
    pub(super) endpoint: MeshEndpoint,
    pending_replies: PendingReplies,
    page_scans: PageScans,
    admin_jobs: AdminJobs,
    transfers: Transfers,
    publication: Option<PublicationSender>,
    pub(super) scrape_requests: ScrapeRequests,
    /// Requests over HTTP that wait until a token may be checked.
    token_queue: TokenQueue,
    /// New settings of HTTP, until the HTTP service takes them.
    new_http_settings: Option<Arc<HttpSettings>>,
    retired: UnboundedSender<Box<ShardUpdate>>,
    pub(super) stats: ShardStats,
    pub(super) shared_stats: Arc<SharedStats>,
    pub(super) client_samples: ClientSamples,
    pub(super) clock: Clock,
    pub(super) gather: GatherPolicy,
    /// Gets a message when all received datagrams have been answered. If it is set, the shard receives no more.
    pub(super) drained: Option<UnboundedSender<()>>,
    /// Whether HTTP is to accept no more connections, and to close each after its next reply.
    pub(crate) ends_connections: bool,
    pub(super) is_stopping: bool,
    /// Whether another process serves the listening sockets of HTTP after this shard has stopped.
    pub(super) keeps_listeners: bool,
}

impl Node {
    /// Creates a node.
    pub fn new(resources: NodeResources) -> Self {
        let NodeResources {
            number,
            shards,
            keys,
            tracker,
            endpoint,
            retired,
            shared_stats,
            client_samples,
            clock,
            gather,
            publication,
        } = resources;
        Self {
            number,
            shards,
            keys,
            tracker,
            endpoint,
            pending_replies: PendingReplies::default(),
            page_scans: PageScans::default(),
            admin_jobs: AdminJobs::default(),
            transfers: Transfers::new(number),
            publication,
            scrape_requests: ScrapeRequests::new(usize::from(shards)),
            token_queue: TokenQueue::default(),
            new_http_settings: None,
            retired,
            stats: ShardStats::default(),
            shared_stats,
            client_samples,
            clock,
            gather: GatherPolicy::new(gather),
            drained: None,
            ends_connections: false,
            is_stopping: false,
            keeps_listeners: false,
        }
    }

    /// Returns the shard that owns a torrent.
    pub(super) fn owner(&self, info_hash: &InfoHash) -> u16 {
        self.keys.owner(info_hash, self.shards)
    }

    pub(super) fn owns(&self, info_hash: &InfoHash) -> bool {
        self.owner(info_hash) == self.number
    }

    /// Starts a turn: each turn has a budget of token checks, and lets one waiting request continue.
    pub(super) fn begin_turn(&mut self) {
        self.tracker.begin_turn();
        self.token_queue.permit_one();
    }

    /// Does a bounded step of expiry, eviction and purge. Returns whether the shard must not sleep: more of this is
    /// due, it is stopping, or requests wait for token checks.
    pub(super) fn maintain(&mut self, now: Now) -> bool {
        let is_sweeping = self.tracker.swarms_mut().sweep(now.monotonic);
        let is_purging = self.tracker.purge(now);
        is_sweeping || is_purging || self.is_stopping || !self.token_queue.is_empty()
    }

    /// Publishes the statistics.
    pub(super) fn publish(&mut self, now: Now) {
        self.stats.table = self.tracker.swarms().stats();
        (self.stats.messages_sent, self.stats.messages_dropped) = self.endpoint.message_counts();
        self.shared_stats.publish(&self.stats, now.monotonic);
    }

    /// Does a bounded step each for a page of the list of all torrents, for a request of the control plane, and for an
    /// export or import; returns whether there was anything to do.
    pub(super) fn scan(&mut self, now: Now) -> bool {
        let Self { page_scans, admin_jobs, transfers, tracker, endpoint, pending_replies, .. } =
            self;
        let (has_pages, has_jobs) = (!page_scans.is_empty(), !admin_jobs.is_empty());
        let has_transfers = !transfers.is_empty();
        if has_pages {
            page_scans.run(tracker, endpoint, pending_replies);
        }
        if has_jobs {
            admin_jobs.run(tracker);
        }
        if has_transfers {
            transfers.run(tracker, now.monotonic);
        }
        has_pages || has_jobs || has_transfers
    }

    /// Sends the last changes of an export, when the last request was answered.
    pub(super) fn finish_export(&mut self) {
        self.transfers.finish(&mut self.tracker);
    }

    /// Passes the changes of the swarms to the thread of the cluster.
    pub(super) fn send_published(&mut self) {
        if let Some(publication) = &mut self.publication {
            publication.send(&mut self.tracker);
        }
    }

    /// Handles a message that does not need the datapath; `prefetch` is that of its announce.
    pub(super) fn handle(
        &mut self,
        now: Now,
        from: usize,
        message: Message,
        prefetch: Option<Prefetch>,
    ) {
        match message {
            Message::HttpAnnounce(announce, mut list) => {
                self.tracker.fill_peer_list(now, &announce, prefetch, &mut list);
                self.endpoint.send(from, Message::HttpAnnounceReply(list));
            }
            Message::HttpAnnounceReply(list) => self.pending_replies.complete_announce(list),
            Message::PageRequest(request) => self.page_scans.add(from, request),
            Message::PageReply(page) => self.pending_replies.complete_page(page),
            Message::ScrapeRequest(rows) => {
                let stats = |hash| self.tracker.swarm_stats(&hash);
                let reply = rows.map(SwarmStats::default(), stats);
                // If the queue is full, the scrape stays incomplete and ends without a reply.
                self.endpoint.send(from, Message::ScrapeReply(reply));
            }
            Message::ScrapeReply(rows) => self.add_rows(&rows),
            Message::Update(update) => self.update(now, update),
            Message::Admin(request) => self.admin_jobs.add(*request, &mut self.tracker),
            Message::Transfer(request) => self.transfers.add(*request),
            Message::Drain(drained) => self.drained = Some(drained),
            Message::EndConnections => self.ends_connections = true,
            Message::Stop { keeps_listeners } => {
                (self.is_stopping, self.keeps_listeners) = (true, keeps_listeners);
            }
            // The datapath handles these.
            Message::Announce(..) => {}
        }
    }

    /// Adds rows of other shards to a scrape over HTTP.
    pub(super) fn add_rows(&mut self, rows: &ScrapeRows<SwarmStats>) {
        self.pending_replies.add_rows(rows);
    }

    fn update(&mut self, now: Now, mut update: Box<ShardUpdate>) {
        if let Some(policy) = &mut update.policy {
            self.tracker.exchange_policy(now, policy);
        }
        if let Some(settings) = update.settings.take() {
            let ShardSettings { ids, announce, table, gather, http } = settings;
            self.gather.set_fixed(gather);
            self.tracker.reconfigure(ids, announce, table);
            self.new_http_settings = Some(http);
        }
        if update.evict_empty_torrents {
            self.tracker.swarms_mut().evict_empty_torrents();
        }
        // Fails only when the process stops.
        let _ = self.retired.send(update);
    }
}

/// Functions that HTTP connections call.
impl Node {
    /// Decides whether an announce is admitted: see [`Tracker::admit_announce`].
    pub fn admit_announce(
        &mut self,
        source: IpAddr,
        query: &AnnounceQuery,
        parameters: Parameters<'_>,
        paused: Option<PausedRequest>,
    ) -> Result<AdmittedAnnounce, PolicyStop> {
        self.tracker.admit_announce(self.clock.now(), source, query, parameters, paused)
    }

    /// Decides whether a scrape is admitted: see [`Tracker::admit_scrape`].
    pub fn admit_scrape(
        &mut self,
        source: IpAddr,
        info_hashes: &[InfoHash],
        parameters: &Parameters<'_>,
        paused: Option<PausedRequest>,
    ) -> Result<(), PolicyStop> {
        let now = self.clock.now();
        self.tracker.admit_scrape(now, source, info_hashes, parameters, paused)
    }

    /// Queues a request until the signature of its token may be checked; returns `None` if the queue is full.
    pub fn queue_for_token_check(&mut self, source: IpAddr) -> Option<Receiver<()>> {
        let permit = self.token_queue.add(source);
        // The shard may be asleep.
        self.endpoint.notify_self();
        permit
    }

    /// Returns whether requests from an address are answered at all; counts one that is not.
    pub fn permits_source(&mut self, source: IpAddr) -> bool {
        let is_permitted = self.tracker.policy().permits_source(source);
        if !is_permitted {
            self.count_request(Family::of(source), Outcome::ForbiddenNetwork);
        }
        is_permitted
    }

    /// Applies an announce to its swarm, which another shard may own, and fills a list with peers.
    pub fn announce(
        &mut self,
        announce: &AdmittedAnnounce,
        mut list: Box<PeerList>,
    ) -> NodeReply<Box<PeerList>> {
        let owner = self.owner(&announce.info_hash);
        if owner == self.number {
            self.tracker.fill_peer_list(self.clock.now(), announce, None, &mut list);
            // The shard may sleep before its next step.
            self.send_published();
            return NodeReply::Ready(list);
        }
        let (request_id, reply) = self.pending_replies.add_announce();
        list.request_id = request_id;
        if !self.endpoint.send(usize::from(owner), Message::HttpAnnounce(*announce, list)) {
            self.pending_replies.cancel(request_id);
            return NodeReply::QueueFull;
        }
        self.endpoint.notify();
        NodeReply::Pending(request_id, reply)
    }

    /// Returns the counts of some torrents, which other shards may own.
    pub fn scrape(&mut self, info_hashes: &[InfoHash]) -> NodeReply<Vec<SwarmStats>> {
        let mut rows = vec![SwarmStats::default(); info_hashes.len()];
        let mut elsewhere = Vec::new();
        for (number, (info_hash, row)) in info_hashes.iter().zip(&mut rows).enumerate() {
            match self.owner(info_hash) {
                owner if owner == self.number => *row = self.tracker.swarm_stats(info_hash),
                // A scrape has fewer rows than a byte can number.
                owner => elsewhere.push((usize::from(owner), number as u8, *info_hash)),
            }
        }
        if elsewhere.is_empty() {
            return NodeReply::Ready(rows);
        }
        let (request_id, reply) = self.pending_replies.add_scrape(rows, elsewhere.len());
        self.scrape_requests.begin(request_id);
        let mut all_sent = true;
        for (owner, number, info_hash) in elsewhere {
            all_sent &= self.scrape_requests.add(&mut self.endpoint, owner, number, info_hash);
        }
        all_sent &= self.scrape_requests.flush(&mut self.endpoint);
        if !all_sent {
            // Replies to the rows that were sent will be dropped.
            self.pending_replies.cancel(request_id);
            return NodeReply::QueueFull;
        }
        self.endpoint.notify();
        NodeReply::Pending(request_id, reply)
    }

    /// Requests a page of torrents from every shard; returns `None` while a queue is full.
    pub fn request_pages(
        &mut self,
        after: Option<InfoHash>,
    ) -> Option<Vec<(u32, Receiver<Box<PageReply>>)>> {
        let own = usize::from(self.number);
        let nodes = 0..usize::from(self.shards);
        if !nodes.clone().all(|node| node == own || self.endpoint.can_send(node)) {
            return None;
        }
        let pending = nodes.map(|node| {
            let (request_id, reply) = self.pending_replies.add_page();
            let request = PageRequest { request_id, after };
            if node == own {
                self.page_scans.add(node, request);
            } else {
                self.endpoint.send(node, Message::PageRequest(request));
            }
            (request_id, reply)
        });
        let pending = pending.collect();
        self.endpoint.notify();
        // This shard may be asleep and has a page to scan for.
        self.endpoint.notify_self();
        Some(pending)
    }

    /// Drops the reply to a request that does not wait any more.
    pub fn cancel(&mut self, request_id: u32) {
        self.pending_replies.cancel(request_id);
    }

    /// Counts a request over HTTP.
    pub fn count_request(&mut self, family: Family, outcome: Outcome) {
        self.stats.count(Protocol::Http, family, outcome);
    }

    /// Counts an announce over HTTP that was answered with a number of peers.
    pub fn count_announce(&mut self, event: AnnounceEvent, peer_id: Option<&PeerId>, peers: usize) {
        peer_id.into_iter().for_each(|peer_id| self.client_samples.add(peer_id));
        self.stats.count_announce(Protocol::Http, event, peers);
    }

    /// Returns the counters of HTTP connections.
    pub fn http_stats(&mut self) -> &mut HttpStats {
        &mut self.stats.http
    }

    /// Returns the monotonic time.
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Returns the monotonic time in seconds.
    pub fn now(&self) -> Seconds {
        self.clock.now().monotonic
    }

    /// Returns new settings of HTTP, once.
    pub fn take_http_settings(&mut self) -> Option<Arc<HttpSettings>> {
        self.new_http_settings.take()
    }

    /// Returns the minimum number of seconds between two announces of a client.
    pub fn min_interval_secs(&self) -> u32 {
        self.tracker.settings().intervals.min_interval_secs
    }
}
