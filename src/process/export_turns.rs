//! Turns of exports: each shard has at most one export at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The turns of exports.
#[derive(Debug, Default)]
pub(crate) struct ExportTurns {
    state: Mutex<TurnState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct TurnState {
    is_taken: bool,
    /// Number of exports that wait and must not wait for long.
    urgent: usize,
}

/// The turn of an export, until it is dropped.
#[derive(Debug)]
pub(crate) struct ExportTurn(Arc<ExportTurns>);

impl ExportTurns {
    /// Takes a turn; returns `None` if there is another export, or one waits.
    pub(crate) fn take(self: &Arc<Self>) -> Option<ExportTurn> {
        let mut state = self.state();
        if state.is_taken || state.urgent > 0 {
            return None;
        }
        state.is_taken = true;
        Some(ExportTurn(self.clone()))
    }

    /// Takes a turn for an export that must not wait for long: the present one is asked to end. Returns `None` if that
    /// takes too long.
    pub(crate) fn take_urgently(self: &Arc<Self>, timeout: Duration) -> Option<ExportTurn> {
        let mut state = self.state();
        state.urgent += 1;
        let waited = self.changed.wait_timeout_while(state, timeout, |state| state.is_taken);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state.urgent -= 1;
        if timeout.timed_out() {
            return None;
        }
        state.is_taken = true;
        Some(ExportTurn(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, TurnState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExportTurn {
    /// Returns whether the export is to end, because one that must not wait for long wants the turn.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.state().urgent > 0
    }
}

impl Drop for ExportTurn {
    fn drop(&mut self) {
        self.0.state().is_taken = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_urgent_export_has_the_present_one_end() {
        let turns = Arc::<ExportTurns>::default();
        let turn = turns.take().unwrap();
        assert!(turns.take().is_none() && !turn.is_wanted());
        assert!(turns.take_urgently(Duration::ZERO).is_none());
        let urgent = {
            let turns = turns.clone();
            std::thread::spawn(move || turns.take_urgently(Duration::from_secs(30)).is_some())
        };
        while !turn.is_wanted() {
            std::thread::yield_now();
        }
        assert!(turns.take().is_none());
        drop(turn);
        assert!(urgent.join().unwrap());
        assert!(turns.take().is_some());
    }
}
