//! Resources that the server uses, if it runs on this machine.

use crate::options::RunOptions;
use tsubame_bench::observe;
use tsubame_bench::record::ServerUsage;

/// Resources that the server had used at one moment.
pub(crate) struct Usage {
    core: Option<observe::CoreTimes>,
    process_s: Option<f64>,
}

impl Usage {
    /// Reads the resources that the server has used so far.
    pub(crate) fn of(run: &RunOptions) -> Self {
        Self {
            core: run.server_cpu.and_then(observe::core_times),
            process_s: run.server_pid.and_then(observe::processor_time_s),
        }
    }

    /// Returns what the server has used since `self` was read; `None` if neither its core nor its process is known.
    pub(crate) fn until_now(&self, run: &RunOptions) -> Option<ServerUsage> {
        let now = Self::of(run);
        let since = |now: Option<f64>, before: Option<f64>| Some(now? - before?);
        let of_core = |figure: fn(observe::CoreTimes) -> f64| {
            since(now.core.map(figure), self.core.map(figure))
        };
        let server = ServerUsage {
            core_busy_s: of_core(|core| core.busy_s),
            stolen_s: of_core(|core| core.stolen_s),
            process_s: since(now.process_s, self.process_s),
            resident_bytes: run.server_pid.and_then(observe::resident_bytes),
        };
        (run.server_cpu.is_some() || run.server_pid.is_some()).then_some(server)
    }
}
