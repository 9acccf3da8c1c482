//! Converts the config of opentracker, including the features it was compiled with.

use super::draft::{ImportDraft, addresses, list, quoted, suggestion};
use crate::policy::networks::parse_network;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::time::Duration;

/// Prefixes of opentracker's keys.
const KEYS: [&str; 5] = ["listen.", "access.", "livesync.", "batchsync.", "tracker."];

/// Returns whether a text looks like a config of opentracker.
pub(super) fn is_opentracker_config(text: &str) -> bool {
    lines(text).any(|(_, key, _)| KEYS.iter().any(|known| key.starts_with(known)))
}

/// Returns the line number, key and value of each line.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.zip(1..).filter(|(line, _)| !line.is_empty()).map(|(line, number)| {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (number, key, value.trim())
    })
}

/// Values that a config collects over several lines.
#[derive(Default)]
struct OpentrackerLists<'t> {
    udp: Vec<SocketAddr>,
    tcp: Vec<SocketAddr>,
    proxies: Vec<IpNet>,
    /// Networks that may read the statistics.
    stats: Vec<IpNet>,
    /// Access lists with their mode.
    lists: Vec<(&'static str, &'t str)>,
    has_fifo: bool,
}

impl<'t> OpentrackerLists<'t> {
    fn read_line(&mut self, draft: &mut ImportDraft, place: &str, (key, value): (&str, &'t str)) {
        match key {
            "listen.tcp_udp" | "listen.tcp" | "listen.udp" => match addresses(value) {
                Some(found) => {
                    self.udp.extend(found.iter().filter(|_| key != "listen.tcp"));
                    self.tcp.extend(found.iter().filter(|_| key != "listen.udp"));
                }
                None => {
                    draft.mistake(place, &format!("{value:?} is not an address; it is left out"))
                }
            },
            "access.whitelist" | "access.blacklist" if value.is_empty() => {
                draft.add_placeholder_hook(place, "no file is given");
            }
            "access.whitelist" => self.lists.push(("allow", value)),
            "access.blacklist" => self.lists.push(("deny", value)),
            "access.proxy" | "access.stats" => match parse_network(value) {
                Some(network) if key == "access.proxy" => self.proxies.push(network),
                Some(network) => self.stats.push(network),
                None => {
                    draft.mistake(place, &format!("{value:?} is not a network; it is left out"))
                }
            },
            "access.fifo_add" | "access.fifo_delete" => {
                self.has_fifo = true;
                let text = "use PUT and DELETE /v1/access_list/HASH at control.listen; changes go to overrides_file";
                draft.note(place, text);
            }
            other => match without_counterpart(other) {
                Some(why) => draft.note(place, why),
                None => {
                    let text = format!("{value}: is not a key{}", suggestion(other, &ALL_KEYS));
                    // A misspelt key may be an access rule.
                    match other.starts_with("access") {
                        true => draft.add_placeholder_hook(place, &text),
                        false => draft.mistake(place, &text),
                    }
                }
            },
        }
    }
}

pub(super) fn read(text: &str) -> ImportDraft {
    let mut draft = ImportDraft {
        interval: Duration::from_secs(1_620),
        variation: Duration::from_secs(360),
        peer_lifetime: Duration::from_secs(2_700),
        ..ImportDraft::default()
    };
    let mut settings = OpentrackerLists::default();
    for (number, key, value) in lines(text) {
        settings.read_line(&mut draft, &format!("line {number}: {key}"), (key, value));
    }
    let OpentrackerLists { mut udp, mut tcp, proxies, stats, lists, has_fifo } = settings;
    if udp.is_empty() && tcp.is_empty() {
        // The default of opentracker.
        udp.push(([0, 0, 0, 0], 6969).into());
        tcp.push(([0, 0, 0, 0], 6969).into());
    }
    for addresses in [&mut udp, &mut tcp] {
        let mut seen = std::collections::BTreeSet::new();
        addresses.retain(|address| seen.insert(*address));
    }
    draft.set("udp", "listen", list(&udp), "listen.udp, listen.tcp_udp");
    draft.set("http", "listen", list(&tcp), "listen.tcp, listen.tcp_udp");
    if !proxies.is_empty() {
        draft.set("http", "trusted_proxies", list(&proxies), "access.proxy");
    }
    match stats.is_empty() {
        true => draft.note(
            "statistics",
            "any client could request /stats; list networks in http.stats_networks",
        ),
        false => draft.set("http", "stats_networks", list(&stats), "access.stats"),
    }
    draft.set(
        "announce",
        "interval",
        "27m".to_owned(),
        "30m less 3m; the hook interval_variation adds up to 6m",
    );
    draft.set("announce", "min_interval", "15m".to_owned(), "half the interval");
    for (mode, file) in lists {
        let mut options = vec![("mode", mode.to_owned()), ("files", quoted(file))];
        if has_fifo {
            options.push(("overrides_file", quoted("/var/lib/tsubame/overrides")));
        }
        draft.hook(
            "access_list",
            &format!("access.{mode}list").replace("allow", "white").replace("deny", "black"),
            &options,
        );
    }
    draft.hook("interval_variation", "compiled into opentracker", &[("increase", "6m".to_owned())]);
    let text = "any client could request /scrape without an info hash; list networks in http.full_scrape.networks";
    draft.note("full scrape", text);
    draft
}

/// All keys of opentracker.
pub(super) const ALL_KEYS: [&str; 17] = [
    "listen.tcp_udp",
    "listen.tcp",
    "listen.udp",
    "listen.udp.workers",
    "access.whitelist",
    "access.blacklist",
    "access.fifo_add",
    "access.fifo_delete",
    "access.stats",
    "access.stats_path",
    "access.proxy",
    "livesync.cluster.node_ip",
    "livesync.cluster.listen",
    "batchsync.cluster.admin_ip",
    "tracker.rootdir",
    "tracker.user",
    "tracker.redirect_url",
];

/// Returns why a key of opentracker has no counterpart; `None` for an unknown key.
fn without_counterpart(key: &str) -> Option<&'static str> {
    match key {
        "listen.udp.workers" => Some("there is one shard per core (see cpus)"),
        "access.stats_path" => Some("the statistics are at /stats"),
        "tracker.user" => Some(
            "set the key user if the tracker is started as root; deploy/tsubame.service needs none",
        ),
        "tracker.rootdir" => Some("deploy/tsubame.service makes all files read-only"),
        "tracker.redirect_url" => Some("/ serves a page with the announce URLs"),
        key if key.starts_with("livesync.") || key.starts_with("batchsync.") => {
            Some("nodes share swarms over NATS: set cluster.servers on each (docs/cluster.md)")
        }
        _ => None,
    }
}
