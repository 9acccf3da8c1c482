//! Tests with real programs: BitTorrent clients find each other through the tracker alone and transfer a file; proxies,
//! curl, a browser, and tools that check the API, the metrics and the systemd unit.
//!
//! Only libtorrent and lftp are tested over UDP and IPv6: Debian's Transmission 3.00 reads the peers of an IPv6 reply
//! as IPv4, aria2 sends UDP requests over IPv4 only, and rTorrent 0.9.8 accepts no IPv6 address to bind. The tests need
//! programs that `tests/run` installs, and most need root, so `cargo test` ignores them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "clients/commands.rs"]
mod commands;
mod common;

use commands::{aria2, deluge, lftp, libtorrent, qbittorrent, rtorrent, transmission};
use common::http::{self, Connection};
use common::lab::{
    Host, INTERFACES, Lab, TRACKER_V4, TRACKER_V6, Torrent, wait_for_counts, wait_until,
};
use common::{Tracker, WAIT_TIMEOUT, control_of, count_in, cpus, http_get};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

/// Builds the command of a client from a torrent file, the directory of the payload, and an address to bind.
type ClientCommand = fn(&Path, &Path, &str) -> Command;

/// Protocol and family by which a client reaches the tracker.
#[derive(Clone, Copy)]
struct Transport {
    scheme: &'static str,
    v6: bool,
    /// Whether the client sends a stopped event when it ends. Transmission 3.00 does not over HTTP, and
    /// lftp never does.
    sends_stopped: bool,
}

const UDP: Transport = Transport { scheme: "udp", v6: false, sends_stopped: true };
const UDP_V6: Transport = Transport { scheme: "udp", v6: true, sends_stopped: true };
const HTTP: Transport = Transport { scheme: "http", v6: false, sends_stopped: true };
const HTTP_V6: Transport = Transport { scheme: "http", v6: true, sends_stopped: true };
const HTTPS: Transport = Transport { scheme: "https", v6: false, sends_stopped: true };

impl Transport {
    fn url(self) -> String {
        let host = if self.v6 { format!("[{TRACKER_V6}]") } else { TRACKER_V4.to_owned() };
        let port = if self.scheme == "https" { 6970 } else { 6969 };
        format!("{}://{host}:{port}/announce", self.scheme)
    }
}

/// Starts a tracker with one shard on each core, and with a self-signed certificate for TLS.
fn start(lab: &Lab, config: &str) -> Tracker {
    lab.enter(Host::Tracker);
    let certificate = rcgen::generate_simple_self_signed([TRACKER_V4.to_owned()]).unwrap();
    let (chain, key) = (lab.folder("tls").join("cert.pem"), lab.folder("tls").join("key.pem"));
    std::fs::write(&chain, certificate.cert.pem()).unwrap();
    std::fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
    let (chain, key) = (chain.display(), key.display());
    Tracker::start(&format!(
        "{config}\ncontrol: {{listen: \"\"}}\n\
         http: {{tls: {{listen: \"0.0.0.0:6970\", certificate: {chain}, key: {key}}}}}\n"
    ))
}

/// Transfers a file between two clients, each with its own protocol and family.
fn transfer(seeder: (ClientCommand, Transport), leecher: (ClientCommand, Transport)) {
    let log = transfer_in(Lab::new(), "", seeder, leecher);
    let line = line_with(&log, "stopped after");
    let uses_http = [seeder, leecher].iter().any(|(_, transport)| transport.scheme != "udp");
    assert_eq!(count_in(line, "over HTTP") > 0, uses_http, "{line}");
}

/// Returns the log line that contains a text.
fn line_with<'a>(log: &'a [String], text: &str) -> &'a str {
    log.iter().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{}", log.join("\n")))
}

/// Transfers a file between two clients in a lab; returns the log of the tracker.
fn transfer_in(
    mut lab: Lab,
    config: &str,
    (seeder_command, seeder_transport): (ClientCommand, Transport),
    (leecher_command, leecher_transport): (ClientCommand, Transport),
) -> Vec<String> {
    let tracker = start(&lab, config);
    let v6 = leecher_transport.v6;
    let mut torrent = Torrent::new(&lab, 1 + u64::from(v6), &seeder_transport.url());
    let seeder = Host::Seeder.address(seeder_transport.v6);
    lab.start(Host::Seeder, seeder_command(&torrent.path, &lab.folder("seed"), &seeder));
    wait_for_counts(&torrent, v6, |counts| counts == [1, 0, 0]);
    torrent.set_announce_url(&lab, &leecher_transport.url());
    let leecher = Host::Leecher.address(v6);
    lab.start(Host::Leecher, leecher_command(&torrent.path, &lab.folder("leech"), &leecher));
    torrent.wait_for_download(&lab);
    // The leecher sends one completed event and becomes a seeder.
    wait_for_counts(&torrent, v6, |counts| counts == [2, 1, 0]);
    lab.interrupt_last();
    if leecher_transport.sends_stopped {
        wait_for_counts(&torrent, v6, |counts| counts == [1, 1, 0]);
    }
    let log = tracker.stop_with_log();
    let line = line_with(&log, "stopped after");
    assert_eq!((count_in(line, "shed"), count_in(line, "torrents")), (0, 1), "{line}");
    let announces = if leecher_transport.sends_stopped { 4 } else { 3 };
    assert!(count_in(line, "announces") >= announces, "{line}");
    log
}

/// Transfers a file between two clients while the process of the tracker is replaced: after the seeder has announced,
/// and after the leecher has.
fn transfer_while_replaced(client: ClientCommand, transport: Transport, upgrades: bool) {
    let mut lab = Lab::new();
    let config = format!("storage: {{directory: {}}}", lab.folder("state").display());
    let mut tracker = start(&lab, &config);
    let replace = |lab: &Lab, tracker: Tracker| {
        let mut tracker = tracker;
        if upgrades {
            tracker.upgrade();
            return tracker;
        }
        tracker.stop();
        let mut tracker = start(lab, &config);
        tracker.wait_for("restored from a snapshot");
        tracker
    };
    let torrent = Torrent::new(&lab, 1, &transport.url());
    let seeder = Host::Seeder.address(transport.v6);
    lab.start(Host::Seeder, client(&torrent.path, &lab.folder("seed"), &seeder));
    wait_for_counts(&torrent, transport.v6, |counts| counts == [1, 0, 0]);
    tracker = replace(&lab, tracker);
    let leecher = Host::Leecher.address(transport.v6);
    lab.start(Host::Leecher, client(&torrent.path, &lab.folder("leech"), &leecher));
    torrent.wait_for_download(&lab);
    wait_for_counts(&torrent, transport.v6, |counts| counts == [2, 1, 0]);
    tracker = replace(&lab, tracker);
    wait_for_counts(&torrent, transport.v6, |counts| counts == [2, 1, 0]);
    lab.interrupt_last();
    if transport.sends_stopped {
        wait_for_counts(&torrent, transport.v6, |counts| counts == [1, 1, 0]);
    }
    drop(tracker);
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_notices_no_restart() {
    transfer_while_replaced(libtorrent, UDP, false);
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_notices_no_upgrade() {
    transfer_while_replaced(libtorrent, UDP, true);
    transfer_while_replaced(libtorrent, HTTP, true);
}

#[test]
#[ignore = "needs root and transmission-cli"]
fn transmission_notices_neither_a_restart_nor_an_upgrade() {
    transfer_while_replaced(transmission, UDP, false);
    transfer_while_replaced(transmission, UDP, true);
}

/// Transfers a file between two clients whose connects XDP answers, in native mode, with and without AF_XDP sockets.
fn transfer_over_xdp(client: ClientCommand, transport: Transport) {
    for announces in ["socket", "af_xdp"] {
        let config = format!(
            "udp: {{xdp: {{interfaces: [{}], mode: native, announces: {announces}}}}}",
            INTERFACES.join(", ")
        );
        let log = transfer_in(Lab::routed(), &config, (client, transport), (client, transport));
        let line = line_with(&log, "answered by XDP");
        assert!(count_in(line, "connects") >= 2, "{}", log.join("\n"));
        // Both clients announce their end, after the start of AF_XDP at the latest.
        assert_eq!(count_in(line, "redirected") > 0, announces == "af_xdp", "{line}");
    }
}

#[test]
#[ignore = "needs root and qbittorrent-nox"]
fn qbittorrent_transfers_a_file() {
    transfer((qbittorrent, UDP), (qbittorrent, UDP));
}

#[test]
#[ignore = "needs root and qbittorrent-nox"]
fn qbittorrent_transfers_a_file_over_http_and_ipv6() {
    transfer((qbittorrent, HTTP_V6), (qbittorrent, HTTP_V6));
}

#[test]
#[ignore = "needs root, deluged and deluge-console"]
fn deluge_transfers_a_file() {
    transfer((deluge, UDP), (deluge, UDP));
}

#[test]
#[ignore = "needs root and lftp"]
fn lftp_transfers_a_file() {
    let transport = Transport { sends_stopped: false, ..UDP };
    transfer((lftp, transport), (lftp, transport));
}

/// lftp sends announces of 110 bytes (action 4).
#[test]
#[ignore = "needs root and lftp"]
fn lftp_transfers_a_file_over_ipv6() {
    let transport = Transport { sends_stopped: false, ..UDP_V6 };
    transfer((lftp, transport), (lftp, transport));
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_transfers_a_file() {
    transfer((libtorrent, UDP), (libtorrent, UDP));
}

#[test]
#[ignore = "needs root: tests/run"]
fn libtorrent_transfers_a_file_over_xdp() {
    transfer_over_xdp(libtorrent, UDP);
}

#[test]
#[ignore = "needs root: tests/run"]
fn libtorrent_transfers_a_file_over_xdp_and_ipv6() {
    transfer_over_xdp(libtorrent, UDP_V6);
}

#[test]
#[ignore = "needs root: tests/run"]
fn transmission_transfers_a_file_over_xdp() {
    transfer_over_xdp(transmission, UDP);
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_transfers_a_file_over_ipv6() {
    transfer((libtorrent, UDP_V6), (libtorrent, UDP_V6));
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_transfers_a_file_over_http() {
    transfer((libtorrent, HTTP), (libtorrent, HTTP));
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_transfers_a_file_over_http_and_ipv6() {
    transfer((libtorrent, HTTP_V6), (libtorrent, HTTP_V6));
}

#[test]
#[ignore = "needs root and python3-libtorrent"]
fn libtorrent_transfers_a_file_over_https() {
    transfer((libtorrent, HTTPS), (libtorrent, HTTPS));
}

#[test]
#[ignore = "needs root and transmission-cli"]
fn transmission_transfers_a_file() {
    transfer((transmission, UDP), (transmission, UDP));
}

#[test]
#[ignore = "needs root and transmission-cli"]
fn transmission_transfers_a_file_over_http() {
    transfer((transmission, HTTP), (transmission, Transport { sends_stopped: false, ..HTTP }));
}

#[test]
#[ignore = "needs root and transmission-cli"]
fn transmission_transfers_a_file_over_https() {
    transfer((transmission, HTTPS), (transmission, Transport { sends_stopped: false, ..HTTPS }));
}

#[test]
#[ignore = "needs root and aria2"]
fn aria2_transfers_a_file() {
    transfer((aria2, UDP), (aria2, UDP));
}

#[test]
#[ignore = "needs root and aria2"]
fn aria2_transfers_a_file_over_http() {
    transfer((aria2, HTTP), (aria2, HTTP));
}

#[test]
#[ignore = "needs root and rtorrent"]
fn rtorrent_transfers_a_file() {
    transfer((rtorrent, UDP), (rtorrent, UDP));
}

#[test]
#[ignore = "needs root and rtorrent"]
fn rtorrent_transfers_a_file_over_http() {
    transfer((rtorrent, HTTP), (rtorrent, HTTP));
}

#[test]
#[ignore = "needs root, transmission-cli and python3-libtorrent"]
fn different_clients_find_each_other() {
    transfer((transmission, UDP), (libtorrent, UDP));
}

#[test]
#[ignore = "needs root, aria2 and transmission-cli"]
fn clients_over_udp_and_http_find_each_other() {
    transfer((transmission, UDP), (aria2, HTTP));
}

#[test]
#[ignore = "needs root, rtorrent and python3-libtorrent"]
fn clients_over_https_and_udp_find_each_other() {
    transfer((rtorrent, HTTPS), (libtorrent, UDP));
}

/// Checks that the tracker sees the address of the client, not that of the proxy.
fn check_proxy(program: &str, config: impl Fn(&Path) -> (String, Vec<String>)) {
    let mut lab = Lab::new();
    lab.enter(Host::Tracker);
    let tracker = Tracker::start("control: {listen: \"\"}\nhttp: {trusted_proxies: [127.0.0.1]}\n");
    let directory = lab.folder("proxy");
    let (text, arguments) = config(&directory);
    std::fs::write(directory.join("config"), text).unwrap();
    let mut command = Command::new(program);
    command.args(arguments);
    lab.start(Host::Tracker, command);
    wait_until("the proxy listens", WAIT_TIMEOUT, || {
        TcpStream::connect((TRACKER_V4, 8080)).is_ok()
    });
    for (host, port) in [(Host::Seeder, 7_001), (Host::Leecher, 7_002)] {
        lab.enter(host);
        let proxy = (TRACKER_V4.parse::<IpAddr>().unwrap(), 8080).into();
        let mut client = Connection::to(proxy);
        // Twice, because proxies reuse connections to the tracker for requests of other clients.
        for _ in 0..2 {
            let forged = "X-Forwarded-For: 6.6.6.6\r\n";
            let reply = client.get_with(&http::HttpAnnounce::of(1, port, 1).target(), forged);
            let announced = http::HttpAnnounceReply::of(&reply.body);
            let address: Ipv4Addr = host.address(false).parse().unwrap();
            assert_eq!(announced.external_ip, address.octets(), "{}", reply.head);
            let seeder = (Host::Seeder.address(false).parse().unwrap(), 7_001);
            assert_eq!(announced.peers.contains(&seeder), host == Host::Leecher);
        }
    }
    lab.enter(Host::Tracker);
    assert_eq!(count_in(&tracker.stop(), "peers"), 2);
}

#[test]
#[ignore = "needs root and nginx"]
fn nginx_forwards_client_addresses() {
    check_proxy("nginx", |directory| {
        let folder = directory.display();
        let config = format!(
            "daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}}\n\
             http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};\n\
             fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};\n\
             upstream tracker {{ server 127.0.0.1:6969; keepalive 4; }}\n\
             server {{ listen 8080; location / {{ proxy_pass http://tracker; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\";\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n"
        );
        (config, vec!["-c".to_owned(), directory.join("config").display().to_string()])
    });
}

fn haproxy(option: &'static str) -> impl Fn(&Path) -> (String, Vec<String>) {
    move |directory| {
        let config = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen tracker\n bind :8080\n server one 127.0.0.1:6969 {option}\n"
        );
        let file = directory.join("config").display().to_string();
        (config, vec!["-db".to_owned(), "-f".to_owned(), file])
    }
}

#[test]
#[ignore = "needs root and haproxy"]
fn haproxy_forwards_client_addresses() {
    check_proxy("haproxy", haproxy("send-proxy"));
    check_proxy("haproxy", haproxy("send-proxy-v2"));
}

#[test]
#[ignore = "needs root and curl"]
fn curl_is_served_over_https() {
    let lab = Lab::new();
    let tracker = start(&lab, "");
    lab.enter(Host::Leecher);
    let query = "info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=bbbbbbbbbbbbbbbbbbbb&port=6881";
    for protocol in ["--http1.0", "--http1.1", "--http2"] {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "10", protocol, "--cacert"])
            .arg(lab.folder("tls").join("cert.pem"))
            .args([format!("{}?{query}", HTTPS.url()), format!("{}?{query}", HTTPS.url())])
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(printed.matches("8:completei").count(), 2, "{protocol}: {output:?}");
    }
    assert_eq!(count_in(&tracker.stop(), "announces"), 6);
}

#[test]
#[ignore = "needs root, node and npm's bittorrent-tracker"]
fn bittorrent_tracker_of_npm_is_served() {
    npm_client("bittorrent-tracker", UDP);
    npm_client("bittorrent-tracker-9", UDP);
}

#[test]
#[ignore = "needs root, node and npm's bittorrent-tracker"]
fn bittorrent_tracker_of_npm_is_served_over_http() {
    npm_client("bittorrent-tracker", HTTP);
    npm_client("bittorrent-tracker-9", HTTP);
}

/// Runs the npm package bittorrent-tracker as a client. Version 9 is tested, too, because it differs from the current
/// one.
fn npm_client(package: &str, transport: Transport) {
    let lab = Lab::new();
    let tracker = start(&lab, "");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    assert!(folder.join("node_modules").join(package).exists(), "tests/run installs it");
    lab.enter(Host::Leecher);
    let output = Command::new("node")
        .arg("bittorrent_tracker_client.mjs")
        .args([package, &transport.url()])
        .current_dir(folder)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let steps: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let seen = |step: &str| steps[step].to_string();
    // Seeders, leechers and downloads; a UDP announce reply has no number of downloads.
    let counts = |seeders: u32, leechers: u32, downloads: u32| match transport.scheme {
        "udp" => format!("[{seeders},{leechers},null]"),
        _ => format!("[{seeders},{leechers},{downloads}]"),
    };
    assert_eq!(seen("seederStarts"), counts(1, 0, 0), "{steps}");
    assert_eq!(seen("leecherStarts"), counts(1, 1, 0), "{steps}");
    assert_eq!(steps["peer"], format!("{}:7001", Host::Leecher.address(false)), "{steps}");
    assert_eq!(seen("scrape"), "[1,1,0]", "{steps}");
    assert_eq!(seen("completes"), counts(2, 0, 1), "{steps}");
    assert_eq!(seen("scrapeAfter"), "[2,0,1]", "{steps}");
    assert_eq!(seen("stops"), counts(1, 0, 1), "{steps}");
    tracker.stop();
}

#[test]
#[ignore = "needs systemd-analyze, of Debian's systemd"]
fn the_systemd_unit_permits_little() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/tsubame.service");
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=15"])
        .arg(unit)
        .output()
        .unwrap();
    // The threshold is in tenths.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The status page in Chromium, at three widths, light and dark, and without JavaScript.
#[test]
#[ignore = "needs chromium, node and playwright-core of npm"]
fn the_status_page_works_in_chromium() {
    let mut tracker = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\nhooks: [{{name: limits, \
         options: {{announces_per_second: 1000}}}}]\n",
        cpus(2)
    ));
    let url = format!("http://{}/", control_of(&mut tracker));
    let mut client = common::Client::connected("127.0.0.1", tracker.addresses()[0]);
    for torrent in 0..12 {
        for peer in 0..=torrent {
            client.announce(&common::Announce::of(torrent, 7_001 + peer as u16));
        }
    }
    // Waits for the scan that finds the largest torrents.
    wait_until("the largest torrents", WAIT_TIMEOUT, || {
        http_get(control_of(&mut tracker), "/").contains("Largest torrents")
    });
    let directory = match std::env::var_os("TSUBAME_SCREENSHOTS") {
        Some(directory) => std::path::PathBuf::from(directory),
        None => tracker.directory.path().to_owned(),
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/status_page.mjs");
    let output = Command::new("node").arg(script).arg(url).arg(&directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Requests that schemathesis makes from the document of the API get the replies that it describes.
#[test]
#[ignore = "needs schemathesis, of PyPI"]
fn schemathesis_finds_no_fault_in_the_api() {
    let directory = tempfile::tempdir().unwrap();
    let overrides = directory.path().join("overrides");
    let mut tracker = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\nhooks:\n  - name: \
         access_list\n    options: {{mode: deny, overrides_file: {}}}\n",
        cpus(2),
        overrides.display()
    ));
    let url = format!("http://{}", control_of(&mut tracker));
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/venv/bin/schemathesis");
    let output = Command::new(program)
        .current_dir(directory.path())
        .arg("run")
        .arg(format!("{url}/v1/openapi.json"))
        .args(["--url", &url, "--max-examples", "30", "--rate-limit", "90/s", "--seed", "1"])
        // They would end the tracker.
        .args(["--exclude-path", "/v1/stop", "--exclude-path", "/v1/upgrade"])
        .output()
        .unwrap();
    let text: String = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| format!("{}\n", line.chars().take(200).collect::<String>()))
        .collect();
    assert!(output.status.success(), "{text}");
    assert!(tracker.stop().contains("stopped after"));
}

#[test]
#[ignore = "needs promtool, of Debian's prometheus"]
fn metrics_pass_promtool() {
    let mut tracker = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n",
        cpus(2)
    ));
    let page = http_get(control_of(&mut tracker), "/metrics");
    let (_, metrics) = page.split_once("\r\n\r\n").unwrap();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.is_empty(), "{printed}");
}
