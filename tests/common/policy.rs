//! A tracker with hooks, and a client for each protocol.

use super::http::{Connection, HttpAnnounceReply, escaped, failure};
use super::{Announce, Client, Tracker, WAIT_TIMEOUT, control_of, cpus, info_hash_of, now};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use tsubame_storage::InfoHash;

pub(crate) const NOT_SERVED: &str = "this torrent is not served by this tracker";

pub(crate) fn config(shards: usize, hooks: &str) -> String {
    format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n\
         http: {{listen: \"127.0.0.1:0\", announce_paths: [/announce, '/{{key}}/announce']}}\n\
         announce: {{peer_lifetime: 2h, trust_client_ip: 127.0.0.0/8}}\nhooks:\n{hooks}",
        cpus(shards)
    )
}

/// The reply to an announce, over either protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientReply {
    /// Seeders, leechers and interval.
    Swarm(i64, i64, i64),
    /// An error or a failure reason.
    Error(String),
    /// A failure reason with status 410.
    Gone(String),
    /// No reply.
    NoReply,
}

use ClientReply::{Error, Gone, NoReply, Swarm};

pub(crate) fn error(text: &str) -> ClientReply {
    Error(text.to_owned())
}

/// Announces over UDP with URL data (BEP 41).
pub(crate) fn over_udp(
    client: &Client,
    announce: &Announce,
    peer_id: &[u8; 20],
    url: &str,
) -> ClientReply {
    let mut request = announce.bytes(client.id, 9);
    request[36..56].copy_from_slice(peer_id);
    for piece in url.as_bytes().chunks(255) {
        request.extend([2, piece.len() as u8]);
        request.extend(piece);
    }
    let Some(reply) = client.ask(&request) else { return NoReply };
    let word = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().unwrap());
    match word(0) {
        1 => Swarm(word(16).into(), word(12).into(), word(8).into()),
        3 => Error(String::from_utf8(reply[8..].to_vec()).unwrap()),
        action => panic!("action {action}"),
    }
}

pub(crate) fn over_http(
    tracker: SocketAddr,
    announce: &Announce,
    peer_id: &[u8; 20],
    url: &str,
) -> ClientReply {
    let Announce { info_hash, port, left, .. } = announce;
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let (path, query) = (if path.is_empty() { "/announce" } else { path }, format!("&{query}"));
    let target = format!(
        "{path}?info_hash={}&peer_id={}&port={port}&left={left}{query}",
        escaped(info_hash),
        escaped(peer_id)
    );
    let mut connection = Connection::to(tracker);
    connection.send(format!("GET {target} HTTP/1.1\r\nHost: t.example\r\n\r\n").as_bytes());
    let Some(mut reply) = connection.reply() else { return NoReply };
    if reply.status == 410 {
        assert!(reply.body.ends_with(b"8:retry in5:nevere"), "{}", reply.body.escape_ascii());
        reply.status = 200;
        return Gone(failure(&reply));
    }
    if reply.body.starts_with(b"d14:failure reason") {
        return Error(failure(&reply));
    }
    let HttpAnnounceReply { seeders, leechers, interval, .. } = HttpAnnounceReply::of(&reply.body);
    Swarm(seeders, leechers, interval)
}

/// Peer id of a client that no hook refuses.
pub(crate) const PEER_ID: &[u8; 20] = b"-TT0001-abcdefghijkl";

/// A tracker, a client over UDP, and the addresses of its HTTP listener and its control plane.
pub(crate) struct TrackerWithClients {
    pub(crate) tracker: Tracker,
    pub(crate) udp: Client,
    pub(crate) http: SocketAddr,
    pub(crate) control: SocketAddr,
}

impl TrackerWithClients {
    pub(crate) fn new(shards: usize, hooks: &str) -> Self {
        Self::with_command(shards, hooks, |command| command)
    }

    /// Starts the tracker with a command that `prepare` modifies or wraps.
    pub(crate) fn with_command(
        shards: usize,
        hooks: &str,
        prepare: impl FnOnce(Command) -> Command,
    ) -> Self {
        let mut tracker = Tracker::start_with_command(&config(shards, hooks), prepare);
        let udp = Client::connected("127.0.0.1", tracker.addresses()[0]);
        let (http, control) = (tracker.addresses_of("http")[0], control_of(&mut tracker));
        Self { tracker, udp, http, control }
    }

    /// Announces a peer of a torrent over UDP, then over HTTP.
    pub(crate) fn announce_over_both(
        &self,
        torrent: u32,
        peer_id: &[u8; 20],
        url: &str,
    ) -> [ClientReply; 2] {
        let announce = Announce::of(torrent, 7_001);
        let udp = over_udp(&self.udp, &announce, peer_id, url);
        [udp, over_http(self.http, &announce, peer_id, url)]
    }

    /// Sends a request to the control plane. Returns the status and the body; of a JSON object with the key `message`
    /// or `error`, only the text of that key.
    pub(crate) fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.control).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
        let body = reply.split_once("\r\n\r\n").unwrap().1.trim_end();
        let json: Option<serde_json::Value> = serde_json::from_str(body).ok();
        let text = json.as_ref().and_then(|it| it.get("message").or(it.get("error"))?.as_str());
        (status, text.unwrap_or(body).to_owned())
    }

    pub(crate) fn metric(&self, outcome: &str, protocol: &str) -> u64 {
        let (_, text) = self.ask("GET", "/metrics");
        let wanted = [format!("outcome=\"{outcome}\""), format!("protocol=\"{protocol}\"")];
        let lines = text.lines().filter(|line| {
            line.starts_with("tsubame_requests_total") && wanted.iter().all(|it| line.contains(it))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Waits until a counter has this value, because shards publish their counters at intervals.
    pub(crate) fn wait_for_metric(&self, outcome: &str, protocol: &str, value: u64) {
        let deadline = now() + WAIT_TIMEOUT;
        while self.metric(outcome, protocol) != value {
            assert!(now() < deadline, "{outcome}: {}", self.metric(outcome, protocol));
        }
    }
}

pub(crate) fn hex(torrent: u32) -> String {
    InfoHash(info_hash_of(torrent)).to_string()
}

pub(crate) fn scrape_target(hashes: &[[u8; 20]]) -> String {
    let query: Vec<_> = hashes.iter().map(|hash| format!("info_hash={}", escaped(hash))).collect();
    format!("/scrape?{}", query.join("&"))
}

/// Waits until a condition is met. A failure is reported at the line of the caller.
#[track_caller]
pub(crate) fn wait_until(mut holds: impl FnMut() -> bool) {
    let deadline = now() + WAIT_TIMEOUT;
    while !holds() {
        assert!(now() < deadline, "timeout: the condition was not met");
    }
}

pub(crate) fn wait_for_torrents(setup: &TrackerWithClients, count: u64) {
    wait_until(|| {
        let (_, text) = setup.ask("GET", "/metrics");
        let lines = text.lines().filter(|line| line.starts_with("tsubame_torrents{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
            == count
    });
}
