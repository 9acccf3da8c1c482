//! The cores that shards run on.

use crate::config::CpuSelection;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeSet;
use std::io;
use thiserror::Error;

/// Why no cores can be chosen.
#[derive(Debug, Error)]
pub enum CpuError {
    /// The config names a core that this process may not use.
    #[error(
        "cpus: core {wanted} is not one this process may run on ({available}); name some of those, or auto"
    )]
    NotAvailable {
        /// The core.
        wanted: usize,
        /// Cores that this process may use.
        available: String,
    },
    /// The kernel does not tell which cores this process may use.
    #[error("cpus: cannot ask which cores this process may run on: {0}")]
    Unknown(#[source] io::Error),
}

/// Returns a core for each shard, in order.
///
/// With `auto`, one of the hardware threads of each physical core is used: two shards that share the caches of a core
/// are slower than one.
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

/// Returns the hardware threads of the core, as the kernel lists them, or the number itself if it does not.
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

/// Returns the cores that this process may use.
pub fn affinity() -> CpuSet {
    sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new())
}

/// Lets the calling thread run on all of these cores.
pub fn spread(cores: &CpuSet) {
    // If that fails, the thread stays on its core and is slow.
    let _ = sched_setaffinity(None, cores);
}

/// Lowers the priority of the calling thread below that of the shards.
pub fn step_back() {
    // If that fails, the thread competes with the shards.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_threads_of_a_core_one_is_taken() {
        let siblings = |cpu: usize| format!("{},{}", cpu % 4, cpu % 4 + 4);
        assert_eq!(first_of_siblings(&[0, 1, 2, 3, 4, 5, 6, 7], siblings), [0, 1, 2, 3]);
        assert_eq!(first_of_siblings(&[2, 5, 6], siblings), [2, 5]);
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let error = choose(&CpuSelection::List(vec![0, 1023])).unwrap_err().to_string();
        assert!(error.contains("cpus: core 1023"), "{error}");
    }
}
