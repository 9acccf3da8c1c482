//! The sections `udp`, `announce`, `storage`, `control` and `log`, and the key `cpus`. Other sections have modules of
//! their own.

use super::read::Section;
use super::values::{self, ConnectionIdKeys};
use super::xdp::XdpConfig;
use crate::sizes::{NUMWANT_LIMIT, REPLY_LEN_DEFAULT, REPLY_LEN_LIMIT, REPLY_LEN_MIN};
use ipnet::IpNet;
use serde_yaml::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tsubame_storage::Caps;
use tsubame_udp::connection_id::LIFETIME_SECS_MAX;
use tsubame_udp::steering::SHARDS_MAX;
use values::DAY;

/// Maximum of the caps per address: an announce compares its address with as many peers.
const ADDRESS_CAP_MAX: u32 = 256;

/// Default of the caps per address: enough for a household or a seedbox, and few enough to bound a
/// flood.
const ADDRESS_CAP: u32 = 16;

/// Cores that run a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuSelection {
    /// One shard for each physical core that the process may run on.
    Auto,
    /// One shard for each of these cores.
    List(Vec<usize>),
}

/// Whether the kernel sends each announce or scrape to the shard that owns its first torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteeringMode {
    /// Steer if the kernel supports it.
    Auto,
    /// Fail at startup if the kernel does not support it.
    On,
    /// Do not steer: shards forward requests to the owner.
    Off,
}

/// Keys under `udp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// How long a connection id is accepted.
    pub connection_id_lifetime: Duration,
    /// Keys of connection ids; random if empty.
    pub connection_id_keys: ConnectionIdKeys,
    /// Whether to reply to an invalid connection id with an error.
    pub explain_wrong_connection_id: bool,
    /// Whether the kernel steers requests.
    pub steering: SteeringMode,
    /// How long datagrams are gathered before they are answered; zero disables it, and with `None` trials choose the
    /// time.
    pub gather: Option<Duration>,
    /// Size in bytes of each socket's receive buffer.
    pub receive_buffer: usize,
    /// Maximum size in bytes of an announce response.
    pub max_reply_size: usize,
    /// Keys of `udp.xdp`.
    pub xdp: XdpConfig,
}

/// Keys under `announce`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceConfig {
    /// Interval between the announces of a client.
    pub interval: Duration,
    /// Minimum interval, sent over HTTP.
    pub min_interval: Duration,
    /// How long a peer is stored after its last announce.
    pub peer_lifetime: Duration,
    /// Number of peers for a client that does not send `numwant`.
    pub numwant_default: u32,
    /// Maximum number of peers in a response.
    pub numwant_max: u32,
    /// Networks whose clients may announce for another address.
    pub trust_client_ip: Vec<IpNet>,
    /// Whether private addresses are given to all clients like public ones.
    pub allow_private: bool,
}

/// Keys under `storage`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// Maximum bytes of all swarm tables and of the queues between shards; `None` is 70 % of the available memory.
    pub memory: Option<usize>,
    /// How long a torrent without peers keeps its count of completed downloads.
    pub keep_completed: Duration,
    /// Directory of the snapshot and of the key of connection ids; `None` keeps neither.
    pub directory: Option<PathBuf>,
    /// Time between two snapshots; zero for none but at stop.
    pub snapshot_interval: Duration,
    /// Time that the last snapshot may take.
    pub stop_timeout: Duration,
    /// Maximum numbers of peers within a swarm.
    pub caps: Caps,
    /// Share of the memory, in ten-thousandths, that the peers of one IPv4 /24 or IPv6 /48 may use while memory
    /// is short.
    pub source_share_per_10_000: u32,
}

/// Keys under `control`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// TCP address to listen on; `None` disables TCP.
    pub listen: Option<SocketAddr>,
    /// Path of the unix socket to listen on; `None` disables it.
    pub socket: Option<PathBuf>,
    /// File with the token that requests from other hosts must have; `None` refuses such requests.
    pub token_file: Option<PathBuf>,
    /// Host names that are accepted in requests, in addition to IP addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// Keys under `log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Minimum severity of logged events.
    pub level: LogLevel,
    /// Format of log lines.
    pub format: LogFormat,
    /// Interval between two lines that summarize the traffic; zero for none.
    pub summary: Duration,
}

/// Severity of a log event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// A failure.
    Error,
    /// A condition that will cause problems.
    Warn,
    /// Information for operators.
    Info,
    /// Information for developers.
    Debug,
}

impl LogLevel {
    /// All levels, the most severe first.
    pub const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// Returns the name in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text: coloured on a terminal, with priorities and without times for the journal of systemd.
    Auto,
    /// Text without colours.
    Text,
    /// One JSON object per line.
    Json,
}

/// Returns the default addresses of the UDP and of the HTTP listener, one of each family. Both listeners have the same
/// port because clients that know a tracker by one protocol try the other on the same port.
pub(super) fn default_listen() -> Vec<SocketAddr> {
    vec![([0, 0, 0, 0], 6969).into(), ([0_u16; 8], 6969).into()]
}

impl UdpConfig {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let udp = Self {
            listen: section.value("listen", default_listen(), values::addresses),
            connection_id_lifetime: section.value(
                "connection_id_lifetime",
                Duration::from_secs(120),
                |value| {
                    let max_lifetime = Duration::from_secs(LIFETIME_SECS_MAX);
                    values::duration(value, Duration::from_secs(60), max_lifetime)
                },
            ),
            connection_id_keys: section.value(
                "connection_id_keys",
                ConnectionIdKeys::default(),
                values::keys,
            ),
            explain_wrong_connection_id: section.value("wrong_connection_id", false, |value| {
                values::choice(value, &[("drop", false), ("error", true)])
            }),
            steering: section.value("steering", SteeringMode::Auto, |value| {
                let all = [
                    ("auto", SteeringMode::Auto),
                    ("on", SteeringMode::On),
                    ("off", SteeringMode::Off),
                ];
                values::choice(value, &all)
            }),
            gather: section.value("gather", None, values::gather),
            receive_buffer: section
                .value("receive_buffer", 8 << 20, |value| values::size(value, 64 << 10, 1 << 30)),
            max_reply_size: section.value("max_reply_size", REPLY_LEN_DEFAULT, |value| {
                values::size(value, REPLY_LEN_MIN, REPLY_LEN_LIMIT)
            }),
            xdp: XdpConfig::read(section.section("xdp")),
        };
        section.end();
        udp
    }
}

impl AnnounceConfig {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let span = |value: &_| values::duration(value, Duration::from_secs(1), DAY);
        let interval = section.value("interval", minutes(30), span);
        let min_interval = section.value("min_interval", minutes(15).min(interval), span);
        let peer_lifetime = section.value("peer_lifetime", minutes(45), span);
        let mut numwant = section.section("numwant");
        let numwant_max =
            numwant.value("max", 200, |value| values::number(value, 1, NUMWANT_LIMIT));
        let numwant_default = numwant
            .value("default", 50.min(numwant_max), |value| values::number(value, 0, NUMWANT_LIMIT));
        numwant.end();
        let trust_client_ip = section.value("trust_client_ip", Vec::new(), values::networks);
        let allow_private = section.value("allow_private", false, values::boolean);
        section.end();
        Self {
            interval,
            min_interval,
            peer_lifetime,
            numwant_default,
            numwant_max,
            trust_client_ip,
            allow_private,
        }
    }
}

impl StorageConfig {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let memory = section.value("memory", None, |value| {
            values::auto_or(value, |value| values::size(value, 16 << 20, 1 << 46))
        });
        let keep_completed = section.value("keep_completed", DAY, |value| {
            values::duration(value, Duration::from_secs(1), DAY * 366)
        });
        let directory = section.value("directory", None, values::optional_path);
        let snapshot_interval =
            section.value("snapshot_interval", Duration::from_secs(600), |value| {
                values::duration(value, Duration::ZERO, DAY)
            });
        let stop_timeout = section.value("stop_timeout", Duration::from_secs(20), |value| {
            values::duration(value, Duration::from_secs(1), Duration::from_secs(600))
        });
        let mut caps = section.section("caps");
        let mut cap =
            |key, default, max| caps.value(key, default, |value| values::number(value, 0, max));
        let swarm = cap("swarm", 0, u32::MAX);
        let per_ipv4 = cap("per_ipv4", ADDRESS_CAP, ADDRESS_CAP_MAX);
        let per_ipv6_64 = cap("per_ipv6_64", ADDRESS_CAP, ADDRESS_CAP_MAX);
        caps.end();
        let share = section.value("source_share", 0.02, values::share);
        section.end();
        let caps = Caps { swarm, per_ipv4, per_ipv6_64 };
        // At most 10,000.
        let source_share_per_10_000 = (share * 10_000.0).round() as u32;
        Self {
            memory,
            keep_completed,
            directory,
            snapshot_interval,
            stop_timeout,
            caps,
            source_share_per_10_000,
        }
    }
}

impl ControlConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Some(SocketAddr::from(([127, 0, 0, 1], 6880)));
        Self {
            listen: section.value("listen", default, values::optional_address),
            socket: section.value("socket", None, values::optional_path),
            token_file: section.value("token_file", None, values::optional_path),
            hosts: section.value("hosts", Vec::new(), |value| {
                values::texts(value, |text| Ok(text.to_ascii_lowercase()))
            }),
        }
    }
}

impl LogConfig {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let levels = LogLevel::ALL.map(|level| (level.name(), level));
        let formats =
            [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
        let level = section.value("level", LogLevel::Info, |value| values::choice(value, &levels));
        let format =
            section.value("format", LogFormat::Auto, |value| values::choice(value, &formats));
        let summary = section
            .value("summary", Duration::ZERO, |value| values::duration(value, Duration::ZERO, DAY));
        section.end();
        Self { level, format, summary }
    }
}

/// Reads `auto` or a set of cores: `2-11`, `0,2,4-7` or a list.
pub(super) fn read_cpus(value: &Value) -> values::ParseResult<CpuSelection> {
    if value.as_str() == Some("auto") {
        return Ok(CpuSelection::Auto);
    }
    let cpus: Vec<usize> = values::list(value, cpu_ranges)?.into_iter().flatten().collect();
    if cpus.is_empty() || cpus.len() > usize::from(SHARDS_MAX) {
        return Err(format!("selects {} cores; select 1 to {SHARDS_MAX}, or auto", cpus.len()));
    }
    Ok(CpuSelection::List(cpus))
}

fn cpu_ranges(value: &Value) -> values::ParseResult<Vec<usize>> {
    let text = values::text(value)?;
    let mut cpus = Vec::new();
    for range in text.split(',').map(str::trim) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last < 4096 => cpus.extend(first..=last),
            _ => {
                return Err(format!(
                    "{text:?} is not a list of cores; write auto, or cores as in 2-11 or 0,2,4"
                ));
            }
        }
    }
    Ok(cpus)
}
