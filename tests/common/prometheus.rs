//! A real Prometheus that scrapes a tracker and evaluates the alerts of `deploy/`.

use super::lab::wait_until;
use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Time in which an expression must return data, or an alert fire.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Range of rates: some scrapes, which are made each second.
pub(crate) const RANGE: &str = "[10s]";

/// Condition of an alert that would take two hours. Scans are at least 30 seconds apart.
const SCAN_AGE: &str = "tsubame_scan_age_seconds > 7200";

/// A Prometheus server, which is killed when it is dropped.
pub(crate) struct Prometheus {
    process: Child,
    url: String,
}

impl Prometheus {
    /// Starts a server that scrapes `target` and evaluates the alerts without delay.
    pub(crate) fn start(directory: &Path, target: SocketAddr) -> Self {
        let alerts = std::fs::read_to_string(deploy("alerts.yml")).unwrap();
        let is_delay = |line: &&str| line.trim_start().starts_with("for: ");
        let rules: Vec<_> = alerts.lines().filter(|line| !is_delay(line)).collect();
        let rules = rules.join("\n").replace("[5m]", RANGE).replace("[15m]", RANGE);
        let rules = rules.replace(SCAN_AGE, "tsubame_scan_age_seconds > 45");
        std::fs::write(directory.join("rules.yml"), rules).unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yml]\nscrape_configs:\n- \
             {{job_name: tsubame, static_configs: [{{targets: [\"{target}\"]}}]}}\n"
        );
        let config_file = directory.join("prometheus.yml");
        std::fs::write(&config_file, config).unwrap();
        // Prometheus cannot report a port that it has chosen.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config_file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, url: format!("http://{address}") }
    }

    /// Returns the number of samples that an expression returns; `None` if there is no answer.
    pub(crate) fn query(&self, expression: &str) -> Option<usize> {
        let reply =
            ureq::get(format!("{}/api/v1/query", self.url)).query("query", expression).call();
        let reply: Value =
            serde_json::from_str(&reply.ok()?.body_mut().read_to_string().ok()?).ok()?;
        reply["data"]["result"].as_array().map(Vec::len)
    }

    pub(crate) fn wait_for(&self, expression: &str) {
        wait_until(expression, TIMEOUT, || {
            self.query(expression).is_some_and(|samples| samples > 0)
        });
    }

    pub(crate) fn is_firing(&self, alert: &str) -> bool {
        let expression = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
        self.query(&expression).is_some_and(|samples| samples > 0)
    }

    /// Waits until an alert fires; calls `cause` before each check.
    pub(crate) fn wait_for_alert(&self, alert: &str, mut cause: impl FnMut()) {
        wait_until(alert, TIMEOUT, || {
            cause();
            self.is_firing(alert)
        });
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the path of a file of `deploy/`.
pub(crate) fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// Makes a certificate that expires in three days, and its key.
pub(crate) fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "3",
        ])
        .args(["-subj", "/CN=tracker"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    (certificate, key)
}
