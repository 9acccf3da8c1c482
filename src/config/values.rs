//! Reads single values. Errors name the value and the cure; the caller adds the key and the line number.

use crate::hex;
use crate::http::paths::PathPattern;
use crate::lines;
use crate::policy::networks::parse_network;
use bytesize::ByteSize;
use ipnet::IpNet;
use serde_yaml::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tsubame_udp::connection_id::ConnectionIdKey;

/// Maximum of intervals and lifetimes: a tick of the swarm table is stored in one byte.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

pub(super) type Read<T> = Result<T, String>;

/// Formats a value for an error text, close to how it was written.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Bool(_) | Value::Number(_) => plain(value).unwrap_or_default(),
        Value::Sequence(_) => "a list".to_owned(),
        _ => "a section".to_owned(),
    }
}

/// Returns the text of a scalar: numbers need no quotes.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

pub(super) fn text(value: &Value) -> Read<String> {
    plain(value).ok_or_else(|| format!("{} is not a single value", shown(value)))
}

/// Reads a value or a list of values.
pub(super) fn list<T>(value: &Value, one: impl Fn(&Value) -> Read<T>) -> Read<Vec<T>> {
    match value {
        Value::Sequence(values) => values.iter().map(one).collect(),
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        value => Ok(vec![one(value)?]),
    }
}

pub(super) fn boolean(value: &Value) -> Read<bool> {
    value.as_bool().ok_or_else(|| format!("{} is neither true nor false", shown(value)))
}

pub(super) fn number(value: &Value, least: u32, most: u32) -> Read<u32> {
    let number = value.as_u64().ok_or_else(|| {
        format!("{} is not a whole number; give one from {least} to {most}", shown(value))
    })?;
    u32::try_from(number)
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("{number} is out of range; give {least} to {most}"))
}

pub(super) fn duration(value: &Value, least: Duration, most: Duration) -> Read<Duration> {
    let text = text(value)?;
    if text.parse::<f64>().is_ok() {
        return Err(format!("{text} has no unit; write it as {text}s or {text}m"));
    }
    let duration = humantime::parse_duration(&text)
        .map_err(|error| format!("{text:?} is not a duration ({error}); write it as 30m or 45s"))?;
    if (least..=most).contains(&duration) && duration.subsec_nanos() == 0 {
        return Ok(duration);
    }
    let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
    Err(format!("{text} is out of range; give whole seconds from {least} to {most}"))
}

pub(super) fn size(value: &Value, least: usize, most: usize) -> Read<usize> {
    let text = text(value)?;
    let size: ByteSize =
        text.parse().map_err(|_| format!("{text:?} is not a size; write it as 64MiB or 1352B"))?;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|size| (least..=most).contains(size))
        .ok_or_else(|| format!("{text} is out of range; give {} to {}", exact(least), exact(most)))
}

/// Formats a size in the largest unit of which it is a multiple.
fn exact(bytes: usize) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &&(u32, &str)| bytes > 0 && bytes.is_multiple_of(1 << shift);
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

pub(super) fn choice<T: Copy>(value: &Value, choices: &[(&str, T)]) -> Read<T> {
    // YAML 1.1 tools write on and off as booleans.
    let text = match value {
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        value => text(value)?,
    };
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is none of {}", names.join(", "))
    })
}

pub(super) fn auto_or<T>(value: &Value, read: impl FnOnce(&Value) -> Read<T>) -> Read<Option<T>> {
    if value.as_str() == Some("auto") { Ok(None) } else { read(value).map(Some) }
}

fn address(value: &Value) -> Read<SocketAddr> {
    let text = text(value)?;
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => format!("{text:?} has no port; write it as {text}:6969"),
        Ok(IpAddr::V6(_)) => format!("{text:?} has no port; write it as [{text}]:6969"),
        Err(_) => format!("{text:?} is not an address with a port; write it as 0.0.0.0:6969"),
    })
}

pub(super) fn addresses(value: &Value) -> Read<Vec<SocketAddr>> {
    let addresses = list(value, address)?;
    for (index, address) in addresses.iter().enumerate() {
        if address.port() != 0 && addresses[..index].contains(address) {
            return Err(format!("{address} is listed twice; leave one out"));
        }
        if address.is_ipv6() && address.ip().to_canonical().is_ipv4() {
            return Err(format!("{address} is an IPv4 address in IPv6 form; write it as IPv4"));
        }
    }
    Ok(addresses)
}

pub(super) fn paths(value: &Value) -> Read<Vec<PathPattern>> {
    list(value, |value| {
        let text = text(value)?;
        PathPattern::parse(&text).map_err(|error| {
            format!("{text:?} {error}; write it as /announce or /{{key}}/announce")
        })
    })
}

pub(super) fn optional_address(value: &Value) -> Read<Option<SocketAddr>> {
    match value {
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::Sequence(values) if values.is_empty() => Ok(None),
        value => address(value).map(Some),
    }
}

fn network(value: &Value) -> Read<IpNet> {
    let text = text(value)?;
    parse_network(&text)
        .ok_or_else(|| format!("{text:?} is not a network; write it as 10.0.0.0/8 or fd00::/8"))
}

pub(super) fn networks(value: &Value) -> Read<Vec<IpNet>> {
    list(value, network)
}

/// Reads a list of keys, or the path of a file with one key per line.
pub(super) fn keys(value: &Value) -> Read<Vec<ConnectionIdKey>> {
    match value {
        Value::Sequence(values) => {
            values.iter().map(|value| key(&text(value)?).map_err(str::to_owned)).collect()
        }
        Value::String(path) if path.trim().is_empty() => Ok(Vec::new()),
        Value::String(path) => keys_of_file(Path::new(path.trim())),
        other => Err(format!("{} is neither a list of keys nor a file", shown(other))),
    }
}

/// Maximum size in bytes of a file of connection id keys.
const KEY_FILE_LEN_MAX: u64 = 1 << 16;

fn keys_of_file(path: &Path) -> Read<Vec<ConnectionIdKey>> {
    let shown = path.display();
    let bytes = lines::read(path, KEY_FILE_LEN_MAX).map_err(|error| {
        format!("cannot read {shown}: {error}; give a list of keys, or a file with one a line")
    })?;
    let source = String::from_utf8_lossy(&bytes);
    let lines = source.lines().map(str::trim).enumerate();
    let keys: Vec<ConnectionIdKey> = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| key(line).map_err(|error| format!("{shown}:{}: {error}", number + 1)))
        .collect::<Read<_>>()?;
    if keys.is_empty() {
        return Err(format!("{shown} has no key; write one of 32 hexadecimal digits into it"));
    }
    Ok(keys)
}

/// Replaces an error text that would show a secret.
fn key(text: &str) -> Result<ConnectionIdKey, &'static str> {
    const WRONG: &str = "a key is not 32 hexadecimal digits; make one with: openssl rand -hex 16";
    hex::decode(text).map(ConnectionIdKey).ok_or(WRONG)
}

/// Reads a share: 0 to 1, or 0 % to 100 %.
pub(super) fn share(value: &Value) -> Read<f64> {
    let percent =
        |text: &str| Some(text.trim().strip_suffix('%')?.trim().parse::<f64>().ok()? / 100.0);
    let share = value.as_f64().or_else(|| value.as_str().and_then(percent));
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| {
        format!("{} is no share; give a number from 0 to 1, or 0% to 100%", shown(value))
    })
}

/// Parses each text of a list.
pub(super) fn texts<T>(value: &Value, read: impl Fn(&str) -> Read<T>) -> Read<Vec<T>> {
    list(value, |value| read(&text(value)?))
}

pub(super) fn path_list(value: &Value) -> Read<Vec<PathBuf>> {
    list(value, path)
}

/// Reads the path of a file. Whether the file exists is checked when it is opened.
pub(super) fn path(value: &Value) -> Read<PathBuf> {
    match value {
        Value::String(text) => Ok(PathBuf::from(text)),
        other => Err(format!("{} is not a path; write it in quotes", shown(other))),
    }
}
