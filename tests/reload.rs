//! Hooks that change while the tracker runs, with their lists.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::{Connection, rows_of};
use common::policy::Answer::Swarm;
use common::policy::{
    Answer, CLIENT, NOT_SERVED, World, config, error, hex, over_http, over_udp, scrape_target,
    wait_for_torrents, wait_until,
};
use common::{Announce, Client, PATIENCE, info_hash_of, now};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tsubame::policy::access_list::parse_hash;

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
    fs::write(&list, &text).unwrap();
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
        for round in 0..10 {
            // Other torrents each time, so that swarms are looked through anew.
            fs::write(&list, &text[41 * 5_000 * round..]).unwrap();
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
    // One that is copied there slowly, and seen with half of it.
    let copied = directory.path().join("b.torrent");
    fs::write(&copied, b"d8:announce1:y4:infod4:name1:b").unwrap();
    world.tracker.wait_for("b.torrent: is no torrent");
    fs::write(&copied, b"d8:announce1:y4:infod4:name1:b6:pieces0:ee").unwrap();
    world.tracker.wait_for("2 info hashes listed");
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
