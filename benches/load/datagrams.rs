//! Requests and answers as UDP datagrams, many at a time.

mod departures;

use crate::books::Books;
use crate::clients::Clients;
use crate::engine::{FIRST_ANSWER, Flooding, Transport};
use crate::flight::{FLOOD, Kind, Request, UNPROVEN};
use crate::options::{Mix, Run, Target};
use crate::population::Population;
use crate::protocol::Reply;
use crate::udp;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tsubame_bench::batch::{BATCH, BatchSocket, Name, ReceiveBatch, SendBatch};

/// A socket of one family, and what goes over it
struct Wire {
    socket: BatchSocket,
    to: Name,
    url: String,
    out: SendBatch,
}

/// The sockets, and what the clients behind them hold
pub(crate) struct Datagrams {
    wires: Vec<Wire>,
    clients: Clients,
    incoming: ReceiveBatch,
    segments: u16,
    /// Where requests are written that leave as one
    scratch: Vec<u8>,
}

impl Datagrams {
    /// Opens a socket for each target, in the order of the population's groups
    pub(crate) fn open(
        run: &Run,
        targets: &[&Target],
        population: &Population,
    ) -> Result<Self, String> {
        let open = |target: &&Target| {
            let any: SocketAddr = match target.address {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket =
                BatchSocket::bind(any).map_err(|error| format!("cannot open a socket: {error}"))?;
            let (to, url) = (Name::from(target.address), target.url.clone());
            Ok(Wire { socket, to, url, out: SendBatch::default() })
        };
        Ok(Self {
            wires: targets.iter().map(open).collect::<Result<_, String>>()?,
            clients: Clients::new(population),
            incoming: ReceiveBatch::default(),
            segments: run.segments,
            scratch: Vec::new(),
        })
    }
}

impl Transport for Datagrams {
    /// Has every client ask for a connection id
    fn prepare(&mut self, books: &mut Books<'_>) -> io::Result<()> {
        let end_ns = books.now_ns() + FIRST_ANSWER.as_nanos() as u64;
        loop {
            let now_ns = books.now_ns();
            let without: Vec<_> = self.clients.without_id().collect();
            let Some((group, _)) = without.first() else { return Ok(()) };
            if now_ns > end_ns {
                return Err(io::Error::other(format!(
                    "{} has not answered every connect within {FIRST_ANSWER:?}; is the tracker up, and the \
                     way to it open?",
                    self.wires[*group].url
                )));
            }
            let again_ns = books.timeout_ns() / 5;
            let is_due = |(group, source): &(usize, u32)| {
                self.clients.should_connect(*group, *source, now_ns, again_ns)
            };
            let due: Vec<_> = without.into_iter().filter(is_due).take(BATCH).collect();
            for (group, source) in due {
                self.depart_connects(books, group, source, 1, now_ns)?;
            }
            self.flush(books)?;
            self.receive(books)?;
        }
    }

    fn receive(&mut self, books: &mut Books<'_>) -> io::Result<usize> {
        let Self { wires, clients, incoming, .. } = self;
        let mut received = 0;
        for (group, wire) in wires.iter().enumerate() {
            let arrived = incoming.receive(&wire.socket)?;
            if arrived == 0 {
                continue;
            }
            received += arrived;
            books.tally.taken(arrived, arrived);
            let now_ns = books.now_ns();
            for (bytes, from) in incoming.datagrams() {
                match from.is(&wire.to) {
                    true => judge(books, clients, group, bytes, now_ns),
                    false => books.tally.wrong("from another address than was asked"),
                }
            }
        }
        Ok(received)
    }

    fn has_room(&self) -> bool {
        true
    }

    fn pending(&self) -> usize {
        0
    }

    fn end_step(&mut self, _: &mut Books<'_>) {}

    fn depart(&mut self, books: &mut Books<'_>, mix: &Mix, due_ns: u64) -> io::Result<()> {
        self.depart_one(books, mix, due_ns)
    }

    fn depart_entry(&mut self, books: &mut Books<'_>, group: usize, peer: u32) -> io::Result<()> {
        self.depart_first_announce(books, group, peer)
    }

    fn depart_flood(&mut self, books: &mut Books<'_>, flooding: Flooding) -> io::Result<()> {
        self.depart_one_of_flood(books, flooding)
    }

    fn flush(&mut self, books: &mut Books<'_>) -> io::Result<()> {
        for wire in &mut self.wires {
            if !wire.out.is_empty() {
                books.tally.step.generator.unsent += wire.out.send(&wire.socket)? as u64;
            }
        }
        Ok(())
    }

    fn given_up(&mut self, _: &mut Books<'_>, request: &Request) {
        self.clients.doubt(request.group.into(), request.source, request.sent_ns);
    }

    fn drops(&self) -> u64 {
        self.wires.iter().map(|wire| wire.socket.drops()).sum()
    }

    fn url(&self, group: usize) -> &str {
        &self.wires[group].url
    }
}

/// Takes what came from a tracker, and what the client learns by it
fn judge(books: &mut Books<'_>, clients: &mut Clients, group: usize, bytes: &[u8], now_ns: u64) {
    let (transaction, reply) = match udp::read(bytes) {
        Ok(read) => read,
        Err(what) => return books.tally.wrong(what),
    };
    if transaction & UNPROVEN != 0 {
        books.tally.step.answered_unproven += 1;
        return;
    }
    if transaction & FLOOD != 0 {
        books.tally.step.flood_connects_answered += 1;
        return;
    }
    let Some((request, _)) = books.answered(transaction, group, &reply, now_ns) else { return };
    let group = usize::from(request.group);
    match reply {
        Reply::Connect { connection_id } if request.kind == Kind::Connect => {
            clients.got(group, request.source, connection_id, now_ns);
        }
        Reply::Error => clients.doubt(group, request.source, request.sent_ns),
        _ => {}
    }
}
