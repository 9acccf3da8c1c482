//! Several nodes: what the exchange of changes costs, how long it takes, and the same work with Redis.

use crate::RivalsOptions;
use crate::ratios::{median, quantile, ratio_quartiles};
use crate::redis;
use crate::sections::{Load, loopback};
use crate::tracker::{TrackerKind, TrackerProcess, pinned, wait};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tsubame::clock::Clock;
use tsubame_bench::observe;

/// Announces per second at each node.
const RATE: u32 = 20_000;

/// Announces per second at which the bytes on the wire are measured.
const WIRE_RATE: u32 = 100_000;

/// Number of torrents of the population of each node.
const TORRENTS: u32 = 50_000;

/// Number of announces whose delay is measured.
const PROBES: u32 = 500;

/// Networks of the peers of each node, so that each has peers of its own.
const NETWORKS: [&str; 3] = ["127.2.0.0/16", "127.3.0.0/16", "127.4.0.0/16"];

/// A NATS server, which is killed when dropped.
struct Nats {
    process: Child,
    port: u16,
}

impl Nats {
    fn start(cpu: usize) -> Result<Self, String> {
        let port = free_tcp_port()?;
        let mut command = pinned(None, cpu, cpu);
        command.args(["nats-server", "-a", "127.0.0.1", "-p", &port.to_string()]);
        let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = started.map_err(|error| format!("nats-server: {error}"))?;
        let nats = Self { process, port };
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(nats);
            }
            wait(Duration::from_millis(20));
        }
        Err("nats-server does not listen; install it".to_owned())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A node, and the address of its control plane.
struct MeasuredNode {
    tracker: TrackerProcess,
    control: SocketAddr,
}

/// Starts trackers on one core, as nodes of a cluster if a NATS server is given.
fn start(
    options: &RivalsOptions,
    count: usize,
    nats: Option<&Nats>,
) -> Result<Vec<MeasuredNode>, String> {
    let node = |number: usize| {
        let control = SocketAddr::from(([127, 0, 0, 1], free_tcp_port()?));
        let mut setup = loopback(options, TORRENTS);
        setup.control = Some(control);
        setup.cluster = nats.map(|nats| {
            format!("{{servers: \"nats://127.0.0.1:{}\", node: node{number}}}", nats.port)
        });
        let tracker = TrackerProcess::start(TrackerKind::OURS, &setup)?;
        Ok(MeasuredNode { tracker, control })
    };
    let nodes = (0..count).map(node).collect::<Result<Vec<_>, String>>()?;
    for node in nodes.iter().filter(|_| nats.is_some()) {
        wait_for(|| Ok(node.metric("tsubame_cluster_node_up{")? == (count - 1) as f64))?;
    }
    Ok(nodes)
}

/// Waits until a condition holds.
fn wait_for(holds: impl Fn() -> Result<bool, String>) -> Result<(), String> {
    for _ in 0..1_000 {
        if holds()? {
            return Ok(());
        }
        wait(Duration::from_millis(20));
    }
    Err("the nodes do not find each other".to_owned())
}

impl MeasuredNode {
    /// Returns the sum of the metrics whose lines begin so.
    fn metric(&self, name: &str) -> Result<f64, String> {
        let failed = |error: std::io::Error| format!("/metrics: {error}");
        let mut stream = TcpStream::connect(self.control).map_err(failed)?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut page = String::new();
        stream.read_to_string(&mut page).map_err(failed)?;
        let lines = page.lines().filter(|line| line.starts_with(name));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

/// Runs all measurements.
pub(crate) fn run(options: &RivalsOptions) -> Result<(), String> {
    if Command::new("nats-server").arg("--version").output().is_err() {
        println!("## cluster\n\nSkipped: nats-server is not installed\n");
        return Ok(());
    }
    processor_time(options, "10 %", CHURN, &CASES)?;
    processor_time(options, "all", "--churn=1", &CASES[..3])?;
    delay(options)?;
    wire(options)?;
    redis::run(options)
}

/// Loads nodes at the same time, each with a population of its own, of which the first has the number `populations`;
/// returns the processor time of an answer in microseconds, over all nodes.
fn load(
    options: &RivalsOptions,
    nodes: &[MeasuredNode],
    populations: usize,
    (rate, arguments): (u32, &[&str]),
) -> Result<f64, String> {
    let busy = || nodes.iter().filter_map(|node| observe::processor_time_s(node.tracker.id()));
    let before: f64 = busy().sum();
    let answered = std::thread::scope(|scope| {
        let runs: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(number, node)| {
                let population = (number + populations) % nodes.len();
                scope.spawn(move || {
                    let mut load = Load::new(options);
                    load.sources = Some(NETWORKS[population]);
                    let address = SocketAddr::new([127, 0, 0, 1].into(), node.tracker.port);
                    let (rate, torrents) =
                        (format!("--rate={rate}"), format!("--torrents={TORRENTS}"));
                    let seed = format!("--seed={}", 1 + population);
                    let common = ["--mix=announce=1", "--check=0", "--shared"];
                    let own = [rate.as_str(), &torrents, &seed];
                    let arguments = [&common[..], &own, arguments].concat();
                    load.run_at((node.tracker.kind, address), &arguments)
                })
            })
            .collect();
        let mut answered = 0;
        for run in runs {
            let step = run.join().map_err(|_| "the load has panicked".to_owned())??;
            answered += step.answered.values().sum::<u64>();
        }
        Ok::<u64, String>(answered)
    })?;
    let after: f64 = busy().sum();
    // With the warm-up, whose answers are not counted.
    let seconds = options.seconds as f64;
    Ok((after - before) / answered as f64 * 1e6 * seconds / (seconds + WARMUP_SECS))
}

/// Seconds of load before the measurement.
const WARMUP_SECS: f64 = 0.5;

/// Share of announces with which a peer completes or stops.
const CHURN: &str = "--churn=0.1";

/// Number of trackers, and whether they are nodes of a cluster.
const CASES: [(usize, bool); 5] = [(1, false), (2, false), (2, true), (3, false), (3, true)];

/// Measures what an answer costs if this share of announces completes, stops or joins.
fn processor_time(
    options: &RivalsOptions,
    share: &str,
    churn: &str,
    cases: &[(usize, bool)],
) -> Result<(), String> {
    println!(
        "## cluster: processor time of an answer at {RATE} announces per second at each tracker, of which {share} \
         complete, stop or join\n\n\
         | | us an answer | ratio to as many trackers with the same swarms | ratio to one tracker |\n\
         |---|---|---|---|"
    );
    let nats = Nats::start(options.load_cpu)?;
    let mut results = vec![Vec::new(); cases.len()];
    for round in 0..options.rounds {
        for turn in 0..cases.len() {
            let at = (round + turn) % cases.len();
            let (count, is_cluster) = cases[at];
            let nodes = start(options, count, is_cluster.then_some(&nats))?;
            // All trackers have the peers of all, so that the swarms are the same with a cluster and without.
            for populations in 0..if is_cluster { 1 } else { count } {
                load(options, &nodes, populations, (RATE, &["--fill", churn]))?;
            }
            results[at].push(load(options, &nodes, 0, (RATE, &[churn]))?);
        }
    }
    let names = ["1 tracker", "2 trackers", "2 nodes", "3 trackers", "3 nodes"];
    for (at, name) in names.iter().enumerate().take(cases.len()) {
        let without = match cases[at] {
            (_, false) => "".to_owned(),
            (_, true) => ratio_quartiles(&results[at], &results[at - 1]),
        };
        println!(
            "| {name} | {:.2} | {without} | {} |",
            median(&results[at]),
            ratio_quartiles(&results[at], &results[0])
        );
    }
    println!();
    Ok(())
}

/// Measures the time from an announce at one node until another one counts it, while both are loaded.
fn delay(options: &RivalsOptions) -> Result<(), String> {
    let nats = Nats::start(options.load_cpu)?;
    let nodes = start(options, 2, Some(&nats))?;
    let mut loaded = options.clone();
    loaded.seconds = 20;
    let delays = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&loaded, &nodes, 0, (RATE, &[CHURN])));
        wait(Duration::from_secs(3));
        let delays = (0..PROBES).map(|number| probe(&nodes, number)).collect::<Result<Vec<_>, _>>();
        load.join().map_err(|_| "the load has panicked".to_owned())??;
        delays
    })?;
    println!(
        "## cluster: milliseconds from an announce at one node until the other one counts it, at {RATE} announces per \
         second each\n\n| p50 | p90 | p99 | max |\n|---|---|---|---|\n| {:.1} | {:.1} | {:.1} | {:.1} |\n",
        quantile(&delays, 0.5),
        quantile(&delays, 0.9),
        quantile(&delays, 0.99),
        quantile(&delays, 1.0)
    );
    Ok(())
}

/// Announces a peer of a new torrent at the first node; returns the milliseconds until the second one counts it.
fn probe(nodes: &[MeasuredNode], number: u32) -> Result<f64, String> {
    let clock = Clock::new();
    let clients = nodes.iter().map(|node| UdpClient::new(node.tracker.port));
    let clients = clients.collect::<Result<Vec<_>, _>>()?;
    let mut info_hash = [0xee; 20];
    info_hash[..4].copy_from_slice(&number.to_be_bytes());
    let mut announce = [0; 82];
    announce[..20].copy_from_slice(&info_hash);
    announce[76..78].copy_from_slice(&[0xff, 0xff]);
    announce[80..].copy_from_slice(&7_001_u16.to_be_bytes());
    let started = clock.elapsed();
    clients[0].ask(1, &announce)?;
    loop {
        let reply = clients[1].ask(2, &info_hash)?;
        let waited = clock.elapsed().saturating_sub(started);
        if reply.get(8..12).is_some_and(|seeders| seeders != [0; 4]) {
            return Ok(waited.as_secs_f64() * 1e3);
        }
        if waited > Duration::from_secs(5) {
            return Err("a peer was not passed on".to_owned());
        }
        wait(Duration::from_millis(1));
    }
}

/// A client over UDP with a connection id.
struct UdpClient {
    socket: UdpSocket,
    id: [u8; 8],
}

impl UdpClient {
    fn new(port: u16) -> Result<Self, String> {
        let failed = |error: std::io::Error| error.to_string();
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(failed)?;
        socket.connect(("127.0.0.1", port)).map_err(failed)?;
        socket.set_read_timeout(Some(Duration::from_millis(500))).map_err(failed)?;
        let mut client = Self { socket, id: 0x0417_2710_1980_u64.to_be_bytes() };
        let reply = client.ask(0, &[])?;
        client.id = *reply[8..].first_chunk().ok_or("the reply to a connect is too short")?;
        Ok(client)
    }

    /// Sends a request until it is answered.
    fn ask(&self, action: u32, body: &[u8]) -> Result<Vec<u8>, String> {
        let head = [self.id.as_slice(), &action.to_be_bytes(), &[0, 0, 0, 7]].concat();
        for _ in 0..10 {
            self.socket.send(&[&head, body].concat()).map_err(|error| error.to_string())?;
            let mut reply = vec![0; 2_048];
            if let Ok(len) = self.socket.recv(&mut reply) {
                reply.truncate(len);
                return Ok(reply);
            }
        }
        Err("no reply".to_owned())
    }
}

/// Measures the bytes that a node sends.
fn wire(options: &RivalsOptions) -> Result<(), String> {
    let nats = Nats::start(options.load_cpu)?;
    let nodes = start(options, 1, Some(&nats))?;
    load(options, &nodes, 0, (WIRE_RATE, &["--fill", CHURN]))?;
    let names = ["bytes", "changes", "batches"];
    let read = || {
        let value =
            |name| nodes[0].metric(&format!("tsubame_cluster_{name}_total{{direction=\"sent\"}}"));
        names.into_iter().map(value).collect::<Result<Vec<f64>, String>>()
    };
    let before = read()?;
    load(options, &nodes, 0, (WIRE_RATE, &[CHURN]))?;
    let after = read()?;
    let seconds = options.seconds as f64 + WARMUP_SECS;
    let rates: Vec<f64> =
        after.iter().zip(&before).map(|(after, before)| (after - before) / seconds).collect();
    println!(
        "## cluster: what a node sends at {WIRE_RATE} announces per second\n\n\
         | KB a second | changes a second | batches a second | bytes a change |\n|---|---|---|---|\n\
         | {:.0} | {:.0} | {:.0} | {:.1} |\n",
        rates[0] / 1e3,
        rates[1],
        rates[2],
        rates[0] / rates[1]
    );
    Ok(())
}

/// Returns a TCP port that is free at the moment.
pub(crate) fn free_tcp_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}
