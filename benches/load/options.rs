//! Options of the command line and scenario files, and the steps of a run that they define.

use crate::population::Shape;
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use serde::Deserialize;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use tsubame::cli::manual::CompletionShell;

/// Loads a tracker with the requests of a simulated population of clients, checks the replies, and reports rates and
/// latency.
#[derive(Debug, Parser)]
#[command(
    name = "tsubame-load",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true
)]
pub(crate) struct LoadCli {
    #[command(subcommand)]
    pub(crate) command: Option<LoadCommand>,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// Commands other than a run.
#[derive(Debug, Subcommand)]
pub(crate) enum LoadCommand {
    /// Compares two or more runs; ratios are relative to the first.
    Compare {
        /// Records of runs, written with --json.
        #[arg(required = true, num_args = 2..)]
        records: Vec<PathBuf>,
        /// Write an HTML report with plots; it needs no network.
        #[arg(long)]
        html: Option<PathBuf>,
    },
    /// Prints the info hashes of the population in hexadecimal, for trackers that need a list of permitted torrents.
    Hashes {
        /// Number of info hashes.
        #[arg(long, default_value_t = 1_000_000)]
        torrents: u32,
    },
    /// Prints the completion script of a shell.
    Completions {
        /// The shell.
        shell: CompletionShell,
    },
    /// Writes the man pages to a directory.
    Man {
        /// The directory.
        directory: PathBuf,
    },
}

/// Options of a run.
#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// URL of the tracker: udp://HOST:PORT, http://HOST:PORT/announce or https://HOST:PORT/announce; give an IPv4 and
    /// an IPv6 URL to load both address families.
    #[arg(value_name = "URL")]
    pub(crate) targets: Vec<Target>,
    /// Duration of the measurement.
    #[arg(long, default_value = "10s")]
    pub(crate) duration: humantime::Duration,
    /// Duration of the load before the measurement; 0s for none.
    #[arg(long, default_value = "2s")]
    pub(crate) warmup: humantime::Duration,
    /// Requests per second, at random times (open loop); without it, a request is sent whenever a reply arrives (closed
    /// loop).
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Maximum number of unanswered requests in closed loop; over HTTP also the number of connections.
    #[arg(long, default_value_t = 512)]
    pub(crate) in_flight: usize,
    /// Number of torrents of the population.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) torrents: u32,
    /// Number of peers of the population; the default is 2.45 per torrent.
    #[arg(long)]
    pub(crate) peers: Option<u32>,
    /// Distribution of peers over torrents: "zipf:EXPONENT", or "public" for the distribution of a public tracker.
    #[arg(long, default_value = "zipf:0.8")]
    pub(crate) shape: Shape,
    /// Over HTTP, open a connection for each request, as most clients do; otherwise connections are kept.
    #[arg(long)]
    pub(crate) close: bool,
    /// Weights of the kinds of requests; forged requests carry an invalid connection id, garbage is random bytes. Over
    /// HTTP, only announces and scrapes are supported.
    #[arg(long, default_value = "connect=50,announce=50,scrape=1,forged=0.5,garbage=0.2")]
    pub(crate) mix: RequestMix,
    /// Number of peers that a client requests.
    #[arg(long, default_value_t = 50)]
    pub(crate) numwant: u16,
    /// Number of torrents in a scrape.
    #[arg(long, default_value_t = 3)]
    pub(crate) scrape_torrents: u16,
    /// Share of announces with which a peer completes or stops, 0 to 1.
    #[arg(long, default_value_t = 0.05)]
    pub(crate) churn: f64,
    /// Share of peers that are IPv6, if there is an IPv6 target, 0 to 1.
    #[arg(long, default_value_t = 0.2)]
    pub(crate) ipv6: f64,
    /// Number of source addresses of each address family; more if the peers need them. Over HTTP without --close, not
    /// more than the number of connections.
    #[arg(long, default_value_t = 256)]
    pub(crate) sources: u32,
    /// Networks of the source addresses, which must be routed to this machine. By default, a target on IPv4 loopback
    /// is loaded from 127.1.0.1 and the addresses after it, any other from the one address that the kernel selects.
    #[arg(long, value_delimiter = ',')]
    pub(crate) source_networks: Vec<IpNet>,
    /// Number of requests that are passed to the kernel as one datagram, which it splits (UDP segmentation offload);
    /// this saves the generator most of its work. On loopback and veth it saves the tracker work, too; with several
    /// shards, all requests of such a datagram go to the shard of the first.
    #[arg(long, default_value_t = 1)]
    pub(crate) segments: u16,
    /// Network interface whose driver sends requests that the kernel generates: many times what sockets can send. Needs
    /// root, IPv4, a tracker on the network of the interface, and --mix with connect, announce and forged only. Replies
    /// are counted, not checked.
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) xdp: Option<String>,
    /// Announce every peer of the population once before all other steps.
    #[arg(long)]
    pub(crate) fill: bool,
    /// Check the content of one in this many replies; 1 checks all of them, 0 none.
    #[arg(long, default_value_t = 1)]
    pub(crate) check: u32,
    /// The tracker also has peers of other clients: accept peers and counts that are not of the population.
    #[arg(long)]
    pub(crate) shared: bool,
    /// Time after which an unanswered request counts as lost.
    #[arg(long, default_value = "1s")]
    pub(crate) timeout: humantime::Duration,
    /// Seed of the random numbers; the same seed gives the same requests, over HTTP as far as replies arrive in the
    /// same order.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Scenario file with steps of load, floods, pauses and restarts; replaces --warmup and --duration.
    #[arg(long)]
    pub(crate) scenario: Option<PathBuf>,
    /// Process id of the tracker, if it runs on this machine: reports its processor time and memory.
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Core of the tracker, if it runs on this machine: reports its busy time.
    #[arg(long)]
    pub(crate) server_cpu: Option<usize>,
    /// Name of the run in reports.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Write the record of the run to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write an HTML report with plots to this file; it needs no network.
    #[arg(long)]
    pub(crate) html: Option<PathBuf>,
    /// Print no progress and no summary.
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// A tracker to load.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) protocol: LoadProtocol,
    pub(crate) is_encrypted: bool,
    /// Host and port.
    pub(crate) authority: String,
    /// Path and query, with the leading slash; empty if the URL has none.
    pub(crate) path: String,
    pub(crate) address: SocketAddr,
}

/// Protocol of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadProtocol {
    Udp,
    Http,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{url:?} is not udp://HOST:PORT, http://HOST:PORT/announce or https://HOST:PORT/announce"
            )
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let (protocol, is_encrypted, port) = match scheme {
            "udp" => (LoadProtocol::Udp, false, None),
            "http" => (LoadProtocol::Http, false, Some(80)),
            "https" => (LoadProtocol::Http, true, Some(443)),
            _ => return Err(wrong()),
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let authority = match port {
            Some(port) if !has_port => format!("{host}:{port}"),
            _ => host.to_owned(),
        };
        let mut found =
            authority.to_socket_addrs().map_err(|error| format!("{authority:?}: {error}"))?;
        let address = found.next().ok_or_else(|| format!("{authority:?} has no address"))?;
        let (url, path) = (url.to_owned(), path.to_owned());
        Ok(Self { url, protocol, is_encrypted, authority, path, address })
    }
}

/// Weights of the kinds of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RequestMix {
    pub(crate) connect: f64,
    pub(crate) announce: f64,
    pub(crate) scrape: f64,
    pub(crate) forged: f64,
    pub(crate) garbage: f64,
}

impl RequestMix {
    pub(crate) fn sum(&self) -> f64 {
        self.connect + self.announce + self.scrape + self.forged + self.garbage
    }
}

impl RequestMix {
    /// Returns the weights of sends, if one send of connects or announces contains `segments` requests.
    pub(crate) fn per_send(self, segments: u16) -> Self {
        let segments = f64::from(segments);
        let (connect, announce) = (self.connect / segments, self.announce / segments);
        Self { connect, announce, ..self }
    }

    /// Returns the average number of requests of a send.
    pub(crate) fn requests_per_send(self, segments: u16) -> f64 {
        self.sum() / self.per_send(segments).sum()
    }
}

impl FromStr for RequestMix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix = Self::default();
        for part in text.split(',') {
            let wrong = || format!("{part:?} is not KIND=WEIGHT, for example announce=50");
            let (kind, weight) = part.split_once('=').ok_or_else(wrong)?;
            let weight: f64 = weight.parse().map_err(|_| wrong())?;
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(wrong());
            }
            match kind.trim() {
                "connect" => mix.connect = weight,
                "announce" => mix.announce = weight,
                "scrape" => mix.scrape = weight,
                "forged" => mix.forged = weight,
                "garbage" => mix.garbage = weight,
                _ => {
                    let kinds = "connect, announce, scrape, forged, garbage";
                    return Err(format!(
                        "{kind:?} is not a kind of request; the kinds are {kinds}"
                    ));
                }
            }
        }
        if mix.connect + mix.announce + mix.scrape > 0.0 {
            Ok(mix)
        } else {
            Err(format!(
                "{text:?} has no request that is answered; give connect, announce or scrape"
            ))
        }
    }
}

/// A step of a scenario file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepText {
    name: Option<String>,
    duration: Option<String>,
    rate: Option<f64>,
    in_flight: Option<usize>,
    mix: Option<String>,
    #[serde(default)]
    flood: Flood,
    #[serde(default)]
    fill: bool,
    pause: Option<String>,
    run: Option<String>,
}

/// Rates of the kinds of flood requests, per second.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Flood {
    /// Connects from addresses that do not use the connection id.
    pub(crate) connects: f64,
    /// Announces with forged connection ids.
    pub(crate) forged: f64,
    /// Datagrams of random bytes.
    pub(crate) garbage: f64,
}

/// A scenario file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioText {
    step: Vec<StepText>,
}

/// A step of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoadStep {
    pub(crate) name: String,
    pub(crate) action: LoadAction,
    /// Shell command that is started with the step, for example to restart the tracker under load.
    pub(crate) alongside: Option<String>,
}

/// Action of a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LoadAction {
    /// Every peer announces once.
    Fill,
    /// Load with the requests of the population.
    Load(LoadOptions),
    /// Nothing is sent.
    Pause(Duration),
    /// A shell command runs; nothing is sent until it has ended.
    Run(String),
}

/// Options of a step of load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LoadOptions {
    pub(crate) duration: Duration,
    /// Requests per second; closed loop if `None`.
    pub(crate) rate: Option<f64>,
    pub(crate) in_flight: usize,
    pub(crate) mix: RequestMix,
    pub(crate) flood: Flood,
}

impl RunOptions {
    /// Returns the steps of the run in order.
    pub(crate) fn steps(&self) -> Result<Vec<LoadStep>, String> {
        let mut steps = Vec::new();
        if self.fill {
            let (name, action) = ("fill".to_owned(), LoadAction::Fill);
            steps.push(LoadStep { name, action, alongside: None });
        }
        if let Some(path) = &self.scenario {
            steps.extend(self.scenario(path)?);
            return Ok(steps);
        }
        let durations = [("warm-up", *self.warmup), ("load", *self.duration)];
        for (name, duration) in durations.into_iter().filter(|(_, duration)| !duration.is_zero()) {
            let action = LoadAction::Load(LoadOptions { duration, ..self.load() });
            steps.push(LoadStep { name: name.to_owned(), action, alongside: None });
        }
        Ok(steps)
    }

    fn load(&self) -> LoadOptions {
        let Self { rate, in_flight, mix, .. } = *self;
        LoadOptions { duration: *self.duration, rate, in_flight, mix, flood: Flood::default() }
    }

    fn scenario(&self, path: &Path) -> Result<Vec<LoadStep>, String> {
        let with_path = |error: String| format!("--scenario {}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| with_path(error.to_string()))?;
        let scenario: ScenarioText =
            toml::from_str(&text).map_err(|error| with_path(error.to_string()))?;
        let steps = scenario.step.iter().zip(1..);
        steps.map(|(step, number)| self.step(step, number).map_err(with_path)).collect()
    }

    fn step(&self, text: &StepText, number: usize) -> Result<LoadStep, String> {
        let duration = |text: &str| {
            humantime::parse_duration(text).map_err(|error| {
                format!("step {number}: {text:?} is not a duration, for example 5s: {error}")
            })
        };
        let (kind, action) = match (&text.pause, &text.run, text.fill, &text.duration) {
            (Some(pause), None, false, None) => ("pause", LoadAction::Pause(duration(pause)?)),
            (None, Some(command), false, None) => ("run", LoadAction::Run(command.clone())),
            (None, None, true, None) => ("fill", LoadAction::Fill),
            (None, _, false, Some(time)) => {
                let default = self.load();
                let mix = text.mix.as_deref().map_or(Ok(default.mix), str::parse);
                let flood = text.flood;
                let rates = [flood.connects, flood.forged, flood.garbage, text.rate.unwrap_or(1.0)];
                if rates.iter().any(|rate| !(0.0..1e9).contains(rate)) || text.rate == Some(0.0) {
                    return Err(format!(
                        "step {number}: rate must be above 0, and rates of floods at least 0; all must be below \
                         1000000000 requests per second"
                    ));
                }
                if text.in_flight == Some(0) {
                    return Err(format!("step {number}: in_flight must be at least 1"));
                }
                let load = LoadOptions {
                    duration: duration(time)?,
                    rate: text.rate.or(default.rate),
                    in_flight: text.in_flight.unwrap_or(default.in_flight),
                    mix: mix.map_err(|error| format!("step {number}: mix: {error}"))?,
                    flood: text.flood,
                };
                ("load", LoadAction::Load(load))
            }
            _ => {
                return Err(format!(
                    "step {number} needs exactly one of duration (load, with run as an optional command), \
                     fill, pause and run"
                ));
            }
        };
        let name = text.name.clone().unwrap_or_else(|| format!("{kind} {number}"));
        let alongside = text.run.clone().filter(|_| matches!(action, LoadAction::Load(_)));
        Ok(LoadStep { name, action, alongside })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn parse(arguments: &[&str]) -> Result<RunOptions, clap::Error> {
        let cli = LoadCli::try_parse_from([&["tsubame-load"], arguments].concat())?;
        Ok(cli.run)
    }

    #[test]
    fn a_run_needs_only_a_url() {
        let run = parse(&["udp://127.0.0.1:6969", "--duration", "30s"]).unwrap();
        let steps = run.steps().unwrap();
        let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["warm-up", "load"]);
        let LoadAction::Load(load) = &steps[1].action else { panic!() };
        assert_eq!((load.duration, load.rate), (Duration::from_secs(30), None));
    }

    #[test]
    fn errors_name_the_value_and_the_fix() {
        for (arguments, words) in [
            (
                ["ftp://127.0.0.1:1", "--seed=1"],
                "is not udp://HOST:PORT, http://HOST:PORT/announce",
            ),
            (["127.0.0.1:1", "--seed=1"], "is not udp://HOST:PORT"),
            (["udp://127.0.0.1", "--seed=1"], "\"127.0.0.1\": invalid"),
            (["udp://127.0.0.1:1", "--mix=announce"], "is not KIND=WEIGHT"),
            (["udp://127.0.0.1:1", "--mix=garbage=1"], "has no request that is answered"),
            (["udp://127.0.0.1:1", "--mix=anounce=1"], "is not a kind of request"),
            (["udp://127.0.0.1:1", "--shape=flat"], "zipf:EXPONENT"),
        ] {
            let error = parse(&arguments).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_url_gives_protocol_address_and_path() {
        let target = |url: &str| url.parse::<Target>().unwrap();
        let plain = target("http://127.0.0.1/a/announce?b=c");
        assert_eq!(
            (plain.authority.as_str(), plain.path.as_str()),
            ("127.0.0.1:80", "/a/announce?b=c")
        );
        assert_eq!((plain.protocol, plain.is_encrypted), (LoadProtocol::Http, false));
        let encrypted = target("https://[::1]");
        assert_eq!(
            (encrypted.address.to_string().as_str(), encrypted.is_encrypted),
            ("[::1]:443", true)
        );
        let udp = target("udp://[::1]:6969/announce");
        assert_eq!((udp.address.port(), udp.protocol), (6969, LoadProtocol::Udp));
    }

    fn scenario(text: &str) -> Result<Vec<LoadStep>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        parse(&["udp://127.0.0.1:1", "--rate=9", "--scenario", path]).unwrap().steps()
    }

    #[test]
    fn a_scenario_file_is_parsed() {
        let steps = scenario(
            "[[step]]\nfill = true\n[[step]]\nname = 'flood'\nduration = '5s'\n\
             flood = { connects = 1000 }\n[[step]]\npause = '2s'\n[[step]]\nrun = 'true'\n",
        );
        let steps = steps.unwrap();
        let [fill, flood, pause, run] = steps.as_slice() else { panic!() };
        assert_eq!((&fill.action, fill.name.as_str()), (&LoadAction::Fill, "fill 1"));
        let LoadAction::Load(load) = flood.action else { panic!() };
        assert_eq!(
            (load.flood.connects, load.rate, flood.name.as_str()),
            (1000.0, Some(9.0), "flood")
        );
        assert_eq!(pause.action, LoadAction::Pause(Duration::from_secs(2)));
        assert_eq!(run.action, LoadAction::Run("true".to_owned()));
        let [restart] = &scenario("[[step]]\nduration = '1s'\nrun = 'true'").unwrap()[..] else {
            panic!()
        };
        assert!(matches!(restart.action, LoadAction::Load(_)) && restart.alongside.is_some());
        for (text, words) in [
            ("[[step]]\npause = 'long'", "step 1: \"long\" is not a duration"),
            ("[[step]]\npause = '1s'\nfill = true", "exactly one of"),
            ("[[step]]\nduration = '1s'\nrat = 5", "rat"),
            ("[[step]]\nduration = '1s'\nrate = -5", "step 1: rate must be above 0"),
            ("[[step]]\nduration = '1s'\nflood = { forged = -1 }", "step 1: rate must be above 0"),
        ] {
            let error = scenario(text).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_bundled_scenarios_are_valid() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
        let mut files = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let run = parse(&["udp://127.0.0.1:1", "--scenario", path.to_str().unwrap()]).unwrap();
            assert!(run.steps().unwrap().len() > 1, "{}", path.display());
            files += 1;
        }
        assert!(files >= 3);
    }
}
