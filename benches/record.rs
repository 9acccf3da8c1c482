//! What a load run leaves behind: a JSON file that can be read, compared and drawn again later.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// A run of the load generator
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of the generator
    pub version: String,
    /// What the run was called; the targets unless named
    pub name: String,
    /// The trackers that were asked
    pub targets: Vec<String>,
    /// The command line, to run it again
    pub command: String,
    /// What the draws began with
    pub seed: u64,
    /// Torrents of the population
    pub torrents: u32,
    /// Peers of the population
    pub peers: u32,
    /// Kernel and processor
    pub machine: String,
    /// One after another
    pub steps: Vec<Step>,
}

/// What was counted in a step
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Step {
    /// Its name in the scenario
    pub name: String,
    /// How long requests were sent
    pub seconds: f64,
    /// Requests a second that were to be sent; none in closed loop
    pub rate: Option<f64>,
    /// Requests sent that deserve an answer
    pub sent: u64,
    /// Requests sent that deserve none: stale and forged ids, garbage, floods
    pub sent_unproven: u64,
    /// Replies by kind: connect, announce, scrape, error
    pub answered: BTreeMap<String, u64>,
    /// Replies to what deserves none
    pub answered_unproven: u64,
    /// Connects of a flood, from addresses that never come back
    pub flood_connects: u64,
    /// Replies to those
    pub flood_connects_answered: u64,
    /// Requests without an answer when their time was up
    pub lost: u64,
    /// Replies that came later than that, or twice
    pub late: u64,
    /// Connections that were tried, over HTTP
    #[serde(default)]
    pub connections: u64,
    /// Requests lost because their connection was refused, ended before the answer or brought something else
    #[serde(default)]
    pub broken: u64,
    /// Requests that left more than a millisecond later because no connection was free: latency has that time
    #[serde(default)]
    pub waited: u64,
    /// Requests that were due and did not leave before the step was over
    #[serde(default)]
    pub held_back: u64,
    /// Replies of which the content was looked at
    pub checked: u64,
    /// Wrong replies by what is wrong
    pub wrong: BTreeMap<String, u64>,
    /// Peers in the replies to announces
    pub peers: u64,
    /// Time from when a request was due (open loop) or sent (closed loop) to its answer
    pub latency: Latency,
    /// The longest time without an answer while some were due
    pub gap_ms_max: f64,
    /// How the generator itself fared
    pub generator: Generator,
    /// What the server used, if it is on this machine and was pointed out
    pub server: Option<Server>,
    /// Tenths of a second
    pub series: Vec<Tenth>,
}

/// Latency in microseconds
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Whether waiting that a late request caused its successors counts (no coordinated omission)
    pub corrected: bool,
    /// Arithmetic mean
    pub mean_us: f64,
    /// The longest
    pub max_us: f64,
    /// Percentiles with their values, rising
    pub percentiles: Vec<(f64, f64)>,
}

/// How the generator fared
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Generator {
    /// Share of the time it had something to do
    pub busy: f64,
    /// Share of answers that it took in full batches, behind which more may have waited
    pub backlog: f64,
    /// Share of requests sent more than a millisecond after they were due
    pub late: f64,
    /// Replies the kernel dropped because it did not take them in time
    pub drops: u64,
    /// Requests the kernel did not take
    pub unsent: u64,
    /// Whether it, and not the server, set the pace
    pub bottleneck: bool,
}

/// What the server used
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Server {
    /// Seconds its core was busy, with whatever
    pub core_busy_s: Option<f64>,
    /// Seconds for which the host gave its core to another machine: what was slow then was not the server
    #[serde(default)]
    pub stolen_s: Option<f64>,
    /// Seconds of processor time of its process
    pub process_s: Option<f64>,
    /// Resident memory of its process at the end
    pub resident_bytes: Option<u64>,
}

/// A tenth of a second
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Tenth {
    /// Requests sent
    pub sent: u32,
    /// Replies
    pub answered: u32,
    /// Requests given up
    pub lost: u32,
    /// The longest latency, in microseconds
    pub max_us: u32,
}

impl Step {
    /// Replies of all kinds
    pub fn answers(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Share of replies that are errors: fast refusals are no feat
    pub fn errors(&self) -> f64 {
        self.answered.get("error").copied().unwrap_or(0) as f64 / self.answers().max(1) as f64
    }

    /// Replies a second
    pub fn answers_per_s(&self) -> f64 {
        self.answers() as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Wrong replies of all kinds
    pub fn wrong_sum(&self) -> u64 {
        self.wrong.values().sum()
    }

    /// Microseconds the server's core was busy for an answer
    pub fn core_us_per_answer(&self) -> Option<f64> {
        let busy = self.server?.core_busy_s?;
        Some(busy * 1e6 / (self.answers() + self.flood_connects_answered).max(1) as f64)
    }

    /// Microseconds of processor time the server's process took for an answer
    pub fn process_us_per_answer(&self) -> Option<f64> {
        let busy = self.server?.process_s?;
        Some(busy * 1e6 / (self.answers() + self.flood_connects_answered).max(1) as f64)
    }
}

impl Latency {
    /// The value of a percentile that was recorded; 0 without answers
    pub fn at(&self, percentile: f64) -> f64 {
        let found = self.percentiles.iter().find(|(at, _)| *at >= percentile);
        found.map_or(0.0, |(_, value)| *value)
    }
}

impl Record {
    /// Reads a record
    pub fn read(path: &Path) -> io::Result<Self> {
        serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::from)
    }

    /// Writes a record
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text)
    }
}
