//! State of a run that does not depend on the protocol: the population, the unanswered requests and the statistics.

use crate::check::check;
use crate::in_flight::{InFlight, RequestKind, RequestLookup, SentRequest};
use crate::options::RunOptions;
use crate::population::{AnnounceParameters, Population, info_hash};
use crate::protocol::{LoadAnnounce, TrackerReply};
use crate::step_stats::StepStats;
use fastrand::Rng;
use std::time::Instant;

/// State of a run.
pub(crate) struct Session<'a> {
    /// Options of the run.
    pub(crate) run: &'a RunOptions,
    start: Instant,
    pub(crate) population: Population,
    pub(crate) in_flight: InFlight,
    pub(crate) rng: Rng,
    pub(crate) step_stats: StepStats,
    /// Lost requests, each with whether its transport must be notified.
    lost_requests: Vec<(SentRequest, bool)>,
}

impl<'a> Session<'a> {
    /// Creates the session of a run, and starts its clock.
    #[expect(clippy::disallowed_methods, reason = "the generator's clock")]
    pub(crate) fn new(run: &'a RunOptions, population: Population) -> Self {
        Self {
            run,
            start: Instant::now(),
            population,
            in_flight: InFlight::new(),
            rng: Rng::with_seed(run.seed),
            step_stats: StepStats::begin("start", None, run.in_flight, 0),
            lost_requests: Vec::new(),
        }
    }

    /// Returns the time since the start of the run, in nanoseconds.
    #[expect(clippy::disallowed_methods, reason = "the generator's clock")]
    pub(crate) fn now_ns(&self) -> u64 {
        Instant::now().duration_since(self.start).as_nanos() as u64
    }

    /// Returns the time after which an unanswered request is lost, in nanoseconds.
    pub(crate) fn timeout_ns(&self) -> u64 {
        self.run.timeout.as_nanos() as u64
    }

    /// Draws a peer group with the probability of its share of the peers.
    pub(crate) fn draw_group(&mut self) -> usize {
        let first = self.population.groups[0].peers();
        let has_two_groups = self.population.groups.len() > 1;
        usize::from(has_two_groups && self.rng.u32(..self.population.peers()) >= first)
    }

    /// Creates a request that is sent now. `due_ns` is the time for which it was scheduled; [`UNSCHEDULED`] becomes the
    /// time of sending.
    ///
    /// [`UNSCHEDULED`]: crate::pace::UNSCHEDULED
    pub(crate) fn new_request(
        &self,
        kind: RequestKind,
        group: usize,
        source: u32,
        due_ns: u64,
    ) -> SentRequest {
        let sent_ns = self.now_ns();
        let due_ns = due_ns.min(sent_ns);
        SentRequest { kind, group: group as u8, wanted: 0, source, subject: 0, due_ns, sent_ns }
    }

    /// Registers a request and returns its transaction id. `ready_ns` is the time at which it would have been sent had
    /// a connection been free.
    pub(crate) fn register(&mut self, request: SentRequest, ready_ns: u64) -> u32 {
        self.step_stats.count_sent(&request, ready_ns);
        let (transaction, lost) = self.in_flight.add(request);
        if let Some(lost) = lost {
            self.record_lost(lost, request.sent_ns, true);
        }
        transaction
    }

    /// Returns the announce of a peer, with the event and `left` of its change of state.
    pub(crate) fn announce(
        &self,
        group: usize,
        peer: u32,
        parameters: AnnounceParameters,
    ) -> LoadAnnounce {
        let group = &self.population.groups[group];
        LoadAnnounce {
            info_hash: info_hash(group.torrent_of(peer)),
            peer,
            left: parameters.left,
            event: parameters.event,
            num_want: self.run.numwant.into(),
            port: group.port_of(peer),
        }
    }

    /// Returns the info hashes of a scrape that begins with the torrent `first`.
    pub(crate) fn scrape_info_hashes(&self, first: u32) -> impl Iterator<Item = [u8; 20]> {
        let torrents = self.population.torrents();
        let numbers = (first..).take(usize::from(self.run.scrape_torrents));
        numbers.map(move |torrent| info_hash(torrent % torrents))
    }

    /// Processes a reply from the target of a peer group. Returns its request and whether its content was checked;
    /// `None` if no unanswered request has this transaction id.
    pub(crate) fn process_reply(
        &mut self,
        transaction: u32,
        group: usize,
        reply: &TrackerReply<'_>,
        now_ns: u64,
    ) -> Option<(SentRequest, bool)> {
        let (request, number) = match self.in_flight.take(transaction) {
            RequestLookup::Expected(request, number) => (request, number),
            RequestLookup::Closed => {
                self.step_stats.record.late += 1;
                return None;
            }
            RequestLookup::Unknown => {
                self.step_stats.count_wrong("transaction id");
                return None;
            }
        };
        let has_unanswered = self.in_flight.unanswered() > 0;
        self.step_stats.count_answered(reply.name(), &request, now_ns, has_unanswered);
        if usize::from(request.group) != group {
            self.step_stats.count_wrong("reply from the tracker of the other address family");
        }
        self.record_announce_reply(&request, reply);
        let one_in = u64::from(self.run.check);
        let is_checked = one_in > 0 && number.is_multiple_of(one_in);
        if is_checked {
            self.step_stats.record.checked += 1;
            let is_exclusive = !self.run.shared;
            if let Err(problem) = check(&self.population, &request, number, reply, is_exclusive) {
                self.step_stats.count_wrong(problem);
            }
        }
        Some((request, is_checked))
    }

    /// Counts the peers of a reply, and notes that a stopped peer is gone.
    fn record_announce_reply(&mut self, request: &SentRequest, reply: &TrackerReply<'_>) {
        let (RequestKind::Announce { stopped }, TrackerReply::Announce { peers, other_family, .. }) =
            (request.kind, reply)
        else {
            return;
        };
        let group = usize::from(request.group);
        let own_len = self.population.groups[group].compact_len();
        let other_len = if own_len == 6 { 18 } else { 6 };
        self.step_stats.record.peers +=
            (peers.len() / own_len + other_family.len() / other_len) as u64;
        if stopped {
            let sent_count = self.in_flight.sent_count();
            self.population.record_confirmed_stop(group, request.subject, sent_count);
        }
    }

    /// Counts the requests that exceed the timeout as lost.
    pub(crate) fn expire(&mut self, now_ns: u64) {
        let before_ns = now_ns.saturating_sub(self.timeout_ns());
        while let Some(request) = self.in_flight.expire(before_ns) {
            self.record_lost(request, now_ns, true);
        }
    }

    /// Counts a request as lost that cannot be answered any more. The transport calls this, so it is not notified.
    pub(crate) fn lose(&mut self, transaction: u32, now_ns: u64) {
        if let RequestLookup::Expected(request, _) = self.in_flight.take(transaction) {
            self.record_lost(request, now_ns, false);
        }
    }

    fn record_lost(&mut self, request: SentRequest, now_ns: u64, notify_transport: bool) {
        self.step_stats.count_lost(now_ns);
        self.lost_requests.push((request, notify_transport));
    }

    /// Returns the next lost request, and whether its transport must be notified.
    pub(crate) fn next_lost(&mut self) -> Option<(SentRequest, bool)> {
        self.lost_requests.pop()
    }
}
