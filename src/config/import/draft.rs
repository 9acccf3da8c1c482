//! The output of a config conversion while it is being built.

use crate::config::hooks::PLACEHOLDER_HOOK;
use crate::config::read::nearest;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A converted config, with what could not be converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedConfig {
    /// YAML with comments.
    pub config: String,
    /// Errors, keys without an exact counterpart, and access rules that were not converted.
    pub notes: Vec<String>,
    /// Whether all access rules were converted.
    pub has_all_access_rules: bool,
}

/// A key with its value, and the text of a comment that says what the value was made from.
#[derive(Debug)]
pub(super) struct ImportedLine {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) from: String,
}

/// A config that is being built.
#[derive(Debug, Default)]
pub(super) struct ImportDraft {
    pub(super) lines: Vec<ImportedLine>,
    pub(super) hooks: Vec<String>,
    pub(super) notes: Vec<String>,
    /// Number of access rules that could not be converted.
    pub(super) unconverted_rules: usize,
    pub(super) interval: Duration,
    /// Maximum time that hooks add to the announce interval.
    pub(super) variation: Duration,
    pub(super) peer_lifetime: Duration,
}

impl ImportDraft {
    pub(super) fn set(
        &mut self,
        section: &'static str,
        key: &'static str,
        value: String,
        from: &str,
    ) {
        self.lines.push(ImportedLine { section, key, value, from: from.to_owned() });
    }

    /// Records a key without an exact counterpart.
    pub(super) fn note(&mut self, place: &str, text: &str) {
        self.notes.push(printable(&format!("no exact counterpart: {place}: {text}")));
    }

    /// Records an error in the original config.
    pub(super) fn mistake(&mut self, place: &str, text: &str) {
        self.notes.push(printable(&format!("mistake: {place}: {text}")));
    }

    /// Adds a hook that keeps the tracker from starting, in place of an access rule.
    pub(super) fn add_placeholder_hook(&mut self, place: &str, text: &str) {
        let note = printable(&format!("access rule not converted: {place}: {text}"));
        self.hooks.push(format!("  # {note}\n  - name: {PLACEHOLDER_HOOK}\n"));
        self.notes.push(note);
        self.unconverted_rules += 1;
    }

    /// Adds a hook with options.
    pub(super) fn hook(&mut self, name: &str, from: &str, options: &[(&str, String)]) {
        let mut text = format!("  # {from}\n  - name: {name}\n    options:\n");
        for (key, value) in options {
            _ = writeln!(text, "      {key}: {value}");
        }
        self.hooks.push(text);
    }

    pub(super) fn finish(mut self, name: &str) -> ImportedConfig {
        let min_lifetime = (self.interval + self.variation) * 3 / 2;
        let lifetime = self.peer_lifetime.max(min_lifetime);
        let from = match lifetime > self.peer_lifetime {
            true => "at least 1.5 times the longest interval",
            false => "lifetime of a peer",
        };
        let lifetime = humantime::format_duration(lifetime).to_string().replace(' ', "");
        self.set("announce", "peer_lifetime", lifetime, from);
        let name = quoted(name);
        let mut config = format!(
            "# Converted from {name}. The comment after each value, or above each hook, names what it was made from.\n"
        );
        for note in &self.notes {
            _ = writeln!(config, "# {note}");
        }
        for section in ["udp", "http", "announce", "control"] {
            let lines: Vec<_> = self.lines.iter().filter(|line| line.section == section).collect();
            if lines.is_empty() {
                continue;
            }
            _ = writeln!(config, "\n{section}:");
            for ImportedLine { key, value, from, .. } in lines {
                _ = writeln!(config, "  {key}: {value}  # {from}");
            }
        }
        if !self.hooks.is_empty() {
            _ = write!(config, "\nhooks:\n{}", self.hooks.join("\n"));
        }
        ImportedConfig {
            config,
            notes: self.notes,
            has_all_access_rules: self.unconverted_rules == 0,
        }
    }
}

/// Replaces all characters but printable ASCII, letters and digits by `?`, so that a text cannot end a YAML comment.
pub(super) fn printable(text: &str) -> String {
    let plain = |character: char| match character {
        ' '..='~' => character,
        letter if letter.is_alphanumeric() => letter,
        _ => '?',
    };
    text.chars().map(plain).collect()
}

/// Returns a question with the known name that is most similar to a misspelt one, or an empty text.
pub(super) fn suggestion(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(known) => format!("; did you mean {known}?"),
        None => String::new(),
    }
}

/// Formats values as a YAML list.
pub(super) fn list<T: std::fmt::Display>(values: &[T]) -> String {
    let quoted: Vec<_> = values.iter().map(|value| quoted(&value.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

/// Formats any text as a YAML string.
pub(super) fn quoted(text: &str) -> String {
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

/// Formats a duration in whole seconds, at least one.
pub(super) fn duration_text(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs().max(1)))
        .to_string()
        .replace(' ', "")
}

/// Parses an address in the notation of other trackers: port 6969 and all addresses are the defaults.
pub(super) fn addresses(text: &str) -> Option<Vec<SocketAddr>> {
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
