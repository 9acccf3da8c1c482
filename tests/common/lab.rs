//! Three hosts in network namespaces, and a torrent that is transferred between two of them.
//!
//! Loopback does not suffice: some clients accept no peers there, and some take two peers with the same address for
//! one. Needs root, and `ip` of iproute2.

use super::{Client, now};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sha1::{Digest, Sha1};
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tsubame_udp::xdp::{AttachedInterface, Filter, XdpMode};

pub(crate) const TRACKER_V4: &str = "10.99.0.1";
pub(crate) const TRACKER_V6: &str = "2001:db8:99::1";

/// Size of the file: a few megabytes, and not a multiple of the piece size.
const PAYLOAD_BYTES: usize = 3_000_017;
const PIECE_BYTES: usize = 65_536;

/// Timeout of a transfer. Some clients announce a second time only after half a minute.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(100);

/// The network namespaces, and the programs that run in them.
pub(crate) struct Lab {
    name: String,
    children: Vec<(String, Child)>,
    /// XDP programs of the clients that pass all frames: without one, virtual Ethernet discards what an XDP program of
    /// the other end sends.
    pass_programs: Vec<(Filter, AttachedInterface)>,
    pub(crate) directory: tempfile::TempDir,
}

/// A host of the lab.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Host {
    Tracker = 1,
    Seeder = 2,
    Leecher = 3,
}

impl Host {
    pub(crate) fn address(self, v6: bool) -> String {
        if v6 { format!("2001:db8:99::{}", self as u8) } else { format!("10.99.0.{}", self as u8) }
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "ip {arguments} failed: root is required");
}

/// Interfaces of the tracker's host in [`Lab::routed`].
pub(crate) const INTERFACES: [&str; 2] = ["port2", "port3"];

impl Lab {
    /// Creates hosts without connections.
    fn hosts() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tsubame-{}-{number}", std::process::id());
        let (children, pass_programs) = (Vec::new(), Vec::new());
        let lab = Self { name, children, pass_programs, directory: tempfile::tempdir().unwrap() };
        for host in [Host::Tracker, Host::Seeder, Host::Leecher] {
            ip(&format!("netns add {}", lab.namespace(host)));
            ip(&format!("-n {} link set lo up", lab.namespace(host)));
        }
        lab
    }

    /// Creates hosts in which the tracker's forwards packets between the two others. Its interfaces to them are
    /// [`INTERFACES`], which support XDP in native mode.
    pub(crate) fn routed() -> Self {
        Self::routed_with_queues(1)
    }

    /// As [`Self::routed`], with a number of receive queues for each interface.
    pub(crate) fn routed_with_queues(queues: usize) -> Self {
        let mut lab = Self::hosts();
        let tracker = lab.namespace(Host::Tracker);
        ip(&format!("-n {tracker} address add {TRACKER_V4}/32 dev lo"));
        ip(&format!("-n {tracker} address add {TRACKER_V6}/128 dev lo"));
        for forwarding in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
            ip(&format!("netns exec {tracker} sysctl -q -w net.{forwarding}=1"));
        }
        for (host, port) in [Host::Seeder, Host::Leecher].into_iter().zip(INTERFACES) {
            let (number, name) = (host as u8, lab.namespace(host));
            let (v4, v6) = (format!("10.99.10{number}"), format!("2001:db8:10{number}:"));
            let queues = format!("numtxqueues {queues} numrxqueues {queues}");
            ip(&format!(
                "-n {tracker} link add {port} {queues} type veth peer name eth {queues} netns {name}"
            ));
            ip(&format!("-n {tracker} address add {v4}.1/24 dev {port}"));
            ip(&format!("-n {tracker} address add {v6}:1/64 dev {port} nodad"));
            ip(&format!("-n {tracker} link set {port} up"));
            ip(&format!("-n {name} address add {v4}.2/24 dev eth"));
            ip(&format!("-n {name} address add {}/32 dev eth", host.address(false)));
            ip(&format!("-n {name} address add {v6}:2/64 dev eth nodad"));
            ip(&format!("-n {name} address add {}/128 dev eth nodad", host.address(true)));
            ip(&format!("-n {name} link set eth up"));
            ip(&format!("-n {name} route add default via {v4}.1 src {}", host.address(false)));
            ip(&format!("-n {name} -6 route add default via {v6}:1 src {}", host.address(true)));
            ip(&format!("-n {tracker} route add {}/32 via {v4}.2", host.address(false)));
            ip(&format!("-n {tracker} -6 route add {}/128 via {v6}:2", host.address(true)));
            let program = lab.inside(host, || {
                let index = nix::net::if_::if_nametoindex("eth").unwrap();
                let mut filter = Filter::load(1).unwrap();
                let attached = filter.attach(("eth", index), (0, [0; 6]), XdpMode::Native).unwrap();
                (filter, attached)
            });
            lab.pass_programs.push(program);
        }
        lab
    }

    /// Creates hosts on one bridge.
    pub(crate) fn new() -> Self {
        let lab = Self::hosts();
        let tracker = lab.namespace(Host::Tracker);
        ip(&format!("-n {tracker} link add bridge type bridge"));
        for host in [Host::Seeder, Host::Leecher] {
            let (port, host_name) = (format!("port{}", host as u8), lab.namespace(host));
            ip(&format!("-n {tracker} link add {port} type veth peer name eth netns {host_name}"));
            ip(&format!("-n {tracker} link set {port} master bridge up"));
        }
        for (host, device) in
            [(Host::Tracker, "bridge"), (Host::Seeder, "eth"), (Host::Leecher, "eth")]
        {
            let name = lab.namespace(host);
            ip(&format!("-n {name} address add {}/24 dev {device}", host.address(false)));
            ip(&format!("-n {name} address add {}/64 dev {device} nodad", host.address(true)));
            ip(&format!("-n {name} link set {device} up"));
        }
        lab
    }

    fn namespace(&self, host: Host) -> String {
        format!("{}-{}", self.name, host as u8)
    }

    /// Moves the calling thread, and the processes that it starts, to a host.
    pub(crate) fn enter(&self, host: Host) {
        let space = File::open(Path::new("/run/netns").join(self.namespace(host))).unwrap();
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Calls a function on a host.
    pub(crate) fn inside<T: Send>(&self, host: Host, call: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.enter(host);
            call()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Returns a directory of this lab, which is created if it does not exist.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.directory.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Returns a command that runs another one on a host: also its files below /sys are those of the host.
    pub(crate) fn command(&self, host: Host, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.namespace(host)]);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// Starts a program on a host. It is killed when the lab is dropped.
    pub(crate) fn start(&mut self, host: Host, command: Command) {
        let log = self.directory.path().join(format!("{host:?}.log"));
        let output = File::create(&log).unwrap();
        let mut inside = self.command(host, &command);
        inside.env("HOME", self.directory.path()).env("TERM", "dumb");
        // Transmission trusts the certificates in this file.
        inside.env("CURL_CA_BUNDLE", self.folder("tls").join("cert.pem"));
        let child = inside
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs it"));
        self.children.push((log.display().to_string(), child));
    }

    /// Sends SIGINT to the program that was started last, and waits for its end.
    pub(crate) fn interrupt_last(&mut self) {
        let (_, child) = self.children.last_mut().unwrap();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
        child.wait().unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (log, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                println!("{log}:\n{}", std::fs::read_to_string(&*log).unwrap_or_default());
            }
        }
        for host in [Host::Tracker, Host::Seeder, Host::Leecher] {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(host)]).status();
        }
    }
}

/// A file, and the torrent that describes it.
pub(crate) struct Torrent {
    pub(crate) path: PathBuf,
    pub(crate) info_hash: [u8; 20],
    info: Vec<u8>,
    payload: Vec<u8>,
}

impl Torrent {
    /// Creates a torrent with a single tracker, and writes the file to the directory of the seeder.
    pub(crate) fn new(lab: &Lab, rng_seed: u64, announce: &str) -> Self {
        let mut payload = vec![0; PAYLOAD_BYTES];
        fastrand::Rng::with_seed(rng_seed).fill(&mut payload);
        std::fs::write(lab.folder("seed").join("payload.bin"), &payload).unwrap();
        let pieces: Vec<u8> = payload.chunks(PIECE_BYTES).flat_map(Sha1::digest).collect();
        let mut info = format!(
            "d6:lengthi{PAYLOAD_BYTES}e4:name11:payload.bin12:piece lengthi{PIECE_BYTES}e6:pieces{}:",
            pieces.len()
        )
        .into_bytes();
        info.extend(pieces);
        // Private: clients use no source of peers but the tracker (BEP 27).
        info.extend(b"7:privatei1ee");
        let info_hash = Sha1::digest(&info).into();
        let mut torrent = Self { path: PathBuf::new(), info_hash, info, payload };
        torrent.set_announce_url(lab, announce);
        torrent
    }

    /// Writes the torrent file again with another announce URL.
    pub(crate) fn set_announce_url(&mut self, lab: &Lab, announce: &str) {
        let mut file = format!("d8:announce{}:{announce}4:info", announce.len()).into_bytes();
        file.extend(&self.info);
        file.extend(b"e");
        let scheme = announce.split(':').next().unwrap_or_default();
        self.path = lab.directory.path().join(format!("{scheme}.torrent"));
        std::fs::write(&self.path, file).unwrap();
    }

    /// Waits until the leecher has the complete file.
    pub(crate) fn wait_for_download(&self, lab: &Lab) {
        let path = lab.folder("leech").join("payload.bin");
        let digest = Sha1::digest(&self.payload);
        wait_until("the file has arrived", TRANSFER_TIMEOUT, || {
            std::fs::read(&path).is_ok_and(|bytes| Sha1::digest(&bytes) == digest)
        });
    }
}

/// Waits for a condition, which is checked every 50 ms.
pub(crate) fn wait_until(what: &str, timeout: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = now() + timeout;
    while !holds() {
        assert!(now() < deadline, "timeout: {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "pause between two checks of a condition")]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Waits until the scraped counts meet a condition: seeders, completed, leechers.
pub(crate) fn wait_for_counts(torrent: &Torrent, v6: bool, expected: impl Fn([u32; 3]) -> bool) {
    let host = Host::Tracker.address(v6);
    let tracker = SocketAddr::new(host.parse().unwrap(), 6969);
    let mut client = Client::connected(&host, tracker);
    let mut last = [0; 3];
    wait_until("the tracker's counts", TRANSFER_TIMEOUT, || {
        client.connect();
        let counts = client.scrape(&[torrent.info_hash]).unwrap()[0];
        if counts != std::mem::replace(&mut last, counts) {
            println!("seeders, completed, leechers: {counts:?}");
        }
        expected(counts)
    });
}
