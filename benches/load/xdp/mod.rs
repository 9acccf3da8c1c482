//! `--xdp`: requests that are generated in the kernel and sent by the driver of an interface, whose replies are counted
//! before the network stack. It generates several times what sockets can, with fewer checks of the replies.

mod program;

use crate::options::{RequestMix, RunOptions};
use crate::population::SourceAddresses;
use crate::sources;
use crate::usage::Usage;
use program::{LoadProgram, LoadSettings, LoadTotals, now};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use tsubame_bench::record::{Latency, ServerUsage, StepRecord};

/// Maximum number of clients: each has a slot for its connection id.
const CLIENTS_MAX: u32 = 65_536;

/// Time for which replies are awaited after the last request.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// Percentiles of a record.
const PERCENTILES: [f64; 8] = [1.0, 10.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0];

/// Loads a tracker over an interface; returns the number of clients and the record of the run.
pub(crate) fn measure(run: &RunOptions, interface: &str) -> Result<(u32, StepRecord), String> {
    let [target] = run.targets.as_slice() else {
        return Err("--xdp needs exactly one tracker: udp://ADDRESS:PORT".to_owned());
    };
    let SocketAddr::V4(server) = target.address else {
        return Err("--xdp supports IPv4 only".to_owned());
    };
    if run.scenario.is_some() || run.fill {
        return Err("--xdp does not support --scenario and --fill".to_owned());
    }
    let (wanted, networks) = (run.sources.min(CLIENTS_MAX), &run.source_networks);
    let SourceAddresses { first, count, .. } =
        sources::choose(target.address, wanted, 1, networks)?;
    let IpAddr::V4(first_client) = first else { return Err("no IPv4 source address".to_owned()) };
    let device = Device::read(interface)?;
    let (connect_below, announce_below) = thresholds(&run.mix)?;
    let settings = LoadSettings {
        server_mac: hardware_address_of(*server.ip(), target.address)?,
        client_mac: device.mac,
        server: *server.ip(),
        port: server.port(),
        first_client,
        clients: count,
        torrents: run.torrents,
        numwant: run.numwant.into(),
        in_flight: run.in_flight as u32,
        interval_ns: run.rate.map_or(0, |rate| (1e9 / rate).round().clamp(1.0, 1e9) as u32),
        connect_below,
        announce_below,
    };
    let mut program = LoadProgram::attach(interface, device.index, &settings)?;
    program.send_for(*run.warmup)?;
    let before = program.totals()?;
    let latencies_before = program.latencies()?;
    let (usage, unsent_before) = (Usage::of(run), unsent(interface)?);
    let start = now();
    program.send_for(*run.duration)?;
    let seconds = start.elapsed().as_secs_f64();
    let server = usage.until_now(run);
    settle();
    let totals = program.totals()?.since(&before);
    let latencies = program.latencies()?;
    let latencies: Vec<u64> = latencies.iter().zip(latencies_before).map(|(a, b)| a - b).collect();
    let mut step = record(run, &totals, &latencies, seconds, server);
    step.generator.unsent = unsent(interface)? - unsent_before;
    step.generator.bottleneck = step.generator.unsent > 0;
    Ok((count, step))
}

fn record(
    run: &RunOptions,
    totals: &LoadTotals,
    latencies: &[u64],
    seconds: f64,
    server: Option<ServerUsage>,
) -> StepRecord {
    let sent = totals.connects_sent + totals.announces_sent;
    let answers = totals.connects + totals.announces + totals.others;
    let kinds =
        [("connect", totals.connects), ("announce", totals.announces), ("error", totals.others)];
    StepRecord {
        name: "xdp".to_owned(),
        seconds,
        rate: run.rate,
        sent,
        sent_unproven: totals.forged_sent,
        answered: kinds.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
        lost: sent.saturating_sub(answers),
        peers: totals.peers,
        latency: latency_of(latencies),
        server,
        ..StepRecord::default()
    }
}

/// Returns the thresholds that select the kind of a request: a random word below the first makes a connect, below the
/// second an announce, any other an announce with an invalid connection id.
fn thresholds(mix: &RequestMix) -> Result<(u32, u32), String> {
    let all = mix.connect + mix.announce + mix.forged;
    if mix.scrape + mix.garbage > 0.0 || all <= 0.0 {
        return Err("--xdp sends connect, announce and forged only; give these to --mix: \
                    connect=50,announce=50"
            .to_owned());
    }
    let below = |share: f64| (share / all * f64::from(u32::MAX)).round() as u32;
    Ok((below(mix.connect), below(mix.connect + mix.announce)))
}

/// Returns the latencies of a histogram, whose classes `load.c` defines.
fn latency_of(counts: &[u64]) -> Latency {
    /// Length of a unit of latency in microseconds.
    const UNIT_US: f64 = 1.024;
    let all: u64 = counts.iter().sum();
    let value = |class: usize| {
        let shift = (class / 8).saturating_sub(1);
        let upper = ((class - shift * 8 + 1) as f64) * f64::from(1_u32 << shift.min(31));
        upper * UNIT_US
    };
    let at = |percentile: f64| {
        let rank = (all as f64 * percentile / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        let class = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        class.map_or(0.0, value)
    };
    let sum: f64 =
        counts.iter().enumerate().map(|(class, count)| value(class) * *count as f64).sum();
    Latency {
        corrected: false,
        mean_us: sum / (all.max(1) as f64),
        max_us: at(100.0),
        percentiles: PERCENTILES.iter().map(|percentile| (*percentile, at(*percentile))).collect(),
    }
}

/// Returns the number of frames that the queue of the interface could not take.
fn unsent(interface: &str) -> Result<u64, String> {
    let path = format!("/sys/class/net/{interface}/statistics/tx_dropped");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    text.trim().parse().map_err(|error| format!("{path}: {error}"))
}

/// The interface that frames are sent from.
struct Device {
    index: u32,
    mac: [u8; 6],
}

impl Device {
    fn read(name: &str) -> Result<Self, String> {
        let read = |file: &str| {
            let path = format!("/sys/class/net/{name}/{file}");
            fs::read_to_string(&path).map_err(|error| format!("--xdp {name}: {path}: {error}"))
        };
        let index = read("ifindex")?.trim().parse();
        let mac = parse_mac(read("address")?.trim());
        match (index, mac) {
            (Ok(index), Some(mac)) => Ok(Self { index, mac }),
            _ => Err(format!("--xdp {name}: it is not an Ethernet interface")),
        }
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// Returns the hardware address of the tracker, after a datagram to it has made the kernel look it up.
fn hardware_address_of(ip: Ipv4Addr, address: SocketAddr) -> Result<[u8; 6], String> {
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"", address));
    sent.map_err(|error| format!("{address}: {error}"))?;
    let deadline = now() + Duration::from_secs(2);
    while now() < deadline {
        let table = fs::read_to_string("/proc/net/arp").unwrap_or_default();
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut rows = rows.filter(|row| row.first() == Some(&ip.to_string().as_str()));
        let mac = rows.find_map(|row| parse_mac(row.get(3)?)).filter(|mac| *mac != [0; 6]);
        if let Some(mac) = mac {
            return Ok(mac);
        }
        settle();
    }
    Err(format!(
        "{ip} has no hardware address; --xdp needs a tracker on the network of the interface"
    ))
}

#[expect(clippy::disallowed_methods, reason = "between two steps of a run")]
fn settle() {
    std::thread::sleep(SETTLE_TIME);
}
