//! `tsubame-load`: loads a tracker with the requests of a simulated population of clients, checks the replies, and
//! reports rates and latency.

mod check;
mod clients;
mod context;
mod datagrams;
mod engine;
mod html;
mod http;
mod in_flight;
mod options;
mod pace;
mod plot;
mod population;
mod progress;
mod protocol;
mod session;
mod sources;
mod step_stats;
mod streams;
mod summary;
#[cfg(test)]
mod tests;
mod udp;
mod usage;
mod xdp;

use clap::{CommandFactory, Parser};
use datagrams::UdpTransport;
use engine::{Engine, Transport};
use http::HttpPaths;
use options::{
    Flood, LoadAction, LoadCli, LoadCommand, LoadProtocol, LoadStep, RequestMix, RunOptions, Target,
};
use population::{Population, info_hash};
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use streams::HttpTransport;
use tsubame::cli::manual;
use tsubame_bench::batch::SEGMENTS_MAX;
use tsubame_bench::observe;
use tsubame_bench::record::{self, Record};

/// Average number of peers of a torrent on a public tracker.
const PEERS_PER_TORRENT: f64 = 2.45;

fn main() -> ExitCode {
    let cli = LoadCli::parse();
    let done = match cli.command {
        Some(LoadCommand::Compare { records, html }) => compare(&records, html.as_deref()),
        Some(LoadCommand::Hashes { torrents }) => print_hashes(torrents),
        Some(LoadCommand::Completions { shell }) => {
            print!("{}", manual::completions(shell, LoadCli::command()));
            Ok(())
        }
        Some(LoadCommand::Man { directory }) => {
            manual::write_man_pages(&directory, LoadCli::command())
                .map_err(|error| format!("{}: {error}", directory.display()))
        }
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

/// Performs a run and writes its reports.
fn run(run: &RunOptions) -> Result<(), String> {
    let record = measure(run)?;
    if !run.quiet {
        print!("{}", summary::of_run(&record));
    }
    if let Some(path) = &run.json {
        record.write(path).map_err(|error| format!("--json {}: {error}", path.display()))?;
    }
    write_html(run.html.as_deref(), &[record])
}

/// Performs a run and returns its record.
fn measure(run: &RunOptions) -> Result<Record, String> {
    let steps = run.steps()?;
    check_limits(run)?;
    let peers = run.peers.unwrap_or((f64::from(run.torrents) * PEERS_PER_TORRENT) as u32).max(1);
    let groups = groups(run, peers)?;
    let (peers, recorded) = match (groups[0].0.protocol, &run.xdp) {
        (LoadProtocol::Udp, Some(interface)) => {
            let (clients, recorded) = xdp::measure(run, interface)?;
            (clients, vec![recorded])
        }
        (LoadProtocol::Udp, None) => measure_udp(run, &steps, &groups)?,
        (LoadProtocol::Http, None) => measure_http(run, &steps, &groups)?,
        (LoadProtocol::Http, Some(_)) => return Err("--xdp is for UDP only".to_owned()),
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
        settings: context::settings(run),
        placement: context::placement(run),
        steps: recorded,
    })
}

/// Checks that the values of the options are in their ranges.
fn check_limits(run: &RunOptions) -> Result<(), String> {
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
    match limits.iter().find(|(_, is_valid, _)| !is_valid) {
        Some((flag, _, range)) => Err(format!("{flag} must be {range}")),
        None => Ok(()),
    }
}

/// Returns the targets, IPv4 before IPv6, each with its number of peers. The population has a group of peers for each
/// target, in this order.
fn groups(run: &RunOptions, peers: u32) -> Result<Vec<(&Target, u32)>, String> {
    let of_family = |v6: bool| run.targets.iter().filter(move |t| t.address.is_ipv6() == v6);
    let Some(first) = run.targets.first() else {
        return Err(
            "no tracker is given; add its URL as the last argument: udp://HOST:PORT".to_owned()
        );
    };
    if of_family(false).count() > 1 || of_family(true).count() > 1 {
        return Err("two trackers of the same address family are given; give at most one of each"
            .to_owned());
    }
    if run.targets.iter().any(|target| target.protocol != first.protocol) {
        return Err("a UDP and an HTTP tracker are given; a run supports one protocol".to_owned());
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
    run: &RunOptions,
    steps: &[LoadStep],
    groups: &[(&Target, u32)],
) -> Result<(u32, Vec<record::StepRecord>), String> {
    let sources = groups.iter().map(|(target, peers)| {
        let sources = sources::choose(target.address, run.sources, *peers, &run.source_networks)?;
        Ok((sources, *peers))
    });
    let sources: Vec<_> = sources.collect::<Result<_, String>>()?;
    let population = Population::new(run.torrents, run.shape, &sources, run.churn)?;
    let targets: Vec<_> = groups.iter().map(|(target, _)| *target).collect();
    let datagrams = UdpTransport::open(run, &targets, &population)?;
    do_steps(run, steps, datagrams, population)
}

fn measure_http(
    run: &RunOptions,
    steps: &[LoadStep],
    groups: &[(&Target, u32)],
) -> Result<(u32, Vec<record::StepRecord>), String> {
    let loads = steps.iter().filter_map(|step| match &step.action {
        LoadAction::Load(load) => Some(load),
        _ => None,
    });
    if run.segments > 1 || loads.clone().any(|load| load.flood != Flood::default()) {
        return Err("--segments and floods are available over UDP only".to_owned());
    }
    let has_requests = |mix: &RequestMix| mix.announce + mix.scrape > 0.0;
    if !has_requests(&run.mix) || !loads.clone().all(|load| has_requests(&load.mix)) {
        return Err(
            "--mix has no request that exists over HTTP: give announce or scrape".to_owned()
        );
    }
    // Each connection uses a file descriptor.
    tsubame::process::run::raise_file_limit();
    let scrapes = run.mix.scrape > 0.0 || loads.clone().any(|load| load.mix.scrape > 0.0);
    let connections = loads.map(|load| load.in_flight).chain([run.in_flight]).max().unwrap_or(1);
    let all_peers: u32 = groups.iter().map(|(_, peers)| peers).sum();
    let (mut connection_counts, mut sources) = (Vec::new(), Vec::new());
    for (target, peers) in groups {
        if scrapes && !HttpPaths::new(&target.authority, &target.path).has_scrape() {
            return Err(format!(
                "{}: the path does not end in announce, so there is no scrape path (BEP 48); leave scrapes out: \
                 --mix announce=1",
                target.url
            ));
        }
        let connections_of_target =
            (connections as f64 * f64::from(*peers) / f64::from(all_peers)).ceil() as usize;
        // A persistent connection belongs to one source address.
        let wanted =
            if run.close { run.sources } else { run.sources.min(connections_of_target as u32) };
        let chosen = sources::choose(target.address, wanted, *peers, &run.source_networks)?;
        if !run.close && chosen.count as usize > connections_of_target {
            return Err(format!(
                "{peers} peers need {} addresses, each with its own connection; give --in-flight {} or more, \
                 or --close",
                chosen.count,
                u64::from(chosen.count) * u64::from(all_peers) / u64::from(*peers) + 1
            ));
        }
        connection_counts.push(connections_of_target);
        sources.push((chosen, *peers));
    }
    let population = Population::new(run.torrents, run.shape, &sources, run.churn)?;
    let targets: Vec<_> = groups.iter().map(|(target, _)| *target).collect();
    let streams = HttpTransport::new(&targets, &connection_counts, &population, run.close)?;
    do_steps(run, steps, streams, population)
}

/// Performs the steps of a run. Returns the number of peers, and the records of the steps.
fn do_steps(
    run: &RunOptions,
    steps: &[LoadStep],
    transport: impl Transport,
    population: Population,
) -> Result<(u32, Vec<record::StepRecord>), String> {
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

/// Prints a comparison of runs.
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

/// Prints info hashes, one per line, in the format of a list of permitted torrents.
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
