//! `tsubame-load`: puts a tracker under the load of a population, and says what it answers and how fast.

mod books;
mod check;
mod clients;
mod datagrams;
mod engine;
mod flight;
mod html;
mod http;
mod options;
mod pace;
mod plot;
mod population;
mod progress;
mod protocol;
mod sources;
mod streams;
mod summary;
mod tally;
#[cfg(test)]
mod tests;
mod udp;

use clap::Parser;
use datagrams::Datagrams;
use engine::{Engine, Transport};
use http::Paths;
use options::{Action, Cli, Command, Flood, Mix, Protocol, Run, Step, Target};
use population::{Population, info_hash};
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use streams::Streams;
use tsubame_bench::batch::SEGMENTS_MAX;
use tsubame_bench::observe;
use tsubame_bench::record::{self, Record};

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
    let groups = groups(run, peers)?;
    let (peers, recorded) = match groups[0].0.protocol {
        Protocol::Udp => measure_udp(run, &steps, &groups)?,
        Protocol::Http => measure_http(run, &steps, &groups)?,
    };
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

/// Targets in the order of the population's groups, with the peers of each
fn groups(run: &Run, peers: u32) -> Result<Vec<(&Target, u32)>, String> {
    let of_family = |v6: bool| run.targets.iter().filter(move |t| t.address.is_ipv6() == v6);
    let Some(first) = run.targets.first() else {
        return Err(
            "no tracker is given; the last argument is its URL, as udp://HOST:PORT".to_owned()
        );
    };
    if of_family(false).count() > 1 || of_family(true).count() > 1 {
        return Err("two trackers of one address family are given; one of each at most".to_owned());
    }
    if run.targets.iter().any(|target| target.protocol != first.protocol) {
        return Err("a UDP and an HTTP tracker are given; one protocol for a run".to_owned());
    }
    let share = |target: &Target| match (run.targets.len(), target.address.is_ipv6()) {
        (1, _) => 1.0,
        (_, false) => 1.0 - run.ipv6,
        (_, true) => run.ipv6,
    };
    let targets = of_family(false).chain(of_family(true));
    Ok(targets.map(|t| (t, ((f64::from(peers) * share(t)) as u32).max(1))).collect())
}

fn measure_udp(
    run: &Run,
    steps: &[Step],
    groups: &[(&Target, u32)],
) -> Result<(u32, Vec<record::Step>), String> {
    let sources = groups.iter().map(|(target, peers)| {
        let sources = sources::choose(target.address, run.sources, *peers, &run.source_networks)?;
        Ok((sources, *peers))
    });
    let sources: Vec<_> = sources.collect::<Result<_, String>>()?;
    let population = Population::new(run.torrents, run.shape, &sources, run.churn)?;
    let targets: Vec<_> = groups.iter().map(|(target, _)| *target).collect();
    let datagrams = Datagrams::open(run, &targets, &population)?;
    do_steps(run, steps, datagrams, population)
}

fn measure_http(
    run: &Run,
    steps: &[Step],
    groups: &[(&Target, u32)],
) -> Result<(u32, Vec<record::Step>), String> {
    let loads = steps.iter().filter_map(|step| match &step.action {
        Action::Load(load) => Some(load),
        _ => None,
    });
    if run.segments > 1 || loads.clone().any(|load| load.flood != Flood::default()) {
        return Err("--segments and floods are of datagrams; there are none over HTTP".to_owned());
    }
    let asks = |mix: &Mix| mix.announce + mix.scrape > 0.0;
    if !asks(&run.mix) || !loads.clone().all(|load| asks(&load.mix)) {
        return Err("--mix asks for nothing that there is over HTTP: announces, scrapes".to_owned());
    }
    // Each connection is a file.
    tsubame::run::raise_file_limit();
    let scrapes = run.mix.scrape > 0.0 || loads.clone().any(|load| load.mix.scrape > 0.0);
    let links = loads.map(|load| load.in_flight).chain([run.in_flight]).max().unwrap_or(1);
    let all: u32 = groups.iter().map(|(_, peers)| peers).sum();
    let (mut counts, mut sources) = (Vec::new(), Vec::new());
    for (target, peers) in groups {
        if scrapes && !Paths::new(&target.authority, &target.path).has_scrape() {
            return Err(format!(
                "{}: its last part is not announce, so there is no scrape path (BEP 48); leave scrapes out, as \
                 --mix announce=1",
                target.url
            ));
        }
        let count = (links as f64 * f64::from(*peers) / f64::from(all)).ceil() as usize;
        // A connection that is kept belongs to one address.
        let wanted = if run.close { run.sources } else { run.sources.min(count as u32) };
        let chosen = sources::choose(target.address, wanted, *peers, &run.source_networks)?;
        if !run.close && chosen.count as usize > count {
            return Err(format!(
                "{peers} peers need {} addresses, each with a connection of its own; give --in-flight {} or more, \
                 or --close",
                chosen.count,
                u64::from(chosen.count) * u64::from(all) / u64::from(*peers) + 1
            ));
        }
        counts.push(count);
        sources.push((chosen, *peers));
    }
    let population = Population::new(run.torrents, run.shape, &sources, run.churn)?;
    let targets: Vec<_> = groups.iter().map(|(target, _)| *target).collect();
    let streams = Streams::new(&targets, &counts, &population, run.close)?;
    do_steps(run, steps, streams, population)
}

/// Does the steps of a run; returns the number of peers, and what came of each step
fn do_steps(
    run: &Run,
    steps: &[Step],
    transport: impl Transport,
    population: Population,
) -> Result<(u32, Vec<record::Step>), String> {
    let peers = population.peers();
    let engine = Engine::new(run, transport, population);
    let mut engine = engine.map_err(|error| error.to_string())?;
    let mut recorded = Vec::new();
    for step in steps {
        let done = engine.step(step);
        recorded.extend(done.map_err(|error| format!("step {:?}: {error}", step.name))?);
    }
    Ok((peers, recorded))
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
