//! The HTTP transport: requests and replies over connections with one request each at a time.
//!
//! With persistent connections, each belongs to one address of the population. With `--close`, each request has its own
//! connection.

mod stream;
mod tls;

use crate::engine::{FloodKind, SILENCE_TIMEOUT, Transport};
use crate::http::{self, HttpPaths};
use crate::in_flight::{RequestKind, SentRequest};
use crate::options::{RequestMix, Target};
use crate::pace::UNSCHEDULED;
use crate::population::Population;
use crate::protocol::{LoadEvent, TrackerReply};
use crate::session::Session;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustls::pki_types::ServerName;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use stream::Stream;
use tsubame_bench::batch::BATCH;

/// Maximum number of random peers that are tried to find one without an unanswered announce.
const DRAWS: usize = 8;

/// Time for which a slot stays unused after its connection failed: a client would not retry at once, either.
const RETRY_DELAY_NS: u64 = 50_000_000;

/// Maximum number of queued requests per turn for which a slot is searched.
const QUEUED_PER_TURN: usize = 4_096;

/// A tracker.
struct HttpTarget {
    url: String,
    address: SocketAddr,
    paths: HttpPaths,
    /// Name of the server, if the connections use TLS.
    name: Option<ServerName<'static>>,
    /// Its slots: the index of the first, and their number.
    slots: (usize, usize),
    /// Number of addresses among which the slots are distributed.
    sources: usize,
}

/// A slot for a connection.
#[derive(Default)]
struct ConnectionSlot {
    group: usize,
    source: u32,
    stream: Option<Stream>,
    /// The unanswered request.
    pending_request: Option<PendingHttpRequest>,
    /// The encoded request.
    text: String,
    /// Position in the list of idle slots, if it is idle.
    idle_at: Option<usize>,
}

/// An unanswered request.
#[derive(Clone, Copy)]
struct PendingHttpRequest {
    transaction: u32,
    request: SentRequest,
    /// Whether it was sent a second time over a new connection.
    is_retry: bool,
}

/// A request that waits for a slot: with persistent connections one of its address, otherwise any.
#[derive(Clone, Copy)]
struct QueuedRequest {
    group: usize,
    source: u32,
    due_ns: u64,
    /// Time at which it could have been sent if a slot had been free.
    ready_ns: u64,
    kind: QueuedKind,
}

/// Kind of a queued request.
#[derive(Clone, Copy)]
enum QueuedKind {
    /// The first announce of this peer.
    Entry(u32),
    /// An announce of a random peer of the address.
    Announce,
    /// A scrape.
    Scrape,
}

/// The HTTP transport: connections and queued requests.
pub(crate) struct HttpTransport {
    epoll: OwnedFd,
    trackers: Vec<HttpTarget>,
    slots: Vec<ConnectionSlot>,
    /// Slots that can be used for a request now.
    idle: Vec<usize>,
    /// Slots whose connection failed, each with the time at which it may be used again.
    retry_later: VecDeque<(u64, usize)>,
    /// Requests that wait for a slot.
    queue: VecDeque<QueuedRequest>,
    /// By group and peer: whether an announce is unanswered. A second one could overtake it on another connection.
    announcing: Vec<Vec<bool>>,
    closes: bool,
    events: Vec<epoll::Event>,
    buffer: Box<[u8]>,
}

impl HttpTransport {
    /// Creates the slots of each target; the targets are in the order of the peer groups of the population.
    /// With `closes`, each request has its own connection.
    pub(crate) fn new(
        targets: &[&Target],
        counts: &[usize],
        population: &Population,
        closes: bool,
    ) -> Result<Self, String> {
        let (mut trackers, mut slots) = (Vec::new(), Vec::new());
        for (group, (target, count)) in targets.iter().zip(counts).enumerate() {
            let host = target.authority.rsplit_once(':').map_or("", |(host, _)| host);
            let host = host.trim_matches(['[', ']']).to_owned();
            let name = target.is_encrypted.then(|| ServerName::try_from(host)).transpose();
            let sources = population.groups[group].sources_in_use() as usize;
            trackers.push(HttpTarget {
                url: target.url.clone(),
                address: target.address,
                paths: HttpPaths::new(&target.authority, &target.path),
                name: name.map_err(|error| format!("{}: {error}", target.url))?,
                slots: (slots.len(), *count),
                sources,
            });
            let slot = |at: usize| ConnectionSlot {
                group,
                source: (at % sources) as u32,
                ..ConnectionSlot::default()
            };
            slots.extend((0..*count).map(slot));
        }
        let mut streams = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)
                .map_err(|error| format!("cannot create an epoll instance: {error}"))?,
            trackers,
            idle: Vec::new(),
            slots,
            retry_later: VecDeque::new(),
            queue: VecDeque::new(),
            announcing: population.groups.iter().map(|g| vec![false; g.peers() as usize]).collect(),
            closes,
            events: Vec::with_capacity(BATCH),
            buffer: vec![0; 64 << 10].into(),
        };
        (0..streams.slots.len()).for_each(|index| streams.add_idle(index));
        Ok(streams)
    }

    /// Adds a slot to the list of idle slots.
    fn add_idle(&mut self, index: usize) {
        self.slots[index].idle_at = Some(self.idle.len());
        self.idle.push(index);
    }

    /// Removes a slot from the list of idle slots.
    fn remove_idle(&mut self, index: usize) {
        let Some(at) = self.slots[index].idle_at.take() else { return };
        self.idle.swap_remove(at);
        if let Some(moved) = self.idle.get(at) {
            self.slots[*moved].idle_at = Some(at);
        }
    }

    /// Returns an idle slot for a request: any slot if connections are not persistent, otherwise one of its address.
    fn slot_for(&self, queued: &QueuedRequest) -> Option<usize> {
        if self.closes {
            return self.idle.last().copied();
        }
        let HttpTarget { slots: (first, count), sources, .. } = self.trackers[queued.group];
        let mut candidates = (queued.source as usize..count).step_by(sources).map(|at| first + at);
        candidates.find(|index| self.slots[*index].idle_at.is_some())
    }

    /// Sends a request over an idle slot; returns false if all drawn peers have an unanswered announce.
    fn start(
        &mut self,
        session: &mut Session<'_>,
        index: usize,
        queued: QueuedRequest,
    ) -> io::Result<bool> {
        let QueuedRequest { group, source, due_ns, ready_ns, kind } = queued;
        let wanted = session.run.numwant;
        let mut text = std::mem::take(&mut self.slots[index].text);
        text.clear();
        let (subject, step) = match kind {
            QueuedKind::Scrape => {
                let first = session.rng.u32(..session.population.torrents());
                let hashes = session.scrape_info_hashes(first);
                self.trackers[group].paths.write_scrape(&mut text, hashes, self.closes);
                (first, None)
            }
            QueuedKind::Entry(peer) => (peer, Some(session.population.start_peer(group, peer))),
            QueuedKind::Announce => {
                let of_source = &session.population.groups[group];
                let draw = || of_source.draw_of_source(&mut session.rng, source);
                let mut draws = std::iter::repeat_with(draw).take(DRAWS);
                let Some(peer) = draws.find(|peer| !self.announcing[group][*peer as usize]) else {
                    self.slots[index].text = text;
                    return Ok(false);
                };
                (peer, Some(session.population.advance_peer(&mut session.rng, group, peer)))
            }
        };
        let (kind, wanted) = match step {
            Some(step) => {
                let announce = session.announce(group, subject, step);
                self.trackers[group].paths.write_announce(&mut text, &announce, self.closes);
                self.announcing[group][subject as usize] = true;
                (RequestKind::Announce { stopped: step.event == LoadEvent::Stopped }, wanted)
            }
            None => (RequestKind::Scrape, session.run.scrape_torrents),
        };
        let request = session.new_request(kind, group, source, due_ns);
        let request = SentRequest { subject, wanted, ..request };
        let transaction = session.register(request, ready_ns);
        let pending_request = PendingHttpRequest { transaction, request, is_retry: false };
        self.remove_idle(index);
        let slot = &mut self.slots[index];
        (slot.group, slot.source, slot.text) = (group, source, text);
        self.send(session, index, pending_request)?;
        Ok(true)
    }

    /// Sends the encoded request of a slot.
    fn send(
        &mut self,
        session: &mut Session<'_>,
        index: usize,
        pending_request: PendingHttpRequest,
    ) -> io::Result<()> {
        self.slots[index].pending_request = Some(pending_request);
        if self.slots[index].stream.is_none() {
            match self.open(session, index) {
                Ok(stream) => self.slots[index].stream = Some(stream),
                Err(error) if is_remote_error(&error) => {
                    self.fail_request(session, index);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let ConnectionSlot { stream, text, .. } = &mut self.slots[index];
        let Some(stream) = stream else { return Ok(()) };
        match stream.send(text.as_bytes()) {
            Ok(()) => Ok(()),
            Err(_) => self.lose_connection(session, index),
        }
    }

    /// Opens the connection of a slot.
    fn open(&self, session: &mut Session<'_>, index: usize) -> io::Result<Stream> {
        let ConnectionSlot { group, source, .. } = self.slots[index];
        let sources = &session.population.groups[group].sources;
        let from = sources.sets_source_address.then(|| sources.address(source));
        let tracker = &self.trackers[group];
        session.step_stats.record.connections += 1;
        let stream = Stream::open(from, tracker.address, tracker.name.as_ref());
        let stream = stream.map_err(|error| match is_remote_error(&error) {
            true => error,
            false => io::Error::other(format!(
                "cannot open a connection to {}: {error}; lower --in-flight, add --source-networks, or raise the \
                 limit on open files (ulimit -n)",
                tracker.url
            )),
        })?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &stream, EventData::new_u64(index as u64), flags)?;
        Ok(stream)
    }

    /// Processes what has arrived over a slot; returns whether it was a reply.
    fn receive_on_slot(
        &mut self,
        session: &mut Session<'_>,
        index: usize,
        flags: EventFlags,
        now_ns: u64,
    ) -> io::Result<bool> {
        let slot = &mut self.slots[index];
        let Some(stream) = &mut slot.stream else { return Ok(false) };
        let hung_up = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let taken = stream.flush().and_then(|()| stream.read_available(&mut self.buffer, hung_up));
        let ended = taken.unwrap_or(true);
        let Some(pending_request) = slot.pending_request else {
            if !stream.arrived.is_empty() {
                session.step_stats.count_wrong("reply without a request");
                stream.arrived.clear();
            }
            if ended {
                slot.stream = None;
            }
            return Ok(false);
        };
        match http::read_whole(&stream.arrived, ended) {
            Ok(Some(whole)) => {
                let is_over = whole.closes || self.closes || ended;
                clear_announcing(&mut self.announcing, &pending_request.request);
                process_reply(session, &pending_request, &whole, now_ns);
                let len = whole.len;
                stream.arrived.drain(..len);
                stream.answers += 1;
                if !stream.arrived.is_empty() {
                    session.step_stats.count_wrong("bytes after a reply");
                }
                if is_over || !stream.arrived.is_empty() {
                    slot.stream = None;
                }
                slot.pending_request = None;
                self.add_idle(index);
                return Ok(true);
            }
            Ok(None) if !ended => {}
            Ok(None) => self.lose_connection(session, index)?,
            Err(problem) => {
                session.step_stats.count_wrong(problem);
                self.fail_request(session, index);
            }
        }
        Ok(false)
    }

    /// Handles a connection that has ended before the reply arrived.
    fn lose_connection(&mut self, session: &mut Session<'_>, index: usize) -> io::Result<()> {
        let slot = &mut self.slots[index];
        let (stream, pending_request) = (slot.stream.take(), slot.pending_request);
        // A server may close an idle connection while a request is being sent: clients retry.
        let was_kept = stream.is_some_and(|s| s.answers > 0 && s.arrived.is_empty());
        match pending_request {
            Some(pending_request) if was_kept && !pending_request.is_retry => {
                self.send(session, index, PendingHttpRequest { is_retry: true, ..pending_request })
            }
            _ => {
                self.fail_request(session, index);
                Ok(())
            }
        }
    }

    /// Gives up the request of a slot, and closes its connection.
    fn fail_request(&mut self, session: &mut Session<'_>, index: usize) {
        let slot = &mut self.slots[index];
        slot.stream = None;
        if let Some(pending_request) = slot.pending_request.take() {
            clear_announcing(&mut self.announcing, &pending_request.request);
            session.step_stats.record.broken += 1;
            let now_ns = session.now_ns();
            session.lose(pending_request.transaction, now_ns);
            self.retry_later.push_back((now_ns + RETRY_DELAY_NS, index));
        }
    }
}

/// Notes that the announce of a peer is no longer unanswered.
fn clear_announcing(announcing: &mut [Vec<bool>], request: &SentRequest) {
    if matches!(request.kind, RequestKind::Announce { .. }) {
        announcing[usize::from(request.group)][request.subject as usize] = false;
    }
}

/// Returns whether an error is caused by the server or the network, and not by this machine.
fn is_remote_error(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
        ErrorKind::TimedOut,
    ];
    kinds.contains(&error.kind())
}

/// Parses a reply, and checks and counts it.
fn process_reply(
    session: &mut Session<'_>,
    pending_request: &PendingHttpRequest,
    whole: &http::CompleteReply<'_>,
    now_ns: u64,
) {
    let request = &pending_request.request;
    let group = usize::from(request.group);
    let rows;
    let read = match request.kind {
        _ if whole.status != 200 => Ok(TrackerReply::Error),
        RequestKind::Scrape => {
            match http::read_scrape(&whole.body, session.scrape_info_hashes(request.subject)) {
                Ok(read) => {
                    rows = read;
                    Ok(rows
                        .as_ref()
                        .map_or(TrackerReply::Error, |rows| TrackerReply::Scrape { rows }))
                }
                Err(problem) => Err(problem),
            }
        }
        _ => {
            let is_ipv4 = session.population.groups[group].sources.first.is_ipv4();
            http::read_announce(&whole.body, is_ipv4)
        }
    };
    let reply = read.unwrap_or_else(|problem| {
        session.step_stats.count_wrong(problem);
        TrackerReply::Unreadable
    });
    let answered = session.process_reply(pending_request.transaction, group, &reply, now_ns);
    if answered.is_some_and(|(_, is_checked)| is_checked)
        && matches!(reply, TrackerReply::Announce { .. } | TrackerReply::Scrape { .. })
        && let Err(problem) = http::check_form(&whole.body)
    {
        session.step_stats.count_wrong(problem);
    }
}

impl Transport for HttpTransport {
    fn prepare(&mut self, _: &mut Session<'_>) -> io::Result<()> {
        for HttpTarget { url, address, name, .. } in &self.trackers {
            let probe = || -> io::Result<()> {
                let mut stream = TcpStream::connect_timeout(address, SILENCE_TIMEOUT)?;
                stream.set_read_timeout(Some(SILENCE_TIMEOUT))?;
                if let Some(name) = name {
                    tls::session(name)?.complete_io(&mut stream)?;
                }
                Ok(())
            };
            probe().map_err(|error| {
                io::Error::other(format!(
                    "{url} cannot be reached: {error}; is the tracker up and reachable?"
                ))
            })?;
        }
        Ok(())
    }

    fn receive(&mut self, session: &mut Session<'_>) -> io::Result<usize> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let spare = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&self.epoll, spare, Some(&now))?;
        // All events have the same arrival time, however long their processing takes.
        let now_ns = session.now_ns();
        let mut answers = 0;
        for event in &events {
            let index = event.data.u64() as usize;
            answers += usize::from(self.receive_on_slot(session, index, event.flags, now_ns)?);
        }
        let arrived = events.len();
        self.events = events;
        session.step_stats.count_batch(answers, arrived);
        Ok(arrived)
    }

    fn can_send(&self) -> bool {
        !self.idle.is_empty()
    }

    fn waiting_for_connection(&self) -> usize {
        self.queue.len()
    }

    fn send_request(
        &mut self,
        session: &mut Session<'_>,
        mix: &RequestMix,
        due_ns: u64,
    ) -> io::Result<()> {
        let scrapes = session.rng.f64() * (mix.announce + mix.scrape) < mix.scrape;
        let kind = if scrapes { QueuedKind::Scrape } else { QueuedKind::Announce };
        if due_ns == UNSCHEDULED && !self.closes {
            // Closed loop: any idle slot is used.
            let Some(last) = self.idle.len().checked_sub(1) else { return Ok(()) };
            let index = self.idle[session.rng.usize(..=last)];
            let ConnectionSlot { group, source, .. } = self.slots[index];
            let queued = QueuedRequest { group, source, due_ns, ready_ns: session.now_ns(), kind };
            return self.start(session, index, queued).map(|_| ());
        }
        // The choice of the client does not depend on which slots are idle.
        let group = session.draw_group();
        let source = session.rng.u32(..session.population.groups[group].sources_in_use());
        let ready_ns = session.now_ns();
        self.queue.push_back(QueuedRequest { group, source, due_ns, ready_ns, kind });
        Ok(())
    }

    fn send_first_announce(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        peer: u32,
    ) -> io::Result<()> {
        let source = session.population.groups[group].source_of(peer);
        let (due_ns, kind) = (UNSCHEDULED, QueuedKind::Entry(peer));
        let ready_ns = session.now_ns();
        self.queue.push_back(QueuedRequest { group, source, due_ns, ready_ns, kind });
        Ok(())
    }

    /// Does nothing: the command line permits floods over UDP only.
    fn send_flood_request(&mut self, _: &mut Session<'_>, _: FloodKind) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self, session: &mut Session<'_>) -> io::Result<()> {
        let now_ns = session.now_ns();
        while let Some((_, index)) =
            self.retry_later.pop_front_if(|(until_ns, _)| *until_ns <= now_ns)
        {
            self.add_idle(index);
        }
        let mut requeued = 0;
        for _ in 0..self.queue.len().min(QUEUED_PER_TURN) {
            if self.idle.is_empty() {
                break;
            }
            let Some(queued) = self.queue.pop_front() else { break };
            match self.slot_for(&queued) {
                Some(index) => {
                    if !self.start(session, index, queued)? {
                        session.step_stats.record.held_back += 1;
                    }
                }
                None => {
                    self.queue.push_back(queued);
                    requeued += 1;
                }
            }
        }
        // Restores the order of the requests that found no slot.
        self.queue.rotate_right(requeued);
        Ok(())
    }

    fn handle_lost(&mut self, _: &mut Session<'_>, request: &SentRequest) {
        let is_of_request = |slot: &ConnectionSlot| {
            slot.pending_request.is_some_and(|pending_request| pending_request.request == *request)
        };
        if let Some(index) = self.slots.iter().position(is_of_request) {
            // `announcing` stays true, so that the peer is not drawn again: the tracker may process the lost announce
            // after a newer one.
            let slot = &mut self.slots[index];
            (slot.stream, slot.pending_request) = (None, None);
            self.add_idle(index);
        }
    }

    fn end_step(&mut self, session: &mut Session<'_>) {
        session.step_stats.record.held_back += self.queue.len() as u64;
        self.queue.clear();
    }

    fn drops(&self) -> u64 {
        0
    }

    fn url(&self, group: usize) -> &str {
        &self.trackers[group].url
    }
}
