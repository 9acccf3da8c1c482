//! What the operator wants: read from YAML once, checked as a whole, and from then on plain values.
//!
//! Nothing outside this module knows YAML. Every key is optional; `deploy/tsubame.yaml` documents each with
//! its default and is what `tsubame config` prints.

mod hooks;
mod http;
mod import;
mod read;
mod values;

pub use hooks::UNDECIDED;
pub use http::{Http, HttpLimits, HttpTls};
pub use import::{ImportError, Imported, import};
pub use read::Mistake;

use crate::limits::{NUMWANT_LIMIT, REPLY_LEN_DEFAULT, REPLY_LEN_LIMIT, REPLY_LEN_MIN};
use crate::policy::HookConfig;
use ipnet::IpNet;
use read::Reader;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::Caps;
use tsubame_udp::connection_id::{Key, LIFETIME_SECS_MAX};

/// The commented default, as `tsubame config` prints it
pub const DEFAULT_YAML: &str = include_str!("../deploy/tsubame.yaml");

/// The most peers of one address that can be permitted: an announce looks at each of them
const ADDRESS_CAP_MAX: u32 = 256;

/// Peers of one address in a swarm, unless configured: a household or a seedbox, and few of a flood
const ADDRESS_CAP: u32 = 16;

/// Bytes of the longest config that is read
const CONFIG_LEN_MAX: u64 = 64 << 20;

/// The longest interval or lifetime: a tick of the swarm table is one byte
const DAY: Duration = Duration::from_secs(86_400);

/// Everything that can be configured
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which cores get a shard
    pub cpus: Cpus,
    /// The UDP listener
    pub udp: Udp,
    /// The HTTP listener
    pub http: Http,
    /// What announces are answered with
    pub announce: Announce,
    /// The swarm table
    pub storage: Storage,
    /// The policy, in order
    pub hooks: Vec<HookConfig>,
    /// The control plane
    pub control: Control,
    /// The log
    pub log: Log,
}

/// Which cores get a shard
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// One shard for each physical core this process may run on
    Auto,
    /// One for each of these
    List(Vec<usize>),
}

/// Whether the kernel steers announces to their owner
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// If it can
    Auto,
    /// Else do not start
    On,
    /// No: everything crosses the mesh
    Off,
}

/// Keys under `udp`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Addresses to serve
    pub listen: Vec<SocketAddr>,
    /// How long a connection id is accepted
    pub connection_id_lifetime: Duration,
    /// Secrets that connection ids are made with; drawn at start if there are none
    pub connection_id_keys: Vec<Key>,
    /// Answer a wrong connection id with an error
    pub explain_wrong_connection_id: bool,
    /// Whether the kernel steers
    pub steering: Steering,
    /// Bytes the kernel may keep for each socket
    pub receive_buffer: usize,
    /// Bytes of an announce reply
    pub reply_size: usize,
}

/// Keys under `announce`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Between a client's announces
    pub interval: Duration,
    /// The least a client is asked to wait, over HTTP
    pub min_interval: Duration,
    /// How long a peer is kept after its last announce
    pub peer_lifetime: Duration,
    /// Peers for a client that does not say how many it wants
    pub numwant_default: u32,
    /// Peers for a client that wants many
    pub numwant_max: u32,
    /// Networks whose clients may say which address they announce for
    pub trust_client_ip: Vec<IpNet>,
    /// Hand out private peers like public ones
    pub allow_private: bool,
}

/// Keys under `storage`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Bytes all swarm tables may hold together; `None` is 70 % of what there is
    pub memory: Option<usize>,
    /// How long a torrent without peers keeps its count of completed downloads
    pub keep_completed: Duration,
    /// Limits within a swarm
    pub caps: Caps,
    /// Share of the memory, in ten-thousandths, that one source's peers may take while memory is short
    pub source_share_per_10_000: u32,
}

/// Keys under `control`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Address it listens on; none if empty
    pub listen: Option<SocketAddr>,
    /// Path of the unix socket it listens on; none if empty
    pub socket: Option<PathBuf>,
    /// Names of this host, beside its addresses, that requests may be sent to
    pub hosts: Vec<String>,
}

/// Keys under `log`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least severe events that are written
    pub level: LogLevel,
    /// How they are written
    pub format: LogFormat,
}

/// How severe an event is
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed
    Error,
    /// Something will hurt
    Warn,
    /// What an operator wants to know
    Info,
    /// What a developer wants to know
    Debug,
}

/// How log events are written
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, coloured on a terminal
    Auto,
    /// Text without colours
    Text,
    /// An object a line
    Json,
}

/// Why there is no config
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read
    #[error("cannot read the config {path}: {source}; give a readable file with --config")]
    Unreadable {
        /// The file
        path: PathBuf,
        /// Why
        source: std::io::Error,
    },
    /// The file can be read but not used
    #[error("{}", listed(.0))]
    Mistaken(Vec<Mistake>),
}

fn listed(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n")
}

fn unmistaken((config, mistakes): (Config, Vec<Mistake>)) -> Result<Config, ConfigError> {
    if mistakes.is_empty() { Ok(config) } else { Err(ConfigError::Mistaken(mistakes)) }
}

/// Reads a config, which may come from a pipe
fn read_text(path: &Path) -> std::io::Result<String> {
    std::io::read_to_string(std::fs::File::open(path)?.take(CONFIG_LEN_MAX))
}

impl Config {
    /// Reads a config file; without one, the default
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Self::parse_all("default", ""), Self::load_all).and_then(unmistaken)
    }

    /// Reads a config from text; `name` is what mistakes name as its file
    pub fn parse(name: &str, source: &str) -> Result<Self, ConfigError> {
        Self::parse_all(name, source).and_then(unmistaken)
    }

    /// Reads a config file and returns the config with all mistakes of its text. A mistaken value has its default in
    /// the config.
    pub fn load_all(path: &Path) -> Result<(Self, Vec<Mistake>), ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let text = read_text(path).map_err(unreadable)?;
        Self::parse_all(&path.display().to_string(), &text)
    }

    fn parse_all(name: &str, source: &str) -> Result<(Self, Vec<Mistake>), ConfigError> {
        let mut reader = Reader::new(name, source).map_err(ConfigError::Mistaken)?;
        let config = Self::read(&mut reader);
        config.check(&mut reader);
        Ok((config, reader.into_mistakes()))
    }

    fn read(reader: &mut Reader) -> Self {
        let mut root = reader.root();
        let cpus = root.value("cpus", Cpus::Auto, values::cpus);
        let udp = Udp::read(root.section("udp"));
        let http = Http::read(root.section("http"));
        let announce = Announce::read(root.section("announce"));
        let storage = Storage::read(root.section("storage"));
        let hooks = hooks::read(&mut root);
        let mut section = root.section("control");
        let control = Control::read(&mut section);
        section.end();
        let log = Log::read(root.section("log"));
        root.end();
        Self { cpus, udp, http, announce, storage, hooks, control, log }
    }

    /// Whether peers are kept for long enough for every interval that is handed out
    pub fn check_intervals(&self) -> Result<(), String> {
        let Announce { interval, peer_lifetime, .. } = &self.announce;
        let longest = hooks::longest_interval(&self.hooks, *interval);
        if *peer_lifetime >= longest * 3 / 2 {
            return Ok(());
        }
        let of = match longest > *interval {
            true => "the longest interval of hooks",
            false => "announce.interval",
        };
        Err(format!(
            "{} is less than 1.5 times {of} ({}), so peers would expire between two announces; make it at least {}",
            humantime::format_duration(*peer_lifetime),
            humantime::format_duration(longest),
            humantime::format_duration(longest * 3 / 2)
        ))
    }

    /// What no key can say alone
    fn check(&self, reader: &mut Reader) {
        let Announce { interval, min_interval, .. } = &self.announce;
        if let Err(mistake) = self.check_intervals() {
            reader.mistake("announce.peer_lifetime", mistake);
        }
        if min_interval > interval {
            reader.mistake(
                "announce.min_interval",
                format!(
                    "{} is longer than announce.interval ({}); make it shorter or equal",
                    humantime::format_duration(*min_interval),
                    humantime::format_duration(*interval)
                ),
            );
        }
        if self.announce.numwant_default > self.announce.numwant_max {
            reader.mistake(
                "announce.numwant.default",
                format!(
                    "{} is more than announce.numwant.max ({}); make it less or equal",
                    self.announce.numwant_default, self.announce.numwant_max
                ),
            );
        }
        self.http.check(&self.udp, reader);
    }
}

/// The addresses both listeners have unless configured: clients that know a tracker by one protocol try the other
/// on the same port
fn both_families() -> Vec<SocketAddr> {
    vec![([0, 0, 0, 0], 6969).into(), ([0_u16; 8], 6969).into()]
}

impl Udp {
    fn read(mut section: read::Section<'_>) -> Self {
        let udp = Self {
            listen: section.value("listen", both_families(), values::addresses),
            connection_id_lifetime: section.value(
                "connection_id_lifetime",
                Duration::from_secs(120),
                |value| {
                    let longest = Duration::from_secs(LIFETIME_SECS_MAX);
                    values::duration(value, Duration::from_secs(60), longest)
                },
            ),
            connection_id_keys: section.value("connection_id_keys", Vec::new(), values::keys),
            explain_wrong_connection_id: section.value("wrong_connection_id", false, |value| {
                values::choice(value, &[("drop", false), ("error", true)])
            }),
            steering: section.value("steering", Steering::Auto, |value| {
                let all = [("auto", Steering::Auto), ("on", Steering::On), ("off", Steering::Off)];
                values::choice(value, &all)
            }),
            receive_buffer: section
                .value("receive_buffer", 8 << 20, |value| values::size(value, 64 << 10, 1 << 30)),
            reply_size: section.value("reply_size", REPLY_LEN_DEFAULT, |value| {
                values::size(value, REPLY_LEN_MIN, REPLY_LEN_LIMIT)
            }),
        };
        section.end();
        udp
    }
}

impl Announce {
    fn read(mut section: read::Section<'_>) -> Self {
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

impl Storage {
    fn read(mut section: read::Section<'_>) -> Self {
        let memory = section.value("memory", None, |value| {
            values::auto_or(value, |value| values::size(value, 16 << 20, 1 << 46))
        });
        let keep_completed = section.value("keep_completed", DAY, |value| {
            values::duration(value, Duration::from_secs(1), DAY * 366)
        });
        let mut caps = section.section("caps");
        let mut cap =
            |key, default, most| caps.value(key, default, |value| values::number(value, 0, most));
        let swarm = cap("swarm", 0, u32::MAX);
        let per_ipv4 = cap("per_ipv4", ADDRESS_CAP, ADDRESS_CAP_MAX);
        let per_ipv6_64 = cap("per_ipv6_64", ADDRESS_CAP, ADDRESS_CAP_MAX);
        caps.end();
        let share = section.value("source_share", 0.02, values::share);
        section.end();
        let caps = Caps { swarm, per_ipv4, per_ipv6_64 };
        // At most 10,000.
        let source_share_per_10_000 = (share * 10_000.0).round() as u32;
        Self { memory, keep_completed, caps, source_share_per_10_000 }
    }
}

impl Control {
    fn read(section: &mut read::Section<'_>) -> Self {
        let default = Some(SocketAddr::from(([127, 0, 0, 1], 6880)));
        let path = |value: &_| {
            values::path(value).map(|it| Some(it).filter(|it| !it.as_os_str().is_empty()))
        };
        Self {
            listen: section.value("listen", default, values::optional_address),
            socket: section.value("socket", None, path),
            hosts: section.value("hosts", Vec::new(), |value| {
                values::texts(value, |text| Ok(text.to_ascii_lowercase()))
            }),
        }
    }
}

impl Log {
    fn read(mut section: read::Section<'_>) -> Self {
        let levels = [
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
        ];
        let formats =
            [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
        let level = section.value("level", LogLevel::Info, |value| values::choice(value, &levels));
        let format =
            section.value("format", LogFormat::Auto, |value| values::choice(value, &formats));
        section.end();
        Self { level, format }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(source: &str) -> String {
        match Config::parse("t.yaml", source) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("no mistake found in {source}"),
        }
    }

    #[test]
    fn the_printed_default_is_the_default_and_names_every_key() {
        let printed = Config::parse("default", DEFAULT_YAML).unwrap();
        assert_eq!(printed, Config::load(None).unwrap());
        let mut reader = Reader::new("default", DEFAULT_YAML).unwrap();
        Config::read(&mut reader);
        assert_eq!(reader.absent(), [""; 0], "keys without documentation");
    }

    #[test]
    fn the_example_of_hooks_names_every_option() {
        let example = include_str!("../deploy/hooks.yaml");
        let config = Config::parse("hooks.yaml", example).unwrap();
        assert_eq!(config.hooks.len(), hooks::NAMES.len());
        let mut reader = Reader::new("hooks.yaml", example).unwrap();
        Config::read(&mut reader);
        let absent = reader.absent().into_iter().filter(|key| key.starts_with("hooks."));
        assert_eq!(absent.collect::<Vec<_>>(), [""; 0], "options without documentation");
    }

    #[test]
    fn mistaken_hooks_are_named_with_their_lines() {
        let text = mistakes(
            "\
hooks:
  - name: acces_list
  - name: torrent approval
    options: {}
  - name: access_list
    options:
      mode: permit
      info_hashes: [\"12\"]
      file: x
  - name: clients
    options: {clients: [\"\"]}
  - name: limits
  - name: interval_load
    options:
      from: 10
      to: 5
      longest: 2h
  - 5
  - option: {}
",
        );
        for expected in [
            "t.yaml:2: hooks.0.name: \"acces_list\" is no hook; did you mean access_list?",
            "t.yaml:3: hooks.1.name: \"torrent approval\" is no hook; did you mean access_list?",
            "t.yaml:7: hooks.2.options.mode: \"permit\" is none of allow, deny",
            "t.yaml:8: hooks.2.options.info_hashes: \"12\" is no info hash",
            "t.yaml:9: hooks.2.options.file: is not a key; did you mean files?",
            "t.yaml:11: hooks.3.options.mode: is missing; give allow",
            "t.yaml:11: hooks.3.options.clients: \"\" is no beginning",
            "t.yaml:12: hooks.4.options.announces_per_second: is missing",
            "t.yaml:16: hooks.5.options.to: 5 is less than from (10)",
            "hooks.6: must hold keys",
            "t.yaml:19: hooks.7.name: is missing; give one of access_list,",
            "announce.peer_lifetime: 45m is less than 1.5 times the longest interval of hooks (2h)",
        ] {
            assert!(text.contains(expected), "no {expected:?} in:\n{text}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once_with_line_key_value_and_cure() {
        let source = "\
udp:
  listen: [\"0.0.0.0\"]
  recieve_buffer: 8MiB
  connection_id_lifetime: 5
announce:
  interval: 1h
  numwant:
    max: many
storage: { memory: 1MiB, caps: { swarn: 5 } }
udb: {}
";
        let text = mistakes(source);
        for expected in [
            "t.yaml:2: udp.listen: \"0.0.0.0\" has no port; write it as 0.0.0.0:6969",
            "t.yaml:3: udp.recieve_buffer: is not a key; did you mean receive_buffer?",
            "t.yaml:4: udp.connection_id_lifetime: 5 has no unit; write it as 5s or 5m",
            "t.yaml:8: announce.numwant.max: \"many\" is not a whole number",
            "t.yaml:9: storage.memory: 1MiB is out of range",
            "t.yaml:9: storage.caps.swarn: is not a key; did you mean swarm?",
            "t.yaml:10: udb: is not a key; did you mean udp?",
            "t.yaml:5: announce.peer_lifetime: 45m is less than 1.5 times announce.interval (1h)",
        ] {
            assert!(text.contains(expected), "no {expected:?} in:\n{text}");
        }
        assert_eq!(text.lines().count(), 8, "{text}");
    }

    #[test]
    fn what_is_no_yaml_or_no_mapping_is_told() {
        assert!(mistakes("udp: [").contains("t.yaml:"));
        assert!(
            mistakes(&"[".repeat(5_000_000)).contains("t.yaml:1: is nested more than 64 levels")
        );
        assert!(mistakes(&"- ".repeat(500)).contains("nested"));
        assert!(mistakes("udp:\n\tlisten: []").contains("t.yaml:2: is indented with a tab"));
        assert!(mistakes("udp: {reply_size: 1B}").contains("give 548B to 1472B"));
        let same = "http: {announce_paths: [/x], scrape_paths: [/x]}";
        assert!(mistakes(same).contains("http.scrape_paths: /x is one of announce_paths, too"));
        assert!(mistakes("- 1").contains("a list of keys"));
        assert!(mistakes("udp: 5").contains("t.yaml:1: udp: must hold keys"));
        assert!(mistakes("hooks: 5").contains("t.yaml:1: hooks: must be a list"));
        assert!(mistakes("hooks: [5]").contains("hooks.0: must hold keys"));
        let nothing = "udp: {listen: []}\nhttp: {listen: []}";
        assert!(mistakes(nothing).contains("give at least one address"));
        let keyless = "http: {tls: {listen: \"0.0.0.0:443\", certificate: c.pem}}";
        assert!(mistakes(keyless).contains("http.tls.key: is empty"));
        let twice = "http: {listen: \"[::]:443\", tls: {listen: \"[::1]:443\"}}";
        assert!(mistakes(twice).contains("http.tls.listen: [::]:443 is http.listen's, too"));
        let path = "http: {announce_paths: [announce]}";
        assert!(mistakes(path).contains("\"announce\" does not begin with a slash; write it as"));
        assert!(mistakes("cpus: 3-1").contains("cpus"));
    }

    #[test]
    fn values_are_read() {
        let config = Config::parse(
            "t",
            "
cpus: 0,2-4
udp:
  listen: \"127.0.0.1:0\"
  connection_id_keys: [00112233445566778899aabbccddeeff]
  wrong_connection_id: error
  steering: off
announce: {trust_client_ip: [10.0.0.0/8, \"fd00::1\"]}
storage: {memory: 2GiB}
control: {listen: \"\"}
log: {format: json}
http: {listen: [], tls: {listen: \"0.0.0.0:443\", certificate: c.pem, key: k.pem}}
",
        )
        .unwrap();
        assert_eq!(config.cpus, Cpus::List(vec![0, 2, 3, 4]));
        assert_eq!(config.udp.listen, ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(config.udp.connection_id_keys.len(), 1);
        assert!(config.udp.explain_wrong_connection_id);
        assert_eq!(config.udp.steering, Steering::Off);
        assert_eq!(config.announce.trust_client_ip.len(), 2);
        assert_eq!(config.storage.memory, Some(2 << 30));
        assert_eq!(config.control.listen, None);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.http.tls.certificate, Path::new("c.pem"));
        assert_eq!(config.http.paths.scrape.len(), 1);
    }

    #[test]
    fn keys_are_read_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let (new, old) = ("00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100");
        std::fs::write(&path, format!("# newest first\n{new}\n\n{old}\n")).unwrap();
        let source =
            |path: &Path| format!("udp: {{connection_id_keys: {:?}}}", path.display().to_string());
        let config = Config::parse("t", &source(&path)).unwrap();
        assert_eq!(config.udp.connection_id_keys.len(), 2);
        std::fs::write(&path, "00112233445566778899aabbccddeeff\nshort\n").unwrap();
        let text = mistakes(&source(&path));
        assert!(text.contains("keys:2") && text.contains("32 hexadecimal digits"), "{text}");
        assert!(!text.contains("short"), "a secret is told: {text}");
        assert!(mistakes(&source(&directory.path().join("none"))).contains("cannot read"));
    }
}
