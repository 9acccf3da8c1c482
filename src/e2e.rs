//! `tsubame e2e`: asks a running tracker what a client would ask, and says what it saw.

mod http;
mod udp;

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::Endpoint;

/// How long to wait for each reply, and how often to ask
const PATIENCE: Duration = Duration::from_secs(3);
const TRIES: usize = 3;

/// Where the two clients pretend to listen
const PORTS: [u16; 2] = [10_001, 10_002];

/// What did not go as a client needs it
#[derive(Debug, Error)]
pub enum E2eError {
    /// Not a tracker this can ask
    #[error(
        "{0:?} is not the URL of a tracker; write it as udp://host:6969, http://host:6969/announce or https://..."
    )]
    Url(String),
    /// No address for the name
    #[error("{0} has no address: {1}")]
    Name(String, #[source] io::Error),
    /// The socket failed
    #[error("cannot send to {0}: {1}; is anything listening there?")]
    Socket(SocketAddr, #[source] io::Error),
    /// No encrypted connection
    #[error(
        "{0} cannot be reached over TLS: {1}; is the certificate of this name, and of an authority this machine trusts?"
    )]
    Tls(SocketAddr, String),
    /// Nothing came back
    #[error(
        "{0} does not answer a {1}; is it running, and does a firewall let it through both ways?"
    )]
    Silence(SocketAddr, &'static str),
    /// An error came back
    #[error("{0} refuses a {1}: {2:?}")]
    Refused(SocketAddr, &'static str, String),
    /// The reply is not what the BEPs say
    #[error("{0} answers a {1} wrongly: {2}")]
    Wrong(SocketAddr, &'static str, String),
}

/// Asks every address behind a URL, and prints each step; fails with the first error if any address has one
pub fn check(url: &str, entropy: u64, out: &mut impl fmt::Write) -> Result<(), E2eError> {
    let bad_url = || E2eError::Url(url.to_owned());
    let (scheme, rest) = url.split_once("://").ok_or_else(bad_url)?;
    let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let authority = match (scheme, authority) {
        (_, "") => return Err(bad_url()),
        ("udp", authority) => authority.to_owned(),
        ("http", authority) => with_port(authority, 80),
        ("https", authority) => with_port(authority, 443),
        _ => return Err(bad_url()),
    };
    let addresses = authority.to_socket_addrs().map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => bad_url(),
        _ => E2eError::Name(authority.clone(), error),
    })?;
    let mut failed = None;
    // A tracker's addresses may be one host's: each is asked for a torrent of its own.
    for (address, number) in addresses.zip(0_u64..) {
        // Nobody reads this but a person: a failure to print is not a failure of the tracker.
        let _ = writeln!(out, "{url} at {address}");
        let entropy = entropy.wrapping_add(number);
        let checked = match scheme {
            "udp" => udp::Client::new(address, entropy).and_then(|mut it| run(&mut it, out)),
            _ => http::Client::new(address, scheme, (&authority, path), entropy)
                .and_then(|mut it| run(&mut it, out)),
        };
        if let Err(error) = checked {
            let _ = writeln!(out, "  failed    {error}");
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn with_port(authority: &str, port: u16) -> String {
    // The colons of an IPv6 address stand in brackets.
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    if has_port { authority.to_owned() } else { format!("{authority}:{port}") }
}

/// What both protocols can ask
trait Asks {
    fn tracker(&self) -> SocketAddr;

    /// What comes before the first announce, if anything does; what to say of it
    fn prepare(&mut self) -> Result<Option<String>, E2eError>;

    fn announce(&mut self, port: u16, event: Happening, left: u64) -> Result<Announced, E2eError>;

    fn scrape(&mut self) -> Result<Scraped, E2eError>;
}

/// Why the pretended clients announce
#[derive(Clone, Copy)]
enum Happening {
    Starts,
    Stops,
}

/// An announce reply, read
struct Announced {
    interval: u32,
    leechers: u32,
    seeders: u32,
    peers: Vec<Endpoint>,
}

/// A scrape reply, read
struct Scraped {
    seeders: u32,
    completed: u32,
    leechers: u32,
}

/// A seeder and a leecher meet, are counted, and leave
fn run(client: &mut impl Asks, out: &mut impl fmt::Write) -> Result<(), E2eError> {
    if let Some(line) = client.prepare()? {
        let _ = writeln!(out, "  {line}");
    }
    let tracker = client.tracker();
    let first = client.announce(PORTS[0], Happening::Starts, 0)?;
    show(out, "announce  a seeder starts", &first);
    expect(tracker, first.peers.is_empty(), "announce", || {
        format!("a new swarm has {} peers for its first", first.peers.len())
    })?;
    let second = client.announce(PORTS[1], Happening::Starts, 100)?;
    show(out, "announce  a leecher starts", &second);
    expect(tracker, second.peers.iter().any(|peer| peer.port() == PORTS[0]), "announce", || {
        "the leecher is not given the seeder".to_owned()
    })?;
    expect(tracker, second.peers.iter().all(|peer| peer.port() != PORTS[1]), "announce", || {
        "the leecher is given itself".to_owned()
    })?;
    let Scraped { seeders, completed, leechers } = client.scrape()?;
    let _ =
        writeln!(out, "  scrape    {seeders} seeders, {leechers} leechers, {completed} completed");
    expect(tracker, (seeders, leechers) == (1, 1), "scrape", || {
        format!("{seeders} seeders and {leechers} leechers, where one of each announced")
    })?;
    for (port, left) in [(PORTS[0], 0), (PORTS[1], 100)] {
        client.announce(port, Happening::Stops, left)?;
    }
    let Scraped { seeders, leechers, .. } = client.scrape()?;
    expect(tracker, (seeders, leechers) == (0, 0), "scrape", || {
        format!("{seeders} seeders and {leechers} leechers are left after both stopped")
    })?;
    let _ = writeln!(out, "  stopped   both peers are gone; all is well");
    Ok(())
}

fn show(out: &mut impl fmt::Write, step: &str, announced: &Announced) {
    let Announced { interval, leechers, seeders, peers } = announced;
    let peers: Vec<_> = peers.iter().map(Endpoint::to_string).collect();
    let _ = writeln!(
        out,
        "  {step}: interval {interval} s, {seeders} seeders, {leechers} leechers, peers [{}]",
        peers.join(", ")
    );
}

fn expect(
    tracker: SocketAddr,
    holds: bool,
    what: &'static str,
    otherwise: impl FnOnce() -> String,
) -> Result<(), E2eError> {
    if holds { Ok(()) } else { Err(E2eError::Wrong(tracker, what, otherwise())) }
}

/// A torrent nobody else has
fn info_hash(entropy: u64) -> [u8; 20] {
    let mut info_hash = [0x7e; 20];
    info_hash[..8].copy_from_slice(&entropy.to_be_bytes());
    info_hash
}
