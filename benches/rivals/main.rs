//! `tsubame-rivals`: compares this tracker with others under the same load on the same core, in alternation.
//!
//! `benches/compare` builds the trackers and runs this program. Speeds are medians over rounds, and ratios are medians
//! of the ratios of pairs, because the speed of a shared machine varies from minute to minute by more than the trackers
//! differ. Memory is measured once, and pauses are printed for each round.

mod cluster;
mod ratios;
mod redis;
mod restart;
mod sections;
mod tracker;
mod veth;
mod xdp;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compares this tracker with others.
#[derive(Clone, Debug, Parser)]
#[command(name = "tsubame-rivals", version)]
pub(crate) struct RivalsOptions {
    /// Folder of the other trackers and their load generators.
    #[arg(long)]
    rivals: PathBuf,
    /// Number of rounds of each section but memory, pauses and restart; each tracker is loaded once in a round.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Seconds of load in a round.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// A short run: 3 rounds of 1 second (pauses: one of 20 seconds), with small populations.
    #[arg(long)]
    quick: bool,
    /// Core of the trackers.
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// Core of the load generator.
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Requests per second at which processor time is compared; all trackers must be able to serve them. With the
    /// highest, announces alone are compared, too.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,20000,50000,100000")]
    rates: Vec<u64>,
    /// Sections to run: rate, closed, saturated, tester, veth, xdp, memory, pauses, restart,
    /// shards, cluster.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

impl RivalsOptions {
    /// Returns the highest rate.
    fn highest_rate(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }

    /// Returns whether a section is to be run.
    fn wants(&self, section: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == section)
    }
}

fn main() -> ExitCode {
    let mut options = RivalsOptions::parse();
    if options.quick {
        (options.rounds, options.seconds) = (3, 1);
    }
    println!("{}", tsubame_bench::observe::machine());
    println!(
        "{} rounds of {} s; trackers on core {}, generator on core {}\n",
        options.rounds, options.seconds, options.server_cpu, options.load_cpu
    );
    match sections::all(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tsubame-rivals: {message}");
            ExitCode::FAILURE
        }
    }
}
