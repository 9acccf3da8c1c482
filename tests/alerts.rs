//! Each alert of deploy/alerts.yml fires in a real Prometheus when its cause is brought about.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;
#[path = "common/nats.rs"]
mod nats;

use common::flood::{core_of_shard_without_torrent, flood_one_torrent};
use common::http::Connection;
use common::prometheus::{Prometheus, certificate, deploy};
use common::{Announce, Client, SetOnDrop, Tracker, cpus, head};
use nats::Nats;
use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use tsubame::cluster::{Body, Hello, HelloState, PROTOCOL_VERSION, Sender, encode};

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(status.is_ok_and(|it| it.success()), "{program} {arguments:?} failed");
}

/// A thread of another process that is stopped until this is dropped; the other threads go on.
struct StoppedThread(libc::pid_t);

impl StoppedThread {
    fn new(process: u32, name: &str) -> Self {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let is_wanted = |thread: &std::fs::DirEntry| {
            std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|it| it.trim() == name)
        };
        let thread = threads.map(|it| it.unwrap()).find(is_wanted).unwrap();
        let thread: libc::pid_t = thread.file_name().to_string_lossy().parse().unwrap();
        ptrace(libc::PTRACE_SEIZE, thread).unwrap();
        ptrace(libc::PTRACE_INTERRUPT, thread).unwrap();
        // SAFETY: a plain system call; a null pointer for the status is permitted.
        let waited = unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, thread, "{}", io::Error::last_os_error());
        Self(thread)
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        let _ = ptrace(libc::PTRACE_DETACH, self.0);
    }
}

fn ptrace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests read and write no memory.
    let result = unsafe { libc::ptrace(request, thread, none, none) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A directory on a FUSE file system; while the daemon of the file system is stopped, reads of files wait.
struct FuseDirectory {
    mounted: std::path::PathBuf,
    daemon: std::process::Child,
}

impl FuseDirectory {
    fn new(directory: &Path) -> Self {
        let (files, mounted) = (directory.join("files"), directory.join("mounted"));
        std::fs::create_dir(&files).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        std::fs::write(files.join("list"), "").unwrap();
        let daemon = Command::new("bindfs").arg("-f").arg(&files).arg(&mounted).spawn().unwrap();
        let list = mounted.join("list");
        common::policy::wait_until(|| list.exists());
        Self { mounted, daemon }
    }

    fn signal(&self, name: &str) {
        run("kill", &["-s", name, &self.daemon.id().to_string()]);
    }
}

impl Drop for FuseDirectory {
    fn drop(&mut self) {
        self.signal("CONT");
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted).status();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A rule of the firewall that refuses the replies of a tracker; removed when it is dropped.
struct RefusedReplies;

impl RefusedReplies {
    fn new(port: u16) -> Self {
        let rule = format!(
            "table inet tsubame_test {{ chain output {{ type filter hook output priority 0; \
             udp sport {port} drop; }}; }}"
        );
        run("nft", &[&rule]);
        Self
    }
}

impl Drop for RefusedReplies {
    fn drop(&mut self) {
        let _ = Command::new("nft").args(["delete", "table", "inet", "tsubame_test"]).status();
    }
}

/// Alerts that have fired.
struct FiredAlerts {
    prometheus: Prometheus,
    fired: BTreeSet<&'static str>,
}

impl FiredAlerts {
    /// Waits until an alert fires; calls `cause` again and again meanwhile.
    fn expect(&mut self, alert: &'static str, cause: impl FnMut()) {
        println!("{alert}");
        self.prometheus.wait_for_alert(alert, cause);
        self.fired.insert(alert);
    }
}

/// Number of networks that announce in a round, and of torrents that each announces.
const FILL: (u32, u32) = (10, 300);

/// Announces new torrents, in each round from networks that have not announced before.
fn fill(tracker: SocketAddr, round: u32) {
    let (networks, torrents) = FILL;
    for network in round * networks..(round + 1) * networks {
        let from = format!("127.{}.{}.1", 1 + network / 250 % 120, network % 250);
        let client = Client::connected(&from, tracker);
        send_announces(&client, network * torrents..(network + 1) * torrents);
    }
}

/// Announces torrents without waiting for replies.
fn send_announces(client: &Client, torrents: Range<u32>) {
    for torrent in torrents {
        let announce = Announce::of(torrent, 7_000).bytes(client.id, torrent);
        client.socket.send_to(&announce, client.tracker).unwrap();
    }
}

/// Floods one shard while the other is idle.
fn overload_one_shard(alerts: &mut FiredAlerts, address: SocketAddr, control: SocketAddr) {
    let core = core_of_shard_without_torrent(address, control).expect("needs two cores");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| flood_one_torrent(address, core, &done));
        let _end = SetOnDrop(&done);
        alerts.expect("TsubameDropsDatagrams", || {});
        alerts.expect("TsubameSteeringDetached", || {});
        alerts.expect("TsubameShardBusy", || {});
    });
}

/// Brings about what the alerts of a cluster warn of, at its only node.
fn disturb_cluster(
    alerts: &mut FiredAlerts,
    nats: &mut Nats,
    (tracker, control): (&Tracker, SocketAddr),
) {
    nats.kill();
    alerts.expect("TsubameClusterIncomplete", || {});
    nats.restart();
    common::policy::wait_until(|| {
        nats.publish(&[("tsubame.hello.other", &hello())]);
        let page = common::http_get(control, "/metrics");
        page.contains("tsubame_cluster_node_up{node=\"other\"} 1")
    });
    // That was its only message.
    alerts.expect("TsubameClusterNodeLost", || {});
    alerts.expect("TsubameClusterIgnoresMessages", || {
        nats.publish(&[("tsubame.hello.other", b"not a message")]);
    });
    lose_changes(alerts, tracker);
}

/// Changes the roles of more peers than a shard keeps while the thread of the cluster is stopped.
fn lose_changes(alerts: &mut FiredAlerts, tracker: &Tracker) {
    let client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    alerts.expect("TsubameClusterLosesChanges", || {
        let _stopped = StoppedThread::new(tracker.id(), "cluster");
        for left in [0, 100].repeat(6) {
            for torrent in 0..5_000 {
                let announce = Announce { left, event: 0, ..Announce::of(torrent, 7_000) };
                client.ask(&announce.bytes(client.id, 1)).expect("a reply");
            }
        }
    });
}

/// Returns the message by which a node named "other" says that it takes part.
fn hello() -> Vec<u8> {
    let hello = Hello {
        state: HelloState::Active,
        next: 1,
        oldest: 1,
        sent_at: 0,
        peer_lifetime_secs: 2_700,
        key_digest: 0,
        torrents: 0,
        is_complete: true,
        has_older_state: false,
    };
    let sender = Sender { version: PROTOCOL_VERSION, node: "other", boot: 1 };
    encode(&sender, &Body::Hello(hello), &[])
}

/// Announces torrents from thousands of networks until new ones are refused.
fn exhaust_memory(alerts: &mut FiredAlerts, address: SocketAddr) {
    let mut rounds = 0..;
    alerts.expect("TsubameMemoryPressure", || fill(address, rounds.next().unwrap()));
    alerts.expect("TsubameRefusesNewTorrents", || fill(address, rounds.next().unwrap()));
}

/// Stops the file system of a list, and then a shard.
fn stop_file_system_and_shard(alerts: &mut FiredAlerts, fuse: &FuseDirectory, tracker: &Tracker) {
    let address = tracker.addresses()[0];
    fuse.signal("STOP");
    alerts.expect("TsubameReadStuck", || {});
    fuse.signal("CONT");

    // Some of these reach the shard that goes on; it forwards announces to the one that is stopped.
    let clients = [(); 8].map(|()| Client::connected("127.0.0.1", address));
    let stopped = StoppedThread::new(tracker.id(), "shard-1");
    alerts.expect("TsubameShardStuck", || {});
    alerts.expect("TsubameSheds", || {
        clients.iter().for_each(|client| send_announces(client, 0..20));
    });
    alerts.expect("TsubameScanFails", || {});
    drop(stopped);
}

#[test]
#[ignore = "needs root, prometheus, nftables and bindfs; run by tests/run"]
fn each_alert_fires_when_its_cause_is_brought_about() {
    let directory = tempfile::tempdir().unwrap();
    // Both trackers have the same address for Prometheus.
    let control = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let base = format!("cpus: {}\ncontrol: {{listen: \"{control}\"}}\n", cpus(2));
    let first = Tracker::start(&format!("{base}udp: {{listen: \"127.0.0.1:0\"}}\n"));
    let mut alerts = FiredAlerts {
        prometheus: Prometheus::start(directory.path(), control),
        fired: BTreeSet::new(),
    };
    alerts.prometheus.wait_for("up == 1");
    assert!(!alerts.prometheus.is_firing("TsubameDropsDatagrams"));
    overload_one_shard(&mut alerts, first.addresses()[0], control);
    first.stop();
    alerts.expect("TsubameDown", || {});

    let fuse = FuseDirectory::new(directory.path());
    let (chain, key) = certificate(directory.path());
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let mut nats = Nats::start("");
    let config = format!(
        "{base}cluster: {{servers: \"{}\", node: own}}\nudp: {{listen: \"127.0.0.1:0\", steering: off}}\nhttp: \
         {{listen: \"127.0.0.1:0\", tls: {{listen: \"127.0.0.1:0\", certificate: {}, key: {}}}}}\nstorage: \
         {{memory: 16MiB, directory: {}, snapshot_interval: 1s}}\nhooks:\n- {{name: access_list, \
         options: {{mode: deny, files: [{}/list]}}}}\n",
        nats.url(),
        chain.display(),
        key.display(),
        state.display(),
        fuse.mounted.display()
    );
    let tracker = Tracker::start(&config);
    let address = tracker.addresses()[0];
    alerts.expect("TsubameRestarted", || {});
    alerts.expect("TsubameCertificateExpires", || {});
    std::fs::remove_dir_all(&state).unwrap();
    alerts.expect("TsubameSnapshotFailed", || {});
    tracker.write_config("hooks: [{name: nothing}]\n");
    tracker.signal("HUP");
    alerts.expect("TsubameReloadFailed", || {});
    tracker.write_config(&config);

    disturb_cluster(&mut alerts, &mut nats, (&tracker, control));

    let process = tracker.id().to_string();
    let http = tracker.addresses_of("http")[0];
    alerts.expect("TsubameHttpAcceptFails", || {
        // The limit is raised again at once: the control plane needs a descriptor when Prometheus scrapes it.
        run("prlimit", &["--pid", &process, "--nofile=10:"]);
        (0..3).for_each(|_| drop(TcpStream::connect(http)));
        run("prlimit", &["--pid", &process, "--nofile=10000:"]);
    });
    common::policy::wait_until(|| Connection::to(http).get("/").status == 200);

    let refused = RefusedReplies::new(address.port());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    alerts.expect("TsubameRepliesFail", || {
        let connect = head(0x0417_2710_1980, 0, 1);
        (0..20).for_each(|_| _ = socket.send_to(&connect, address));
    });
    drop(refused);

    exhaust_memory(&mut alerts, address);
    stop_file_system_and_shard(&mut alerts, &fuse, &tracker);

    let all = std::fs::read_to_string(deploy("alerts.yml")).unwrap();
    let names = all.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let silent: Vec<_> = names.filter(|name| !alerts.fired.contains(name)).collect();
    assert!(silent.is_empty(), "{silent:?} did not fire");
}
