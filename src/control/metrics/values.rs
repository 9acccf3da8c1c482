//! Functions that return the values of metrics with labels.

use super::sample::{LabelledSample, Sample, labelled, load};
use super::snapshot::{MetricsSnapshot, ShardSnapshot};
use crate::stats::http_stats::AGE_BOUNDS_SECS;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{
    AnsweredAnnounces, BATCH_SIZES, Protocol, REPLY_PEER_CLASSES, ShardStats, TurnPhase,
};
use crate::stats::xdp_status::XdpInterfaceStatus;
use Sample::{Float, Integer};
use tsubame_storage::{Family, SWARM_SIZE_CLASSES, swarm_size_max};
use tsubame_udp::xdp::{FilterOutcome, FrameSocket, FrameVerdict, XdpMode};

const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Udp, "udp"), (Protocol::Http, "http")];

const FAMILIES: [(Family, &str); 2] = [(Family::V4, "ipv4"), (Family::V6, "ipv6")];

/// Names of the events of announces, in the order of their counters.
const EVENTS: [&str; 5] = ["none", "completed", "started", "stopped", "paused"];

pub(super) fn build(_: &MetricsSnapshot) -> Vec<LabelledSample> {
    vec![labelled(&[env!("CARGO_PKG_VERSION")], 1)]
}

pub(super) fn requests(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let mut samples = Vec::new();
    for (protocol, protocol_name) in PROTOCOLS {
        for (family, family_name) in FAMILIES {
            for outcome in Outcome::ALL {
                let labels = [protocol_name, family_name, outcome.kind(), outcome.name()];
                let count = shard.stats.requests_of(protocol, family, outcome);
                samples.push(labelled(&labels, count));
            }
        }
    }
    samples
}

pub(super) fn xdp_requests(xdp: &ShardStats) -> Vec<LabelledSample> {
    let outcomes = FilterOutcome::ALL.map(Outcome::from);
    let families =
        FAMILIES.into_iter().flat_map(|family| outcomes.map(|outcome| (family, outcome)));
    let sample = |((family, name), outcome): ((Family, &'static str), Outcome)| {
        let count = xdp.requests_of(Protocol::Udp, family, outcome);
        labelled(&["udp", name, outcome.kind(), outcome.name()], count)
    };
    families.map(sample).collect()
}

pub(super) fn xdp_frames(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let mut samples = Vec::new();
    for XdpInterfaceStatus { name, frames, .. } in snapshot.xdp_interfaces() {
        for (queue, by_verdict) in frames.iter().enumerate() {
            for (verdict, count) in FrameVerdict::ALL.into_iter().zip(by_verdict) {
                samples.push(labelled(&[&name, &queue.to_string(), verdict.name()], *count));
            }
        }
    }
    samples
}

pub(super) fn xdp_attached(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let modes = [XdpMode::Native, XdpMode::Generic];
    let interfaces = snapshot.xdp_interfaces().into_iter();
    let sample = |interface: XdpInterfaceStatus| {
        modes.map(|mode| {
            let is_attached = u64::from(interface.mode == Some(mode));
            labelled(&[&interface.name, mode.name()], is_attached)
        })
    };
    interfaces.flat_map(sample).collect()
}

pub(super) fn xdp_sockets(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let interfaces = snapshot.xdp_interfaces().into_iter();
    let sample = |interface: XdpInterfaceStatus| {
        [(true, "true"), (false, "false")].map(|(is_zero_copy, name)| {
            let has_this_mode = interface.is_zero_copy == is_zero_copy;
            let sockets = if has_this_mode { interface.sockets } else { 0 };
            labelled(&[&interface.name, name], sockets as u64)
        })
    };
    interfaces.flat_map(sample).collect()
}

pub(super) fn xdp_memory(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let interfaces = snapshot.xdp_interfaces().into_iter();
    let sample = |interface: XdpInterfaceStatus| {
        let bytes = interface.sockets * FrameSocket::memory_bytes();
        labelled(&[&interface.name], bytes as u64)
    };
    interfaces.map(sample).collect()
}

pub(super) fn announces(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let mut samples = Vec::new();
    for (protocol, protocol_name) in PROTOCOLS {
        let events = shard.stats.answered_announces[protocol as usize].events;
        for (event, count) in EVENTS.iter().zip(events) {
            samples.push(labelled(&[protocol_name, event], count));
        }
    }
    samples
}

pub(super) fn reply_peers(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let sample = |(protocol, name): (Protocol, &str)| {
        let announces = &shard.stats.answered_announces[protocol as usize];
        let bounds = (0..REPLY_PEER_CLASSES).map(AnsweredAnnounces::class_peers_max);
        (vec![name.to_owned()], histogram(announces.peers, bounds, &announces.replies_by_peers))
    };
    PROTOCOLS.into_iter().map(sample).collect()
}

/// Returns a histogram of classes with these upper bounds, where `None` is infinite.
fn histogram(sum: u64, bounds: impl Iterator<Item = Option<u64>>, counts: &[u64]) -> Sample {
    let bounds = bounds.map(|bound| bound.map_or(f64::INFINITY, |bound| bound as f64));
    let buckets = bounds.zip(counts.iter().copied()).collect();
    Sample::Histogram { sum: sum as f64, count: counts.iter().sum(), buckets }
}

pub(super) fn by_protocol(udp: u64, http: u64) -> Vec<LabelledSample> {
    vec![labelled(&["udp"], udp), labelled(&["http"], http)]
}

pub(super) fn hook_refusals(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let hooks = &snapshot.hooks;
    let of_hook = |outcome: &Outcome| outcome.hook().filter(|hook| hooks.contains(hook));
    let outcomes = Outcome::ALL.iter().filter_map(|outcome| Some((of_hook(outcome)?, outcome)));
    let count = |outcome: Outcome| -> u64 {
        let shards = snapshot.shards.iter().map(|shard| &shard.stats);
        shards.chain(&snapshot.xdp).map(|stats| stats.requests(outcome)).sum()
    };
    outcomes.map(|(hook, outcome)| labelled(&[hook, outcome.name()], count(*outcome))).collect()
}

pub(super) fn clients(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let total: u64 = snapshot.clients.iter().map(|share| share.announces).sum();
    let share = |count: u64| Float(count as f64 / total.max(1) as f64);
    let shares = snapshot.clients.iter();
    shares.map(|client| (vec![client.name.clone()], share(client.announces))).collect()
}

pub(super) fn batches(shard: &ShardSnapshot) -> Sample {
    let ShardStats { batches, arrived, .. } = &shard.stats;
    let bounds = (0..BATCH_SIZES).map(|class| (class + 1 < BATCH_SIZES).then(|| (2 << class) - 1));
    histogram(*arrived, bounds, batches)
}

pub(super) fn turn_phases(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let phases = TurnPhase::ALL.into_iter().zip(shard.stats.turn_times.phase_ns);
    phases.map(|(phase, ns)| (vec![phase.name().to_owned()], Float(ns as f64 / 1e9))).collect()
}

pub(super) fn peers(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let table = &shard.stats.table;
    let mut samples = Vec::new();
    for (role, by_family) in [("seeder", table.seeders), ("leecher", table.leechers)] {
        for (family, name) in FAMILIES {
            samples.push(labelled(&[name, role], by_family[family as usize]));
        }
    }
    samples
}

pub(super) fn swarms(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let Some((_, summary)) = &snapshot.summary else { return Vec::new() };
    let mut sum = 0;
    let sample = |class: usize| {
        sum += summary.sizes[class];
        let max = swarm_size_max(class).map_or_else(|| "+Inf".to_owned(), |max| max.to_string());
        (vec![max], Integer(sum))
    };
    (0..SWARM_SIZE_CLASSES).map(sample).collect()
}

pub(super) fn evicted(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let evicted = &shard.stats.table.evicted;
    vec![
        labelled(&["empty_torrent"], evicted.empty_torrents),
        labelled(&["source"], evicted.source_peers),
    ]
}

pub(super) fn connection_ages(shard: &ShardSnapshot) -> Sample {
    let http = &shard.stats.http;
    let bounds = AGE_BOUNDS_SECS.into_iter().map(Some).chain([None]);
    histogram(http.ages_secs, bounds, &http.ages)
}

pub(super) fn tls_versions(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let http = &shard.stats.http;
    vec![labelled(&["1.2"], http.tls_1_2), labelled(&["1.3"], http.tls_1_3)]
}

pub(super) fn reloads(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let process = &snapshot.monitored.process;
    let results = [("success", &process.reloads), ("failure", &process.failed_reloads)];
    results.map(|(result, count)| (vec![result.to_owned()], load(count))).into()
}

pub(super) fn list_entries(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let mut samples: Vec<LabelledSample> = Vec::new();
    for size in snapshot.monitored.served_config().list_sizes {
        let labels = vec![size.hook.to_owned(), size.entries.to_owned()];
        // Two hooks of one kind have the same labels.
        match samples.iter_mut().find(|(known, _)| *known == labels) {
            Some((_, Integer(count))) => *count += size.len as u64,
            _ => samples.push((labels, Integer(size.len as u64))),
        }
    }
    samples
}

pub(super) fn snapshots(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let snapshots = &snapshot.monitored.process.snapshots;
    let results = [("success", &snapshots.written), ("failure", &snapshots.failed)];
    let sample =
        |(result, count)| Some((vec![String::from(result)], Integer(snapshots.get(count)?)));
    results.into_iter().filter_map(sample).collect()
}
