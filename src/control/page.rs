//! The status page: the state of the tracker for a browser.
//!
//! All figures and plots are made here, so that the page needs no JavaScript; a script only replaces them when the
//! event stream sends new ones. Nothing is fetched from elsewhere.

use super::history::{History, HistoryPoint, POINT_SECS, POINTS_MAX};
use super::monitored::ServedValue;
use super::status::{ShardStatus, Status};
use crate::process::recent_events::LogEvent;
use crate::text::{grouped, iec};
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};
use tsubame_storage::{InfoHash, SwarmStats};

/// The frame of the page: styles, and the script that listens to the event stream.
const FRAME: &str = include_str!("page.html");

/// Place of the content in the frame.
const PLACEHOLDER: &str = "{{content}}";

/// Content-Security-Policy of the page: nothing is fetched but the event stream.
pub(super) const SECURITY_POLICY: &str = concat!(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; ",
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
);

/// Number of rows of the tables of torrents, outcomes and clients.
const ROWS_MAX: usize = 10;

/// Number of events of the log that are shown.
const EVENTS_MAX: usize = 12;

/// Size of a plot in its own units.
const PLOT: (f64, f64) = (360.0, 60.0);

/// What the page shows.
#[derive(Debug)]
pub(super) struct PageContent<'a> {
    pub(super) status: &'a Status,
    pub(super) history: &'a History,
    pub(super) largest: &'a [(InfoHash, SwarmStats)],
    pub(super) events: &'a [LogEvent],
    /// Values of all config keys.
    pub(super) values: &'a [ServedValue],
}

impl PageContent<'_> {
    /// Returns the whole page.
    pub(super) fn page(&self) -> String {
        FRAME.replacen(PLACEHOLDER, &self.content(), 1)
    }

    /// Returns the content of the frame, which the script replaces.
    pub(super) fn content(&self) -> String {
        let mut html = String::new();
        self.heading(&mut html);
        self.cards(&mut html);
        self.plots(&mut html);
        html.push_str("<div class=tables>");
        self.shards(&mut html);
        self.outcomes(&mut html);
        self.torrents(&mut html);
        self.clients(&mut html);
        self.hooks(&mut html);
        self.nodes(&mut html);
        html.push_str("</div>");
        self.log(&mut html);
        self.config(&mut html);
        html
    }

    fn heading(&self, html: &mut String) {
        let status = self.status;
        let uptime = humantime::format_duration(Duration::from_secs(status.uptime_secs as u64));
        let state = match status.shards.iter().any(ShardStatus::is_stuck) {
            true => "<b class=bad>a shard is stuck</b>",
            false if status.draining => "<b class=warn>draining</b>",
            false => "<b class=good>serving</b>",
        };
        let steering = if status.steering { "steered by the kernel" } else { "not steered" };
        let cluster = status.cluster.as_ref().map_or_else(String::new, |cluster| {
            let class = if cluster.complete { "good" } else { "warn" };
            let (node, state) = (escape(&cluster.node), escape(&cluster.state));
            format!("; node {node}: <b class={class}>{state}</b>")
        });
        _ = write!(
            html,
            "<header><h1>Tsubame</h1><p>{state}, version {}, up {uptime}, {} shards, {steering}, log level {}{cluster}\
             </p></header>",
            escape(&status.version),
            status.shards.len(),
            escape(&status.log_level)
        );
    }

    fn cards(&self, html: &mut String) {
        let status = self.status;
        let last = self.history.points().last().copied().unwrap_or_default();
        let [seeders, leechers] =
            [status.swarms.seeders, status.swarms.leechers].map(|it| it.iter().sum::<u64>());
        let distinct = status.swarms.distinct_peers.map_or_else(|| "-".to_owned(), grouped);
        let resident = status.memory.resident_bytes.map_or_else(|| "-".to_owned(), iec);
        let cards = [
            ("answers per second", grouped(last.answered.round() as u64), String::new()),
            ("refused per second", grouped(last.refused.round() as u64), String::new()),
            ("dropped per second", grouped(last.dropped.round() as u64), String::new()),
            (
                "torrents",
                grouped(status.swarms.torrents),
                format!("{} without peers", grouped(status.swarms.empty_torrents)),
            ),
            (
                "peers",
                grouped(seeders + leechers),
                format!("{} seeders; {distinct} distinct", grouped(seeders)),
            ),
            (
                "swarm tables",
                iec(status.memory.table_bytes),
                format!(
                    "of {}; {resident} resident; pressure {:.0} %",
                    iec(status.memory.limit_bytes),
                    status.memory.pressure * 100.0
                ),
            ),
            (
                "HTTP connections",
                grouped(status.http_connections),
                format!(
                    "{} in, {} out; UDP {} in, {} out",
                    iec(status.bytes.http_received),
                    iec(status.bytes.http_sent),
                    iec(status.bytes.udp_received),
                    iec(status.bytes.udp_sent)
                ),
            ),
        ];
        html.push_str("<dl class=cards>");
        for (name, value, note) in cards {
            _ = write!(
                html,
                "<div><dt>{name}</dt><dd>{value}</dd><dd class=note>{note}</dd></div>"
            );
        }
        html.push_str("</dl>");
    }

    fn plots(&self, html: &mut String) {
        let count = |value: f64| grouped(value.round() as u64);
        let percent = |value: f64| format!("{:.0} %", value * 100.0);
        let bytes = |value: f64| iec(value as u64);
        html.push_str("<h2>Last hour</h2><div class=plots>");
        self.plot(html, "answers per second", |it| it.answered, count);
        self.plot(html, "refused per second", |it| it.refused, count);
        self.plot(html, "dropped per second", |it| it.dropped, count);
        self.plot(html, "busiest shard", |it| it.busy, percent);
        self.plot(html, "peers", |it| it.peers, count);
        self.plot(html, "swarm tables", |it| it.table_bytes, bytes);
        html.push_str("</div>");
    }

    /// Draws a value over time. The newest point is at the right end, the axis begins at 0.
    fn plot(
        &self,
        html: &mut String,
        name: &str,
        of: fn(&HistoryPoint) -> f64,
        text: fn(f64) -> String,
    ) {
        let (width, height) = PLOT;
        let max = self.history.points().map(of).fold(0.0, f64::max);
        let last = self.history.points().last().map_or(0.0, of);
        let skipped = POINTS_MAX - self.history.points().len();
        let mut points = String::new();
        for (number, point) in self.history.points().enumerate() {
            let x = (number + skipped) as f64 / (POINTS_MAX - 1) as f64 * width;
            let y = height - if max > 0.0 { of(point) / max * (height - 2.0) } else { 0.0 };
            _ = write!(points, "{x:.1},{y:.1} ");
        }
        let minutes = POINTS_MAX as u32 * POINT_SECS / 60;
        _ = write!(
            html,
            "<figure><figcaption>{name}: {} <span class=note>(maximum {})</span></figcaption>\
             <svg viewBox=\"0 0 {width} {height}\" preserveAspectRatio=none role=img \
             aria-label=\"{name} of the last {minutes} minutes\"><polyline points=\"{points}\"/></svg></figure>",
            text(last),
            text(max)
        );
    }

    fn shards(&self, html: &mut String) {
        let rows = self.status.shards.iter().enumerate().map(|(number, shard)| {
            let mean = shard.datagrams as f64 / shard.batches.max(1) as f64;
            [
                number.to_string(),
                format!("{:.0} s", shard.busy_secs),
                grouped(shard.datagrams),
                format!("{mean:.1}"),
                grouped(shard.kernel_dropped),
                grouped(shard.torrents),
                grouped(shard.peers),
                iec(shard.table_bytes),
            ]
        });
        let header =
            ["shard", "busy", "datagrams", "per batch", "dropped", "torrents", "peers", "memory"];
        table(html, "Shards", header, rows);
    }

    fn outcomes(&self, html: &mut String) {
        let mut counts: Vec<_> = self.status.requests.iter().collect();
        counts.sort_by_key(|it| std::cmp::Reverse(it.count));
        let rows = counts.into_iter().take(ROWS_MAX).map(|it| {
            [escape(&it.outcome), escape(&it.protocol), escape(&it.family), grouped(it.count)]
        });
        table(html, "Requests", ["outcome", "protocol", "family", "count"], rows);
    }

    fn torrents(&self, html: &mut String) {
        let rows = self.largest.iter().take(ROWS_MAX).map(|(info_hash, stats)| {
            let counts = stats.counts;
            [
                info_hash.to_string(),
                grouped(counts.seeders.into()),
                grouped(counts.leechers.into()),
                grouped(counts.completed.into()),
            ]
        });
        table(html, "Largest torrents", ["info hash", "seeders", "leechers", "completed"], rows);
    }

    fn clients(&self, html: &mut String) {
        let total: u64 = self.status.clients.iter().map(|client| client.announces).sum();
        let clients = self.status.clients.iter().filter(|client| client.announces > 0);
        let rows = clients.take(ROWS_MAX).map(|client| {
            let share = client.announces as f64 / total.max(1) as f64 * 100.0;
            [escape(&client.name), format!("{share:.1} %")]
        });
        table(html, "Client programs", ["peer id", "share"], rows);
    }

    fn hooks(&self, html: &mut String) {
        let rows = self.status.hooks.iter().map(|hook| {
            let entries = hook.entries.map_or_else(|| "-".to_owned(), grouped);
            [escape(&hook.name), entries, grouped(hook.refused)]
        });
        table(html, "Hooks", ["hook", "entries", "refused"], rows);
    }

    fn nodes(&self, html: &mut String) {
        let Some(cluster) = &self.status.cluster else { return };
        let rows = cluster.nodes.iter().map(|node| {
            let class = if node.present { "good" } else { "warn" };
            let state = format!("<b class={class}>{}</b>", node.state());
            [escape(&node.name), state, node.lag()]
        });
        table(html, "Other nodes", ["node", "state", "changes missing for"], rows);
    }

    /// Appends the config in force: first the keys that were set, then those with their defaults.
    fn config(&self, html: &mut String) {
        let rows = |is_default: bool| {
            let values = self.values.iter().filter(move |it| it.is_default == is_default);
            values.map(|it| {
                let waiting = it.after_restart.as_ref().map_or_else(String::new, |new| {
                    format!(" <b class=warn>after a restart: {}</b>", escape(new))
                });
                [escape(&it.key), escape(&it.value) + &waiting]
            })
        };
        html.push_str("<div class=tables><div class=values>");
        table(html, "Config: keys that are set", ["key", "value"], rows(false));
        html.push_str("</div><div class=values>");
        table(html, "Config: defaults", ["key", "value"], rows(true));
        html.push_str("</div></div>");
    }

    fn log(&self, html: &mut String) {
        html.push_str("<h2>Log</h2><ol class=log>");
        for event in self.events.iter().take(EVENTS_MAX) {
            let time = humantime::format_rfc3339_seconds(
                UNIX_EPOCH + Duration::from_secs(event.unix_secs),
            );
            _ = write!(
                html,
                "<li class={}><time>{time}</time> {}</li>",
                event.level,
                escape(&event.text)
            );
        }
        html.push_str("</ol>");
    }
}

/// Appends a table; without rows it is left out.
fn table<const N: usize>(
    html: &mut String,
    title: &str,
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let mut body = String::new();
    for row in rows {
        body.push_str("<tr>");
        row.iter().for_each(|cell| _ = write!(body, "<td>{cell}</td>"));
        body.push_str("</tr>");
    }
    if body.is_empty() {
        return;
    }
    _ = write!(html, "<section><h2>{title}</h2><div class=scroll><table><tr>");
    header.iter().for_each(|cell| _ = write!(html, "<th>{cell}</th>"));
    _ = write!(html, "</tr>{body}</table></div></section>");
}

/// Replaces the characters that HTML interprets.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Returns a message of the event stream with new content (WHATWG HTML, section 9.2).
pub(super) fn message(content: &str) -> String {
    let mut message = String::new();
    content.lines().for_each(|line| _ = writeln!(message, "data: {line}"));
    message.push('\n');
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_and_messages_have_lines() {
        assert_eq!(escape("<a href=\"x\">'&'"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;");
        assert_eq!(message("a\nb"), "data: a\ndata: b\n\n");
        assert_eq!(FRAME.matches(PLACEHOLDER).count(), 1);
        for fetched in ["src=", "href=", "@import", "url("] {
            assert!(!FRAME.contains(fetched), "{fetched} fetches something");
        }
    }
}
