//! Upgrades in place: another process takes over the sockets and the swarms, and no request is lost; whatever happens
//! to it before it serves, the old process serves on.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::{Connection, rows_of};
use common::policy::{hex, scrape_target, wait_until};
use common::successor::{Successor, install_tsubame, process_in, replace};
use common::{
    Announce, Client, SetOnDrop, Tracker, UNCAPPED, control_of, cpus, http_get, info_hash_of, now,
    tsubame,
};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Number of torrents that tests store.
const TORRENTS: u32 = 300;

fn config(shards: usize, more: &str) -> String {
    format!(
        "cpus: {}\nudp: {{listen: [\"127.0.0.1:0\", \"[::1]:0\"]}}\nhttp: {{listen: [\"127.0.0.1:0\"]}}\n\
         control: {{listen: \"127.0.0.1:0\"}}\n{UNCAPPED}{more}",
        cpus(shards)
    )
}

/// Starts a tracker from a program of its own, which a test can replace.
fn start(config: &str, program: &Path) -> Tracker {
    install_tsubame(program);
    let mut tracker = Tracker::start_with_command(config, |command| {
        let mut own = std::process::Command::new(program);
        own.args(command.get_args());
        own
    });
    tracker.wait_for("control plane on");
    tracker
}

/// Announces a seeder and a leecher of each torrent from each client; in every fourth torrent the leecher completes.
fn announce_all(clients: &mut [Client]) {
    for client in clients {
        for torrent in 0..TORRENTS {
            client.announce(&Announce { left: 0, ..Announce::of(torrent, 2_000) });
            client.announce(&Announce::of(torrent, 3_000));
            if torrent % 4 == 0 {
                client.announce(&Announce { left: 0, event: 1, ..Announce::of(torrent, 3_000) });
            }
        }
    }
}

fn scrape_all(client: &mut Client) -> Vec<[u32; 3]> {
    let hashes: Vec<_> = (0..TORRENTS).map(info_hash_of).collect();
    hashes.chunks(50).flat_map(|hashes| client.scrape(hashes).unwrap()).collect()
}

/// Runs `tsubame upgrade`; returns whether it succeeded, and what it printed.
fn upgrade(control: SocketAddr) -> (bool, String) {
    let output =
        tsubame().args(["upgrade", "--control", &format!("http://{control}")]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Announces in a thread, each request after the reply to the one before, until it is told to stop.
struct Load {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<(u32, Duration)>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (over, count) = (is_over.clone(), answered.clone());
        let client = Client::connected(&address.ip().to_string(), address);
        client.socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut lost, mut longest) = (0, Duration::ZERO);
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                let torrent = TORRENTS + number % 97;
                let request = Announce::of(torrent, 5_000 + (number % 50) as u16);
                let sent = now();
                match client.ask(&request.bytes(client.id, number)) {
                    Some(_) => count.fetch_add(1, Ordering::Relaxed),
                    None => {
                        lost += 1;
                        0
                    }
                };
                longest = longest.max(sent.elapsed());
            }
            (lost, longest)
        });
        Self { is_over, answered, thread }
    }

    /// Returns the number of answered and of lost requests, and the longest time of an answer.
    fn stop(self) -> (u32, u32, Duration) {
        self.is_over.store(true, Ordering::Relaxed);
        let (lost, longest) = self.thread.join().unwrap();
        (self.answered.load(Ordering::Relaxed), lost, longest)
    }
}

#[test]
fn twenty_upgrades_under_load_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for shards in [1, 2] {
        let program = directory.path().join(format!("tsubame-{shards}"));
        let mut tracker = start(&config(shards, ""), &program);
        let control = control_of(&mut tracker);
        let addresses = tracker.addresses();
        let http = tracker.addresses_of("http")[0];
        let mut clients: Vec<_> = addresses
            .iter()
            .map(|address| Client::connected(&address.ip().to_string(), *address))
            .collect();
        announce_all(&mut clients);
        let before = scrape_all(&mut clients[0]);
        assert_eq!((before[0], before[1]), ([4, 2, 0], [2, 0, 2]));
        let loads: Vec<_> = addresses.iter().map(|address| Load::start(*address)).collect();
        let mut successor = None;
        for round in 0..20 {
            let (is_replaced, text) = upgrade(control);
            assert!(is_replaced, "round {round}: {text}\n{}", log_of(&mut tracker));
            let _earlier = successor.replace(Successor(process_in(&text)));
            assert_eq!(scrape_all(&mut clients[0]), before, "{shards} shards, round {round}");
        }
        for load in loads {
            let (answered, lost, longest) = load.stop();
            println!("{answered} answered, the slowest in {longest:?}");
            assert_eq!(lost, 0, "of {answered}");
        }
        // HTTP is served, too, and the connection ids of the first process are still good.
        assert_eq!(scrape_all(&mut clients[1]), before);
        let rows = rows_of(&Connection::to(http).get(&scrape_target(&[info_hash_of(0)])).body);
        assert_eq!(rows, [(info_hash_of(0), [4, 2, 0, 0])]);
        let status = http_get(control, "/v1/status");
        assert!(status.contains("200 OK"), "{status}");
        // The first process has ended well, once it was replaced.
        assert_eq!(tracker.wait_for_exit().code(), Some(0));
    }
}

/// A client that keeps its HTTP connection open gets `Connection: close` with the reply to its next request, and loses
/// no request.
#[test]
fn http_connections_end_with_a_reply() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tsubame");
    let mut tracker = start(&config(2, ""), &program);
    let (control, http) = (control_of(&mut tracker), tracker.addresses_of("http")[0]);
    let is_over = AtomicBool::new(false);
    let mut successor = None;
    let (answered, closed) = std::thread::scope(|scope| {
        let end = SetOnDrop(&is_over);
        let load = scope.spawn(|| {
            let (mut connection, mut answered, mut closed) = (Connection::to(http), 0, 0);
            while !is_over.load(Ordering::Relaxed) {
                let announce = common::http::HttpAnnounce::of(answered % 97, 5_000, 1);
                let reply = connection.get(&announce.target());
                assert_eq!(reply.status, 200, "{}", reply.head);
                answered += 1;
                if reply.head.contains("Connection: close") {
                    closed += 1;
                    connection = Connection::to(http);
                }
            }
            (answered, closed)
        });
        for round in 0..3 {
            let (is_replaced, text) = upgrade(control);
            assert!(is_replaced, "round {round}: {text}");
            let _earlier = successor.replace(Successor(process_in(&text)));
        }
        drop(end);
        load.join().unwrap()
    });
    assert!(closed >= 3 && answered > 100, "{answered} answered, {closed} closed");
}

/// Returns the log of a tracker so far.
fn log_of(tracker: &mut Tracker) -> String {
    tracker.log.join("\n")
}

/// Starts a tracker, replaces its program by a shell script, and checks that an upgrade fails with a text while the
/// tracker serves on.
fn check_failed_upgrade(script: Option<&str>, expected: &str) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tsubame");
    let mut tracker = start(&config(2, ""), &program);
    let control = control_of(&mut tracker);
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    announce_all(std::slice::from_mut(&mut client));
    let before = scrape_all(&mut client);
    let load = Load::start(tracker.addresses()[0]);
    match script {
        None => fs::remove_file(&program).unwrap(),
        Some(script) => replace(&program, script),
    }
    let (is_replaced, text) = upgrade(control);
    assert!(!is_replaced && text.contains(expected), "{text}\n{}", log_of(&mut tracker));
    tracker.wait_for("the tracker serves on");
    // It still does, has lost nothing, and can be upgraded.
    assert_eq!(scrape_all(&mut client), before);
    let (answered, lost, _) = load.stop();
    assert_eq!(lost, 0, "of {answered}");
    install_tsubame(&program);
    let (is_replaced, text) = upgrade(control);
    assert!(is_replaced, "{text}");
    let _successor = Successor(process_in(&text));
    assert_eq!(scrape_all(&mut client), before);
}

#[test]
fn a_program_that_does_not_exist_is_not_started() {
    check_failed_upgrade(None, "cannot be started: No such file or directory");
}

#[test]
fn a_program_that_crashes_at_start_is_reported() {
    check_failed_upgrade(Some("exit 7"), "the new process has ended (exit status: 7)");
    check_failed_upgrade(Some("kill -SEGV $$"), "the new process has ended (signal: 11");
}

#[test]
fn a_program_that_says_nonsense_is_ended() {
    check_failed_upgrade(
        Some("printf 'some bytes that are no message' >&0; sleep 5"),
        "the new process does not answer",
    );
}

#[test]
fn a_program_that_dies_in_the_middle_is_reported() {
    check_failed_upgrade(
        Some(&fake_successor_command("dies")),
        "the new process has ended (exit status: 3)",
    );
    check_failed_upgrade(
        Some(&fake_successor_command("serves too early")),
        "the new process does not answer: it has sent Serving",
    );
}

#[test]
fn a_program_that_hangs_is_ended() {
    check_failed_upgrade(
        Some(&fake_successor_command("hangs")),
        "the new process does not answer: timed out",
    );
}

/// Returns a shell command that runs [`fake_successor`].
fn fake_successor_command(behaviour: &str) -> String {
    let this_program = std::env::current_exe().unwrap();
    format!(
        "FAKE_SUCCESSOR='{behaviour}' exec {} --ignored --exact fake_successor",
        this_program.display()
    )
}

/// If the new process dies after it has said that it serves, the old one ends, too, with an exit code with which a
/// service manager starts the tracker again.
#[test]
fn a_successor_that_dies_when_it_serves_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tsubame");
    let mut tracker = start(&config(1, ""), &program);
    let control = control_of(&mut tracker);
    announce_all(&mut [Client::connected("127.0.0.1", tracker.addresses()[0])]);
    replace(&program, &fake_successor_command("dies when it serves"));
    let (is_replaced, text) = upgrade(control);
    assert!(!is_replaced && text.contains("has taken over and died"), "{text}");
    assert!(text.contains("exit status: 3"), "{text}");
    assert_eq!(tracker.wait_for_exit().code(), Some(3));
}

/// If the old process is killed before it has sent everything, the new one ends with the reason, and the addresses are
/// free.
#[test]
fn a_predecessor_that_is_killed_ends_the_successor() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tsubame");
    let mut tracker = start(&config(1, ""), &program);
    let address = tracker.addresses()[0];
    let (pid_file, go) = (directory.path().join("pid"), directory.path().join("go"));
    // The new process has the channel, and reads from it once the old one has been killed.
    let script = format!(
        "echo $$ >{}\nwhile [ ! -e {} ]; do sleep 0.05; done\nexec {} \"$@\"",
        pid_file.display(),
        go.display(),
        env!("CARGO_BIN_EXE_tsubame")
    );
    replace(&program, &script);
    tracker.signal("USR2");
    let read = || fs::read_to_string(&pid_file).ok()?.trim().parse::<i32>().ok();
    wait_until(|| read().is_some());
    tracker.signal("KILL");
    tracker.wait_for_exit();
    fs::write(&go, "").unwrap();
    let line = tracker.wait_for("cannot be reached");
    assert!(line.contains("the process that is to be replaced"), "{line}");
    wait_until(|| has_ended(read().unwrap()));
    // For a moment, a client of another test may have the port.
    wait_until(|| std::net::UdpSocket::bind(address).is_ok());
}

/// Behaves like the new process of an upgrade up to its first messages.
#[test]
#[ignore = "run as a process by other tests"]
fn fake_successor() {
    let Ok(behaviour) = std::env::var("FAKE_SUCCESSOR") else { return };
    let mut channel = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut head = [0; 5];
    channel.read_exact(&mut head).unwrap();
    let [_, len @ ..] = head;
    // The greeting, and one byte with which all sockets are sent.
    let mut greeting = vec![0; u32::from_le_bytes(len) as usize + 1];
    channel.read_exact(&mut greeting).unwrap();
    let is_early = behaviour == "serves too early";
    let first = if is_early { 5 } else { 2 };
    channel.write_all(&[first, 0, 0, 0, 0]).unwrap();
    if behaviour == "dies" {
        channel.read_exact(&mut [0; 20]).unwrap();
        std::process::exit(3);
    }
    if behaviour == "dies when it serves" {
        // Reads records until the old process has sent all torrents.
        loop {
            channel.read_exact(&mut head).unwrap();
            let [kind, len @ ..] = head;
            channel.read_exact(&mut vec![0; u32::from_le_bytes(len) as usize]).unwrap();
            if kind == 4 {
                break;
            }
        }
        channel.write_all(&[5, 0, 0, 0, 0]).unwrap();
        std::process::exit(3);
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn a_mistaken_config_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tsubame");
    let mut tracker = start(&config(2, ""), &program);
    let control = control_of(&mut tracker);
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    announce_all(std::slice::from_mut(&mut client));
    let before = scrape_all(&mut client);
    for (changed, expected) in [
        ("nonsense: 1\n".to_owned(), "exit status: 1"),
        (config(1, ""), "exit status: 2"),
        (config(2, "").replace("\"[::1]:0\"", "\"127.0.0.2:0\""), "exit status: 2"),
    ] {
        tracker.write_config(&changed);
        let (is_replaced, text) = upgrade(control);
        assert!(!is_replaced && text.contains(expected), "{text}");
        assert_eq!(scrape_all(&mut client), before);
    }
    tracker.wait_for("the running tracker has 2 shards, and the config 1");
    tracker.wait_for("udp.listen differs from what the running tracker serves");
    // A key that a reload cannot change is changed by an upgrade.
    tracker.write_config(&config(2, "log: {format: json}\n"));
    let (is_replaced, text) = upgrade(control);
    assert!(is_replaced, "{text}");
    let _successor = Successor(process_in(&text));
    tracker.wait_for("\"level\":\"INFO\"");
    assert_eq!(scrape_all(&mut client), before);
}

/// A signal starts an upgrade, too, and a second one while it is in progress is refused.
#[test]
fn a_signal_starts_an_upgrade() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tsubame");
    let mut tracker = start(&config(1, ""), &program);
    let control = control_of(&mut tracker);
    // The new process waits for a file, so that the first upgrade is still in progress.
    let go = directory.path().join("go");
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    replace(&program, &format!("{wait}\nexec {} \"$@\"", env!("CARGO_BIN_EXE_tsubame")));
    tracker.signal("USR2");
    tracker.wait_for("upgrade: starting a new process");
    let (is_replaced, text) = upgrade(control);
    assert!(!is_replaced && text.contains("an upgrade is in progress already"), "{text}");
    fs::write(&go, "").unwrap();
    let line = tracker.wait_for("serves; this one stops");
    let _successor = Successor(process_in(&line));
    tracker.wait_for("took over from process");
    assert_eq!(tracker.wait_for_exit().code(), Some(0));
}

/// SIGTERM during an upgrade, before or after the new process is ready, ends both processes. The last snapshot is
/// written.
#[test]
fn a_stop_ends_an_upgrade() {
    for script in ["exec sleep 1000".to_owned(), fake_successor_command("hangs")] {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("tsubame");
        let config = with_directory(&config(1, ""), directory.path());
        let mut tracker = start(&config, &program);
        announce_all(&mut [Client::connected("127.0.0.1", tracker.addresses()[0])]);
        let pid_file = directory.path().join("pid");
        replace(&program, &format!("echo $$ >{}\n{script}", pid_file.display()));
        tracker.signal("USR2");
        let read = || fs::read_to_string(&pid_file).ok()?.trim().parse::<i32>().ok();
        wait_until(|| read().is_some());
        let child = read().unwrap();
        tracker.signal("TERM");
        tracker.wait_for("snapshot written: 300 torrents, 600 peers");
        assert_eq!(tracker.wait_for_exit().code(), Some(0));
        wait_until(|| has_ended(child));
    }
}

/// Returns a config that keeps the swarms in a directory.
fn with_directory(config: &str, directory: &Path) -> String {
    config.replace("storage: {", &format!("storage: {{directory: \"{}\", ", directory.display()))
}

/// While a snapshot waits for a disk that does not answer, an upgrade is refused.
#[test]
fn an_upgrade_does_not_wait_for_a_slow_disk() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tsubame");
    let interval = "storage: {snapshot_interval: 1s, ";
    let config = with_directory(&config(1, ""), directory.path()).replace("storage: {", interval);
    let mut tracker = start(&config, &program);
    let control = control_of(&mut tracker);
    // A snapshot that was written shows that the directory is in use: until then, a new file would be removed.
    wait_until(|| directory.path().join("swarms.tsubame").exists());
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let pipe = directory.path().join("swarms.tsubame.new");
    wait_until(|| rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).is_ok());
    // The next snapshot opens the pipe, which waits for a reader.
    wait_until(|| wait_channel_of_snapshots(tracker.id()).contains("partner"));
    let (is_replaced, text) = upgrade(control);
    assert!(!is_replaced && text.contains("to a disk that does not answer"), "{text}");
    let client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    assert_ne!(client.id, 0);
}

/// Returns the name of the kernel function in which the thread of snapshots waits.
fn wait_channel_of_snapshots(process: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let is_thread = |task: &fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.trim() == "snapshots"
    };
    let thread = tasks.into_iter().find(is_thread);
    thread.map_or_else(String::new, |task| {
        fs::read_to_string(task.path().join("wchan")).unwrap_or_default()
    })
}

/// Returns whether a process has ended, also if nobody has waited for it yet.
fn has_ended(process: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.is_empty() || status.contains(") Z ")
}

/// Snapshots go on in the new process, and its stop keeps the swarms.
#[test]
fn snapshots_go_on_after_an_upgrade() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let program = directory.path().join("tsubame");
    let interval = "storage: {snapshot_interval: 1s, ";
    let config = with_directory(&config(2, ""), &state).replace("storage: {", interval);
    let mut tracker = start(&config, &program);
    let control = control_of(&mut tracker);
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    announce_all(std::slice::from_mut(&mut client));
    let before = scrape_all(&mut client);
    let (is_replaced, text) = upgrade(control);
    assert!(is_replaced, "{text}");
    let successor = Successor(process_in(&text));
    assert_eq!(scrape_all(&mut client), before);
    // The new process writes snapshots.
    let written = "tsubame_snapshots_total{result=\"success\"} 1";
    wait_until(|| http_get(control, "/metrics").contains(written));
    let stopped =
        tsubame().args(["stop", "--control", &format!("http://{control}")]).output().unwrap();
    assert!(stopped.status.success(), "{stopped:?}");
    wait_until(|| has_ended(successor.0));
    let tracker = Tracker::start(&config);
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    wait_until(|| scrape_all(&mut client) == before);
}

/// Returns whether the tracker confirms that it has added a torrent to its access list.
fn is_added(control: SocketAddr, torrent: u32) -> bool {
    let request = format!(
        "PUT /v1/access_list/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        hex(torrent)
    );
    let mut reply = String::new();
    // At the end of the old process, the connection may be lost.
    TcpStream::connect(control).is_ok_and(|mut stream| {
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut reply).is_ok()
            && reply.starts_with("HTTP/1.1 200 OK")
    })
}

/// Changes of the access list that are confirmed while another process takes over count in that process, too.
#[test]
fn changes_of_the_access_list_during_an_upgrade_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tsubame");
    let hooks = format!(
        "hooks: [{{name: access_list, options: {{mode: deny, overrides_file: \"{}\"}}}}]\n",
        directory.path().join("overrides").display()
    );
    let mut tracker = start(&config(2, &hooks), &program);
    let control = control_of(&mut tracker);
    let client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    let is_over = AtomicBool::new(false);
    let (added, _successor) = std::thread::scope(|scope| {
        let end = SetOnDrop(&is_over);
        let torrents = (0..).take_while(|_| !is_over.load(Ordering::Relaxed));
        let added =
            scope.spawn(move || torrents.filter(|it| is_added(control, *it)).collect::<Vec<u32>>());
        let (is_replaced, text) = upgrade(control);
        assert!(is_replaced, "{text}");
        drop(end);
        (added.join().unwrap(), Successor(process_in(&text)))
    });
    assert!(added.len() > 1, "{added:?}");
    for torrent in added {
        wait_until(|| {
            let reply = client.ask(&Announce::of(torrent, 2_000).bytes(client.id, 1)).unwrap();
            reply[3] == 3
        });
    }
}
