//! The circumstances of a run: the options in use, and the cores of the generator and of the tracker.

use crate::options::RunOptions;
use std::collections::BTreeSet;
use tsubame::text::grouped;
use tsubame_bench::observe;

/// Returns the main options of the run in one line.
pub(crate) fn settings(run: &RunOptions) -> String {
    let mix = run.mix;
    let mut parts = vec![
        format!("mix {} announce : {} connect : {} scrape", mix.announce, mix.connect, mix.scrape),
        format!("numwant {}", run.numwant),
        format!("{} sources", grouped(run.sources.into())),
        format!("up to {} in flight", grouped(run.in_flight as u64)),
        format!("timeout {}", run.timeout),
    ];
    if run.segments > 1 {
        parts.push(format!("{} segments", run.segments));
    }
    if run.close {
        parts.push("a connection for each request".to_owned());
    }
    parts.push(match run.check {
        0 => "no reply checked".to_owned(),
        1 => "every reply checked".to_owned(),
        one_in => format!("one reply in {} checked", grouped(one_in.into())),
    });
    parts.join(", ")
}

/// Returns the cores of the generator and of the tracker in one line, and whether they share some.
pub(crate) fn placement(run: &RunOptions) -> String {
    let own: BTreeSet<usize> =
        observe::cores_of(std::process::id()).into_iter().flatten().collect();
    let generator = format!("generator on {}", cores(&own));
    let Some(process) = run.server_pid else {
        let is_local = run.targets.iter().any(|target| target.address.ip().is_loopback());
        let hint =
            if is_local { "; give --server-pid to see the cores of the tracker" } else { "" };
        return format!("{generator}{hint}");
    };
    let of_tracker: BTreeSet<usize> = observe::cores_of(process).into_iter().flatten().collect();
    if of_tracker.is_empty() {
        return format!("{generator}; the process {process} of the tracker does not exist");
    }
    let mut text = format!("{generator}, tracker on {}", cores(&of_tracker));
    let shared: BTreeSet<usize> = own.intersection(&of_tracker).copied().collect();
    if !shared.is_empty() {
        text.push_str("; THEY SHARE ");
        text.push_str(&cores(&shared));
        text.push_str(": each slows the other down; pin the generator with taskset");
    }
    text
}

fn cores(set: &BTreeSet<usize>) -> String {
    let numbers: Vec<String> = set.iter().map(usize::to_string).collect();
    let noun = if set.len() == 1 { "core" } else { "cores" };
    format!("{noun} {}", numbers.join(","))
}
