//! The UDP transport: requests and replies as batches of datagrams.

mod requests;

use crate::clients::LoadClients;
use crate::engine::{FloodKind, SILENCE_TIMEOUT, Transport};
use crate::in_flight::{FLOOD_BIT, RequestKind, SentRequest, UNPROVEN_BIT};
use crate::options::{RequestMix, RunOptions, Target};
use crate::population::Population;
use crate::protocol::TrackerReply;
use crate::session::Session;
use crate::udp;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tsubame_bench::batch::{BATCH, BatchSocket, ReceiveBatch, SendBatch, SocketName};

/// A socket of one address family, and its queue of datagrams to send.
struct UdpTarget {
    socket: BatchSocket,
    to: SocketName,
    url: String,
    out: SendBatch,
}

/// Sends and receives over UDP: sockets, and the connection ids of the clients.
pub(crate) struct UdpTransport {
    targets: Vec<UdpTarget>,
    clients: LoadClients,
    incoming: ReceiveBatch,
    /// Number of connects or announces that are sent as segments of one datagram.
    segments: u16,
    /// Buffer for requests that are sent as segments of one datagram.
    scratch: Vec<u8>,
}

impl UdpTransport {
    /// Opens a socket for each target, in the order of the peer groups of the population.
    pub(crate) fn open(
        run: &RunOptions,
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
            let (to, url) = (SocketName::from(target.address), target.url.clone());
            Ok(UdpTarget { socket, to, url, out: SendBatch::default() })
        };
        Ok(Self {
            targets: targets.iter().map(open).collect::<Result<_, String>>()?,
            clients: LoadClients::new(population),
            incoming: ReceiveBatch::default(),
            segments: run.segments,
            scratch: Vec::new(),
        })
    }
}

impl Transport for UdpTransport {
    /// Requests a connection id for every client.
    fn prepare(&mut self, session: &mut Session<'_>) -> io::Result<()> {
        let end_ns = session.now_ns() + SILENCE_TIMEOUT.as_nanos() as u64;
        loop {
            let now_ns = session.now_ns();
            let unconnected: Vec<_> = self.clients.without_id().collect();
            let Some((group, _)) = unconnected.first() else { return Ok(()) };
            if now_ns > end_ns {
                return Err(io::Error::other(format!(
                    "{} has not answered every connect within {SILENCE_TIMEOUT:?}; is the tracker up and \
                     reachable?",
                    self.targets[*group].url
                )));
            }
            let retry_ns = session.timeout_ns() / 5;
            let is_due = |(group, source): &(usize, u32)| {
                self.clients.should_connect(*group, *source, now_ns, retry_ns)
            };
            let due: Vec<_> = unconnected.into_iter().filter(is_due).take(BATCH).collect();
            for (group, source) in due {
                self.queue_connects(session, group, source, 1, now_ns)?;
            }
            self.flush(session)?;
            self.receive(session)?;
        }
    }

    fn receive(&mut self, session: &mut Session<'_>) -> io::Result<usize> {
        let Self { targets, clients, incoming, .. } = self;
        let mut received = 0;
        for (group, target) in targets.iter().enumerate() {
            let arrived = incoming.receive(&target.socket)?;
            if arrived == 0 {
                continue;
            }
            received += arrived;
            session.step_stats.count_batch(arrived, arrived);
            let now_ns = session.now_ns();
            for (bytes, from) in incoming.datagrams() {
                match from.is_same_endpoint(&target.to) {
                    true => process_datagram(session, clients, group, bytes, now_ns),
                    false => session
                        .step_stats
                        .count_wrong("reply from an address that is not the tracker's"),
                }
            }
        }
        Ok(received)
    }

    fn can_send(&self) -> bool {
        true
    }

    fn waiting_for_connection(&self) -> usize {
        0
    }

    fn end_step(&mut self, _: &mut Session<'_>) {}

    fn send_request(
        &mut self,
        session: &mut Session<'_>,
        mix: &RequestMix,
        due_ns: u64,
    ) -> io::Result<()> {
        self.queue_request(session, mix, due_ns)
    }

    fn send_first_announce(
        &mut self,
        session: &mut Session<'_>,
        group: usize,
        peer: u32,
    ) -> io::Result<()> {
        self.queue_first_announce(session, group, peer)
    }

    fn send_flood_request(
        &mut self,
        session: &mut Session<'_>,
        flood_kind: FloodKind,
    ) -> io::Result<()> {
        self.queue_flood_request(session, flood_kind)
    }

    fn flush(&mut self, session: &mut Session<'_>) -> io::Result<()> {
        for target in &mut self.targets {
            if !target.out.is_empty() {
                session.step_stats.record.generator.unsent +=
                    target.out.send(&target.socket)? as u64;
            }
        }
        Ok(())
    }

    fn handle_lost(&mut self, _: &mut Session<'_>, request: &SentRequest) {
        self.clients.mark_suspect(request.group.into(), request.source, request.sent_ns);
    }

    fn drops(&self) -> u64 {
        self.targets.iter().map(|target| target.socket.drops()).sum()
    }

    fn url(&self, group: usize) -> &str {
        &self.targets[group].url
    }
}

/// Checks a datagram from a tracker, and updates the connection id of the client.
fn process_datagram(
    session: &mut Session<'_>,
    clients: &mut LoadClients,
    group: usize,
    bytes: &[u8],
    now_ns: u64,
) {
    let (transaction, reply) = match udp::parse_reply(bytes) {
        Ok(read) => read,
        Err(problem) => return session.step_stats.count_wrong(problem),
    };
    if transaction & UNPROVEN_BIT != 0 {
        session.step_stats.record.answered_unproven += 1;
        return;
    }
    if transaction & FLOOD_BIT != 0 {
        session.step_stats.record.flood_connects_answered += 1;
        return;
    }
    let Some((request, _)) = session.process_reply(transaction, group, &reply, now_ns) else {
        return;
    };
    let group = usize::from(request.group);
    match reply {
        TrackerReply::Connect { connection_id } if request.kind == RequestKind::Connect => {
            clients.set_id(group, request.source, connection_id, now_ns);
        }
        TrackerReply::Error => clients.mark_suspect(group, request.source, request.sent_ns),
        _ => {}
    }
}
