//! What policy costs: a deny list of a million torrents, and limits.
//!
//! `cargo bench -p tsubame-bench --bench policy`

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use std::hint::black_box;
use std::net::SocketAddr;
use tsubame::clock::Now;
use tsubame::policy::access_list::{AccessList, Mode, Sources};
use tsubame::policy::limits::{Excess, LimitTerms, Limits};
use tsubame::policy::{Answer, HookConfig, Plan, Reading};
use tsubame_bench::{fill, info_hash_of, tracker};
use tsubame_storage::{InfoHash, Seconds};

/// Torrents on the list, and others in the table
const LISTED: u32 = 1_000_000;
const KNOWN: u32 = 1_000_000;

const BATCH: usize = 32;

/// More than the caches hold
const OTHER_BYTES: usize = 64 << 20;

fn benches(criterion: &mut Criterion) {
    let info_hashes = (KNOWN..KNOWN + LISTED).map(info_hash_of).collect();
    let sources = Sources { info_hashes, ..Sources::default() };
    look(criterion, &AccessList::load(&sources, 1, true).expect("no files are read").list);
    let (mode, answer) = (Mode::Deny, Answer::Error("not served"));
    let denied = [HookConfig::AccessList { mode, sources, answer }];
    admit(criterion, "no hooks", &[]);
    admit(criterion, "1M denied", &denied);
    count(criterion);
}

/// Looks at a list that the caches have nothing of: what a torrent costs that the table does not have
fn look(criterion: &mut Criterion, list: &AccessList) {
    let (mut rng, other) = (Rng::with_seed(7), vec![1_u8; OTHER_BYTES]);
    for (name, first) in [("not among", 0), ("one of", KNOWN)] {
        for batch in [1, BATCH] {
            let mut cold = || {
                black_box(other.iter().step_by(64).map(|byte| u64::from(*byte)).sum::<u64>());
                let draw = |_| info_hash_of(first + rng.u32(..LISTED));
                (0..batch).map(draw).collect::<Vec<_>>()
            };
            let mut group = criterion.benchmark_group("a look at a list, cold");
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(format!("{name} 1M, {batch} in a row"), |bencher| {
                // Each waits for the one before, as they do that come alone.
                let look = |hashes: Vec<InfoHash>| {
                    hashes.iter().fold(false, |found, &InfoHash(mut hash)| {
                        hash[0] ^= u8::from(black_box(found)) >> 1;
                        list.contains(&InfoHash(hash))
                    })
                };
                bencher.iter_batched(&mut cold, look, BatchSize::PerIteration);
            });
            group.finish();
        }
    }
}

/// Announces of known torrents in batches, as a shard admits and answers them
fn admit(criterion: &mut Criterion, name: &str, hooks: &[HookConfig]) {
    let now = Now { monotonic: Seconds(1), unix_secs: 1_000_000 };
    let mut tracker = tracker(1);
    fill(tracker.swarms_mut(), Seconds(0), 0..KNOWN);
    let loaded = Plan::load(hooks, &Plan::default(), 1, Reading::AtStart);
    let plan = loaded.expect("no files are read").plan;
    tracker.exchange_policy(now, &mut plan.policy(1, 1));
    while tracker.purge(now) {}
    let later = Now { monotonic: Seconds(10), ..now };
    while tracker.purge(later) {}
    let source: SocketAddr = "1.2.3.4:5".parse().expect("an address");
    let mut reply = [0; 1_400];
    let connect = [&0x0417_2710_1980_u64.to_be_bytes()[..], &[0; 8]].concat();
    tracker.handle(now, source, &connect, &mut reply);
    let id: [u8; 8] = reply[8..16].try_into().expect("eight bytes");
    let mut rng = Rng::with_seed(9);
    let mut draw = || -> Vec<[u8; 98]> {
        let announce = |_| {
            let mut bytes = [0; 98];
            bytes[..8].copy_from_slice(&id);
            bytes[11] = 1;
            bytes[16..36].copy_from_slice(&info_hash_of(rng.u32(..KNOWN)).0);
            bytes[92..96].copy_from_slice(&50_u32.to_be_bytes());
            bytes[96] = 9;
            bytes
        };
        (0..BATCH).map(announce).collect()
    };
    let mut group = criterion.benchmark_group("announces of known torrents");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(name, |bencher| {
        bencher.iter_batched(
            &mut draw,
            |datagrams| {
                let prefetch = |bytes: &[u8; 98]| tracker.prefetch_listed(bytes);
                let known: Vec<_> = datagrams.iter().map(prefetch).collect();
                let prefetched =
                    known.iter().flatten().map(|prefetch| tracker.prefetch_entry(prefetch));
                black_box(prefetched.fold(0, u8::wrapping_add));
                let mut admitted = Vec::with_capacity(BATCH);
                for (at, bytes) in datagrams.iter().enumerate() {
                    let known = known[at].as_ref();
                    let taken = tracker.admit_prefetched(later, source, bytes, &mut reply, known);
                    let taken = taken.expect("it is permitted");
                    let prefetch = known.copied().unwrap_or_else(|| tracker.prefetch_index(&taken));
                    admitted.push((taken, prefetch));
                }
                let prefetched =
                    admitted.iter().map(|(_, prefetch)| tracker.prefetch_entry(prefetch));
                black_box(prefetched.fold(0, u8::wrapping_add));
                for ((admitted, prefetch), bytes) in admitted.iter().zip(&datagrams) {
                    black_box(tracker.answer(later, *prefetch, admitted, bytes, &mut reply));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn count(criterion: &mut Criterion) {
    let terms = LimitTerms {
        announces_per_s: 20,
        burst: 200,
        torrents_per_min: 300,
        ipv4_prefix: 32,
        ipv6_prefix: 64,
        exempt: Vec::new(),
        excess: Excess::Drop,
        scrapes: true,
    };
    let (mut limits, mut rng, mut now) = (Limits::new(terms, 1, 1), Rng::with_seed(8), 0);
    criterion.bench_function("limits, 100,000 sources", |bencher| {
        bencher.iter(|| {
            now += 1;
            let source = (0x0100_0000 + rng.u32(..100_000)).to_be_bytes().into();
            black_box(limits.count(Seconds(now / 100_000), source, &info_hash_of(rng.u32(..))))
        });
    });
}

criterion_group! {
    name = group;
    config = Criterion::default().sample_size(50);
    targets = benches
}
criterion_main!(group);
