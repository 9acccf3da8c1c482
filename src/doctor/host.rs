//! What the checks look at: a config, and a host with its files of the kernel and tools of the system.

use crate::config::Config;
use std::path::Path;
use std::process::Command;

/// Seconds after which a tool that has not ended is stopped.
const TOOL_TIMEOUT_SECS: &str = "10";

/// What the checks look at.
pub(super) struct Subject<'a> {
    pub(super) host: &'a dyn Host,
    pub(super) config: &'a Config,
    /// Errors in the text of the config.
    pub(super) mistakes: &'a [String],
    /// Time in seconds since 1970.
    pub(super) unix_secs: u64,
    /// File of the config, if it is not the default config.
    pub(super) path: Option<&'a Path>,
    /// Core of each shard.
    pub(super) cores: Vec<usize>,
}

/// A host, which tests replace.
pub trait Host {
    /// Returns the text of a file of the kernel without surrounding white space, or `None` if it cannot be read.
    fn read(&self, path: &str) -> Option<String>;

    /// Returns the names in a directory in order; none if it cannot be read.
    fn list(&self, path: &str) -> Vec<String>;

    /// Runs a tool and returns its standard output.
    ///
    /// # Errors
    ///
    /// Returns an error text if the tool is not installed, fails or takes too long.
    fn run(&self, tool: &str, arguments: &[&str]) -> Result<String, String>;
}

/// The host that this process runs on.
#[derive(Clone, Copy, Debug)]
pub struct LocalHost;

impl Host for LocalHost {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    }

    fn list(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(Path::new(path)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> Result<String, String> {
        // Administration tools are in directories that the PATH of a user may lack.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let output = Command::new("timeout")
            .arg(TOOL_TIMEOUT_SECS)
            .arg(tool)
            .args(arguments)
            .env("LC_ALL", "C")
            .env("PATH", path)
            .output()
            .map_err(|error| format!("timeout cannot be run: {error}"))?;
        match output.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            // Exit codes of timeout(1).
            Some(124) => Err(format!("{tool} has not ended after {TOOL_TIMEOUT_SECS} seconds")),
            Some(126 | 127) => Err(format!("{tool} is not installed")),
            _ => {
                let errors = String::from_utf8_lossy(&output.stderr);
                let first = errors.lines().next().unwrap_or("no error text");
                Err(format!("{tool} failed: {}", first.trim()))
            }
        }
    }
}
