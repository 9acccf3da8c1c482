//! Log messages for the operator: at start, while serving, and at the end.

use crate::config::Config;
use crate::control::listeners::ControlListeners;
use crate::process::check;
use crate::process::listen::udp::UdpListeners;
use crate::process::listen::{ListenKey, Listeners};
use crate::process::memory;
use crate::process::privileges;
use crate::process::settings::table_bytes;
use crate::process::steering::SteeringChange;
use crate::shard::FIXED_BYTES;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, ShardStats};
use crate::text::{grouped, plural};
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;
use tracing::{debug, info, warn};
use tsubame_storage::Family;

/// Bytes that a datagram takes in a receive buffer. The kernel does not count its length but its memory, a page
/// fragment of the network card.
const DATAGRAM_COST_BYTES: usize = 2304;

/// Rate of datagrams for which the capacity of a receive buffer is logged.
const DATAGRAMS_PER_MS: usize = 100;

/// Logs what is served, and warnings about settings that cost performance.
pub fn started(
    (config, path): (&Config, Option<&Path>),
    Listeners { udp: listeners, http, https, .. }: &Listeners,
    (cores, files): (&[usize], usize),
    (policy, policy_warnings): (&str, &[String]),
    control: &ControlListeners,
) {
    let (version, memory_limit) = (env!("CARGO_PKG_VERSION"), memory::limit(config.storage.memory));
    for address in &listeners.addresses {
        info!("serving udp://{address}");
    }
    for address in &http.addresses {
        info!("serving http://{address}");
    }
    for address in &https.addresses {
        info!("serving https://{address}");
    }
    let names: Vec<_> = cores.iter().map(usize::to_string).collect();
    let steering = match &listeners.steered {
        Ok(true) => "the kernel steers announces to their shard",
        _ if cores.len() == 1 => "steering is not needed",
        _ => "shards forward announces to each other",
    };
    info!(
        "tsubame {version}: {} on {} {}; {steering}",
        plural(cores.len() as u64, "shard"),
        if cores.len() == 1 { "core" } else { "cores" },
        names.join(", ")
    );
    info!(
        "io_uring: multishot receive, buffer rings, fixed files, DEFER_TASKRUN; local addresses \
         with their own sockets: {}",
        listeners.local_addresses
    );
    info!(
        "memory limit: {} ({} for the swarms of each shard), derived from {}; connection ids are valid for {}",
        iec(memory_limit.bytes),
        iec(table_bytes(config, cores.len() as u16)),
        memory_limit.origin,
        humantime::format_duration(config.udp.connection_id_lifetime)
    );
    let buffer = listeners.receive_buffer;
    if !listeners.addresses.is_empty() {
        info!(
            "a receive buffer of {} holds {} ms of traffic at {},000 datagrams per second",
            iec(buffer),
            // The kernel doubles the size of a buffer for its overhead, which the cost of a datagram includes.
            2 * buffer / DATAGRAM_COST_BYTES / DATAGRAMS_PER_MS,
            DATAGRAMS_PER_MS
        );
    }
    if !config.hooks.is_empty() {
        info!("policy: {policy}");
    }
    runs_as_user();
    control_listens(control);
    let udp = listeners.left_out.iter().map(|address| (ListenKey::Udp, address));
    let http = http.left_out.iter().map(|address| (ListenKey::Http, address));
    let https = https.left_out.iter().map(|address| (ListenKey::Https, address));
    for (key, address) in udp.chain(http).chain(https) {
        warn!(
            "{key}: {address} is skipped because this machine does not support its address family"
        );
    }
    warnings(config, listeners, (cores, files));
    privileges::inaccessible_files(config, path).iter().for_each(|warning| warn!("{warning}"));
    policy_warnings.iter().for_each(|warning| warn!("{warning}"));
}

/// Logs the user that the process runs as; root is a warning.
fn runs_as_user() {
    match privileges::user_name().as_str() {
        "root" | "0" => warn!(
            "user: the tracker runs as root{}; set the key user to an unprivileged user, or use the systemd unit",
            match privileges::has_privileges_of_root() {
                true => ", with capabilities that could not be given up",
                false => " without most of its capabilities, but can still write all files",
            }
        ),
        name => info!("user: {name}"),
    }
}

fn control_listens(control: &ControlListeners) {
    if let Some(Ok(address)) = control.tcp.as_ref().map(TcpListener::local_addr) {
        info!("control plane on http://{address}/: status page, /metrics, /healthz and /v1");
        if !address.ip().is_loopback() {
            warn!(
                "control.listen: {address} can be reached from other hosts, which can read the metrics; listen on \
                 127.0.0.1, or permit only the monitoring host in the firewall"
            );
        }
    }
    if let Some((_, path)) = &control.unix {
        info!("control plane on {}", path.display());
    }
}

fn warnings(config: &Config, listeners: &UdpListeners, (cores, files): (&[usize], usize)) {
    check::warnings(config).iter().for_each(|warning| warn!("{warning}"));
    let wanted = config.udp.receive_buffer;
    if listeners.receive_buffer < wanted {
        warn!(
            "udp.receive_buffer: the kernel permits {} of {}, so that bursts of datagrams may be dropped; run \
             sysctl -w net.core.rmem_max={wanted}, or grant CAP_NET_ADMIN",
            iec(listeners.receive_buffer),
            iec(wanted)
        );
    }
    if let Err(error) = &listeners.steered {
        warn!(
            "udp.steering: the kernel refuses the steering program ({error}), so that shards forward announces \
             to each other; set udp.steering to off to accept that"
        );
    }
    let connections = config.http.limits.connections as usize;
    let serves_http = !config.http.listen.is_empty() || !config.http.tls.listen.is_empty();
    if serves_http && files < connections {
        warn!(
            "http.limits.connections: it is {connections}, but the limit on open files permits only {files}; \
             raise that limit (ulimit -n, LimitNOFILE in the unit), or lower http.limits.connections"
        );
    }
    let mut distinct = cores.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < cores.len() {
        warn!(
            "cpus: a core is listed more than once, so that its shards compete for it; list each core once"
        );
    }
}

/// Logs a warning for each error counter that has increased between `before` and `now`.
pub fn warn_of_errors(before: &ShardStats, now: &ShardStats, steered: bool) {
    let more = |outcome| now.requests(outcome) - before.requests(outcome);
    if steered && more(Outcome::Forwarded) > 0 {
        warn!(
            "{} announces arrived at a shard that does not own the torrent although the kernel steers; this \
             is a bug, please report it",
            more(Outcome::Forwarded)
        );
    }
    if now.http.accept_failed > before.http.accept_failed {
        warn!(
            "http: connections cannot be accepted because too many files are open; raise the limit (ulimit -n, \
             LimitNOFILE in the unit), or lower http.limits.connections"
        );
    }
    for (outcome, why) in [
        (Outcome::ShedMesh, "the queue to another shard was full"),
        (Outcome::ShedLate, "another shard did not reply in time"),
        (Outcome::ShedSlots, "no reply slot was free"),
        (Outcome::ShedScrape, "another shard replied late, or too many scrapes were pending"),
    ] {
        if more(outcome) > 0 {
            warn!("{} requests were dropped because {why}", more(outcome));
        }
    }
    let dropped = now.ring.dropped_by_kernel - before.ring.dropped_by_kernel;
    if dropped > 0 {
        warn!(
            "the kernel dropped {dropped} datagrams because a receive buffer was full: a shard is overloaded, or \
             udp.receive_buffer is too small for bursts"
        );
    }
    let waited = now.ring.out_of_buffers - before.ring.out_of_buffers;
    if waited > 0 {
        warn!(
            "datagrams waited in the kernel {waited} times because all receive buffers of a shard were in use"
        );
    }
    let receives = now.ring.receive_failed - before.ring.receive_failed;
    if receives > 0 {
        warn!(
            "{receives} receives failed and were started again; check whether an interface goes up and down"
        );
    }
    let failed = now.ring.send_failed - before.ring.send_failed;
    if failed > 0 {
        warn!("the kernel refused {failed} replies: a send buffer was full, or there was no route");
    }
    for (outcome, why) in [
        (Outcome::RefusedMemory, "peers were not stored because storage.memory is reached"),
        (
            Outcome::RefusedNewTorrent,
            "new torrents were not stored because storage.memory is nearly reached",
        ),
        (
            Outcome::RefusedSource,
            "peers were not stored because their network has reached its share of storage.memory",
        ),
    ] {
        if more(outcome) > 0 {
            warn!("{} {why}", more(outcome));
        }
    }
    debug!("{}", line(now));
}

/// Maximum bytes of the kernel's connection tracking table that are read.
const CONNTRACK_LEN_MAX: u64 = 1 << 20;

/// Logs a warning if the kernel tracks connections to one of these UDP ports, or may do so; returns whether it logged
/// one.
pub fn connection_tracking(ports: &[u16]) -> bool {
    let Some(first_port) = ports.first() else { return false };
    let mut table = String::new();
    let read = File::open("/proc/net/nf_conntrack")
        .and_then(|file| file.take(CONNTRACK_LEN_MAX).read_to_string(&mut table));
    let entries = || -> Option<u64> {
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?;
        count.trim().parse().ok().filter(|count| *count > 0)
    };
    let cure = "exempt the port (deploy/nftables.conf): clients fill up the connection table, and then the kernel \
                drops datagrams silently";
    match read {
        Ok(_) => {
            let Some(port) = ports.iter().find(|port| is_tracked(&table, **port)) else {
                return false;
            };
            warn!(
                "udp.listen: port {port} is tracked by the kernel's connection tracking (nf_conntrack); {cure}"
            );
        }
        // Only root may read the table.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let Some(entries) = entries() else { return false };
            warn!(
                "connection tracking (nf_conntrack) has {entries} entries; if port {} is among them, {cure}",
                first_port
            );
        }
        Err(_) => return false,
    }
    true
}

/// Returns whether the connection tracking table has a UDP connection to a port.
fn is_tracked(table: &str, port: u16) -> bool {
    let field = format!("dport={port}");
    // The first `dport` is that of the original direction, the second that of replies.
    let is_to =
        |line: &str| line.split(' ').find(|it| it.starts_with("dport=")) == Some(field.as_str());
    table.lines().any(|line| line.split_ascii_whitespace().any(|word| word == "udp") && is_to(line))
}

/// Logs that memory is short, and the networks with the most peers.
pub fn pressure(now: &ShardStats) {
    let table = &now.table;
    let top: Vec<_> = table
        .top_sources
        .iter()
        .flatten()
        .map(|top| format!("{} ({} peers)", top.source, top.peers))
        .collect();
    warn!(
        "storage.memory: memory is short ({} used); torrents without peers are removed, then peers of the networks \
         with the most peers: {}",
        iec(table.bytes),
        top.join(", ")
    );
}

/// Logs that steering was switched off or on.
pub fn steering(change: std::io::Result<Option<SteeringChange>>) {
    match change {
        Ok(None) => {}
        Ok(Some(SteeringChange::Detached(shard))) => warn!(
            "udp.steering: shard {shard} is overloaded while others idle; steering is switched off until the overload \
             has ended, and shards forward announces to each other"
        ),
        Ok(Some(SteeringChange::Attached)) => {
            info!("udp.steering: the kernel steers announces to their shard again");
        }
        Err(error) => warn!("udp.steering: cannot switch steering: {error}; restart the tracker"),
    }
}

/// Returns the rates of an interval and the swarms as one line of text.
pub fn status_line(before: &ShardStats, now: &ShardStats, interval: Duration) -> String {
    let rate = |of: fn(&ShardStats) -> u64| {
        let per_second = of(now).saturating_sub(of(before)) as f64 / interval.as_secs_f64();
        grouped(per_second.round() as u64)
    };
    format!(
        "{} connects/s, {} announces/s, {} scrapes/s; {} refused/s, {} dropped/s; {} torrents, {} peers, {} used",
        rate(|it| it.requests(Outcome::Connected)),
        rate(ShardStats::announces),
        rate(|it| it.requests(Outcome::Scraped)),
        rate(|it| it.rejected() + it.refused_by_policy()),
        rate(|it| it.shed() + it.ring.dropped_by_kernel),
        grouped(now.table.torrents as u64),
        grouped(now.peers()),
        iec(now.table.bytes)
    )
}

/// Logs the rates of an interval and the swarms.
pub fn summary(before: &ShardStats, now: &ShardStats, interval: Duration) {
    info!("{}", status_line(before, now, interval));
}

/// Logs the statistics at the end.
pub fn stopped(stats: &ShardStats, uptime: Duration, ended: bool) {
    let uptime = humantime::format_duration(Duration::from_secs(uptime.as_secs()));
    info!("stopped after {uptime}: {}", line(stats));
    if !ended {
        warn!("a shard did not stop in time; the kernel closes its sockets when the process exits");
    }
}

/// Returns the statistics as one line of text.
fn line(stats: &ShardStats) -> String {
    let resident = memory::resident_bytes().map_or_else(|| "?".to_owned(), iec);
    // Forwarded requests are counted by the shard that answers them.
    let ends = Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Forwarded);
    let [over_udp, over_http] = Protocol::ALL.map(|protocol| {
        Family::ALL.map(|family| {
            ends.clone().map(|end| stats.requests_of(protocol, family, end)).sum::<u64>()
        })
    });
    let v6 = over_udp[1] + over_http[1];
    let http: u64 = over_http.iter().sum();
    format!(
        "{} connects, {} announces, {} scrapes answered, {} rejected, {} refused by policy, {} shed; \
         {v6} over IPv6, {http} over HTTP, {} forwarded between shards; \
         {} torrents, {} peers in {}, {resident} resident, {} fixed per shard",
        stats.requests(Outcome::Connected),
        stats.announces(),
        stats.requests(Outcome::Scraped),
        stats.rejected(),
        stats.refused_by_policy(),
        stats.shed(),
        stats.requests(Outcome::Forwarded),
        stats.table.torrents,
        stats.peers(),
        iec(stats.table.bytes),
        iec(FIXED_BYTES),
    )
}

fn iec(bytes: usize) -> String {
    crate::text::iec(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_rates_and_separators() {
        let (before, mut now) = (ShardStats::default(), ShardStats::default());
        for _ in 0..12_345 {
            now.count(Protocol::Udp, Family::V4, Outcome::Refreshed);
        }
        now.ring.dropped_by_kernel = 20;
        now.table.torrents = 1_234_567;
        let line = status_line(&before, &now, Duration::from_secs(10));
        assert_eq!(
            line,
            "0 connects/s, 1,235 announces/s, 0 scrapes/s; 0 refused/s, 2 dropped/s; 1,234,567 torrents, 0 peers, \
             0 B used"
        );
    }

    #[test]
    fn tracked_connections_to_a_port_are_detected() {
        let table = "ipv4     2 tcp      6 300 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 \
                     sport=40000 dport=6969 src=10.0.0.2 dst=10.0.0.1 sport=6969 dport=40000 \
                     [ASSURED] mark=0 use=1\n\
                     ipv4     2 udp      17 20 src=10.0.0.3 dst=10.0.0.2 \
                     sport=6881 dport=6970 src=10.0.0.2 dst=10.0.0.3 sport=6970 dport=6881 \
                     mark=0 use=1\n";
        assert!(is_tracked(table, 6970));
        assert!(!is_tracked(table, 6969), "a TCP connection does not count");
        assert!(!is_tracked(table, 6881), "the port of the reply direction does not count");
    }
}
