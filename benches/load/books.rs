//! What a run keeps account of, whatever carries its requests: who is asking, what is on its way, what came of it.

use crate::check::check;
use crate::flight::{Arrival, Flight, Kind, Request};
use crate::options::Run;
use crate::population::{Population, Step, info_hash};
use crate::protocol::{Announce, Reply};
use crate::tally::Tally;
use fastrand::Rng;
use std::time::Instant;

/// The accounts of a run
pub(crate) struct Books<'a> {
    pub(crate) run: &'a Run,
    start: Instant,
    pub(crate) population: Population,
    pub(crate) flight: Flight,
    pub(crate) rng: Rng,
    pub(crate) tally: Tally,
    given_up: Vec<(Request, bool)>,
}

impl<'a> Books<'a> {
    #[expect(clippy::disallowed_methods, reason = "the generator's clock")]
    pub(crate) fn new(run: &'a Run, population: Population) -> Self {
        Self {
            run,
            start: Instant::now(),
            population,
            flight: Flight::new(),
            rng: Rng::with_seed(run.seed),
            tally: Tally::begin("start", None, run.in_flight, 0),
            given_up: Vec::new(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the generator's clock")]
    pub(crate) fn now_ns(&self) -> u64 {
        Instant::now().duration_since(self.start).as_nanos() as u64
    }

    pub(crate) fn timeout_ns(&self) -> u64 {
        self.run.timeout.as_nanos() as u64
    }

    /// Draws an address family by its share of the peers
    pub(crate) fn draw_group(&mut self) -> usize {
        let first = self.population.groups[0].peers();
        let many = self.population.groups.len() > 1;
        usize::from(many && self.rng.u32(..self.population.peers()) >= first)
    }

    /// A request that leaves now; it is late if it was due before
    pub(crate) fn request(&self, kind: Kind, group: usize, source: u32, due_ns: u64) -> Request {
        let sent_ns = self.now_ns();
        let due_ns = due_ns.min(sent_ns);
        Request { kind, group: group as u8, wanted: 0, source, subject: 0, due_ns, sent_ns }
    }

    /// Enters a request that could have left at this time if a way had been free; returns its transaction id
    pub(crate) fn enter(&mut self, request: Request, ready_ns: u64) -> u32 {
        self.tally.sent(&request, ready_ns);
        let (transaction, given_up) = self.flight.depart(request);
        if let Some(given_up) = given_up {
            self.give_up(given_up, request.sent_ns, true);
        }
        transaction
    }

    /// The announce by which a peer takes this step
    pub(crate) fn announce(&self, group: usize, peer: u32, step: Step) -> Announce {
        let group = &self.population.groups[group];
        Announce {
            info_hash: info_hash(group.torrent_of(peer)),
            peer,
            left: step.left,
            event: step.event,
            num_want: self.run.numwant.into(),
            port: group.port_of(peer),
        }
    }

    /// Info hashes that a scrape asks for, from this torrent on
    pub(crate) fn scraped(&self, first: u32) -> impl Iterator<Item = [u8; 20]> {
        let torrents = self.population.torrents();
        let asked = (first..).take(usize::from(self.run.scrape_torrents));
        asked.map(move |torrent| info_hash(torrent % torrents))
    }

    /// Takes an answer that came from where this group asks; returns what it answers, and whether that was looked at
    pub(crate) fn answered(
        &mut self,
        transaction: u32,
        group: usize,
        reply: &Reply<'_>,
        now_ns: u64,
    ) -> Option<(Request, bool)> {
        let (request, number) = match self.flight.arrive(transaction) {
            Arrival::Expected(request, number) => (request, number),
            Arrival::Late => {
                self.tally.step.late += 1;
                return None;
            }
            Arrival::Unknown => {
                self.tally.wrong("transaction id");
                return None;
            }
        };
        let others_due = self.flight.waiting() > 0;
        self.tally.answered(reply.name(), &request, now_ns, others_due);
        if usize::from(request.group) != group {
            self.tally.wrong("family");
        }
        self.learn(&request, reply);
        let one_in = u64::from(self.run.check);
        let is_checked = one_in > 0 && number.is_multiple_of(one_in);
        if is_checked {
            self.tally.step.checked += 1;
            let alone = !self.run.shared;
            if let Err(what) = check(&self.population, &request, number, reply, alone) {
                self.tally.wrong(what);
            }
        }
        Some((request, is_checked))
    }

    fn learn(&mut self, request: &Request, reply: &Reply<'_>) {
        let (Kind::Announce { stopped }, Reply::Announce { peers, others, .. }) =
            (request.kind, reply)
        else {
            return;
        };
        let group = usize::from(request.group);
        let own_len = self.population.groups[group].compact_len();
        let other_len = if own_len == 6 { 18 } else { 6 };
        self.tally.step.peers += (peers.len() / own_len + others.len() / other_len) as u64;
        if stopped {
            let departed = self.flight.departed();
            self.population.confirm_gone(group, request.subject, departed);
        }
    }

    /// Gives up what has waited too long
    pub(crate) fn expire(&mut self, now_ns: u64) {
        let before_ns = now_ns.saturating_sub(self.timeout_ns());
        while let Some(request) = self.flight.expire(before_ns) {
            self.give_up(request, now_ns, true);
        }
    }

    /// Gives up a request that will not be answered any more, as its transport knows
    pub(crate) fn abandon(&mut self, transaction: u32, now_ns: u64) {
        if let Arrival::Expected(request, _) = self.flight.arrive(transaction) {
            self.give_up(request, now_ns, false);
        }
    }

    fn give_up(&mut self, request: Request, now_ns: u64, is_news: bool) {
        self.tally.lost(now_ns);
        self.given_up.push((request, is_news));
    }

    /// The next of those given up, and whether that is news to its transport
    pub(crate) fn next_given_up(&mut self) -> Option<(Request, bool)> {
        self.given_up.pop()
    }
}
