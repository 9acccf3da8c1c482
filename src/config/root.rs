//! The config as a whole.

use super::cluster::ClusterConfig;
use super::hooks;
use super::http::HttpConfig;
use super::in_force::{self, ConfigValue};
use super::read::{Mistake, ReadValues, Reader};
use super::sections::{
    AnnounceConfig, ControlConfig, CpuSelection, LogConfig, StorageConfig, UdpConfig, read_cpus,
};
use super::values;
use crate::policy::HookConfig;
use std::io::Read;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tsubame_udp::xdp::KEYS_MAX;

/// Default config with comments, as printed by `tsubame config`.
pub const DEFAULT_YAML: &str = include_str!("../../deploy/tsubame.yaml");

/// Number of bytes after which reading a config stops: it may be a pipe without an end. A config of more than 16 MiB is
/// refused.
const READ_LEN_MAX: u64 = 64 << 20;

/// The config of a tracker.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Cores that run a shard.
    pub cpus: CpuSelection,
    /// User that the process becomes after binding its sockets; empty for none.
    pub user: String,
    /// UDP listener.
    pub udp: UdpConfig,
    /// HTTP listener.
    pub http: HttpConfig,
    /// Intervals, lifetimes and sizes of announce responses.
    pub announce: AnnounceConfig,
    /// Swarm table.
    pub storage: StorageConfig,
    /// Other nodes.
    pub cluster: ClusterConfig,
    /// Hooks of the policy, in order.
    pub hooks: Vec<HookConfig>,
    /// Control listener.
    pub control: ControlConfig,
    /// Log.
    pub log: LogConfig,
    /// The values of all keys as text, for operators to read.
    pub values: Vec<ConfigValue>,
}

/// Error of reading a config.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config {path}: {source}; give a readable file with --config")]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The file has syntax errors or invalid values.
    #[error("{}", join_mistakes(.0))]
    Invalid(Vec<Mistake>),
}

fn join_mistakes(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n")
}

fn reject_mistakes((config, mistakes): (Config, Vec<Mistake>)) -> Result<Config, ConfigError> {
    if mistakes.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(mistakes)) }
}

/// Reads a config from a file, which may be a pipe.
fn read_text(path: &Path) -> std::io::Result<String> {
    std::io::read_to_string(std::fs::File::open(path)?.take(READ_LEN_MAX))
}

impl Config {
    /// Reads a config file; returns the default config if `path` is `None`.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Self::parse_all("default", ""), Self::load_all)
            .and_then(reject_mistakes)
    }

    /// Parses a config; `name` is the file name in errors.
    pub fn parse(name: &str, source: &str) -> Result<Self, ConfigError> {
        Self::parse_all(name, source).and_then(reject_mistakes)
    }

    /// Reads a config file and returns the config with all errors of its text. Keys with invalid values have their
    /// default in the config.
    pub fn load_all(path: &Path) -> Result<(Self, Vec<Mistake>), ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let text = read_text(path).map_err(unreadable)?;
        Self::parse_all(&path.display().to_string(), &text)
    }

    fn parse_all(name: &str, source: &str) -> Result<(Self, Vec<Mistake>), ConfigError> {
        let mut reader = Reader::new(name, source).map_err(ConfigError::Invalid)?;
        let mut config = Self::read(&mut reader);
        config.check(&mut reader);
        let (values, mistakes) = reader.into_values_and_mistakes();
        config.values = in_force::values(&values, &Self::defaults(), &config.derived_defaults());
        Ok((config, mistakes))
    }

    /// Returns the keys of the default config, all of which are in its text, with their values.
    fn defaults() -> ReadValues {
        let mut reader = Reader::new("default", DEFAULT_YAML).expect("the default config is valid");
        Self::read(&mut reader);
        reader.into_values_and_mistakes().0
    }

    /// Returns the values of the keys whose defaults depend on other keys.
    fn derived_defaults(&self) -> [(&'static str, String); 2] {
        let min_interval = humantime::format_duration(self.announce.min_interval).to_string();
        let numwant = self.announce.numwant_default.to_string();
        [("announce.min_interval", min_interval), ("announce.numwant.default", numwant)]
    }

    /// Reads all keys; `values` stays empty.
    fn read(reader: &mut Reader) -> Self {
        let mut root = reader.root();
        let cpus = root.value("cpus", CpuSelection::Auto, read_cpus);
        let user = root.value("user", String::new(), values::text);
        let udp = UdpConfig::read(root.section("udp"));
        let http = HttpConfig::read(root.section("http"));
        let announce = AnnounceConfig::read(root.section("announce"));
        let storage = StorageConfig::read(root.section("storage"));
        let cluster = ClusterConfig::read(root.section("cluster"));
        let hooks = hooks::read(&mut root);
        let mut section = root.section("control");
        let control = ControlConfig::read(&mut section);
        section.end();
        let log = LogConfig::read(root.section("log"));
        root.end();
        let values = Vec::new();
        Self { cpus, user, udp, http, announce, storage, cluster, hooks, control, log, values }
    }

    /// Checks that peers are stored for longer than every announce interval.
    pub fn check_intervals(&self) -> Result<(), String> {
        let AnnounceConfig { interval, peer_lifetime, .. } = &self.announce;
        let longest = hooks::longest_interval(&self.hooks, *interval);
        if *peer_lifetime >= longest * 3 / 2 {
            return Ok(());
        }
        let name = match longest > *interval {
            true => "the longest interval of hooks",
            false => "announce.interval",
        };
        Err(format!(
            "{} is less than 1.5 times {name} ({}), so peers that announce late would expire; set it to at least {}",
            humantime::format_duration(*peer_lifetime),
            humantime::format_duration(longest),
            humantime::format_duration(longest * 3 / 2)
        ))
    }

    /// Checks conditions that involve more than one key.
    fn check(&self, reader: &mut Reader) {
        let AnnounceConfig { interval, min_interval, .. } = &self.announce;
        if let Err(mistake) = self.check_intervals() {
            reader.mistake("announce.peer_lifetime", mistake);
        }
        let keys = self.udp.connection_id_keys.keys.len();
        if !self.udp.xdp.interfaces.is_empty() && keys > KEYS_MAX {
            reader.mistake(
                "udp.connection_id_keys",
                format!(
                    "has {keys} keys; with udp.xdp the maximum is {KEYS_MAX}: remove the oldest"
                ),
            );
        }
        if min_interval > interval {
            reader.mistake(
                "announce.min_interval",
                format!(
                    "{} is longer than announce.interval ({}); reduce it to at most that",
                    humantime::format_duration(*min_interval),
                    humantime::format_duration(*interval)
                ),
            );
        }
        if self.announce.numwant_default > self.announce.numwant_max {
            reader.mistake(
                "announce.numwant.default",
                format!(
                    "{} is more than announce.numwant.max ({}); reduce it to at most that",
                    self.announce.numwant_default, self.announce.numwant_max
                ),
            );
        }
        self.http.check(&self.udp, reader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LogFormat, SteeringMode};
    use std::time::Duration;

    fn mistakes(source: &str) -> String {
        match Config::parse("t.yaml", source) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("no mistake found in {source}"),
        }
    }

    #[test]
    fn the_printed_config_equals_the_default_and_documents_every_key() {
        let printed = Config::parse("default", DEFAULT_YAML).unwrap();
        assert_eq!(printed, Config::load(None).unwrap());
        let mut reader = Reader::new("default", DEFAULT_YAML).unwrap();
        Config::read(&mut reader);
        assert_eq!(reader.absent(), [""; 0], "keys without documentation");
    }

    #[test]
    fn the_example_of_hooks_documents_every_option() {
        let example = include_str!("../../deploy/hooks.yaml");
        let config = Config::parse("hooks.yaml", example).unwrap();
        assert_eq!(config.hooks.len(), hooks::NAMES.len());
        let mut reader = Reader::new("hooks.yaml", example).unwrap();
        Config::read(&mut reader);
        let absent = reader.absent().into_iter().filter(|key| key.starts_with("hooks."));
        assert_eq!(absent.collect::<Vec<_>>(), [""; 0], "options without documentation");
    }

    #[test]
    fn errors_in_hooks_are_reported_with_their_lines() {
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
      max_interval: 2h
  - 5
  - option: {}
",
        );
        for expected in [
            "t.yaml:2: hooks.0.name: \"acces_list\" is not a hook; did you mean access_list?",
            "t.yaml:3: hooks.1.name: \"torrent approval\" is not a hook; did you mean access_list?",
            "t.yaml:7: hooks.2.options.mode: \"permit\" is not one of allow, deny",
            "t.yaml:8: hooks.2.options.info_hashes: \"12\" is not an info hash",
            "t.yaml:9: hooks.2.options.file: is not a key; did you mean files?",
            "t.yaml:11: hooks.3.options.mode: is missing; give allow",
            "t.yaml:11: hooks.3.options.clients: \"\" is not a peer id prefix",
            "t.yaml:12: hooks.4.options.announces_per_second: is missing",
            "t.yaml:16: hooks.5.options.to: 5 is less than from (10)",
            "hooks.6: must contain keys",
            "t.yaml:19: hooks.7.name: is missing; give one of access_list,",
            "announce.peer_lifetime: 45m is less than 1.5 times the longest interval of hooks (2h)",
        ] {
            assert!(text.contains(expected), "no {expected:?} in:\n{text}");
        }
    }

    #[test]
    fn all_errors_are_reported_with_line_key_value_and_cure() {
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
    fn malformed_documents_and_conflicting_values_are_reported() {
        assert!(mistakes("udp: [").contains("t.yaml:"));
        assert!(
            mistakes(&"[".repeat(5_000_000)).contains("t.yaml:1: is nested more than 64 levels")
        );
        assert!(mistakes(&"- ".repeat(500)).contains("nested"));
        assert!(mistakes("udp:\n\tlisten: []").contains("t.yaml:2: is indented with a tab"));
        assert!(mistakes("udp: {max_reply_size: 1B}").contains("give 548B to 1472B"));
        let same = "http: {announce_paths: [/x], scrape_paths: [/x]}";
        assert!(mistakes(same).contains("http.scrape_paths: /x is also in announce_paths"));
        assert!(mistakes("- 1").contains("a mapping of keys"));
        assert!(mistakes("udp: 5").contains("t.yaml:1: udp: must contain keys"));
        assert!(mistakes("hooks: 5").contains("t.yaml:1: hooks: must be a list"));
        assert!(mistakes("hooks: [5]").contains("hooks.0: must contain keys"));
        let nothing = "udp: {listen: []}\nhttp: {listen: []}";
        assert!(mistakes(nothing).contains("give at least one address"));
        let keyless = "http: {tls: {listen: \"0.0.0.0:443\", certificate: c.pem}}";
        assert!(mistakes(keyless).contains("http.tls.key: is empty"));
        let twice = "http: {listen: \"[::]:443\", tls: {listen: \"[::1]:443\"}}";
        assert!(mistakes(twice).contains("http.tls.listen: overlaps [::]:443 of http.listen"));
        let path = "http: {announce_paths: [announce]}";
        assert!(mistakes(path).contains("\"announce\" does not begin with a slash; write it as"));
        assert!(mistakes("cpus: 3-1").contains("cpus"));
    }

    #[test]
    fn valid_values_are_parsed() {
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
        assert_eq!(config.cpus, CpuSelection::List(vec![0, 2, 3, 4]));
        assert_eq!(config.udp.listen, ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(config.udp.connection_id_keys.keys.len(), 1);
        assert!(config.udp.explain_wrong_connection_id);
        assert_eq!(config.udp.steering, SteeringMode::Off);
        assert_eq!(config.announce.trust_client_ip.len(), 2);
        assert_eq!(config.storage.memory, Some(2 << 30));
        assert_eq!(config.control.listen, None);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.http.tls.certificate, Path::new("c.pem"));
        assert_eq!(config.http.paths.scrape.len(), 1);
    }

    #[test]
    fn the_time_of_gathering_is_chosen_or_prescribed() {
        let gather = |value: &str| format!("udp: {{gather: {value}}}");
        let parsed = |value: &str| Config::parse("t", &gather(value)).unwrap().udp.gather;
        assert_eq!(parsed("auto"), None);
        assert_eq!(parsed("off"), Some(Duration::ZERO));
        assert_eq!(parsed("70us"), Some(Duration::from_micros(70)));
        for wrong in ["0us", "201us", "50", "often"] {
            let text = mistakes(&gather(wrong));
            assert!(text.contains(wrong) && text.contains("from 1us to 200us"), "{text}");
        }
    }

    #[test]
    fn connection_id_keys_are_read_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let (new, old) = ("00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100");
        std::fs::write(&path, format!("# newest first\n{new}\n\n{old}\n")).unwrap();
        let source =
            |path: &Path| format!("udp: {{connection_id_keys: {:?}}}", path.display().to_string());
        let config = Config::parse("t", &source(&path)).unwrap();
        assert_eq!(config.udp.connection_id_keys.keys.len(), 2);
        assert_eq!(config.udp.connection_id_keys.file, Some(path.clone()));
        std::fs::write(&path, "00112233445566778899aabbccddeeff\nshort\n").unwrap();
        let text = mistakes(&source(&path));
        assert!(text.contains("keys:2") && text.contains("32 hexadecimal digits"), "{text}");
        assert!(!text.contains("short"), "the error shows a secret: {text}");
        assert!(mistakes(&source(&directory.path().join("none"))).contains("cannot read"));
    }
}
