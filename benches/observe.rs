//! Resources that a server on this machine uses, as reported by the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::sync::LazyLock;
use std::time::Instant;

/// Ticks per second of `/proc/stat` (USER_HZ).
const TICKS_PER_S: f64 = 100.0;

/// Times of a core since an arbitrary moment; only differences are meaningful.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoreTimes {
    /// Seconds for which it was busy, with any work.
    ///
    /// It is the time that the kernel does not report as idle: the kernel measures idle time, but only samples the work
    /// of a core.
    pub busy_s: f64,
    /// Seconds for which the host gave it to another virtual machine, if this machine is one.
    pub stolen_s: f64,
}

/// Returns the times of a core, or `None` if it does not exist.
pub fn core_times(core: usize) -> Option<CoreTimes> {
    static START: LazyLock<Instant> = LazyLock::new(now);
    let since_start = now().duration_since(*START).as_secs_f64();
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let name = format!("cpu{core}");
    let line = stat.lines().find(|line| line.split(' ').next() == Some(&name))?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map_while(|t| t.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal.
    let seconds =
        |fields: &[usize]| fields.iter().filter_map(|at| ticks.get(*at)).sum::<f64>() / TICKS_PER_S;
    let stolen_s = seconds(&[7]);
    Some(CoreTimes { busy_s: since_start - seconds(&[3, 4]) - stolen_s, stolen_s })
}

#[expect(clippy::disallowed_methods, reason = "the clock that idle time is subtracted from")]
fn now() -> Instant {
    Instant::now()
}

/// Returns the processor time of all threads of a process in seconds.
pub fn processor_time_s(process: u32) -> Option<f64> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    Some(nanoseconds.sum::<f64>() / 1e9)
}

/// Returns the resident memory of a process in bytes.
pub fn resident_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// Returns the distinct sets of cores on which the threads of a process may run. If it has threads whose names begin
/// with `shard-`, only these count: the other threads of this tracker answer no requests.
pub fn cores_of(process: u32) -> Vec<BTreeSet<usize>> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).ok();
    let statuses: Vec<String> = threads.filter_map(status).collect();
    let is_shard = |status: &&String| status.starts_with("Name:\tshard-");
    let has_shards = statuses.iter().any(|status| is_shard(&status));
    let counted = statuses.iter().filter(|status| !has_shards || is_shard(status));
    let mut sets: Vec<BTreeSet<usize>> =
        counted.filter_map(|status| allowed_cores(status)).collect();
    sets.sort_unstable();
    sets.dedup();
    sets
}

/// Returns the cores in a `/proc/.../status`.
fn allowed_cores(status: &str) -> Option<BTreeSet<usize>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let range = |text: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim()
        .split(',')
        .map(range)
        .collect::<Option<Vec<_>>>()
        .map(|it| it.into_iter().flatten().collect())
}

/// Returns the kernel and the processor in one line.
pub fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.unwrap_or("?").trim_start_matches(['\t', ' ', ':']);
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    format!("Linux {}, {count} cores, {model}", kernel.trim())
}

#[cfg(test)]
mod tests {
    #[test]
    fn allowed_cores_are_parsed() {
        let status = "Name:\tshard-0\nCpus_allowed_list:\t0-2,5\n";
        assert_eq!(super::allowed_cores(status), Some([0, 1, 2, 5].into()));
        assert!(!super::cores_of(std::process::id()).is_empty());
        assert!(super::cores_of(u32::MAX).is_empty());
    }

    #[test]
    fn the_resources_of_this_process_are_read() {
        let process = std::process::id();
        assert!(super::processor_time_s(process).unwrap() > 0.0);
        assert!(super::resident_bytes(process).unwrap() > 1 << 20);
        let before = super::core_times(0).unwrap().busy_s;
        assert!(
            super::core_times(0).unwrap().busy_s >= before - 0.02,
            "the time is accurate to two ticks of 10 ms"
        );
        assert!(super::core_times(100_000).is_none());
    }
}
