//! Requests and answers over HTTP, each connection with one request on its way.
//!
//! Connections are kept, and then each belongs to one address of the population, or there is one for each request.

mod stream;
mod tls;

use crate::books::Books;
use crate::engine::{FIRST_ANSWER, Flooding, Transport};
use crate::flight::{Kind, Request};
use crate::http::{self, Paths};
use crate::options::{Mix, Target};
use crate::pace::WHEN_IT_LEAVES;
use crate::population::Population;
use crate::protocol::{Event, Reply};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustls::pki_types::ServerName;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use stream::Stream;
use tsubame_bench::batch::BATCH;

/// How often a peer is drawn that has nothing on its way
const DRAWS: usize = 8;

/// How long a link rests after its connection was refused: a client would not ask again at once, either
const REST_NS: u64 = 50_000_000;

/// Requests that are looked at in a turn for a link of theirs
const JOBS_PER_TURN: usize = 4_096;

/// A tracker
struct Place {
    url: String,
    address: SocketAddr,
    paths: Paths,
    /// To whom it is spoken if that is encrypted
    name: Option<ServerName<'static>>,
    /// Its links: the first, and how many there are
    links: (usize, usize),
    /// Addresses they are shared among
    sources: usize,
}

/// A connection that is there, or could be
#[derive(Default)]
struct Link {
    group: usize,
    source: u32,
    stream: Option<Stream>,
    /// What it waits for
    asked: Option<Asked>,
    /// The request that is on its way
    text: String,
    /// Where it stands among the idle, if it does
    idle_at: Option<usize>,
}

#[derive(Clone, Copy)]
struct Asked {
    transaction: u32,
    request: Request,
    /// Whether it has been sent on a second connection
    again: bool,
}

/// A request that is to leave from an address
#[derive(Clone, Copy)]
struct Job {
    group: usize,
    source: u32,
    due_ns: u64,
    /// When it could have left if a link had been free
    ready_ns: u64,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// This peer enters its swarm
    Entry(u32),
    /// Some peer of the address takes its next step
    Announce,
    Scrape,
}

/// The connections
pub(crate) struct Streams {
    epoll: OwnedFd,
    places: Vec<Place>,
    links: Vec<Link>,
    /// Links with nothing on their way
    idle: Vec<usize>,
    /// Links whose connection was refused, with the time until which they rest
    resting: VecDeque<(u64, usize)>,
    /// What waits for a link of its address
    jobs: VecDeque<Job>,
    /// By group and peer: whether an announce is on its way. A second one could overtake it on another connection
    announcing: Vec<Vec<bool>>,
    closes: bool,
    events: Vec<epoll::Event>,
    buffer: Box<[u8]>,
}

impl Streams {
    /// Makes room for connections to each target, so many for the groups of the population in their order; with
    /// `closes` one for each request
    pub(crate) fn new(
        targets: &[&Target],
        counts: &[usize],
        population: &Population,
        closes: bool,
    ) -> Result<Self, String> {
        let (mut places, mut links) = (Vec::new(), Vec::new());
        for (group, (target, count)) in targets.iter().zip(counts).enumerate() {
            let host = target.authority.rsplit_once(':').map_or("", |(host, _)| host);
            let host = host.trim_matches(['[', ']']).to_owned();
            let name = target.is_encrypted.then(|| ServerName::try_from(host)).transpose();
            let sources = population.groups[group].sources_in_use() as usize;
            places.push(Place {
                url: target.url.clone(),
                address: target.address,
                paths: Paths::new(&target.authority, &target.path),
                name: name.map_err(|error| format!("{}: {error}", target.url))?,
                links: (links.len(), *count),
                sources,
            });
            let link = |at: usize| Link { group, source: (at % sources) as u32, ..Link::default() };
            links.extend((0..*count).map(link));
        }
        let mut streams = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)
                .map_err(|error| format!("cannot wait for connections: {error}"))?,
            places,
            idle: Vec::new(),
            links,
            resting: VecDeque::new(),
            jobs: VecDeque::new(),
            announcing: population.groups.iter().map(|g| vec![false; g.peers() as usize]).collect(),
            closes,
            events: Vec::with_capacity(BATCH),
            buffer: vec![0; 64 << 10].into(),
        };
        (0..streams.links.len()).for_each(|index| streams.idle(index));
        Ok(streams)
    }

    /// Puts a link among the idle
    fn idle(&mut self, index: usize) {
        self.links[index].idle_at = Some(self.idle.len());
        self.idle.push(index);
    }

    /// Takes a link from among the idle
    fn engage(&mut self, index: usize) {
        let Some(at) = self.links[index].idle_at.take() else { return };
        self.idle.swap_remove(at);
        if let Some(moved) = self.idle.get(at) {
            self.links[*moved].idle_at = Some(at);
        }
    }

    /// An idle link for a request: any, or one of its address
    fn link_for(&self, job: &Job) -> Option<usize> {
        if self.closes {
            return self.idle.last().copied();
        }
        let Place { links: (first, count), sources, .. } = self.places[job.group];
        let mut own = (job.source as usize..count).step_by(sources).map(|at| first + at);
        own.find(|index| self.links[*index].idle_at.is_some())
    }

    /// Lets a request leave over an idle link; false if all peers it could be of have one on its way
    fn start(&mut self, books: &mut Books<'_>, index: usize, job: Job) -> io::Result<bool> {
        let Job { group, source, due_ns, ready_ns, what } = job;
        let wanted = books.run.numwant;
        let mut text = std::mem::take(&mut self.links[index].text);
        text.clear();
        let (subject, step) = match what {
            What::Scrape => {
                let first = books.rng.u32(..books.population.torrents());
                let hashes = books.scraped(first);
                self.places[group].paths.write_scrape(&mut text, hashes, self.closes);
                (first, None)
            }
            What::Entry(peer) => (peer, Some(books.population.enter(group, peer))),
            What::Announce => {
                let of_source = &books.population.groups[group];
                let draw = || of_source.draw_of_source(&mut books.rng, source);
                let mut draws = std::iter::repeat_with(draw).take(DRAWS);
                let Some(peer) = draws.find(|peer| !self.announcing[group][*peer as usize]) else {
                    self.links[index].text = text;
                    return Ok(false);
                };
                (peer, Some(books.population.step(&mut books.rng, group, peer)))
            }
        };
        let (kind, wanted) = match step {
            Some(step) => {
                let announce = books.announce(group, subject, step);
                self.places[group].paths.write_announce(&mut text, &announce, self.closes);
                self.announcing[group][subject as usize] = true;
                (Kind::Announce { stopped: step.event == Event::Stopped }, wanted)
            }
            None => (Kind::Scrape, books.run.scrape_torrents),
        };
        let request = books.request(kind, group, source, due_ns);
        let request = Request { subject, wanted, ..request };
        let transaction = books.enter(request, ready_ns);
        let asked = Asked { transaction, request, again: false };
        self.engage(index);
        let link = &mut self.links[index];
        (link.group, link.source, link.text) = (group, source, text);
        self.send(books, index, asked)?;
        Ok(true)
    }

    /// Sends the request of a link
    fn send(&mut self, books: &mut Books<'_>, index: usize, asked: Asked) -> io::Result<()> {
        self.links[index].asked = Some(asked);
        if self.links[index].stream.is_none() {
            match self.open(books, index) {
                Ok(stream) => self.links[index].stream = Some(stream),
                Err(error) if is_of_the_server(&error) => {
                    self.broken(books, index);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let Link { stream, text, .. } = &mut self.links[index];
        let Some(stream) = stream else { return Ok(()) };
        match stream.send(text.as_bytes()) {
            Ok(()) => Ok(()),
            Err(_) => self.lose_connection(books, index),
        }
    }

    fn open(&self, books: &mut Books<'_>, index: usize) -> io::Result<Stream> {
        let Link { group, source, .. } = self.links[index];
        let sources = &books.population.groups[group].sources;
        let from = sources.many.then(|| sources.address(source));
        let place = &self.places[group];
        books.tally.step.connections += 1;
        let stream = Stream::open(from, place.address, place.name.as_ref());
        let stream = stream.map_err(|error| match is_of_the_server(&error) {
            true => error,
            false => io::Error::other(format!(
                "cannot open a connection to {}: {error}; fewer --in-flight, more --source-networks, or a higher \
                 limit on files (ulimit -n) may help",
                place.url
            )),
        })?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &stream, EventData::new_u64(index as u64), flags)?;
        Ok(stream)
    }

    /// Takes what has come over a link; returns whether that was an answer
    fn hear(
        &mut self,
        books: &mut Books<'_>,
        index: usize,
        flags: EventFlags,
        now_ns: u64,
    ) -> io::Result<bool> {
        let link = &mut self.links[index];
        let Some(stream) = &mut link.stream else { return Ok(false) };
        let hung_up = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let taken = stream.flush().and_then(|()| stream.take(&mut self.buffer, hung_up));
        let ended = taken.unwrap_or(true);
        let Some(asked) = link.asked else {
            if !stream.arrived.is_empty() {
                books.tally.wrong("reply that nobody asked for");
                stream.arrived.clear();
            }
            if ended {
                link.stream = None;
            }
            return Ok(false);
        };
        match http::read_whole(&stream.arrived, ended) {
            Ok(Some(whole)) => {
                let is_over = whole.closes || self.closes || ended;
                settle(&mut self.announcing, &asked.request);
                judge(books, &asked, &whole, now_ns);
                let len = whole.len;
                stream.arrived.drain(..len);
                stream.answers += 1;
                if !stream.arrived.is_empty() {
                    books.tally.wrong("bytes behind a reply");
                }
                if is_over || !stream.arrived.is_empty() {
                    link.stream = None;
                }
                link.asked = None;
                self.idle(index);
                return Ok(true);
            }
            Ok(None) if !ended => {}
            Ok(None) => self.lose_connection(books, index)?,
            Err(what) => {
                books.tally.wrong(what);
                self.broken(books, index);
            }
        }
        Ok(false)
    }

    /// A connection has ended before the answer came
    fn lose_connection(&mut self, books: &mut Books<'_>, index: usize) -> io::Result<()> {
        let link = &mut self.links[index];
        let (stream, asked) = (link.stream.take(), link.asked);
        // One that was kept may end for being idle while a request is on its way: clients ask again.
        let was_kept = stream.is_some_and(|s| s.answers > 0 && s.arrived.is_empty());
        match asked {
            Some(asked) if was_kept && !asked.again => {
                self.send(books, index, Asked { again: true, ..asked })
            }
            _ => {
                self.broken(books, index);
                Ok(())
            }
        }
    }

    /// A connection has not brought what was asked for
    fn broken(&mut self, books: &mut Books<'_>, index: usize) {
        let link = &mut self.links[index];
        link.stream = None;
        if let Some(asked) = link.asked.take() {
            settle(&mut self.announcing, &asked.request);
            books.tally.step.broken += 1;
            let now_ns = books.now_ns();
            books.abandon(asked.transaction, now_ns);
            self.resting.push_back((now_ns + REST_NS, index));
        }
    }
}

/// Nothing is on its way for a peer any more
fn settle(announcing: &mut [Vec<bool>], request: &Request) {
    if matches!(request.kind, Kind::Announce { .. }) {
        announcing[usize::from(request.group)][request.subject as usize] = false;
    }
}

/// Whether an error says something of the server, and not of this machine
fn is_of_the_server(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
        ErrorKind::TimedOut,
    ];
    kinds.contains(&error.kind())
}

/// Reads a reply and has it judged
fn judge(books: &mut Books<'_>, asked: &Asked, whole: &http::Whole<'_>, now_ns: u64) {
    let request = &asked.request;
    let group = usize::from(request.group);
    let rows;
    let read = match request.kind {
        _ if whole.status != 200 => Ok(Reply::Error),
        Kind::Scrape => match http::read_scrape(&whole.body, books.scraped(request.subject)) {
            Ok(read) => {
                rows = read;
                Ok(rows.as_ref().map_or(Reply::Error, |rows| Reply::Scrape { rows }))
            }
            Err(what) => Err(what),
        },
        _ => {
            let is_ipv4 = books.population.groups[group].sources.first.is_ipv4();
            http::read_announce(&whole.body, is_ipv4)
        }
    };
    let reply = read.unwrap_or_else(|what| {
        books.tally.wrong(what);
        Reply::Unreadable
    });
    let answered = books.answered(asked.transaction, group, &reply, now_ns);
    if answered.is_some_and(|(_, is_checked)| is_checked)
        && matches!(reply, Reply::Announce { .. } | Reply::Scrape { .. })
        && let Err(what) = http::check_form(&whole.body)
    {
        books.tally.wrong(what);
    }
}

impl Transport for Streams {
    fn prepare(&mut self, _: &mut Books<'_>) -> io::Result<()> {
        for Place { url, address, name, .. } in &self.places {
            let probe = || -> io::Result<()> {
                let mut stream = TcpStream::connect_timeout(address, FIRST_ANSWER)?;
                stream.set_read_timeout(Some(FIRST_ANSWER))?;
                if let Some(name) = name {
                    tls::session(name)?.complete_io(&mut stream)?;
                }
                Ok(())
            };
            probe().map_err(|error| {
                io::Error::other(format!(
                    "{url} cannot be reached: {error}; is the tracker up, and the way to it open?"
                ))
            })?;
        }
        Ok(())
    }

    fn receive(&mut self, books: &mut Books<'_>) -> io::Result<usize> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let spare = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&self.epoll, spare, Some(&now))?;
        // What came together came now, however long it takes to look at all of it.
        let now_ns = books.now_ns();
        let mut answers = 0;
        for event in &events {
            let index = event.data.u64() as usize;
            answers += usize::from(self.hear(books, index, event.flags, now_ns)?);
        }
        let arrived = events.len();
        self.events = events;
        books.tally.taken(answers, arrived);
        Ok(arrived)
    }

    fn has_room(&self) -> bool {
        !self.idle.is_empty()
    }

    fn pending(&self) -> usize {
        self.jobs.len()
    }

    fn depart(&mut self, books: &mut Books<'_>, mix: &Mix, due_ns: u64) -> io::Result<()> {
        let scrapes = books.rng.f64() * (mix.announce + mix.scrape) < mix.scrape;
        let what = if scrapes { What::Scrape } else { What::Announce };
        if due_ns == WHEN_IT_LEAVES && !self.closes {
            // As fast as answers come: over whichever link is free.
            let Some(last) = self.idle.len().checked_sub(1) else { return Ok(()) };
            let index = self.idle[books.rng.usize(..=last)];
            let Link { group, source, .. } = self.links[index];
            let job = Job { group, source, due_ns, ready_ns: books.now_ns(), what };
            return self.start(books, index, job).map(|_| ());
        }
        // Who is next does not depend on which links the tracker has left free.
        let group = books.draw_group();
        let source = books.rng.u32(..books.population.groups[group].sources_in_use());
        self.jobs.push_back(Job { group, source, due_ns, ready_ns: books.now_ns(), what });
        Ok(())
    }

    fn depart_entry(&mut self, books: &mut Books<'_>, group: usize, peer: u32) -> io::Result<()> {
        let source = books.population.groups[group].source_of(peer);
        let (due_ns, what) = (WHEN_IT_LEAVES, What::Entry(peer));
        self.jobs.push_back(Job { group, source, due_ns, ready_ns: books.now_ns(), what });
        Ok(())
    }

    /// Floods are of datagrams: the command line permits none here
    fn depart_flood(&mut self, _: &mut Books<'_>, _: Flooding) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self, books: &mut Books<'_>) -> io::Result<()> {
        let now_ns = books.now_ns();
        while let Some((_, index)) = self.resting.pop_front_if(|(until_ns, _)| *until_ns <= now_ns)
        {
            self.idle(index);
        }
        let mut passed_over = 0;
        for _ in 0..self.jobs.len().min(JOBS_PER_TURN) {
            if self.idle.is_empty() {
                break;
            }
            let Some(job) = self.jobs.pop_front() else { break };
            match self.link_for(&job) {
                Some(index) => {
                    if !self.start(books, index, job)? {
                        books.tally.step.held_back += 1;
                    }
                }
                None => {
                    self.jobs.push_back(job);
                    passed_over += 1;
                }
            }
        }
        // Back to where they stood: first come, first served.
        self.jobs.rotate_right(passed_over);
        Ok(())
    }

    fn given_up(&mut self, _: &mut Books<'_>, request: &Request) {
        let waits = |link: &Link| link.asked.is_some_and(|asked| asked.request == *request);
        if let Some(index) = self.links.iter().position(waits) {
            // The peer is left alone from now on: the tracker may yet read what was given up, after something newer.
            let link = &mut self.links[index];
            (link.stream, link.asked) = (None, None);
            self.idle(index);
        }
    }

    fn end_step(&mut self, books: &mut Books<'_>) {
        books.tally.step.held_back += self.jobs.len() as u64;
        self.jobs.clear();
    }

    fn drops(&self) -> u64 {
        0
    }

    fn url(&self, group: usize) -> &str {
        &self.places[group].url
    }
}
