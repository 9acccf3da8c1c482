//! Checks of the kernel, the processor, the clock and the limits of the process.

use super::finding::{Finding, split_cure};
use super::host::Subject;
use crate::process::{check, memory};
use crate::text::iec;
use tsubame_udp::ring::{Ring, UdpSocket};

/// Lowest kernel version that is supported.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Number of open files that suffices for a shard besides HTTP connections.
const FILES_PER_SHARD: u64 = 128;

pub(super) fn findings(subject: &Subject<'_>) -> Vec<Finding> {
    let limits = ProcessLimits::read(subject);
    let mut findings = vec![kernel(subject), io_uring(subject), open_files(subject, &limits)];
    findings.extend([locked_memory(&limits), ram(subject), governor(subject), clock(subject)]);
    findings
}

fn kernel(subject: &Subject<'_>) -> Finding {
    let release = subject.host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < KERNEL_MIN => Finding::problem(
            "kernel",
            format!("Linux {release} is older than {}.{}", KERNEL_MIN.0, KERNEL_MIN.1),
            "install a newer kernel, for example that of Debian 12".to_owned(),
        ),
        _ => Finding::ok("kernel", format!("Linux {release}")),
    }
}

/// Creates a ring as a shard does. Its errors name the cure.
fn io_uring(subject: &Subject<'_>) -> Finding {
    let ring = UdpSocket::bind_exclusive(([127, 0, 0, 1], 0).into())
        .map_err(|error| format!("cannot bind a UDP socket of 127.0.0.1: {error}"))
        .and_then(|socket| Ring::new(vec![socket]).map_err(|error| error.to_string()));
    if let Err(error) = ring {
        let (text, cure) = split_cure(&error);
        return Finding::problem("io_uring", text, cure);
    }
    match subject.host.read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("1") => Finding::problem(
            "io_uring",
            "root may use it, but the sysctl kernel.io_uring_disabled is 1, which excludes the user of the service",
            "sysctl -w kernel.io_uring_disabled=0".to_owned(),
        ),
        _ => Finding::ok("io_uring", "a ring with all required features can be created"),
    }
}

/// Limits of a process.
struct ProcessLimits {
    /// Whose limits they are.
    owner: &'static str,
    /// Text of `/proc/PID/limits`.
    text: String,
}

impl ProcessLimits {
    /// Reads the limits of the running tracker or, if none runs, those of this process.
    fn read(subject: &Subject<'_>) -> Self {
        let host = subject.host;
        let is_tracker = |process: &&String| {
            host.read(&format!("/proc/{process}/comm")).as_deref() == Some("tsubame")
                && host
                    .read(&format!("/proc/{process}/cmdline"))
                    .is_some_and(|it| matches!(it.split('\0').nth(1), None | Some("" | "run")))
        };
        let running = host.list("/proc").iter().find(is_tracker).cloned();
        let owner = if running.is_some() { "the running tracker" } else { "this shell" };
        let process = running.unwrap_or_else(|| "self".to_owned());
        Self { owner, text: host.read(&format!("/proc/{process}/limits")).unwrap_or_default() }
    }

    /// Returns the hard limit of a name such as `Max open files`; `None` if there is no limit or it is unknown.
    fn hard(&self, name: &str) -> Option<u64> {
        let line = self.text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    }
}

fn open_files(subject: &Subject<'_>, limits: &ProcessLimits) -> Finding {
    let connections = u64::from(subject.config.http.limits.connections);
    let needed = connections + subject.cores.len() as u64 * FILES_PER_SHARD + FILES_PER_SHARD;
    match limits.hard("Max open files") {
        Some(limit) if limit < needed => Finding::warning(
            "open_files",
            format!(
                "{} may open {limit} files, and http.limits.connections ({connections}) needs {needed}",
                limits.owner
            ),
            format!("ulimit -n {needed}, or LimitNOFILE={needed} in the unit"),
        ),
        _ => Finding::ok(
            "open_files",
            format!("{} may open the needed {needed} files", limits.owner),
        ),
    }
}

/// Checks the limit on locked memory, of which the buffers of a ring are a part.
fn locked_memory(limits: &ProcessLimits) -> Finding {
    const NEEDED: u64 = 8 << 20;
    match limits.hard("Max locked memory") {
        Some(limit) if limit < NEEDED => Finding::warning(
            "locked_memory",
            format!("{} may lock {} of memory, which a ring may exceed", limits.owner, iec(limit)),
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit".to_owned(),
        ),
        Some(limit) => {
            Finding::ok("locked_memory", format!("{} may lock {}", limits.owner, iec(limit)))
        }
        None => Finding::ok("locked_memory", "there is no limit"),
    }
}

fn ram(subject: &Subject<'_>) -> Finding {
    let limit = memory::limit(subject.config.storage.memory);
    match check::memory_warning(subject.config) {
        Some(warning) => {
            let (text, cure) = split_cure(&warning);
            Finding::warning("memory", text, cure)
        }
        None => Finding::ok(
            "memory",
            format!("limit of swarms: {} ({})", iec(limit.bytes as u64), limit.origin),
        ),
    }
}

fn governor(subject: &Subject<'_>) -> Finding {
    let of = |core: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
        subject.host.read(&path)
    };
    let slow = subject.cores.iter().find_map(|core| {
        of(*core).filter(|governor| governor != "performance").map(|governor| (core, governor))
    });
    match slow {
        Some((core, governor)) => Finding::warning(
            "cpu_governor",
            format!(
                "core {core} has the frequency governor {governor}, which delays bursts of requests"
            ),
            "cpupower frequency-set -g performance".to_owned(),
        ),
        None if subject.cores.iter().any(|core| of(*core).is_some()) => {
            Finding::ok("cpu_governor", "performance")
        }
        None => {
            Finding::ok("cpu_governor", "the kernel does not scale the frequency of these cores")
        }
    }
}

/// Checks that the clock is synchronized: tokens and certificates expire by it.
fn clock(subject: &Subject<'_>) -> Finding {
    match subject.host.run("timedatectl", &["show", "--property=NTPSynchronized", "--value"]) {
        Ok(answer) if answer.trim() == "yes" => Finding::ok("clock", "synchronized"),
        Ok(_) => Finding::warning(
            "clock",
            "the clock is not synchronized; JSON web tokens and certificates may be refused at the wrong time",
            "timedatectl set-ntp true".to_owned(),
        ),
        Err(why) => Finding::unknown(
            "clock",
            why,
            "check that an NTP client runs, for example: chronyc tracking",
        ),
    }
}
