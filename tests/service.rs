//! The tracker as a systemd service: readiness, watchdog, and priorities in the journal.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::Connection;
use common::{
    Announce, Client, Tracker, WAIT_TIMEOUT, cpus, http_get, now, tsubame, uninterrupted,
};
use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};

const CONTROL: &str = "control: {listen: \"127.0.0.1:0\"}\nlog: {summary: 1s}\n";

#[test]
fn systemd_receives_readiness_watchdog_and_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let receive = |wanted: &str| {
        let mut seen = Vec::new();
        let deadline = now() + WAIT_TIMEOUT;
        while now() < deadline {
            let mut message = [0; 4096];
            let len = uninterrupted(|| socket.recv(&mut message)).unwrap();
            let text = String::from_utf8_lossy(&message[..len]).into_owned();
            if text.lines().any(|line| line.starts_with(wanted)) {
                return text;
            }
            seen.push(text);
        }
        panic!("{wanted} is not in {seen:?}");
    };
    let config = format!("cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\n{CONTROL}", cpus(2));
    let tracker = Tracker::start_with_command(&config, |mut command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "30000000");
        command
    });
    let ready = receive("READY=1");
    assert!(ready.contains("STATUS=serving"), "{ready}");
    receive("WATCHDOG=1");
    receive("WATCHDOG=1");
    // Another process takes over, and is the main process of the service from then on.
    let mut tracker = tracker;
    tracker.signal("USR2");
    let main = receive("MAINPID=");
    let main: i32 = main.trim().strip_prefix("MAINPID=").unwrap().parse().unwrap();
    assert_eq!(tracker.wait_for_exit().code(), Some(0));
    receive("WATCHDOG=1");
    receive("WATCHDOG=1");
    let main = rustix::process::Pid::from_raw(main).unwrap();
    rustix::process::kill_process(main, rustix::process::Signal::TERM).unwrap();
    receive("STOPPING=1");
    // Each of the two processes logs its end; the log ends with the second one.
    assert_eq!(tracker.wait().code(), Some(0));
    let ends = tracker.log.iter().filter(|line| line.contains("stopped after")).count();
    assert_eq!(ends, 2, "{}", tracker.log.join("\n"));
}

/// With `JOURNAL_STREAM`, lines have priorities and no times; the summary is one of them.
#[test]
fn lines_for_the_journal_have_priorities() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("t.yaml");
    let text = format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\nhttp: {{listen: []}}\n{CONTROL}",
        cpus(1)
    );
    std::fs::write(&config, text).unwrap();
    let log = directory.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let metadata = file.metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    let mut tracker = tsubame()
        .args(["run", "--config"])
        .arg(&config)
        .env("JOURNAL_STREAM", stream)
        .stderr(Stdio::from(file))
        .spawn()
        .unwrap();
    let read = || std::fs::read_to_string(&log).unwrap();
    common::policy::wait_until(|| read().contains("announces/s"));
    tracker.kill().unwrap();
    tracker.wait().unwrap();
    let text = read();
    assert!(text.lines().all(|line| line.starts_with("<6>") || line.starts_with("<4>")), "{text}");
    assert!(text.starts_with("<6>serving udp://"), "{text}");
    assert!(text.contains("0 announces/s, 0 scrapes/s; 0 refused/s"), "{text}");
}

/// Binds a socket as systemd does with `ReusePort=yes` and `BindIPv6Only=ipv6-only`.
fn bind(address: SocketAddr, kind: Type) -> OwnedFd {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    if kind == Type::STREAM {
        socket.listen(16).unwrap();
    }
    socket.into()
}

fn address_of(socket: &OwnedFd) -> SocketAddr {
    socket2::SockRef::from(socket).local_addr().unwrap().as_socket().unwrap()
}

/// Makes a command pass sockets to the program that it starts (sd_listen_fds(3)).
fn pass_sockets(command: &Command, sockets: &[OwnedFd]) -> Command {
    let mut script = String::new();
    for (socket, number) in sockets.iter().zip(3..) {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).unwrap();
        // Duplicated twice: the target may be the number of a socket that has not been moved yet.
        script += &format!("exec {}<&{}\n", number + 200, socket.as_raw_fd());
    }
    for number in 3..3 + sockets.len() {
        script += &format!("exec {number}<&{0} {0}<&-\n", number + 200);
    }
    script += "exec \"$@\"";
    let mut bash = Command::new("bash");
    bash.args([
        "-c",
        &format!("export LISTEN_PID=$$ LISTEN_FDS={}\n{script}", sockets.len()),
        "bash",
    ]);
    bash.arg(command.get_program()).args(command.get_args());
    bash
}

/// The sockets of all listeners are taken from the service manager, and requests that arrive before the start are
/// answered.
#[test]
fn sockets_of_the_service_manager_are_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let local = "127.0.0.1:0".parse().unwrap();
    let udp = bind(local, Type::DGRAM);
    let other_udp = bind(address_of(&udp), Type::DGRAM);
    let udp6 = bind("[::1]:0".parse().unwrap(), Type::DGRAM);
    let other_udp6 = bind(address_of(&udp6), Type::DGRAM);
    for socket in [&udp, &other_udp, &udp6, &other_udp6] {
        socket2::SockRef::from(socket).set_recv_buffer_size(1 << 20).unwrap();
    }
    let [http, control] = [(); 2].map(|()| bind(local, Type::STREAM));
    let unix = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let [udp_address, udp6_address, http_address, control_address] =
        [&udp, &udp6, &http, &control].map(address_of);
    let config = format!(
        "cpus: {}\nudp: {{listen: [\"{udp_address}\", \"{udp6_address}\"], receive_buffer: 64KiB}}\nhttp: {{listen: \
         \"{http_address}\"}}\ncontrol: {{listen: \"{control_address}\", socket: {}}}\n",
        cpus(2),
        path.display()
    );
    let sockets = [udp, other_udp, udp6, other_udp6, http, control, unix];
    let early = UdpSocket::bind("127.0.0.1:0").unwrap();
    early.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let connect = [&0x0417_2710_1980_u64.to_be_bytes()[..], &[0; 8]].concat();
    early.send_to(&connect, udp_address).unwrap();
    let mut tracker =
        Tracker::start_with_command(&config, |command| pass_sockets(&command, &sockets));
    assert_eq!(uninterrupted(|| early.recv(&mut [0; 100])).unwrap(), 16);
    // Many torrents and clients: all shards and sockets are reached.
    for (from, address) in [("127.0.0.1", udp_address), ("::1", udp6_address)] {
        for torrent in 0..20 {
            Client::connected(from, address).announce(&Announce::of(torrent, 7_000));
        }
    }
    assert_eq!(Connection::to(http_address).get("/").status, 200);
    assert!(http_get(control_address, "/healthz").starts_with("HTTP/1.1 200"));
    let status = tsubame().args(["status", "--control"]).arg(&path).output().unwrap();
    assert!(status.status.success(), "{status:?}");
    tracker.wait_for("control plane on");
    // The receive buffer that the service manager has set is larger than that of the config, and stays.
    let page = tracker.log.join("\n");
    assert!(page.contains("a receive buffer of 1.0 MiB"), "{page}");
    tracker.stop();
    // The next process takes the same sockets.
    let next = Tracker::start_with_command(&config, |command| pass_sockets(&command, &sockets));
    Client::connected("127.0.0.1", udp_address).announce(&Announce::of(1, 7_000));
    assert_eq!(Connection::to(http_address).get("/").status, 200);
    next.stop();
    assert!(path.exists(), "a socket of the service manager was removed");
}

/// A socket that the config does not have, and another number of sockets than shards, are refused with the cure.
#[test]
fn unsuitable_sockets_of_the_service_manager_are_explained() {
    let run = |config: &str, sockets: &[OwnedFd]| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("t.yaml");
        std::fs::write(&file, config).unwrap();
        let mut command = tsubame();
        command.args(["run", "--config"]).arg(&file);
        let output = pass_sockets(&command, sockets).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let socket = bind("127.0.0.1:0".parse().unwrap(), Type::DGRAM);
    let address = address_of(&socket);
    let base = "http: {listen: []}\ncontrol: {listen: \"\"}\n";
    let config = |listen: &str| format!("cpus: {}\nudp: {{listen: \"{listen}\"}}\n{base}", cpus(2));
    let sockets = [socket];
    let (code, text) = run(&config(&address.to_string()), &sockets);
    assert!(
        code == Some(2)
            && text.contains("service manager passed: 1; number of shards: 2")
            && text.contains("ReusePort"),
        "{text}"
    );
    let (code, text) = run(&config("127.0.0.1:0"), &sockets);
    assert!(code == Some(2) && text.contains("not in udp.listen"), "{text}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let unix = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let for_all = format!(
        "udp: {{listen: \"127.0.0.1:0\"}}\nhttp: {{listen: []}}\ncontrol: {{listen: \"\", socket: {}}}\n",
        path.display()
    );
    let (code, text) = run(&for_all, &[unix.into()]);
    assert!(code == Some(2) && text.contains("SocketMode=0660"), "{text}");
    let file = [OwnedFd::from(std::fs::File::open("/dev/null").unwrap())];
    let (code, text) = run(&config("127.0.0.1:0"), &file);
    assert!(code == Some(2) && text.contains("socket number 0"), "{text}");
}

/// Returns the values of a field in the status of all threads of a process.
fn thread_fields(process: u32, field: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let values = threads.map(|thread| {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    values.collect()
}

#[test]
fn privileges_of_root_are_given_up() {
    let config = |user: &str| {
        format!("cpus: {}\nuser: {user}\nudp: {{listen: \"127.0.0.1:0\"}}\n{CONTROL}", cpus(2))
    };
    if !rustix::process::geteuid().is_root() {
        let mut tracker = Tracker::spawn(&config("root"), |command| command);
        tracker.wait_for("only root can become");
        return;
    }
    let all_are = |tracker: &Tracker, field: &str, value: &str| {
        let found = thread_fields(tracker.id(), field);
        assert!(found.len() > 2 && found.iter().all(|it| it == value), "{field} {found:?}");
    };
    // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_IPC_LOCK, as far as the test itself has them.
    let own = u64::from_str_radix(&thread_fields(std::process::id(), "CapEff:")[0], 16).unwrap();
    let tracker = Tracker::start(&config("\"\""));
    all_are(&tracker, "CapEff:", &format!("{:016x}", own & (1 << 1 | 1 << 2 | 1 << 14)));
    all_are(&tracker, "NoNewPrivs:", "1");
    tracker.stop();
    let mut tracker = Tracker::start_with_command(&config("nobody"), |command| {
        let file = command.get_args().last().unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
        command
    });
    let line = tracker.wait_for("over the API will fail");
    assert!(line.contains("user nobody"), "{line}");
    for (field, value) in [
        ("Uid:", "65534 65534 65534 65534"),
        ("Groups:", "65534"),
        ("CapPrm:", &"0".repeat(16)),
        ("NoNewPrivs:", "1"),
    ] {
        all_are(&tracker, field, value);
    }
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    client.announce(&Announce::of(1, 7_000));
    tracker.stop();
    let mut tracker = Tracker::spawn(&config("no-such-user"), |command| command);
    tracker.wait_for("useradd --system no-such-user");
}
