//! Log messages for the operator: at start, while serving, and at the end.

use crate::config::Config;
use crate::control::server::ControlListeners;
use crate::process::check;
use crate::process::listen::http::HttpListeners;
use crate::process::listen::udp::{ListenKey, UdpListeners};
use crate::process::memory::{self, MemoryLimit};
use crate::process::settings::{files_for_connections, table_bytes};
use crate::process::steering::SteeringChange;
use crate::shard::FIXED_BYTES;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, ShardStats};
use bytesize::ByteSize;
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;
use tracing::{debug, info, warn};
use tsubame_storage::Family;

/// Bytes that a datagram takes in a receive buffer: the kernel counts the page fragment of the network card that it is
/// in, not its length.
const DATAGRAM_COST_BYTES: usize = 2304;

/// Rate that the time of a receive buffer is given for.
const DATAGRAMS_PER_MS: usize = 100;

/// Logs what is served, and warnings about settings that cost performance.
pub fn started(
    config: &Config,
    (listeners, http, https): (&UdpListeners, &HttpListeners, &HttpListeners),
    cores: &[usize],
    (memory_limit, policy): (&MemoryLimit, &str),
    control: &ControlListeners,
) {
    let version = env!("CARGO_PKG_VERSION");
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
        Ok(true) => "announces steered to their shard by the kernel",
        _ if cores.len() == 1 => "no steering needed",
        _ => "announces forwarded between shards",
    };
    info!(
        "tsubame {version}: {} on {} {}, {steering}",
        plural(cores.len(), "shard"),
        if cores.len() == 1 { "core" } else { "cores" },
        names.join(", ")
    );
    info!(
        "io_uring: multishot receive, buffer rings, fixed files, DEFER_TASKRUN; {} local addresses \
         have their own sockets",
        listeners.local_addresses
    );
    info!(
        "memory limit {} for all swarms ({} per shard), by {}; connection ids are valid for {}",
        iec(memory_limit.bytes),
        iec(table_bytes(config, cores.len() as u16)),
        memory_limit.origin,
        humantime::format_duration(config.udp.connection_id_lifetime)
    );
    let buffer = listeners.receive_buffer;
    if !listeners.addresses.is_empty() {
        info!(
            "a receive buffer of {} holds {} ms of {},000 datagrams a second",
            iec(buffer),
            // Twice, as the kernel doubles the size for its overhead, which is included here.
            2 * buffer / DATAGRAM_COST_BYTES / DATAGRAMS_PER_MS,
            DATAGRAMS_PER_MS
        );
    }
    if !config.hooks.is_empty() {
        info!("policy: {policy}");
    }
    control_listens(control);
    let udp = listeners.left_out.iter().map(|address| (ListenKey::Udp, address));
    let http = http.left_out.iter().map(|address| (ListenKey::Http, address));
    let https = https.left_out.iter().map(|address| (ListenKey::Https, address));
    for (key, address) in udp.chain(http).chain(https) {
        warn!("{key}: {address} is left out, as this machine has no such address family");
    }
    warnings(config, listeners, cores);
}

fn control_listens(control: &ControlListeners) {
    if let Some(Ok(address)) = control.tcp.as_ref().map(TcpListener::local_addr) {
        info!("control plane on http://{address}/healthz and /metrics");
        if !address.ip().is_loopback() {
            warn!(
                "control.listen: {address} can be reached from other hosts, which may read metrics; bind it to \
                 127.0.0.1, or let a firewall permit your monitoring alone"
            );
        }
    }
    if let Some((_, path)) = &control.unix {
        info!("control plane on {}", path.display());
    }
}

fn warnings(config: &Config, listeners: &UdpListeners, cores: &[usize]) {
    check::warnings(config).iter().for_each(|warning| warn!("{warning}"));
    let wanted = config.udp.receive_buffer;
    if listeners.receive_buffer < wanted {
        warn!(
            "udp.receive_buffer: the kernel gives {} of {}, so bursts are lost sooner; set \
             sysctl -w net.core.rmem_max={wanted}, or give CAP_NET_ADMIN",
            iec(listeners.receive_buffer),
            iec(wanted)
        );
    }
    if let Err(error) = &listeners.steered {
        warn!(
            "udp.steering: the kernel refuses the program ({error}), so announces cross between shards; \
             set it to off if that is meant"
        );
    }
    let files = files_for_connections(cores.len() as u16);
    let connections = config.http.limits.connections as usize;
    let serves_http = !config.http.listen.is_empty() || !config.http.tls.listen.is_empty();
    if serves_http && files < connections {
        warn!(
            "http.limits.connections: {connections} are permitted, but the limit on open files leaves \
             room for {files}; raise it (ulimit -n, LimitNOFILE in the unit), or permit fewer"
        );
    }
    let mut distinct = cores.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < cores.len() {
        warn!("cpus: a core is listed more than once; its shards compete for it");
    }
}

/// Logs a warning for each error counter that has increased between `before` and `now`.
pub fn warn_of_changes(before: &ShardStats, now: &ShardStats, steered: bool) {
    let more = |outcome| now.of(outcome) - before.of(outcome);
    if steered && more(Outcome::Forwarded) > 0 {
        warn!(
            "{} announces arrived at a shard that does not own the torrent although the kernel steers; please \
             report it",
            more(Outcome::Forwarded)
        );
    }
    if now.http.accept_failed > before.http.accept_failed {
        warn!(
            "http: connections cannot be accepted, as no more files may be open; raise the limit (ulimit -n, \
             LimitNOFILE in the unit), or lower http.limits.connections"
        );
    }
    for (outcome, why) in [
        (Outcome::ShedMesh, "a queue to another shard was full"),
        (Outcome::ShedLate, "another shard did not answer in time"),
        (Outcome::ShedSlots, "no slot was free for the reply"),
        (Outcome::ShedScrape, "another shard's part was late, or too many were waiting"),
    ] {
        if more(outcome) > 0 {
            warn!("{} requests were dropped as {why}", more(outcome));
        }
    }
    let dropped = now.ring.dropped_by_kernel - before.ring.dropped_by_kernel;
    if dropped > 0 {
        warn!(
            "{dropped} datagrams found the receive buffer full and were dropped by the kernel: a shard is \
             overloaded, or udp.receive_buffer is small for its bursts"
        );
    }
    let waited = now.ring.out_of_buffers - before.ring.out_of_buffers;
    if waited > 0 {
        warn!(
            "{waited} times datagrams waited in the kernel because all receive buffers of a shard were in use"
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
        warn!(
            "{failed} replies were refused by the kernel: the send buffer was full, or there is no route"
        );
    }
    for (outcome, why) in [
        (Outcome::RefusedMemory, "peers were not stored as storage.memory is reached"),
        (Outcome::RefusedNewTorrent, "new torrents were not stored as storage.memory is reached"),
        (
            Outcome::RefusedSource,
            "peers were not stored as their network holds its share of storage.memory",
        ),
    ] {
        if more(outcome) > 0 {
            warn!("{} {why}", more(outcome));
        }
    }
    debug!("{}", line(now));
}

/// Bytes of the connection tracking table that are read.
const CONNTRACK_LEN_MAX: u64 = 1 << 20;

/// Logs a warning if the kernel tracks connections to one of these UDP ports; returns whether it does.
pub fn connection_tracking(ports: &[u16]) -> bool {
    let mut table = String::new();
    let read = File::open("/proc/net/nf_conntrack")
        .and_then(|file| file.take(CONNTRACK_LEN_MAX).read_to_string(&mut table));
    let entries = || -> Option<u64> {
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?;
        count.trim().parse().ok().filter(|count| *count > 0)
    };
    let cure = "exempt it (deploy/nftables.conf): its table fills up with clients, and the kernel then drops datagrams \
                unseen";
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
                ports.first().copied().unwrap_or_default()
            );
        }
        Err(_) => return false,
    }
    true
}

/// Returns whether the connection tracking table has a UDP connection to a port.
fn is_tracked(table: &str, port: u16) -> bool {
    let field = format!("dport={port}");
    // The first such field is that of the original direction.
    let is_to =
        |line: &str| line.split(' ').find(|it| it.starts_with("dport=")) == Some(field.as_str());
    table.lines().any(|line| line.split_ascii_whitespace().any(|word| word == "udp") && is_to(line))
}

/// Logs that memory has become short, and which networks have the most peers.
pub fn pressure(now: &ShardStats) {
    let table = &now.table;
    let top: Vec<_> = table
        .top_sources
        .iter()
        .flatten()
        .map(|top| format!("{} ({} peers)", top.source, top.peers))
        .collect();
    warn!(
        "storage.memory: memory is short ({} held); torrents without peers are removed, and then peers of the networks \
         that hold most: {}",
        iec(table.bytes),
        top.join(", ")
    );
}

/// Logs that steering was switched off or on.
pub fn steering(change: std::io::Result<Option<SteeringChange>>) {
    match change {
        Ok(None) => {}
        Ok(Some(SteeringChange::Detached(shard))) => warn!(
            "udp.steering: shard {shard} is overloaded while others idle; the kernel spreads announces over all shards \
             until that is over"
        ),
        Ok(Some(SteeringChange::Attached)) => {
            info!("udp.steering: announces are steered to their shard by the kernel again");
        }
        Err(error) => warn!("udp.steering: cannot be switched: {error}; restart the tracker"),
    }
}

/// Logs the last statistics.
pub fn stopped(stats: &ShardStats, uptime: Duration, ended: bool) {
    let uptime = humantime::format_duration(Duration::from_secs(uptime.as_secs()));
    info!("stopped after {uptime}: {}", line(stats));
    if !ended {
        warn!("a shard did not end in time; its sockets are closed with the process");
    }
}

fn line(stats: &ShardStats) -> String {
    let resident = memory::resident_bytes().map_or_else(|| "?".to_owned(), iec);
    // Forwarded requests are counted by the shard that answers them.
    let ends = Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Forwarded);
    let [over_udp, over_http] = Protocol::ALL.map(|protocol| {
        Family::ALL.map(|family| {
            ends.clone().map(|end| stats.of_family(protocol, family, end)).sum::<u64>()
        })
    });
    let v6 = over_udp[1] + over_http[1];
    let http: u64 = over_http.iter().sum();
    format!(
        "{} connects, {} announces, {} scrapes answered, {} rejected, {} refused by policy, {} shed; \
         {v6} over IPv6, {http} over HTTP, {} forwarded between shards; \
         {} torrents, {} peers in {}, {resident} resident, {} fixed a shard",
        stats.of(Outcome::Connected),
        stats.announces(),
        stats.of(Outcome::Scraped),
        stats.rejected(),
        stats.refused_by_policy(),
        stats.shed(),
        stats.of(Outcome::Forwarded),
        stats.table.torrents,
        stats.peers(),
        iec(stats.table.bytes),
        iec(FIXED_BYTES),
    )
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

fn iec(bytes: usize) -> String {
    ByteSize(bytes as u64).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::is_tracked;

    #[test]
    fn connections_to_the_port_are_found() {
        let table = "ipv4     2 tcp      6 300 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 \
                     sport=40000 dport=6969 src=10.0.0.2 dst=10.0.0.1 sport=6969 dport=40000 \
                     [ASSURED] mark=0 use=1\n\
                     ipv4     2 udp      17 20 src=10.0.0.3 dst=10.0.0.2 \
                     sport=6881 dport=6970 src=10.0.0.2 dst=10.0.0.3 sport=6970 dport=6881 \
                     mark=0 use=1\n";
        assert!(is_tracked(table, 6970));
        assert!(!is_tracked(table, 6969), "that is TCP");
        assert!(!is_tracked(table, 6881), "that is a reply's direction");
    }
}
