//! Makes a config of another tracker's.
//!
//! What it means is kept, not how it was written: each line says which key it was made from. Mistakes in the other
//! config and what has no counterpart are reported. An access rule that cannot be carried over is never left out
//! silently: a hook stands for it that keeps the tracker from starting.

mod chihaya;
mod opentracker;

use super::hooks::UNDECIDED;
use super::read::{check_bounds, line_of};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;

/// A config, and what it does not have of the other
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// YAML with comments
    pub config: String,
    /// Mistakes, and what has no counterpart or another meaning: a line each
    pub notes: Vec<String>,
    /// Whether all access rules were carried over
    pub is_complete: bool,
}

/// Why nothing can be made of a file
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ImportError {
    /// It is of neither
    #[error(
        "is neither a Chihaya config (YAML below chihaya:) nor an opentracker one (lines such as listen.udp ADDRESS)"
    )]
    Unknown,
    /// It is Chihaya's, and broken
    #[error("is not YAML: {0}")]
    Broken(String),
}

/// Makes a config of the text of a Chihaya or an opentracker one; `name` is what the result calls it
pub fn import(name: &str, text: &str) -> Result<Imported, ImportError> {
    check_bounds(text).map_err(|(_, message)| ImportError::Broken(message))?;
    let draft = match serde_yaml::from_str::<serde_yaml::Value>(text) {
        Ok(value) if value.get("chihaya").is_some() => chihaya::read(text, &value["chihaya"]),
        _ if opentracker::is_one(text) => opentracker::read(text),
        Err(error) if text.lines().any(|line| line.starts_with("chihaya:")) => {
            return Err(ImportError::Broken(error.to_string()));
        }
        _ => return Err(ImportError::Unknown),
    };
    Ok(draft.finish(name))
}

/// A key with its value, and what it was made from
#[derive(Debug)]
struct Line {
    section: &'static str,
    key: &'static str,
    value: String,
    from: String,
}

/// A config in the making
#[derive(Debug, Default)]
struct Draft {
    lines: Vec<Line>,
    hooks: Vec<String>,
    notes: Vec<String>,
    /// Access rules that could not be carried over
    undecided: usize,
    interval: Duration,
    /// What hooks may add to it
    variation: Duration,
    peer_lifetime: Duration,
}

impl Draft {
    fn set(&mut self, section: &'static str, key: &'static str, value: String, from: &str) {
        self.lines.push(Line { section, key, value, from: from.to_owned() });
    }

    /// Notes what has no counterpart, or another meaning
    fn note(&mut self, place: &str, text: &str) {
        self.notes.push(printable(&format!("without counterpart: {place}: {text}")));
    }

    /// Notes a mistake in the other config
    fn mistake(&mut self, place: &str, text: &str) {
        self.notes.push(printable(&format!("mistake: {place}: {text}")));
    }

    /// Has a hook that keeps the tracker from starting stand for an access rule
    fn undecided(&mut self, place: &str, text: &str) {
        let note = printable(&format!("access rule not carried over: {place}: {text}"));
        self.hooks.push(format!("  # {note}\n  - name: {UNDECIDED}\n"));
        self.notes.push(note);
        self.undecided += 1;
    }

    /// A hook of options, each with its value
    fn hook(&mut self, name: &str, from: &str, options: &[(&str, String)]) {
        let mut text = format!("  # {from}\n  - name: {name}\n    options:\n");
        for (key, value) in options {
            _ = writeln!(text, "      {key}: {value}");
        }
        self.hooks.push(text);
    }

    fn finish(mut self, name: &str) -> Imported {
        let least = (self.interval + self.variation) * 3 / 2;
        let lifetime = self.peer_lifetime.max(least);
        let from = match lifetime > self.peer_lifetime {
            true => "at least 1.5 times the longest interval",
            false => "how long a peer was kept",
        };
        let lifetime = humantime::format_duration(lifetime).to_string().replace(' ', "");
        self.set("announce", "peer_lifetime", lifetime, from);
        let name = quoted(name);
        let mut config =
            format!("# Made from {name}; behind each value stands what it was made from.\n");
        for note in &self.notes {
            _ = writeln!(config, "# {note}");
        }
        for section in ["udp", "http", "announce", "control"] {
            let lines: Vec<_> = self.lines.iter().filter(|line| line.section == section).collect();
            if lines.is_empty() {
                continue;
            }
            _ = writeln!(config, "\n{section}:");
            for Line { key, value, from, .. } in lines {
                _ = writeln!(config, "  {key}: {value}  # {from}");
            }
        }
        if !self.hooks.is_empty() {
            _ = write!(config, "\nhooks:\n{}", self.hooks.join("\n"));
        }
        Imported { config, notes: self.notes, is_complete: self.undecided == 0 }
    }
}

/// A text that becomes a comment, which must not end where the other config says
fn printable(text: &str) -> String {
    let plain = |character: char| match character {
        ' '..='~' => character,
        letter if letter.is_alphanumeric() => letter,
        _ => '?',
    };
    text.chars().map(plain).collect()
}

/// The known name that is most like a misspelt one, as a question
fn suggestion(name: &str, known: &[&str]) -> String {
    let near = known.iter().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    match near.filter(|(distance, _)| *distance <= name.len().div_ceil(3).max(1)) {
        Some((_, known)) => format!("; did you mean {known}?"),
        None => String::new(),
    }
}

/// Values as a YAML list
fn list<T: std::fmt::Display>(values: &[T]) -> String {
    let quoted: Vec<_> = values.iter().map(|value| quoted(&value.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

/// A text as a YAML string: whatever stands in it
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            plain if plain == ' ' || plain.is_ascii_graphic() => quoted.push(plain),
            other => _ = write!(quoted, "\\U{:08x}", u32::from(other)),
        }
    }
    quoted.push('"');
    quoted
}

fn shown(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs().max(1)))
        .to_string()
        .replace(' ', "")
}

/// An address as the other trackers write it: without a port it is the usual one, without an address any
fn addresses(text: &str) -> Option<Vec<SocketAddr>> {
    const PORT: u16 = 6969;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(vec![address]);
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(vec![SocketAddr::new(address, PORT)]);
    }
    let port = text.strip_prefix(':').unwrap_or(text).parse().ok()?;
    Some(vec![([0, 0, 0, 0], port).into(), ([0_u16; 8], port).into()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::policy::HookConfig;

    fn made(text: &str) -> (Config, Imported) {
        let imported = import("the file", text).unwrap();
        let config = Config::parse("made", &imported.config);
        (config.unwrap_or_else(|error| panic!("{error}\n{}", imported.config)), imported)
    }

    #[test]
    fn a_whole_config_of_chihaya_keeps_its_meaning() {
        let (config, imported) = made(include_str!("../../tests/import/chihaya.yaml"));
        let notes = imported.notes.join("\n");
        assert_eq!(config.udp.listen, addresses("0.0.0.0:6969").unwrap());
        assert_eq!(config.http.listen, addresses(":6969").unwrap());
        assert_eq!(config.http.tls.listen, addresses("0.0.0.0:443").unwrap());
        assert_eq!(config.announce.interval, Duration::from_secs(1_800));
        assert_eq!(config.announce.min_interval, Duration::from_secs(900));
        assert_eq!((config.announce.numwant_default, config.announce.numwant_max), (50, 100));
        assert_eq!(config.http.limits.idle, Duration::from_secs(30));
        assert_eq!(config.http.limits.requests, 1, "without keep-alive");
        assert_eq!(config.http.paths.announce.len(), 2);
        let control = config.control.listen.map(|it| it.to_string());
        assert_eq!(control.as_deref(), Some("127.0.0.1:6880"), "for this machine alone");
        assert!(imported.is_complete);
        let [jwt, clients, torrents, variation] = &config.hooks[..] else { panic!("{config:?}") };
        assert!(
            matches!(jwt, HookConfig::Jwt(terms) if terms.issuer.as_deref() == Some("https://issuer.example"))
        );
        assert!(matches!(clients, HookConfig::Clients(clients) if clients.prefixes.len() == 2));
        assert!(
            matches!(torrents, HookConfig::AccessList { sources, .. } if sources.info_hashes.len() == 1)
        );
        assert!(matches!(variation, HookConfig::IntervalVariation(it) if it.increase_secs == 60));
        assert_eq!(config.announce.peer_lifetime, Duration::from_secs(2_790));
        for named in [
            "udp.private_key",
            "udp.max_clock_skew",
            "http.real_ip_header",
            "http.max_scrape_infohashes",
            "storage.config.gc_interval",
            "http.write_timeout",
            "posthooks.0",
            "mistyped",
        ] {
            assert!(notes.contains(&format!("{named}:")), "no {named} in\n{notes}");
        }
        assert!(imported.config.contains("# without counterpart: line 30: udp.private_key"));
    }

    #[test]
    fn a_whole_config_of_opentracker_keeps_its_meaning() {
        let (config, imported) = made(include_str!("../../tests/import/opentracker.conf"));
        assert!(imported.is_complete);
        let notes = imported.notes.join("\n");
        let expected = [addresses("0.0.0.0"), addresses("[::]:6969")].map(Option::unwrap).concat();
        assert_eq!(config.udp.listen, expected);
        assert_eq!(config.http.listen, [expected, addresses("192.0.2.1:80").unwrap()].concat());
        assert_eq!(config.http.trusted_proxies.len(), 2);
        let HookConfig::AccessList { sources, .. } = &config.hooks[0] else { panic!("{config:?}") };
        assert_eq!(sources.files, [std::path::PathBuf::from("/etc/opentracker/whitelist")]);
        assert!(
            matches!(&config.hooks[1], HookConfig::IntervalVariation(it) if it.increase_secs == 360)
        );
        assert_eq!(config.announce.interval, Duration::from_secs(1_620));
        for named in [
            "access.fifo_add",
            "access.stats",
            "livesync.cluster.node_ip",
            "tracker.user",
            "tracker.redirect_url",
            "listen.udp.workers",
            "tracker.mistyped",
        ] {
            assert!(notes.contains(&format!("{named}:")), "no {named} in\n{notes}");
        }
    }

    #[test]
    fn little_is_enough_and_nothing_is_told_so() {
        let (config, _) = made("chihaya: {udp: {addr: ':1234'}, announce_interval: 1h}");
        assert_eq!(config.udp.listen, addresses(":1234").unwrap());
        assert!(config.http.listen.is_empty(), "it would not have served HTTP");
        assert_eq!(config.announce.peer_lifetime, Duration::from_secs(5_400));
        let (config, _) = made("access.blacklist /x \"y\"\n");
        assert_eq!((config.udp.listen.len(), config.http.listen.len()), (1, 1));
        for none in ["", "hello", "udp: {}", "- 5"] {
            assert_eq!(import("x", none), Err(ImportError::Unknown), "{none}");
        }
        assert!(matches!(import("x", "chihaya:\n  - [\n"), Err(ImportError::Broken(_))));
    }

    #[test]
    fn values_of_the_wrong_kind_are_mistakes_and_left_out() {
        let odd = "chihaya:\n  announce_interval: [1]\n  metrics_addr: nowhere\n  udp: {addr: {}}\n  \
                   storage: 5\n  http: {addr: ':80'}\n  announce_intervall: 5m\n";
        let (_, imported) = made(odd);
        let notes = imported.notes.join("\n");
        for note in [
            "mistake: line 2: announce_interval: ",
            "mistake: line 3: metrics_addr: \"nowhere\"",
            "mistake: line 4: udp.addr: ",
            "mistake: line 5: storage: ",
            "mistake: line 7: announce_intervall: is not a key; did you mean announce_interval?",
        ] {
            assert!(notes.contains(note), "no {note} in\n{notes}");
        }
    }

    /// A rule that cannot be carried over does not become an open tracker
    #[test]
    fn access_rules_are_never_left_out() {
        for text in [
            "chihaya: {prehooks: [{name: torrent approval, options: {whitelist: ['01234567890123456789']}}]}",
            "chihaya: {prehooks: [{name: torrent aproval, options: {whitelist: []}}]}",
            "chihaya: {prehooks: [{name: torrent approval, options: {whitelst: []}}]}",
            "chihaya: {prehooks: [{name: client approval, options: {whitelist: [5, 'a b']}}]}",
            "chihaya: {prehooks: [{name: jwt}]}",
            "chihaya: {prehooks: [5]}",
            "chihaya: {prehooks: {name: jwt}}",
            "chihaya: {prehoks: [{name: jwt}]}",
            "access.whitelst /etc/whitelist\n",
            "access.whitelist\n",
            "listen.udp 0.0.0.0\naccess.blaklist /x\n",
        ] {
            let imported = import("the file", text).unwrap();
            assert!(!imported.is_complete, "{text}:\n{}", imported.config);
            let error = Config::parse("made", &imported.config).unwrap_err().to_string();
            assert!(error.contains("could not be imported"), "{text}: {error}");
        }
        let notes = import("x", "access.whitelst /w\n").unwrap().notes.join("\n");
        assert!(
            notes.contains(
                "line 1: access.whitelst: /w: is not a key; did you mean access.whitelist?"
            ),
            "{notes}"
        );
    }
}
