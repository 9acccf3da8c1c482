//! opentracker's config, line by line; and what was compiled into it.

use super::{Draft, addresses, list, quoted};
use crate::policy::networks::parse_network;
use std::net::SocketAddr;
use std::time::Duration;

/// Beginnings of its keys
const KEYS: [&str; 5] = ["listen.", "access.", "livesync.", "batchsync.", "tracker."];

/// Whether a text looks like one
pub(super) fn is_one(text: &str) -> bool {
    lines(text).any(|(key, _)| KEYS.iter().any(|known| key.starts_with(known)))
}

/// Keys and values
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(|line| {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (key, value.trim())
    })
}

pub(super) fn read(text: &str) -> Draft {
    let mut draft = Draft {
        interval: Duration::from_secs(1_620),
        variation: Duration::from_secs(360),
        peer_lifetime: Duration::from_secs(2_700),
        ..Draft::default()
    };
    let (mut udp, mut tcp): (Vec<SocketAddr>, Vec<SocketAddr>) = (Vec::new(), Vec::new());
    let (mut proxies, mut lists) = (Vec::new(), Vec::new());
    let mut has_fifo = false;
    for (key, value) in lines(text) {
        match key {
            "listen.tcp_udp" | "listen.tcp" | "listen.udp" => match addresses(value) {
                Some(found) => {
                    udp.extend(found.iter().filter(|_| key != "listen.tcp"));
                    tcp.extend(found.iter().filter(|_| key != "listen.udp"));
                }
                None => draft.note(key, &format!("{value:?} is no address, and is left out")),
            },
            "access.whitelist" => lists.push(("allow", value)),
            "access.blacklist" => lists.push(("deny", value)),
            "access.proxy" => match parse_network(value) {
                Some(network) => proxies.push(network),
                None => draft.note(key, &format!("{value:?} is no network, and is left out")),
            },
            "access.fifo_add" | "access.fifo_delete" => {
                has_fifo = true;
                let text = "PUT and DELETE /v1/access_list/HASH at control.listen do this, kept in the file of changes";
                draft.note(key, text);
            }
            other => draft.note(other, without_counterpart(other)),
        }
    }
    if udp.is_empty() && tcp.is_empty() {
        // What it does without any.
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
    draft.set(
        "announce",
        "interval",
        "27m".to_owned(),
        "30m less 3m, to which a hook adds up to 6m",
    );
    draft.set("announce", "min_interval", "15m".to_owned(), "half the interval");
    for (mode, file) in lists {
        let mut options = vec![("mode", mode.to_owned()), ("files", quoted(file))];
        if has_fifo {
            options.push(("changes", quoted("/var/lib/tsubame/changes")));
        }
        draft.hook(
            "access_list",
            &format!("access.{mode}list").replace("allow", "white").replace("deny", "black"),
            &options,
        );
    }
    draft.hook("interval_variation", "compiled in", &[("increase", "6m".to_owned())]);
    let text = "/scrape without an info hash was for everybody; name the networks in http.full_scrape.networks";
    draft.note("full scrape", text);
    draft
}

fn without_counterpart(key: &str) -> &'static str {
    match key {
        "listen.udp.workers" => "each core has a shard of its own (cpus)",
        "access.stats" | "access.stats_path" => {
            "figures are on control.listen, for whom that can reach: /metrics"
        }
        "tracker.user" | "tracker.rootdir" => {
            "the service manager does this: deploy/tsubame.service"
        }
        "tracker.redirect_url" => "/ is a page with the announce URLs",
        key if key.starts_with("livesync.") || key.starts_with("batchsync.") => {
            "each tracker has swarms of its own"
        }
        _ => "is not known, and left out",
    }
}
