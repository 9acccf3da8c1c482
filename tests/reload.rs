//! Reloads of hooks, lists and settings while the tracker runs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::{Connection, rows_of};
use common::policy::ClientReply::Swarm;
use common::policy::{
    ClientReply, NOT_SERVED, PEER_ID, TrackerWithClients, config, error, hex, over_http, over_udp,
    scrape_target, wait_for_torrents, wait_until,
};
use common::{Announce, Client, SetOnDrop, WAIT_TIMEOUT, info_hash_of, now};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tsubame::hex::parse_info_hash;

#[test]
fn lists_are_reloaded_and_invalid_lists_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list");
    fs::write(&list, format!("{}\n", hex(1))).unwrap();
    let file = list.display();
    let hooks = format!("  - {{name: access_list, options: {{mode: deny, files: {file}}}}}\n");
    let mut setup = TrackerWithClients::new(2, &hooks);
    let served = |it: &[ClientReply; 2]| it.iter().all(|answer| matches!(answer, Swarm(..)));
    assert_eq!(setup.announce_over_both(1, PEER_ID, ""), [error(NOT_SERVED), error(NOT_SERVED)]);
    for torrent in 2..40 {
        assert!(served(&setup.announce_over_both(torrent, PEER_ID, "")));
    }
    let hashes: Vec<_> = (1..40).map(info_hash_of).collect();
    let rows = setup.udp.scrape(&hashes).unwrap();
    assert_eq!(rows.iter().filter(|row| row[2] == 1).count(), 38);
    // Most swarms are denied now. Their peers are removed, and do not return when the torrents are permitted again.
    let text: String = (2..30).map(|torrent| format!("{}\r\n", hex(torrent))).collect();
    fs::write(&list, text).unwrap();
    setup.tracker.wait_for("the lists were read again: 1 hook, 28 info hashes listed");
    // Shards apply the new list at different times.
    wait_until(|| {
        setup.announce_over_both(2, PEER_ID, "") == [error(NOT_SERVED), error(NOT_SERVED)]
    });
    wait_until(|| {
        let rows = rows_of(&Connection::to(setup.http).get(&scrape_target(&hashes[..])).body);
        rows.iter().filter(|(_, row)| row[2] == 1).count() == 10
    });
    wait_for_torrents(&setup, 10);
    // A mistake is reported with its line.
    fs::write(&list, "no hash\n").unwrap();
    let message = setup.tracker.wait_for("is not an info hash");
    assert!(message.contains("list:1:") && message.contains("nothing was changed"), "{message}");
    let (status, message) = setup.ask("POST", "/v1/reload");
    assert!(
        status == 422 && message.contains("list:1: \"no hash\" is not an info hash"),
        "{status} {message}"
    );
    assert_eq!(setup.announce_over_both(2, PEER_ID, ""), [error(NOT_SERVED), error(NOT_SERVED)]);
    fs::write(&list, "").unwrap();
    let (status, message) = setup.ask("POST", "/v1/reload");
    assert_eq!((status, message.as_str()), (200, "reloaded: 1 hook, 0 info hashes listed"));
    wait_until(|| served(&setup.announce_over_both(2, PEER_ID, "")));
    assert_eq!(
        setup.udp.scrape(&[info_hash_of(3)]),
        Some(vec![[0, 0, 0]]),
        "removed peers must not return"
    );
    // Hooks are added and removed with the config.
    let config = config(2, "").replace("peer_lifetime: 2h", "peer_lifetime: 24h");
    setup.tracker.write_config(&config.replace("hooks:", "hooks: []"));
    setup.tracker.signal("HUP");
    setup.tracker.wait_for(
        "0 hooks, 0 info hashes listed; restart the tracker to apply: announce.peer_lifetime",
    );
    let long_interval = "  - {name: interval_load, options: {max_interval: 20h}}\n";
    let longer = config.replace("hooks:", &format!("hooks:\n{long_interval}"));
    setup.tracker.write_config(&longer);
    let (status, message) = setup.ask("POST", "/v1/reload");
    assert!(
        status == 422 && message.contains("peer_lifetime: 1day is less than"),
        "{status} {message}"
    );
    setup.tracker.write_config("hooks: [{name: nothing}]");
    let (status, message) = setup.ask("POST", "/v1/reload");
    assert!(status == 422 && message.contains("\"nothing\" is not a hook"), "{status} {message}");
}

#[test]
fn access_list_overrides_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let overrides = directory.path().join("overrides");
    let hooks = format!(
        "  - {{name: access_list, options: {{mode: allow, info_hashes: [{}], overrides_file: {}}}}}\n",
        hex(1),
        overrides.display()
    );
    let refused = [error(NOT_SERVED), error(NOT_SERVED)];
    let setup = TrackerWithClients::new(2, &hooks);
    assert!(matches!(setup.announce_over_both(1, PEER_ID, ""), [Swarm(..), Swarm(..)]));
    assert_eq!(setup.announce_over_both(2, PEER_ID, ""), refused);
    let message = setup.ask("PUT", &format!("/v1/access_list/{}", hex(2)));
    assert_eq!(message, (200, format!("{} is on the access list", hex(2))));
    wait_until(|| matches!(setup.announce_over_both(2, PEER_ID, ""), [Swarm(..), Swarm(..)]));
    assert_eq!(setup.ask("DELETE", &format!("/v1/access_list/{}", hex(1))).0, 200);
    wait_until(|| setup.announce_over_both(1, PEER_ID, "") == refused);
    assert_eq!(setup.ask("PUT", "/v1/access_list/12").0, 400);
    let page =
        "PUT /v1/access_list/12 HTTP/1.1\r\nHost: localhost\r\nOrigin: http://e.example\r\n\r\n";
    let mut stream = TcpStream::connect(setup.control).unwrap();
    stream.write_all(page.as_bytes()).unwrap();
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"HTTP/1.1 403", "web pages must not change the access list");
    setup.tracker.stop();
    let setup = TrackerWithClients::new(1, &hooks);
    assert_eq!(setup.announce_over_both(1, PEER_ID, ""), refused);
    assert!(matches!(setup.announce_over_both(2, PEER_ID, ""), [Swarm(..), Swarm(..)]));
    drop(setup);
    assert_eq!(
        TrackerWithClients::new(1, "").ask("PUT", &format!("/v1/access_list/{}", hex(1))).0,
        409
    );
}

#[test]
fn every_announce_is_answered_during_reloads() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list");
    let text: String = (1_000..101_000).map(|torrent| format!("{}\n", hex(torrent))).collect();
    fs::write(&list, &text).unwrap();
    let file = list.display();
    let hooks = format!("  - {{name: access_list, options: {{mode: deny, files: {file}}}}}\n");
    let setup = TrackerWithClients::new(2, &hooks);
    let done = AtomicBool::new(false);
    let announced = std::thread::scope(|scope| {
        let end = SetOnDrop(&done);
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let mut client = Client::connected("127.0.0.1", setup.udp.tracker);
                let (done, http) = (&done, setup.http);
                scope.spawn(move || {
                    let mut count = 0;
                    while !done.load(Ordering::Relaxed) {
                        // Panics without a reply.
                        client.announce(&Announce::of(count % 500, 7_000 + number));
                        let announce = Announce::of(count % 500, 8_000 + number);
                        let answer = over_http(http, &announce, PEER_ID, "");
                        assert!(matches!(answer, Swarm(..)), "{answer:?}");
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for round in 0..10 {
            // Another list each time, so that all swarms are checked again.
            fs::write(&list, &text[41 * 5_000 * round..]).unwrap();
            assert_eq!(setup.ask("POST", "/v1/reload").0, 200);
        }
        drop(end);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<u32>>()
    });
    assert!(announced.iter().sum::<u32>() > 100, "{announced:?} announces");
    // All clients announce the same torrents in the same order.
    let most = announced.into_iter().max().unwrap();
    wait_for_torrents(&setup, u64::from(most.min(500)));
}

#[test]
fn torrent_directories_are_watched() {
    let directory = tempfile::tempdir().unwrap();
    let hooks = format!(
        "  - {{name: access_list, options: {{mode: allow, torrents: {}}}}}\n",
        directory.path().display()
    );
    let mut setup = TrackerWithClients::new(1, &hooks);
    let write = |name: &str, bytes: &[u8]| {
        // Written to another name, then moved, as careful operators do.
        let path = directory.path().join("new");
        fs::write(&path, bytes).unwrap();
        fs::rename(&path, directory.path().join(name)).unwrap();
    };
    write("a.torrent", b"d8:announce1:x4:infod4:name1:a6:pieces0:ee");
    setup.tracker.wait_for("1 info hash listed");
    // SHA-1 of the info dictionary.
    let hash = parse_info_hash("476ddb96349da91298ede87b9ffff035959e4143").unwrap();
    let announce = Announce { info_hash: hash.0, ..Announce::of(0, 7_001) };
    wait_until(|| matches!(over_udp(&setup.udp, &announce, PEER_ID, ""), Swarm(..)));
    assert_eq!(over_udp(&setup.udp, &Announce::of(9, 7_001), PEER_ID, ""), error(NOT_SERVED));
    // A torrent file that is copied slowly and read when it is incomplete.
    let copied = directory.path().join("b.torrent");
    fs::write(&copied, b"d8:announce1:y4:infod4:name1:b").unwrap();
    setup.tracker.wait_for("b.torrent: is not a torrent file");
    fs::write(&copied, b"d8:announce1:y4:infod4:name1:b6:pieces0:ee").unwrap();
    setup.tracker.wait_for("2 info hashes listed");
}

#[test]
fn an_unreadable_list_is_reported_by_run_and_check() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.yaml");
    let hooks = "hooks: [{name: access_list, options: {mode: deny, files: /nowhere/list}}]\n";
    fs::write(&path, hooks).unwrap();
    for command in ["check", "run"] {
        let output = run(command, &path);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        // A list may be unreadable for a moment only: a restart may cure that.
        let code = if command == "check" { 1 } else { 2 };
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains("cannot read /nowhere/list"), "{message}");
    }
}

/// `tsubame check` reports mistakes in the syntax of a config, in its lists, and about this machine in one run.
#[test]
fn check_reports_all_mistakes_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (list, path) = (directory.path().join("list"), directory.path().join("t.yaml"));
    fs::write(&list, format!("zz\n{}\n0123\n", hex(1))).unwrap();
    let text = format!(
        "cpus: \"0,1023\"\nudp: {{listen: \"203.0.113.9:6969\", lisen: 1}}\n\
         announce: {{interval: 1s, min_interval: 1s}}\nstorage: {{memory: 60TiB}}\nhooks:\n\
         - {{name: access_list, options: {{mode: deny, files: [{}, /nonexistent]}}}}\n\
         - {{name: passkey}}\n",
        list.display()
    );
    fs::write(&path, text).unwrap();
    let output = run("check", &path);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    for part in [
        "udp.lisen",
        "hooks.1.options.file",
        "core 1023",
        "203.0.113.9",
        "warning: ",
        "list:1: \"zz\"",
        "list:3: \"0123\"",
        "/nonexistent",
    ] {
        assert!(message.contains(part), "{part} is missing in:\n{message}");
    }
}

fn run(command: &str, config: &Path) -> std::process::Output {
    common::tsubame().arg(command).arg("--config").arg(config).output().unwrap()
}

#[test]
fn a_list_of_a_million_torrents_is_loaded_while_serving() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("list");
    fs::write(&list, "").unwrap();
    let file = list.display();
    let hooks = format!("  - {{name: access_list, options: {{mode: deny, files: {file}}}}}\n");
    let mut setup = TrackerWithClients::new(1, &hooks);
    let text: String = (0..1_000_000).map(|torrent| format!("{}\n", hex(torrent))).collect();
    fs::write(&list, text).unwrap();
    let deadline = now() + WAIT_TIMEOUT * 6;
    while setup.announce_over_both(5, PEER_ID, "")[0] != error(NOT_SERVED) {
        setup.udp.connect();
        assert!(now() < deadline);
    }
    setup.tracker.wait_for("1000000 info hashes listed");
}

/// Settings change without a restart, for both protocols.
#[test]
fn settings_are_reloaded() {
    let mut setup = TrackerWithClients::new(2, "");
    assert_eq!(setup.announce_over_both(1, PEER_ID, ""), [Swarm(0, 1, 1_800), Swarm(0, 1, 1_800)]);
    let [udp, http] = [setup.udp.tracker, setup.http].map(|address| address.port());
    let config = |more: &str| {
        config(2, "")
            .replace(
                "udp: {listen: \"127.0.0.1:0\"}",
                &format!("udp: {{listen: \"127.0.0.1:{udp}\"{more}}}"),
            )
            .replace(
                "http: {listen: \"127.0.0.1:0\"",
                &format!("http: {{listen: \"127.0.0.1:{http}\""),
            )
            .replace("hooks:\n", "hooks: []\n")
    };
    let changed = config(", wrong_connection_id: error, connection_id_lifetime: 10m")
        .replace(
            "peer_lifetime: 2h",
            "interval: 20m, min_interval: 10m, numwant: {max: 3}, peer_lifetime: 3h",
        )
        .replace("announce_paths: [/announce,", "announce_paths: [/announce, /a,")
        + "storage: {caps: {per_ipv4: 2}, memory: 64MiB, keep_completed: 1h}\nlog: {level: debug}\n";
    setup.tracker.write_config(&changed);
    let (status, message) = setup.ask("POST", "/v1/reload");
    // The config had port 0 at start and has the actual ports now, which counts as a change.
    let expected = "reloaded: 0 hooks, 0 info hashes listed; restart the tracker to apply: udp.listen, http.listen";
    assert_eq!((status, message.as_str()), (200, expected));
    let (_, values) = setup.ask("GET", "/v1/config");
    for in_force in [
        r#"{"key":"announce.interval","value":"20m","is_default":false}"#.to_owned(),
        r#"{"key":"storage.source_share","value":"2%","is_default":true}"#.to_owned(),
        format!(
            r#"{{"key":"udp.listen","value":"127.0.0.1:0","is_default":false,"after_restart":"127.0.0.1:{udp}"}}"#
        ),
    ] {
        assert!(values.contains(&in_force), "no {in_force} in {values}");
    }
    wait_until(|| {
        setup.announce_over_both(1, PEER_ID, "") == [Swarm(0, 1, 1_200), Swarm(0, 1, 1_200)]
    });
    // With a cap of 2, the third peer of an address is not stored.
    for port in [7_002, 7_003, 7_004] {
        let announce = Announce { port, ..Announce::of(2, port) };
        over_udp(&setup.udp, &announce, PEER_ID, "");
    }
    assert_eq!(setup.udp.scrape(&[info_hash_of(2)]), Some(vec![[0, 0, 2]]));
    // A wrong connection id gets an error now.
    let mut other = Client::new("127.0.0.1", setup.udp.tracker);
    other.id = 5;
    assert_eq!(
        over_udp(&other, &Announce::of(1, 7_001), PEER_ID, ""),
        error("wrong connection id")
    );
    // New HTTP paths take effect within a second.
    wait_until(|| Connection::to(setup.http).get("/a").status == 200);
    setup.tracker.signal("USR1");
    setup.tracker.signal("PIPE");
    setup.tracker.signal("ALRM");
    setup.tracker.wait_for("SIGALRM is ignored");
    let mistaken = changed.replace("interval: 20m", "interval: 20h");
    setup.tracker.write_config(&mistaken);
    let (status, message) = setup.ask("POST", "/v1/reload");
    assert!(
        status == 422 && message.contains("announce.peer_lifetime: 3h is less"),
        "{status} {message}"
    );
    assert_eq!(setup.announce_over_both(1, PEER_ID, ""), [Swarm(0, 1, 1_200), Swarm(0, 1, 1_200)]);
}

/// A list that is a FIFO without a writer is refused and blocks no later reload.
#[test]
fn a_list_that_is_a_fifo_does_not_block_reloads() {
    let directory = tempfile::tempdir().unwrap();
    let (list, fifo) = (directory.path().join("list"), directory.path().join("fifo"));
    fs::write(&list, format!("{}\n", hex(1))).unwrap();
    let hooks = format!(
        "  - {{name: access_list, options: {{mode: deny, files: {}, overrides_file: {}}}}}\n",
        list.display(),
        directory.path().join("overrides").display()
    );
    let setup = TrackerWithClients::new(1, &hooks);
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fs::rename(&fifo, &list).unwrap();
    let (status, message) = setup.ask("POST", "/v1/reload");
    assert!(status == 422 && message.contains("not a regular file"), "{status} {message}");
    let (status, message) = setup.ask("PUT", &format!("/v1/access_list/{}", hex(2)));
    assert_eq!(status, 200, "{message}");
    wait_until(|| {
        setup.announce_over_both(2, PEER_ID, "") == [error(NOT_SERVED), error(NOT_SERVED)]
    });
    assert_eq!(setup.announce_over_both(1, PEER_ID, ""), [error(NOT_SERVED), error(NOT_SERVED)]);
}

/// Torrents that were removed with DELETE but are in a list file are reported at each reload, and overrides with which
/// the list files agree no longer count.
#[test]
fn overrides_that_contradict_the_list_files_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let (list, overrides) = (directory.path().join("list"), directory.path().join("overrides"));
    fs::write(&list, format!("{}\n", hex(1))).unwrap();
    // A file that was truncated in a crash must not prevent the start.
    fs::write(
        &overrides,
        [format!("+{}\n-{}\n+00", hex(5), hex(5)).as_bytes(), &[0; 600]].concat(),
    )
    .unwrap();
    let hooks = format!(
        "  - {{name: access_list, options: {{mode: deny, files: {}, overrides_file: {}}}}}\n",
        list.display(),
        overrides.display()
    );
    let mut setup = TrackerWithClients::new(1, &hooks);
    setup.tracker.wait_for("cut off or filled with zeros");
    assert_eq!(fs::read_to_string(&overrides).unwrap(), "", "all overrides are redundant");
    assert_eq!(setup.ask("DELETE", &format!("/v1/access_list/{}", hex(1))).0, 200);
    assert_eq!(setup.ask("PUT", &format!("/v1/access_list/{}", hex(2))).0, 200);
    assert_eq!(setup.ask("POST", "/v1/reload").0, 200);
    let message = setup.tracker.wait_for("were removed by DELETE");
    assert!(message.contains(&hex(1)), "{message}");
    // Overrides with which the list files agree by now are marked, and no longer count when the files change.
    fs::write(&list, format!("{}\n", hex(2))).unwrap();
    assert_eq!(setup.ask("POST", "/v1/reload").0, 200);
    let text = fs::read_to_string(&overrides).unwrap();
    assert!(
        text.lines().count() == 2 && text.lines().all(|line| line.ends_with(" listed")),
        "{text}"
    );
    fs::write(&list, "").unwrap();
    assert_eq!(setup.ask("POST", "/v1/reload").0, 200);
    assert_eq!(fs::read_to_string(&overrides).unwrap(), text);
    wait_until(|| {
        setup.announce_over_both(2, PEER_ID, "") != [error(NOT_SERVED), error(NOT_SERVED)]
    });
}

/// Torrents without peers are removed with `POST /v1/evict`.
#[test]
fn torrents_without_peers_are_evicted_on_demand() {
    let mut setup = TrackerWithClients::new(2, "");
    for torrent in 0..20 {
        for event in [2, 1, 3] {
            let left = u64::from(event == 2);
            let announce = Announce { event, left, ..Announce::of(torrent, 7_001) };
            over_udp(&setup.udp, &announce, PEER_ID, "");
        }
    }
    assert_eq!(setup.udp.scrape(&[info_hash_of(3)]), Some(vec![[0, 1, 0]]));
    wait_for_torrents(&setup, 20);
    let (status, message) = setup.ask("POST", "/v1/evict");
    assert_eq!((status, message.as_str()), (200, "20 torrents without peers are being removed"));
    wait_for_torrents(&setup, 0);
    let (_, metrics) = setup.ask("GET", "/metrics");
    let evicted = metrics.lines().filter(|line| {
        line.starts_with("tsubame_evicted_total{") && line.contains("empty_torrent")
    });
    let evicted: u64 =
        evicted.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(evicted, 20);
}
