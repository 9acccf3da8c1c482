//! The progress line on a terminal.

use crate::options::LoadAction;
use crate::step_stats::StepStats;
use crate::summary::time;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;
use tsubame::text::grouped;

/// Number of redraws per second.
const REDRAWS_PER_S: u8 = 5;

/// A progress bar with the latest statistics; hidden if standard error is not a terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Shows the progress bar of a step.
    pub(crate) fn begin(name: &str, action: &LoadAction, quiet: bool) -> Self {
        let duration = match action {
            LoadAction::Load(load) => Some(load.duration),
            LoadAction::Pause(duration) => Some(*duration),
            LoadAction::Fill | LoadAction::Run(_) => None,
        };
        let target = match quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_S),
        };
        let millis = duration.map(|duration| duration.as_millis() as u64);
        let bar = ProgressBar::with_draw_target(millis, target);
        let template = match millis {
            Some(_) => "{prefix:>12} [{bar:30}] {msg}",
            None => "{prefix:>12} {spinner} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name.to_owned());
        Self(bar)
    }

    /// Updates the statistics, at most a few times per second.
    pub(crate) fn show(&self, elapsed_ns: u64, step_stats: &StepStats) {
        let elapsed = Duration::from_nanos(elapsed_ns);
        let millis = elapsed.as_millis() as u64;
        if self.0.is_hidden() || millis < self.0.position() + 1000 / u64::from(REDRAWS_PER_S) {
            return;
        }
        self.0.set_position(millis);
        self.0.set_message(format!(
            "{:>4.1} s  {:>9} answers/s  p50 {}  p99 {}  {} lost  {} wrong",
            elapsed.as_secs_f64(),
            grouped(step_stats.rate_now()),
            time(step_stats.percentile_us(50.0)),
            time(step_stats.percentile_us(99.0)),
            grouped(step_stats.record.lost),
            grouped(step_stats.record.wrong_sum()),
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
