//! Tests of `/metrics` and of docs/metrics.md.

use super::*;
use crate::clock::Clock;
use crate::control::monitored::ServedConfig;
use crate::slow_reads::SlowReads;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, ShardStats};
use crate::stats::shared_stats::SharedStats;
use crate::stats::xdp_status::{XdpInterfaceStatus, XdpStatus};
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::{AnnounceEvent, Family, Seconds, TableStats};
use tsubame_udp::xdp::XdpMode;

fn monitored(stats: &ShardStats) -> Monitored {
    let shared_stats: [Arc<SharedStats>; 2] = std::array::from_fn(|_| Arc::default());
    shared_stats[1].publish(stats, Seconds(0));
    let clock = Clock::new();
    let slow_reads = SlowReads::new(clock, Duration::ZERO);
    Monitored {
        shared_stats: Arc::new(shared_stats),
        clock,
        slow_reads,
        process: Arc::default(),
        xdp: None,
        cluster: None,
    }
}

#[test]
fn metrics_are_labelled_by_shard_family_kind_and_outcome() {
    let mut stats = ShardStats::default();
    stats.count(Protocol::Http, Family::V6, Outcome::Joined);
    stats.count_announce(Protocol::Http, AnnounceEvent::Completed, 5);
    stats.ring.dropped_by_kernel = 7;
    stats.received_bytes = 98;
    stats.http.count_closed(11);
    [1, 2, 5, 64].into_iter().for_each(|arrived| stats.count_batch(arrived));
    stats.table = TableStats {
        torrents: 1,
        seeders: [2, 3],
        leechers: [4, 5],
        bytes: 6,
        ..TableStats::default()
    };
    let monitored = monitored(&stats);
    monitored.count_clients(&[*b"-qB4650-"; 2]);
    let plain = text(&monitored, MetricsFormat::Text);
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
    let text = text(&monitored, MetricsFormat::OpenMetrics);
    let joined = "protocol=\"http\",family=\"ipv6\",kind=\"announce\",outcome=\"joined\"}";
    for line in [
        &format!("tsubame_requests_total{{shard=\"1\",{joined} 1"),
        &format!("tsubame_requests_total{{shard=\"0\",{joined} 0"),
        "tsubame_announces_total{shard=\"1\",protocol=\"http\",event=\"completed\"} 1",
        "tsubame_reply_peers_bucket{le=\"3.0\",shard=\"1\",protocol=\"http\"} 0",
        "tsubame_reply_peers_bucket{le=\"7.0\",shard=\"1\",protocol=\"http\"} 1",
        "tsubame_received_bytes_total{shard=\"1\",protocol=\"udp\"} 98",
        "tsubame_kernel_dropped_total{shard=\"1\"} 7",
        "tsubame_batch_datagrams_sum{shard=\"1\"} 72.0",
        "tsubame_batch_datagrams_count{shard=\"1\"} 4",
        "tsubame_batch_datagrams_bucket{le=\"1.0\",shard=\"1\"} 1",
        "tsubame_batch_datagrams_bucket{le=\"7.0\",shard=\"1\"} 3",
        "tsubame_batch_datagrams_bucket{le=\"+Inf\",shard=\"1\"} 4",
        "tsubame_http_connection_age_seconds_bucket{le=\"60.0\",shard=\"1\"} 1",
        "tsubame_peers{shard=\"1\",family=\"ipv6\",role=\"seeder\"} 3",
        "tsubame_torrents{shard=\"1\"} 1",
        "tsubame_client_share{client=\"-qB4650-\"} 1.0",
        "tsubame_reloads_total{result=\"failure\"} 0",
        "# UNIT tsubame_uptime_seconds seconds",
        "# EOF",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_format_is_negotiated() {
    use MetricsFormat::{OpenMetrics, Text};
    // The third one is that of Prometheus 2.42.
    for (accept, format) in [
        ("", Text),
        ("*/*", Text),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OpenMetrics,
        ),
        ("application/openmetrics-text", OpenMetrics),
        ("application/openmetrics-text; q=0", Text),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.9", Text),
    ] {
        assert_eq!(MetricsFormat::accepted([accept].into_iter()), format, "{accept}");
    }
}

/// Environment variable that makes the test write docs/metrics.md instead of comparing it.
const UPDATE: &str = "TSUBAME_UPDATE_DOCS";

const DOCUMENTATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

#[test]
fn the_documentation_is_made_from_the_catalog() {
    let mut table = "| metric | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for metric in METRICS {
        let (kind, suffix) = match metric.kind {
            MetricKind::Counter => ("counter", "_total"),
            MetricKind::Gauge => ("gauge", ""),
            MetricKind::Histogram => ("histogram", ""),
            MetricKind::Info => ("info", "_info"),
        };
        let name = format!("`tsubame_{}{suffix}`", metric.name);
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (labels, help) = (labels.join(", "), metric.help);
        table.push_str(&format!("| {name} | {kind} | {labels} | {help} |\n"));
    }
    let text = std::fs::read_to_string(DOCUMENTATION).expect("the file is in the repository");
    let (before, rest) = text.split_once("<!-- metrics -->\n").expect("the start is marked");
    let (_, after) = rest.split_once("<!-- end -->\n").expect("the end is marked");
    let expected = format!("{before}<!-- metrics -->\n{table}<!-- end -->\n{after}");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(DOCUMENTATION, &expected).expect("the file is writable");
    }
    let is_current = std::env::var_os(UPDATE).is_some() || text == expected;
    assert!(
        is_current,
        "docs/metrics.md is outdated; run: {UPDATE}=1 cargo test --lib the_documentation"
    );
}

/// What XDP answers and drops is counted under the same names, and is a part of all sums.
#[test]
fn requests_of_xdp_are_counted_as_those_of_a_shard() {
    let (mut monitored, mut stats) = (monitored(&ShardStats::default()), ShardStats::default());
    stats.set_requests(Protocol::Udp, Family::V4, Outcome::Connected, 5);
    stats.set_requests(Protocol::Udp, Family::V6, Outcome::ForbiddenNetwork, 3);
    (stats.received_bytes, stats.sent_bytes) = (130, 80);
    let xdp = Arc::<XdpStatus>::default();
    xdp.stats.publish(&stats, Seconds(0));
    xdp.set_interfaces(vec![XdpInterfaceStatus {
        name: "eth0".to_owned(),
        mode: Some(XdpMode::Native),
        sockets: 2,
        is_zero_copy: true,
        frames: vec![[1, 2, 3, 0], [4, 5, 6, 7]],
    }]);
    monitored.xdp = Some(xdp);
    monitored.set_served(ServedConfig { hooks: vec!["networks"], ..ServedConfig::default() });
    assert_eq!(monitored.sum().requests(Outcome::Connected), 5);
    let page = text(&monitored, MetricsFormat::Text);
    let requests = "tsubame_requests_total{shard=\"xdp\",protocol=\"udp\"";
    for line in [
        &format!("{requests},family=\"ipv4\",kind=\"connect\",outcome=\"connected\"}} 5"),
        &format!("{requests},family=\"ipv6\",kind=\"any\",outcome=\"forbidden_network\"}} 3"),
        "tsubame_received_bytes_total{shard=\"xdp\",protocol=\"udp\"} 130",
        "tsubame_sent_bytes_total{shard=\"xdp\",protocol=\"udp\"} 80",
        "tsubame_hook_refusals_total{hook=\"networks\",outcome=\"forbidden_network\"} 3",
        "tsubame_xdp_frames_total{interface=\"eth0\",queue=\"1\",verdict=\"answered\"} 5",
        "tsubame_xdp_frames_total{interface=\"eth0\",queue=\"1\",verdict=\"redirected\"} 7",
        "tsubame_xdp_sockets{interface=\"eth0\",zero_copy=\"true\"} 2",
        "tsubame_xdp_sockets{interface=\"eth0\",zero_copy=\"false\"} 0",
        &format!("tsubame_xdp_memory_bytes{{interface=\"eth0\"}} {}", 16 << 20),
        "tsubame_xdp_attached{interface=\"eth0\",mode=\"native\"} 1",
        "tsubame_xdp_attached{interface=\"eth0\",mode=\"generic\"} 0",
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
    }
}
