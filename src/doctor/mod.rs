//! `tsubame doctor`: looks at a host and a config, and names what costs performance or safety, with a cure.
//!
//! Checks change nothing. They read `/proc` and `/sys`, and run tools of the system such as `ethtool` where the kernel
//! has no file; without the tool the result is unknown.

mod finding;
mod host;
mod machine;
mod network;
mod setup;

pub use finding::{Finding, FindingLevel};
pub use host::{Host, LocalHost};

use crate::clock::Clock;
use crate::config::Config;
use crate::process::cpus;
use crate::text::plural;
use host::Subject;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// All findings about a host and a config.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// The findings, in the order of the checks.
    pub findings: Vec<Finding>,
    /// Number of problems.
    pub problems: usize,
    /// Number of warnings.
    pub warnings: usize,
}

/// Makes all checks of a host and a config, which was read from `path` and whose text has these mistakes.
pub fn diagnose(
    host: &dyn Host,
    (config, mistakes): (&Config, &[String]),
    path: Option<&Path>,
) -> Diagnosis {
    // If a core is not available, the check of the config reports it.
    let cores = cpus::choose(&config.cpus).unwrap_or_else(|_| vec![0]);
    let unix_secs = Clock::new().now().unix_secs;
    let subject = Subject { host, config, mistakes, unix_secs, path, cores };
    let mut findings = machine::findings(&subject);
    findings.extend(network::findings(&subject));
    findings.extend(setup::findings(&subject));
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(FindingLevel::Problem), count(FindingLevel::Warning));
    Diagnosis { findings, problems, warnings }
}

impl Diagnosis {
    /// Returns whether something should be changed.
    pub fn needs_change(&self) -> bool {
        self.problems + self.warnings > 0
    }

    /// Returns the findings as text, one on each line, followed by their cures.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let width = self.findings.iter().map(|it| it.check.len()).max().unwrap_or(0);
        for finding in &self.findings {
            let Finding { check, level, text: found, cure } = finding;
            _ = writeln!(text, "{:<8} {check:<width$}  {found}", level.name());
            if let Some(cure) = cure {
                cure.lines().for_each(|line| {
                    _ = writeln!(text, "{:width$}  {line}", "", width = 9 + width)
                });
            }
        }
        let (problems, warnings) =
            (plural(self.problems as u64, "problem"), plural(self.warnings as u64, "warning"));
        _ = writeln!(text, "{problems}, {warnings}");
        text
    }
}

#[cfg(test)]
mod tests;
