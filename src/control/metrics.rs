//! The page `/metrics`: the statistics of all shards, in the text format of Prometheus or of OpenMetrics.
//!
//! Statistics are labelled by shard, so that a problem of one shard is visible beside the others. They are read when
//! the page is requested; nothing is stored here.

use crate::control::monitored::Monitored;
use crate::process::memory;
use crate::shard::FIXED_BYTES;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{BATCH_SIZES, Protocol, ShardStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt::{self, Write};
use std::sync::atomic::Ordering;
use tsubame_storage::Family;

/// Formats of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, version 0.0.4.
    Text,
    /// The text format of OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Returns the format for a client with these `Accept` headers: OpenMetrics if they contain it.
    pub fn accepted<'a>(mut headers: impl Iterator<Item = &'a str>) -> Self {
        match headers.any(|header| header.contains("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// Returns the media type of the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Converts OpenMetrics text to the text format of Prometheus: the suffix of a counter is a part of its name, and the
/// type `info` does not exist.
fn to_text_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(name_and_help) = line.strip_prefix("# HELP ") {
            help = name_and_help.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            _ = writeln!(text, "{line}");
        }
    }
    text
}

const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Udp, "udp"), (Protocol::Http, "http")];

const FAMILIES: [(Family, &str); 2] = [(Family::V4, "ipv4"), (Family::V6, "ipv6")];

/// Returns the page with the current values of all metrics.
pub fn text(monitored: &Monitored, format: Format) -> String {
    let now = monitored.clock.now().monotonic;
    let shards =
        monitored.shared_stats.iter().zip(0_u16..).map(|(shared_stats, number)| ShardSnapshot {
            label: number.to_string(),
            stats: shared_stats.read(),
            last_update_age_secs: now.0.saturating_sub(shared_stats.last_update().0),
        });
    let uptime_secs = monitored.clock.elapsed().as_secs_f64();
    let snapshot =
        MetricsSnapshot { shards: shards.collect(), uptime_secs, monitored: monitored.clone() };
    let mut registry = Registry::with_prefix("tsubame");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    if format == Format::Text { to_text_format(&text) } else { text }
}

/// The statistics of a shard at one moment.
#[derive(Debug)]
struct ShardSnapshot {
    label: String,
    stats: ShardStats,
    last_update_age_secs: u64,
}

/// All values of the page.
#[derive(Debug)]
struct MetricsSnapshot {
    shards: Vec<ShardSnapshot>,
    uptime_secs: f64,
    monitored: Monitored,
}

impl Collector for MetricsSnapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.process(&mut encoder)?;
        self.requests(&mut encoder)?;
        self.batches(&mut encoder)?;
        self.peers(&mut encoder)?;
        self.evicted(&mut encoder)?;
        self.busy(&mut encoder)?;
        for (name, help, value) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for ShardSnapshot { label, stats, .. } in &self.shards {
                count(metric.encode_family(&[("shard", label.as_str())])?, value(stats))?;
            }
        }
        for (name, help, value) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for shard in &self.shards {
                let labels = [("shard", shard.label.as_str())];
                metric.encode_family(&labels)?.encode_gauge(&value(shard))?;
            }
        }
        Ok(())
    }
}

/// Name and help text of a counter, and the function that reads its value.
type CounterMetric = (&'static str, &'static str, fn(&ShardStats) -> u64);

const COUNTERS: [CounterMetric; 12] = [
    ("replies_sent", "Replies that the kernel accepted", |stats| stats.ring.sent),
    (
        "replies_failed",
        "Replies that the kernel refused: a send buffer was full, or there was no route",
        |stats| stats.ring.send_failed,
    ),
    (
        "kernel_dropped",
        "Datagrams that the kernel dropped, mostly because a receive buffer was full",
        |stats| stats.ring.dropped_by_kernel,
    ),
    ("io_uring_enters", "System calls to send and receive datagrams", |stats| stats.ring.enters),
    (
        "out_of_buffers",
        "Times that datagrams waited in the kernel because all receive buffers of the shard were in use",
        |stats| stats.ring.out_of_buffers,
    ),
    ("receives_failed", "Receives that failed and were started again", |stats| {
        stats.ring.receive_failed
    }),
    ("memory_pressure_episodes", "Times that memory became short", |stats| {
        stats.table.evicted.episodes
    }),
    ("http_accepted", "HTTP connections that were accepted", |stats| stats.http.accepted),
    (
        "http_timed_out",
        "HTTP connections that were closed because they were idle or too slow",
        |stats| stats.http.timed_out,
    ),
    (
        "http_evicted",
        "HTTP connections that were closed or refused to limit their number",
        |stats| stats.http.evicted,
    ),
    ("http_tls_failed", "HTTP connections with TLS errors, mostly in the handshake", |stats| {
        stats.http.tls_failed
    }),
    (
        "http_accept_failed",
        "HTTP connections that could not be accepted because too many files were open (ulimit -n)",
        |stats| stats.http.accept_failed,
    ),
];

/// Name and help text of a gauge, and the function that reads its value.
type GaugeMetric = (&'static str, &'static str, fn(&ShardSnapshot) -> u64);

const GAUGES: [GaugeMetric; 5] = [
    ("torrents", "Torrents in the swarm table, including those without peers", |shard| {
        shard.stats.table.torrents as u64
    }),
    (
        "empty_torrents",
        "Torrents without peers, which keep their count of downloads for a while",
        |shard| shard.stats.table.empty_torrents as u64,
    ),
    ("http_connections", "HTTP connections that are open", |shard| shard.stats.http.open),
    ("table_bytes", "Bytes of the swarm table, by its own accounting", |shard| {
        shard.stats.table.bytes as u64
    }),
    (
        "shard_last_update_age_seconds",
        "Seconds since the last update of the statistics of the shard; above 5 the shard is stuck",
        |shard| shard.last_update_age_secs,
    ),
];

impl MetricsSnapshot {
    fn process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        encoder
            .encode_descriptor("build", "Version of the tracker", None, MetricType::Info)?
            .encode_info(&version)?;
        let resident = memory::resident_bytes().map(|bytes| bytes as f64);
        let process = &self.monitored.process;
        let attached = f64::from(u8::from(process.steering_attached.load(Ordering::Relaxed)));
        let ceiling = process.memory_ceiling_bytes.load(Ordering::Relaxed) as f64;
        let stuck = self.monitored.slow_reads.stuck().len() as f64;
        let gauges = [
            (
                "steering_attached",
                "Whether the kernel steers announces to the shard that owns the torrent: 1 or 0",
                Some(attached),
            ),
            ("mesh_bytes", "Bytes of the queues between shards", Some(process.mesh_bytes as f64)),
            (
                "memory_ceiling_bytes",
                "Maximum bytes of the swarm tables and of the queues between shards",
                Some(ceiling),
            ),
            ("stuck_reads", "Reads of files that have not ended in time", Some(stuck)),
            ("uptime_seconds", "Seconds since the start of the process", Some(self.uptime_secs)),
            ("resident_bytes", "Bytes of resident memory of the process", resident),
            (
                "fixed_bytes_per_shard",
                "Bytes of the buffers and queues that a shard allocates at start",
                Some(FIXED_BYTES as f64),
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                encoder
                    .encode_descriptor(name, help, None, MetricType::Gauge)?
                    .encode_gauge(&value)?;
            }
        }
        let help = "Times that steering was switched off because one shard was overloaded";
        let detached = process.steering_detached.load(Ordering::Relaxed);
        let counter =
            encoder.encode_descriptor("steering_detached", help, None, MetricType::Counter)?;
        count(counter, detached)
    }

    fn busy(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Processor time of the thread of the shard, including time in the kernel";
        let mut metric =
            encoder.encode_descriptor("busy_seconds", help, None, MetricType::Counter)?;
        for ShardSnapshot { label, stats, .. } in &self.shards {
            let labels = [("shard", label.as_str())];
            let seconds = stats.busy_us as f64 / 1e6;
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, f64, u64>(&seconds, None)?;
        }
        Ok(())
    }

    fn evicted(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Torrents without peers, and peers of the largest networks, removed because memory was short";
        let mut metric = encoder.encode_descriptor("evicted", help, None, MetricType::Counter)?;
        for ShardSnapshot { label, stats, .. } in &self.shards {
            let evicted = &stats.table.evicted;
            for (reason, value) in
                [("empty_torrent", evicted.empty_torrents), ("source", evicted.source_peers)]
            {
                let labels = [("shard", label.as_str()), ("reason", reason)];
                count(metric.encode_family(&labels)?, value)?;
            }
        }
        let help =
            "Memory pressure: 0 while enough memory is free, 1 when new torrents are refused";
        let mut metric =
            encoder.encode_descriptor("memory_pressure", help, None, MetricType::Gauge)?;
        for ShardSnapshot { label, stats, .. } in &self.shards {
            let pressure = f64::from(stats.table.pressure_per_1_000) / 1_000.0;
            metric.encode_family(&[("shard", label.as_str())])?.encode_gauge(&pressure)?;
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests by outcome; a forwarded request is counted again by the shard that answers it";
        let mut metric = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for ShardSnapshot { label, stats, .. } in &self.shards {
            let origins = PROTOCOLS
                .iter()
                .flat_map(|protocol| FAMILIES.iter().map(move |family| (protocol, family)));
            for ((protocol, protocol_name), (family, family_name)) in origins {
                for outcome in Outcome::ALL {
                    let labels = [
                        ("shard", label.as_str()),
                        ("protocol", protocol_name),
                        ("family", family_name),
                        ("kind", outcome.kind()),
                        ("outcome", outcome.name()),
                    ];
                    let requests = stats.of_family(*protocol, *family, outcome);
                    count(metric.encode_family(&labels)?, requests)?;
                }
            }
        }
        Ok(())
    }

    fn batches(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help =
            "Datagrams that were answered together; batches of 64 mean that more were waiting";
        let mut metric =
            encoder.encode_descriptor("batch_datagrams", help, None, MetricType::Histogram)?;
        for ShardSnapshot { label, stats, .. } in &self.shards {
            let upper = |class: usize| match class {
                class if class + 1 < BATCH_SIZES => ((2_u64 << class) - 1) as f64,
                _ => f64::INFINITY,
            };
            let classes = stats.batches.iter().enumerate();
            let buckets: Vec<_> = classes.map(|(class, turns)| (upper(class), *turns)).collect();
            let (sum, turns) = (stats.arrived as f64, stats.batches.iter().sum());
            metric
                .encode_family(&[("shard", label.as_str())])?
                .encode_histogram::<NoLabelSet>(sum, turns, &buckets, None)?;
        }
        Ok(())
    }

    fn peers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric =
            encoder.encode_descriptor("peers", "Peers in all swarms", None, MetricType::Gauge)?;
        for ShardSnapshot { label, stats, .. } in &self.shards {
            let table = &stats.table;
            for (role, by_family) in [("seeder", table.seeders), ("leecher", table.leechers)] {
                for (family, family_name) in FAMILIES {
                    let labels =
                        [("shard", label.as_str()), ("family", family_name), ("role", role)];
                    metric.encode_family(&labels)?.encode_gauge(&by_family[family as usize])?;
                }
            }
        }
        Ok(())
    }
}

fn count(mut metric: MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::slow_reads::SlowReads;
    use crate::stats::shared_stats::SharedStats;
    use std::sync::Arc;
    use std::time::Duration;
    use tsubame_storage::{Seconds, TableStats};

    #[test]
    fn metrics_are_labelled_by_shard_family_kind_and_outcome() {
        let shared_stats: [Arc<SharedStats>; 2] = std::array::from_fn(|_| Arc::default());
        let mut stats = ShardStats::default();
        stats.count(Protocol::Http, Family::V6, Outcome::Joined);
        stats.ring.dropped_by_kernel = 7;
        [1, 2, 5, 64].into_iter().for_each(|arrived| stats.count_batch(arrived));
        stats.table = TableStats {
            torrents: 1,
            seeders: [2, 3],
            leechers: [4, 5],
            bytes: 6,
            ..TableStats::default()
        };
        shared_stats[1].publish(&stats, Seconds(0));
        let clock = Clock::new();
        let slow_reads = SlowReads::new(clock, Duration::ZERO);
        let process = Arc::default();
        let monitored =
            Monitored { shared_stats: Arc::new(shared_stats), clock, slow_reads, process };
        let plain = text(&monitored, Format::Text);
        for line in [
            "# TYPE tsubame_requests_total counter",
            "# TYPE tsubame_build_info gauge",
            "# TYPE tsubame_batch_datagrams histogram",
            "# TYPE tsubame_peers gauge",
            "tsubame_kernel_dropped_total{shard=\"1\"} 7",
        ] {
            assert!(plain.lines().any(|have| have == line), "{line} is not in\n{plain}");
        }
        assert!(!plain.contains("# EOF") && !plain.contains(" info\n"), "{plain}");
        let text = text(&monitored, Format::OpenMetrics);
        let joined = "protocol=\"http\",family=\"ipv6\",kind=\"announce\",outcome=\"joined\"}";
        for line in [
            &format!("tsubame_requests_total{{shard=\"1\",{joined} 1"),
            &format!("tsubame_requests_total{{shard=\"0\",{joined} 0"),
            "tsubame_kernel_dropped_total{shard=\"1\"} 7",
            "tsubame_batch_datagrams_sum{shard=\"1\"} 72.0",
            "tsubame_batch_datagrams_count{shard=\"1\"} 4",
            "tsubame_batch_datagrams_bucket{le=\"1.0\",shard=\"1\"} 1",
            "tsubame_batch_datagrams_bucket{le=\"7.0\",shard=\"1\"} 3",
            "tsubame_batch_datagrams_bucket{le=\"+Inf\",shard=\"1\"} 4",
            "tsubame_peers{shard=\"1\",family=\"ipv6\",role=\"seeder\"} 3",
            "tsubame_torrents{shard=\"1\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
    }
}
