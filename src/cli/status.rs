//! `tsubame status`: prints the state of a running tracker once.

use crate::cli::control_client::{ControlAddress, ControlClientError, fetch_status};
use crate::control::status::{ShardStatus, Status};
use crate::text::{grouped, iec, plural};
use std::fmt::Write as _;
use std::time::Duration;

/// Number of outcomes and of clients that are shown.
const SHOWN_MAX: usize = 10;

/// Reads the state. `token` is sent if there is one.
pub fn fetch(address: &ControlAddress, token: Option<&str>) -> Result<Status, ControlClientError> {
    let body = fetch_status(address, token)?;
    serde_json::from_str(&body)
        .map_err(|error| ControlClientError::Malformed(address.clone(), error.to_string()))
}

/// Returns the state as text.
pub fn text(status: &Status) -> String {
    let Status { swarms, memory, .. } = status;
    let uptime = Duration::from_secs(status.uptime_secs as u64);
    let mut text = String::new();
    let mut line = |name: &str, value: String| _ = writeln!(text, "{name:<12}{value}");
    let mut notes = Vec::new();
    if status.draining {
        notes.push("draining");
    }
    if status.shards.iter().any(ShardStatus::is_stuck) {
        notes.push("a shard is stuck");
    }
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
    line(
        "tsubame",
        format!("{}, up {}{notes}", status.version, humantime::format_duration(uptime)),
    );
    let [seeders, leechers] =
        [swarms.seeders, swarms.leechers].map(|count| count.iter().sum::<u64>());
    line(
        "swarms",
        format!(
            "{} ({} without peers), {}, {}{}",
            plural(swarms.torrents, "torrent"),
            grouped(swarms.empty_torrents),
            plural(seeders, "seeder"),
            plural(leechers, "leecher"),
            swarms.distinct_peers.map_or_else(String::new, |count| format!(
                ", about {}",
                plural(count, "distinct peer")
            ))
        ),
    );
    line(
        "memory",
        format!(
            "{} of {} in swarm tables, {} resident, pressure {:.0} %",
            iec(memory.table_bytes),
            iec(memory.limit_bytes),
            memory.resident_bytes.map_or_else(|| "?".to_owned(), iec),
            memory.pressure * 100.0
        ),
    );
    line(
        "traffic",
        format!(
            "UDP {} in, {} out; HTTP {} in, {} out, {} connections",
            iec(status.bytes.udp_received),
            iec(status.bytes.udp_sent),
            iec(status.bytes.http_received),
            iec(status.bytes.http_sent),
            grouped(status.http_connections)
        ),
    );
    let steering = if status.steering { "steered by the kernel" } else { "not steered" };
    line("shards", format!("{}, {steering}; log level {}", status.shards.len(), status.log_level));
    if let Some(cluster) = &status.cluster {
        line("cluster", format!("node {}: {}", cluster.node, cluster.state));
    }
    tables(status, &mut text);
    text
}

/// Appends the tables of shards, outcomes, clients, hooks and other nodes.
fn tables(status: &Status, text: &mut String) {
    let header = ["shard", "busy s", "datagrams", "dropped", "torrents", "peers", "memory"];
    let mut rows = vec![header.map(str::to_owned)];
    for (number, shard) in status.shards.iter().enumerate() {
        rows.push([
            number.to_string(),
            format!("{:.1}", shard.busy_secs),
            grouped(shard.datagrams),
            grouped(shard.kernel_dropped),
            grouped(shard.torrents),
            grouped(shard.peers),
            iec(shard.table_bytes),
        ]);
    }
    write_table(text, &rows);
    let mut rows = vec![["outcome", "protocol", "requests"].map(str::to_owned)];
    rows.extend(
        outcomes(status)
            .into_iter()
            .take(SHOWN_MAX)
            .map(|(outcome, protocol, count)| [outcome, protocol, grouped(count)]),
    );
    write_table(text, &rows);
    let mut rows = vec![["client", "sampled announces"].map(str::to_owned)];
    let clients = status.clients.iter().filter(|client| client.announces > 0).take(SHOWN_MAX);
    rows.extend(clients.map(|client| [client.name.clone(), grouped(client.announces)]));
    write_table(text, &rows);
    let mut rows = vec![["hook", "entries", "refused"].map(str::to_owned)];
    rows.extend(status.hooks.iter().map(|hook| {
        let entries = hook.entries.map_or_else(|| "-".to_owned(), grouped);
        [hook.name.clone(), entries, grouped(hook.refused)]
    }));
    write_table(text, &rows);
    let mut rows = vec![["node", "state", "changes missing for"].map(str::to_owned)];
    let nodes = status.cluster.iter().flat_map(|cluster| &cluster.nodes);
    rows.extend(nodes.map(|node| [node.name.clone(), node.state().to_owned(), node.lag()]));
    write_table(text, &rows);
}

/// Returns the number of requests by outcome and protocol, over both families, largest first.
pub(super) fn outcomes(status: &Status) -> Vec<(String, String, u64)> {
    let mut counts: Vec<(String, String, u64)> = Vec::new();
    for request in &status.requests {
        let known =
            counts.iter_mut().find(|it| it.0 == request.outcome && it.1 == request.protocol);
        match known {
            Some(known) => known.2 += request.count,
            None => counts.push((request.outcome.clone(), request.protocol.clone(), request.count)),
        }
    }
    counts.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
    counts
}

/// Appends a table whose first row is its header and whose columns are aligned; one without other rows is left out.
fn write_table<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    if rows.len() < 2 {
        return;
    }
    text.push('\n');
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells =
            row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
        _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [["a", "number"], ["long name", "7"]].map(|row| row.map(str::to_owned));
        let mut text = String::new();
        write_table(&mut text, &rows);
        assert_eq!(text, "\na          number\nlong name       7\n");
        write_table(&mut text, &rows[..1]);
        assert_eq!(text.lines().count(), 3);
    }
}
