//! The command line and the scenario file, and the plan both come to.

use crate::population::Shape;
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use serde::Deserialize;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Puts a tracker under the load of a population, and says what it answers and how fast
#[derive(Debug, Parser)]
#[command(
    name = "tsubame-load",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// What can be done beside a run
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Sets two or more runs side by side; the first is what the others are measured against
    Compare {
        /// Records of runs, as --json writes them
        #[arg(required = true, num_args = 2..)]
        records: Vec<PathBuf>,
        /// Write a report with plots, readable without a network
        #[arg(long)]
        html: Option<PathBuf>,
    },
    /// Prints the info hashes of the population, in hex: for trackers that want to know them beforehand
    Hashes {
        /// How many
        #[arg(long, default_value_t = 1_000_000)]
        torrents: u32,
    },
}

/// A run
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The tracker: udp://HOST:PORT, http://HOST:PORT/announce or https://HOST:PORT/announce; give an IPv4 and an IPv6
    /// URL for clients of both families
    #[arg(value_name = "URL")]
    pub(crate) targets: Vec<Target>,
    /// How long to measure
    #[arg(long, default_value = "10s")]
    pub(crate) duration: humantime::Duration,
    /// How long to load before measuring; 0s for not at all
    #[arg(long, default_value = "2s")]
    pub(crate) warmup: humantime::Duration,
    /// Requests a second, arriving at random (open loop); without it as fast as answers come (closed loop)
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Requests on their way at once in closed loop; over HTTP also the number of connections
    #[arg(long, default_value_t = 512)]
    pub(crate) in_flight: usize,
    /// Torrents of the population
    #[arg(long, default_value_t = 100_000)]
    pub(crate) torrents: u32,
    /// Peers of the population; 2.45 for each torrent unless given
    #[arg(long)]
    pub(crate) peers: Option<u32>,
    /// How peers spread over torrents: "zipf:EXPONENT", or "public" for what public trackers see
    #[arg(long, default_value = "zipf:0.8")]
    pub(crate) shape: Shape,
    /// Over HTTP, a connection for each request, as most clients do it; else connections are kept
    #[arg(long)]
    pub(crate) close: bool,
    /// Weights of kinds of requests; stale ones carry a connection id that is not (or no longer) good, garbage
    /// carries anything. Over HTTP there are announces and scrapes only
    #[arg(long, default_value = "connect=50,announce=50,scrape=1,stale=0.5,garbage=0.2")]
    pub(crate) mix: Mix,
    /// Peers a client wants
    #[arg(long, default_value_t = 50)]
    pub(crate) numwant: u16,
    /// Torrents in a scrape
    #[arg(long, default_value_t = 3)]
    pub(crate) scrape_torrents: u16,
    /// Share of announces by which a peer completes or leaves
    #[arg(long, default_value_t = 0.05)]
    pub(crate) churn: f64,
    /// Share of peers that are IPv6, if there is an IPv6 target
    #[arg(long, default_value_t = 0.2)]
    pub(crate) ipv6: f64,
    /// Addresses that clients have, of each family; more are taken if the peers need them, and no more than there are
    /// connections that are kept
    #[arg(long, default_value_t = 256)]
    pub(crate) sources: u32,
    /// Networks to take them from, which must be routed to this machine; 127.1.0.0/16 on loopback, else the
    /// one address that the kernel chooses
    #[arg(long, value_delimiter = ',')]
    pub(crate) source_networks: Vec<IpNet>,
    /// Requests handed to the kernel as one, which spares the generator most of its work. On loopback and
    /// veth it spares the tracker work, too; with several shards all go where the first belongs
    #[arg(long, default_value_t = 1)]
    pub(crate) segments: u16,
    /// Enter every peer of the population once before anything else
    #[arg(long)]
    pub(crate) fill: bool,
    /// Replies of which the content is checked: one in so many; 1 for every, 0 for none
    #[arg(long, default_value_t = 1)]
    pub(crate) check: u32,
    /// The tracker has peers of others, too: do not expect to know all of them
    #[arg(long)]
    pub(crate) shared: bool,
    /// How long to wait for an answer
    #[arg(long, default_value = "1s")]
    pub(crate) timeout: humantime::Duration,
    /// What the draws begin with; the same seed gives the same requests, over HTTP as far as answers come in the same
    /// order
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Steps of load, floods, pauses and restarts, from a file, instead of --warmup and --duration
    #[arg(long)]
    pub(crate) scenario: Option<PathBuf>,
    /// Process of the tracker, if it runs here: reports its processor time and memory
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Core of the tracker, if it runs here: reports how long it was busy
    #[arg(long)]
    pub(crate) server_cpu: Option<usize>,
    /// What to call the run in reports
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Write the record of the run
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write a report with plots, readable without a network
    #[arg(long)]
    pub(crate) html: Option<PathBuf>,
    /// No progress and no summary
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// A tracker to be loaded
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) protocol: Protocol,
    pub(crate) is_encrypted: bool,
    /// Host and port
    pub(crate) authority: String,
    /// What follows, with its slash
    pub(crate) path: String,
    pub(crate) address: SocketAddr,
}

/// What a tracker is spoken to in
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
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
            "udp" => (Protocol::Udp, false, None),
            "http" => (Protocol::Http, false, Some(80)),
            "https" => (Protocol::Http, true, Some(443)),
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

/// Weights of kinds of requests
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Mix {
    pub(crate) connect: f64,
    pub(crate) announce: f64,
    pub(crate) scrape: f64,
    pub(crate) stale: f64,
    pub(crate) garbage: f64,
}

impl Mix {
    pub(crate) fn sum(&self) -> f64 {
        self.connect + self.announce + self.scrape + self.stale + self.garbage
    }
}

impl Mix {
    /// Weights of departures if connects and announces leave so many at a time
    pub(crate) fn of_departures(self, segments: u16) -> Self {
        let segments = f64::from(segments);
        let (connect, announce) = (self.connect / segments, self.announce / segments);
        Self { connect, announce, ..self }
    }

    /// Requests that leave in a departure on average
    pub(crate) fn requests_per_departure(self, segments: u16) -> f64 {
        self.sum() / self.of_departures(segments).sum()
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix = Self::default();
        for part in text.split(',') {
            let wrong = || format!("{part:?} is not KIND=WEIGHT, as announce=50");
            let (kind, weight) = part.split_once('=').ok_or_else(wrong)?;
            let weight: f64 = weight.parse().map_err(|_| wrong())?;
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(wrong());
            }
            match kind.trim() {
                "connect" => mix.connect = weight,
                "announce" => mix.announce = weight,
                "scrape" => mix.scrape = weight,
                "stale" => mix.stale = weight,
                "garbage" => mix.garbage = weight,
                _ => {
                    let kinds = "connect, announce, scrape, stale, garbage";
                    return Err(format!("{kind:?} is none of the kinds {kinds}"));
                }
            }
        }
        if mix.connect + mix.announce + mix.scrape > 0.0 {
            Ok(mix)
        } else {
            Err(format!("{text:?} asks for nothing that is answered"))
        }
    }
}

/// A step as a scenario file has it
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

/// Requests a second, beside the load, that no client would send
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Flood {
    /// Connects from addresses that never come back
    pub(crate) connects: f64,
    /// Announces with connection ids that were made up
    pub(crate) forged: f64,
    /// Bytes of any kind
    pub(crate) garbage: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioText {
    step: Vec<StepText>,
}

/// A step of a run
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) action: Action,
    /// A shell command that is started with the step, as to restart the tracker under load
    pub(crate) alongside: Option<String>,
}

/// What happens in a step
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Every peer announces once
    Fill,
    /// The population announces
    Load(Load),
    /// Nothing is sent
    Pause(Duration),
    /// A shell command runs, and nothing is sent until it has ended
    Run(String),
}

/// A step of load
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) duration: Duration,
    /// Requests a second; closed loop without
    pub(crate) rate: Option<f64>,
    pub(crate) in_flight: usize,
    pub(crate) mix: Mix,
    pub(crate) flood: Flood,
}

impl Run {
    /// The steps of the run, in order
    pub(crate) fn steps(&self) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        if self.fill {
            let (name, action) = ("fill".to_owned(), Action::Fill);
            steps.push(Step { name, action, alongside: None });
        }
        if let Some(path) = &self.scenario {
            steps.extend(self.scenario(path)?);
            return Ok(steps);
        }
        let durations = [("warm-up", *self.warmup), ("load", *self.duration)];
        for (name, duration) in durations.into_iter().filter(|(_, duration)| !duration.is_zero()) {
            let action = Action::Load(Load { duration, ..self.load() });
            steps.push(Step { name: name.to_owned(), action, alongside: None });
        }
        Ok(steps)
    }

    fn load(&self) -> Load {
        let Self { rate, in_flight, mix, .. } = *self;
        Load { duration: *self.duration, rate, in_flight, mix, flood: Flood::default() }
    }

    fn scenario(&self, path: &Path) -> Result<Vec<Step>, String> {
        let named = |error: String| format!("--scenario {}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        let scenario: ScenarioText =
            toml::from_str(&text).map_err(|error| named(error.to_string()))?;
        let steps = scenario.step.iter().zip(1..);
        steps.map(|(step, number)| self.step(step, number).map_err(named)).collect()
    }

    fn step(&self, text: &StepText, number: usize) -> Result<Step, String> {
        let duration = |text: &str| {
            humantime::parse_duration(text).map_err(|error| {
                format!("step {number}: {text:?} is not a duration, as 5s: {error}")
            })
        };
        let (kind, action) = match (&text.pause, &text.run, text.fill, &text.duration) {
            (Some(pause), None, false, None) => ("pause", Action::Pause(duration(pause)?)),
            (None, Some(command), false, None) => ("run", Action::Run(command.clone())),
            (None, None, true, None) => ("fill", Action::Fill),
            (None, _, false, Some(time)) => {
                let default = self.load();
                let mix = text.mix.as_deref().map_or(Ok(default.mix), str::parse);
                let flood = text.flood;
                let rates = [flood.connects, flood.forged, flood.garbage, text.rate.unwrap_or(1.0)];
                if rates.iter().any(|rate| !(0.0..1e9).contains(rate)) || text.rate == Some(0.0) {
                    return Err(format!("step {number}: rates are above 0, requests a second"));
                }
                if text.in_flight == Some(0) {
                    return Err(format!("step {number}: in_flight must be at least 1"));
                }
                let load = Load {
                    duration: duration(time)?,
                    rate: text.rate.or(default.rate),
                    in_flight: text.in_flight.unwrap_or(default.in_flight),
                    mix: mix.map_err(|error| format!("step {number}: mix: {error}"))?,
                    flood: text.flood,
                };
                ("load", Action::Load(load))
            }
            _ => {
                return Err(format!(
                    "step {number} needs exactly one of duration (load, perhaps with run beside it), fill, \
                     pause and run"
                ));
            }
        };
        let name = text.name.clone().unwrap_or_else(|| format!("{kind} {number}"));
        let alongside = text.run.clone().filter(|_| matches!(action, Action::Load(_)));
        Ok(Step { name, action, alongside })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn parse(arguments: &[&str]) -> Result<Run, clap::Error> {
        let cli = Cli::try_parse_from([&["tsubame-load"], arguments].concat())?;
        Ok(cli.run)
    }

    #[test]
    fn a_run_needs_little() {
        let run = parse(&["udp://127.0.0.1:6969", "--duration", "30s"]).unwrap();
        let steps = run.steps().unwrap();
        let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["warm-up", "load"]);
        let Action::Load(load) = &steps[1].action else { panic!() };
        assert_eq!((load.duration, load.rate), (Duration::from_secs(30), None));
    }

    #[test]
    fn mistakes_name_the_value_and_the_cure() {
        for (arguments, words) in [
            (
                ["ftp://127.0.0.1:1", "--seed=1"],
                "is not udp://HOST:PORT, http://HOST:PORT/announce",
            ),
            (["127.0.0.1:1", "--seed=1"], "is not udp://HOST:PORT"),
            (["udp://127.0.0.1", "--seed=1"], "\"127.0.0.1\": invalid"),
            (["udp://127.0.0.1:1", "--mix=announce"], "is not KIND=WEIGHT"),
            (["udp://127.0.0.1:1", "--mix=garbage=1"], "nothing that is answered"),
            (["udp://127.0.0.1:1", "--mix=anounce=1"], "none of the kinds"),
            (["udp://127.0.0.1:1", "--shape=flat"], "zipf:EXPONENT"),
        ] {
            let error = parse(&arguments).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_url_says_whom_to_ask_and_how() {
        let target = |url: &str| url.parse::<Target>().unwrap();
        let plain = target("http://127.0.0.1/a/announce?b=c");
        assert_eq!(
            (plain.authority.as_str(), plain.path.as_str()),
            ("127.0.0.1:80", "/a/announce?b=c")
        );
        assert_eq!((plain.protocol, plain.is_encrypted), (Protocol::Http, false));
        let encrypted = target("https://[::1]");
        assert_eq!(
            (encrypted.address.to_string().as_str(), encrypted.is_encrypted),
            ("[::1]:443", true)
        );
        let udp = target("udp://[::1]:6969/announce");
        assert_eq!((udp.address.port(), udp.protocol), (6969, Protocol::Udp));
    }

    fn scenario(text: &str) -> Result<Vec<Step>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        parse(&["udp://127.0.0.1:1", "--rate=9", "--scenario", path]).unwrap().steps()
    }

    #[test]
    fn a_scenario_is_a_few_lines() {
        let steps = scenario(
            "[[step]]\nfill = true\n[[step]]\nname = 'flood'\nduration = '5s'\n\
             flood = { connects = 1000 }\n[[step]]\npause = '2s'\n[[step]]\nrun = 'true'\n",
        );
        let steps = steps.unwrap();
        let [fill, flood, pause, run] = steps.as_slice() else { panic!() };
        assert_eq!((&fill.action, fill.name.as_str()), (&Action::Fill, "fill 1"));
        let Action::Load(load) = flood.action else { panic!() };
        assert_eq!(
            (load.flood.connects, load.rate, flood.name.as_str()),
            (1000.0, Some(9.0), "flood")
        );
        assert_eq!(pause.action, Action::Pause(Duration::from_secs(2)));
        assert_eq!(run.action, Action::Run("true".to_owned()));
        let [restart] = &scenario("[[step]]\nduration = '1s'\nrun = 'true'").unwrap()[..] else {
            panic!()
        };
        assert!(matches!(restart.action, Action::Load(_)) && restart.alongside.is_some());
        for (text, words) in [
            ("[[step]]\npause = 'long'", "step 1: \"long\" is not a duration"),
            ("[[step]]\npause = '1s'\nfill = true", "exactly one of"),
            ("[[step]]\nduration = '1s'\nrat = 5", "rat"),
            ("[[step]]\nduration = '1s'\nrate = -5", "step 1: rates are above 0"),
            ("[[step]]\nduration = '1s'\nflood = { forged = -1 }", "step 1: rates are above 0"),
        ] {
            let error = scenario(text).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_scenarios_that_come_along_are_right() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
        let mut seen = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let run = parse(&["udp://127.0.0.1:1", "--scenario", path.to_str().unwrap()]).unwrap();
            assert!(run.steps().unwrap().len() > 1, "{}", path.display());
            seen += 1;
        }
        assert!(seen >= 3);
    }
}
