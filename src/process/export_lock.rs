//! A lock that permits one export of the shards at a time. An urgent export asks the current one to end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Permits one export of the shards at a time.
#[derive(Debug, Default)]
pub(crate) struct ExportLock {
    state: Mutex<LockState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LockState {
    is_locked: bool,
    /// Number of urgent exports that wait.
    urgent: usize,
}

/// Holds the lock for an export until it is dropped.
#[derive(Debug)]
pub(crate) struct ExportGuard(Arc<ExportLock>);

impl ExportLock {
    /// Acquires the lock; returns `None` if an export holds it or an urgent export waits for it.
    pub(crate) fn try_lock(self: &Arc<Self>) -> Option<ExportGuard> {
        let mut state = self.state();
        if state.is_locked || state.urgent > 0 {
            return None;
        }
        state.is_locked = true;
        Some(ExportGuard(self.clone()))
    }

    /// Acquires the lock for an urgent export, and asks the current export to end. Returns `None` after `timeout`.
    pub(crate) fn lock_urgently(self: &Arc<Self>, timeout: Duration) -> Option<ExportGuard> {
        let mut state = self.state();
        state.urgent += 1;
        let waited = self.changed.wait_timeout_while(state, timeout, |state| state.is_locked);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state.urgent -= 1;
        if timeout.timed_out() {
            return None;
        }
        state.is_locked = true;
        Some(ExportGuard(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, LockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExportGuard {
    /// Returns whether an urgent export waits for the lock, so that this one is to end.
    pub(crate) fn is_preempted(&self) -> bool {
        self.0.state().urgent > 0
    }
}

impl Drop for ExportGuard {
    fn drop(&mut self) {
        self.0.state().is_locked = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_urgent_export_preempts_the_current_one() {
        let lock = Arc::<ExportLock>::default();
        let guard = lock.try_lock().unwrap();
        assert!(lock.try_lock().is_none() && !guard.is_preempted());
        assert!(lock.lock_urgently(Duration::ZERO).is_none());
        let urgent = {
            let lock = lock.clone();
            std::thread::spawn(move || lock.lock_urgently(Duration::from_secs(30)).is_some())
        };
        while !guard.is_preempted() {
            std::thread::yield_now();
        }
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert!(urgent.join().unwrap());
        assert!(lock.try_lock().is_some());
    }
}
