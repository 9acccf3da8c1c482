//! Benchmarks of the swarm table: announces alone and in batches, scrapes, the sweep, and preferred subnets.
//!
//! `cargo bench -p tsubame-bench --bench storage -- 1M` measures the smaller table only, `-- subnet_preference` the
//! preferred subnets only.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use std::hint::black_box;
use tsubame_bench::{
    LIFETIME_SECS, announce_of, announce_to, empty_table, fill, info_hash_of, peers_of,
};
use tsubame_storage::{
    AnnounceEvent, Endpoint, Family, InfoHash, PeerOutput, PrefixLengths, Role, Seconds,
    SubnetPreference, SwarmAnnounce, Swarms,
};

const BATCH: usize = 64;
const REPLY_BYTES: usize = 50 * 6;

fn benches(criterion: &mut Criterion) {
    for (name, torrents) in [("1M", 1_000_000), ("4M", 4_000_000)] {
        let wanted: Vec<String> = std::env::args().skip(1).collect();
        let skipped = ["1M", "4M", "subnet_preference"]
            .iter()
            .any(|other| *other != name && wanted.iter().any(|argument| argument.contains(other)));
        if skipped {
            continue;
        }
        let mut table = empty_table();
        fill(&mut table, Seconds(0), 0..torrents);
        announces(criterion, name, &mut table, torrents);
        scrapes(criterion, name, &table, torrents);
        drop(table);
        sweep(criterion, name, torrents);
    }
}

/// Returns an announce of a known peer of a random torrent, as most announces of a tracker are.
fn draw(rng: &mut Rng, torrents: u32) -> SwarmAnnounce {
    let torrent = rng.u32(..torrents);
    announce_of(torrent, rng.u32(..peers_of(torrent)))
}

fn announces(criterion: &mut Criterion, name: &str, table: &mut Swarms, torrents: u32) {
    let mut rng = Rng::with_seed(7);
    let mut reply = [0; REPLY_BYTES];
    let mut group = criterion.benchmark_group(format!("{name}/announce"));
    group.throughput(Throughput::Elements(BATCH as u64));
    let batch =
        |rng: &mut Rng| -> Vec<SwarmAnnounce> { (0..BATCH).map(|_| draw(rng, torrents)).collect() };
    group.bench_function("alone", |bencher| {
        bencher.iter_batched(
            || batch(&mut rng),
            |announces| {
                for announce in &announces {
                    black_box(announce_to(table, Seconds(1), announce, &mut reply));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("batch of 64", |bencher| {
        bencher.iter_batched(
            || batch(&mut rng),
            |announces| {
                let prefetches = announces.prefetch_all(table);
                let prefetched = prefetches.iter().map(|prefetch| table.prefetch_entry(prefetch));
                black_box(prefetched.fold(0, u8::wrapping_add));
                for (announce, prefetch) in announces.iter().zip(prefetches) {
                    let output = PeerOutput::for_family(Family::V4, &mut reply);
                    black_box(table.announce(Seconds(1), prefetch, announce, output));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Prefetches the index for a batch.
trait PrefetchEach {
    fn prefetch_all(&self, table: &Swarms) -> Vec<tsubame_storage::Prefetch>;
}

impl PrefetchEach for Vec<SwarmAnnounce> {
    fn prefetch_all(&self, table: &Swarms) -> Vec<tsubame_storage::Prefetch> {
        self.iter().map(|announce| table.prefetch_index(&announce.info_hash)).collect()
    }
}

fn scrapes(criterion: &mut Criterion, name: &str, table: &Swarms, torrents: u32) {
    let mut rng = Rng::with_seed(8);
    let mut group = criterion.benchmark_group(format!("{name}/scrape"));
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("alone", |bencher| {
        bencher.iter_batched(
            || (0..BATCH).map(|_| info_hash_of(rng.u32(..torrents))).collect::<Vec<InfoHash>>(),
            |hashes| {
                for info_hash in &hashes {
                    let prefetch = table.prefetch_index(info_hash);
                    black_box(table.scrape(&prefetch, info_hash));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Measures a complete sweep of the table, which a shard distributes over a quarter of a lifetime.
///
/// The table is filled at time 0. A step at a quarter of a lifetime, which is not measured, starts the pass; the rest
/// is measured at half a lifetime (no peer is expired) or at 1.1 lifetimes (all are).
fn sweep(criterion: &mut Criterion, name: &str, torrents: u32) {
    let lifetime = u64::from(LIFETIME_SECS);
    let mut group = criterion.benchmark_group(format!("{name}/sweep, a pass"));
    group.sample_size(10);
    group.throughput(Throughput::Elements(u64::from(torrents)));
    for (what, now) in [("none expired", lifetime / 2), ("all expired", lifetime * 11 / 10)] {
        group.bench_function(what, |bencher| {
            let filled = || {
                let mut table = empty_table();
                fill(&mut table, Seconds(0), 0..torrents);
                table.sweep(Seconds(lifetime / 4));
                table
            };
            let pass = |mut table: Swarms| {
                while table.sweep(Seconds(now)) {}
                table
            };
            bencher.iter_batched(filled, pass, BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// Measures announces in one large swarm, with a hundred peers per rack (/24) and ten thousand per site (/16).
fn subnet_preference(criterion: &mut Criterion) {
    let lengths = |lengths: &[u8]| PrefixLengths::new(lengths).expect("the lengths are descending");
    let rack_and_site = SubnetPreference { v4: lengths(&[24, 16]), ..SubnetPreference::default() };
    // All peers are in the subnet, so each random peer may be in the reply already and must be checked.
    let all_in_subnet = SubnetPreference { v4: lengths(&[8]), ..SubnetPreference::default() };
    let mut group = criterion.benchmark_group("subnet_preference");
    for peers in [1_000, 10_000, 100_000_u32] {
        let no_preference = SubnetPreference::default();
        let all = [
            ("no preference", no_preference, 50),
            ("rack, site", rack_and_site, 50),
            ("no preference, 200", no_preference, 200),
            ("all in the subnet, 200", all_in_subnet, 200),
        ];
        for (name, subnets, wanted) in all {
            let mut table = empty_table();
            table.set_subnet_preference(subnets);
            let announce = |number: u32| {
                let [site, rack, host] = [number / 10_000, number / 100 % 100, number % 100];
                let endpoint =
                    Endpoint::new([81, site as u8, rack as u8, host as u8].into(), 7_000);
                let (info_hash, role, event) =
                    (info_hash_of(1), Role::Leecher, AnnounceEvent::None);
                SwarmAnnounce { info_hash, endpoint, role, event }
            };
            let (mut reply, mut rng) = (vec![0; wanted * 6], Rng::with_seed(9));
            for number in 0..peers {
                announce_to(&mut table, Seconds(1), &announce(number), &mut reply);
            }
            group.bench_function(format!("{name}, of {peers}"), |bencher| {
                bencher.iter(|| {
                    let announce = announce(rng.u32(..peers));
                    black_box(announce_to(&mut table, Seconds(1), &announce, &mut reply))
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = group;
    config = Criterion::default().sample_size(20);
    targets = subnet_preference, benches
}
criterion_main!(group);
