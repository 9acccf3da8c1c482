//! A tracker as a process, and a client that writes and parses UDP datagrams itself.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

pub(crate) mod container;
pub(crate) mod flood;
pub(crate) mod http;
pub(crate) mod lab;
pub(crate) mod policy;
pub(crate) mod prometheus;
pub(crate) mod successor;
pub(crate) mod udp_suite;

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Timeout for replies, log lines and conditions that must come.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which a reply that must not come is considered absent. Loopback answers in microseconds.
pub(crate) const NO_REPLY_TIMEOUT: Duration = Duration::from_millis(300);

/// Config for tests with many peers of one address.
pub(crate) const UNCAPPED: &str = "storage: {caps: {per_ipv4: 0, per_ipv6_64: 0}}\n";

pub(crate) fn tsubame() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tsubame"))
}

/// Returns the time of the tests' clock. The tracker uses that of src/clock.rs.
#[expect(clippy::disallowed_methods, reason = "deadlines of tests")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns the cores for a number of shards as a list for the config: the first two available cores in turn.
pub(crate) fn cpus(shards: usize) -> String {
    let affinity = rustix::thread::sched_getaffinity(None).unwrap();
    let all = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| affinity.is_set(*cpu));
    let two: Vec<usize> = all.take(2).collect();
    let list: Vec<_> = two.iter().cycle().take(shards).map(usize::to_string).collect();
    format!("\"{}\"", list.join(","))
}

/// Calls a function that receives with a timeout until it is not interrupted.
///
/// The end of a child process interrupts it although the tests have no signal handlers: the thread that started the
/// child may have all signals blocked, because it starts another one, and then the kernel does not ignore `SIGCHLD`.
pub(crate) fn uninterrupted<T>(mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Sets a flag when it is dropped, also if a test fails, so that the threads that read it end.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes the kernel refuse a system call of a program with this error.
///
/// Installs a seccomp filter for `system_call`; if `argument` is given, only for calls with this third argument.
pub(crate) fn deny_system_call(
    command: &mut Command,
    system_call: libc::c_long,
    argument: Option<libc::c_int>,
    errno: libc::c_int,
) {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};
    let statement = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |offset: u32| statement(BPF_LD | BPF_W | BPF_ABS, offset);
    let unless_equal = |value: u32, skip: u8| sock_filter {
        jf: skip,
        ..statement(BPF_JMP | BPF_JEQ | BPF_K, value)
    };
    let mut filter = vec![load(0)];
    if let Some(argument) = argument {
        filter.extend([unless_equal(system_call as u32, 3), load(16 + 2 * 8)]);
        filter.push(unless_equal(argument as u32, 1));
    } else {
        filter.push(unless_equal(system_call as u32, 1));
    }
    filter.push(statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32));
    filter.push(statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW));
    let install = move || {
        let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: a plain system call on this process.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the program and its instructions outlive the call, which copies them.
        let result = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, install) };
}

/// A running tracker, which is killed when dropped.
pub(crate) struct Tracker {
    child: Child,
    /// Id of the process that has taken over from `child`, if one has.
    successor: Option<u32>,
    lines: Receiver<String>,
    pub(crate) log: Vec<String>,
    pub(crate) directory: tempfile::TempDir,
}

impl Tracker {
    /// Starts a tracker with this config and waits until it serves.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with_command(config, |command| command)
    }

    /// Starts a tracker with a command that `prepare` modifies or wraps, and waits until it serves.
    pub(crate) fn start_with_command(
        config: &str,
        prepare: impl FnOnce(Command) -> Command,
    ) -> Self {
        let mut tracker = Self::spawn(config, prepare);
        tracker.wait_for("memory limit");
        tracker
    }

    /// Starts a tracker without waiting. `prepare` may modify or wrap the command.
    ///
    /// HTTP is disabled unless the config has it, because all tests would share the default port.
    pub(crate) fn spawn(config: &str, prepare: impl FnOnce(Command) -> Command) -> Self {
        let silent = if config.contains("http:") { "" } else { "\nhttp: {listen: []}\n" };
        let config = format!("{config}{silent}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tsubame.yaml");
        std::fs::write(&path, config).unwrap();
        let mut command = tsubame();
        command.arg("run").arg("--config").arg(path);
        let mut command = prepare(command);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, successor: None, lines, log: Vec::new(), directory }
    }

    pub(crate) fn id(&self) -> u32 {
        self.successor.unwrap_or_else(|| self.child.id())
    }

    /// Upgrades the tracker, and waits until the new process logs that it has taken over.
    pub(crate) fn upgrade(&mut self) {
        self.signal("USR2");
        let line = self.wait_for_next("serves; this one stops");
        self.wait_for_next("took over from process");
        self.successor = Some(successor::process_in(&line).try_into().unwrap());
    }

    /// Waits for a log line that contains a text and was not read before.
    fn wait_for_next(&mut self, text: &str) -> String {
        let before = std::mem::take(&mut self.log);
        let line = self.wait_for(text);
        self.log.splice(0..0, before);
        line
    }

    /// Waits for a log line that contains a text, and returns the line.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        self.wait_within(WAIT_TIMEOUT, text)
    }

    pub(crate) fn wait_within(&mut self, timeout: Duration, text: &str) -> String {
        if let Some(line) = self.log.iter().find(|line| line.contains(text)) {
            return line.clone();
        }
        let deadline = now() + timeout;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(now())) {
                Ok(line) => {
                    self.log.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no {text:?} in the log:\n{}", self.log.join("\n"))
                }
            }
        }
    }

    /// Returns the UDP addresses of the tracker.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses_of("udp")
    }

    /// Returns the addresses at which the tracker serves a URL scheme.
    pub(crate) fn addresses_of(&self, scheme: &str) -> Vec<SocketAddr> {
        let mark = format!("serving {scheme}://");
        let after = |line: &String| line.split_once(&mark).map(|(_, rest)| rest.to_owned());
        self.log.iter().filter_map(after).map(|address| address.parse().unwrap()).collect()
    }

    pub(crate) fn port(&self) -> u16 {
        self.addresses()[0].port()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end of the process, and reads the rest of its log.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = now() + WAIT_TIMEOUT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(now())) {
                Ok(line) => self.log.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the tracker does not end:\n{}", self.log.join("\n"))
                }
            }
        }
    }

    /// Waits for the end of the process, while another one may still write to its log.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let deadline = now() + WAIT_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(now() < deadline, "the tracker does not end:\n{}", self.log.join("\n"));
        }
    }

    /// Replaces the config file that the tracker was started with.
    pub(crate) fn write_config(&self, config: &str) {
        std::fs::write(self.directory.path().join("tsubame.yaml"), config).unwrap();
    }

    /// Stops the tracker, and returns the log line with its final counts.
    pub(crate) fn stop(self) -> String {
        let log = self.stop_with_log();
        log.iter().find(|line| line.contains("stopped after")).unwrap().clone()
    }

    /// Stops the tracker, and returns its log.
    pub(crate) fn stop_with_log(mut self) -> Vec<String> {
        self.signal("TERM");
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log.join("\n"));
        std::mem::take(&mut self.log)
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.successor.is_some() {
            // It may have ended already.
            let _ = Command::new("kill").args(["-s", "KILL", &self.id().to_string()]).status();
        }
        if std::thread::panicking() {
            self.log.extend(self.lines.try_iter());
            println!("log of the tracker:\n{}", self.log.join("\n"));
        }
    }
}

/// Returns the address of the control plane, from the log.
pub(crate) fn control_of(tracker: &mut Tracker) -> SocketAddr {
    let line = tracker.wait_for("control plane on http://");
    let (_, address) = line.split_once("http://").unwrap();
    address.split_once('/').unwrap().0.parse().unwrap()
}

/// Returns the number before a word in a log line with counts.
pub(crate) fn count_in(line: &str, word: &str) -> u64 {
    let (before, _) =
        line.split_once(&format!(" {word}")).unwrap_or_else(|| panic!("{word} in {line}"));
    before.rsplit([' ', '(']).next().unwrap().parse().unwrap()
}

/// A client with a socket and a connection id.
pub(crate) struct Client {
    pub(crate) socket: UdpSocket,
    pub(crate) tracker: SocketAddr,
    pub(crate) id: u64,
    pub(crate) transactions: u32,
}

/// An announce reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AnnounceReply {
    pub(crate) interval: u32,
    pub(crate) leechers: u32,
    pub(crate) seeders: u32,
    pub(crate) peers: BTreeSet<(IpAddr, u16)>,
}

/// An announce request.
#[derive(Clone, Copy)]
pub(crate) struct Announce {
    pub(crate) info_hash: [u8; 20],
    pub(crate) port: u16,
    pub(crate) left: u64,
    pub(crate) event: u32,
    pub(crate) num_want: i32,
    pub(crate) ip: [u8; 4],
}

impl Announce {
    pub(crate) fn of(torrent: u32, port: u16) -> Self {
        let info_hash = info_hash_of(torrent);
        Self { info_hash, port, left: 100, event: 2, num_want: -1, ip: [0; 4] }
    }

    pub(crate) fn bytes(&self, id: u64, transaction: u32) -> Vec<u8> {
        let mut bytes = head(id, 1, transaction);
        bytes.extend(self.info_hash);
        bytes.extend(*b"-TT0001-abcdefghijkl");
        bytes.extend([0, self.left, 0].map(u64::to_be_bytes).as_flattened());
        bytes.extend(self.event.to_be_bytes());
        bytes.extend(self.ip);
        bytes.extend([0; 4]);
        bytes.extend(self.num_want.to_be_bytes());
        bytes.extend(self.port.to_be_bytes());
        bytes
    }
}

/// Returns the info hash of a torrent number.
///
/// Info hashes sort as their numbers. The bytes after the first four are random: regular ones could all belong to one
/// shard.
pub(crate) fn info_hash_of(torrent: u32) -> [u8; 20] {
    let mut info_hash = [0; 20];
    fastrand::Rng::with_seed(torrent.into()).fill(&mut info_hash);
    info_hash[..4].copy_from_slice(&torrent.to_be_bytes());
    info_hash
}

pub(crate) fn head(id: u64, action: u32, transaction: u32) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([action, transaction].map(u32::to_be_bytes).as_flattened());
    bytes
}

impl Client {
    /// Creates a client at this address and requests a connection id.
    pub(crate) fn connected(from: &str, tracker: SocketAddr) -> Self {
        let mut client = Self::new(from, tracker);
        client.connect();
        client
    }

    pub(crate) fn new(from: &str, tracker: SocketAddr) -> Self {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        Self { socket, tracker, id: 0, transactions: 0 }
    }

    pub(crate) fn connect(&mut self) {
        let request = head(0x0417_2710_1980, 0, 77);
        let reply = self.ask(&request).expect("no reply to a connect");
        assert_eq!((reply.len(), &reply[..8]), (16, [0, 0, 0, 0, 0, 0, 0, 77].as_slice()));
        self.id = u64::from_be_bytes(reply[8..].try_into().unwrap());
        assert_ne!(self.id, 0);
    }

    /// Sends a datagram and waits for one reply, which must come from the address it was sent to.
    ///
    /// Returns `None` if none comes within the timeout of the socket.
    pub(crate) fn ask(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.socket.send_to(request, self.tracker).unwrap();
        let mut reply = vec![0; 2_048];
        let (len, from) = match uninterrupted(|| self.socket.recv_from(&mut reply)) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("receive from {}: {error}", self.tracker),
        };
        assert_eq!(from, self.tracker, "the reply comes from another address");
        reply.truncate(len);
        Some(reply)
    }

    pub(crate) fn announce(&mut self, announce: &Announce) -> AnnounceReply {
        self.transactions += 1;
        let request = announce.bytes(self.id, self.transactions);
        let reply = self.ask(&request).expect("no reply to an announce");
        let word = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (1, self.transactions));
        let (peers, width) = (&reply[20..], if self.tracker.is_ipv4() { 6 } else { 18 });
        assert_eq!(peers.len() % width, 0);
        let peers: Vec<_> = peers.chunks(width).map(peer_of).collect();
        let distinct: BTreeSet<_> = peers.iter().copied().collect();
        assert_eq!(distinct.len(), peers.len(), "a peer was returned twice");
        AnnounceReply { interval: word(8), leechers: word(12), seeders: word(16), peers: distinct }
    }

    /// Scrapes torrents. Returns rows of seeders, completed, leechers, or `None` without a reply.
    pub(crate) fn scrape(&mut self, info_hashes: &[[u8; 20]]) -> Option<Vec<[u32; 3]>> {
        self.transactions += 1;
        let mut request = head(self.id, 2, self.transactions);
        request.extend(info_hashes.as_flattened());
        let reply = self.ask(&request)?;
        assert_eq!(reply[..8], head(0, 2, self.transactions)[8..]);
        let words: Vec<u32> =
            reply[8..].chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
        Some(words.chunks(3).map(|row| row.try_into().unwrap()).collect())
    }
}

fn peer_of(compact: &[u8]) -> (IpAddr, u16) {
    let (address, port) = compact.split_at(compact.len() - 2);
    let address = match <[u8; 4]>::try_from(address) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(address).unwrap().into(),
    };
    (address, u16::from_be_bytes(port.try_into().unwrap()))
}

/// Returns the reply to a GET request as text, with its headers.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}
