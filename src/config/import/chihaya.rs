//! Converts the config of Chihaya.

use super::draft::{ImportDraft, addresses, duration_text, list, quoted, suggestion};
use crate::config::read::line_of;
use serde_yaml::{Mapping, Value};
use std::net::SocketAddr;
use std::time::Duration;

/// Chihaya's default peer lifetime.
const PEER_LIFETIME: Duration = Duration::from_secs(1_800);

/// Keys of a section; those that are left at the end are reported.
struct YamlKeys<'t> {
    /// Text of the whole file, for line numbers.
    text: &'t str,
    path: String,
    keys: Mapping,
    known: Vec<String>,
}

/// Formats a key with its line number, as in `line 5: udp.addr`.
fn place(text: &str, path: &str) -> String {
    let whole = if path.is_empty() { "chihaya".to_owned() } else { format!("chihaya.{path}") };
    match line_of(text, &whole) {
        Some(line) => format!("line {line}: {path}"),
        None => path.to_owned(),
    }
}

/// Formats a value close to how it was written.
fn shown_value(value: &Value) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    text.chars().take(80).collect()
}

impl<'t> YamlKeys<'t> {
    fn of(
        draft: &mut ImportDraft,
        text: &'t str,
        path: &str,
        value: Option<Value>,
    ) -> Option<Self> {
        match value {
            Some(Value::Mapping(keys)) => {
                Some(Self { text, path: path.to_owned(), keys, known: Vec::new() })
            }
            None | Some(Value::Null) => None,
            Some(other) => {
                let found = format!("{}: must contain keys; it is left out", shown_value(&other));
                draft.mistake(&place(text, path), &found);
                None
            }
        }
    }

    fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Formats a key with its line number.
    fn place(&self, key: &str) -> String {
        place(self.text, &self.path(key))
    }

    /// Removes a key and returns its value.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.known.push(key.to_owned());
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    /// Reads and converts a value, and reports an error if it is invalid.
    fn read<T>(
        &mut self,
        draft: &mut ImportDraft,
        key: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let place = self.place(key);
        let value = self.take(key)?;
        let found = read(&value);
        if found.is_none() {
            let text = format!("{}: is not understood, and left out", shown_value(&value));
            draft.mistake(&place, &text);
        }
        found
    }

    /// Notes that a key has no counterpart, if it is present.
    fn note_no_counterpart(&mut self, draft: &mut ImportDraft, key: &str, why: &str) {
        let place = self.place(key);
        if self.take(key).is_some() {
            draft.note(&place, why);
        }
    }

    /// Reports all remaining keys as unknown; `is_rule` says whether they may be access rules.
    fn end(self, draft: &mut ImportDraft, is_rule: impl Fn(&str) -> bool) {
        let known: Vec<&str> = self.known.iter().map(String::as_str).collect();
        for key in self.keys.keys() {
            let name = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
            let text = format!("is not a key{}", suggestion(&name, &known));
            match is_rule(&name) {
                true => draft.add_placeholder_hook(&self.place(&name), &text),
                false => draft.mistake(&self.place(&name), &text),
            }
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_sequence()?.iter().map(text).collect()
}

/// Parses a Go duration; the result is in whole seconds.
fn duration(value: &Value) -> Option<Duration> {
    let duration = humantime::parse_duration(value.as_str()?).ok()?;
    (duration.as_secs() > 0).then(|| Duration::from_secs(duration.as_secs()))
}

pub(super) fn read(source: &str, root: &Value) -> ImportDraft {
    let mut draft = ImportDraft { interval: Duration::from_secs(1_800), ..ImportDraft::default() };
    let Some(mut keys) = YamlKeys::of(&mut draft, source, "", Some(root.clone())) else {
        return draft;
    };
    if let Some(interval) = keys.read(&mut draft, "announce_interval", duration) {
        draft.interval = interval;
        draft.set("announce", "interval", duration_text(interval), "announce_interval");
    }
    let minimum = keys.read(&mut draft, "min_announce_interval", duration);
    if let Some(minimum) = minimum.map(|minimum| minimum.min(draft.interval)) {
        draft.set("announce", "min_interval", duration_text(minimum), "min_announce_interval");
    }
    let metrics = keys.read(&mut draft, "metrics_addr", |value| addresses(value.as_str()?));
    match metrics.as_deref() {
        Some([address, ..]) => {
            // Chihaya serves only metrics there; the control listener accepts changes from this machine.
            let address = SocketAddr::from(([127, 0, 0, 1], address.port()));
            let from = "metrics_addr, on the loopback address only";
            draft.set("control", "listen", quoted(&address.to_string()), from);
        }
        _ => draft.set("control", "listen", quoted(""), "no metrics_addr"),
    }
    let (udp, http) = (keys.take("udp"), keys.take("http"));
    let udp = YamlKeys::of(&mut draft, source, "udp", udp);
    let http = YamlKeys::of(&mut draft, source, "http", http);
    let mut numwant = (None, None);
    read_udp(&mut draft, udp, &mut numwant);
    read_http(&mut draft, http, &mut numwant);
    if numwant != (None, None) {
        let max = numwant.1.unwrap_or(100).clamp(1, 1_000);
        let default = numwant.0.unwrap_or(50).min(max);
        let value = format!("{{default: {default}, max: {max}}}");
        draft.set("announce", "numwant", value, "default_numwant, max_numwant");
    }
    let storage = keys.take("storage");
    read_storage(&mut draft, source, storage);
    let (prehooks, posthooks) = (keys.take("prehooks"), keys.take("posthooks"));
    read_hooks(&mut draft, source, prehooks);
    for at in 0..posthooks.as_ref().and_then(Value::as_sequence).map_or(0, Vec::len) {
        let place = place(source, &format!("posthooks.{at}"));
        draft.note(&place, "hooks after the reply are not supported; it is left out");
    }
    // A misspelt key may be that of the access rules.
    keys.end(&mut draft, |name| strsim::damerau_levenshtein(name, "prehooks") <= 3);
    draft
}

/// Default and maximum number of peers in a reply.
type Numwant = (Option<u64>, Option<u64>);

/// Converts `numwant` and the other keys that both protocols have.
fn read_common(draft: &mut ImportDraft, keys: &mut YamlKeys<'_>, numwant: &mut Numwant) {
    let (default, max) = numwant;
    *default = (*default).max(keys.read(draft, "default_numwant", Value::as_u64));
    *max = (*max).max(keys.read(draft, "max_numwant", Value::as_u64));
    if keys.read(draft, "allow_ip_spoofing", Value::as_bool) == Some(true) {
        let text = "any client could announce any address; to permit it to some clients, list their networks in \
                    announce.trust_client_ip";
        draft.note(&keys.place("allow_ip_spoofing"), text);
    }
    keys.note_no_counterpart(
        draft,
        "max_scrape_infohashes",
        "the maximum is 74 over UDP and 250 over HTTP",
    );
    keys.note_no_counterpart(
        draft,
        "enable_request_timing",
        "/metrics has the time of the phases of turns: tsubame_sampled_turn_seconds_total",
    );
}

fn read_udp(draft: &mut ImportDraft, keys: Option<YamlKeys<'_>>, numwant: &mut Numwant) {
    let Some(mut keys) = keys else {
        return draft.set("udp", "listen", "[]".to_owned(), "no udp");
    };
    match keys.read(draft, "addr", |value| addresses(value.as_str()?)) {
        Some(listen) => draft.set("udp", "listen", list(&listen), "udp.addr"),
        None => draft.set("udp", "listen", "[]".to_owned(), "no udp.addr"),
    }
    read_common(draft, &mut keys, numwant);
    keys.note_no_counterpart(
        draft,
        "private_key",
        "keys have another format; nodes that share an address need the same udp.connection_id_keys",
    );
    keys.note_no_counterpart(
        draft,
        "max_clock_skew",
        "connection ids from up to 64 s in the future are accepted",
    );
    keys.end(draft, |_| false);
}

fn read_http(draft: &mut ImportDraft, keys: Option<YamlKeys<'_>>, numwant: &mut Numwant) {
    let Some(mut keys) = keys else {
        return draft.set("http", "listen", "[]".to_owned(), "no http");
    };
    match keys.read(draft, "addr", |value| addresses(value.as_str()?)) {
        Some(listen) => draft.set("http", "listen", list(&listen), "http.addr"),
        None => draft.set("http", "listen", "[]".to_owned(), "no http.addr"),
    }
    let https = keys.read(draft, "https_addr", |value| match value.as_str()? {
        "" => Some(Vec::new()),
        text => addresses(text),
    });
    let certificate = keys.read(draft, "tls_cert_path", text).unwrap_or_default();
    let key = keys.read(draft, "tls_key_path", text).unwrap_or_default();
    if let Some(listen) = https.filter(|listen| !listen.is_empty()) {
        let (listen, certificate, key) = (list(&listen), quoted(&certificate), quoted(&key));
        let value = format!("{{listen: {listen}, certificate: {certificate}, key: {key}}}");
        draft.set("http", "tls", value, "http.https_addr, tls_cert_path, tls_key_path");
    }
    for (key, converted) in
        [("announce_routes", "announce_paths"), ("scrape_routes", "scrape_paths")]
    {
        let routes = keys.read(draft, key, texts).unwrap_or_default();
        let paths: Vec<_> = routes.iter().filter_map(|route| path(draft, key, route)).collect();
        if !paths.is_empty() {
            draft.set("http", converted, list(&paths), &format!("http.{key}"));
        }
    }
    if let Some(header) = keys.read(draft, "real_ip_header", text).filter(|it| !it.is_empty()) {
        let header = header.to_ascii_lowercase();
        if ["x-real-ip", "x-forwarded-for"].contains(&header.as_str()) {
            draft.set("http", "proxy_header", header, "http.real_ip_header");
        }
        let text = "it was trusted from any client; list the networks of your proxies in http.trusted_proxies";
        draft.note("http.real_ip_header", text);
    }
    read_common(draft, &mut keys, numwant);
    let idle_timeout = keys.read(draft, "idle_timeout", duration).map(duration_text);
    let request_timeout = keys.read(draft, "read_timeout", duration).map(duration_text);
    let mut limits = Vec::new();
    limits.extend(idle_timeout.map(|idle_timeout| format!("idle_timeout: {idle_timeout}")));
    limits.extend(
        request_timeout.map(|request_timeout| format!("request_timeout: {request_timeout}")),
    );
    if keys.read(draft, "enable_keepalive", Value::as_bool) != Some(true) {
        limits.push("requests: 1".to_owned());
    }
    if !limits.is_empty() {
        let value = format!("{{{}}}", limits.join(", "));
        draft.set("http", "limits", value, "idle_timeout, read_timeout, enable_keepalive");
    }
    keys.note_no_counterpart(draft, "write_timeout", "a client must read a reply within 30 s");
    keys.end(draft, |_| false);
}

/// Parses the path of a route, in which one segment may be a parameter.
fn path(draft: &mut ImportDraft, key: &str, route: &str) -> Option<String> {
    let segment = |segment: &str| match segment.strip_prefix(':') {
        Some(_) => "{key}".to_owned(),
        None => segment.to_owned(),
    };
    let path = route.split('/').map(segment).collect::<Vec<_>>().join("/");
    if path.contains('*') || crate::http::paths::PathPattern::parse(&path).is_err() {
        let text =
            format!("{route:?} is left out; only one segment of a path may be variable ({{key}})");
        draft.note(&format!("http.{key}"), &text);
        return None;
    }
    Some(path)
}

fn read_storage(draft: &mut ImportDraft, source: &str, value: Option<Value>) {
    draft.peer_lifetime = PEER_LIFETIME;
    let Some(mut keys) = YamlKeys::of(draft, source, "storage", value) else { return };
    let name = keys.read(draft, "name", text).unwrap_or_default();
    if !matches!(name.as_str(), "" | "memory") {
        let text = "swarms are kept in memory; to share them between trackers, set cluster.servers on each \
                    (docs/cluster.md)";
        draft.note("storage.name", text);
    }
    let config = keys.take("config");
    if let Some(mut config) = YamlKeys::of(draft, source, "storage.config", config) {
        if let Some(lifetime) = config.read(draft, "peer_lifetime", duration) {
            draft.peer_lifetime = lifetime;
        }
        for key in ["gc_interval", "prometheus_reporting_interval", "shard_count"] {
            config.note_no_counterpart(draft, key, "is not needed");
        }
        config.end(draft, |_| false);
    }
    keys.end(draft, |_| false);
}

/// Names of the hooks of Chihaya.
const HOOKS: [&str; 4] = ["jwt", "client approval", "torrent approval", "interval variation"];

fn read_hooks(draft: &mut ImportDraft, source: &str, value: Option<Value>) {
    let hooks = match value {
        None => return,
        Some(Value::Sequence(hooks)) => hooks,
        Some(other) => {
            let text = format!("{}: must be a list of hooks", shown_value(&other));
            return draft.add_placeholder_hook(&place(source, "prehooks"), &text);
        }
    };
    for (at, hook) in hooks.into_iter().enumerate() {
        let path = format!("prehooks.{at}");
        let here = place(source, &path);
        let Value::Mapping(keys) = hook else {
            let text = format!("{}: must have a name and options", shown_value(&hook));
            draft.add_placeholder_hook(&here, &text);
            continue;
        };
        let mut keys = YamlKeys { text: source, path: path.clone(), keys, known: Vec::new() };
        let name = keys.read(draft, "name", text).unwrap_or_default();
        let options = match keys.take("options") {
            Some(Value::Mapping(options)) => options,
            None => Mapping::new(),
            Some(other) => {
                let text =
                    format!("{name:?}: the options must be a mapping, not {}", shown_value(&other));
                draft.add_placeholder_hook(&here, &text);
                continue;
            }
        };
        keys.end(draft, |_| true);
        let path = format!("{path}.options");
        let mut options = YamlKeys { text: source, path, keys: options, known: Vec::new() };
        match name.as_str() {
            "jwt" => jwt(draft, &here, &mut options),
            "client approval" => approval(draft, &mut options, &name, "clients", "clients"),
            "torrent approval" => {
                approval(draft, &mut options, &name, "access_list", "info_hashes")
            }
            "interval variation" => {
                variation(draft, &mut options);
                options.end(draft, |_| false);
                continue;
            }
            _ => {
                let text =
                    format!("{name:?} is not a hook of Chihaya{}", suggestion(&name, &HOOKS));
                draft.add_placeholder_hook(&here, &text);
                continue;
            }
        }
        options.end(draft, |_| true);
    }
}

fn jwt(draft: &mut ImportDraft, here: &str, options: &mut YamlKeys<'_>) {
    let Some(url) = options.read(draft, "jwk_set_url", text) else {
        return draft.add_placeholder_hook(
            here,
            "jwt has no jwk_set_url, from which the keys of tokens are fetched",
        );
    };
    let mut converted = vec![("jwk_set_url", quoted(&url))];
    for key in ["issuer", "audience"] {
        let has_value = options.keys.contains_key(key);
        let value = options.read(draft, key, text);
        if has_value && value.is_none() {
            draft.add_placeholder_hook(
                &options.place(key),
                "is not a text; without it any value would be accepted",
            );
        }
        converted.extend(value.map(|value| (key, quoted(&value))));
    }
    let update_interval = options.read(draft, "jwk_set_update_interval", duration);
    converted.extend(
        update_interval
            .map(|update_interval| ("jwk_set_update_interval", duration_text(update_interval))),
    );
    let from =
        "prehook jwt; exp and nbf are also checked (for tokens without exp: require_exp: false)";
    draft.hook("jwt", from, &converted);
}

fn approval(
    draft: &mut ImportDraft,
    options: &mut YamlKeys<'_>,
    name: &str,
    hook: &str,
    key: &str,
) {
    for (list_key, mode) in [("whitelist", "allow"), ("blacklist", "deny")] {
        let here = options.place(list_key);
        let listed = match options.take(list_key) {
            None => continue,
            Some(Value::Sequence(listed)) => listed,
            Some(other) => {
                let text = format!("{}: must be a list", shown_value(&other));
                draft.add_placeholder_hook(&here, &text);
                continue;
            }
        };
        let fits = |text: &str| match key {
            "clients" => crate::policy::clients::parse_prefix(text).is_some(),
            _ => crate::hex::parse_info_hash(text).is_some(),
        };
        let (valid, invalid): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|value| value.as_str().is_some_and(fits));
        for value in &invalid {
            let what = if key == "clients" { "not a peer id prefix" } else { "not an info hash" };
            draft.add_placeholder_hook(&here, &format!("{} is {what}", shown_value(value)));
        }
        let valid: Vec<_> = valid.iter().filter_map(Value::as_str).collect();
        // An empty whitelist permits every torrent in Chihaya.
        if !valid.is_empty() {
            let converted = [("mode", mode.to_owned()), (key, list(&valid))];
            draft.hook(hook, &format!("prehook {name}, {list_key}"), &converted);
        }
    }
}

fn variation(draft: &mut ImportDraft, options: &mut YamlKeys<'_>) {
    let mut converted = Vec::new();
    let probability = options.read(draft, "modify_response_probability", Value::as_f64);
    converted.extend(probability.map(|share| ("probability", share.clamp(0.001, 1.0).to_string())));
    let increase = options.read(draft, "max_increase_delta", Value::as_u64);
    let increase = Duration::from_secs(increase.unwrap_or(60).clamp(1, 86_400));
    draft.variation = increase;
    converted.push(("increase", duration_text(increase)));
    let minimum = options.read(draft, "modify_min_interval", Value::as_bool);
    converted.extend(minimum.map(|minimum| ("min_interval", minimum.to_string())));
    draft.hook(
        "interval_variation",
        "prehook interval variation; drawn for each reply",
        &converted,
    );
}
