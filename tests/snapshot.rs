//! Snapshots: swarms survive a restart, a crash, and damage to the file.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::{
    Announce, Client, Tracker, UNCAPPED, WAIT_TIMEOUT, cpus, deny_system_call, info_hash_of, now,
};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tsubame::cli::snapshot::describe;
use tsubame::clock::Clock;
use tsubame::state::{StreamTotals, write_block, write_end, write_header};
use tsubame_storage::{Endpoint, InfoHash, PeerRecord, Role, StateRecord, TorrentRecord};

/// Number of torrents that tests store.
const TORRENTS: u32 = 400;

/// Returns a config with snapshots in a directory.
fn config(directory: &Path, shards: usize, more: &str) -> String {
    let directory = directory.display();
    let storage = UNCAPPED.trim_end().strip_suffix('}').unwrap();
    format!(
        "cpus: {}\nudp: {{listen: [\"127.0.0.1:0\"]}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n\
         {storage}, directory: \"{directory}\"{more}}}\n",
        cpus(shards)
    )
}

fn snapshot_of(directory: &Path) -> PathBuf {
    directory.join("swarms.tsubame")
}

/// Announces a seeder and a leecher of each torrent; the download of the leecher of every fourth one completes.
fn announce_all(client: &mut Client) {
    for torrent in 0..TORRENTS {
        client.announce(&Announce { left: 0, ..Announce::of(torrent, 2_000) });
        client.announce(&Announce::of(torrent, 3_000));
        if torrent % 4 == 0 {
            client.announce(&Announce { left: 0, event: 1, ..Announce::of(torrent, 3_000) });
        }
    }
}

/// Scrapes all torrents until each has the counts that [`announce_all`] made.
fn wait_for_all(client: &mut Client) {
    let deadline = now() + WAIT_TIMEOUT;
    loop {
        let hashes: Vec<_> = (0..TORRENTS).map(info_hash_of).collect();
        let rows: Vec<_> =
            hashes.chunks(50).flat_map(|hashes| client.scrape(hashes).unwrap()).collect();
        let expected =
            |torrent: usize| if torrent.is_multiple_of(4) { [2, 1, 0] } else { [1, 0, 1] };
        let different = (0..rows.len()).find(|torrent| rows[*torrent] != expected(*torrent));
        let Some(torrent) = different else { return };
        assert!(now() < deadline, "torrent {torrent} has {:?}", rows[torrent]);
    }
}

#[test]
fn swarms_and_connection_ids_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(&config(directory.path(), 2, ""));
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    announce_all(&mut client);
    let log = tracker.stop_with_log();
    assert!(
        log.iter().any(|line| line.contains("snapshot written: 400 torrents, 800 peers")),
        "{log:?}"
    );
    let (text, is_intact) = describe(&snapshot_of(directory.path()), &Clock::new()).unwrap();
    assert!(is_intact && text.contains("torrents      400\npeers         800\n"), "{text}");
    // With other shards, so that other keys decide who owns a torrent, and another lifetime.
    for (shards, lifetime) in [(1, "50m"), (3, "2h")] {
        let config = config(directory.path(), shards, "");
        let mut tracker =
            Tracker::start(&format!("{config}announce: {{peer_lifetime: {lifetime}}}\n"));
        tracker.wait_for("400 torrents, 800 peers");
        let mut later = Client::new("127.0.0.1", tracker.addresses()[0]);
        later.id = client.id;
        wait_for_all(&mut later);
        let control = common::control_of(&mut tracker);
        let page = common::http_get(control, "/metrics");
        assert!(page.contains("tsubame_restored_peers 800"), "{page}");
        tracker.stop();
    }
}

/// What clients announce before the snapshot was read is younger, and stays.
#[test]
fn a_peer_that_has_stopped_since_is_not_restored() {
    let directory = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(&config(directory.path(), 1, ""));
    announce_all(&mut Client::connected("127.0.0.1", tracker.addresses()[0]));
    tracker.stop();
    // The snapshot is read from a pipe, which gives nothing until the test writes to it.
    let (path, snapshot) =
        (snapshot_of(directory.path()), fs::read(snapshot_of(directory.path())).unwrap());
    fs::remove_file(&path).unwrap();
    make_pipe(&path);
    let mut tracker = Tracker::start(&config(directory.path(), 1, ""));
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    let stop = Announce { event: 3, ..Announce::of(1, 3_000) };
    client.announce(&stop);
    client.announce(&Announce::of(2, 4_000));
    fs::write(&path, snapshot).unwrap();
    tracker.wait_for("restored from a snapshot");
    let rows = client.scrape(&[info_hash_of(1), info_hash_of(2)]).unwrap();
    assert_eq!(rows, [[1, 0, 0], [1, 0, 2]]);
    tracker.stop();
}

fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
}

/// A tracker that is killed at any moment while it writes snapshots leaves a complete one.
#[test]
fn a_crash_leaves_a_complete_snapshot() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(&config(directory.path(), 2, ""));
    announce_all(&mut Client::connected("127.0.0.1", tracker.addresses()[0]));
    tracker.stop();
    let mut leftovers = 0;
    let new_file = directory.path().join("swarms.tsubame.new");
    for _ in 0..100 {
        let mut tracker = Tracker::start(&config(directory.path(), 2, ""));
        tracker.wait_for("400 torrents, 800 peers");
        // The final snapshot is written while the tracker still serves.
        tracker.signal("TERM");
        // Half of them are killed as soon as they write, the others at a random moment.
        let waits_for_file = rng.bool();
        let limit = if waits_for_file { 100_000 } else { rng.u64(..4_000) };
        let moment = now() + Duration::from_micros(limit);
        while now() < moment && !(waits_for_file && new_file.exists()) {
            std::hint::spin_loop();
        }
        let process = rustix::process::Pid::from_raw(tracker.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
        tracker.wait();
        leftovers += usize::from(new_file.exists());
        let (text, is_intact) = describe(&snapshot_of(directory.path()), &Clock::new()).unwrap();
        assert!(is_intact && text.contains("peers         800\n"), "{text}");
    }
    assert!(leftovers > 10, "only {leftovers} of 100 were killed while writing");
}

/// Writes a snapshot as of a time, with a torrent for each number of peers, each in a block of its own. Returns the
/// offset of the end of each block.
fn write_snapshot(path: &Path, unix_secs: u64, torrents: &[u32]) -> Vec<usize> {
    let (mut bytes, mut totals, mut ends) = (Vec::new(), StreamTotals::default(), Vec::new());
    write_header(unix_secs, &mut bytes);
    for (number, peers) in torrents.iter().enumerate() {
        let info_hash = InfoHash(info_hash_of(number as u32));
        let torrent = TorrentRecord { info_hash, completed: 5, used_at: 0 };
        let mut records = vec![StateRecord::Torrent(torrent)];
        records.extend((0..*peers).map(|peer| {
            let endpoint = Endpoint::new((0x0505_0000 + peer).to_be_bytes().into(), 6_881);
            let (role, is_counted, is_remote) = (Role::Seeder, false, false);
            let announced_at = -60;
            StateRecord::Peer(PeerRecord { endpoint, role, is_counted, is_remote, announced_at })
        }));
        write_block(&records, 0, unix_secs, &mut bytes);
        totals.count(&records);
        ends.push(bytes.len());
    }
    write_end(&totals, unix_secs, &mut bytes);
    fs::write(path, bytes).unwrap();
    ends
}

fn unix_secs() -> u64 {
    Clock::new().now().unix_secs
}

/// Starts a tracker with a snapshot, and returns the numbers of seeders and completed downloads of the first torrents,
/// once the log has a text.
fn start_with(directory: &Path, text: &str) -> Vec<[u32; 3]> {
    let mut tracker = Tracker::start(&config(directory, 2, ""));
    tracker.wait_for(text);
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    let hashes: Vec<_> = (0..10).map(info_hash_of).collect();
    let rows = client.scrape(&hashes).unwrap();
    tracker.signal("KILL");
    rows
}

/// The intact blocks of a damaged file are restored, and the log says how much was skipped.
#[test]
fn a_damaged_snapshot_costs_what_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let path = snapshot_of(directory.path());
    let ends = write_snapshot(&path, unix_secs(), &[3; 10]);
    let (good, full) = (fs::read(&path).unwrap(), vec![[3, 5, 0]; 10]);
    assert_eq!(start_with(directory.path(), "restored from a snapshot"), full);
    for block in 0..10 {
        let mut bytes = good.clone();
        bytes[ends[block] - 4] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        let mut expected = full.clone();
        expected[block] = [0, 0, 0];
        assert_eq!(start_with(directory.path(), "1 block and 0 bytes were passed over"), expected);
    }
    fs::write(&path, &good[..ends[6] + 10]).unwrap();
    let expected: Vec<_> =
        (0..10).map(|block| if block < 7 { [3, 5, 0] } else { [0; 3] }).collect();
    assert_eq!(start_with(directory.path(), "its end is missing"), expected);
    let mut other_version = good.clone();
    other_version[8] = 2;
    let checksum = crc32fast::hash(&other_version[..28]);
    other_version[28..32].copy_from_slice(&checksum.to_le_bytes());
    let mut garbage = vec![0; 5_000];
    fastrand::Rng::with_seed(1).fill(&mut garbage);
    for (bytes, text) in [
        (Vec::new(), "not a snapshot of Tsubame"),
        (garbage, "not a snapshot of Tsubame"),
        (other_version, "it has version 2 of the format; this version of Tsubame reads version 1"),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(start_with(directory.path(), text), vec![[0; 3]; 10]);
    }
}

/// If the clock was set back, ages do not change. After half a day only the counts of downloads are restored, after two
/// days nothing.
#[test]
fn ages_follow_the_wall_clock() {
    let directory = tempfile::tempdir().unwrap();
    let path = snapshot_of(directory.path());
    write_snapshot(&path, unix_secs() + 86_400, &[3; 10]);
    assert_eq!(start_with(directory.path(), "30 peers in"), vec![[3, 5, 0]; 10]);
    // Half a day later the counts of downloads are still kept.
    write_snapshot(&path, unix_secs() - 43_200, &[3; 10]);
    assert_eq!(start_with(directory.path(), "10 torrents, 0 peers in"), vec![[0, 5, 0]; 10]);
    write_snapshot(&path, unix_secs() - 2 * 86_400, &[3; 10]);
    assert_eq!(start_with(directory.path(), "all of its peers have expired"), vec![[0; 3]; 10]);
}

/// A snapshot that does not fit the memory: small swarms are read before crowded ones.
#[test]
fn small_swarms_are_restored_first() {
    let directory = tempfile::tempdir().unwrap();
    let crowded = 1_600_000;
    let torrents: Vec<u32> =
        std::iter::once(crowded).chain(std::iter::repeat_n(2, 20_000)).collect();
    let len = write_packed_snapshot(directory.path(), &torrents);
    assert!(len > 3 << 20);
    let memory = ", memory: 16MiB";
    let mut tracker = Tracker::start(&config(directory.path(), 1, memory));
    tracker.wait_for("torrents and peers of the snapshot were left out");
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    for first in (1..=20_000).step_by(2_000) {
        let hashes: Vec<_> = (first..first + 50).map(info_hash_of).collect();
        assert_eq!(client.scrape(&hashes).unwrap(), vec![[2, 5, 0]; 50]);
    }
    let row = client.scrape(&[info_hash_of(0)]).unwrap()[0];
    assert!(row[0] > 1_000 && row[0] < crowded, "{row:?}");
    tracker.stop();
}

/// Writes a snapshot with a torrent for each number of peers, in full blocks; returns its length in bytes.
fn write_packed_snapshot(directory: &Path, torrents: &[u32]) -> u64 {
    let (mut bytes, unix_secs) = (Vec::new(), unix_secs());
    write_header(unix_secs, &mut bytes);
    let mut totals = StreamTotals::default();
    let mut records = Vec::new();
    for (number, peers) in torrents.iter().enumerate() {
        let torrent = InfoHash(info_hash_of(number as u32));
        let torrent = TorrentRecord { info_hash: torrent, completed: 5, used_at: 0 };
        for part in 0..peers.div_ceil(2_000) {
            records.push(StateRecord::Torrent(torrent));
            records.extend((part * 2_000..(*peers).min((part + 1) * 2_000)).map(|peer| {
                let endpoint = Endpoint::new((0x0505_0000 + peer).to_be_bytes().into(), 6_881);
                let (role, is_counted, is_remote) = (Role::Seeder, false, false);
                let announced_at = -60;
                StateRecord::Peer(PeerRecord {
                    endpoint,
                    role,
                    is_counted,
                    is_remote,
                    announced_at,
                })
            }));
        }
    }
    write_block(&records, 0, unix_secs, &mut bytes);
    totals.count(&records);
    write_end(&totals, unix_secs, &mut bytes);
    fs::write(snapshot_of(directory), &bytes).unwrap();
    bytes.len() as u64
}

/// Starts a tracker with a snapshot of all torrents.
fn start_with_swarms(directory: &Path, more: &str) -> (Tracker, Client) {
    let tracker = Tracker::start(&config(directory, 2, more));
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    announce_all(&mut client);
    tracker.stop();
    let mut tracker = Tracker::start(&config(directory, 2, more));
    tracker.wait_for("400 torrents, 800 peers");
    client.tracker = tracker.addresses()[0];
    (tracker, client)
}

/// A disk that is full, or a directory that has gone, costs a warning, and the previous snapshot stays.
#[test]
fn a_snapshot_that_fails_leaves_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let (tracker, mut client) = start_with_swarms(directory.path(), "");
    tracker.stop();
    let before = fs::read(snapshot_of(directory.path())).unwrap();
    // The kernel reports a full disk at the latest when the file is synced.
    let mut tracker = Tracker::start_with_command(
        &config(directory.path(), 2, ", snapshot_interval: 1s"),
        |mut command| {
            deny_system_call(&mut command, libc::SYS_fsync, None, libc::ENOSPC);
            command
        },
    );
    let line = tracker.wait_for("no snapshot was written");
    assert!(line.contains("No space left on device") && line.contains("swarms.tsubame"), "{line}");
    client.tracker = tracker.addresses()[0];
    wait_for_all(&mut client);
    let page = common::http_get(common::control_of(&mut tracker), "/metrics");
    assert!(!page.contains("tsubame_snapshots_total{result=\"failure\"} 0\n"), "{page}");
    let log = tracker.stop_with_log();
    assert_eq!(fs::read(snapshot_of(directory.path())).unwrap(), before, "{log:?}");
    assert!(!directory.path().join("swarms.tsubame.new").exists());

    let gone = tempfile::tempdir().unwrap();
    let (mut tracker, mut client) = start_with_swarms(gone.path(), ", snapshot_interval: 1s");
    fs::remove_dir_all(gone.path()).unwrap();
    let line = tracker.wait_for("no snapshot was written");
    assert!(line.contains("No such file or directory"), "{line}");
    wait_for_all(&mut client);
    tracker.stop();
    let missing = gone.path().join("missing");
    let mut tracker = Tracker::start(&config(&missing, 1, ""));
    let line = tracker.wait_for("cannot be opened");
    assert!(line.contains("missing") && line.contains("create it"), "{line}");
    tracker.stop();
}

/// Starts a tracker in a mount namespace in which a shell command has changed a directory.
fn start_with_mount(directory: &Path, mount: &str) -> Tracker {
    let script = format!("{mount} && exec \"$@\"").replace("DIR", directory.to_str().unwrap());
    let config = config(directory, 1, ", snapshot_interval: 1s");
    Tracker::start_with_command(&config, |command| {
        let mut inside = std::process::Command::new("unshare");
        // Other users may mount only in a user namespace of their own.
        let is_root = rustix::process::geteuid().is_root();
        inside.args(if is_root { &[][..] } else { &["--user", "--map-root-user"] });
        inside.args(["--mount", "sh", "-c", &script, "sh"]);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    })
}

/// A file system that has no space for a snapshot, or is read-only, costs a warning, and the previous snapshot stays.
#[test]
fn a_full_or_read_only_file_system_leaves_the_snapshot_before() {
    let directory = tempfile::tempdir().unwrap();
    let full = "mount -t tmpfs -o size=16k none DIR";
    let mut tracker = start_with_mount(directory.path(), full);
    let inside = format!("/proc/{}/root{}", tracker.id(), directory.path().display());
    let inside = Path::new(&inside);
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    client.announce(&Announce::of(1, 2_000));
    let deadline = now() + WAIT_TIMEOUT;
    let peers = || describe(&snapshot_of(inside), &Clock::new()).unwrap_or_default().0;
    while !peers().contains("peers         1\n") {
        assert!(now() < deadline, "{}", peers());
    }
    announce_all(&mut client);
    let line = tracker.wait_for("no snapshot was written");
    assert!(line.contains("No space left on device") && line.contains("make space"), "{line}");
    wait_for_all(&mut client);
    let (text, is_intact) = describe(&snapshot_of(inside), &Clock::new()).unwrap();
    assert!(is_intact && text.contains("peers         1\n"), "{text}");
    assert!(!inside.join("swarms.tsubame.new").exists());
    drop(tracker);

    let (tracker, _) = start_with_swarms(directory.path(), "");
    tracker.stop();
    let before = fs::read(snapshot_of(directory.path())).unwrap();
    let read_only = "mount --bind DIR DIR && mount -o remount,bind,ro DIR";
    let mut tracker = start_with_mount(directory.path(), read_only);
    tracker.wait_for("400 torrents, 800 peers");
    let line = tracker.wait_for("no snapshot was written");
    assert!(line.contains("Read-only file system") && line.contains("writable"), "{line}");
    client.tracker = tracker.addresses()[0];
    client.connect();
    wait_for_all(&mut client);
    tracker.stop();
    assert_eq!(fs::read(snapshot_of(directory.path())).unwrap(), before);
}

/// A disk that does not answer delays the stop until `storage.stop_timeout`, and requests not at all.
#[test]
fn a_slow_disk_delays_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let (mut tracker, mut client) = start_with_swarms(directory.path(), ", stop_timeout: 2s");
    let before = fs::read(snapshot_of(directory.path())).unwrap();
    // Opening a pipe waits until somebody reads it.
    make_pipe(&directory.path().join("swarms.tsubame.new"));
    let started = now();
    tracker.signal("TERM");
    tracker.wait_for("SIGTERM: stopping");
    wait_for_all(&mut client);
    tracker.wait_for("storage.stop_timeout: the snapshot at stop takes longer");
    tracker.wait();
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(fs::read(snapshot_of(directory.path())).unwrap(), before);
}

/// A second signal ends the tracker without the snapshot.
#[test]
fn a_second_signal_stops_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mut tracker, _) = start_with_swarms(directory.path(), ", stop_timeout: 10m");
    let pipe = directory.path().join("swarms.tsubame.new");
    make_pipe(&pipe);
    tracker.signal("TERM");
    tracker.wait_for("SIGTERM: stopping");
    tracker.signal("INT");
    tracker.wait_for("SIGINT: stopping without a snapshot");
    assert_eq!(tracker.wait().code(), Some(0));
}

/// Two trackers with one directory: the second one says so, and serves.
#[test]
fn a_directory_belongs_to_one_tracker() {
    let directory = tempfile::tempdir().unwrap();
    let (first, mut client) = start_with_swarms(directory.path(), "");
    let mut second = Tracker::start(&config(directory.path(), 1, ""));
    second.wait_for("is used by another process");
    let other = Client::connected("127.0.0.1", second.addresses()[0]);
    assert_ne!(other.id, 0);
    second.stop();
    wait_for_all(&mut client);
    first.stop();
    let mut text = Vec::new();
    fs::File::open(snapshot_of(directory.path())).unwrap().read_to_end(&mut text).unwrap();
    assert!(describe(&snapshot_of(directory.path()), &Clock::new()).unwrap().1);
}

/// Changes until the last request are in the final snapshot.
#[test]
fn the_last_snapshot_has_the_last_changes() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let mut tracker = Tracker::start(&config(directory.path(), 2, ""));
        let client = Client::connected("127.0.0.1", tracker.addresses()[0]);
        client.socket.set_read_timeout(Some(common::NO_REPLY_TIMEOUT)).unwrap();
        let mut kill = std::process::Command::new("kill");
        kill.args(["-s", "TERM", &tracker.id().to_string()]);
        let mut killing = None;
        // Announces until the tracker answers no more.
        let mut answered = 0;
        for torrent in 0.. {
            if torrent == 100 {
                // In the background, so that the signal arrives between announces.
                killing = Some(kill.spawn().unwrap());
            }
            let request = Announce::of(torrent, 5_000 + round).bytes(client.id, torrent);
            if client.ask(&request).is_none() {
                break;
            }
            answered = torrent + 1;
        }
        assert!(killing.unwrap().wait().unwrap().success());
        tracker.wait();
        let mut tracker = Tracker::start(&config(directory.path(), 2, ""));
        tracker.wait_for("restored from a snapshot");
        let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
        for torrent in 0..answered {
            let reply = client.announce(&Announce::of(torrent, 4_000));
            let ports: Vec<u16> = reply.peers.iter().map(|(_, port)| *port).collect();
            assert!(
                ports.contains(&(5_000 + round)),
                "round {round}: torrent {torrent} of {answered}: {ports:?}"
            );
        }
        tracker.signal("KILL");
    }
}
