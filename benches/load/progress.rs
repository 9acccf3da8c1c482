//! The live line on a terminal.

use crate::options::Action;
use crate::tally::Tally;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

const REDRAWS_PER_S: u8 = 5;

/// A bar with the last figures behind it; nothing where nobody looks
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn begin(name: &str, action: &Action, quiet: bool) -> Self {
        let duration = match action {
            Action::Load(load) => Some(load.duration),
            Action::Pause(duration) => Some(*duration),
            Action::Fill | Action::Run(_) => None,
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

    pub(crate) fn show(&self, elapsed_ns: u64, tally: &Tally) {
        let elapsed = Duration::from_nanos(elapsed_ns);
        let millis = elapsed.as_millis() as u64;
        if self.0.is_hidden() || millis < self.0.position() + 1000 / u64::from(REDRAWS_PER_S) {
            return;
        }
        self.0.set_position(millis);
        self.0.set_message(format!(
            "{:>4.1} s  {:>9} answers/s  p50 {:.0} us  p99 {:.0} us  {} lost  {} wrong",
            elapsed.as_secs_f64(),
            tally.rate_now(),
            tally.percentile_us(50.0),
            tally.percentile_us(99.0),
            tally.step.lost,
            tally.step.wrong_sum(),
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
