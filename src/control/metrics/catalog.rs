//! The table of all metrics.

use super::snapshot::{MetricsSnapshot, ShardSnapshot};
use crate::shard::FIXED_BYTES;
use crate::stats::http_stats::AGE_BOUNDS_SECS;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{
    AnsweredAnnounces, BATCH_SIZES, Protocol, REPLY_PEER_CLASSES, ShardStats, TurnPhase,
};
use MetricKind::{Counter, Gauge, Histogram, Info};
use Sample::{Float, Integer};
use Source::{Process, ProcessLabelled, Shard, ShardLabelled};
use std::sync::atomic::{AtomicU64, Ordering};
use tsubame_storage::{Family, SWARM_SIZE_CLASSES, swarm_size_max};

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetricKind {
    /// Increases until the process ends; `_total` is appended to its name.
    Counter,
    /// May decrease.
    Gauge,
    /// Observations by class.
    Histogram,
    /// Texts as labels of the value 1; `_info` is appended to its name.
    Info,
}

/// A metric: its description, and how its values are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    /// Name without the prefix `tsubame_` and without the suffix of its kind.
    pub(super) name: &'static str,
    pub(super) kind: MetricKind,
    /// Names of the labels.
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
    source: Source,
}

/// How the values of a metric are read.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// One value for each shard.
    Shard(fn(&ShardSnapshot) -> Sample),
    /// Some values for each shard, each with the values of the labels after `shard`.
    ShardLabelled(fn(&ShardSnapshot) -> Vec<LabelledSample>),
    /// One value for the process, or none.
    Process(fn(&MetricsSnapshot) -> Option<Sample>),
    /// Some values for the process, each with the values of the labels.
    ProcessLabelled(fn(&MetricsSnapshot) -> Vec<LabelledSample>),
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sample {
    Integer(u64),
    Float(f64),
    /// Number of observations by the upper bounds of their classes, not cumulated.
    Histogram {
        sum: f64,
        count: u64,
        buckets: Vec<(f64, u64)>,
    },
}

/// Values of labels, and a value.
type LabelledSample = (Vec<String>, Sample);

impl Metric {
    /// Returns the unit: the last word of the name, if it is one.
    pub(super) fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit))
    }

    /// Returns the name without the unit.
    pub(super) fn name_without_unit(&self) -> &'static str {
        let unit = self.unit().unwrap_or_default();
        self.name.strip_suffix(unit).map_or(self.name, |name| name.trim_end_matches('_'))
    }

    /// Returns all values with the values of their labels.
    pub(super) fn samples(&self, snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
        match self.source {
            Shard(read) => {
                let sample = |shard| (vec![ShardSnapshot::label(shard)], read(shard));
                snapshot.shards.iter().map(sample).collect()
            }
            ShardLabelled(read) => {
                let mut samples = Vec::new();
                for shard in &snapshot.shards {
                    for (mut labels, sample) in read(shard) {
                        labels.insert(0, shard.label());
                        samples.push((labels, sample));
                    }
                }
                samples
            }
            Process(read) => {
                read(snapshot).into_iter().map(|sample| (Vec::new(), sample)).collect()
            }
            ProcessLabelled(read) => read(snapshot),
        }
    }
}

impl ShardSnapshot {
    fn label(&self) -> String {
        self.number.to_string()
    }
}

/// Creates a metric; the arguments are its name, its kind, its labels, its help text and its source.
const fn metric(
    name: &'static str,
    kind: MetricKind,
    labels: &'static [&'static str],
    help: &'static str,
    source: Source,
) -> Metric {
    Metric { name, kind, labels, help, source }
}

/// Creates a counter of each shard.
const fn counter(
    name: &'static str,
    help: &'static str,
    read: fn(&ShardSnapshot) -> Sample,
) -> Metric {
    metric(name, Counter, &["shard"], help, Shard(read))
}

/// Creates a gauge of each shard.
const fn gauge(
    name: &'static str,
    help: &'static str,
    read: fn(&ShardSnapshot) -> Sample,
) -> Metric {
    metric(name, Gauge, &["shard"], help, Shard(read))
}

/// Creates a gauge of the process.
const fn process_gauge(
    name: &'static str,
    help: &'static str,
    read: fn(&MetricsSnapshot) -> Option<Sample>,
) -> Metric {
    metric(name, Gauge, &[], help, Process(read))
}

/// All metrics, in the order of the page.
pub(super) const METRICS: &[Metric] = &[
    metric("build", Info, &["version"], "Version of the tracker", ProcessLabelled(build)),
    process_gauge("uptime_seconds", "Time since the start of the process", |it| {
        Some(Float(it.uptime_secs))
    }),
    process_gauge(
        "start_timestamp_seconds",
        "Time of the start of the process, since 1970",
        |it| Some(Integer(it.monitored.process.start_unix_secs)),
    ),
    process_gauge("resident_bytes", "Resident memory of the process", |it| {
        it.resident_bytes.map(|bytes| Integer(bytes as u64))
    }),
    process_gauge(
        "memory_limit_bytes",
        "Maximum memory of the swarm tables and of the queues between shards (storage.memory)",
        |it| Some(load(&it.monitored.process.memory_limit_bytes)),
    ),
    process_gauge("mesh_bytes", "Memory of the queues between shards", |it| {
        Some(Integer(it.monitored.process.mesh_bytes))
    }),
    process_gauge(
        "fixed_bytes_per_shard",
        "Bytes that a shard allocates at start for buffers, queues and counts, without the queues between shards",
        |_| Some(Integer(FIXED_BYTES as u64)),
    ),
    gauge(
        "shard_last_update_age_seconds",
        "Time since the last update of the statistics of the shard; above 5 the shard is stuck",
        |shard| Integer(shard.last_update_age_secs),
    ),
    counter(
        "busy_seconds",
        "Processor time of the thread of the shard, including time in the kernel",
        |shard| Float(shard.stats.busy_us as f64 / 1e6),
    ),
    metric(
        "requests",
        Counter,
        &["shard", "protocol", "family", "kind", "outcome"],
        "Requests by outcome; a forwarded request is counted again by the shard that answers it",
        ShardLabelled(requests),
    ),
    metric(
        "announces",
        Counter,
        &["shard", "protocol", "event"],
        "Announces that were answered with a list of peers, which may be empty, by event",
        ShardLabelled(announces),
    ),
    metric(
        "reply_peers",
        Histogram,
        &["shard", "protocol"],
        "Peers in a reply to an announce",
        ShardLabelled(reply_peers),
    ),
    metric(
        "received_bytes",
        Counter,
        &["shard", "protocol"],
        "Bytes that were received: payload of UDP, and of TCP for HTTP and HTTPS",
        ShardLabelled(|it| by_protocol(it.stats.received_bytes, it.stats.http.received_bytes)),
    ),
    metric(
        "sent_bytes",
        Counter,
        &["shard", "protocol"],
        "Bytes that were sent: payload of UDP, and of TCP for HTTP and HTTPS",
        ShardLabelled(|it| by_protocol(it.stats.sent_bytes, it.stats.http.sent_bytes)),
    ),
    metric(
        "hook_refusals",
        Counter,
        &["hook", "outcome"],
        "Requests that a configured hook refused; not those of custom hooks, nor scrapes without a passkey or token",
        ProcessLabelled(hook_refusals),
    ),
    metric(
        "client_share",
        Gauge,
        &["client"],
        "Share of a client program in the sampled announces, from 0 to 1: the 50 most frequent, by the start of their \
         peer ids, and all others (other)",
        ProcessLabelled(clients),
    ),
    counter("replies_sent", "Replies over UDP that the kernel accepted", |shard| {
        Integer(shard.stats.ring.sent)
    }),
    counter(
        "replies_failed",
        "Replies over UDP that the kernel refused: a send buffer was full, or there was no route",
        |shard| Integer(shard.stats.ring.send_failed),
    ),
    counter(
        "kernel_dropped",
        "Datagrams that the kernel dropped, mostly because a receive buffer was full",
        |shard| Integer(shard.stats.ring.dropped_by_kernel),
    ),
    metric(
        "batch_datagrams",
        Histogram,
        &["shard"],
        "Datagrams that were answered together; batches of 64 mean that more may have been waiting",
        Shard(batches),
    ),
    counter("io_uring_enters", "System calls to send and receive datagrams", |shard| {
        Integer(shard.stats.ring.enters)
    }),
    metric(
        "gather_seconds",
        Gauge,
        &["shard"],
        "Time for which the shard gathers datagrams at present before it answers them; 0 where that does not pay",
        Shard(|shard| Float(shard.stats.gather_us as f64 / 1e6)),
    ),
    counter(
        "out_of_buffers",
        "Times that datagrams waited in the kernel because all receive buffers of the shard were in use",
        |shard| Integer(shard.stats.ring.out_of_buffers),
    ),
    counter("receives_failed", "Receives that failed and were started again", |shard| {
        Integer(shard.stats.ring.receive_failed)
    }),
    counter("sampled_turns", "Turns of the shard whose phases were timed", |shard| {
        Integer(shard.stats.turn_times.turns)
    }),
    metric(
        "sampled_turn_seconds",
        Counter,
        &["shard", "phase"],
        "Processor time of the phases of sampled turns: system calls (transfer), admit, answer, messages of other \
         shards",
        ShardLabelled(turn_phases),
    ),
    counter("mesh_messages", "Messages to other shards that were queued", |shard| {
        Integer(shard.stats.messages_sent)
    }),
    counter(
        "mesh_messages_dropped",
        "Messages to other shards that were dropped because a queue was full",
        |shard| Integer(shard.stats.messages_dropped),
    ),
    process_gauge(
        "steering_attached",
        "Whether the kernel steers requests to the shard that owns the torrent: 1 or 0",
        |it| Some(Integer(u64::from(it.is_steering()))),
    ),
    metric(
        "steering_detached",
        Counter,
        &[],
        "Times that steering was switched off because one shard was overloaded",
        Process(|it| Some(load(&it.monitored.process.steering_detached))),
    ),
    metric(
        "peers",
        Gauge,
        &["shard", "family", "role"],
        "Peers in all swarms",
        ShardLabelled(peers),
    ),
    gauge("torrents", "Torrents in the swarm table, including those without peers", |shard| {
        Integer(shard.stats.table.torrents as u64)
    }),
    gauge(
        "empty_torrents",
        "Torrents without peers, which keep their count of downloads for a while",
        |shard| Integer(shard.stats.table.empty_torrents as u64),
    ),
    metric(
        "swarms",
        Gauge,
        &["peers_max"],
        "Torrents with at most peers_max peers, as of the last scan",
        ProcessLabelled(swarms),
    ),
    process_gauge(
        "distinct_peers",
        "Estimated number of different endpoints in all swarms, as of the last scan; the standard error is 1.6 %",
        |it| {
            let (_, summary) = it.summary.as_ref()?;
            summary.distinct.as_ref().map(|distinct| Integer(distinct.estimate()))
        },
    ),
    process_gauge("scan_age_seconds", "Time since the last scan of all swarms", |it| {
        it.summary.as_ref().map(|(age, _)| Integer(*age))
    }),
    counter("expired_peers", "Peers that were removed because they did not announce again", |it| {
        Integer(it.stats.table.expired_peers)
    }),
    gauge("table_bytes", "Memory of the swarm table, by its own accounting", |shard| {
        Integer(shard.stats.table.bytes as u64)
    }),
    gauge(
        "memory_pressure",
        "Memory pressure: 0 while enough memory is free, 1 when new torrents are refused",
        |shard| Float(f64::from(shard.stats.table.pressure_per_1_000) / 1_000.0),
    ),
    counter("memory_pressure_episodes", "Times that memory became short", |shard| {
        Integer(shard.stats.table.evicted.episodes)
    }),
    metric(
        "evicted",
        Counter,
        &["shard", "reason"],
        "Torrents without peers (empty_torrent), and peers of the largest networks (source), that were removed because \
         memory was short or by POST /v1/evict",
        ShardLabelled(evicted),
    ),
    gauge("http_connections", "HTTP connections that are open", |shard| {
        Integer(shard.stats.http.open)
    }),
    counter("http_accepted", "HTTP connections that were accepted", |shard| {
        Integer(shard.stats.http.accepted)
    }),
    counter(
        "http_timed_out",
        "HTTP connections that were closed because they were idle or too slow",
        |shard| Integer(shard.stats.http.timed_out),
    ),
    counter(
        "http_evicted",
        "HTTP connections that were closed or refused to limit their number",
        |shard| Integer(shard.stats.http.evicted),
    ),
    counter(
        "http_accept_failed",
        "HTTP connections that could not be accepted because too many files were open (ulimit -n) or memory was short",
        |shard| Integer(shard.stats.http.accept_failed),
    ),
    metric(
        "http_connection_age_seconds",
        Histogram,
        &["shard"],
        "Age of HTTP connections when they were closed",
        Shard(connection_ages),
    ),
    metric(
        "http_tls_handshakes",
        Counter,
        &["shard", "version"],
        "Completed TLS handshakes",
        ShardLabelled(tls_versions),
    ),
    counter(
        "http_tls_failed",
        "HTTP connections with TLS errors, mostly in the handshake",
        |shard| Integer(shard.stats.http.tls_failed),
    ),
    process_gauge(
        "tls_certificate_expiry_timestamp_seconds",
        "Time at which the certificate expires, since 1970",
        |it| {
            let expiry = load(&it.monitored.process.certificate_expiry_unix_secs);
            (expiry != Integer(0)).then_some(expiry)
        },
    ),
    metric(
        "reloads",
        Counter,
        &["result"],
        "Reloads of the config or of lists, by result: success, or failure, after which nothing was changed",
        ProcessLabelled(reloads),
    ),
    process_gauge("last_reload_successful", "Whether the last reload succeeded: 1 or 0", |it| {
        let failed = it.monitored.process.last_reload_failed.load(Ordering::Relaxed);
        Some(Integer(u64::from(!failed)))
    }),
    process_gauge(
        "last_reload_timestamp_seconds",
        "Time of the last successful reload, or of the start, since 1970",
        |it| Some(load(&it.monitored.process.last_reload_unix_secs)),
    ),
    metric(
        "list_entries",
        Gauge,
        &["hook", "entries"],
        "Entries of the lists of the hooks",
        ProcessLabelled(list_entries),
    ),
    process_gauge("stuck_reads", "Reads of files that have not ended in time", |it| {
        Some(Integer(it.stuck_reads as u64))
    }),
];

const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Udp, "udp"), (Protocol::Http, "http")];

const FAMILIES: [(Family, &str); 2] = [(Family::V4, "ipv4"), (Family::V6, "ipv6")];

/// Names of the events of announces, in the order of their counters.
const EVENTS: [&str; 5] = ["none", "completed", "started", "stopped", "paused"];

fn load(value: &AtomicU64) -> Sample {
    Integer(value.load(Ordering::Relaxed))
}

fn labelled(labels: &[&str], value: u64) -> LabelledSample {
    (labels.iter().map(|label| (*label).to_owned()).collect(), Integer(value))
}

fn build(_: &MetricsSnapshot) -> Vec<LabelledSample> {
    vec![labelled(&[env!("CARGO_PKG_VERSION")], 1)]
}

fn requests(shard: &ShardSnapshot) -> Vec<LabelledSample> {
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

fn announces(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let mut samples = Vec::new();
    for (protocol, protocol_name) in PROTOCOLS {
        let events = shard.stats.answered_announces[protocol as usize].events;
        for (event, count) in EVENTS.iter().zip(events) {
            samples.push(labelled(&[protocol_name, event], count));
        }
    }
    samples
}

fn reply_peers(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let histogram = |(protocol, name): (Protocol, &str)| {
        let announces = &shard.stats.answered_announces[protocol as usize];
        let bounds = (0..REPLY_PEER_CLASSES).map(AnsweredAnnounces::class_peers_max);
        (vec![name.to_owned()], histogram(announces.peers, bounds, &announces.replies_by_peers))
    };
    PROTOCOLS.into_iter().map(histogram).collect()
}

/// Returns a histogram of classes with these upper bounds, where `None` is infinite.
fn histogram(sum: u64, bounds: impl Iterator<Item = Option<u64>>, counts: &[u64]) -> Sample {
    let bounds = bounds.map(|bound| bound.map_or(f64::INFINITY, |bound| bound as f64));
    let buckets = bounds.zip(counts.iter().copied()).collect();
    Sample::Histogram { sum: sum as f64, count: counts.iter().sum(), buckets }
}

fn by_protocol(udp: u64, http: u64) -> Vec<LabelledSample> {
    vec![labelled(&["udp"], udp), labelled(&["http"], http)]
}

fn hook_refusals(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let hooks = &snapshot.hooks;
    let of_hook = |outcome: &Outcome| outcome.hook().filter(|hook| hooks.contains(hook));
    let outcomes = Outcome::ALL.iter().filter_map(|outcome| Some((of_hook(outcome)?, outcome)));
    let count = |outcome: Outcome| -> u64 {
        snapshot.shards.iter().map(|shard| shard.stats.requests(outcome)).sum()
    };
    outcomes.map(|(hook, outcome)| labelled(&[hook, outcome.name()], count(*outcome))).collect()
}

fn clients(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let total: u64 = snapshot.clients.iter().map(|share| share.announces).sum();
    let share = |count: u64| Float(count as f64 / total.max(1) as f64);
    let shares = snapshot.clients.iter();
    shares.map(|client| (vec![client.name.clone()], share(client.announces))).collect()
}

fn batches(shard: &ShardSnapshot) -> Sample {
    let ShardStats { batches, arrived, .. } = &shard.stats;
    let bounds = (0..BATCH_SIZES).map(|class| (class + 1 < BATCH_SIZES).then(|| (2 << class) - 1));
    histogram(*arrived, bounds, batches)
}

fn turn_phases(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let seconds = TurnPhase::ALL.into_iter().zip(shard.stats.turn_times.phase_ns);
    seconds.map(|(phase, ns)| (vec![phase.name().to_owned()], Float(ns as f64 / 1e9))).collect()
}

fn peers(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let table = &shard.stats.table;
    let mut samples = Vec::new();
    for (role, by_family) in [("seeder", table.seeders), ("leecher", table.leechers)] {
        for (family, name) in FAMILIES {
            samples.push(labelled(&[name, role], by_family[family as usize]));
        }
    }
    samples
}

fn swarms(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let Some((_, summary)) = &snapshot.summary else { return Vec::new() };
    let mut sum = 0;
    let sample = |class: usize| {
        sum += summary.sizes[class];
        let max = swarm_size_max(class).map_or_else(|| "+Inf".to_owned(), |max| max.to_string());
        (vec![max], Integer(sum))
    };
    (0..SWARM_SIZE_CLASSES).map(sample).collect()
}

fn evicted(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let evicted = &shard.stats.table.evicted;
    vec![
        labelled(&["empty_torrent"], evicted.empty_torrents),
        labelled(&["source"], evicted.source_peers),
    ]
}

fn connection_ages(shard: &ShardSnapshot) -> Sample {
    let http = &shard.stats.http;
    let bounds = AGE_BOUNDS_SECS.into_iter().map(Some).chain([None]);
    histogram(http.ages_secs, bounds, &http.ages)
}

fn tls_versions(shard: &ShardSnapshot) -> Vec<LabelledSample> {
    let http = &shard.stats.http;
    vec![labelled(&["1.2"], http.tls_1_2), labelled(&["1.3"], http.tls_1_3)]
}

fn reloads(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
    let process = &snapshot.monitored.process;
    let results = [("success", &process.reloads), ("failure", &process.failed_reloads)];
    results.map(|(result, count)| (vec![result.to_owned()], load(count))).into()
}

fn list_entries(snapshot: &MetricsSnapshot) -> Vec<LabelledSample> {
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
