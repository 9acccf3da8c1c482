//! `tsubame status`: prints the state of a running tracker once.

use crate::control::status::{ShardStatus, Status};
use crate::text::{grouped, iec, plural};
use std::fmt::{self, Write as _};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Time for a request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum bytes of a reply: a shard takes some 300.
const REPLY_LEN_MAX: u64 = 4 << 20;

/// Number of outcomes and of clients that are shown.
const SHOWN_MAX: usize = 10;

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// A URL such as `http://127.0.0.1:6880`.
    Url(String),
    /// The path of a unix socket.
    Socket(PathBuf),
}

impl ControlAddress {
    /// Parses `http://HOST:PORT`, or `unix:PATH` or a path with a slash.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('/');
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Socket(path.into()));
        }
        match text {
            _ if text.starts_with("http://") => Ok(Self::Url(text.to_owned())),
            _ if text.starts_with('/') => Ok(Self::Socket(text.into())),
            _ => Err("give http://HOST:PORT, or the path of the unix socket".to_owned()),
        }
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Reason why the state could not be read.
#[derive(Debug, Error)]
pub enum StatusError {
    /// There is no connection to the control plane.
    #[error(
        "cannot reach the control plane at {0}: {1}; is the tracker running? --control names another address"
    )]
    Unreachable(ControlAddress, String),
    /// The control plane refused the request.
    #[error("the control plane at {0} refused the request: {1}")]
    Refused(ControlAddress, String),
    /// The reply cannot be parsed.
    #[error(
        "the reply of {0} is not that of this version: {1}; use the program of the same version"
    )]
    Malformed(ControlAddress, String),
}

/// Reads the state. `token` is sent if there is one.
pub fn fetch(address: &ControlAddress, token: Option<&str>) -> Result<Status, StatusError> {
    let (code, body) = match address {
        ControlAddress::Url(url) => get_over_tcp(url, token),
        ControlAddress::Socket(path) => get_over_unix(path),
    }
    .map_err(|error| StatusError::Unreachable(address.clone(), error))?;
    if code != 200 {
        let text = body.trim_end().to_owned();
        return Err(StatusError::Refused(address.clone(), format!("{code} {text}")));
    }
    serde_json::from_str(&body)
        .map_err(|error| StatusError::Malformed(address.clone(), error.to_string()))
}

fn get_over_tcp(url: &str, token: Option<&str>) -> Result<(u16, String), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        // The control plane is near, and a proxy must not get the token.
        .proxy(None)
        .build()
        .into();
    let mut request = agent.get(format!("{url}/v1/status"));
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(|error| error.to_string())?;
    let body = response.body_mut().with_config().limit(REPLY_LEN_MAX).read_to_string();
    Ok((response.status().as_u16(), body.map_err(|error| error.to_string())?))
}

/// Sends a request over a unix socket, which the HTTP library does not support.
fn get_over_unix(path: &Path) -> Result<(u16, String), String> {
    let exchange = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET /v1/status HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut reply = String::new();
        stream.take(REPLY_LEN_MAX).read_to_string(&mut reply)?;
        Ok(reply)
    };
    let reply = exchange().map_err(|error| error.to_string())?;
    let malformed = || "the reply is not HTTP".to_owned();
    let (head, body) = reply.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((code, body.to_owned()))
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
    tables(status, &mut text);
    text
}

/// Appends the tables of shards, outcomes, clients and hooks.
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
    fn addresses_are_urls_or_paths() {
        let url = ControlAddress::parse("http://[::1]:6880/");
        assert_eq!(url, Ok(ControlAddress::Url("http://[::1]:6880".to_owned())));
        for text in ["/run/tsubame/control", "unix:/run/tsubame/control"] {
            let socket = ControlAddress::parse(text);
            assert_eq!(socket, Ok(ControlAddress::Socket("/run/tsubame/control".into())));
        }
        assert!(ControlAddress::parse("127.0.0.1:6880").is_err());
    }

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
