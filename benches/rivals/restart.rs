//! Restarts and upgrades of trackers under load: which share of the swarms is known afterwards, and what is lost.

use crate::RivalsOptions;
use crate::sections::{Load, fill_publicly, kinds, loopback};
use crate::tracker::{TrackerKind, TrackerProcess, beside, wait};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;
use tsubame::hex;

/// Requests per second during the restart.
const RATE: u32 = 50_000;

/// Receive buffer in bytes.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Seconds of load, and time after which the tracker is restarted.
const LOAD_SECS: u64 = 20;
const RESTARTED_AFTER: Duration = Duration::from_secs(3);

/// Time after the restart at which the swarms are counted.
const COUNTED_AFTER: Duration = Duration::from_secs(10);

/// Number of torrents that the load announces to. They are not counted.
const LOADED_TORRENTS: usize = 1_000;

/// Number of torrents that are counted.
const SAMPLED_TORRENTS: usize = 10_000;

/// Number of torrents of a scrape: aquatic_udp receives at most 512 bytes with io_uring.
const SCRAPE_TORRENTS: usize = 20;

/// How the process of a tracker is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replacement {
    Restart,
    Upgrade,
}

/// Restarts each tracker under load, and upgrades this one.
pub(crate) fn run(options: &RivalsOptions) -> Result<(), String> {
    let torrents = if options.quick { 100_000 } else { 1_000_000 };
    println!(
        "## restart with {torrents} torrents, {RATE} requests per second\n\n\
         | | peers known after {} s | requests | lost | longest gap ms | resident MiB before | after |\n\
         |---|---|---|---|---|---|---|",
        COUNTED_AFTER.as_secs()
    );
    let others = kinds(options, |kind| kind != TrackerKind::AquaticMio);
    let restarts = others.into_iter().map(|kind| (kind, Replacement::Restart));
    for (kind, replacement) in restarts.chain([(TrackerKind::OURS, Replacement::Upgrade)]) {
        let name = match replacement {
            Replacement::Restart => "restart",
            Replacement::Upgrade => "upgrade",
        };
        // One tracker that fails does not keep the others from being measured.
        let row = replace(options, torrents, kind, replacement);
        let row = row.unwrap_or_else(|error| format!("{error} | | | | |"));
        println!("| {}, {name} | {row} |", kind.name());
    }
    println!();
    Ok(())
}

/// Replaces the process of a tracker under load; returns the cells of its row.
fn replace(
    options: &RivalsOptions,
    torrents: u32,
    kind: TrackerKind,
    replacement: Replacement,
) -> Result<String, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut setup = loopback(options, torrents);
    setup.directory = Some(directory.path().to_owned());
    // The default of this tracker: a small buffer holds only 2 ms at this rate, less than a process takes to start.
    setup.receive_buffer = RECEIVE_BUFFER;
    let mut tracker = TrackerProcess::start(kind, &setup)?;
    let mut load = Load::new(options);
    fill_publicly(&load, &tracker, &setup)?;
    let sample = sample(torrents)?;
    let address = SocketAddr::new(setup.ip, tracker.port);
    let before = count(address, &sample)?;
    let resident = tracker.resident_bytes();
    load.seconds = LOAD_SECS;
    let loaded = std::thread::scope(|scope| {
        let (load, kind) = (&load, tracker.kind);
        let loaded = scope.spawn(move || {
            let (rate, torrents) =
                (format!("--rate={RATE}"), format!("--torrents={LOADED_TORRENTS}"));
            let arguments = ["--mix=connect=5,announce=95", "--check=0", &rate, &torrents];
            load.run_at((kind, address), &arguments)
        });
        wait(RESTARTED_AFTER);
        let replaced = match replacement {
            Replacement::Restart => tracker.restart(),
            Replacement::Upgrade => tracker.upgrade(),
        };
        wait(COUNTED_AFTER);
        let after = count(address, &sample);
        let step = loaded.join().map_err(|_| "the load has panicked".to_owned());
        replaced.and_then(|()| Ok((step??, after?)))
    });
    let (step, after) = loaded?;
    Ok(format!(
        "{:.2} % | {} | {} | {:.1} | {:.0} | {:.0}",
        after as f64 / before as f64 * 100.0,
        step.sent,
        step.lost,
        step.gap_ms_max,
        resident as f64 / 1_048_576.0,
        tracker.resident_bytes() as f64 / 1_048_576.0,
    ))
}

/// Returns info hashes of the population, without those that the load announces to.
fn sample(torrents: u32) -> Result<Vec<[u8; 20]>, String> {
    let list = Command::new(beside("tsubame-load")?)
        .args(["hashes", "--torrents", &torrents.to_string()])
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    let hashes: Vec<_> = text.lines().skip(LOADED_TORRENTS).filter_map(hex::decode::<20>).collect();
    let step = (hashes.len() / SAMPLED_TORRENTS).max(1);
    Ok(hashes.into_iter().step_by(step).take(SAMPLED_TORRENTS).collect())
}

/// Scrapes torrents; returns the number of their peers.
fn count(tracker: SocketAddr, sample: &[[u8; 20]]) -> Result<u64, String> {
    let failed = |error: std::io::Error| format!("scrape: {error}");
    let socket = UdpSocket::bind(("127.0.0.1", 0)).map_err(failed)?;
    socket.connect(tracker).map_err(failed)?;
    socket.set_read_timeout(Some(Duration::from_millis(500))).map_err(failed)?;
    let ask = |request: &[u8]| {
        let mut reply = vec![0; 2_048];
        // Other clients may fill the receive buffer of the tracker.
        for _ in 0..20 {
            socket.send(request).map_err(failed)?;
            if let Ok(len) = socket.recv(&mut reply) {
                reply.truncate(len);
                return Ok(reply);
            }
        }
        Err("no reply to a scrape".to_owned())
    };
    let mut connect = 0x0417_2710_1980_u64.to_be_bytes().to_vec();
    connect.extend([0; 8]);
    let reply = ask(&connect)?;
    let id = reply.get(8..16).ok_or("the reply to a connect is too short")?.to_vec();
    let mut peers = 0;
    for hashes in sample.chunks(SCRAPE_TORRENTS) {
        let mut request = id.clone();
        request.extend([0, 0, 0, 2, 0, 0, 0, 7]);
        request.extend(hashes.as_flattened());
        let reply = ask(&request)?;
        let words: Vec<u64> = reply
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u64::from(u32::from_be_bytes(*word)))
            .collect();
        // Two words of the head, then seeders, completed downloads and leechers of each torrent.
        peers += words[2..].chunks_exact(3).map(|row| row[0] + row[2]).sum::<u64>();
    }
    Ok(peers)
}
