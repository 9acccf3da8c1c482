//! Hooks through the program: over UDP and over HTTP, on one shard and on two, changed while it runs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::http::{Announced as HttpAnnounced, Connection, escaped, failure, rows_of};
use common::{Announce, Client, PATIENCE, SILENCE, Tracker, control_of, cpus, info_hash_of, now};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tsubame::policy::access_list::parse_hash;
use tsubame_storage::InfoHash;

const NOT_SERVED: &str = "this torrent is not served by this tracker";

fn config(shards: usize, hooks: &str) -> String {
    format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n\
         http: {{listen: \"127.0.0.1:0\", announce_paths: [/announce, '/{{key}}/announce']}}\n\
         announce: {{peer_lifetime: 2h}}\nhooks:\n{hooks}",
        cpus(shards)
    )
}

/// What came back
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// Seeders and leechers, and when to come back
    Swarm(i64, i64, i64),
    Error(String),
    /// With status 410
    Gone(String),
    Silence,
}

use Answer::{Error, Gone, Silence, Swarm};

fn error(text: &str) -> Answer {
    Error(text.to_owned())
}

/// Announces over UDP, with URL data behind it
fn over_udp(client: &Client, announce: &Announce, peer_id: &[u8; 20], url: &str) -> Answer {
    let mut request = announce.bytes(client.id, 9);
    request[36..56].copy_from_slice(peer_id);
    for piece in url.as_bytes().chunks(255) {
        request.extend([2, piece.len() as u8]);
        request.extend(piece);
    }
    let Some(reply) = client.ask(&request) else { return Silence };
    let word = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().unwrap());
    match word(0) {
        1 => Swarm(word(16).into(), word(12).into(), word(8).into()),
        3 => Error(String::from_utf8(reply[8..].to_vec()).unwrap()),
        action => panic!("action {action}"),
    }
}

fn over_http(tracker: SocketAddr, announce: &Announce, peer_id: &[u8; 20], url: &str) -> Answer {
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
    let Some(mut reply) = connection.reply() else { return Silence };
    if reply.status == 410 {
        assert!(reply.body.ends_with(b"8:retry in5:nevere"), "{}", reply.body.escape_ascii());
        reply.status = 200;
        return Gone(failure(&reply));
    }
    if reply.body.starts_with(b"d14:failure reason") {
        return Error(failure(&reply));
    }
    let HttpAnnounced { seeders, leechers, interval, .. } = HttpAnnounced::of(&reply.body);
    Swarm(seeders, leechers, interval)
}

const CLIENT: &[u8; 20] = b"-TT0001-abcdefghijkl";

/// A tracker with a client of each protocol
struct World {
    tracker: Tracker,
    udp: Client,
    http: SocketAddr,
    control: SocketAddr,
}

impl World {
    fn new(shards: usize, hooks: &str) -> Self {
        let mut tracker = Tracker::start(&config(shards, hooks));
        let udp = Client::connected("127.0.0.1", tracker.addresses()[0]);
        let (http, control) = (tracker.addresses_of("http")[0], control_of(&mut tracker));
        Self { tracker, udp, http, control }
    }

    /// Has a peer of a torrent announce over either protocol
    fn both(&self, torrent: u32, peer_id: &[u8; 20], url: &str) -> [Answer; 2] {
        let announce = Announce::of(torrent, 7_001);
        let udp = over_udp(&self.udp, &announce, peer_id, url);
        [udp, over_http(self.http, &announce, peer_id, url)]
    }

    /// Asks the control plane
    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.control).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
        (status, reply.split_once("\r\n\r\n").unwrap().1.trim_end().to_owned())
    }

    fn metric(&self, outcome: &str, protocol: &str) -> u64 {
        let (_, text) = self.ask("GET", "/metrics");
        let wanted = [format!("outcome=\"{outcome}\""), format!("protocol=\"{protocol}\"")];
        let lines = text.lines().filter(|line| {
            line.starts_with("tsubame_requests_total") && wanted.iter().all(|it| line.contains(it))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Waits until a figure has this value: shards publish at their own time
    fn wait_for_metric(&self, outcome: &str, protocol: &str, value: u64) {
        let deadline = now() + PATIENCE;
        while self.metric(outcome, protocol) != value {
            assert!(now() < deadline, "{outcome}: {}", self.metric(outcome, protocol));
        }
    }
}

fn hex(torrent: u32) -> String {
    InfoHash(info_hash_of(torrent)).to_string()
}

#[test]
fn each_hook_refuses_over_both_protocols_and_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    fs::write(&keys, "sesame # of somebody\n").unwrap();
    let hooks = format!(
        "  - {{name: access_list, options: {{mode: deny, info_hashes: [{}]}}}}\n  \
           - {{name: access_list, options: {{mode: deny, info_hashes: [{}], answer: gone}}}}\n  \
           - {{name: access_list, options: {{mode: deny, info_hashes: [{}], answer: empty, interval: 2h}}}}\n  \
           - {{name: clients, options: {{mode: deny, clients: [XX]}}}}\n  \
           - {{name: passkey, options: {{file: {}}}}}\n  \
           - {{name: interval_variation, options: {{increase: 1s}}}}\n",
        hex(1),
        hex(2),
        hex(3),
        keys.display()
    );
    for shards in [1, 2] {
        let world = World::new(shards, &hooks);
        let good = "/sesame/announce";
        assert_eq!(world.both(1, CLIENT, good), [error(NOT_SERVED), error(NOT_SERVED)]);
        let gone = Gone(NOT_SERVED.to_owned());
        assert_eq!(world.both(2, CLIENT, good), [error(NOT_SERVED), gone]);
        assert_eq!(world.both(3, CLIENT, good), [Swarm(0, 0, 7_200), Swarm(0, 0, 7_200)]);
        let text = "this client is not permitted on this tracker";
        assert_eq!(world.both(4, b"-XX0001-abcdefghijkl", good), [error(text), error(text)]);
        let text = "no passkey in the announce URL";
        assert_eq!(world.both(4, CLIENT, ""), [error(text), error(text)]);
        let wrong = "unknown passkey";
        assert_eq!(world.both(4, CLIENT, "/abracadabra/announce"), [error(wrong), error(wrong)]);
        // The same peer, so the second finds itself there. All are asked to come a second later.
        assert_eq!(world.both(4, CLIENT, good), [Swarm(0, 1, 1_801), Swarm(0, 1, 1_801)]);
        let by_parameter = world.both(5, CLIENT, "?passkey=sesame");
        assert_eq!(by_parameter, [Swarm(0, 1, 1_801), Swarm(0, 1, 1_801)]);
        for protocol in ["udp", "http"] {
            world.wait_for_metric("forbidden_torrent", protocol, 3);
            world.wait_for_metric("forbidden_client", protocol, 1);
            world.wait_for_metric("no_passkey", protocol, 1);
            world.wait_for_metric("wrong_passkey", protocol, 1);
        }
    }
}

#[test]
fn who_asks_too_much_waits_and_others_do_not() {
    let hooks =
        "  - {name: limits, options: {announces_per_second: 1, burst: 8, exempt: [127.0.0.9]}}\n";
    let world = World::new(1, hooks);
    world.udp.socket.set_read_timeout(Some(SILENCE)).unwrap();
    let answers: Vec<_> = (0..5).flat_map(|torrent| world.both(torrent, CLIENT, "")).collect();
    // A second or two may have passed, in each of which one more is permitted.
    let refused = answers[8..].iter().filter(|it| !matches!(it, Swarm(..))).count();
    assert!(answers[..8].iter().all(|it| matches!(it, Swarm(..))) && refused > 0, "{answers:?}");
    let too_many = "too many requests; announce less often";
    assert!(
        answers[8..].iter().all(|it| matches!(it, Swarm(..) | Silence) || *it == error(too_many))
    );
    for address in ["127.0.0.2", "127.0.0.9"] {
        let other = Client::connected(address, world.udp.tracker);
        let permitted = if address == "127.0.0.9" { 30 } else { 8 };
        for torrent in 0..permitted {
            let answer = over_udp(&other, &Announce::of(torrent, 7_002), CLIENT, "");
            assert!(matches!(answer, Swarm(..)), "{address}: {answer:?}");
        }
    }
    let [udp, http] = ["udp", "http"].map(|it| world.metric("too_many_announces", it));
    assert!(udp + http > 0);
}

#[test]
fn networks_that_are_not_permitted_hear_nothing() {
    let hooks = "  - {name: networks, options: {mode: deny, networks: [127.0.0.7]}}\n";
    let world = World::new(2, hooks);
    let stranger = Client::new("127.0.0.7", world.udp.tracker);
    stranger.socket.set_read_timeout(Some(SILENCE)).unwrap();
    assert_eq!(stranger.ask(&common::head(0x0417_2710_1980, 0, 1)), None);
    world.wait_for_metric("forbidden_network", "udp", 1);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 7], 0)).into()).unwrap();
    socket.connect(&world.http.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(stream.read(&mut [0; 9]), Ok(0)), "it is closed without a word");
    world.wait_for_metric("forbidden_network", "http", 1);
    assert!(matches!(world.both(1, CLIENT, ""), [Swarm(..), Swarm(..)]));
}

#[test]
fn lists_change_while_the_tracker_runs_and_what_is_wrong_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list");
    fs::write(&list, format!("{}\n", hex(1))).unwrap();
    let file = list.display();
    let hooks = format!("  - {{name: access_list, options: {{mode: deny, files: {file}}}}}\n");
    let mut world = World::new(2, &hooks);
    let served = |it: &[Answer; 2]| it.iter().all(|answer| matches!(answer, Swarm(..)));
    assert_eq!(world.both(1, CLIENT, ""), [error(NOT_SERVED), error(NOT_SERVED)]);
    for torrent in 2..40 {
        assert!(served(&world.both(torrent, CLIENT, "")));
    }
    let hashes: Vec<_> = (1..40).map(info_hash_of).collect();
    let rows = world.udp.scrape(&hashes).unwrap();
    assert_eq!(rows.iter().filter(|row| row[2] == 1).count(), 38);
    // Most swarms are not served any more: their peers are dropped, and stay so when they are served again.
    let text: String = (2..30).map(|torrent| format!("{}\r\n", hex(torrent))).collect();
    fs::write(&list, text).unwrap();
    world.tracker.wait_for("a list has changed: 1 hook, 28 info hashes listed");
    // Each shard takes it over at a time of its own.
    wait_until(|| world.both(2, CLIENT, "") == [error(NOT_SERVED), error(NOT_SERVED)]);
    wait_until(|| {
        let rows = rows_of(&Connection::to(world.http).get(&scrape_target(&hashes[..])).body);
        rows.iter().filter(|(_, row)| row[2] == 1).count() == 10
    });
    wait_for_torrents(&world, 10);
    // A mistake is told, with its line.
    fs::write(&list, "no hash\n").unwrap();
    let said = world.tracker.wait_for("is no info hash");
    assert!(said.contains("list:1:") && said.contains("everything stays as it was"), "{said}");
    let (status, said) = world.ask("POST", "/v1/reload");
    assert!(
        status == 422 && said.contains("list:1: \"no hash\" is no info hash"),
        "{status} {said}"
    );
    assert_eq!(world.both(2, CLIENT, ""), [error(NOT_SERVED), error(NOT_SERVED)]);
    fs::write(&list, "").unwrap();
    let (status, said) = world.ask("POST", "/v1/reload");
    assert_eq!((status, said.as_str()), (200, "read again: 1 hook, 0 info hashes listed"));
    wait_until(|| served(&world.both(2, CLIENT, "")));
    assert_eq!(world.udp.scrape(&[info_hash_of(3)]), Some(vec![[0, 0, 0]]), "dropped is dropped");
    // Hooks come and go with the config.
    let config = config(2, "").replace("peer_lifetime: 2h", "peer_lifetime: 3h");
    world.tracker.write_config(&config.replace("hooks:", "hooks: []"));
    world.tracker.signal("HUP");
    world.tracker.wait_for(
        "0 hooks, 0 info hashes listed; restart the tracker for what else has changed: announce",
    );
    let far = "  - {name: interval_load, options: {longest: 2h}}\n";
    let longer = config.replace("hooks:", &format!("hooks:\n{far}"));
    world.tracker.write_config(&longer);
    let (status, said) = world.ask("POST", "/v1/reload");
    assert!(
        status == 422 && said.contains("as it was at start: 2h is less than"),
        "{status} {said}"
    );
    world.tracker.write_config("hooks: [{name: nothing}]");
    let (status, said) = world.ask("POST", "/v1/reload");
    assert!(status == 422 && said.contains("\"nothing\" is no hook"), "{status} {said}");
}

fn scrape_target(hashes: &[[u8; 20]]) -> String {
    let query: Vec<_> = hashes.iter().map(|hash| format!("info_hash={}", escaped(hash))).collect();
    format!("/scrape?{}", query.join("&"))
}

fn wait_until(mut holds: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !holds() {
        assert!(now() < deadline, "it does not come");
    }
}

fn wait_for_torrents(world: &World, count: u64) {
    wait_until(|| {
        let (_, text) = world.ask("GET", "/metrics");
        let lines = text.lines().filter(|line| line.starts_with("tsubame_torrents{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
            == count
    });
}

#[test]
fn single_torrents_are_put_on_the_list_and_taken_off_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let changes = directory.path().join("changes");
    let hooks = format!(
        "  - {{name: access_list, options: {{mode: allow, info_hashes: [{}], changes: {}}}}}\n",
        hex(1),
        changes.display()
    );
    let refused = [error(NOT_SERVED), error(NOT_SERVED)];
    let world = World::new(2, &hooks);
    assert!(matches!(world.both(1, CLIENT, ""), [Swarm(..), Swarm(..)]));
    assert_eq!(world.both(2, CLIENT, ""), refused);
    let said = world.ask("PUT", &format!("/v1/access_list/{}", hex(2)));
    assert_eq!(said, (200, format!("{} is on the access list", hex(2))));
    wait_until(|| matches!(world.both(2, CLIENT, ""), [Swarm(..), Swarm(..)]));
    assert_eq!(world.ask("DELETE", &format!("/v1/access_list/{}", hex(1))).0, 200);
    wait_until(|| world.both(1, CLIENT, "") == refused);
    assert_eq!(world.ask("PUT", "/v1/access_list/12").0, 400);
    let page = "PUT /v1/access_list/12 HTTP/1.1\r\nHost: x\r\nOrigin: http://e.example\r\n\r\n";
    let mut stream = TcpStream::connect(world.control).unwrap();
    stream.write_all(page.as_bytes()).unwrap();
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"HTTP/1.1 403", "web pages change nothing");
    world.tracker.stop();
    let world = World::new(1, &hooks);
    assert_eq!(world.both(1, CLIENT, ""), refused);
    assert!(matches!(world.both(2, CLIENT, ""), [Swarm(..), Swarm(..)]));
    drop(world);
    assert_eq!(World::new(1, "").ask("PUT", &format!("/v1/access_list/{}", hex(1))).0, 422);
}

#[test]
fn no_honest_announce_goes_unanswered_while_hooks_are_exchanged() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list");
    let text: String = (1_000..101_000).map(|torrent| format!("{}\n", hex(torrent))).collect();
    fs::write(&list, text).unwrap();
    let file = list.display();
    let hooks = format!("  - {{name: access_list, options: {{mode: deny, files: {file}}}}}\n");
    let world = World::new(2, &hooks);
    let done = AtomicBool::new(false);
    let announced = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let mut client = Client::connected("127.0.0.1", world.udp.tracker);
                let (done, http) = (&done, world.http);
                scope.spawn(move || {
                    let mut count = 0;
                    while !done.load(Ordering::Relaxed) {
                        // Panics without an answer.
                        client.announce(&Announce::of(count % 500, 7_000 + number));
                        let announce = Announce::of(count % 500, 8_000 + number);
                        let answer = over_http(http, &announce, CLIENT, "");
                        assert!(matches!(answer, Swarm(..)), "{answer:?}");
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for _ in 0..10 {
            assert_eq!(world.ask("POST", "/v1/reload").0, 200);
        }
        done.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<u32>()
    });
    assert!(announced > 100, "{announced} announces");
    wait_for_torrents(&world, u64::from(announced.min(500)));
}

#[test]
fn directories_of_torrents_are_watched() {
    let directory = tempfile::tempdir().unwrap();
    let hooks = format!(
        "  - {{name: access_list, options: {{mode: allow, torrents: {}}}}}\n",
        directory.path().display()
    );
    let mut world = World::new(1, &hooks);
    let write = |name: &str, bytes: &[u8]| {
        // As careful operators do it: written elsewhere, then moved.
        let path = directory.path().join("new");
        fs::write(&path, bytes).unwrap();
        fs::rename(&path, directory.path().join(name)).unwrap();
    };
    write("a.torrent", b"d8:announce1:x4:infod4:name1:a6:pieces0:ee");
    world.tracker.wait_for("1 info hash listed");
    // The SHA-1 of its info dictionary.
    let hash = parse_hash("476ddb96349da91298ede87b9ffff035959e4143").unwrap();
    let announce = Announce { info_hash: hash.0, ..Announce::of(0, 7_001) };
    wait_until(|| matches!(over_udp(&world.udp, &announce, CLIENT, ""), Swarm(..)));
    assert_eq!(over_udp(&world.udp, &Announce::of(9, 7_001), CLIENT, ""), error(NOT_SERVED));
}

#[test]
fn a_list_that_cannot_be_read_is_told_at_start_and_by_check() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.yaml");
    let hooks = "hooks: [{name: access_list, options: {mode: deny, files: /nowhere/list}}]\n";
    fs::write(&path, hooks).unwrap();
    for command in ["check", "run"] {
        let output = run(command, &path);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot read /nowhere/list"), "{said}");
    }
}

fn run(command: &str, config: &Path) -> std::process::Output {
    common::tsubame().arg(command).arg("--config").arg(config).output().unwrap()
}

#[test]
fn a_list_of_a_million_torrents_is_taken_over_while_the_tracker_serves() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list");
    fs::write(&list, "").unwrap();
    let file = list.display();
    let hooks = format!("  - {{name: access_list, options: {{mode: deny, files: {file}}}}}\n");
    let mut world = World::new(1, &hooks);
    let text: String = (0..1_000_000).map(|torrent| format!("{}\n", hex(torrent))).collect();
    fs::write(&list, text).unwrap();
    let deadline = now() + PATIENCE * 6;
    while world.both(5, CLIENT, "")[0] != error(NOT_SERVED) {
        world.udp.connect();
        assert!(now() < deadline);
    }
    world.tracker.wait_for("1000000 info hashes listed");
}

/// A server of one page, which can be exchanged; nothing is answered while there is none
struct KeyServer {
    url: String,
    page: Arc<Mutex<Option<String>>>,
}

impl KeyServer {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let page = Arc::new(Mutex::new(None::<String>));
        let served = page.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request);
                let Some(page) = served.lock().unwrap().clone() else { continue };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", page.len());
                let _ = stream.write_all(format!("{head}{page}").as_bytes());
            }
        });
        Self { url, page }
    }

    fn serve(&self, page: &str) {
        *self.page.lock().unwrap() = Some(page.to_owned());
    }
}

/// A key pair: the page that has it, and what it signs
struct Issuer {
    id: &'static str,
    key: rcgen::KeyPair,
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        Self { id, key: rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap() }
    }

    fn page(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(rcgen::PublicKeyData::der_bytes(&self.key));
        format!(
            r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "kid": "{}", "x": "{x}"}}]}}"#,
            self.id
        )
    }

    fn token(&self, torrent: u32, exp: u64) -> String {
        let kid = Some(self.id.to_owned());
        let header = jsonwebtoken::Header {
            kid,
            ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA)
        };
        let key = jsonwebtoken::EncodingKey::from_ed_der(self.key.serialized_der());
        let claims =
            serde_json::json!({"iss": "i", "aud": "a", "infohash": hex(torrent), "exp": exp});
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        format!("?jwt={token}")
    }
}

const FAR: u64 = 10_000_000_000;

#[test]
fn tokens_approve_torrents_whatever_becomes_of_the_key_server() {
    let (first, second, server) = (Issuer::new("first"), Issuer::new("second"), KeyServer::new());
    let hooks = format!(
        "  - name: jwt\n    options: {{issuer: i, audience: a, jwk_set_url: '{}', scrapes: true, \
         jwk_set_update_interval: 1s}}\n",
        server.url
    );
    // At first it does not answer.
    let mut world = World::new(2, &hooks);
    world.tracker.wait_for("cannot fetch http://127.0.0.1");
    let unknown = error("the token's key is not known here");
    assert_eq!(world.both(1, CLIENT, &first.token(1, FAR)), [unknown.clone(), unknown.clone()]);
    server.serve(&first.page());
    world.tracker.wait_for("a new key set of 1 keys");
    let served = |answers: [Answer; 2]| answers.iter().all(|it| matches!(it, Swarm(..)));
    wait_until(|| served(world.both(1, CLIENT, &first.token(1, FAR))));
    let text = "no token (jwt) in the announce URL";
    assert_eq!(world.both(1, CLIENT, ""), [error(text), error(text)]);
    let text = "the token is for another torrent";
    assert_eq!(world.both(2, CLIENT, &first.token(1, FAR)), [error(text), error(text)]);
    let text = "the token has expired";
    assert_eq!(world.both(3, CLIENT, &first.token(3, 1_000)), [error(text), error(text)]);
    let text = "the token is not valid here";
    assert_eq!(world.both(1, CLIENT, "?jwt=a.b.c"), [error(text), error(text)]);
    // Scrapes are covered: over UDP there is no way to carry a token.
    let mut scrape = common::head(world.udp.id, 2, 5);
    scrape.extend(info_hash_of(1));
    let reply = world.udp.ask(&scrape).unwrap();
    assert_eq!(&reply[8..], b"scrapes need a key or token here; scrape over HTTP");
    let target = scrape_target(&[info_hash_of(1)]);
    let mut connection = Connection::to(world.http);
    assert_eq!(failure(&connection.get(&target)), "no token (jwt) in the announce URL");
    let token = first.token(1, FAR).replace('?', "&");
    assert_eq!(rows_of(&connection.get(&format!("{target}{token}")).body)[0].1, [0, 0, 1, 1]);
    // What is no key set changes nothing, and is told.
    server.serve("<html>maintenance</html>");
    world.tracker.wait_for("is no JWK set");
    assert!(served(world.both(1, CLIENT, &first.token(1, FAR))));
    server.serve(&format!("{{\"keys\": [{}]}}", " ".repeat(3 << 20)));
    world.tracker.wait_for("cannot fetch");
    assert!(served(world.both(4, CLIENT, &first.token(4, FAR))));
    // Another key takes the place of the first.
    server.serve(&second.page());
    wait_until(|| served(world.both(5, CLIENT, &second.token(5, FAR))));
    wait_until(|| {
        world.both(6, CLIENT, &first.token(6, FAR)) == [unknown.clone(), unknown.clone()]
    });
    for protocol in ["udp", "http"] {
        assert!(world.metric("unknown_token_key", protocol) >= 2);
        world.wait_for_metric("expired_token", protocol, 1);
    }
}

#[test]
fn new_tokens_in_a_flood_are_put_off_and_known_ones_are_not() {
    let issuer = Issuer::new("k");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    fs::write(&file, issuer.page()).unwrap();
    let hooks = format!("  - {{name: jwt, options: {{jwk_set_file: {}}}}}\n", file.display());
    let world = World::new(1, &hooks);
    let good = issuer.token(1, FAR);
    assert!(world.both(1, CLIENT, &good).iter().all(|it| matches!(it, Swarm(..))));
    // Datagrams that are taken together: only some of their signatures are checked.
    let flood = Client::connected("127.0.0.2", world.udp.tracker);
    for number in 0..2_000 {
        let mut request = Announce::of(1, 7_001).bytes(flood.id, number);
        let url = format!("{good}{number}");
        for piece in url.as_bytes().chunks(255) {
            request.extend([2, piece.len() as u8]);
            request.extend(piece);
        }
        flood.socket.send_to(&request, flood.tracker).unwrap();
    }
    assert!(world.both(1, CLIENT, &good).iter().all(|it| matches!(it, Swarm(..))));
    // Over HTTP they wait their turn.
    for number in 0..20 {
        let answer =
            over_http(world.http, &Announce::of(1, 7_001), CLIENT, &format!("{good}x{number}"));
        assert_eq!(answer, error("the token is not valid here"));
    }
    let [bad, put_off] = ["bad_token", "token_not_checked"].map(|it| world.metric(it, "udp"));
    println!("of a flood {bad} tokens were checked and {put_off} put off");
    assert!(bad > 0 && put_off > 0);
}
