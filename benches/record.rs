//! Record of a load run: a JSON file that can be read, compared and plotted later.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// A run of the load generator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of the generator.
    pub version: String,
    /// Name of the run; the targets by default.
    pub name: String,
    /// URLs of the trackers.
    pub targets: Vec<String>,
    /// Command line of the run.
    pub command: String,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Number of torrents of the population.
    pub torrents: u32,
    /// Number of peers of the population.
    pub peers: u32,
    /// Kernel and processor.
    pub machine: String,
    /// Options in use, as text.
    #[serde(default)]
    pub settings: String,
    /// Cores of the generator and of the tracker, as text.
    #[serde(default)]
    pub placement: String,
    /// Steps in order.
    pub steps: Vec<StepRecord>,
}

/// Results of a step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StepRecord {
    /// Name of the step in the scenario.
    pub name: String,
    /// Seconds for which requests were sent.
    pub seconds: f64,
    /// Requests per second in open loop; `None` in closed loop.
    pub rate: Option<f64>,
    /// Number of requests sent that must be answered.
    pub sent: u64,
    /// Number of requests sent that must not be answered: forged connection ids, and garbage.
    pub sent_unproven: u64,
    /// Number of replies by kind: connect, announce, scrape, error, unreadable (HTTP).
    pub answered: BTreeMap<String, u64>,
    /// Number of replies to requests that must not be answered.
    pub answered_unproven: u64,
    /// Number of flood connects, from addresses that do not use the connection id.
    pub flood_connects: u64,
    /// Number of replies to flood connects.
    pub flood_connects_answered: u64,
    /// Number of requests given up: not answered within the timeout, counted in `broken`, or displaced because too many
    /// were unanswered.
    pub lost: u64,
    /// Number of replies that arrived after the timeout or twice.
    pub late: u64,
    /// Number of connections opened, over HTTP.
    #[serde(default)]
    pub connections: u64,
    /// Number of requests lost because their connection was refused, ended before the reply, or sent something that is
    /// not an HTTP reply.
    #[serde(default)]
    pub broken: u64,
    /// Number of requests that were delayed by more than a millisecond because no connection was free; latency includes
    /// the delay.
    #[serde(default)]
    pub waited: u64,
    /// Number of requests that were due and had not been sent at the end of the step.
    #[serde(default)]
    pub held_back: u64,
    /// Number of replies whose content was checked.
    pub checked: u64,
    /// Number of wrong replies by problem.
    pub wrong: BTreeMap<String, u64>,
    /// Number of peers in the replies to announces.
    pub peers: u64,
    /// Time from the scheduled time (open loop) or the sending (closed loop) of a request to its reply.
    pub latency: Latency,
    /// Longest time without a reply while requests were unanswered, in milliseconds.
    pub gap_ms_max: f64,
    /// Load of the generator itself.
    pub generator: GeneratorLoad,
    /// Resources that the server used, if it runs on this machine and its process or core was given.
    pub server: Option<ServerUsage>,
    /// Time series in tenths of a second.
    pub series: Vec<TenthStats>,
}

/// Latency in microseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Whether the delay that a late request causes for later ones is included (no coordinated omission).
    pub corrected: bool,
    /// Arithmetic mean.
    pub mean_us: f64,
    /// Maximum.
    pub max_us: f64,
    /// Percentiles with their values, in ascending order.
    pub percentiles: Vec<(f64, f64)>,
}

/// Load of the generator itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GeneratorLoad {
    /// Share of the time in which it was busy.
    pub busy: f64,
    /// Share of replies that it received in full batches, behind which more may have waited.
    pub backlog: f64,
    /// Share of requests sent more than a millisecond after their scheduled time; the wait for a free connection does
    /// not count (see [`StepRecord::waited`]).
    pub late: f64,
    /// Number of replies that the kernel dropped because the receive buffer of the generator was full.
    pub drops: u64,
    /// Number of requests that the kernel refused.
    pub unsent: u64,
    /// Whether the generator, and not the server, limited the rate.
    pub bottleneck: bool,
}

/// Resources that the server used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ServerUsage {
    /// Seconds for which its core was busy, with any work.
    pub core_busy_s: Option<f64>,
    /// Seconds for which the host gave its core to another virtual machine: slowness in that time is not caused by the
    /// server.
    #[serde(default)]
    pub stolen_s: Option<f64>,
    /// Seconds of processor time of its process.
    pub process_s: Option<f64>,
    /// Resident memory of its process at the end.
    pub resident_bytes: Option<u64>,
}

/// Results of a tenth of a second.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct TenthStats {
    /// Number of requests sent.
    pub sent: u32,
    /// Number of replies.
    pub answered: u32,
    /// Number of requests given up.
    pub lost: u32,
    /// Maximum latency in microseconds.
    pub max_us: u32,
}

impl StepRecord {
    /// Returns the number of replies of all kinds.
    pub fn answers(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Returns the share of replies that are errors, which cost less than other replies.
    pub fn error_share(&self) -> f64 {
        self.answered.get("error").copied().unwrap_or(0) as f64 / self.answers().max(1) as f64
    }

    /// Returns the number of replies per second.
    pub fn answers_per_s(&self) -> f64 {
        self.answers() as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Returns the number of wrong replies.
    pub fn wrong_sum(&self) -> u64 {
        self.wrong.values().sum()
    }

    /// Returns the busy time of the server's core per reply, in microseconds.
    pub fn core_us_per_answer(&self) -> Option<f64> {
        let busy = self.server?.core_busy_s?;
        Some(busy * 1e6 / (self.answers() + self.flood_connects_answered).max(1) as f64)
    }

    /// Returns the processor time of the server's process per reply, in microseconds.
    pub fn process_us_per_answer(&self) -> Option<f64> {
        let busy = self.server?.process_s?;
        Some(busy * 1e6 / (self.answers() + self.flood_connects_answered).max(1) as f64)
    }
}

impl Latency {
    /// Returns the latency at a percentile, or at the next higher one that is recorded; 0 without replies.
    pub fn value_at(&self, percentile: f64) -> f64 {
        let found = self.percentiles.iter().find(|(at, _)| *at >= percentile);
        found.map_or(0.0, |(_, value)| *value)
    }
}

impl Record {
    /// Reads a record.
    pub fn read(path: &Path) -> io::Result<Self> {
        serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::from)
    }

    /// Writes a record.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text)
    }
}
