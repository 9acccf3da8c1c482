//! Benchmarks of policy: a deny list of a million torrents, and limits.
//!
//! `cargo bench -p tsubame-bench --bench policy`

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use std::hint::black_box;
use std::net::SocketAddr;
use tsubame::clock::Now;
use tsubame::policy::access_list::{AccessList, ListMode, ListSources};
use tsubame::policy::limits::{ExcessReply, LimitSettings, Limits};
use tsubame::policy::{CompiledPolicy, HookConfig, ReadMode, RefusalReply};
use tsubame_bench::{fill, info_hash_of, tracker};
use tsubame_storage::{InfoHash, Seconds};

/// Number of torrents on the list.
const LISTED: u32 = 1_000_000;
/// Number of torrents in the table, none of which is on the list.
const KNOWN: u32 = 1_000_000;

const BATCH: usize = 32;

/// Bytes that are read to evict the list from the caches; more than their size.
const OTHER_BYTES: usize = 64 << 20;

fn benches(criterion: &mut Criterion) {
    let info_hashes = (KNOWN..KNOWN + LISTED).map(info_hash_of).collect();
    let sources = ListSources { info_hashes, ..ListSources::default() };
    lookup(criterion, &AccessList::load(&sources, 1, 0, true).expect("no files are read").list);
    let (mode, reply) = (ListMode::Deny, RefusalReply::Error("not served"));
    let denied = [HookConfig::AccessList { mode, sources, reply }];
    admit(criterion, "no hooks", &[]);
    admit(criterion, "1M denied", &denied);
    count(criterion);
}

/// Measures lookups in a list that is not in the caches of the processor. Only announces of torrents that are not
/// stored yet cost such a lookup: stored torrents are known to be permitted.
fn lookup(criterion: &mut Criterion, list: &AccessList) {
    let (mut rng, other) = (Rng::with_seed(7), vec![1_u8; OTHER_BYTES]);
    for (name, first) in [("absent from", 0), ("present in", KNOWN)] {
        for batch in [1, BATCH] {
            let mut cold = || {
                black_box(other.iter().step_by(64).map(|byte| u64::from(*byte)).sum::<u64>());
                let draw = |_| info_hash_of(first + rng.u32(..LISTED));
                (0..batch).map(draw).collect::<Vec<_>>()
            };
            let mut group = criterion.benchmark_group("list lookup, cold");
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(format!("{name} 1M, {batch} in a row"), |bencher| {
                // Each lookup depends on the previous one, so that they do not overlap.
                let lookup = |hashes: Vec<InfoHash>| {
                    hashes.iter().fold(false, |found, &InfoHash(mut hash)| {
                        // Zero, but it makes the lookup depend on the previous result.
                        hash[0] ^= black_box(u8::from(found)) >> 1;
                        list.contains(&InfoHash(hash))
                    })
                };
                bencher.iter_batched(&mut cold, lookup, BatchSize::PerIteration);
            });
            group.finish();
        }
    }
}

/// Measures announces of known torrents in batches, admitted and answered as by a shard.
fn admit(criterion: &mut Criterion, name: &str, hooks: &[HookConfig]) {
    let now = Now { monotonic: Seconds(1), unix_secs: 1_000_000 };
    let mut tracker = tracker(1);
    fill(tracker.swarms_mut(), Seconds(0), 0..KNOWN);
    let loaded = CompiledPolicy::load(hooks, &CompiledPolicy::default(), 1, ReadMode::AtStart);
    let policy = loaded.expect("no files are read").policy;
    tracker.exchange_policy(now, &mut policy.policy(1, 1));
    while tracker.purge(now) {}
    // After the second pass of the purge, stored torrents are known to be permitted.
    let settled = Now { monotonic: Seconds(10), ..now };
    while tracker.purge(settled) {}
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
                let mut batch = Vec::with_capacity(BATCH);
                for bytes in &datagrams {
                    let proven = tracker.prove(settled, source, bytes, &mut reply);
                    let request = proven.expect("the connection id is valid");
                    let prefetch = tracker.prefetch_index(&request.info_hash());
                    batch.push((request, prefetch));
                }
                let entries = batch.iter().map(|(_, prefetch)| tracker.prefetch_entry(prefetch));
                black_box(entries.fold(0, u8::wrapping_add));
                if tracker.policy().has_hooks() {
                    for ((request, prefetch), bytes) in batch.iter_mut().zip(&datagrams) {
                        let address = source.ip();
                        tracker
                            .check_policy(settled, address, request, prefetch, bytes, &mut reply)
                            .expect("the torrent is permitted");
                    }
                }
                for ((request, prefetch), bytes) in batch.iter().zip(&datagrams) {
                    black_box(tracker.answer(settled, *prefetch, request, bytes, &mut reply));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Measures the counting of announces for limits.
fn count(criterion: &mut Criterion) {
    let settings = LimitSettings {
        announces_per_s: 20,
        burst: 200,
        torrents_per_min: 300,
        ipv4_prefix: 32,
        ipv6_prefix: 64,
        exempt: Vec::new(),
        excess: ExcessReply::Drop,
        scrapes: true,
    };
    let (mut limits, mut rng, mut now) = (Limits::new(settings, 1, 1), Rng::with_seed(8), 0);
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
