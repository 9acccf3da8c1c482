//! The state of the tracker in one structure, as `/v1/status` returns it.

use super::monitored::{Monitored, STUCK_SECS};
use crate::process::{log, memory};
use crate::stats::cluster_status::ClusterStatus;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, ShardStats};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use tsubame_storage::Family;

/// State of the tracker. Counts are those since the start.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Seconds since the start.
    pub uptime_secs: f64,
    /// Whether `/readyz` replies 503 because the operator has asked for that, or the tracker is stopping.
    pub draining: bool,
    /// Whether the kernel steers requests to the shard that owns the torrent.
    pub steering: bool,
    /// Level of the log.
    pub log_level: String,
    /// Swarms of all shards.
    pub swarms: SwarmStatus,
    /// Memory of the process.
    pub memory: MemoryStatus,
    /// Requests by outcome, without those that did not occur.
    pub requests: Vec<RequestCount>,
    /// Payload bytes of both protocols.
    pub bytes: ByteStatus,
    /// Open HTTP connections.
    pub http_connections: u64,
    /// Shards.
    pub shards: Vec<ShardStatus>,
    /// Sampled announces of the most frequent client programs.
    pub clients: Vec<ClientStatus>,
    /// Hooks in their order.
    pub hooks: Vec<HookStatus>,
    /// The cluster, if the tracker is a node of one.
    pub cluster: Option<ClusterSummary>,
}

/// Swarms of all shards.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SwarmStatus {
    /// Torrents, including those without peers.
    pub torrents: u64,
    /// Torrents without peers.
    pub empty_torrents: u64,
    /// Seeders with IPv4 and with IPv6 addresses.
    pub seeders: [u64; 2],
    /// Leechers with IPv4 and with IPv6 addresses.
    pub leechers: [u64; 2],
    /// Estimated number of different endpoints, as of the last scan.
    pub distinct_peers: Option<u64>,
    /// Peers that expired.
    pub expired_peers: u64,
}

/// Memory of the process in bytes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct MemoryStatus {
    /// Maximum of the swarm tables and the queues between shards.
    pub limit_bytes: u64,
    /// Swarm tables, by their own accounting.
    pub table_bytes: u64,
    /// Queues between shards.
    pub mesh_bytes: u64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Memory pressure of the worst shard, from 0 to 1.
    pub pressure: f64,
}

/// Number of requests with an outcome.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RequestCount {
    /// `udp` or `http`.
    pub protocol: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Kind of request, as in metrics.
    pub kind: String,
    /// Outcome, as in metrics.
    pub outcome: String,
    /// Number of requests.
    pub count: u64,
}

/// Payload bytes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ByteStatus {
    /// Received over UDP.
    pub udp_received: u64,
    /// Sent over UDP.
    pub udp_sent: u64,
    /// Received over HTTP and HTTPS.
    pub http_received: u64,
    /// Sent over HTTP and HTTPS.
    pub http_sent: u64,
}

/// State of a shard.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ShardStatus {
    /// Processor time of its thread in seconds.
    pub busy_secs: f64,
    /// Seconds since its last update; above 5 it is stuck.
    pub last_update_age_secs: u64,
    /// Datagrams received.
    pub datagrams: u64,
    /// Batches of datagrams.
    pub batches: u64,
    /// Datagrams that the kernel dropped.
    pub kernel_dropped: u64,
    /// Torrents.
    pub torrents: u64,
    /// Peers.
    pub peers: u64,
    /// Memory of its swarm table.
    pub table_bytes: u64,
}

/// Sampled announces of a client program.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ClientStatus {
    /// Start of its peer ids.
    pub name: String,
    /// Number of sampled announces.
    pub announces: u64,
}

/// State of a hook.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct HookStatus {
    /// Name of the hook.
    pub name: String,
    /// Entries of its lists; `None` if it has none.
    pub entries: Option<u64>,
    /// Requests that hooks of this name refused.
    pub refused: u64,
}

/// State of the cluster.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ClusterSummary {
    /// Name of this node.
    pub node: String,
    /// The state as a text, as in `/healthz`.
    pub state: String,
    /// Whether this node is connected and has the swarms of all nodes from which it gets messages.
    pub complete: bool,
    /// The other nodes.
    pub nodes: Vec<NodeSummary>,
}

/// State of another node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeSummary {
    /// Its name.
    pub name: String,
    /// Whether it takes part and messages of it arrive.
    pub present: bool,
    /// Seconds since changes of it are missing; 0 if none are.
    pub lag_secs: f64,
}

impl NodeSummary {
    /// Returns whether messages of the node arrive, as a text.
    pub fn state(&self) -> &'static str {
        if self.present { "present" } else { "no messages" }
    }

    /// Returns for how long changes have been missing, as a text.
    pub fn lag(&self) -> String {
        if self.lag_secs > 0.0 { format!("{:.1} s", self.lag_secs) } else { "-".to_owned() }
    }
}

impl ShardStatus {
    /// Returns whether the shard has not updated its statistics for too long.
    pub fn is_stuck(&self) -> bool {
        self.last_update_age_secs > STUCK_SECS
    }
}

impl Status {
    /// Reads the state.
    pub fn read(monitored: &Monitored) -> Self {
        let shards: Vec<_> = monitored.shared_stats.iter().map(|stats| stats.read()).collect();
        let sum = monitored.sum();
        let (process, served) = (&monitored.process, monitored.served_config());
        let distinct = monitored
            .summary()
            .and_then(|(_, summary)| summary.distinct.as_ref().map(|distinct| distinct.estimate()));
        let clients = monitored.clients().into_iter();
        let now = monitored.clock.now().monotonic.0;
        let ages =
            monitored.shared_stats.iter().map(|stats| now.saturating_sub(stats.last_update().0));
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_secs: monitored.uptime().as_secs_f64(),
            draining: process.is_draining.load(Ordering::Relaxed),
            steering: process.steering_attached.load(Ordering::Relaxed),
            log_level: log::level().name().to_owned(),
            swarms: SwarmStatus {
                torrents: sum.table.torrents as u64,
                empty_torrents: sum.table.empty_torrents as u64,
                seeders: sum.table.seeders,
                leechers: sum.table.leechers,
                distinct_peers: distinct,
                expired_peers: sum.table.expired_peers,
            },
            memory: MemoryStatus {
                limit_bytes: process.memory_limit_bytes.load(Ordering::Relaxed),
                table_bytes: sum.table.bytes as u64,
                mesh_bytes: process.mesh_bytes,
                resident_bytes: memory::resident_bytes().map(|bytes| bytes as u64),
                pressure: f64::from(sum.table.pressure_per_1_000) / 1_000.0,
            },
            requests: request_counts(&sum),
            bytes: ByteStatus {
                udp_received: sum.received_bytes,
                udp_sent: sum.sent_bytes,
                http_received: sum.http.received_bytes,
                http_sent: sum.http.sent_bytes,
            },
            http_connections: sum.http.open,
            shards: shards.iter().zip(ages).map(|(stats, age)| shard_status(stats, age)).collect(),
            clients: clients
                .map(|share| ClientStatus { name: share.name, announces: share.announces })
                .collect(),
            hooks: served.hooks.iter().map(|name| hook_status(name, monitored, &sum)).collect(),
            cluster: monitored.cluster.as_ref().map(|cluster| cluster_summary(cluster.read())),
        }
    }
}

fn cluster_summary(status: ClusterStatus) -> ClusterSummary {
    let state = status.state();
    let nodes = status.nodes.into_iter().map(|node| NodeSummary {
        name: node.name,
        present: node.is_present,
        lag_secs: node.lag.as_secs_f64(),
    });
    let nodes = nodes.collect();
    ClusterSummary { node: status.node, state, complete: status.is_complete, nodes }
}

fn request_counts(sum: &ShardStats) -> Vec<RequestCount> {
    let mut counts = Vec::new();
    for (protocol, protocol_name) in [(Protocol::Udp, "udp"), (Protocol::Http, "http")] {
        for (family, family_name) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            for outcome in Outcome::ALL {
                let count = sum.requests_of(protocol, family, outcome);
                if count > 0 {
                    counts.push(RequestCount {
                        protocol: protocol_name.to_owned(),
                        family: family_name.to_owned(),
                        kind: outcome.kind().to_owned(),
                        outcome: outcome.name().to_owned(),
                        count,
                    });
                }
            }
        }
    }
    counts
}

fn shard_status(stats: &ShardStats, last_update_age_secs: u64) -> ShardStatus {
    ShardStatus {
        busy_secs: stats.busy_us as f64 / 1e6,
        last_update_age_secs,
        datagrams: stats.arrived,
        batches: stats.batches.iter().sum(),
        kernel_dropped: stats.ring.dropped_by_kernel,
        torrents: stats.table.torrents as u64,
        peers: stats.peers(),
        table_bytes: stats.table.bytes as u64,
    }
}

fn hook_status(name: &str, monitored: &Monitored, sum: &ShardStats) -> HookStatus {
    let sizes = monitored.served_config().list_sizes;
    let entries = sizes.iter().filter(|size| size.hook == name).map(|size| size.len as u64);
    let refusing = Outcome::ALL.into_iter().filter(|outcome| outcome.hook() == Some(name));
    HookStatus {
        name: name.to_owned(),
        entries: sizes.iter().any(|size| size.hook == name).then(|| entries.sum()),
        refused: refusing.map(|outcome| sum.requests(outcome)).sum(),
    }
}
