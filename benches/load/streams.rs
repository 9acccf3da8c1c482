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
use crate::population::Population;
use crate::protocol::{Event, Reply};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustls::pki_types::ServerName;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use stream::Stream;
use tsubame_bench::batch::BATCH;

/// How often a peer is drawn that has nothing on its way
const DRAWS: usize = 8;

/// A tracker
struct Place {
    url: String,
    address: SocketAddr,
    paths: Paths,
    /// To whom it is spoken if that is encrypted
    name: Option<ServerName<'static>>,
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
}

#[derive(Clone, Copy)]
struct Asked {
    transaction: u32,
    request: Request,
    /// Whether it has been sent on a second connection
    again: bool,
}

/// An announce that waits until a connection of its address is free
struct Job {
    asked: Asked,
    text: String,
}

/// The connections
pub(crate) struct Streams {
    epoll: OwnedFd,
    places: Vec<Place>,
    links: Vec<Link>,
    /// Links with nothing on its way
    idle: Vec<usize>,
    jobs: Vec<Job>,
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
        links: &[usize],
        population: &Population,
        closes: bool,
    ) -> Result<Self, String> {
        let place = |target: &&Target| {
            let host = target.authority.rsplit_once(':').map_or("", |(host, _)| host);
            let host = host.trim_matches(['[', ']']).to_owned();
            let name = target.is_encrypted.then(|| ServerName::try_from(host)).transpose();
            Ok(Place {
                url: target.url.clone(),
                address: target.address,
                paths: Paths::new(&target.authority, &target.path),
                name: name.map_err(|error| format!("{}: {error}", target.url))?,
            })
        };
        let link = |(group, at): (usize, usize)| {
            let sources = population.groups[group].sources_in_use();
            Link { group, source: at as u32 % sources, ..Link::default() }
        };
        let each = links.iter().enumerate();
        let links: Vec<_> = each
            .flat_map(|(group, count)| (0..*count).map(move |at| (group, at)))
            .map(link)
            .collect();
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)
                .map_err(|error| format!("cannot wait for connections: {error}"))?,
            places: targets.iter().map(place).collect::<Result<_, String>>()?,
            idle: (0..links.len()).collect(),
            links,
            jobs: Vec::new(),
            announcing: population.groups.iter().map(|g| vec![false; g.peers() as usize]).collect(),
            closes,
            events: Vec::with_capacity(BATCH),
            buffer: vec![0; 64 << 10].into(),
        })
    }

    /// Sends the request of an idle link
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
            Err(_) => self.ended(books, index),
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
            false => {
                io::Error::other(format!("cannot open a connection to {}: {error}", place.url))
            }
        })?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &stream, EventData::new_u64(index as u64), flags)?;
        Ok(stream)
    }

    /// Takes what has come over a link; returns whether that was an answer
    fn hear(&mut self, books: &mut Books<'_>, index: usize, flags: EventFlags) -> io::Result<bool> {
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
                let now_ns = books.now_ns();
                let is_over = whole.closes || self.closes || ended;
                settle(&mut self.announcing, &asked.request);
                if let Err(what) = judge(books, &asked, whole, now_ns) {
                    books.tally.wrong(what);
                    books.abandon(asked.transaction, now_ns);
                }
                stream.arrived.drain(..whole.len);
                if !stream.arrived.is_empty() {
                    books.tally.wrong("bytes behind a reply");
                }
                stream.answers += 1;
                if is_over || !stream.arrived.is_empty() {
                    link.stream = None;
                }
                self.rest(books, index)?;
                return Ok(true);
            }
            Ok(None) if !ended => {}
            Ok(None) => self.ended(books, index)?,
            Err(what) => {
                books.tally.wrong(what);
                self.broken(books, index);
            }
        }
        Ok(false)
    }

    /// A connection has ended before the answer came
    fn ended(&mut self, books: &mut Books<'_>, index: usize) -> io::Result<()> {
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
            books.abandon(asked.transaction, books.now_ns());
            self.idle.push(index);
        }
    }

    /// Nothing is on its way over a link any more: it takes what waits for it
    fn rest(&mut self, books: &mut Books<'_>, index: usize) -> io::Result<()> {
        let link = &mut self.links[index];
        link.asked = None;
        let mine = |job: &Job| serves(link, &job.asked.request, self.closes);
        let Some(at) = self.jobs.iter().position(mine) else {
            self.idle.push(index);
            return Ok(());
        };
        let Job { asked, text } = self.jobs.swap_remove(at);
        self.begin(books, index, asked, text)
    }

    fn begin(
        &mut self,
        books: &mut Books<'_>,
        index: usize,
        asked: Asked,
        text: String,
    ) -> io::Result<()> {
        let link = &mut self.links[index];
        (link.group, link.source) = (asked.request.group.into(), asked.request.source);
        link.text = text;
        self.send(books, index, asked)
    }

    /// Writes an announce and enters it
    fn announce(
        &mut self,
        books: &mut Books<'_>,
        request: Request,
        step: crate::population::Step,
        mut text: String,
    ) -> (Asked, String) {
        let (group, wanted) = (usize::from(request.group), books.run.numwant);
        let kind = Kind::Announce { stopped: step.event == Event::Stopped };
        let request = Request { kind, wanted, ..request };
        let announce = books.announce(group, request.subject, step);
        self.announcing[group][request.subject as usize] = true;
        text.clear();
        self.places[group].paths.write_announce(&mut text, &announce, self.closes);
        (Asked { transaction: books.enter(request), request, again: false }, text)
    }

    fn scrape(&self, books: &mut Books<'_>, request: Request, mut text: String) -> (Asked, String) {
        let first = books.rng.u32(..books.population.torrents());
        let request = Request {
            kind: Kind::Scrape,
            subject: first,
            wanted: books.run.scrape_torrents,
            ..request
        };
        let paths = &self.places[usize::from(request.group)].paths;
        text.clear();
        paths.write_scrape(&mut text, books.scraped(first), self.closes);
        (Asked { transaction: books.enter(request), request, again: false }, text)
    }
}

/// Whether a link can carry a request: one that is kept belongs to an address
fn serves(link: &Link, request: &Request, closes: bool) -> bool {
    closes || (link.group == usize::from(request.group) && link.source == request.source)
}

/// Nothing is on its way for a peer any more
fn settle(announcing: &mut [Vec<bool>], request: &Request) {
    if matches!(request.kind, Kind::Announce { .. }) {
        announcing[usize::from(request.group)][request.subject as usize] = false;
    }
}

/// Whether an error says something of the server, and not of this machine
fn is_of_the_server(error: &io::Error) -> bool {
    use ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut,
    };
    let kinds = [ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut];
    kinds.contains(&error.kind())
}

/// Reads a reply and has it judged; what is wrong if it cannot be read
fn judge(
    books: &mut Books<'_>,
    asked: &Asked,
    whole: http::Whole<'_>,
    now_ns: u64,
) -> Result<(), &'static str> {
    let request = &asked.request;
    let group = usize::from(request.group);
    let rows;
    let reply = match request.kind {
        _ if whole.status != 200 => Reply::Error,
        Kind::Scrape => {
            rows = http::read_scrape(whole.body, books.scraped(request.subject))?;
            rows.as_ref().map_or(Reply::Error, |rows| Reply::Scrape { rows })
        }
        _ => {
            let is_ipv4 = books.population.groups[group].sources.first.is_ipv4();
            http::read_announce(whole.body, is_ipv4)?
        }
    };
    books.answered(asked.transaction, group, &reply, now_ns);
    Ok(())
}

impl Transport for Streams {
    fn prepare(&mut self, _: &mut Books<'_>) -> io::Result<()> {
        for Place { url, address, .. } in &self.places {
            TcpStream::connect_timeout(address, FIRST_ANSWER).map_err(|error| {
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
        let mut answers = 0;
        for event in &events {
            let index = event.data.u64() as usize;
            answers += usize::from(self.hear(books, index, event.flags)?);
        }
        self.events = events;
        books.tally.taken(answers);
        Ok(answers)
    }

    fn has_room(&self) -> bool {
        !self.idle.is_empty()
    }

    fn depart(&mut self, books: &mut Books<'_>, mix: &Mix, due_ns: u64) -> io::Result<()> {
        if self.idle.is_empty() {
            return Ok(());
        }
        let at = books.rng.usize(..self.idle.len());
        let index = self.idle[at];
        let Link { mut group, mut source, .. } = self.links[index];
        if self.closes {
            group = books.draw_group();
            source = books.rng.u32(..books.population.groups[group].sources_in_use());
        }
        let request = books.request(Kind::default(), group, source, due_ns);
        let scrapes = books.rng.f64() * (mix.announce + mix.scrape) < mix.scrape;
        let text = std::mem::take(&mut self.links[index].text);
        let (asked, text) = if scrapes {
            self.scrape(books, request, text)
        } else {
            let of_source = &books.population.groups[group];
            let draw = || of_source.draw_of_source(&mut books.rng, source);
            let mut draws = std::iter::repeat_with(draw).take(DRAWS);
            let Some(peer) = draws.find(|peer| !self.announcing[group][*peer as usize]) else {
                return Ok(());
            };
            let step = books.population.step(&mut books.rng, group, peer);
            self.announce(books, Request { subject: peer, ..request }, step, text)
        };
        self.idle.swap_remove(at);
        self.begin(books, index, asked, text)
    }

    fn depart_entry(&mut self, books: &mut Books<'_>, group: usize, peer: u32) -> io::Result<()> {
        let source = books.population.groups[group].source_of(peer);
        let request = books.request(Kind::default(), group, source, books.now_ns());
        let step = books.population.enter(group, peer);
        let request = Request { subject: peer, ..request };
        let (asked, text) = self.announce(books, request, step, String::new());
        let fits = |index: &usize| serves(&self.links[*index], &asked.request, self.closes);
        match self.idle.iter().position(fits) {
            Some(at) => {
                let index = self.idle.swap_remove(at);
                self.begin(books, index, asked, text)
            }
            None => {
                self.jobs.push(Job { asked, text });
                Ok(())
            }
        }
    }

    /// Floods are of datagrams: the command line permits none here
    fn depart_flood(&mut self, _: &mut Books<'_>, _: Flooding) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self, _: &mut Books<'_>) -> io::Result<()> {
        Ok(())
    }

    fn given_up(&mut self, _: &mut Books<'_>, request: &Request) {
        if let Some(at) = self.jobs.iter().position(|job| job.asked.request == *request) {
            self.jobs.swap_remove(at);
            settle(&mut self.announcing, request);
        }
        let waits = |link: &Link| link.asked.is_some_and(|asked| asked.request == *request);
        if let Some(index) = self.links.iter().position(waits) {
            let link = &mut self.links[index];
            (link.stream, link.asked) = (None, None);
            settle(&mut self.announcing, request);
            self.idle.push(index);
        }
    }

    fn drops(&self) -> u64 {
        0
    }

    fn url(&self, group: usize) -> &str {
        &self.places[group].url
    }
}
