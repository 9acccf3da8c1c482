//! The table of all metrics.

use super::cluster;
use super::sample::{LabelledSample, Sample, labelled, load};
use super::snapshot::{MetricsSnapshot, ShardSnapshot};
use super::values::{
    announces, batches, build, by_protocol, clients, connection_ages, evicted, hook_refusals,
    list_entries, peers, reloads, reply_peers, requests, snapshots, swarms, tls_versions,
    turn_phases, xdp_attached, xdp_frames, xdp_memory, xdp_requests, xdp_sockets,
};
use crate::shard::FIXED_BYTES;
use crate::stats::shard_stats::ShardStats;
use MetricKind::{Counter, Gauge, Histogram, Info};
use Sample::{Float, Integer};
use Source::{Process, ProcessLabelled, Shard, ShardLabelled, ShardOrXdp};
use std::sync::atomic::Ordering;

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
    /// As `ShardLabelled`; the second function returns those of the shard `xdp`: requests that end in the driver.
    ShardOrXdp(fn(&ShardSnapshot) -> Vec<LabelledSample>, fn(&ShardStats) -> Vec<LabelledSample>),
    /// One value for the process, or none.
    Process(fn(&MetricsSnapshot) -> Option<Sample>),
    /// Some values for the process, each with the values of the labels.
    ProcessLabelled(fn(&MetricsSnapshot) -> Vec<LabelledSample>),
}

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
            ShardLabelled(read) => shard_samples(read, snapshot),
            ShardOrXdp(read, read_xdp) => {
                let mut samples = shard_samples(read, snapshot);
                let of_xdp = snapshot.xdp.iter().flat_map(read_xdp);
                samples.extend(of_xdp.map(|sample| with_first_label("xdp".to_owned(), sample)));
                samples
            }
            Process(read) => {
                read(snapshot).into_iter().map(|sample| (Vec::new(), sample)).collect()
            }
            ProcessLabelled(read) => read(snapshot),
        }
    }
}

fn shard_samples(
    read: fn(&ShardSnapshot) -> Vec<LabelledSample>,
    snapshot: &MetricsSnapshot,
) -> Vec<LabelledSample> {
    let of_shard = |shard: &ShardSnapshot| {
        let label = shard.label();
        let samples = read(shard).into_iter();
        samples.map(|sample| with_first_label(label.clone(), sample)).collect::<Vec<_>>()
    };
    snapshot.shards.iter().flat_map(of_shard).collect()
}

fn with_first_label(label: String, (mut labels, sample): LabelledSample) -> LabelledSample {
    labels.insert(0, label);
    (labels, sample)
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

/// Creates a counter of the process.
const fn process_counter(
    name: &'static str,
    help: &'static str,
    read: fn(&MetricsSnapshot) -> Option<Sample>,
) -> Metric {
    metric(name, Counter, &[], help, Process(read))
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
        "Requests by outcome; a forwarded request is counted again by the shard that answers it. The shard xdp has \
         those that XDP answered or dropped",
        ShardOrXdp(requests, xdp_requests),
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
        ShardOrXdp(
            |it| by_protocol(it.stats.received_bytes, it.stats.http.received_bytes),
            |xdp| vec![labelled(&["udp"], xdp.received_bytes)],
        ),
    ),
    metric(
        "sent_bytes",
        Counter,
        &["shard", "protocol"],
        "Bytes that were sent: payload of UDP, and of TCP for HTTP and HTTPS",
        ShardOrXdp(
            |it| by_protocol(it.stats.sent_bytes, it.stats.http.sent_bytes),
            |xdp| vec![labelled(&["udp"], xdp.sent_bytes)],
        ),
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
    metric(
        "xdp_frames",
        Counter,
        &["interface", "queue", "verdict"],
        "Frames that the XDP program of an interface passed to the network stack, answered, dropped or redirected to \
         an AF_XDP socket, by receive queue",
        ProcessLabelled(xdp_frames),
    ),
    metric(
        "xdp_attached",
        Gauge,
        &["interface", "mode"],
        "Whether the XDP program is attached to a configured interface in this mode: 1 or 0",
        ProcessLabelled(xdp_attached),
    ),
    metric(
        "xdp_sockets",
        Gauge,
        &["interface", "zero_copy"],
        "Receive queues of a configured interface with AF_XDP sockets, by whether the driver uses the buffers of all \
         of them (zero copy)",
        ProcessLabelled(xdp_sockets),
    ),
    metric(
        "xdp_memory_bytes",
        Gauge,
        &["interface"],
        "Memory of the AF_XDP sockets of a configured interface; it is not a part of the memory of swarms",
        ProcessLabelled(xdp_memory),
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
    process_gauge("snapshot_age_seconds", "Time since the last complete snapshot", |it| {
        it.snapshot_age_secs().map(Integer)
    }),
    process_gauge("snapshot_write_seconds", "Time that the most recent snapshot took", |it| {
        let snapshots = &it.monitored.process.snapshots;
        snapshots.get(&snapshots.written_ms).map(|ms| Float(ms as f64 / 1e3))
    }),
    process_gauge("snapshot_bytes", "Length of the most recent snapshot", |it| {
        let snapshots = &it.monitored.process.snapshots;
        snapshots.get(&snapshots.written_bytes).map(Integer)
    }),
    metric(
        "snapshots",
        Counter,
        &["result"],
        "Snapshots, by result: success, or failure, after which the last complete one stays",
        ProcessLabelled(snapshots),
    ),
    process_gauge("restored_torrents", "Torrents that were read from a snapshot at start", |it| {
        let snapshots = &it.monitored.process.snapshots;
        snapshots.get(&snapshots.restored_torrents).map(Integer)
    }),
    process_gauge("restored_peers", "Peers that were read from a snapshot at start", |it| {
        let snapshots = &it.monitored.process.snapshots;
        snapshots.get(&snapshots.restored_peers).map(Integer)
    }),
    process_gauge("cluster_connected", "Whether a NATS server is connected: 1 or 0", |it| {
        cluster::value(it, |status| status.is_connected.into())
    }),
    process_gauge(
        "cluster_complete",
        "Whether this node is connected, takes part and has the swarms of all nodes from which it gets messages: \
         1 or 0",
        |it| cluster::value(it, |status| status.is_complete.into()),
    ),
    metric(
        "cluster_node_up",
        Gauge,
        &["node"],
        "Whether another node takes part and messages of it have arrived in the last 10 seconds: 1 or 0",
        ProcessLabelled(cluster::nodes_up),
    ),
    metric(
        "cluster_node_lag_seconds",
        Gauge,
        &["node"],
        "Time for which changes of another node have been missing; 0 if none are missing, or a snapshot has brought \
         them",
        ProcessLabelled(cluster::node_lags),
    ),
    metric(
        "cluster_batches",
        Counter,
        &["direction"],
        "Batches of changes that this node made (sent), applied (received), and sent again on request (resent)",
        ProcessLabelled(cluster::batches),
    ),
    metric(
        "cluster_changes",
        Counter,
        &["direction"],
        "Changes in the batches that this node made (sent) and applied (received)",
        ProcessLabelled(cluster::changes),
    ),
    metric(
        "cluster_bytes",
        Counter,
        &["direction"],
        "Bytes of all messages to other nodes, also of those that could not be sent, and of all messages received",
        ProcessLabelled(cluster::bytes),
    ),
    metric(
        "cluster_snapshots",
        Counter,
        &["direction"],
        "Snapshots of all swarms that were sent to other nodes and received from them",
        ProcessLabelled(cluster::snapshots),
    ),
    metric(
        "cluster_lost_records",
        Counter,
        &["direction"],
        "Changes of clients that were not published (sent), and torrents, peers and changes of other nodes that were \
         not applied (received), because too many waited",
        ProcessLabelled(cluster::lost_records),
    ),
    process_counter(
        "cluster_refused_records",
        "Torrents and peers of other nodes that were not added because memory was short or a swarm was at its limit",
        |it| cluster::value(it, |status| status.refused_records),
    ),
    process_counter(
        "cluster_resend_requests",
        "Requests to other nodes to send batches again",
        |it| cluster::value(it, |status| status.counts.resend_requests),
    ),
    process_counter(
        "cluster_unsent_messages",
        "Messages that could not be sent because no NATS server was connected or the connection was too slow",
        |it| cluster::value(it, |status| status.unsent_messages),
    ),
    process_counter(
        "cluster_ignored_messages",
        "Messages that were invalid, or of a node that is ignored",
        |it| cluster::value(it, |status| status.counts.ignored_messages),
    ),
    process_counter(
        "cluster_imported_records",
        "Torrents and peers of other nodes that were added, updated or removed",
        |it| cluster::value(it, |status| status.imported_records),
    ),
    process_gauge(
        "cluster_waiting_records",
        "Torrents, peers and changes of other nodes that wait for a shard",
        |it| cluster::value(it, |status| status.waiting_records),
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
