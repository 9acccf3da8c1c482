//! Hooks end to end: over UDP and over HTTP, with one shard and with two.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::{self, Connection, failure};
use common::policy::ClientReply::{Gone, NoReply, Swarm};
use common::policy::{
    self, NOT_SERVED, PEER_ID, TrackerWithClients, error, hex, over_http, over_udp, scrape_target,
    wait_until,
};
use common::{Announce, Client, NO_REPLY_TIMEOUT, WAIT_TIMEOUT, info_hash_of, uninterrupted};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

#[test]
fn lists_clients_and_passkeys_refuse_over_both_protocols_and_are_counted() {
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
        let setup = TrackerWithClients::new(shards, &hooks);
        let good = "/sesame/announce";
        assert_eq!(
            setup.announce_over_both(1, PEER_ID, good),
            [error(NOT_SERVED), error(NOT_SERVED)]
        );
        let gone = Gone(NOT_SERVED.to_owned());
        assert_eq!(setup.announce_over_both(2, PEER_ID, good), [error(NOT_SERVED), gone]);
        assert_eq!(
            setup.announce_over_both(3, PEER_ID, good),
            [Swarm(0, 0, 7_200), Swarm(0, 0, 7_200)]
        );
        let text = "this client is not permitted on this tracker";
        assert_eq!(
            setup.announce_over_both(4, b"-XX0001-abcdefghijkl", good),
            [error(text), error(text)]
        );
        let text = "no passkey in the announce URL";
        assert_eq!(setup.announce_over_both(4, PEER_ID, ""), [error(text), error(text)]);
        let wrong = "unknown passkey";
        assert_eq!(
            setup.announce_over_both(4, PEER_ID, "/abracadabra/announce"),
            [error(wrong), error(wrong)]
        );
        // The same peer over both protocols, so each reply counts one leecher. The interval is increased by a second.
        assert_eq!(
            setup.announce_over_both(4, PEER_ID, good),
            [Swarm(0, 1, 1_801), Swarm(0, 1, 1_801)]
        );
        let by_parameter = setup.announce_over_both(5, PEER_ID, "?passkey=sesame");
        assert_eq!(by_parameter, [Swarm(0, 1, 1_801), Swarm(0, 1, 1_801)]);
        for protocol in ["udp", "http"] {
            setup.wait_for_metric("forbidden_torrent", protocol, 3);
            setup.wait_for_metric("forbidden_client", protocol, 1);
            setup.wait_for_metric("no_passkey", protocol, 1);
            setup.wait_for_metric("wrong_passkey", protocol, 1);
        }
    }
}

#[test]
fn sources_over_the_limit_are_refused_and_others_are_served() {
    let hooks =
        "  - {name: limits, options: {announces_per_second: 1, burst: 8, exempt: [127.0.0.9]}}\n";
    let setup = TrackerWithClients::new(1, hooks);
    setup.udp.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    let mut answers = Vec::new();
    // More than the burst and the announces that are permitted during the test.
    while answers.len() < 500 && answers.iter().all(|it| matches!(it, Swarm(..))) {
        answers.extend(setup.announce_over_both(answers.len() as u32, PEER_ID, ""));
    }
    let refused = answers.iter().skip(8).filter(|it| !matches!(it, Swarm(..))).count();
    assert!(answers[..8].iter().all(|it| matches!(it, Swarm(..))) && refused > 0, "{answers:?}");
    let too_many = "too many requests; announce less often";
    assert!(
        answers[8..].iter().all(|it| matches!(it, Swarm(..) | NoReply) || *it == error(too_many))
    );
    for address in ["127.0.0.2", "127.0.0.9"] {
        let other = Client::connected(address, setup.udp.tracker);
        let permitted = if address == "127.0.0.9" { 30 } else { 8 };
        for torrent in 0..permitted {
            let answer = over_udp(&other, &Announce::of(torrent, 7_002), PEER_ID, "");
            assert!(matches!(answer, Swarm(..)), "{address}: {answer:?}");
        }
    }
    let [udp, http] = ["udp", "http"].map(|it| setup.metric("too_many_announces", it));
    assert!(udp + http > 0);
}

#[test]
fn denied_networks_get_no_reply() {
    let hooks = "  - {name: networks, options: {mode: deny, networks: [127.0.0.7]}}\n";
    let setup = TrackerWithClients::new(2, hooks);
    let denied_client = Client::new("127.0.0.7", setup.udp.tracker);
    denied_client.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    assert_eq!(denied_client.ask(&common::head(0x0417_2710_1980, 0, 1)), None);
    setup.wait_for_metric("forbidden_network", "udp", 1);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 7], 0)).into()).unwrap();
    socket.connect(&setup.http.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    assert!(
        matches!(uninterrupted(|| stream.read(&mut [0; 9])), Ok(0)),
        "the connection must be closed without a reply"
    );
    setup.wait_for_metric("forbidden_network", "http", 1);
    assert!(matches!(setup.announce_over_both(1, PEER_ID, ""), [Swarm(..), Swarm(..)]));
}

/// The first hook that refuses determines the reply, and later hooks do not count the request.
#[test]
fn hooks_run_in_the_order_of_the_config() {
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
    let refused = |setup: &TrackerWithClients| {
        // The first request violates all hooks, the next ones fewer.
        let expected = [error(NOT_SERVED), error(NOT_SERVED)];
        assert_eq!(setup.announce_over_both(1, wrong_client, ""), expected);
        let expected = [error(not_permitted), error(not_permitted)];
        assert_eq!(setup.announce_over_both(2, wrong_client, ""), expected);
        let expected = "no passkey in the announce URL";
        assert_eq!(setup.announce_over_both(2, PEER_ID, ""), [error(expected), error(expected)]);
    };
    let setup = TrackerWithClients::new(1, &format!("{refuse}{limit}{varied}"));
    (0..5).for_each(|_| refused(&setup));
    assert_eq!(
        setup.announce_over_both(2, PEER_ID, good),
        [Swarm(0, 1, 1_801), Swarm(0, 1, 1_801)]
    );
    assert_eq!(["udp", "http"].map(|it| setup.metric("too_many_announces", it)), [0, 0]);
    let setup = TrackerWithClients::new(1, &format!("{limit}{varied}{refuse}"));
    setup.udp.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    refused(&setup);
    let answers: Vec<_> = (0..5).flat_map(|_| setup.announce_over_both(2, PEER_ID, good)).collect();
    let too_many = "too many requests; announce less often";
    assert!(answers.contains(&error(too_many)), "the limit must count all requests: {answers:?}");
}

/// Hooks check scrapes in the same order over both protocols. A limit counts only the scrapes that reach it.
#[test]
fn hooks_run_in_the_order_of_the_config_for_scrapes() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    fs::write(&keys, "sesame\n").unwrap();
    let passkey =
        format!("  - {{name: passkey, options: {{file: {}, scrapes: true}}}}\n", keys.display());
    let limit = "  - {name: limits, options: {announces_per_second: 1, burst: 6}}\n";
    let refused = "no passkey in the announce URL";
    let too_many = "too many requests; announce less often";
    let scrape = |setup: &TrackerWithClients, query: &str| {
        let target = format!("{}{query}", scrape_target(&[info_hash_of(1)]));
        let reply = Connection::to(setup.http).get(&target);
        let is_refused = reply.body.starts_with(b"d14:failure reason");
        is_refused.then(|| failure(&reply))
    };
    // Requests that the passkey hook refuses do not reach the limit.
    let setup = TrackerWithClients::new(1, &format!("{passkey}{limit}"));
    for _ in 0..10 {
        assert_eq!(scrape(&setup, "").as_deref(), Some(refused));
        let reply = setup.udp.ask(&scrape_datagram(&setup)).unwrap();
        assert_eq!(&reply[8..], b"scrapes require a passkey or token; scrape over HTTP");
    }
    assert_eq!(scrape(&setup, "&passkey=sesame"), None);
    assert_eq!(setup.metric("too_many_announces", "http"), 0);
    // Scrapes over both protocols count towards the limit before the passkey is checked.
    let setup = TrackerWithClients::new(1, &format!("{limit}{passkey}"));
    setup.udp.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    for _ in 0..5 {
        let reply = setup.udp.ask(&scrape_datagram(&setup)).unwrap();
        assert_eq!(&reply[8..], b"scrapes require a passkey or token; scrape over HTTP");
    }
    let answers: Vec<_> = (0..5).map(|_| scrape(&setup, "")).collect();
    assert_eq!(answers[0].as_deref(), Some(refused));
    assert_eq!(answers[4].as_deref(), Some(too_many));
    assert_eq!(scrape(&setup, "&passkey=sesame").as_deref(), Some(too_many));
    assert_eq!(setup.udp.ask(&scrape_datagram(&setup)), None);
}

fn scrape_datagram(setup: &TrackerWithClients) -> Vec<u8> {
    let mut datagram = common::head(setup.udp.id, 2, 5);
    datagram.extend(info_hash_of(1));
    datagram
}

/// A source that has reached a limit stays limited after another hook was added above.
#[test]
fn limits_keep_their_counts_when_a_hook_is_added_above() {
    let limit = "  - {name: limits, options: {torrents_per_minute: 4, burst: 4}}\n";
    let setup = TrackerWithClients::new(1, limit);
    setup.udp.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    let is_served = |torrent| {
        let announce = Announce::of(torrent, 7_001);
        matches!(over_http(setup.http, &announce, PEER_ID, ""), Swarm(..))
    };
    let served = (1..20).take_while(|torrent| is_served(*torrent)).count();
    assert!((4..8).contains(&served), "{served}");
    let above = format!("  - {{name: clients, options: {{mode: deny, clients: [XX]}}}}\n{limit}");
    setup.tracker.write_config(&policy::config(1, &above));
    assert_eq!(setup.ask("POST", "/v1/reload").0, 200);
    let banned = error("this client is not permitted on this tracker");
    wait_until(|| setup.announce_over_both(1, b"-XX0001-abcdefghijkl", "")[1] == banned);
    let served = (20..40).take_while(|torrent| is_served(*torrent)).count();
    assert!(served < 3, "{served} more were served");
}

#[test]
fn subnet_peers_are_returned_first_over_both_protocols() {
    let hooks = "  - {name: subnet_preference, options: {ipv4: [24, 16], ipv6: 64}}\n";
    let mut setup = TrackerWithClients::new(2, hooks);
    let (sites, racks, hosts) = (4, 5, 20);
    let (site, rack) = (|site, _| site == 2, |site, rack| (site, rack) == (2, 3));
    let addresses = |which: fn(u8, u8) -> bool| {
        let racks = (1..=sites).flat_map(|site| (1..=racks).map(move |rack| (site, rack)));
        let racks = racks.filter(move |(site, rack)| which(*site, *rack));
        racks.flat_map(|(site, rack)| (1..=hosts).map(move |host| [81, site, rack, host]))
    };
    for ip in addresses(|_, _| true) {
        let num_want = 0;
        setup.udp.announce(&Announce { ip, num_want, ..Announce::of(1, 7_001) });
    }
    let count = |peers: &BTreeSet<(IpAddr, u16)>, which| {
        addresses(which).filter(|ip| peers.contains(&(IpAddr::from(*ip), 7_001))).count()
    };
    // Asks for 50 peers: more than the rack has, fewer than the site has.
    let ask = |setup: &mut TrackerWithClients| {
        let ip = [81, 2, 3, 200];
        let asks = Announce { ip, num_want: 50, ..Announce::of(1, 7_001) };
        let over_http = http::HttpAnnounce::of(1, 7_001, 100).with("&ip=81.2.3.201&numwant=50");
        let over_http = Connection::to(setup.http).announce(&over_http);
        [setup.udp.announce(&asks).peers, over_http.peers]
    };
    for peers in ask(&mut setup) {
        let near = (count(&peers, rack), peers.len());
        // The two requesters are subnet peers as well.
        assert!(count(&peers, site) >= 49 && near == (20, 50), "{near:?} of {peers:?}");
    }
    setup.tracker.write_config(&policy::config(2, "").replace("hooks:", "hooks: []"));
    assert_eq!(setup.ask("POST", "/v1/reload").0, 200);
    wait_until(|| ask(&mut setup).iter().all(|peers| count(peers, site) < 40));
}

/// The program of `examples/custom_hook.rs` serves with its hook and reloads its options.
#[test]
fn a_custom_hook_is_run() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", "custom_hook"]);
    cargo.args((!cfg!(debug_assertions)).then_some("--release"));
    // Variables that cargo sets for its children would make it rebuild all crates.
    let is_set_by_cargo = |name: &str| {
        name.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name)
    };
    let names = std::env::vars().map(|(name, _)| name).filter(|name| is_set_by_cargo(name));
    for name in names {
        cargo.env_remove(name);
    }
    assert!(cargo.status().unwrap().success());
    let built = Path::new(env!("CARGO_BIN_EXE_tsubame")).with_file_name("examples/custom_hook");
    let hooks = "  - {name: ports, options: {deny: [53, 7001]}}\n";
    let setup = TrackerWithClients::with_command(2, hooks, |command| {
        let mut program = Command::new(built);
        program.args(command.get_args());
        program
    });
    let expected = "this port is not permitted on this tracker";
    assert_eq!(setup.announce_over_both(1, PEER_ID, ""), [error(expected), error(expected)]);
    for protocol in ["udp", "http"] {
        setup.wait_for_metric("custom_hook", protocol, 1);
    }
    setup.tracker.write_config(&policy::config(2, &hooks.replace("7001", "80")));
    assert_eq!(setup.ask("POST", "/v1/reload").0, 200);
    wait_until(|| {
        setup.announce_over_both(1, PEER_ID, "") == [Swarm(0, 1, 1_800), Swarm(0, 1, 1_800)]
    });
}
