//! The dashboard and the alerts of `deploy/`, with a real Prometheus that scrapes a tracker under load.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;
#[path = "common/nats.rs"]
mod nats;

use common::http::{self, Connection};
use common::prometheus::{Prometheus, RANGE, certificate, deploy};
use common::{Announce, Client, Tracker, control_of, cpus, info_hash_of};
use nats::Nats;
use serde_json::Value;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Sends requests of all kinds over all protocols until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(tracker: &Tracker) -> Self {
        let udp = tracker.addresses()[0];
        let (plain, encrypted) =
            (tracker.addresses_of("http")[0], tracker.addresses_of("https")[0]);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut client = Client::connected("127.0.0.1", udp);
            let garbage = UdpSocket::bind("127.0.0.1:0").unwrap();
            for round in (0_u32..).take_while(|_| !stopped.load(Ordering::Relaxed)) {
                client.connect();
                for event in [2, 0, 1, 3] {
                    let announce = Announce { event, ..Announce::of(round % 50, 7_001) };
                    client.announce(&Announce { left: u64::from(event != 1), ..announce });
                }
                client.scrape(&[info_hash_of(round % 50)]);
                garbage.send_to(b"x", udp).unwrap();
                Connection::to(plain).announce(&http::HttpAnnounce::of(round % 50, 7_002, 1));
                let url =
                    format!("https://{encrypted}{}", http::HttpAnnounce::of(1, 7_003, 1).target());
                let curl = Command::new("curl").args(["-sk", "-o", "/dev/null", &url]).status();
                assert!(curl.unwrap().success());
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

/// Starts a tracker with TLS, whose certificate expires in three days, with hooks, and as a node.
fn start(directory: &Path, nats: &Nats) -> Tracker {
    let (certificate, key) = certificate(directory);
    Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\nhttp: {{listen: \"127.0.0.1:0\", tls: {{listen: \"127.0.0.1:0\", \
         certificate: {}, key: {}}}}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\nstorage: {{directory: {}}}\nhooks:\n- \
         {{name: limits, options: {{announces_per_second: 100000}}}}\ncluster: \
         {{servers: \"{}\", node: a}}\n",
        cpus(2),
        certificate.display(),
        key.display(),
        directory.display(),
        nats.url()
    ))
}

#[test]
#[ignore = "needs prometheus, curl and openssl"]
fn every_expression_returns_data_and_alerts_fire() {
    let directory = tempfile::tempdir().unwrap();
    let nats = Nats::start("");
    let mut tracker = start(directory.path(), &nats);
    let _other_node = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"\"}}\n\
         cluster: {{servers: \"{}\", node: b}}\n",
        cpus(1),
        nats.url()
    ));
    let control = control_of(&mut tracker);
    let prometheus = Prometheus::start(directory.path(), control);
    let load = Load::start(&tracker);
    prometheus.wait_for("up == 1");
    let dashboard = std::fs::read_to_string(deploy("grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut expressions = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("[$__rate_interval]", RANGE);
            let expression = expression.replace("$job", ".*").replace("$instance", ".*");
            for total in ["sum", "max"] {
                prometheus.wait_for(&expression.replace("$total", total));
            }
            expressions += 1;
        }
    }
    assert!(expressions > 30, "{expressions} expressions");
    let alerts = std::fs::read_to_string(deploy("alerts.yml")).unwrap();
    for line in alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        // The left side of the comparison: on a healthy tracker, the whole expression returns no data.
        let line = line.split(" and on ").next().unwrap();
        let metric =
            [" > ", " == ", " < "].iter().find_map(|it| Some(line.rsplit_once(it)?.0)).unwrap();
        prometheus.wait_for(&metric.replace("[5m]", RANGE).replace("[15m]", RANGE));
    }
    prometheus.wait_for_alert("TsubameCertificateExpires", || {});
    for alert in
        ["TsubameDown", "TsubameShardStuck", "TsubameReloadFailed", "TsubameMemoryPressure"]
    {
        assert!(!prometheus.is_firing(alert), "{alert}");
    }
    tracker.write_config("hooks: [{name: nothing}]\n");
    tracker.signal("HUP");
    prometheus.wait_for_alert("TsubameReloadFailed", || {});
    drop(load);
    tracker.stop();
    prometheus.wait_for_alert("TsubameDown", || {});
}

/// The unit tests of the alerts: each fires for its cause, and none for a healthy tracker.
#[test]
#[ignore = "needs promtool, of Debian's prometheus"]
fn each_alert_fires_for_its_cause() {
    let output = Command::new("promtool")
        .args(["test", "rules"])
        .arg(deploy("alerts_test.yml"))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    let alerts = std::fs::read_to_string(deploy("alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(deploy("alerts_test.yml")).unwrap();
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test");
    }
}
