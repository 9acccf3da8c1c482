//! `tsubame e2e`: sends the requests of a client to a running tracker and prints the results.

mod client;
mod http;
mod udp;

pub use client::E2eError;

use client::{AnnounceResult, E2eEvent, ScrapeResult, TestClient, expect};
use std::fmt;
use std::io;
use std::net::ToSocketAddrs;
use tsubame_storage::Endpoint;

/// Ports of the two peers that the test client announces: a seeder and a leecher.
const PORTS: [u16; 2] = [10_001, 10_002];

/// Tests every address of a URL and prints each step; returns the first error.
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
        _ => E2eError::Resolve(authority.clone(), error),
    })?;
    let mut failed = None;
    // Several addresses may belong to one tracker, so each is tested with its own torrent.
    for (address, number) in addresses.zip(0_u64..) {
        // A failure to print is not a failure of the tracker.
        let _ = writeln!(out, "{url} at {address}");
        let entropy = entropy.wrapping_add(number);
        let checked = match scheme {
            "udp" => udp::UdpTestClient::new(address, entropy).and_then(|mut it| run(&mut it, out)),
            _ => http::HttpTestClient::new(address, scheme, (&authority, path), entropy)
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
    // The colons of an IPv6 address are within brackets: without a port, the text ends with a bracket.
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    if has_port { authority.to_owned() } else { format!("{authority}:{port}") }
}

/// Checks that a leecher receives the address of a seeder that announced before it, that both are counted, and that
/// both are removed when they stop.
fn run(client: &mut impl TestClient, out: &mut impl fmt::Write) -> Result<(), E2eError> {
    if let Some(line) = client.prepare()? {
        let _ = writeln!(out, "  {line}");
    }
    let tracker = client.tracker();
    let first = client.announce(PORTS[0], E2eEvent::Started, 0)?;
    show(out, "announce  a seeder starts", &first);
    expect(tracker, first.peers.is_empty(), "announce", || {
        format!("the first peer of a new swarm got {} peers", first.peers.len())
    })?;
    let second = client.announce(PORTS[1], E2eEvent::Started, 100)?;
    show(out, "announce  a leecher starts", &second);
    expect(tracker, second.peers.iter().any(|peer| peer.port() == PORTS[0]), "announce", || {
        "the leecher did not get the seeder".to_owned()
    })?;
    expect(tracker, second.peers.iter().all(|peer| peer.port() != PORTS[1]), "announce", || {
        "the leecher got itself".to_owned()
    })?;
    let ScrapeResult { seeders, completed, leechers } = client.scrape()?;
    let _ =
        writeln!(out, "  scrape    {seeders} seeders, {leechers} leechers, {completed} completed");
    expect(tracker, (seeders, leechers) == (1, 1), "scrape", || {
        format!("{seeders} seeders and {leechers} leechers after one of each announced")
    })?;
    for (port, left) in [(PORTS[0], 0), (PORTS[1], 100)] {
        client.announce(port, E2eEvent::Stopped, left)?;
    }
    let ScrapeResult { seeders, leechers, .. } = client.scrape()?;
    expect(tracker, (seeders, leechers) == (0, 0), "scrape", || {
        format!("{seeders} seeders and {leechers} leechers remain after both stopped")
    })?;
    let _ = writeln!(out, "  stopped   both peers are gone; the tracker works");
    Ok(())
}

fn show(out: &mut impl fmt::Write, step: &str, announced: &AnnounceResult) {
    let AnnounceResult { interval, leechers, seeders, peers } = announced;
    let peers: Vec<_> = peers.iter().map(Endpoint::to_string).collect();
    let _ = writeln!(
        out,
        "  {step}: interval {interval} s, {seeders} seeders, {leechers} leechers, peers [{}]",
        peers.join(", ")
    );
}
