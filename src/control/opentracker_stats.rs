//! Statistics in the formats of opentracker's `/stats?mode=`, for the scripts that read them.
//!
//! The formats for MRTG have four lines: two values, the uptime or a sentence, and a title.

use super::monitored::Monitored;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, ShardStats};
use std::cmp::Reverse;
use std::fmt::Write;
use tsubame_storage::{Family, InfoHash, SwarmStats};

/// Media type and text of a page.
pub type StatsPage = (&'static str, String);

/// Media type of text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
/// Media type of XML.
pub const XML: &str = "text/xml; charset=utf-8";

/// Modes that this tracker has.
const MODES: &str = "peer, conn, scrp, udp4, udp6, tcp4, tcp6, torr, fscr, tpbs, herr, top10, top100, completed, \
                     version, everything";

/// Returns the value of a parameter of a query.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|it| it.0 == name).map(|it| it.1)
}

fn mode_of(query: &str) -> &str {
    parameter(query, "mode").unwrap_or("peer")
}

/// Writes a line of the list of all torrents.
type ListLine = fn(&mut String, &InfoHash, &SwarmStats);

/// Returns the function that writes the lines of the list of all torrents, if the query requests it: mode `tpbs` in the
/// formats `txt` and `txtp`, which has the number of downloads, too.
pub(super) fn list_line(query: &str) -> Option<ListLine> {
    if mode_of(query) != "tpbs" {
        return None;
    }
    match parameter(query, "format").unwrap_or("txt") {
        "txt" => Some(write_row),
        "txtp" => Some(write_row_with_downloads),
        _ => None,
    }
}

fn write_row(text: &mut String, info_hash: &InfoHash, stats: &SwarmStats) {
    let (hash, counts) = (info_hash.to_string().to_uppercase(), stats.counts);
    _ = writeln!(text, "{hash}:{}:{}", counts.seeders, counts.leechers);
}

fn write_row_with_downloads(text: &mut String, info_hash: &InfoHash, stats: &SwarmStats) {
    let (hash, counts) = (info_hash.to_string().to_uppercase(), stats.counts);
    _ = writeln!(text, "{hash}:{}:{}:{}", counts.seeders, counts.leechers, counts.completed);
}

/// Returns whether the page for a query lists the largest torrents.
pub(super) fn needs_swarm_scan(query: &str) -> bool {
    matches!(mode_of(query), "top10" | "top100")
}

/// Returns the page for a query, or an error text for other modes, among them `tpbs`, whose page is sent while it is
/// made.
///
/// The largest torrents are those of the last scan of all swarms.
pub fn page(query: &str, monitored: &Monitored) -> Result<StatsPage, String> {
    let counts = Counts::read(monitored);
    let text = match mode_of(query) {
        "peer" => format!(
            "{}\n{}\nopentracker serving {} torrents\nopentracker",
            counts.peers, counts.seeders, counts.torrents
        ),
        "torr" => format!(
            "{}\n{}\nopentracker serving {} torrents\nopentracker",
            counts.torrents, counts.torrents, counts.torrents
        ),
        "conn" => counts.rates("connections", counts.connections(), counts.successes()),
        "udp4" => counts.rates("udp4 stats", counts.udp[0].requests, counts.udp[0].successes),
        "udp6" => counts.rates("udp6 stats", counts.udp[1].requests, counts.udp[1].successes),
        "tcp4" => counts.rates("tcp4 stats", counts.tcp[0].requests, counts.tcp[0].successes),
        "tcp6" => counts.rates("tcp6 stats", counts.tcp[1].requests, counts.tcp[1].successes),
        "scrp" => {
            let [tcp, udp] = [&counts.tcp, &counts.udp].map(|it| it[0].scrapes + it[1].scrapes);
            let rate = counts.per_second(tcp + udp);
            let title = format!("opentracker scrape stats, {rate} scrape/s (tcp and udp)");
            counts.mrtg(tcp, udp, &title)
        }
        "fscr" => {
            let count = counts.of(Outcome::FullScrape);
            let title = format!(
                "opentracker full scrape stats, {} conns/s :: 0 bytes/s.",
                counts.per_second(count)
            );
            counts.mrtg(count * 1_000, 0, &title)
        }
        "completed" => {
            let completed = counts.of(Outcome::Completed);
            let rate = completed * 3_600 / counts.uptime_secs.max(1);
            counts.mrtg(completed, 0, &format!("opentracker, {rate} completed downloads per hour"))
        }
        "herr" => http_errors(&counts),
        "top10" => largest(monitored, 10),
        "top100" => largest(monitored, 100),
        "version" => format!("Tsubame {}\n", env!("CARGO_PKG_VERSION")),
        "everything" => return Ok((XML, everything(&counts))),
        "tpbs" => {
            return Err(
                "this list is available at the control plane only, in the formats txt and txtp\n"
                    .to_owned(),
            );
        }
        mode => return Err(format!("there is no mode {mode:?}; the modes are {MODES}\n")),
    };
    Ok((TEXT, text))
}

/// Requests of one protocol and family.
#[derive(Clone, Copy, Debug, Default)]
struct RequestCounts {
    requests: u64,
    connects: u64,
    announces: u64,
    scrapes: u64,
    /// Announces and connects that were answered.
    successes: u64,
}

/// What the pages show.
struct Counts {
    stats: ShardStats,
    uptime_secs: u64,
    torrents: u64,
    peers: u64,
    seeders: u64,
    /// Over UDP, with IPv4 and with IPv6.
    udp: [RequestCounts; 2],
    /// Over HTTP, with IPv4 and with IPv6.
    tcp: [RequestCounts; 2],
}

impl Counts {
    fn read(monitored: &Monitored) -> Self {
        let stats = monitored.sum();
        let of = |protocol: Protocol| {
            Family::ALL.map(|family| {
                let count = |outcome| stats.requests_of(protocol, family, outcome);
                let mut counts = RequestCounts::default();
                // A forwarded request is counted by the shard that answers it.
                let outcomes = Outcome::ALL.into_iter().filter(|it| *it != Outcome::Forwarded);
                for outcome in outcomes {
                    counts.requests += count(outcome);
                    let is_answered = outcome.is_answered();
                    match outcome.kind() {
                        "connect" => counts.connects += count(outcome),
                        "announce" if is_answered => counts.announces += count(outcome),
                        "scrape" if is_answered => counts.scrapes += count(outcome),
                        _ => {}
                    }
                }
                counts.successes = counts.connects + counts.announces;
                counts
            })
        };
        Self {
            uptime_secs: monitored.uptime().as_secs(),
            torrents: stats.table.torrents as u64,
            peers: stats.peers(),
            seeders: stats.table.seeders.iter().sum(),
            udp: of(Protocol::Udp),
            tcp: of(Protocol::Http),
            stats,
        }
    }

    fn of(&self, outcome: Outcome) -> u64 {
        self.stats.requests(outcome)
    }

    fn connections(&self) -> u64 {
        self.udp.iter().chain(&self.tcp).map(|counts| counts.requests).sum()
    }

    fn successes(&self) -> u64 {
        self.udp.iter().chain(&self.tcp).map(|counts| counts.successes).sum()
    }

    fn per_second(&self, count: u64) -> u64 {
        count / self.uptime_secs.max(1)
    }

    fn mrtg(&self, first: u64, second: u64, title: &str) -> String {
        let uptime = self.uptime_secs;
        format!("{first}\n{second}\n{uptime} seconds ({} hours)\n{title}", uptime / 3_600)
    }

    fn rates(&self, name: &str, requests: u64, successes: u64) -> String {
        let [requests_rate, success_rate] = [requests, successes].map(|it| self.per_second(it));
        let title =
            format!("opentracker {name}, {requests_rate} conns/s :: {success_rate} success/s.");
        self.mrtg(requests, successes, &title)
    }

    /// Numbers of HTTP errors by status.
    fn http_errors(&self) -> [(&'static str, u64); 6] {
        let http = |outcomes: &[Outcome]| -> u64 {
            let count = |outcome: &Outcome| -> u64 {
                let of = |family| self.stats.requests_of(Protocol::Http, family, *outcome);
                Family::ALL.map(of).iter().sum()
            };
            outcomes.iter().map(count).sum()
        };
        [
            ("400 Invalid Request", http(&[Outcome::BadRequest, Outcome::BadQuery])),
            ("403 Access Denied", http(&[Outcome::FullScrapeForbidden])),
            ("404 Not Found", http(&[Outcome::NotFound])),
            ("405 Method Not Allowed", http(&[Outcome::MethodNotAllowed])),
            ("429 Too Many Requests", http(&[Outcome::FullScrapeTooSoon])),
            ("431 Head Too Long", http(&[Outcome::HeadTooLong])),
        ]
    }
}

fn http_errors(counts: &Counts) -> String {
    let errors = counts.http_errors();
    errors.map(|(status, count)| format!("{status} {count}\n")).concat()
}

/// Lists the torrents with the most peers, then those with the most seeders among them.
fn largest(monitored: &Monitored, amount: usize) -> String {
    let largest = monitored.summary().map(|(_, summary)| summary.largest.clone());
    let largest = largest.unwrap_or_default();
    let peers = |it: &SwarmStats| it.counts.seeders + it.counts.leechers;
    let mut by_seeders: Vec<(InfoHash, SwarmStats)> = largest.clone();
    by_seeders.sort_by_key(|(_, stats)| Reverse(stats.counts.seeders));
    let mut text = format!("Top {amount} torrents by peers:\n");
    for (info_hash, stats) in largest.iter().take(amount) {
        _ = writeln!(text, "\t{}\t{}", peers(stats), info_hash.to_string().to_uppercase());
    }
    _ = writeln!(text, "Top {amount} torrents by seeds:");
    for (info_hash, stats) in by_seeders.iter().take(amount) {
        let seeders = stats.counts.seeders;
        _ = writeln!(text, "\t{seeders}\t{}", info_hash.to_string().to_uppercase());
    }
    text
}

/// Lists everything as XML. What this tracker does not count is 0.
fn everything(counts: &Counts) -> String {
    let [tcp, udp] = [&counts.tcp, &counts.udp].map(|it| {
        let [v4, v6] = *it;
        RequestCounts {
            requests: v4.requests + v6.requests,
            connects: v4.connects + v6.connects,
            announces: v4.announces + v6.announces,
            scrapes: v4.scrapes + v6.scrapes,
            successes: v4.successes + v6.successes,
        }
    });
    let errors = counts
        .http_errors()
        .map(|(status, count)| format!("      <count code=\"{status}\">{count}</count>\n"));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<stats>\n  <tracker_id>0</tracker_id>\n  \
         <version>Tsubame {version}</version>\n  <uptime>{uptime}</uptime>\n  <torrents>\n    \
         <count_mutex>{torrents}</count_mutex>\n    <count_iterator>{torrents}</count_iterator>\n  \
         </torrents>\n  <peers>\n    <count>{peers}</count>\n  </peers>\n  <seeds>\n    \
         <count>{seeders}</count>\n  </seeds>\n  <completed>\n    <count>{completed}</count>\n  \
         </completed>\n  <connections>\n    <tcp>\n      <accept>{accepted}</accept>\n      \
         <announce>{tcp_announces}</announce>\n      <scrape>{tcp_scrapes}</scrape>\n    </tcp>\n    \
         <udp>\n      <overall>{udp_requests}</overall>\n      <connect>{connects}</connect>\n      \
         <announce>{udp_announces}</announce>\n      <scrape>{udp_scrapes}</scrape>\n      \
         <missmatch>{wrong_ids}</missmatch>\n    </udp>\n    <livesync>\n      <count>0</count>\n    \
         </livesync>\n  </connections>\n  <debug>\n    <renew>\n    </renew>\n    <http_error>\n\
         {errors}    </http_error>\n    <mutex_stall>\n      <count>0</count>\n    </mutex_stall>\n  \
         </debug>\n</stats>",
        version = env!("CARGO_PKG_VERSION"),
        uptime = counts.uptime_secs,
        torrents = counts.torrents,
        peers = counts.peers,
        seeders = counts.seeders,
        completed = counts.of(Outcome::Completed),
        accepted = counts.stats.http.accepted,
        tcp_announces = tcp.announces,
        tcp_scrapes = tcp.scrapes,
        udp_requests = udp.requests,
        connects = udp.connects,
        udp_announces = udp.announces,
        udp_scrapes = udp.scrapes,
        wrong_ids = counts.of(Outcome::WrongConnectionId),
        errors = errors.concat(),
    )
}
