//! Measures the memory of the population, and what remains allocated after a flood.
//!
//! `cargo run --release -p tsubame-bench --example memory -- filled` (or `flood`) prints a table.

use tsubame_bench::{LIFETIME_SECS, announce_of, announce_to, empty_table, fill, peers_of};
use tsubame_storage::{Seconds, Swarms};

/// The allocator of the tracker.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Returns the resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024
}

/// Prints a row.
fn report(what: &str, table: &Swarms, peers: u64) {
    let (resident, stats) = (resident(), table.stats());
    println!(
        "{what:<44} {:>9} torrents {peers:>9} peers {:>7.1} MiB resident {:>7.1} MiB accounted \
         {:>5.1} B/torrent {:>5.1} B/peer",
        stats.torrents,
        resident as f64 / 1_048_576.0,
        stats.bytes as f64 / 1_048_576.0,
        resident as f64 / stats.torrents.max(1) as f64,
        resident as f64 / peers.max(1) as f64,
    );
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("filled") => {
            for torrents in [1_000_000, 4_000_000] {
                let mut table = empty_table();
                let peers = fill(&mut table, Seconds(0), 0..torrents);
                report("filled", &table, peers);
            }
        }
        Some("flood") => flood(),
        _ => eprintln!("usage: memory filled|flood"),
    }
}

/// Keeps a million torrents alive while four million others are announced and expire.
fn flood() {
    let mut table = empty_table();
    let lifetime = u64::from(LIFETIME_SECS);
    let peers = fill(&mut table, Seconds(0), 0..1_000_000);
    let before = resident();
    report("before the flood", &table, peers);
    let others: u32 = 4_000_000;
    let mut flooded = 1_000_000..1_000_000 + others;
    let mut max_torrents = 0;
    for now in 1..=2 * lifetime + 60 {
        // Each torrent of the million is announced twice per lifetime; the flood takes the first half of one.
        let per_second = 1_000_000 * 2 / LIFETIME_SECS + 1;
        let start = (now as u32 - 1) * per_second % 1_000_000;
        for torrent in start..(start + per_second).min(1_000_000) {
            for peer in 0..peers_of(torrent) {
                announce_to(&mut table, Seconds(now), &announce_of(torrent, peer), &mut []);
            }
        }
        for torrent in flooded.by_ref().take((others / (LIFETIME_SECS / 2)) as usize + 1) {
            for peer in 0..peers_of(torrent) {
                announce_to(&mut table, Seconds(now), &announce_of(torrent, peer), &mut []);
            }
        }
        while table.sweep(Seconds(now)) {}
        max_torrents = max_torrents.max(table.stats().torrents);
    }
    println!("at most {max_torrents} torrents in the table");
    let stats = table.stats();
    let remaining = stats.seeders.iter().chain(&stats.leechers).sum();
    report("one lifetime after the flood", &table, remaining);
    println!("{:.2} times the resident memory before the flood", resident() as f64 / before as f64);
}
