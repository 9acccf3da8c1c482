//! `tsubame e2e`: asks a running tracker what a client would ask, and says what it saw.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::{Endpoint, Family};
use tsubame_udp::wire::{
    ACTION_ANNOUNCE, ACTION_CONNECT, ACTION_ERROR, ACTION_SCRAPE, ANNOUNCE_REPLY_LEN,
    CONNECT_REPLY_LEN, PROTOCOL_MAGIC, SCRAPE_REPLY_LEN, SCRAPE_ROW_LEN,
};

/// How long to wait for each reply, and how often to ask
const PATIENCE: Duration = Duration::from_secs(3);
const TRIES: usize = 3;

/// Where the two clients pretend to listen
const PORTS: [u16; 2] = [10_001, 10_002];

/// What did not go as a client needs it
#[derive(Debug, Error)]
pub enum E2eError {
    /// Not a tracker this can ask
    #[error("{0:?} is not the URL of a UDP tracker; write it as udp://host:6969")]
    Url(String),
    /// No address for the name
    #[error("{0} has no address: {1}")]
    Name(String, #[source] io::Error),
    /// The socket failed
    #[error("cannot send to {0}: {1}; is anything listening there?")]
    Socket(SocketAddr, #[source] io::Error),
    /// Nothing came back
    #[error(
        "{0} does not answer a {1}; is it running, and does a firewall let UDP through both ways?"
    )]
    Silence(SocketAddr, &'static str),
    /// An error came back
    #[error("{0} refuses a {1}: {2:?}")]
    Refused(SocketAddr, &'static str, String),
    /// The reply is not what BEP 15 says
    #[error("{0} answers a {1} wrongly: {2}")]
    Wrong(SocketAddr, &'static str, String),
}

/// Asks every address behind a URL, and prints each step; fails at the first that goes wrong
pub fn check(url: &str, entropy: u64, out: &mut impl fmt::Write) -> Result<(), E2eError> {
    let authority = url
        .strip_prefix("udp://")
        .map(|rest| rest.split(['/', '?']).next().unwrap_or(rest))
        .filter(|authority| !authority.is_empty())
        .ok_or_else(|| E2eError::Url(url.to_owned()))?;
    let addresses = authority.to_socket_addrs().map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => E2eError::Url(url.to_owned()),
        _ => E2eError::Name(authority.to_owned(), error),
    })?;
    for address in addresses {
        // Nobody reads this but a person: a failure to print is not a failure of the tracker.
        let _ = writeln!(out, "{url} at {address}");
        Client::new(address, entropy)?.run(out)?;
    }
    Ok(())
}

struct Client {
    tracker: SocketAddr,
    socket: UdpSocket,
    info_hash: [u8; 20],
    transactions: u32,
}

/// An announce reply, read
struct Announced {
    interval: u32,
    leechers: u32,
    seeders: u32,
    peers: Vec<Endpoint>,
}

impl Client {
    fn new(tracker: SocketAddr, entropy: u64) -> Result<Self, E2eError> {
        let any: SocketAddr = match tracker {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
        };
        let open = || {
            let socket = UdpSocket::bind(any)?;
            // Replies from elsewhere are dropped then, as clients do.
            socket.connect(tracker)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        let socket = open().map_err(|error| E2eError::Socket(tracker, error))?;
        let mut info_hash = [0x7e; 20];
        info_hash[..8].copy_from_slice(&entropy.to_be_bytes());
        Ok(Self { tracker, socket, info_hash, transactions: entropy as u32 })
    }

    fn run(mut self, out: &mut impl fmt::Write) -> Result<(), E2eError> {
        let id = self.connect()?;
        let _ = writeln!(out, "  connect   connection id {id:016x}");
        let first = self.announce(id, PORTS[0], 2, 0)?;
        self.show(out, "announce  a seeder starts", &first);
        self.expect(first.peers.is_empty(), "announce", || {
            format!("a new swarm has {} peers for its first", first.peers.len())
        })?;
        let second = self.announce(id, PORTS[1], 2, 100)?;
        self.show(out, "announce  a leecher starts", &second);
        self.expect(second.peers.iter().any(|peer| peer.port() == PORTS[0]), "announce", || {
            "the leecher is not given the seeder".to_owned()
        })?;
        self.expect(second.peers.iter().all(|peer| peer.port() != PORTS[1]), "announce", || {
            "the leecher is given itself".to_owned()
        })?;
        let (seeders, completed, leechers) = self.scrape(id)?;
        let _ = writeln!(
            out,
            "  scrape    {seeders} seeders, {leechers} leechers, {completed} completed"
        );
        self.expect((seeders, leechers) == (1, 1), "scrape", || {
            format!("{seeders} seeders and {leechers} leechers, where one of each announced")
        })?;
        for (port, left) in [(PORTS[0], 0), (PORTS[1], 100)] {
            self.announce(id, port, 3, left)?;
        }
        let (seeders, _, leechers) = self.scrape(id)?;
        self.expect((seeders, leechers) == (0, 0), "scrape", || {
            format!("{seeders} seeders and {leechers} leechers are left after both stopped")
        })?;
        let _ = writeln!(out, "  stopped   both peers are gone; all is well");
        Ok(())
    }

    fn show(&self, out: &mut impl fmt::Write, step: &str, announced: &Announced) {
        let Announced { interval, leechers, seeders, peers } = announced;
        let peers: Vec<_> = peers.iter().map(Endpoint::to_string).collect();
        let _ = writeln!(
            out,
            "  {step}: interval {interval} s, {seeders} seeders, {leechers} leechers, peers [{}]",
            peers.join(", ")
        );
    }

    fn expect(
        &self,
        holds: bool,
        what: &'static str,
        otherwise: impl FnOnce() -> String,
    ) -> Result<(), E2eError> {
        if holds { Ok(()) } else { Err(E2eError::Wrong(self.tracker, what, otherwise())) }
    }

    fn connect(&mut self) -> Result<u64, E2eError> {
        let reply = self.ask(PROTOCOL_MAGIC, ACTION_CONNECT, &[], "connect")?;
        self.expect(reply.len() == CONNECT_REPLY_LEN, "connect", || {
            format!("{} bytes instead of 16", reply.len())
        })?;
        let id = reply.last_chunk().copied().map(u64::from_be_bytes).unwrap_or_default();
        self.expect(id != 0, "connect", || "with connection id 0".to_owned())?;
        Ok(id)
    }

    fn announce(
        &mut self,
        id: u64,
        port: u16,
        event: u32,
        left: u64,
    ) -> Result<Announced, E2eError> {
        let mut body = self.info_hash.to_vec();
        body.extend(*b"-TS0001-");
        body.extend([port.to_be_bytes(); 6].as_flattened());
        body.extend([0, left, 0].map(u64::to_be_bytes).as_flattened());
        body.extend([event, 0, u32::from(port), u32::MAX].map(u32::to_be_bytes).as_flattened());
        body.extend(port.to_be_bytes());
        let reply = self.ask(id, ACTION_ANNOUNCE, &body, "announce")?;
        let family = Family::of(self.tracker.ip());
        let peers = reply.get(ANNOUNCE_REPLY_LEN..).ok_or_else(|| {
            E2eError::Wrong(self.tracker, "announce", format!("{} bytes", reply.len()))
        })?;
        self.expect(peers.len() % family.compact_len() == 0, "announce", || {
            format!("{} bytes of peers, which are {} each", peers.len(), family.compact_len())
        })?;
        let word = |index| word_at(&reply, index);
        Ok(Announced {
            interval: word(2),
            leechers: word(3),
            seeders: word(4),
            peers: peers.chunks(family.compact_len()).filter_map(Endpoint::from_compact).collect(),
        })
    }

    fn scrape(&mut self, id: u64) -> Result<(u32, u32, u32), E2eError> {
        let body = self.info_hash;
        let reply = self.ask(id, ACTION_SCRAPE, &body, "scrape")?;
        self.expect(reply.len() == SCRAPE_REPLY_LEN + SCRAPE_ROW_LEN, "scrape", || {
            format!("{} bytes instead of 20", reply.len())
        })?;
        Ok((word_at(&reply, 2), word_at(&reply, 3), word_at(&reply, 4)))
    }

    /// Sends a request until its reply comes
    fn ask(
        &mut self,
        id: u64,
        action: u32,
        body: &[u8],
        what: &'static str,
    ) -> Result<Vec<u8>, E2eError> {
        self.transactions = self.transactions.wrapping_add(1);
        let transaction = self.transactions;
        let mut request = id.to_be_bytes().to_vec();
        request.extend([action, transaction].map(u32::to_be_bytes).as_flattened());
        request.extend(body);
        let mut reply = vec![0; 65_536];
        for _ in 0..TRIES {
            self.socket.send(&request).map_err(|error| E2eError::Socket(self.tracker, error))?;
            while let Ok(len) = self.socket.recv(&mut reply) {
                if len < 8 || word_at(&reply, 1) != transaction {
                    continue;
                }
                reply.truncate(len);
                return match word_at(&reply, 0) {
                    ACTION_ERROR => {
                        let text = String::from_utf8_lossy(&reply[8..]).into_owned();
                        Err(E2eError::Refused(self.tracker, what, text))
                    }
                    answered if answered == action => Ok(reply),
                    other => {
                        Err(E2eError::Wrong(self.tracker, what, format!("with action {other}")))
                    }
                };
            }
        }
        Err(E2eError::Silence(self.tracker, what))
    }
}

fn word_at(bytes: &[u8], index: usize) -> u32 {
    bytes.as_chunks::<4>().0.get(index).copied().map(u32::from_be_bytes).unwrap_or_default()
}
