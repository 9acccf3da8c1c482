//! Real clients, as users have them, find each other through the tracker alone and move a file.
//!
//! Over IPv6 goes libtorrent alone: Debian's Transmission 3.00 reads the peers of an IPv6 reply as IPv4,
//! aria2 asks UDP trackers over IPv4 only, and rTorrent 0.9.8 takes no IPv6 address to bind. They need root
//! and the programs that `tests/run` installs, so `cargo test` leaves them out.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::lab::{Host, Lab, TRACKER_V4, TRACKER_V6, Torrent, wait_for_counts};
use common::{Tracker, figure};
use std::path::Path;
use std::process::Command;

/// What a client is started with: the torrent, where the file is or goes, its address
type Start = fn(&Path, &Path, &str) -> Command;

/// One shard on each core, and the default config: what a user who starts it gets
const CONFIG: &str = "control: {listen: \"\"}\n";

fn transfer(seeds: Start, leeches: Start, v6: bool) {
    let mut lab = Lab::new();
    lab.enter(Host::Tracker);
    let tracker = Tracker::start(CONFIG);
    let url = if v6 { format!("[{TRACKER_V6}]") } else { TRACKER_V4.to_owned() };
    let torrent = Torrent::new(&lab, 1 + u64::from(v6), &format!("udp://{url}:6969/announce"));
    let seeder = Host::Seeder.address(v6);
    lab.start(Host::Seeder, seeds(&torrent.path, &lab.folder("seed"), &seeder));
    wait_for_counts(&torrent, v6, |counts| counts == [1, 0, 0]);
    let leecher = Host::Leecher.address(v6);
    lab.start(Host::Leecher, leeches(&torrent.path, &lab.folder("leech"), &leecher));
    torrent.wait_for_download(&lab);
    // Who has it all says so, once, and is a seeder from then on.
    wait_for_counts(&torrent, v6, |counts| counts == [2, 1, 0]);
    lab.interrupt_last();
    wait_for_counts(&torrent, v6, |counts| counts == [1, 1, 0]);
    let line = tracker.stop();
    assert_eq!((figure(&line, "shed"), figure(&line, "torrents")), (0, 1), "{line}");
    assert!(figure(&line, "announces") >= 4, "{line}");
}

fn libtorrent(torrent: &Path, directory: &Path, address: &str) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/libtorrent_client.py");
    let interface =
        if address.contains(':') { format!("[{address}]:6881") } else { format!("{address}:6881") };
    command.arg(script).arg(torrent).arg(directory).arg(interface);
    command
}

fn transmission(torrent: &Path, directory: &Path, _address: &str) -> Command {
    let mut command = Command::new("transmission-cli");
    let config = directory.join("config");
    std::fs::create_dir_all(&config).unwrap();
    let settings = "{\"dht-enabled\": false, \"lpd-enabled\": false, \"pex-enabled\": false, \
                    \"utp-enabled\": false, \"port-forwarding-enabled\": false}";
    std::fs::write(config.join("settings.json"), settings).unwrap();
    command.arg("--verify").arg("--no-portmap").arg("--config-dir").arg(config);
    command.arg("--download-dir").arg(directory).arg(torrent);
    command
}

fn aria2(torrent: &Path, directory: &Path, _address: &str) -> Command {
    let mut command = Command::new("aria2c");
    // Its UDP trackers speak through the socket of its DHT, which a private torrent does not use.
    command.args(["--no-conf=true", "--enable-dht=true", "--dht-listen-port=6882"]);
    command.arg(format!("--dht-file-path={}", directory.join("dht.dat").display()));
    command.args(["--bt-enable-lpd=false", "--enable-peer-exchange=false", "--seed-ratio=0.0"]);
    command.args(["--check-integrity=true", "--listen-port=6881", "--summary-interval=5"]);
    command.args(["--file-allocation=none", "--bt-tracker-interval=5"]);
    command.arg("--dir").arg(directory).arg(torrent);
    command
}

fn rtorrent(torrent: &Path, directory: &Path, address: &str) -> Command {
    let mut command = Command::new("rtorrent");
    let session = directory.join("session");
    std::fs::create_dir_all(&session).unwrap();
    command.args(["-n", "-p", "6881-6881"]).arg("-s").arg(session);
    command.arg("-d").arg(directory).arg("-b").arg(address);
    for option in [
        "system.daemon.set=true",
        "dht.mode.set=disable",
        "protocol.pex.set=no",
        "trackers.use_udp.set=yes",
        "pieces.hash.on_completion.set=no",
    ] {
        command.args(["-o", option]);
    }
    command.arg(torrent);
    command
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_moves_a_file() {
    transfer(libtorrent, libtorrent, false);
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_moves_a_file_over_ipv6() {
    transfer(libtorrent, libtorrent, true);
}

#[test]
#[ignore = "needs root and transmission-cli"]
fn transmission_moves_a_file() {
    transfer(transmission, transmission, false);
}

#[test]
#[ignore = "needs root and aria2"]
fn aria2_moves_a_file() {
    transfer(aria2, aria2, false);
}

#[test]
#[ignore = "needs root and rtorrent"]
fn rtorrent_moves_a_file() {
    transfer(rtorrent, rtorrent, false);
}

#[test]
#[ignore = "needs root, aria2 and python3-libtorrent"]
fn different_clients_find_each_other() {
    transfer(transmission, libtorrent, false);
}

#[test]
#[ignore = "needs root, node and npm's bittorrent-tracker"]
fn bittorrent_tracker_of_npm_is_served() {
    let lab = Lab::new();
    lab.enter(Host::Tracker);
    let tracker = Tracker::start(CONFIG);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    assert!(folder.join("node_modules/bittorrent-tracker").exists(), "tests/run installs it");
    lab.enter(Host::Leecher);
    let output = Command::new("node")
        .arg("bittorrent_tracker_client.mjs")
        .arg(format!("udp://{TRACKER_V4}:6969"))
        .current_dir(folder)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let steps: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let seen = |step: &str| steps[step].to_string();
    // Seeders, leechers, downloads.
    assert_eq!(seen("seederStarts"), "[1,0,null]", "{steps}");
    assert_eq!(seen("leecherStarts"), "[1,1,null]", "{steps}");
    assert_eq!(steps["peer"], format!("{}:7001", Host::Leecher.address(false)), "{steps}");
    assert_eq!(seen("scrape"), "[1,1,0]", "{steps}");
    assert_eq!(seen("completes"), "[2,0,null]", "{steps}");
    assert_eq!(seen("scrapeAfter"), "[2,0,1]", "{steps}");
    assert_eq!(seen("stops"), "[1,0,null]", "{steps}");
    tracker.stop();
}
