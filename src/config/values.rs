//! Reads single values. Errors name the value and the cure; the caller adds the key and the line number.

use crate::hex;
use crate::http::paths::PathPattern;
use crate::lines::{self, Mistakes};
use crate::policy::networks::parse_network;
use bytesize::ByteSize;
use ipnet::IpNet;
use serde_yaml::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tsubame_udp::connection_id::ConnectionIdKey;

/// Maximum of most intervals and lifetimes: one day.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Result of reading a value; the error says what is wrong and how to correct it.
pub(super) type ParseResult<T> = Result<T, String>;

/// Formats a value for an error text, close to how it was written.
fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Bool(_) | Value::Number(_) => scalar_text(value).unwrap_or_default(),
        Value::Sequence(_) => "a list".to_owned(),
        _ => "a section".to_owned(),
    }
}

/// Returns the text of a scalar: numbers need no quotes.
fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

pub(super) fn text(value: &Value) -> ParseResult<String> {
    scalar_text(value).ok_or_else(|| {
        format!("{} is not a single value; write a text or a number", describe(value))
    })
}

/// Reads a value or a list of values.
pub(super) fn list<T>(
    value: &Value,
    one: impl Fn(&Value) -> ParseResult<T>,
) -> ParseResult<Vec<T>> {
    match value {
        Value::Sequence(values) => values.iter().map(one).collect(),
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        value => Ok(vec![one(value)?]),
    }
}

pub(super) fn boolean(value: &Value) -> ParseResult<bool> {
    value
        .as_bool()
        .ok_or_else(|| format!("{} is not a boolean; write true or false", describe(value)))
}

pub(super) fn number(value: &Value, min: u32, max: u32) -> ParseResult<u32> {
    let number = value.as_u64().ok_or_else(|| {
        format!("{} is not a whole number; give one from {min} to {max}", describe(value))
    })?;
    u32::try_from(number)
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("{number} is out of range; give {min} to {max}"))
}

pub(super) fn duration(value: &Value, min: Duration, max: Duration) -> ParseResult<Duration> {
    let text = text(value)?;
    if text.parse::<f64>().is_ok() {
        return Err(format!("{text} has no unit; write it as {text}s or {text}m"));
    }
    let duration = humantime::parse_duration(&text)
        .map_err(|error| format!("{text:?} is not a duration ({error}); write it as 30m or 45s"))?;
    if (min..=max).contains(&duration) && duration.subsec_nanos() == 0 {
        return Ok(duration);
    }
    let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
    Err(format!("{text} is out of range; give whole seconds from {min} to {max}"))
}

/// Longest time for which datagrams can be gathered.
const GATHER_MAX: Duration = Duration::from_micros(200);

/// Reads `auto`, which is `None`, `off`, which is zero, or a time.
pub(super) fn gather(value: &Value) -> ParseResult<Option<Duration>> {
    if let Ok(chosen) = choice(value, &[("auto", None), ("off", Some(Duration::ZERO))]) {
        return Ok(chosen);
    }
    let text = text(value)?;
    let time = humantime::parse_duration(&text).ok();
    let time = time.filter(|time| (Duration::from_micros(1)..=GATHER_MAX).contains(time));
    let max = humantime::format_duration(GATHER_MAX);
    time.map(Some).ok_or_else(|| format!("{text:?} is not auto, off or a time from 1us to {max}"))
}

pub(super) fn size(value: &Value, min: usize, max: usize) -> ParseResult<usize> {
    let text = text(value)?;
    let size: ByteSize =
        text.parse().map_err(|_| format!("{text:?} is not a size; write it as 64MiB or 1352B"))?;
    usize::try_from(size.as_u64()).ok().filter(|size| (min..=max).contains(size)).ok_or_else(|| {
        format!("{text} is out of range; give {} to {}", format_size(min), format_size(max))
    })
}

/// Formats a size in the largest unit of which it is a multiple.
fn format_size(bytes: usize) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &&(u32, &str)| bytes > 0 && bytes.is_multiple_of(1 << shift);
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

pub(super) fn choice<T: Copy>(value: &Value, choices: &[(&str, T)]) -> ParseResult<T> {
    // YAML 1.1 tools write on and off as booleans.
    let text = match value {
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        value => text(value)?,
    };
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is not one of {}", names.join(", "))
    })
}

pub(super) fn auto_or<T>(
    value: &Value,
    read: impl FnOnce(&Value) -> ParseResult<T>,
) -> ParseResult<Option<T>> {
    if value.as_str() == Some("auto") { Ok(None) } else { read(value).map(Some) }
}

fn address(value: &Value) -> ParseResult<SocketAddr> {
    let text = text(value)?;
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => format!("{text:?} has no port; write it as {text}:6969"),
        Ok(IpAddr::V6(_)) => format!("{text:?} has no port; write it as [{text}]:6969"),
        Err(_) => format!("{text:?} is not an address with a port; write it as 0.0.0.0:6969"),
    })
}

pub(super) fn addresses(value: &Value) -> ParseResult<Vec<SocketAddr>> {
    let addresses = list(value, address)?;
    for (index, address) in addresses.iter().enumerate() {
        if address.port() != 0 && addresses[..index].contains(address) {
            return Err(format!("{address} is listed twice; remove one"));
        }
        if address.is_ipv6() && address.ip().to_canonical().is_ipv4() {
            return Err(format!("{address} is an IPv4 address in IPv6 form; write it as IPv4"));
        }
    }
    Ok(addresses)
}

pub(super) fn paths(value: &Value) -> ParseResult<Vec<PathPattern>> {
    list(value, |value| {
        let text = text(value)?;
        PathPattern::parse(&text).map_err(|error| {
            format!("{text:?} {error}; write it as /announce or /{{key}}/announce")
        })
    })
}

pub(super) fn optional_address(value: &Value) -> ParseResult<Option<SocketAddr>> {
    match value {
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::Sequence(values) if values.is_empty() => Ok(None),
        value => address(value).map(Some),
    }
}

fn network(value: &Value) -> ParseResult<IpNet> {
    let text = text(value)?;
    parse_network(&text)
        .ok_or_else(|| format!("{text:?} is not a network; write it as 10.0.0.0/8 or fd00::/8"))
}

pub(super) fn networks(value: &Value) -> ParseResult<Vec<IpNet>> {
    list(value, network)
}

/// The value of `udp.connection_id_keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionIdKeys {
    /// The keys, the newest first.
    pub keys: Vec<ConnectionIdKey>,
    /// The file that the keys were read from, unless they are in the config.
    pub file: Option<PathBuf>,
}

/// Reads a list of keys, or the path of a file with one key per line.
pub(super) fn keys(value: &Value) -> ParseResult<ConnectionIdKeys> {
    match value {
        Value::Sequence(values) => {
            let keys = values.iter().map(|value| key(&text(value)?).map_err(str::to_owned));
            Ok(ConnectionIdKeys { keys: keys.collect::<ParseResult<_>>()?, file: None })
        }
        Value::String(path) if path.trim().is_empty() => Ok(ConnectionIdKeys::default()),
        Value::String(path) => {
            let file = PathBuf::from(path.trim());
            Ok(ConnectionIdKeys { keys: keys_of_file(&file)?, file: Some(file) })
        }
        other => {
            Err(format!("{} is neither a list of keys nor the path of a file", describe(other)))
        }
    }
}

/// Maximum size in bytes of a file of connection id keys.
const KEY_FILE_LEN_MAX: u64 = 1 << 16;

fn keys_of_file(path: &Path) -> ParseResult<Vec<ConnectionIdKey>> {
    let file = path.display();
    let bytes = lines::read(path, KEY_FILE_LEN_MAX).map_err(|error| {
        format!("cannot read {file}: {error}; give a list of keys, or a file with one key per line")
    })?;
    let (mut keys, mut mistakes) = (Vec::new(), Mistakes::default());
    lines::read_entries_from(path, &*bytes, &mut mistakes, |entry| {
        keys.push(key(entry)?);
        Ok(())
    });
    if let Some(mistake) = mistakes.0.into_iter().next() {
        return Err(mistake);
    }
    if keys.is_empty() {
        return Err(format!("{file} contains no keys; add a key of 32 hexadecimal digits"));
    }
    Ok(keys)
}

/// Parses a key. The error text does not contain it, because it is secret.
fn key(text: &str) -> Result<ConnectionIdKey, &'static str> {
    const WRONG: &str =
        "the key does not have 32 hexadecimal digits; generate one with: openssl rand -hex 16";
    hex::decode(text).map(ConnectionIdKey).ok_or(WRONG)
}

/// Reads a share: 0 to 1, or 0 % to 100 %.
pub(super) fn share(value: &Value) -> ParseResult<f64> {
    let percent =
        |text: &str| Some(text.trim().strip_suffix('%')?.trim().parse::<f64>().ok()? / 100.0);
    let share = value.as_f64().or_else(|| value.as_str().and_then(percent));
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| {
        format!("{} is not a share; give a number from 0 to 1, or 0% to 100%", describe(value))
    })
}

/// Parses each text of a list.
pub(super) fn texts<T>(
    value: &Value,
    read: impl Fn(&str) -> ParseResult<T>,
) -> ParseResult<Vec<T>> {
    list(value, |value| read(&text(value)?))
}

pub(super) fn path_list(value: &Value) -> ParseResult<Vec<PathBuf>> {
    list(value, path)
}

/// Reads a path; an empty one is `None`.
pub(super) fn optional_path(value: &Value) -> ParseResult<Option<PathBuf>> {
    path(value).map(|it| Some(it).filter(|it| !it.as_os_str().is_empty()))
}

/// Reads the path of a file. Whether the file exists is checked when it is opened.
pub(super) fn path(value: &Value) -> ParseResult<PathBuf> {
    match value {
        Value::String(text) => Ok(PathBuf::from(text)),
        other => Err(format!("{} is not a path; write it in quotes", describe(other))),
    }
}
