//! Trackers as processes: how each is started, alone on its core.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tsubame_bench::observe;

/// Which tracker
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Ours, with so many shards on the cores from the first one; steered or not
    Tsubame {
        shards: usize,
        steering: bool,
    },
    AquaticUring,
    AquaticMio,
    OpenTracker,
    /// The limit of what sockets can do, with so many peers in each reply
    Reflector {
        peers: u32,
    },
}

impl Kind {
    pub(crate) const OURS: Self = Self::Tsubame { shards: 1, steering: true };

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tsubame { shards: 1, .. } => "tsubame",
            Self::Tsubame { steering: true, .. } => "tsubame, 2 shards",
            Self::Tsubame { steering: false, .. } => "tsubame, 2 shards, unsteered",
            Self::AquaticUring => "aquatic_udp io_uring",
            Self::AquaticMio => "aquatic_udp mio",
            Self::OpenTracker => "opentracker",
            Self::Reflector { .. } => "reflector",
        }
    }

    /// Ours, and the others that are installed
    pub(crate) fn all(folder: &Path) -> Vec<Self> {
        let mut found = vec![Self::OURS];
        if folder.join("aquatic_udp").exists() {
            found.extend([Self::AquaticUring, Self::AquaticMio]);
        }
        if Path::new("/usr/bin/opentracker").exists() {
            found.push(Self::OpenTracker);
        }
        found
    }
}

/// Where trackers are started and what they must know beforehand
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) rivals: PathBuf,
    pub(crate) ip: IpAddr,
    pub(crate) cpu: usize,
    /// The network namespace, if not the usual one
    pub(crate) namespace: Option<String>,
    /// Torrents that a tracker with a list of permitted ones must list
    pub(crate) torrents: u32,
    /// Seconds that peers live, if not the default
    pub(crate) lifetime_secs: Option<u32>,
}

/// A tracker that runs
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) kind: Kind,
    pub(crate) port: u16,
    process: Child,
    /// Its config; goes with it
    _folder: tempfile::TempDir,
}

impl Contender {
    /// Starts a tracker and waits until it has bound its port
    pub(crate) fn start(kind: Kind, place: &Place) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        // opentracker serves as somebody else.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), open).map_err(|error| error.to_string())?;
        let port = free_port()?;
        let config = folder.path().join("config");
        let text = config_of(kind, place, port, folder.path())?;
        fs::write(&config, text).map_err(|error| error.to_string())?;
        let mut command = command_of(kind, place, port, &config)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().map_err(|error| format!("{}: {error}", kind.name()))?;
        let mut contender = Self { kind, port, process, _folder: folder };
        contender.wait_until_up(place)?;
        Ok(contender)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        observe::resident_bytes(self.id()).unwrap_or(0)
    }

    /// Waits until somebody has bound the port
    fn wait_until_up(&mut self, place: &Place) -> Result<(), String> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let pause = Duration::from_millis(50);
        for _ in 0..PATIENCE.as_millis() / pause.as_millis() {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("{} has ended: {status}", self.kind.name()));
            }
            // The process may have entered its namespace only now; all its sockets are listed there.
            let table = if place.ip.is_ipv4() { "udp" } else { "udp6" };
            let sockets = fs::read_to_string(format!("/proc/{}/net/{table}", self.id()));
            if sockets.unwrap_or_default().contains(&format!(":{:04X} ", self.port)) {
                return Ok(());
            }
            wait(pause);
        }
        Err(format!("{} does not come up", self.kind.name()))
    }
}

/// Lets a while pass between two looks
#[expect(clippy::disallowed_methods, reason = "between looks at a process that starts")]
fn wait(duration: Duration) {
    std::thread::sleep(duration);
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> Result<u16, String> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    socket.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// Each tracker's config for the same promises: up to 50 peers, no statistics, buffers as they recommend
fn config_of(kind: Kind, place: &Place, port: u16, folder: &Path) -> Result<String, String> {
    let Place { ip, cpu, .. } = place;
    let address = std::net::SocketAddr::new(*ip, port);
    Ok(match kind {
        Kind::Tsubame { shards, steering } => {
            let cpus: Vec<_> = (*cpu..cpu + shards).map(|cpu| cpu.to_string()).collect();
            let steering = if steering { "auto" } else { "off" };
            let lifetime = place.lifetime_secs.map_or(String::new(), |secs| {
                let interval = secs / 3;
                format!("announce: {{interval: {interval}s, min_interval: {interval}s, peer_lifetime: {secs}s}}\n")
            });
            let cpus = cpus.join(",");
            format!(
                "cpus: \"{cpus}\"\nudp: {{listen: \"{address}\", steering: {steering}}}\n\
                 control: {{listen: \"\"}}\nhttp: {{listen: []}}\n{lifetime}"
            )
        }
        Kind::AquaticUring | Kind::AquaticMio => {
            let ring = kind == Kind::AquaticUring;
            let age = place.lifetime_secs.map_or(String::new(), |secs| {
                format!("[cleaning]\ntorrent_cleaning_interval = 10\nmax_peer_age = {secs}\n")
            });
            format!(
                "socket_workers = 1\n[network]\naddress = \"{address}\"\nuse_io_uring = {ring}\n\
                 [protocol]\nmax_response_peers = 50\n{age}"
            )
        }
        Kind::OpenTracker => {
            let list = Command::new(beside("tsubame-load")?)
                .args(["hashes", "--torrents", &place.torrents.to_string()])
                .output()
                .map_err(|error| error.to_string())?;
            fs::write(folder.join("permitted"), list.stdout).map_err(|error| error.to_string())?;
            format!("listen.udp {address}\nlisten.tcp {address}\naccess.whitelist permitted\n")
        }
        Kind::Reflector { .. } => String::new(),
    })
}

fn command_of(kind: Kind, place: &Place, port: u16, config: &Path) -> Result<Command, String> {
    let last = match kind {
        Kind::Tsubame { shards, .. } => place.cpu + shards - 1,
        _ => place.cpu,
    };
    let mut command = pinned(place.namespace.as_deref(), place.cpu, last);
    match kind {
        Kind::Tsubame { .. } => {
            command.arg(beside("tsubame")?).args(["run", "--config"]).arg(config);
        }
        Kind::AquaticUring | Kind::AquaticMio => {
            command.arg(place.rivals.join("aquatic_udp")).arg("-c").arg(config);
        }
        Kind::OpenTracker => {
            let folder = config.parent().unwrap_or(config);
            command.arg("opentracker").arg("-f").arg(config).arg("-d").arg(folder);
            command.args(["-u", "nobody"]);
        }
        Kind::Reflector { peers } => {
            let address = std::net::SocketAddr::new(place.ip, port);
            command.arg(beside("tsubame-reflector")?).arg(address.to_string());
            command.args(["--peers", &peers.to_string()]);
        }
    }
    Ok(command)
}

/// The beginning of a command that keeps to these cores, in a network namespace if one is named
pub(crate) fn pinned(namespace: Option<&str>, first_cpu: usize, last_cpu: usize) -> Command {
    let mut command = match namespace {
        None => Command::new("taskset"),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace, "taskset"]);
            command
        }
    };
    command.args(["-c", &format!("{first_cpu}-{last_cpu}")]);
    command
}

/// A program of ours: it lies beside this one
pub(crate) fn beside(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(own.with_file_name(name))
}
