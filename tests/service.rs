//! The tracker as a systemd service: readiness, watchdog, and priorities in the journal.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::{Tracker, WAIT_TIMEOUT, cpus, now, tsubame};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

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
            let len = socket.recv(&mut message).unwrap();
            let text = String::from_utf8_lossy(&message[..len]).into_owned();
            if text.lines().any(|line| line == wanted) {
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
    tracker.signal("TERM");
    receive("STOPPING=1");
    assert!(tracker.stop().contains("stopped after"));
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
