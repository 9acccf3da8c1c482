//! Nodes that are processes of their own, with a real NATS server.
//!
//! The tests need `nats-server`, which tests/run installs; therefore `cargo test` ignores them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "cluster/access_lists.rs"]
mod access_lists;
mod common;
#[path = "common/nats.rs"]
mod nats;
#[path = "cluster/users.rs"]
mod users;

use common::{
    Announce, Client, Tracker, UNCAPPED, WAIT_TIMEOUT, control_of, count_in, cpus, http_get,
    info_hash_of, now,
};
use nats::Nats;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tsubame::cluster::{Body, PROTOCOL_VERSION, Sender, encode};
use tsubame::state::encode_records;
use tsubame_storage::{ChangeKind, Endpoint, InfoHash, PeerRecord, Role, StateRecord};

/// Key of connection ids of all nodes.
const KEY: &str = "00112233445566778899aabbccddeeff";

fn config(node: &str, server: &str, more: &str) -> String {
    format!(
        "cpus: {}\nudp: {{listen: [\"127.0.0.1:0\"], connection_id_keys: [{KEY}]}}\n\
         control: {{listen: \"127.0.0.1:0\"}}\ncluster: {{servers: [\"{server}\"], node: {node}{more}}}\n",
        cpus(2)
    )
}

/// Returns the section `storage` of a node that keeps its swarms in a directory.
fn storage_in(directory: &Path) -> String {
    let uncapped = UNCAPPED.trim_end().strip_suffix('}').unwrap();
    format!("{uncapped}, directory: \"{}\"}}\n", directory.display())
}

/// A node and a client of it.
struct Node {
    tracker: Tracker,
    client: Client,
    control: SocketAddr,
}

impl Node {
    fn start(config: &str) -> Self {
        Self::start_with(&format!("{config}{UNCAPPED}"))
    }

    /// Starts a node with this config as it is.
    fn start_with(config: &str) -> Self {
        let mut tracker = Tracker::start(config);
        let client = Client::connected("127.0.0.1", tracker.addresses()[0]);
        let control = control_of(&mut tracker);
        Self { tracker, client, control }
    }

    fn counts(&mut self, torrent: u32) -> [u32; 3] {
        self.client.scrape(&[info_hash_of(torrent)]).unwrap()[0]
    }

    /// Waits until a torrent has these seeders, completed downloads and leechers.
    fn wait_for_counts(&mut self, torrent: u32, expected: [u32; 3]) {
        let deadline = now() + WAIT_TIMEOUT;
        loop {
            let counts = self.counts(torrent);
            if counts == expected {
                return;
            }
            if now() >= deadline {
                println!("torrent {torrent} has {counts:?}, not {expected:?}");
                // Shows the log.
                self.tracker.wait_within(Duration::from_millis(100), "not in the log");
            }
        }
    }

    fn announce(&mut self, torrent: u32, port: u16, left: u64, event: u32) {
        self.client.announce(&Announce { left, event, ..Announce::of(torrent, port) });
    }

    /// Returns whether an announce of a seeder is not refused.
    fn is_permitted(&self, torrent: u32) -> bool {
        let announce = Announce { left: 0, ..Announce::of(torrent, 2_001) };
        self.client.ask(&announce.bytes(self.client.id, 9)).unwrap()[3] == 1
    }

    /// Announces a seeder until that is not refused.
    fn announce_until_permitted(&self, torrent: u32) {
        let deadline = now() + WAIT_TIMEOUT;
        while !self.is_permitted(torrent) {
            assert!(now() < deadline, "torrent {torrent} is refused");
        }
    }

    /// Announces a seeder until that is refused.
    fn wait_until_refused(&self, torrent: u32) {
        let deadline = now() + WAIT_TIMEOUT;
        while self.is_permitted(torrent) {
            assert!(now() < deadline, "torrent {torrent} is permitted");
        }
    }

    /// Waits until a page contains a text.
    fn wait_for_page(&self, path: &str, text: &str) {
        let deadline = now() + WAIT_TIMEOUT;
        loop {
            let page = http_get(self.control, path);
            if page.contains(text) {
                return;
            }
            assert!(now() < deadline, "no {text:?} in {page}");
        }
    }
}

/// Starts two nodes that know each other.
fn two_nodes(nats: &Nats) -> (Node, Node) {
    let mut a = Node::start(&config("a", &nats.url(), ""));
    let mut b = Node::start(&config("b", &nats.url(), ""));
    a.tracker.wait_for("node \"b\" has joined");
    b.tracker.wait_for("node \"a\" has joined");
    (a, b)
}

#[test]
#[ignore = "needs nats-server: tests/run"]
fn what_is_announced_at_one_node_is_answered_by_the_others() {
    let nats = Nats::start("");
    let (mut a, mut b) = two_nodes(&nats);
    for torrent in 0..50 {
        a.announce(torrent, 2_001, 0, 2);
        b.announce(torrent, 2_002, 100, 2);
    }
    for torrent in 0..50 {
        a.wait_for_counts(torrent, [1, 0, 1]);
        b.wait_for_counts(torrent, [1, 0, 1]);
    }
    // The peers of the other node are handed out.
    let reply = b.client.announce(&Announce { event: 0, ..Announce::of(7, 2_002) });
    assert_eq!(reply.peers.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [2_001]);
    // A download completes at the node where it did not begin, and a peer stops there.
    a.announce(7, 2_002, 0, 1);
    b.wait_for_counts(7, [2, 1, 0]);
    a.wait_for_counts(7, [2, 1, 0]);
    b.announce(7, 2_001, 0, 3);
    a.wait_for_counts(7, [1, 1, 0]);
    // A node that comes later gets all.
    let mut c = Node::start(&config("c", &nats.url(), ""));
    for torrent in 0..50 {
        c.wait_for_counts(torrent, if torrent == 7 { [1, 1, 0] } else { [1, 0, 1] });
    }
    a.wait_for_page("/healthz", "cluster: node a: connected to NATS; other nodes: b, c\n");
    a.wait_for_page(
        "/v1/status",
        "\"state\":\"connected to NATS; other nodes: b, c\",\"complete\":true",
    );
    a.wait_for_page("/", "<td>c</td><td><b class=good>present</b></td><td>-</td>");
    let url = format!("http://{}", a.control);
    let status = common::tsubame().args(["status", "--control", &url]).output().unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("cluster     node a: connected to NATS; other nodes: b, c\n"), "{text}");
    c.wait_for_page("/metrics", "tsubame_cluster_node_up{node=\"a\"} 1");
    c.wait_for_page("/metrics", "tsubame_cluster_complete 1");
    // The connection ids of one node are good at the others.
    let mut moved = Client::new("127.0.0.1", c.client.tracker);
    moved.id = a.client.id;
    assert!(moved.scrape(&[info_hash_of(1)]).is_some());
    c.tracker.stop();
    a.tracker.wait_for("node \"c\" has stopped");
    a.tracker.stop();
    b.tracker.stop();
}

#[test]
#[ignore = "needs nats-server: tests/run"]
fn nodes_serve_without_nats_and_agree_when_it_is_back() {
    let mut nats = Nats::start("");
    nats.kill();
    let mut a = Node::start(&config("a", &nats.url(), ""));
    a.tracker.wait_for("cannot be reached");
    a.wait_for_page("/healthz", "not connected to NATS: serving alone");
    a.announce(1, 2_001, 0, 2);
    assert_eq!(a.counts(1), [1, 0, 0]);
    nats.restart();
    let mut b = Node::start(&config("b", &nats.url(), ""));
    b.wait_for_counts(1, [1, 0, 0]);
    for round in 2..5 {
        match round % 2 {
            // It does not answer for a while.
            0 => nats.signal("STOP"),
            _ => nats.kill(),
        }
        a.announce(round, 2_001, 0, 2);
        b.announce(round, 2_002, 100, 2);
        b.announce(1, 2_001 + round as u16, 0, 2);
        assert_eq!(a.counts(round), [1, 0, 0]);
        match round % 2 {
            0 => nats.signal("CONT"),
            _ => {
                a.tracker.wait_for("lost the connection to NATS");
                nats.restart();
            }
        }
        a.wait_for_counts(round, [1, 0, 1]);
        b.wait_for_counts(round, [1, 0, 1]);
        a.wait_for_counts(1, [round, 0, 0]);
    }
    a.tracker.wait_for("reconnected to NATS");
    a.tracker.stop();
    b.tracker.stop();
}

#[test]
#[ignore = "needs nats-server: tests/run"]
fn a_node_that_died_or_was_upgraded_gets_the_swarms_of_the_others() {
    let nats = Nats::start("");
    let (mut a, mut b) = two_nodes(&nats);
    for torrent in 0..100 {
        a.announce(torrent, 2_001, 0, 2);
        b.announce(torrent, 2_002, 0, 2);
    }
    a.wait_for_counts(99, [2, 0, 0]);
    b.wait_for_counts(99, [2, 0, 0]);
    // Upgraded, it is no other node of its name.
    a.tracker.upgrade();
    a.announce(500, 2_001, 0, 2);
    b.wait_for_counts(500, [1, 0, 0]);
    b.announce(501, 2_002, 0, 2);
    a.wait_for_counts(501, [1, 0, 0]);
    // Killed, it starts without swarms.
    b.tracker.signal("KILL");
    drop(b);
    let mut b = Node::start(&config("b", &nats.url(), ""));
    for torrent in 0..100 {
        b.wait_for_counts(torrent, [2, 0, 0]);
    }
    let log = a.tracker.stop_with_log();
    assert!(!log.iter().any(|line| line.contains("named")), "{log:?}");
    b.tracker.stop();
}

/// What was read from a file is in no batch, and comes in a snapshot.
#[test]
#[ignore = "needs nats-server: tests/run"]
fn a_node_that_joins_receives_swarms_of_before_the_start_of_the_others() {
    let nats = Nats::start("max_payload: 20480");
    let directory = tempfile::tempdir().unwrap();
    let storage = storage_in(directory.path());
    let start = |more: &str| {
        let tracker = Tracker::start(&format!("{}{storage}{more}", config("a", &nats.url(), "")));
        let client = Client::connected("127.0.0.1", tracker.addresses()[0]);
        (tracker, client)
    };
    let (tracker, mut client) = start("");
    for torrent in 0..2_000 {
        client.announce(&Announce::of(torrent, 2_001));
    }
    tracker.stop();
    let (mut tracker, _) = start("");
    tracker.wait_for("2,000 torrents, 2,000 peers");
    let mut b = Node::start(&config("b", &nats.url(), ""));
    b.tracker.wait_for("received the swarms of node \"a\": 4,0");
    for torrent in 0..2_000 {
        b.wait_for_counts(torrent, [0, 0, 1]);
    }
    tracker.stop();
    b.tracker.stop();
}

#[test]
#[ignore = "needs nats-server: tests/run"]
fn of_two_nodes_with_one_name_the_younger_one_serves_alone() {
    let nats = Nats::start("");
    let (mut a, mut b) = two_nodes(&nats);
    let mut second = Node::start(&config("a", &nats.url(), ""));
    second
        .tracker
        .wait_for("another node is named \"a\" and was started earlier: this node serves alone");
    a.tracker.wait_for("another node is named \"a\" and was started later");
    second.wait_for_page("/healthz", "another node has the same name: serving alone");
    second.announce(1, 2_003, 0, 2);
    a.announce(2, 2_001, 0, 2);
    b.wait_for_counts(2, [1, 0, 0]);
    assert_eq!((b.counts(1), second.counts(2)), ([0; 3], [0; 3]));
    // When the older one has ended, the younger one takes its place.
    a.tracker.stop();
    second.tracker.wait_within(WAIT_TIMEOUT * 2, "has stopped: this node takes part");
    b.wait_for_counts(1, [1, 0, 0]);
    second.tracker.stop();
    b.tracker.stop();
}

/// Publishes valid messages of node `b` that it has not sent, with a wrong boot, number or subject.
fn publish_forged_messages(nats: &Nats) {
    let peer = PeerRecord {
        endpoint: Endpoint::new([7, 7, 7, 7].into(), 6_881),
        role: Role::Seeder,
        is_counted: true,
        is_remote: false,
        announced_at: 0,
    };
    let change = StateRecord::Change(InfoHash([7; 20]), ChangeKind::Joined, peer);
    let mut records = Vec::new();
    encode_records(&[change], 0, &mut records);
    let sender = Sender { version: PROTOCOL_VERSION, node: "b", boot: 1 };
    let batch = |sequence| Body::Batch { sequence, sent_at: 0, list_changes: Vec::new() };
    let block = Body::SnapshotBlock {
        session: 1,
        block: 0,
        sent_at: 0,
        is_last: true,
        covered: Vec::new(),
        list_changes: Vec::new(),
    };
    for (subject, body) in [
        ("tsubame.v1.delta.b", &batch(1)),
        ("tsubame.v1.delta.b", &batch(u64::MAX)),
        ("tsubame.v1.delta.x", &batch(1)),
        ("tsubame.v1.reply.a", &block),
    ] {
        nats.publish(&[(subject, &encode(&sender, body, &records))]);
    }
}

/// Anyone who may publish can send arbitrary bytes; they neither stop the process nor change its swarms.
#[test]
#[ignore = "needs nats-server: tests/run"]
fn foreign_messages_are_ignored_and_logged() {
    let nats = Nats::start("");
    let (mut a, mut b) = two_nodes(&nats);
    let mut rng = fastrand::Rng::with_seed(5);
    let subjects = [
        "tsubame.hello.x",
        "tsubame.hello.b",
        "tsubame.v1.delta.b",
        "tsubame.v1.request.a",
        "tsubame.v1.reply.a",
    ];
    let payloads: Vec<Vec<u8>> = (0..2_000)
        .map(|_| {
            let len = rng.usize(..200);
            (0..len).map(|_| if rng.bool() { rng.u8(..3) } else { rng.u8(..) }).collect()
        })
        .collect();
    let messages: Vec<(&str, &[u8])> =
        payloads.iter().map(|payload| (subjects[rng.usize(..5)], payload.as_slice())).collect();
    nats.publish(&messages);
    a.tracker.wait_for("ignored a message");
    publish_forged_messages(&nats);
    b.announce(1, 2_001, 0, 2);
    a.wait_for_counts(1, [1, 0, 0]);
    assert_eq!(count_in(&a.tracker.stop(), "torrents"), 1);
    b.tracker.stop();
}

/// The quick start of docs/cluster.md, as it is written there, in a network namespace of its own.
#[test]
#[ignore = "needs root, nats-server and curl: tests/run"]
fn the_quick_start_works_as_written() {
    let page = include_str!("../docs/cluster.md");
    let script = page.split_once("```bash\n").unwrap().1.split_once("```").unwrap().0;
    let directory = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_tsubame")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    // All processes of the script end with the first one of their PID namespace.
    let output = Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "sh", "-ec"])
        .arg(format!("ip link set lo up\n{script}"))
        .env("PATH", path)
        .current_dir(directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("8:completei1e"), "{text}");
    assert!(
        text.contains("cluster: node node2: connected to NATS; other nodes: node1\n"),
        "{text}"
    );
}

/// The configs of `deploy/examples/cluster`: three NATS servers and three nodes, with TLS, on three addresses.
#[test]
#[ignore = "needs nats-server: tests/run"]
fn the_example_of_three_nodes_works() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let hosts = ["127.7.0.1", "127.7.0.2", "127.7.0.3"];
    let key = rcgen::KeyPair::generate().unwrap();
    let names = hosts.map(str::to_owned).to_vec();
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    std::fs::write(file("certificate.pem"), certificate.pem()).unwrap();
    std::fs::write(file("ca.pem"), certificate.pem()).unwrap();
    std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(file("connection-id-keys"), KEY).unwrap();
    let with_hosts = |text: &str| {
        let text = text.replace("/etc/nats/", &format!("{}/", directory.path().display()));
        let text = text.replace("/etc/tsubame/", &format!("{}/", directory.path().display()));
        (1..=3).fold(text, |text, host| {
            text.replace(&format!("10.0.0.{host}:"), &format!("127.7.0.{host}:"))
        })
    };
    // Each host has another name, listens on its own addresses, and has routes to the others.
    let nats = with_hosts(include_str!("../deploy/examples/cluster/nats.conf"));
    let mut servers: Vec<Nats> = (1..=3)
        .map(|host| {
            let own = nats
                .replace("nats1", &format!("nats{host}"))
                .replace("listen: \"127.7.0.1", &format!("listen: \"127.7.0.{host}"))
                .replace(&format!("nats://127.7.0.{host}:"), "nats://127.7.0.1:");
            Nats::start_at(&own, format!("127.7.0.{host}:4222").parse().unwrap())
        })
        .collect();
    let yaml = with_hosts(include_str!("../deploy/examples/cluster/tsubame.yaml"));
    let mut nodes: Vec<Node> = (1..=3)
        .map(|host| {
            let state = directory.path().join(format!("state{host}"));
            std::fs::create_dir(&state).unwrap();
            let storage = UNCAPPED.trim_end().strip_prefix("storage: {").unwrap();
            let yaml = yaml
                .replace(
                    "  directory: /var/lib/tsubame",
                    &format!(
                        "  directory: {}\n  {}",
                        state.display(),
                        storage.strip_suffix('}').unwrap()
                    ),
                )
                .replace("udp:\n", "udp:\n  listen: [\"127.0.0.1:0\"]\n")
                .replace("cluster:\n", &format!("cluster:\n  node: node{host}\n"));
            Node::start_with(&format!(
                "cpus: {}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n{yaml}",
                cpus(1)
            ))
        })
        .collect();
    for (torrent, node) in (0..).zip(&mut nodes) {
        node.announce(torrent, 2_001, 0, 2);
    }
    for node in &mut nodes {
        (0..3).for_each(|torrent| node.wait_for_counts(torrent, [1, 0, 0]));
    }
    // Without one of the servers, the nodes use the others.
    drop(servers.remove(0));
    for node in &mut nodes {
        node.announce(5, node.client.socket.local_addr().unwrap().port(), 0, 2);
    }
    for node in &mut nodes {
        node.wait_for_counts(5, [3, 0, 0]);
    }
}
