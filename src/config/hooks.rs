//! Reads the key `hooks`: the operator's policy, in the configured order.

use super::read::Section;
use super::values;
use crate::hex::parse_info_hash;
use crate::policy::access_list::{ListMode, ListSources};
use crate::policy::clients::{ClientFilter, parse_prefix};
use crate::policy::custom::{self, ConfiguredCustomHook, CustomHookKind};
use crate::policy::interval::{IntervalVariation, LoadBasedInterval};
use crate::policy::jwt::{JwtSettings, KeySource, LEEWAY_SECS_MAX};
use crate::policy::limits::{ExcessReply, LimitSettings};
use crate::policy::{HookConfig, RefusalReply};
use serde_yaml::Value;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::{PREFIX_LENGTHS_MAX, PrefixLengths, SubnetPreference};

/// Name of the hook that an imported config has for an access rule that could not be converted.
pub const PLACEHOLDER_HOOK: &str = "decide_before_start";

/// Error text for clients that request a torrent that is not served.
const NOT_SERVED: &str = "this torrent is not served by this tracker";

/// Maximum interval in a reply to a refused request.
const REFUSAL_INTERVAL_MAX: Duration = Duration::from_secs(7 * 86_400);

/// Names of the built-in hooks.
pub(super) const NAMES: [&str; 9] = [
    "access_list",
    "clients",
    "networks",
    "passkey",
    "jwt",
    "limits",
    "interval_variation",
    "interval_load",
    "subnet_preference",
];

/// Reads all hooks. A hook with an unknown name, and a custom hook with invalid options, are omitted; other mistakes
/// leave defaults in place.
pub(super) fn read(root: &mut Section<'_>) -> Vec<HookConfig> {
    let mut hooks = Vec::new();
    root.each("hooks", |mut hook| {
        let name = hook.value("name", String::new(), values::text);
        let is_custom = |kind: &&CustomHookKind| kind.name == name && !NAMES.contains(&kind.name);
        if let Some(kind) = custom::kinds().iter().find(is_custom) {
            hooks.extend(custom_hook(kind, &mut hook));
            hook.end();
            return;
        }
        let mut options = hook.section("options");
        let read = match name.as_str() {
            "access_list" => Some(access_list(&mut options)),
            "clients" => Some(clients(&mut options)),
            "networks" => Some(networks(&mut options)),
            "passkey" => Some(passkey(&mut options)),
            "jwt" => Some(jwt(&mut options)),
            "limits" => Some(limits(&mut options)),
            "interval_variation" => Some(interval_variation(&mut options)),
            "interval_load" => Some(interval_load(&mut options)),
            "subnet_preference" => Some(subnet_preference(&mut options)),
            _ => None,
        };
        match read {
            Some(_) => options.end(),
            None => hook.mistake("name", unknown_hook(&name)),
        }
        if read.iter().any(prefers_subnets) && hooks.iter().any(prefers_subnets) {
            hook.mistake(
                "name",
                "subnet_preference is configured twice; give all prefixes in one hook".to_owned(),
            );
        }
        hook.end();
        hooks.extend(read);
    });
    hooks
}

/// Creates a custom hook, whose options are read by the code that registered it.
fn custom_hook(kind: &CustomHookKind, hook: &mut Section<'_>) -> Option<HookConfig> {
    let options = hook.value("options", serde_json::Value::Null, |value| {
        serde_json::to_value(value).map_err(|error| format!("{error}; write keys with values"))
    });
    match (kind.make)(&options) {
        Ok(made) => Some(HookConfig::Custom(ConfiguredCustomHook {
            config: (kind.name, options),
            hook: made,
        })),
        Err(mistake) => {
            hook.mistake("options", mistake);
            None
        }
    }
}

fn prefers_subnets(hook: &HookConfig) -> bool {
    matches!(hook, HookConfig::SubnetPreference(_))
}

/// Returns the name of the built-in hook that replaces a hook of Chihaya.
fn chihaya_counterpart(name: &str) -> Option<&'static str> {
    match name {
        "torrent approval" => Some("access_list"),
        "client approval" => Some("clients"),
        "interval variation" | "varinterval" => Some("interval_variation"),
        _ => None,
    }
}

/// Returns the error text for an unknown hook name.
fn unknown_hook(name: &str) -> String {
    let custom_names = custom::kinds().iter().map(|kind| kind.name);
    let names: Vec<_> = NAMES.into_iter().chain(custom_names).collect();
    let near = |known: &&&str| strsim::damerau_levenshtein(known, name) <= 3;
    let meant = chihaya_counterpart(name).or_else(|| names.iter().find(near).copied());
    match meant {
        _ if name == PLACEHOLDER_HOOK => {
            "is a placeholder for an access rule that could not be imported (see the comment above it); \
             replace it with a hook, or remove it"
                .to_owned()
        }
        _ if name.is_empty() => format!("is missing; give one of {}", names.join(", ")),
        Some(meant) => format!("{name:?} is not a hook; did you mean {meant}?"),
        None => format!("{name:?} is not a hook; the hooks are {}", names.join(", ")),
    }
}

fn mode(options: &mut Section<'_>) -> ListMode {
    let all = [("allow", ListMode::Allow), ("deny", ListMode::Deny)];
    if !options.has("mode") {
        options.missing(
            "mode",
            "give allow to permit only what is listed, or deny to permit the rest",
        );
    }
    options.value("mode", ListMode::Allow, |value| values::choice(value, &all))
}

fn access_list(options: &mut Section<'_>) -> HookConfig {
    let mode = mode(options);
    if !["files", "info_hashes", "torrents", "overrides_file"].iter().any(|key| options.has(key)) {
        options.missing(
            "files",
            "give at least one of files, info_hashes, torrents and overrides_file",
        );
    }
    let sources = ListSources {
        files: options.value("files", Vec::new(), values::path_list),
        info_hashes: options.value("info_hashes", Vec::new(), |value| {
            values::texts(value, |text| {
                parse_info_hash(text).ok_or_else(|| {
                    format!("{text:?} is not an info hash; write 40 or 64 hexadecimal digits")
                })
            })
        }),
        torrent_directories: options.value("torrents", Vec::new(), values::path_list),
        overrides: options.value("overrides_file", None, |value| values::path(value).map(Some)),
    };
    let interval = options.value("interval", 86_400, |value| seconds(value, REFUSAL_INTERVAL_MAX));
    let replies = [
        ("error", RefusalReply::Error(NOT_SERVED)),
        ("empty", RefusalReply::Empty(interval)),
        ("gone", RefusalReply::Gone(NOT_SERVED)),
    ];
    let reply = options
        .value("answer", RefusalReply::Error(NOT_SERVED), |value| values::choice(value, &replies));
    HookConfig::AccessList { mode, sources, reply }
}

fn clients(options: &mut Section<'_>) -> HookConfig {
    let mode = mode(options);
    if !options.has("clients") {
        options.missing("clients", "give peer id prefixes, such as [-qB, M7-]");
    }
    let prefixes = options.value("clients", Vec::new(), |value| {
        values::texts(value, |text| {
            parse_prefix(text).ok_or_else(|| {
                format!(
                    "{text:?} is not a peer id prefix; write 1 to 20 characters, such as -qB or M7-"
                )
            })
        })
    });
    HookConfig::Clients(ClientFilter { mode, prefixes })
}

fn networks(options: &mut Section<'_>) -> HookConfig {
    let mode = mode(options);
    if !options.has("networks") && !options.has("files") {
        options.missing(
            "networks",
            "give networks, such as [10.0.0.0/8], or files with one network per line",
        );
    }
    HookConfig::Networks {
        mode,
        networks: options.value("networks", Vec::new(), values::networks),
        files: options.value("files", Vec::new(), values::path_list),
    }
}

fn passkey(options: &mut Section<'_>) -> HookConfig {
    let file = options.value("file", PathBuf::new(), values::path);
    if file.as_os_str().is_empty() {
        options.missing("file", "give a file with one passkey per line");
    }
    let scrapes = options.value("scrapes", false, values::boolean);
    HookConfig::Passkey { file, scrapes }
}

fn jwt(options: &mut Section<'_>) -> HookConfig {
    let issuer = options.value("issuer", None, |value| values::text(value).map(Some));
    let audience = options.value("audience", None, |value| values::text(value).map(Some));
    let url = options.value("jwk_set_url", None, |value| match values::text(value)? {
        url if url.starts_with("https://") || url.starts_with("http://") => Ok(Some(url)),
        other => Err(format!("{other:?} is not a URL; write it as https://host/jwks.json")),
    });
    let require_https = options.value("require_https", true, values::boolean);
    if let Some(url) = url.as_deref().filter(|url| require_https && !is_https_or_loopback(url)) {
        let text = format!(
            "{url:?} is not encrypted: an attacker on the network path could approve torrents; use https, or set \
             require_https: false"
        );
        options.mistake("jwk_set_url", text);
    }
    let file = options.value("jwk_set_file", None, |value| values::path(value).map(Some));
    let keys = match (url, file) {
        (Some(url), None) => KeySource::Url(url),
        (None, Some(file)) => KeySource::File(file),
        (None, None) => {
            options.missing("jwk_set_url", "give jwk_set_url or jwk_set_file");
            KeySource::Url(String::new())
        }
        (Some(url), Some(_)) => {
            let text = "cannot be combined with jwk_set_url; remove one of them".to_owned();
            options.mistake("jwk_set_file", text);
            KeySource::Url(url)
        }
    };
    let five_minutes = Duration::from_secs(300);
    let update_interval = options.value("jwk_set_update_interval", five_minutes, |value| {
        values::duration(value, Duration::from_secs(1), values::DAY)
    });
    let leeway = options.value("leeway", Duration::from_secs(60), |value| {
        values::duration(value, Duration::ZERO, Duration::from_secs(LEEWAY_SECS_MAX))
    });
    HookConfig::Jwt(Arc::new(JwtSettings {
        issuer,
        audience,
        keys,
        update_interval,
        leeway_secs: leeway.as_secs(),
        require_exp: options.value("require_exp", true, values::boolean),
        scrapes: options.value("scrapes", false, values::boolean),
    }))
}

/// Returns whether a URL uses HTTPS or refers to this host.
fn is_https_or_loopback(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return true };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let name = match host.strip_prefix('[').and_then(|it| it.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_loopback = name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || name.eq_ignore_ascii_case("localhost")
}

fn limits(options: &mut Section<'_>) -> HookConfig {
    let count = |value: &Value| values::number(value, 0, 1_000_000);
    let announces_per_s = options.value("announces_per_second", 0, count);
    let burst = options.value("burst", announces_per_s.saturating_mul(10), count);
    if burst < announces_per_s {
        let found = format!("{burst} is less than announces_per_second ({announces_per_s})");
        options.mistake("burst", format!("{found}; increase it to at least that"));
    }
    let torrents_per_min = options.value("torrents_per_minute", 0, count);
    if announces_per_s == 0 && torrents_per_min == 0 {
        options.missing(
            "announces_per_second",
            "give announces_per_second, torrents_per_minute, or both",
        );
    }
    let bits = |max: u32| move |value: &Value| values::number(value, 1, max).map(|it| it as u8);
    let ipv4_prefix = options.value("ipv4_prefix", 32, bits(32));
    let ipv6_prefix = options.value("ipv6_prefix", 64, bits(128));
    let exempt = options.value("exempt", Vec::new(), values::networks);
    let interval = options.value("interval", 3_600, |value| seconds(value, REFUSAL_INTERVAL_MAX));
    let all = [("drop", ExcessReply::Drop), ("empty", ExcessReply::Empty(interval))];
    let excess = options.value("answer", ExcessReply::Drop, |value| values::choice(value, &all));
    HookConfig::Limits(LimitSettings {
        announces_per_s,
        burst,
        torrents_per_min,
        ipv4_prefix,
        ipv6_prefix,
        exempt,
        excess,
        scrapes: options.value("scrapes", true, values::boolean),
    })
}

fn interval_variation(options: &mut Section<'_>) -> HookConfig {
    HookConfig::IntervalVariation(IntervalVariation {
        probability: options.value("probability", 1.0, values::share),
        increase_secs: options.value("increase", 60, |value| seconds(value, values::DAY)),
        min_interval: options.value("min_interval", false, values::boolean),
    })
}

fn interval_load(options: &mut Section<'_>) -> HookConfig {
    let count = |value: &Value| values::number(value, 0, 100_000_000);
    let from = options.value("from", 50_000, count);
    let to = options.value("to", 200_000.max(from), count);
    let max_interval_secs =
        options.value("max_interval", 3_600, |value| seconds(value, values::DAY));
    if to < from {
        options.mistake(
            "to",
            format!("{to} is less than from ({from}); increase it to at least that"),
        );
    }
    HookConfig::IntervalLoad(LoadBasedInterval { from, to: to.max(from), max_interval_secs })
}

fn subnet_preference(options: &mut Section<'_>) -> HookConfig {
    if !options.has("ipv4") && !options.has("ipv6") {
        options.missing("ipv4", "give prefix lengths, such as [24, 16], for ipv4, ipv6, or both");
    }
    let v4 = options.value("ipv4", PrefixLengths::default(), |value| lengths(value, 32));
    let v6 = options.value("ipv6", PrefixLengths::default(), |value| lengths(value, 128));
    let at_random = options.value("at_random", 0.0, values::share);
    // At most 100.
    let at_random_percent = (at_random * 100.0).round() as u8;
    HookConfig::SubnetPreference(SubnetPreference { v4, v6, at_random_percent })
}

fn lengths(value: &Value, max: u32) -> Result<PrefixLengths, String> {
    let one = |value: &Value| values::number(value, 1, max).map(|length| length as u8);
    let all = values::list(value, one)?;
    PrefixLengths::new(&all).ok_or_else(|| {
        format!(
            "{all:?} is not a list of up to {PREFIX_LENGTHS_MAX} prefix lengths, longest first; write it as [24, 16]"
        )
    })
}

fn seconds(value: &Value, longest: Duration) -> Result<u32, String> {
    // At most a week.
    values::duration(value, Duration::from_secs(1), longest).map(|it| it.as_secs() as u32)
}

/// Returns the longest interval that hooks give to stored peers, if the configured interval is `interval`.
pub(super) fn longest_interval(hooks: &[HookConfig], interval: Duration) -> Duration {
    hooks.iter().fold(interval, |longest, hook| match hook {
        HookConfig::IntervalVariation(variation) => {
            longest + Duration::from_secs(variation.increase_secs.into())
        }
        HookConfig::IntervalLoad(by_load) => {
            longest.max(Duration::from_secs(by_load.max_interval_secs.into()))
        }
        // A client that exceeds the limit may have a stored peer, which must not expire meanwhile.
        HookConfig::Limits(LimitSettings { excess: ExcessReply::Empty(secs), .. }) => {
            longest.max(Duration::from_secs((*secs).into()))
        }
        _ => longest,
    })
}
