//! Selection of the cores that shards run on, and affinity and priority of threads.

use crate::config::CpuSelection;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU64;
use thiserror::Error;

/// Reason why no cores could be chosen.
#[derive(Debug, Error)]
pub enum CpuError {
    /// The config lists a core that this process may not use.
    #[error(
        "cpus: core {wanted} is not available to this process; choose from {available}, or auto"
    )]
    NotAvailable {
        /// Number of the core.
        wanted: usize,
        /// Cores that this process may use, separated by commas.
        available: String,
    },
    /// The kernel does not report which cores this process may use.
    #[error("cpus: cannot read which cores this process may use: {0}; permit sched_getaffinity(2)")]
    Unknown(#[source] io::Error),
}

/// Returns the core of each shard, in the order of the shards.
///
/// Of the hardware threads of a physical core, `auto` takes the first: two shards that share the caches of one core are
/// slower than one.
///
/// # Errors
///
/// Returns an error if a listed core is not available to this process.
pub fn choose(cpus: &CpuSelection) -> Result<Vec<usize>, CpuError> {
    let affinity = sched_getaffinity(None).map_err(|error| CpuError::Unknown(error.into()))?;
    let available: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| affinity.is_set(*cpu)).collect();
    match cpus {
        CpuSelection::Auto => Ok(first_of_siblings(&available, siblings)),
        CpuSelection::List(wanted) => match wanted.iter().find(|cpu| !available.contains(cpu)) {
            Some(wanted) => {
                let available: Vec<_> = available.iter().map(usize::to_string).collect();
                let available = available.join(",");
                Err(CpuError::NotAvailable { wanted: *wanted, available })
            }
            None => Ok(wanted.clone()),
        },
    }
}

fn first_of_siblings(available: &[usize], siblings: impl Fn(usize) -> String) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    available.iter().copied().filter(|cpu| seen.insert(siblings(*cpu))).collect()
}

/// Returns the hardware threads of the core of `cpu` as the kernel lists them, or `cpu` alone if it does not.
fn siblings(cpu: usize) -> String {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    std::fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string()).trim().to_owned()
}

/// Pins the calling thread to one core.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(None, &only)?)
}

/// Returns the cores that the calling thread may run on; empty if the kernel does not report them.
pub fn affinity() -> CpuSet {
    sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new())
}

/// Permits the calling thread to run on all of these cores.
pub fn allow_cores(cores: &CpuSet) {
    // If that fails, the thread stays on its core and is slow.
    let _ = sched_setaffinity(None, cores);
}

/// Sets the timer slack of the calling thread to 1 ns. By default the kernel delays wake-ups by up to 50 microseconds.
pub fn minimize_timer_slack() {
    // If that fails, waits are a little longer.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

/// Lowers the priority of the calling thread below that of the shards.
pub fn lower_priority() {
    set_niceness(10);
}

/// Lowers the priority of the calling thread as far as possible, for work that takes long and may wait.
pub fn set_lowest_priority() {
    set_niceness(19);
}

fn set_niceness(niceness: i32) {
    // If that fails, the thread competes with the shards.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), niceness);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_one_thread_of_each_physical_core() {
        let siblings = |cpu: usize| format!("{},{}", cpu % 4, cpu % 4 + 4);
        assert_eq!(first_of_siblings(&[0, 1, 2, 3, 4, 5, 6, 7], siblings), [0, 1, 2, 3]);
        assert_eq!(first_of_siblings(&[2, 5, 6], siblings), [2, 5]);
    }

    #[test]
    fn the_error_names_a_core_that_is_not_available() {
        let error = choose(&CpuSelection::List(vec![0, 1023])).unwrap_err().to_string();
        assert!(error.contains("cpus: core 1023"), "{error}");
    }
}
