//! Requests on their way out.

use super::Datagrams;
use crate::books::Books;
use crate::engine::Flooding;
use crate::flight::{FLOOD, Kind, Request, UNPROVEN};
use crate::options::Mix;
use crate::population::info_hash;
use crate::protocol::{Announce, Event};
use crate::udp;
use std::io;
use std::net::IpAddr;

/// Bytes of garbage, at most
const GARBAGE_LEN_MAX: usize = 200;

impl Datagrams {
    /// Lets one client, or several of one address, ask something
    pub(super) fn depart_one(
        &mut self,
        books: &mut Books<'_>,
        mix: &Mix,
        due_ns: u64,
    ) -> io::Result<()> {
        let group = books.draw_group();
        let sources = books.population.groups[group].sources_in_use();
        let source = books.rng.u32(..sources);
        // Connects and announces leave so many at a time, the others alone.
        let mix = mix.of_departures(self.segments);
        let mut draw = books.rng.f64() * mix.sum();
        let mut is = |weight: f64| {
            draw -= weight;
            draw < 0.0
        };
        if is(mix.connect) {
            return self.depart_connects(books, group, source, self.segments, due_ns);
        }
        if is(mix.stale) {
            let address = address(books, group, source);
            return self.depart_forged(books, group, address);
        }
        if is(mix.garbage) {
            let address = address(books, group, source);
            return self.depart_garbage(books, group, address);
        }
        let id = self.id(books, group, source, due_ns)?;
        if is(mix.scrape) {
            return self.depart_scrape(books, group, source, id, due_ns);
        }
        self.depart_announces(books, group, source, id, due_ns)
    }

    pub(super) fn depart_first_announce(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        peer: u32,
    ) -> io::Result<()> {
        let source = books.population.groups[group].source_of(peer);
        let due_ns = books.now_ns();
        let id = self.id(books, group, source, due_ns)?;
        let step = books.population.enter(group, peer);
        let request = books.request(Kind::Announce { stopped: false }, group, source, due_ns);
        let wanted = books.run.numwant;
        let transaction =
            books.enter(Request { subject: peer, wanted, ..request }, request.sent_ns);
        let announce = books.announce(group, peer, step);
        self.push(books, group, source, None, |bytes| {
            udp::write_announce(bytes, id, transaction, &announce)
        })
    }

    /// Asks for connection ids
    pub(super) fn depart_connects(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        source: u32,
        segments: u16,
        due_ns: u64,
    ) -> io::Result<()> {
        const LEN: usize = 16;
        let request = books.request(Kind::Connect, group, source, due_ns);
        self.clients.asked(group, source, request.sent_ns);
        let mut written = std::mem::take(&mut self.scratch);
        written.resize(LEN * usize::from(segments), 0);
        for bytes in written.chunks_exact_mut(LEN) {
            let transaction = books.enter(request, request.sent_ns);
            udp::write_connect(bytes, transaction);
        }
        self.push_written(books, group, source, LEN, written)
    }

    fn depart_announces(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        source: u32,
        id: u64,
        due_ns: u64,
    ) -> io::Result<()> {
        const LEN: usize = 98;
        let mut written = std::mem::take(&mut self.scratch);
        written.resize(LEN * usize::from(self.segments), 0);
        let wanted = books.run.numwant;
        let request = books.request(Kind::default(), group, source, due_ns);
        for bytes in written.chunks_exact_mut(LEN) {
            let peer = books.population.groups[group].draw_of_source(&mut books.rng, source);
            let step = books.population.step(&mut books.rng, group, peer);
            let kind = Kind::Announce { stopped: step.event == Event::Stopped };
            let transaction =
                books.enter(Request { kind, subject: peer, wanted, ..request }, request.sent_ns);
            udp::write_announce(bytes, id, transaction, &books.announce(group, peer, step));
        }
        self.push_written(books, group, source, LEN, written)
    }

    fn depart_scrape(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        source: u32,
        id: u64,
        due_ns: u64,
    ) -> io::Result<()> {
        let first = books.rng.u32(..books.population.torrents());
        let wanted = books.run.scrape_torrents;
        let request = books.request(Kind::Scrape, group, source, due_ns);
        let transaction =
            books.enter(Request { subject: first, wanted, ..request }, request.sent_ns);
        let asked: Vec<_> = books.scraped(first).collect();
        self.push(books, group, source, None, |bytes| {
            udp::write_scrape(bytes, id, transaction, asked.into_iter())
        })
    }

    pub(super) fn depart_one_of_flood(
        &mut self,
        books: &mut Books<'_>,
        flooding: Flooding,
    ) -> io::Result<()> {
        let group = books.draw_group();
        let address = stranger(books, group);
        match flooding {
            Flooding::Connect => {
                let transaction = FLOOD | books.rng.u32(..) >> 2;
                books.tally.step.flood_connects += 1;
                self.push_from(books, group, address, None, |bytes| {
                    udp::write_connect(bytes, transaction)
                })
            }
            Flooding::Forged => self.depart_forged(books, group, address),
            Flooding::Garbage => self.depart_garbage(books, group, address),
        }
    }

    /// An announce with a connection id that nobody gave out
    fn depart_forged(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        address: Option<IpAddr>,
    ) -> io::Result<()> {
        let (id, transaction) = (books.rng.u64(..), UNPROVEN | books.rng.u32(..) >> 2);
        let info_hash = info_hash(books.rng.u32(..books.population.torrents()));
        let (event, port) = (Event::Started, 6_881);
        let announce =
            Announce { info_hash, peer: transaction, left: 1, event, num_want: 50, port };
        books.tally.step.sent_unproven += 1;
        let write = |bytes: &mut [u8]| udp::write_announce(bytes, id, transaction, &announce);
        self.push_from(books, group, address, None, write)
    }

    fn depart_garbage(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        address: Option<IpAddr>,
    ) -> io::Result<()> {
        let mut garbage = [0; GARBAGE_LEN_MAX];
        let len = books.rng.usize(..garbage.len());
        books.rng.fill(&mut garbage);
        // Where a transaction id would be: an answer to it is told from others.
        garbage[12..16].copy_from_slice(&UNPROVEN.to_be_bytes());
        books.tally.step.sent_unproven += 1;
        self.push_from(books, group, address, None, |bytes| {
            bytes[..len].copy_from_slice(&garbage[..len]);
            len
        })
    }

    /// The connection id of a client, which asks for a new one if that is old or was refused
    fn id(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        source: u32,
        due_ns: u64,
    ) -> io::Result<u64> {
        if self.clients.should_connect(group, source, books.now_ns(), books.timeout_ns()) {
            self.depart_connects(books, group, source, 1, due_ns)?;
        }
        // All had one before the first step.
        Ok(self.clients.id(group, source).unwrap_or_default())
    }

    /// Sends requests of the same length as one datagram, to be cut on its way
    fn push_written(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        source: u32,
        segment: usize,
        written: Vec<u8>,
    ) -> io::Result<()> {
        self.push(books, group, source, Some(segment as u16), |bytes| {
            bytes[..written.len()].copy_from_slice(&written);
            written.len()
        })?;
        self.scratch = written;
        Ok(())
    }

    fn push(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        source: u32,
        segment: Option<u16>,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> io::Result<()> {
        let address = address(books, group, source);
        self.push_from(books, group, address, segment, write)
    }

    fn push_from(
        &mut self,
        books: &mut Books<'_>,
        group: usize,
        address: Option<IpAddr>,
        segment: Option<u16>,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> io::Result<()> {
        let wire = &mut self.wires[group];
        if wire.out.is_full() {
            books.tally.step.generator.unsent += wire.out.send(&wire.socket)? as u64;
        }
        wire.out.push(&wire.to, address, segment, write);
        Ok(())
    }
}

fn address(books: &Books<'_>, group: usize, source: u32) -> Option<IpAddr> {
    let sources = &books.population.groups[group].sources;
    sources.many.then(|| sources.address(source))
}

/// An address that no client of the population has, if there are any to take
fn stranger(books: &mut Books<'_>, group: usize) -> Option<IpAddr> {
    let sources = books.population.groups[group].sources;
    match sources.first {
        IpAddr::V4(first) if first.is_loopback() => {
            let [_, a, b, c] = books.rng.u32(..).to_be_bytes();
            Some(IpAddr::from([127, a | 128, b, c & 127]))
        }
        _ => {
            let source = books.rng.u32(..sources.count);
            address(books, group, source)
        }
    }
}
