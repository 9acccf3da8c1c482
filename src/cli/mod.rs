//! The command line: see `tsubame --help`.

pub mod control_client;
pub mod e2e;
pub mod manual;
pub mod snapshot;
pub mod status;
pub mod top;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::doctor;
use crate::policy::custom::{CustomHookKind, install};
use crate::process::error::RunError;
use crate::process::run::run;
use crate::process::supervisor::{EXIT_SHARD, EXIT_START, EXIT_SUCCESS, EXIT_USAGE, end_on_panic};
use crate::process::{check as config_check, log, memory, xdp};
use crate::text::iec;
use clap::{CommandFactory, Parser, Subcommand};
use control_client::ControlAddress;
use manual::CompletionShell;
use std::path::PathBuf;
use std::process::exit;

/// A BitTorrent tracker for large public swarms
///
/// Without a command, it runs with the default config: an open tracker on port 6969, UDP and HTTP, IPv4 and IPv6.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<CliCommand>,
}

#[derive(Subcommand)]
enum CliCommand {
    /// Run the tracker (the default)
    Run {
        /// The config file, in which every key is optional; without it, the default config
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check a config file and report every error
    Check {
        /// The config file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Also attach XDP to the interfaces of udp.xdp for a moment, and say what they can do; resets the link of some
        /// network cards
        #[arg(long)]
        probe: bool,
    },
    /// Print the default config with comments
    Config,
    /// Convert a config of Chihaya or opentracker and print it; report what cannot be converted
    Import {
        /// Path of chihaya.yaml or opentracker.conf
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the state of a running tracker
    Status {
        #[command(flatten)]
        control: ControlOptions,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a running tracker read its config, lists and certificate again
    Reload {
        #[command(flatten)]
        control: ControlOptions,
    },
    /// Replace the process of a running tracker by one of the program that is now at its path
    ///
    /// The new process takes over the sockets and the swarms while clients are served. If it cannot, the running one
    /// serves on, and the reason is printed.
    Upgrade {
        #[command(flatten)]
        control: ControlOptions,
    },
    /// Stop a running tracker
    Stop {
        #[command(flatten)]
        control: ControlOptions,
    },
    /// Show the state and the rates of a running tracker, once a second
    Top {
        #[command(flatten)]
        control: ControlOptions,
    },
    /// Look at this host and say what costs performance or safety, and how to cure it
    ///
    /// It changes nothing. As root it can read more: the rules of the firewall, and the settings of network cards.
    Doctor {
        /// The config file; without it, the default config
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what is in a snapshot of the swarms (swarms.tsubame in storage.directory), and check it
    Snapshot {
        /// The snapshot
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the completion script of a shell
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: CompletionShell,
    },
    /// Write the man pages to a directory
    Man {
        /// The directory
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
    /// Check a running tracker as a client would
    E2e {
        /// URL of the tracker: udp://host:6969, http://host:6969/announce, https://...
        #[arg(required = true, value_name = "URL")]
        urls: Vec<String>,
    },
}

/// Where the control plane of a running tracker is.
#[derive(clap::Args)]
struct ControlOptions {
    /// The control plane: http://HOST:PORT, or the path of the unix socket
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:6880", value_parser = ControlAddress::parse)]
    control: ControlAddress,
    /// File with the token, which requests from other hosts need
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ControlOptions {
    /// Returns the token, if there is one.
    fn token(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let read = std::fs::read_to_string(path);
        let token = read.map_err(|error| {
            format!("cannot read {}: {error}; give a file that this user can read", path.display())
        })?;
        Ok(Some(token.trim().to_owned()))
    }
}

/// Executes the command line and ends the process. `custom_hooks` are hooks that configs can use in addition to the
/// built-in ones.
pub fn main(custom_hooks: &'static [CustomHookKind]) -> ! {
    install(custom_hooks);
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        exit(if error.use_stderr() { EXIT_USAGE } else { EXIT_SUCCESS });
    });
    let code = match cli.command.unwrap_or(CliCommand::Run { config: None }) {
        CliCommand::Run { config } => run_tracker(config.as_deref()),
        CliCommand::Check { config, probe } => check(&config, probe),
        CliCommand::Config => {
            print!("{}", config::DEFAULT_YAML);
            EXIT_SUCCESS
        }
        CliCommand::Import { file } => import(&file),
        CliCommand::Status { control, json } => show_status(&control, json),
        CliCommand::Reload { control } => command(&control, "reload"),
        CliCommand::Upgrade { control } => command(&control, "upgrade"),
        CliCommand::Stop { control } => command(&control, "stop"),
        CliCommand::Top { control } => show_top(&control),
        CliCommand::Doctor { config, json } => examine_host(config.as_deref(), json),
        CliCommand::Snapshot { file } => describe_snapshot(&file),
        CliCommand::Completions { shell } => {
            print!("{}", manual::completions(shell, Cli::command()));
            EXIT_SUCCESS
        }
        CliCommand::Man { directory } => write_man_pages(&directory),
        CliCommand::E2e { urls } => check_trackers(&urls),
    };
    exit(code);
}

fn run_tracker(path: Option<&std::path::Path>) -> i32 {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return EXIT_USAGE;
        }
    };
    log::start(&config.log);
    end_on_panic();
    match run(&config, path) {
        Ok(()) => EXIT_SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            match error {
                RunError::ShardDied(..) | RunError::SuccessorDied(..) => EXIT_SHARD,
                _ => EXIT_START,
            }
        }
    }
}

fn check(path: &std::path::Path, probes: bool) -> i32 {
    let (config, text_mistakes) = match Config::load_all(path) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{error}");
            return EXIT_USAGE;
        }
    };
    text_mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
    let named = |text: &String| format!("{}: {text}", path.display());
    for warning in config_check::warnings(&config) {
        eprintln!("warning: {}", named(&warning));
    }
    let mistakes = config_check::mistakes(&config);
    mistakes.iter().for_each(|mistake| eprintln!("{}", named(mistake)));
    if !text_mistakes.is_empty() || !mistakes.is_empty() {
        return EXIT_USAGE;
    }
    if probes {
        let (lines, works) = xdp::probe(&config.udp.xdp);
        lines.iter().for_each(|line| println!("{line}"));
        if !works {
            return EXIT_USAGE;
        }
    }
    let memory_limit = memory::limit(config.storage.memory);
    let bytes = iec(memory_limit.bytes as u64);
    println!(
        "{}: no mistakes; memory limit of swarms: {bytes} ({})",
        path.display(),
        memory_limit.origin
    );
    EXIT_SUCCESS
}

fn import(path: &std::path::Path) -> i32 {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let imported = std::fs::read_to_string(path)
        .map_err(|error| {
            named(&format!("cannot be read: {error}; give a file that this user may read"))
        })
        .and_then(|text| {
            let name = path.display().to_string();
            config::import(&name, &text).map_err(|error| named(&error))
        });
    match imported {
        Ok(imported) => {
            print!("{}", imported.config);
            imported.notes.iter().for_each(|note| eprintln!("{}: {note}", path.display()));
            if imported.has_all_access_rules {
                return EXIT_SUCCESS;
            }
            eprintln!(
                "{}: some access rules could not be converted; the tracker does not start until each hook {} in the \
                 config is replaced or removed",
                path.display(),
                config::PLACEHOLDER_HOOK
            );
            EXIT_USAGE
        }
        Err(error) => {
            eprintln!("{error}");
            EXIT_USAGE
        }
    }
}

fn show_status(options: &ControlOptions, json: bool) -> i32 {
    let fetched = options.token().and_then(|token| {
        status::fetch(&options.control, token.as_deref()).map_err(|error| error.to_string())
    });
    match fetched {
        Ok(state) if json => {
            println!("{}", serde_json::to_string_pretty(&state).unwrap_or_default());
            EXIT_SUCCESS
        }
        Ok(state) => {
            print!("{}", status::text(&state));
            EXIT_SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            EXIT_USAGE
        }
    }
}

/// Sends a command to a running tracker, and prints its reply.
fn command(options: &ControlOptions, name: &str) -> i32 {
    let sent = options.token().and_then(|token| {
        control_client::command(&options.control, name, token.as_deref())
            .map_err(|error| error.to_string())
    });
    match sent {
        Ok(message) => {
            println!("{message}");
            EXIT_SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            EXIT_USAGE
        }
    }
}

fn show_top(options: &ControlOptions) -> i32 {
    use std::io::IsTerminal;
    if !std::io::stdout().is_terminal() {
        eprintln!("standard output is not a terminal; use: tsubame status");
        return EXIT_USAGE;
    }
    let shown = options.token().and_then(|token| {
        top::run(&options.control, token.as_deref())
            .map_err(|error| format!("cannot use the terminal: {error}"))
    });
    match shown {
        Ok(()) => EXIT_SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            EXIT_USAGE
        }
    }
}

fn write_man_pages(directory: &std::path::Path) -> i32 {
    match manual::write_man_pages(directory, Cli::command()) {
        Ok(()) => EXIT_SUCCESS,
        Err(error) => {
            eprintln!("cannot write to {}: {error}; choose another directory", directory.display());
            EXIT_USAGE
        }
    }
}

fn examine_host(path: Option<&std::path::Path>, json: bool) -> i32 {
    let (config, mistakes) = match path
        .map_or_else(|| Config::load(None).map(|it| (it, Vec::new())), Config::load_all)
    {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{error}");
            return EXIT_USAGE;
        }
    };
    let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let diagnosis = doctor::diagnose(&doctor::LocalHost, (&config, &mistakes), path);
    match json {
        true => println!("{}", serde_json::to_string_pretty(&diagnosis).unwrap_or_default()),
        false => print!("{}", diagnosis.text()),
    }
    if diagnosis.needs_change() { EXIT_USAGE } else { EXIT_SUCCESS }
}

fn describe_snapshot(path: &std::path::Path) -> i32 {
    match snapshot::describe(path, &Clock::new()) {
        Ok((text, is_intact)) => {
            print!("{text}");
            if is_intact { EXIT_SUCCESS } else { EXIT_USAGE }
        }
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            EXIT_USAGE
        }
    }
}

fn check_trackers(urls: &[String]) -> i32 {
    for url in urls {
        let mut output = String::new();
        // Two checks at the same time must not receive each other's peers.
        let checked = e2e::check(url, getrandom::u64().unwrap_or_default(), &mut output);
        print!("{output}");
        if let Err(error) = checked {
            eprintln!("{error}");
            return EXIT_USAGE;
        }
    }
    EXIT_SUCCESS
}
