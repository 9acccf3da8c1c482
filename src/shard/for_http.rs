//! What HTTP has a shard do: the same announces and scrapes, whose answers go to whoever asked.

use super::Shard;
use crate::datapath::Datapath;
use crate::http::Terms;
use crate::mesh::{Listed, Message, PageRequest};
use crate::outcome::Outcome;
use crate::peer_list::PeerList;
use crate::policy::{Interrupted, Parameters, Paused};
use crate::stats::{HttpCounts, Protocol};
use crate::tracker::Announce;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot::Receiver;
use tsubame_http::query;
use tsubame_storage::{Family, InfoHash, Seconds, SwarmStats};

/// What became of a question
#[derive(Debug)]
pub enum Asked<T> {
    /// It is answered
    Answered(T),
    /// Other shards answer it; whoever stops waiting says so with the ticket
    Waits(u32, Receiver<T>),
    /// The way to another shard is full
    Shed,
}

impl<D: Datapath> Shard<D> {
    /// Admits an announce: see [`crate::tracker::Tracker::admit_query`]
    pub fn admit_query(
        &mut self,
        source: IpAddr,
        query: &query::Announce,
        parameters: Parameters<'_>,
        paused: Option<Paused>,
    ) -> Result<Announce, Interrupted> {
        self.tracker.admit_query(self.clock.now(), source, query, parameters, paused)
    }

    /// Admits a scrape: see [`crate::tracker::Tracker::admit_scrape`]
    pub fn admit_scrape(
        &mut self,
        source: IpAddr,
        info_hashes: &[InfoHash],
        parameters: &Parameters<'_>,
        paused: Option<Paused>,
    ) -> Result<(), Interrupted> {
        let now = self.clock.now();
        self.tracker.admit_scrape(now, source, info_hashes, parameters, paused)
    }

    /// Has a request wait until the signature of its token may be checked; `None` if too many wait
    pub fn wait_for_token_check(&mut self, source: IpAddr) -> Option<Receiver<()>> {
        let permit = self.token_queue.add(source);
        // The shard may be asleep.
        self.port.ring_oneself();
        permit
    }

    /// Whether requests from an address are answered at all; one that is not is counted
    pub fn permits_source(&mut self, source: IpAddr) -> bool {
        let permits = self.tracker.policy().permits_source(source);
        if !permits {
            self.count_request(Family::of(source), Outcome::ForbiddenNetwork);
        }
        permits
    }

    /// Enters an announce into its swarm, wherever that is
    pub fn enter(&mut self, announce: &Announce, mut list: Box<PeerList>) -> Asked<Box<PeerList>> {
        let owner = self.owner(&announce.info_hash);
        if owner == self.number {
            list.fill(&mut self.tracker, self.clock.now(), announce, None);
            return Asked::Answered(list);
        }
        let (ticket, answer) = self.desk.wait_for_list();
        list.ticket = ticket;
        if !self.port.send(usize::from(owner), Message::Ask(*announce, list)) {
            self.desk.forget(ticket);
            return Asked::Shed;
        }
        self.port.ring();
        Asked::Waits(ticket, answer)
    }

    /// The figures of some swarms, wherever they are
    pub fn scrape(&mut self, info_hashes: &[InfoHash]) -> Asked<Vec<SwarmStats>> {
        let mut counts = vec![SwarmStats::default(); info_hashes.len()];
        let mut elsewhere = Vec::new();
        for (row, (info_hash, counts)) in info_hashes.iter().zip(&mut counts).enumerate() {
            match self.owner(info_hash) {
                owner if owner == self.number => *counts = self.tracker.swarm_stats(info_hash),
                // A scrape has no more rows than a byte can number.
                owner => elsewhere.push((usize::from(owner), row as u8, *info_hash)),
            }
        }
        if elsewhere.is_empty() {
            return Asked::Answered(counts);
        }
        let (ticket, answer) = self.desk.wait_for_counts(counts, elsewhere.len());
        self.questions.begin(ticket);
        let mut asked_all = true;
        for (owner, row, info_hash) in elsewhere {
            asked_all &= self.questions.ask(&mut self.port, owner, row, info_hash);
        }
        asked_all &= self.questions.end(&mut self.port);
        if !asked_all {
            // Answers to the part that was asked find nobody waiting.
            self.desk.forget(ticket);
            return Asked::Shed;
        }
        self.port.ring();
        Asked::Waits(ticket, answer)
    }

    /// Has every shard make a page of its torrents: tickets and answers; `None` while a way is full
    pub fn ask_for_pages(
        &mut self,
        after: Option<InfoHash>,
    ) -> Option<Vec<(u32, Receiver<Box<Listed>>)>> {
        let own = usize::from(self.number);
        let nodes = 0..usize::from(self.shards);
        if !nodes.clone().all(|node| node == own || self.port.has_room(node)) {
            return None;
        }
        let waiting = nodes.map(|node| {
            let (ticket, answer) = self.desk.wait_for_page();
            let request = PageRequest { ticket, after };
            if node == own {
                self.listings.add(node, request);
            } else {
                self.port.send(node, Message::List(request));
            }
            (ticket, answer)
        });
        let waiting = waiting.collect();
        self.port.ring();
        // This shard has something to do now, and may be asleep.
        self.port.ring_oneself();
        Some(waiting)
    }

    /// Nobody waits for this answer any more
    pub fn forget(&mut self, ticket: u32) {
        self.desk.forget(ticket);
    }

    /// Counts what became of a request over HTTP
    pub fn count_request(&mut self, family: Family, outcome: Outcome) {
        self.figures.count(Protocol::Http, family, outcome);
    }

    /// What became of connections
    pub fn connections(&mut self) -> &mut HttpCounts {
        &mut self.figures.http
    }

    /// Takes what other shards have sent, while nothing else is done any more
    pub fn serve_mesh(&mut self) -> io::Result<()> {
        let now = self.clock.now();
        self.take_messages(now)?;
        self.list_some();
        self.port.ring();
        Ok(())
    }

    /// Time since the start
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// The time that limits go by
    pub fn now(&self) -> Seconds {
        self.clock.now().monotonic
    }

    /// Takes how HTTP is to be served from now on, if that has changed
    pub fn take_http_terms(&mut self) -> Option<Arc<Terms>> {
        self.new_http_terms.take()
    }

    /// Seconds between a client's announces at least
    pub fn min_interval_secs(&self) -> u32 {
        self.tracker.terms().min_interval_secs
    }
}
