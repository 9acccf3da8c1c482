//! `tsubame-load`: puts a tracker under the load of a population, and says what it answers and how fast.

mod check;
mod clients;
mod engine;
mod flight;
mod html;
mod options;
mod pace;
mod plot;
mod population;
mod progress;
mod sources;
mod summary;
mod tally;
#[cfg(test)]
mod tests;
mod udp;

use clap::Parser;
use engine::{Engine, Wire};
use options::{Cli, Command, Run};
use population::{Population, info_hash};
use std::io;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tsubame_bench::batch::{BatchSocket, Name, ReceiveBatch, SEGMENTS_MAX, SendBatch};
use tsubame_bench::observe;
use tsubame_bench::record::Record;

/// Peers for each torrent of a public tracker
const PEERS_PER_TORRENT: f64 = 2.45;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Compare { records, html }) => compare(&records, html.as_deref()),
        Some(Command::Hashes { torrents }) => print_hashes(torrents),
        None => run(&cli.run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tsubame-load: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does a run and reports it
fn run(run: &Run) -> Result<(), String> {
    let record = measure(run)?;
    if !run.quiet {
        print!("{}", summary::of_run(&record));
    }
    if let Some(path) = &run.json {
        record.write(path).map_err(|error| format!("--json {}: {error}", path.display()))?;
    }
    write_html(run.html.as_deref(), &[record])
}

/// Does a run
fn measure(run: &Run) -> Result<Record, String> {
    let steps = run.steps()?;
    check_limits(run)?;
    let peers = run.peers.unwrap_or((f64::from(run.torrents) * PEERS_PER_TORRENT) as u32).max(1);
    let (groups, wires) = open(run, peers)?;
    let population = Population::new(run.torrents, run.shape, &groups, run.churn)?;
    let peers = population.peers();
    let mut engine = Engine::new(run, wires, population);
    let mut incoming = ReceiveBatch::default();
    engine.connect_all(&mut incoming).map_err(|error| error.to_string())?;
    let mut recorded = Vec::new();
    for step in &steps {
        let done = engine.step(step, &mut incoming);
        recorded.extend(done.map_err(|error| format!("step {:?}: {error}", step.name))?);
    }
    let targets: Vec<String> = run.targets.iter().map(|target| target.url.clone()).collect();
    Ok(Record {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: run.name.clone().unwrap_or_else(|| targets.join(" ")),
        targets,
        command: std::env::args().collect::<Vec<_>>().join(" "),
        seed: run.seed,
        torrents: run.torrents,
        peers,
        machine: observe::machine(),
        steps: recorded,
    })
}

fn check_limits(run: &Run) -> Result<(), String> {
    let is_share = |value: f64| (0.0..=1.0).contains(&value);
    let limits = [
        ("--torrents", run.torrents > 0, "at least 1"),
        ("--in-flight", (1..=100_000).contains(&run.in_flight), "1 to 100,000"),
        ("--rate", run.rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "above 0"),
        ("--segments", (1..=SEGMENTS_MAX as u16).contains(&run.segments), "1 to 64"),
        ("--scrape-torrents", (1..=74).contains(&run.scrape_torrents), "1 to 74"),
        ("--numwant", run.numwant <= 1_000, "at most 1,000"),
        ("--churn", is_share(run.churn), "a share, 0 to 1"),
        ("--ipv6", is_share(run.ipv6), "a share, 0 to 1"),
        ("--sources", run.sources > 0, "at least 1"),
        ("--timeout", (1..=60_000).contains(&run.timeout.as_millis()), "1ms to 60s"),
    ];
    match limits.iter().find(|(_, holds, _)| !holds) {
        Some((flag, _, range)) => Err(format!("{flag} must be {range}")),
        None => Ok(()),
    }
}

type Groups = (Vec<(population::Sources, u32)>, Vec<Wire>);

/// Opens a socket for each family that has a target, and shares the peers out among them
fn open(run: &Run, peers: u32) -> Result<Groups, String> {
    let of_family = |v6: bool| run.targets.iter().filter(move |t| t.address.is_ipv6() == v6);
    if run.targets.is_empty() {
        return Err("no tracker is given; the last argument is udp://HOST:PORT".to_owned());
    }
    if of_family(false).count() > 1 || of_family(true).count() > 1 {
        return Err("two trackers of one address family are given; one of each at most".to_owned());
    }
    let both = run.targets.len() == 2;
    let (mut groups, mut wires) = (Vec::new(), Vec::new());
    for target in of_family(false).chain(of_family(true)) {
        let share = match (both, target.address.is_ipv6()) {
            (false, _) => 1.0,
            (true, false) => 1.0 - run.ipv6,
            (true, true) => run.ipv6,
        };
        let peers = ((f64::from(peers) * share) as u32).max(1);
        let sources = sources::choose(target.address, run.sources, peers, &run.source_networks)?;
        let any: SocketAddr = match target.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket =
            BatchSocket::bind(any).map_err(|error| format!("cannot open a socket: {error}"))?;
        let (to, url, out) = (Name::from(target.address), target.url.clone(), SendBatch::default());
        groups.push((sources, peers));
        wires.push(Wire { socket, to, url, out });
    }
    Ok((groups, wires))
}

/// Sets runs side by side
fn compare(paths: &[PathBuf], html: Option<&Path>) -> Result<(), String> {
    let read = |path: &PathBuf| {
        Record::read(path)
            .map_err(|error| format!("{}: not a record of a run: {error}", path.display()))
    };
    let records: Vec<Record> = paths.iter().map(read).collect::<Result<_, _>>()?;
    print!("{}", summary::of_comparison(&records));
    write_html(html, &records)
}

fn write_html(path: Option<&Path>, records: &[Record]) -> Result<(), String> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, html::report(records))
        .map_err(|error| format!("--html {}: {error}", path.display()))
}

/// Prints info hashes, as lists of permitted torrents have them
fn print_hashes(torrents: u32) -> Result<(), String> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut print = || -> io::Result<()> {
        for torrent in 0..torrents {
            for byte in info_hash(torrent) {
                write!(out, "{byte:02x}")?;
            }
            writeln!(out)?;
        }
        out.flush()
    };
    print().map_err(|error| format!("cannot write info hashes: {error}"))
}
