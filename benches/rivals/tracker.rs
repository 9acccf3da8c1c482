//! Trackers as processes: how each is configured and started, pinned to its cores.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tsubame_bench::observe;

/// Kind of a tracker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TrackerKind {
    /// This tracker, with its shards on consecutive cores, and with or without steering.
    Tsubame { shards: usize, steering: bool },
    /// aquatic_udp with io_uring.
    AquaticUring,
    /// aquatic_udp with mio.
    AquaticMio,
    /// opentracker: if `is_open`, the program that benches/compare built as an open tracker; otherwise Debian's
    /// program, which serves only the torrents of a list.
    OpenTracker { is_open: bool },
    /// The reflector, which is the upper bound of what sockets permit, with this number of peers in each reply.
    Reflector { peers: u32 },
}

impl TrackerKind {
    /// This tracker with one shard.
    pub(crate) const OURS: Self = Self::Tsubame { shards: 1, steering: true };

    /// Returns the name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tsubame { shards: 1, .. } => "tsubame",
            Self::Tsubame { steering: true, .. } => "tsubame, 2 shards",
            Self::Tsubame { steering: false, .. } => "tsubame, 2 shards, unsteered",
            Self::AquaticUring => "aquatic_udp io_uring",
            Self::AquaticMio => "aquatic_udp mio",
            Self::OpenTracker { is_open: true } => "opentracker",
            Self::OpenTracker { is_open: false } => "opentracker (Debian's program)",
            Self::Reflector { .. } => "reflector",
        }
    }

    /// Returns this tracker, and the others that are installed.
    pub(crate) fn all(folder: &Path) -> Vec<Self> {
        let mut found = vec![Self::OURS];
        if folder.join("aquatic_udp").exists() {
            found.extend([Self::AquaticUring, Self::AquaticMio]);
        }
        // The program that benches/compare has built, otherwise that of Debian if it is installed.
        let is_installed = |is_open: &bool| opentracker(folder, *is_open).exists();
        let program = [true, false].into_iter().find(is_installed);
        found.extend(program.map(|is_open| Self::OpenTracker { is_open }));
        found
    }
}

/// Returns the path of a program of opentracker.
fn opentracker(folder: &Path, is_open: bool) -> PathBuf {
    if is_open { folder.join("opentracker") } else { PathBuf::from("/usr/bin/opentracker") }
}

/// Returns the bytes that a program must request to get a receive buffer of the kernel's default size: half of it, as
/// the kernel doubles the request. All trackers get this size, because opentracker requests none.
pub(crate) fn receive_buffer() -> usize {
    let default = fs::read_to_string("/proc/sys/net/core/rmem_default");
    default.ok().and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or(212_992) / 2
}

/// Where a tracker is started, and the settings that depend on the section of the comparison (`sections.rs`).
#[derive(Clone, Debug)]
pub(crate) struct TrackerSetup {
    /// Folder of the other trackers.
    pub(crate) rivals: PathBuf,
    /// Address on which it listens.
    pub(crate) ip: IpAddr,
    /// First core.
    pub(crate) cpu: usize,
    /// Network namespace; `None` is the default one.
    pub(crate) namespace: Option<String>,
    /// Number of torrents in the list of permitted torrents, for trackers that need one.
    pub(crate) torrents: u32,
    /// Seconds after which peers expire; `None` is the default of the tracker.
    pub(crate) lifetime_secs: Option<u32>,
    /// Interface on which this tracker uses XDP.
    pub(crate) xdp: Option<String>,
    /// Receive buffer in bytes.
    pub(crate) receive_buffer: usize,
    /// Directory in which this tracker keeps its swarms.
    pub(crate) directory: Option<PathBuf>,
    /// Address of the control plane of this tracker.
    pub(crate) control: Option<SocketAddr>,
    /// The section `cluster` of its config.
    pub(crate) cluster: Option<String>,
}

/// A running tracker.
#[derive(Debug)]
pub(crate) struct TrackerProcess {
    pub(crate) kind: TrackerKind,
    pub(crate) port: u16,
    setup: TrackerSetup,
    process: Child,
    /// A process that has taken over from the first one.
    successor: Option<u32>,
    /// Folder of its config, which is removed with it.
    folder: tempfile::TempDir,
}

impl TrackerProcess {
    /// Starts a tracker, and waits until it has bound its port.
    pub(crate) fn start(kind: TrackerKind, setup: &TrackerSetup) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        // opentracker runs as another user.
        let readable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), readable).map_err(|error| error.to_string())?;
        let port = free_port()?;
        let config = folder.path().join("config");
        let text = config_of(kind, setup, port, folder.path())?;
        fs::write(&config, text).map_err(|error| error.to_string())?;
        let process = spawn(kind, setup, port, &config)?;
        let setup = setup.clone();
        let mut tracker = Self { kind, port, setup, process, successor: None, folder };
        tracker.wait_until_up()?;
        Ok(tracker)
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.successor.unwrap_or_else(|| self.process.id())
    }

    /// Stops the tracker as an operator would, waits for its end, and starts it again with the same config.
    pub(crate) fn restart(&mut self) -> Result<(), String> {
        signal(self.id(), "TERM")?;
        self.process.wait().map_err(|error| error.to_string())?;
        let config = self.folder.path().join("config");
        self.process = spawn(self.kind, &self.setup, self.port, &config)?;
        self.wait_until_up()
    }

    /// Has another process of the tracker take over, and waits until the first one has ended.
    pub(crate) fn upgrade(&mut self) -> Result<(), String> {
        let before = self.id();
        signal(before, "USR2")?;
        let config = self.folder.path().join("config").display().to_string();
        loop {
            wait(Duration::from_millis(10));
            let of_tracker = |id: &u32| {
                let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                *id != before && String::from_utf8_lossy(&line).contains(&config)
            };
            let ids = fs::read_dir("/proc").map_err(|error| error.to_string())?.flatten();
            let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            let successor = ids.into_iter().find(of_tracker);
            let has_ended = match self.successor {
                None => self.process.try_wait().is_ok_and(|status| status.is_some()),
                Some(id) => !Path::new(&format!("/proc/{id}")).exists(),
            };
            if let Some(successor) = successor.filter(|_| has_ended) {
                self.successor = Some(successor);
                return Ok(());
            }
        }
    }

    /// Returns the resident memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        observe::resident_bytes(self.id()).unwrap_or(0)
    }

    /// Waits until the port is bound.
    fn wait_until_up(&mut self) -> Result<(), String> {
        const START_TIMEOUT: Duration = Duration::from_secs(60);
        let pause = Duration::from_millis(50);
        for _ in 0..START_TIMEOUT.as_millis() / pause.as_millis() {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("{} has exited: {status}", self.kind.name()));
            }
            // Read through the process, as its sockets are listed in its own network namespace.
            let table = if self.setup.ip.is_ipv4() { "udp" } else { "udp6" };
            let sockets = fs::read_to_string(format!("/proc/{}/net/{table}", self.id()));
            if sockets.unwrap_or_default().contains(&format!(":{:04X} ", self.port)) {
                return Ok(());
            }
            wait(pause);
        }
        Err(format!("{} has not bound its port", self.kind.name()))
    }
}

/// Starts the process of a tracker.
fn spawn(
    kind: TrackerKind,
    setup: &TrackerSetup,
    port: u16,
    config: &Path,
) -> Result<Child, String> {
    let mut command = command_of(kind, setup, port, config)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| format!("{}: {error}", kind.name()))
}

/// Sends a signal to a process.
fn signal(id: u32, name: &str) -> Result<(), String> {
    let sent = Command::new("kill").args(["-s", name, &id.to_string()]).status();
    match sent {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("kill -s {name} {id}: {status}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Sleeps between two checks.
#[expect(clippy::disallowed_methods, reason = "between checks of a process that starts")]
pub(crate) fn wait(duration: Duration) {
    std::thread::sleep(duration);
}

impl Drop for TrackerProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(successor) = self.successor {
            let _ = signal(successor, "KILL");
        }
    }
}

/// Returns a port that is free at the moment.
fn free_port() -> Result<u16, String> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    socket.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// Returns the config of a tracker. The generator requests at most 50 peers, so that limits of replies do not matter.
fn config_of(
    kind: TrackerKind,
    setup: &TrackerSetup,
    port: u16,
    folder: &Path,
) -> Result<String, String> {
    let TrackerSetup { ip, cpu, .. } = setup;
    let address = SocketAddr::new(*ip, port);
    let buffer = setup.receive_buffer;
    Ok(match kind {
        TrackerKind::Tsubame { shards, steering } => {
            let cpus: Vec<_> = (*cpu..cpu + shards).map(|cpu| cpu.to_string()).collect();
            let steering = if steering { "auto" } else { "off" };
            let lifetime = setup.lifetime_secs.map_or(String::new(), |secs| {
                let interval = secs / 3;
                format!("announce: {{interval: {interval}s, min_interval: {interval}s, peer_lifetime: {secs}s}}\n")
            });
            let cpus = cpus.join(",");
            let storage = setup.directory.as_ref().map_or(String::new(), |directory| {
                format!("storage: {{directory: \"{}\"}}\n", directory.display())
            });
            let control = setup.control.map_or(String::new(), |address| address.to_string());
            let cluster =
                setup.cluster.as_ref().map_or(String::new(), |text| format!("cluster: {text}\n"));
            let xdp = setup.xdp.as_ref().map_or(String::new(), |xdp| format!(", xdp: {xdp}"));
            format!(
                "cpus: \"{cpus}\"\n\
                 udp: {{listen: \"{address}\", steering: {steering}, receive_buffer: {buffer}B{xdp}}}\n\
                 control: {{listen: \"{control}\"}}\nhttp: {{listen: []}}\n{lifetime}{storage}{cluster}"
            )
        }
        TrackerKind::AquaticUring | TrackerKind::AquaticMio => {
            let ring = kind == TrackerKind::AquaticUring;
            let age = setup.lifetime_secs.map_or(String::new(), |secs| {
                format!("[cleaning]\ntorrent_cleaning_interval = 10\nmax_peer_age = {secs}\n")
            });
            format!(
                "socket_workers = 1\n[network]\naddress = \"{address}\"\nuse_io_uring = {ring}\n\
                 socket_recv_buffer_size = {buffer}\n\
                 [protocol]\nmax_response_peers = 50\n{age}"
            )
        }
        TrackerKind::OpenTracker { is_open: true } => {
            format!("listen.udp {address}\nlisten.tcp {address}\n")
        }
        TrackerKind::OpenTracker { is_open: false } => {
            let list = Command::new(beside("tsubame-load")?)
                .args(["hashes", "--torrents", &setup.torrents.to_string()])
                .output()
                .map_err(|error| error.to_string())?;
            fs::write(folder.join("permitted"), list.stdout).map_err(|error| error.to_string())?;
            format!("listen.udp {address}\nlisten.tcp {address}\naccess.whitelist permitted\n")
        }
        TrackerKind::Reflector { .. } => String::new(),
    })
}

/// Returns the command that starts a tracker.
fn command_of(
    kind: TrackerKind,
    setup: &TrackerSetup,
    port: u16,
    config: &Path,
) -> Result<Command, String> {
    let last = match kind {
        TrackerKind::Tsubame { shards, .. } => setup.cpu + shards - 1,
        _ => setup.cpu,
    };
    let mut command = pinned(setup.namespace.as_deref(), setup.cpu, last);
    match kind {
        TrackerKind::Tsubame { .. } => {
            command.arg(beside("tsubame")?).args(["run", "--config"]).arg(config);
        }
        TrackerKind::AquaticUring | TrackerKind::AquaticMio => {
            command.arg(setup.rivals.join("aquatic_udp")).arg("-c").arg(config);
        }
        TrackerKind::OpenTracker { is_open } => {
            let folder = config.parent().unwrap_or(config);
            command
                .arg(opentracker(&setup.rivals, is_open))
                .arg("-f")
                .arg(config)
                .arg("-d")
                .arg(folder);
            command.args(["-u", "nobody"]);
        }
        TrackerKind::Reflector { peers } => {
            let address = SocketAddr::new(setup.ip, port);
            command.arg(beside("tsubame-reflector")?).arg(address.to_string());
            command.args(["--peers", &peers.to_string()]);
        }
    }
    Ok(command)
}

/// Returns the start of a command that is pinned to these cores, in a network namespace if one is given.
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

/// Returns the path of a program that is built into the folder of this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf, String> {
    let this_program = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(this_program.with_file_name(name))
}
