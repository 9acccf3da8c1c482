//! `tsubame-rivals`: this tracker and others under the same load on the same core, in alternation.
//!
//! `benches/compare` builds what it needs and calls it. Every figure is a median over pairs, and every
//! ratio is paired: machines change their speed from minute to minute, by more than trackers differ.

mod contender;
mod ratios;
mod sections;
mod veth;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Sets this tracker beside others
#[derive(Debug, Parser)]
#[command(name = "tsubame-rivals", version)]
pub(crate) struct Options {
    /// Where the other trackers and their load generators are
    #[arg(long)]
    rivals: PathBuf,
    /// Rounds in which each tracker is loaded once
    #[arg(long, default_value_t = 11)]
    pairs: usize,
    /// Seconds of load in a round
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// A look: 3 rounds of 1 second, small populations
    #[arg(long)]
    quick: bool,
    /// Core of the trackers
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// Core of the generator
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Requests a second at which processor time is compared: all trackers must be able to serve them
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// Sections to run: rate, saturated, tester, veth, memory, pauses, shards
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

impl Options {
    fn wants(&self, section: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == section)
    }
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.quick {
        (options.pairs, options.seconds) = (3, 1);
    }
    println!("{}", tsubame_bench::observe::machine());
    println!(
        "{} rounds of {} s; trackers on core {}, generator on core {}\n",
        options.pairs, options.seconds, options.server_cpu, options.load_cpu
    );
    match sections::all(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tsubame-rivals: {message}");
            ExitCode::FAILURE
        }
    }
}
