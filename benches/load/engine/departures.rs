//! Requests on their way out.

use super::{Engine, Floods};
use crate::flight::{FLOOD, Kind, Request, UNPROVEN};
use crate::options::Mix;
use crate::population::info_hash;
use crate::udp::{self, Announce, Event};
use std::io;
use std::net::IpAddr;
use tsubame_bench::batch::BATCH;

/// Bytes of garbage, at most
const GARBAGE_LEN_MAX: usize = 200;

impl Engine<'_> {
    /// Lets one client, or several of one address, ask something
    pub(super) fn depart(&mut self, mix: &Mix, due_ns: u64) -> io::Result<()> {
        let group = self.draw_group();
        let sources = self.population.groups[group].sources_in_use();
        let source = self.rng.u32(..sources);
        let segments = self.run.segments;
        // Connects and announces leave so many at a time, the others alone.
        let mix = mix.of_departures(segments);
        let mut draw = self.rng.f64() * mix.sum();
        let mut is = |weight: f64| {
            draw -= weight;
            draw < 0.0
        };
        if is(mix.connect) {
            return self.depart_connects(group, source, segments, due_ns);
        }
        if is(mix.stale) {
            let address = self.address(group, source);
            return self.depart_forged(group, address);
        }
        if is(mix.garbage) {
            let address = self.address(group, source);
            return self.depart_garbage(group, address);
        }
        let id = self.id(group, source, due_ns)?;
        if is(mix.scrape) {
            return self.depart_scrape(group, source, id, due_ns);
        }
        self.depart_announces(group, source, id, due_ns)
    }

    /// Lets a peer enter its swarm
    pub(super) fn depart_entry(&mut self, group: usize, peer: u32, due_ns: u64) -> io::Result<()> {
        let source = self.population.groups[group].source_of(peer);
        let id = self.id(group, source, due_ns)?;
        let step = self.population.enter(group, peer);
        let sent_ns = self.now_ns();
        let kind = Kind::Announce { stopped: false };
        let request = self.request(kind, group, source, (due_ns, sent_ns));
        let wanted = self.run.numwant;
        let transaction = self.enter(Request { subject: peer, wanted, ..request });
        let announce = self.announce(group, peer, step);
        self.push(group, source, None, |bytes| {
            udp::write_announce(bytes, id, transaction, &announce)
        })
    }

    /// Asks for connection ids
    pub(super) fn depart_connects(
        &mut self,
        group: usize,
        source: u32,
        segments: u16,
        due_ns: u64,
    ) -> io::Result<()> {
        const LEN: usize = 16;
        let sent_ns = self.now_ns();
        self.clients.asked(group, source, sent_ns);
        let request = self.request(Kind::Connect, group, source, (due_ns, sent_ns));
        let mut written = std::mem::take(&mut self.scratch);
        written.resize(LEN * usize::from(segments), 0);
        for bytes in written.chunks_exact_mut(LEN) {
            let transaction = self.enter(request);
            udp::write_connect(bytes, transaction);
        }
        self.push_written(group, source, LEN, written)
    }

    fn depart_announces(
        &mut self,
        group: usize,
        source: u32,
        id: u64,
        due_ns: u64,
    ) -> io::Result<()> {
        const LEN: usize = 98;
        let sent_ns = self.now_ns();
        let mut written = std::mem::take(&mut self.scratch);
        written.resize(LEN * usize::from(self.run.segments), 0);
        for bytes in written.chunks_exact_mut(LEN) {
            let peer = self.population.groups[group].draw_of_source(&mut self.rng, source);
            let step = self.population.step(&mut self.rng, group, peer);
            let kind = Kind::Announce { stopped: step.event == Event::Stopped };
            let request = self.request(kind, group, source, (due_ns, sent_ns));
            let wanted = self.run.numwant;
            let transaction = self.enter(Request { subject: peer, wanted, ..request });
            udp::write_announce(bytes, id, transaction, &self.announce(group, peer, step));
        }
        self.push_written(group, source, LEN, written)
    }

    fn depart_scrape(&mut self, group: usize, source: u32, id: u64, due_ns: u64) -> io::Result<()> {
        let torrents = self.population.torrents();
        let (first, wanted) = (self.rng.u32(..torrents), self.run.scrape_torrents);
        let sent_ns = self.now_ns();
        let request = self.request(Kind::Scrape, group, source, (due_ns, sent_ns));
        let transaction = self.enter(Request { subject: first, wanted, ..request });
        let asked = (first..).take(usize::from(wanted));
        let hashes = asked.map(|torrent| info_hash(torrent % torrents));
        self.push(group, source, None, |bytes| udp::write_scrape(bytes, id, transaction, hashes))
    }

    /// Sends what is due of the floods; returns how much
    pub(super) fn depart_floods(&mut self, floods: &mut Floods, now_ns: u64) -> io::Result<usize> {
        let mut departed = 0;
        while departed < BATCH && floods.connects.next(&mut self.rng, now_ns).is_some() {
            let group = self.draw_group();
            let address = self.stranger(group);
            let transaction = FLOOD | self.rng.u32(..) >> 2;
            self.tally.step.flood_connects += 1;
            self.push_from(group, address, None, |bytes| udp::write_connect(bytes, transaction))?;
            departed += 1;
        }
        while departed < BATCH && floods.forged.next(&mut self.rng, now_ns).is_some() {
            let group = self.draw_group();
            let address = self.stranger(group);
            self.depart_forged(group, address)?;
            departed += 1;
        }
        while departed < BATCH && floods.garbage.next(&mut self.rng, now_ns).is_some() {
            let group = self.draw_group();
            let address = self.stranger(group);
            self.depart_garbage(group, address)?;
            departed += 1;
        }
        Ok(departed)
    }

    /// An announce with a connection id that nobody gave out
    fn depart_forged(&mut self, group: usize, address: Option<IpAddr>) -> io::Result<()> {
        let (id, transaction) = (self.rng.u64(..), UNPROVEN | self.rng.u32(..) >> 2);
        let info_hash = info_hash(self.rng.u32(..self.population.torrents()));
        let (event, port) = (Event::Started, 6_881);
        let announce =
            Announce { info_hash, peer: transaction, left: 1, event, num_want: 50, port };
        self.tally.step.sent_unproven += 1;
        let write = |bytes: &mut [u8]| udp::write_announce(bytes, id, transaction, &announce);
        self.push_from(group, address, None, write)
    }

    fn depart_garbage(&mut self, group: usize, address: Option<IpAddr>) -> io::Result<()> {
        let mut garbage = [0; GARBAGE_LEN_MAX];
        let len = self.rng.usize(..garbage.len());
        self.rng.fill(&mut garbage);
        // Where a transaction id would be: an answer to it is told from others.
        garbage[12..16].copy_from_slice(&UNPROVEN.to_be_bytes());
        self.tally.step.sent_unproven += 1;
        self.push_from(group, address, None, |bytes| {
            bytes[..len].copy_from_slice(&garbage[..len]);
            len
        })
    }

    fn draw_group(&mut self) -> usize {
        let first = self.population.groups[0].peers();
        usize::from(self.wires.len() > 1 && self.rng.u32(..self.population.peers()) >= first)
    }

    /// The connection id of a client, which asks for a new one if that is old or was refused
    fn id(&mut self, group: usize, source: u32, due_ns: u64) -> io::Result<u64> {
        if self.clients.should_connect(group, source, self.now_ns(), self.timeout_ns()) {
            self.depart_connects(group, source, 1, due_ns)?;
        }
        // All had one before the first step.
        Ok(self.clients.id(group, source).unwrap_or_default())
    }

    fn request(
        &self,
        kind: Kind,
        group: usize,
        source: u32,
        (due_ns, sent_ns): (u64, u64),
    ) -> Request {
        let due_ns = due_ns.min(sent_ns);
        Request { kind, group: group as u8, wanted: 0, source, subject: 0, due_ns, sent_ns }
    }

    /// Enters a request; returns its transaction id
    fn enter(&mut self, request: Request) -> u32 {
        self.tally.sent(&request);
        let (transaction, given_up) = self.flight.depart(request);
        if let Some(given_up) = given_up {
            self.lost(&given_up, request.sent_ns);
        }
        transaction
    }

    fn announce(&self, group: usize, peer: u32, step: crate::population::Step) -> Announce {
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

    fn address(&self, group: usize, source: u32) -> Option<IpAddr> {
        let sources = &self.population.groups[group].sources;
        sources.many.then(|| sources.address(source))
    }

    /// An address that no client of the population has, if there are any to take
    fn stranger(&mut self, group: usize) -> Option<IpAddr> {
        match self.population.groups[group].sources.first {
            IpAddr::V4(first) if first.is_loopback() => {
                let [_, a, b, c] = self.rng.u32(..).to_be_bytes();
                Some(IpAddr::from([127, a | 128, b, c & 127]))
            }
            _ => {
                let count = self.population.groups[group].sources.count;
                let source = self.rng.u32(..count);
                self.address(group, source)
            }
        }
    }

    /// Sends requests of the same length as one datagram, to be cut on its way
    fn push_written(
        &mut self,
        group: usize,
        source: u32,
        segment: usize,
        written: Vec<u8>,
    ) -> io::Result<()> {
        self.push(group, source, Some(segment as u16), |bytes| {
            bytes[..written.len()].copy_from_slice(&written);
            written.len()
        })?;
        self.scratch = written;
        Ok(())
    }

    fn push(
        &mut self,
        group: usize,
        source: u32,
        segment: Option<u16>,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> io::Result<()> {
        let address = self.address(group, source);
        self.push_from(group, address, segment, write)
    }

    fn push_from(
        &mut self,
        group: usize,
        address: Option<IpAddr>,
        segment: Option<u16>,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> io::Result<()> {
        if self.wires[group].out.is_full() {
            self.flush()?;
        }
        let wire = &mut self.wires[group];
        wire.out.push(&wire.to, address, segment, write);
        Ok(())
    }
}
