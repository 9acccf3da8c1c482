//! Hooks through the program: over UDP and over HTTP, on one shard and on two.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::{self, Connection, failure};
use common::policy::Answer::{Gone, Silence, Swarm};
use common::policy::{
    self, CLIENT, NOT_SERVED, World, error, hex, over_http, over_udp, scrape_target, wait_until,
};
use common::{Announce, Client, PATIENCE, SILENCE, info_hash_of};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

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
    let mut answers = Vec::new();
    // More than the burst, and what is permitted in the seconds that this takes.
    while answers.len() < 500 && answers.iter().all(|it| matches!(it, Swarm(..))) {
        answers.extend(world.both(answers.len() as u32, CLIENT, ""));
    }
    let refused = answers.iter().skip(8).filter(|it| !matches!(it, Swarm(..))).count();
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

/// The first hook that refuses is the answer, and those behind it do not count what it refuses
#[test]
fn hooks_are_asked_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    fs::write(&keys, "sesame\n").unwrap();
    let refuse = format!(
        "  - {{name: access_list, options: {{mode: deny, info_hashes: [{}]}}}}\n  \
           - {{name: clients, options: {{mode: allow, clients: [TT]}}}}\n  \
           - {{name: passkey, options: {{file: {}}}}}\n",
        hex(1),
        keys.display()
    );
    let limit = "  - {name: limits, options: {announces_per_second: 1, burst: 6}}\n";
    let varied = "  - {name: interval_variation, options: {increase: 1s, min_interval: true}}\n";
    let (good, wrong_client) = ("/sesame/announce", b"-XX0001-abcdefghijkl");
    let not_permitted = "this client is not permitted on this tracker";
    let refused = |world: &World| {
        // Everything is wrong with the first, less and less with the others.
        let told = [error(NOT_SERVED), error(NOT_SERVED)];
        assert_eq!(world.both(1, wrong_client, ""), told);
        let told = [error(not_permitted), error(not_permitted)];
        assert_eq!(world.both(2, wrong_client, ""), told);
        let told = "no passkey in the announce URL";
        assert_eq!(world.both(2, CLIENT, ""), [error(told), error(told)]);
    };
    let world = World::new(1, &format!("{refuse}{limit}{varied}"));
    (0..5).for_each(|_| refused(&world));
    assert_eq!(world.both(2, CLIENT, good), [Swarm(0, 1, 1_801), Swarm(0, 1, 1_801)]);
    assert_eq!(["udp", "http"].map(|it| world.metric("too_many_announces", it)), [0, 0]);
    let world = World::new(1, &format!("{limit}{varied}{refuse}"));
    world.udp.socket.set_read_timeout(Some(SILENCE)).unwrap();
    refused(&world);
    let answers: Vec<_> = (0..5).flat_map(|_| world.both(2, CLIENT, good)).collect();
    let too_many = "too many requests; announce less often";
    assert!(answers.contains(&error(too_many)), "the limit counts them all: {answers:?}");
}

/// Scrapes are judged in the same order over both protocols: a limit counts what comes to it, and no more
#[test]
fn hooks_are_asked_in_their_order_for_scrapes() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    fs::write(&keys, "sesame\n").unwrap();
    let passkey =
        format!("  - {{name: passkey, options: {{file: {}, scrapes: true}}}}\n", keys.display());
    let limit = "  - {name: limits, options: {announces_per_second: 1, burst: 6}}\n";
    let refused = "no passkey in the announce URL";
    let too_many = "too many requests; announce less often";
    let scrape = |world: &World, query: &str| {
        let target = format!("{}{query}", scrape_target(&[info_hash_of(1)]));
        let reply = Connection::to(world.http).get(&target);
        let is_refused = reply.body.starts_with(b"d14:failure reason");
        is_refused.then(|| failure(&reply))
    };
    // What the passkey refuses does not come to the limit.
    let world = World::new(1, &format!("{passkey}{limit}"));
    for _ in 0..10 {
        assert_eq!(scrape(&world, "").as_deref(), Some(refused));
        let reply = world.udp.ask(&datagram_of(&world)).unwrap();
        assert_eq!(&reply[8..], b"scrapes need a key or token here; scrape over HTTP");
    }
    assert_eq!(scrape(&world, "&passkey=sesame"), None);
    assert_eq!(world.metric("too_many_announces", "http"), 0);
    // Both protocols use up the limit before the passkey is looked at.
    let world = World::new(1, &format!("{limit}{passkey}"));
    world.udp.socket.set_read_timeout(Some(SILENCE)).unwrap();
    for _ in 0..5 {
        let reply = world.udp.ask(&datagram_of(&world)).unwrap();
        assert_eq!(&reply[8..], b"scrapes need a key or token here; scrape over HTTP");
    }
    let answers: Vec<_> = (0..5).map(|_| scrape(&world, "")).collect();
    assert_eq!(answers[0].as_deref(), Some(refused));
    assert_eq!(answers[4].as_deref(), Some(too_many));
    assert_eq!(scrape(&world, "&passkey=sesame").as_deref(), Some(too_many));
    assert_eq!(world.udp.ask(&datagram_of(&world)), None);
}

fn datagram_of(world: &World) -> Vec<u8> {
    let mut datagram = common::head(world.udp.id, 2, 5);
    datagram.extend(info_hash_of(1));
    datagram
}

/// Whoever has used up a limit has so, too, after another hook was put above it
#[test]
fn limits_keep_their_counts_when_a_hook_is_added_above() {
    let limit = "  - {name: limits, options: {torrents_per_minute: 4, burst: 4}}\n";
    let world = World::new(1, limit);
    world.udp.socket.set_read_timeout(Some(SILENCE)).unwrap();
    let is_served = |torrent| {
        let announce = Announce::of(torrent, 7_001);
        matches!(over_http(world.http, &announce, CLIENT, ""), Swarm(..))
    };
    let served = (1..20).take_while(|torrent| is_served(*torrent)).count();
    assert!((4..8).contains(&served), "{served}");
    let above = format!("  - {{name: clients, options: {{mode: deny, clients: [XX]}}}}\n{limit}");
    world.tracker.write_config(&policy::config(1, &above));
    assert_eq!(world.ask("POST", "/v1/reload").0, 200);
    let banned = error("this client is not permitted on this tracker");
    wait_until(|| world.both(1, b"-XX0001-abcdefghijkl", "")[1] == banned);
    let served = (20..40).take_while(|torrent| is_served(*torrent)).count();
    assert!(served < 3, "{served} more");
}

#[test]
fn neighbours_are_handed_out_first_over_both_protocols() {
    let hooks = "  - {name: subnet_preference, options: {ipv4: [24, 16], ipv6: 64}}\n";
    let mut world = World::new(2, hooks);
    let (sites, racks, hosts) = (4, 5, 20);
    let (site, rack) = (|site, _| site == 2, |site, rack| (site, rack) == (2, 3));
    let addresses = |which: fn(u8, u8) -> bool| {
        let racks = (1..=sites).flat_map(|site| (1..=racks).map(move |rack| (site, rack)));
        let racks = racks.filter(move |(site, rack)| which(*site, *rack));
        racks.flat_map(|(site, rack)| (1..=hosts).map(move |host| [81, site, rack, host]))
    };
    for ip in addresses(|_, _| true) {
        let num_want = 0;
        world.udp.announce(&Announce { ip, num_want, ..Announce::of(1, 7_001) });
    }
    let count = |peers: &BTreeSet<(IpAddr, u16)>, which| {
        addresses(which).filter(|ip| peers.contains(&(IpAddr::from(*ip), 7_001))).count()
    };
    // More than the rack has and fewer than the site.
    let ask = |world: &mut World| {
        let ip = [81, 2, 3, 200];
        let asks = Announce { ip, num_want: 50, ..Announce::of(1, 7_001) };
        let over_http = http::Announce::of(1, 7_001, 100).with("&ip=81.2.3.201&numwant=50");
        let over_http = Connection::to(world.http).announce(&over_http);
        [world.udp.announce(&asks).peers, over_http.peers]
    };
    for peers in ask(&mut world) {
        let near = (count(&peers, rack), peers.len());
        // The two who ask are neighbours, too.
        assert!(count(&peers, site) >= 49 && near == (20, 50), "{near:?} of {peers:?}");
    }
    world.tracker.write_config(&policy::config(2, "").replace("hooks:", "hooks: []"));
    assert_eq!(world.ask("POST", "/v1/reload").0, 200);
    wait_until(|| ask(&mut world).iter().all(|peers| count(peers, site) < 40));
}

/// The program of `examples/own_hook.rs` serves with its hook, and reads it again
#[test]
fn a_hook_of_ones_own_is_asked() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", "own_hook"]);
    cargo.args((!cfg!(debug_assertions)).then_some("--release"));
    // What cargo tells its children would have it build all crates anew.
    let told = |name: &str| {
        name.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name)
    };
    let told = std::env::vars().map(|(name, _)| name).filter(|name| told(name));
    for name in told {
        cargo.env_remove(name);
    }
    assert!(cargo.status().unwrap().success());
    let built = Path::new(env!("CARGO_BIN_EXE_tsubame")).with_file_name("examples/own_hook");
    let hooks = "  - {name: ports, options: {deny: [53, 7001]}}\n";
    let world = World::under(2, hooks, |command| {
        let mut program = Command::new(built);
        program.args(command.get_args());
        program
    });
    let told = "no peer listens on this port";
    assert_eq!(world.both(1, CLIENT, ""), [error(told), error(told)]);
    for protocol in ["udp", "http"] {
        world.wait_for_metric("own_hook", protocol, 1);
    }
    world.tracker.write_config(&policy::config(2, &hooks.replace("7001", "80")));
    assert_eq!(world.ask("POST", "/v1/reload").0, 200);
    wait_until(|| world.both(1, CLIENT, "") == [Swarm(0, 1, 1_800), Swarm(0, 1, 1_800)]);
}
