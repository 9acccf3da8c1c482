//! Sending of requests over UDP.

use super::UdpTransport;
use crate::engine::FloodKind;
use crate::in_flight::{FLOOD_BIT, RequestKind, SentRequest, UNPROVEN_BIT};
use crate::options::RequestMix;
use crate::population::info_hash;
use crate::protocol::{LoadAnnounce, LoadEvent};
use crate::session::Session;
use crate::udp;
use std::io;
use std::net::IpAddr;

/// Maximum length of a garbage datagram.
const GARBAGE_LEN_MAX: usize = 200;

impl UdpTransport {
    /// Queues the request of one client, or of several clients with the same address.
    pub(super) fn queue_request(
        &mut self,
        session: &mut Session<'_>,
        mix: &RequestMix,
        due_ns: u64,
    ) -> io::Result<()> {
        let group = session.draw_group();
        let sources = session.population.groups[group].sources_in_use();
        let source = session.rng.u32(..sources);
        // Connects and announces are sent in groups of `segments` with one call, other requests alone.
        let mix = mix.per_send(self.segments);
        let mut draw = session.rng.f64() * mix.sum();
        let mut is_drawn = |weight: f64| {
            draw -= weight;
            draw < 0.0
        };
        if is_drawn(mix.connect) {
            return self.queue_connects(session, group, source, self.segments, due_ns);
        }
        if is_drawn(mix.forged) {
            let address = address(session, group, source);
            return self.queue_forged_announce(session, group, address);
        }
        if is_drawn(mix.garbage) {
            let address = address(session, group, source);
            return self.queue_garbage(session, group, address);
        }
        let id = self.id_or_connect(session, group, source, due_ns)?;
        if is_drawn(mix.scrape) {
            return self.queue_scrape(session, group, source, id, due_ns);
        }
        self.queue_announces(session, group, source, id, due_ns)
    }

    /// Queues the first announce of a peer.
    pub(super) fn queue_first_announce(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        peer: u32,
    ) -> io::Result<()> {
        let source = session.population.groups[group].source_of(peer);
        let due_ns = session.now_ns();
        let id = self.id_or_connect(session, group, source, due_ns)?;
        let step = session.population.start_peer(group, peer);
        let request =
            session.new_request(RequestKind::Announce { stopped: false }, group, source, due_ns);
        let wanted = session.run.numwant;
        let transaction =
            session.register(SentRequest { subject: peer, wanted, ..request }, request.sent_ns);
        let announce = session.announce(group, peer, step);
        self.push(session, group, source, None, |bytes| {
            udp::write_announce(bytes, id, transaction, &announce)
        })
    }

    /// Queues `segments` connects of a client, which one call sends: the kernel splits them into datagrams (UDP GSO).
    pub(super) fn queue_connects(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        source: u32,
        segments: u16,
        due_ns: u64,
    ) -> io::Result<()> {
        const LEN: usize = 16;
        let request = session.new_request(RequestKind::Connect, group, source, due_ns);
        self.clients.connect_sent(group, source, request.sent_ns);
        let mut requests = std::mem::take(&mut self.scratch);
        requests.resize(LEN * usize::from(segments), 0);
        for bytes in requests.chunks_exact_mut(LEN) {
            let transaction = session.register(request, request.sent_ns);
            udp::write_connect(bytes, transaction);
        }
        self.push_written(session, group, source, LEN, requests)
    }

    /// Queues announces of peers with the same address, which one call sends.
    fn queue_announces(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        source: u32,
        id: u64,
        due_ns: u64,
    ) -> io::Result<()> {
        const LEN: usize = 98;
        let mut requests = std::mem::take(&mut self.scratch);
        requests.resize(LEN * usize::from(self.segments), 0);
        let wanted = session.run.numwant;
        let request = session.new_request(RequestKind::default(), group, source, due_ns);
        for bytes in requests.chunks_exact_mut(LEN) {
            let peer = session.population.groups[group].draw_of_source(&mut session.rng, source);
            let step = session.population.advance_peer(&mut session.rng, group, peer);
            let kind = RequestKind::Announce { stopped: step.event == LoadEvent::Stopped };
            let transaction = session
                .register(SentRequest { kind, subject: peer, wanted, ..request }, request.sent_ns);
            udp::write_announce(bytes, id, transaction, &session.announce(group, peer, step));
        }
        self.push_written(session, group, source, LEN, requests)
    }

    /// Queues a scrape.
    fn queue_scrape(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        source: u32,
        id: u64,
        due_ns: u64,
    ) -> io::Result<()> {
        let first = session.rng.u32(..session.population.torrents());
        let wanted = session.run.scrape_torrents;
        let request = session.new_request(RequestKind::Scrape, group, source, due_ns);
        let transaction =
            session.register(SentRequest { subject: first, wanted, ..request }, request.sent_ns);
        let info_hashes: Vec<_> = session.scrape_info_hashes(first).collect();
        self.push(session, group, source, None, |bytes| {
            udp::write_scrape(bytes, id, transaction, info_hashes.into_iter())
        })
    }

    /// Queues a request of a flood.
    pub(super) fn queue_flood_request(
        &mut self,
        session: &mut Session<'_>,
        flood_kind: FloodKind,
    ) -> io::Result<()> {
        let group = session.draw_group();
        let address = unused_address(session, group);
        match flood_kind {
            FloodKind::Connect => {
                let transaction = FLOOD_BIT | session.rng.u32(..) >> 2;
                session.step_stats.record.flood_connects += 1;
                self.push_from(session, group, address, None, |bytes| {
                    udp::write_connect(bytes, transaction)
                })
            }
            FloodKind::Forged => self.queue_forged_announce(session, group, address),
            FloodKind::Garbage => self.queue_garbage(session, group, address),
        }
    }

    /// Queues an announce with a forged connection id.
    fn queue_forged_announce(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        address: Option<IpAddr>,
    ) -> io::Result<()> {
        let (id, transaction) = (session.rng.u64(..), UNPROVEN_BIT | session.rng.u32(..) >> 2);
        let info_hash = info_hash(session.rng.u32(..session.population.torrents()));
        let (event, port) = (LoadEvent::Started, 6_881);
        let announce =
            LoadAnnounce { info_hash, peer: transaction, left: 1, event, num_want: 50, port };
        session.step_stats.record.sent_unproven += 1;
        let write = |bytes: &mut [u8]| udp::write_announce(bytes, id, transaction, &announce);
        self.push_from(session, group, address, None, write)
    }

    /// Queues random bytes.
    fn queue_garbage(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        address: Option<IpAddr>,
    ) -> io::Result<()> {
        let mut garbage = [0; GARBAGE_LEN_MAX];
        let len = session.rng.usize(..garbage.len());
        session.rng.fill(&mut garbage);
        // At the place of the transaction id, so that a reply to garbage is recognized.
        garbage[12..16].copy_from_slice(&UNPROVEN_BIT.to_be_bytes());
        session.step_stats.record.sent_unproven += 1;
        self.push_from(session, group, address, None, |bytes| {
            bytes[..len].copy_from_slice(&garbage[..len]);
            len
        })
    }

    /// Returns the connection id of a client, and requests a new one if it is old, or if a request with it was refused
    /// or lost.
    fn id_or_connect(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        source: u32,
        due_ns: u64,
    ) -> io::Result<u64> {
        if self.clients.should_connect(group, source, session.now_ns(), session.timeout_ns()) {
            self.queue_connects(session, group, source, 1, due_ns)?;
        }
        // Every client has had a connection id since before the first step.
        Ok(self.clients.id(group, source).unwrap_or_default())
    }

    /// Queues requests of the same length, which one call sends and the kernel splits into datagrams.
    fn push_written(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        source: u32,
        segment: usize,
        requests: Vec<u8>,
    ) -> io::Result<()> {
        self.push(session, group, source, Some(segment as u16), |bytes| {
            bytes[..requests.len()].copy_from_slice(&requests);
            requests.len()
        })?;
        self.scratch = requests;
        Ok(())
    }

    /// Queues a datagram of a client.
    fn push(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        source: u32,
        segment: Option<u16>,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> io::Result<()> {
        let address = address(session, group, source);
        self.push_from(session, group, address, segment, write)
    }

    /// Queues a datagram with a source address.
    fn push_from(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        address: Option<IpAddr>,
        segment: Option<u16>,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> io::Result<()> {
        let target = &mut self.targets[group];
        if target.out.is_full() {
            session.step_stats.record.generator.unsent += target.out.send(&target.socket)? as u64;
        }
        target.out.push(&target.to, address, segment, write);
        Ok(())
    }
}

/// Returns the source address to set on the datagrams of a client; `None` if that of the socket is right.
fn address(session: &Session<'_>, group: usize, source: u32) -> Option<IpAddr> {
    let sources = &session.population.groups[group].sources;
    sources.sets_source_address.then(|| sources.address(source))
}

/// Returns an address that no client of the population uses: on loopback one of 127.128.0.0/9. For other targets there
/// is none; returns that of a random client.
fn unused_address(session: &mut Session<'_>, group: usize) -> Option<IpAddr> {
    let sources = session.population.groups[group].sources;
    match sources.first {
        IpAddr::V4(first) if first.is_loopback() => {
            let [_, a, b, c] = session.rng.u32(..).to_be_bytes();
            Some(IpAddr::from([127, a | 128, b, c & 127]))
        }
        _ => {
            let source = session.rng.u32(..sources.count);
            address(session, group, source)
        }
    }
}
