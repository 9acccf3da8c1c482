//! Reads of files that may block forever, for example on a network file system that does not respond.
//!
//! Each read runs in its own thread, and its caller waits up to a timeout. A read that takes longer continues; until it
//! ends it is reported and not started a second time. The next read of the same name returns its result.

use crate::clock::Clock;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Reads that take longer than the timeout, by name.
#[derive(Clone, Debug)]
pub struct SlowReads {
    reads: Arc<Mutex<BTreeMap<String, SlowRead>>>,
    clock: Clock,
    timeout: Duration,
}

/// A read that took longer than the timeout.
#[derive(Debug)]
enum SlowRead {
    /// The time at which the read started, and whether its result will be out of date.
    Running(Duration, bool),
    /// The result, which nobody has taken yet, unless it is out of date; and whether
    /// [`SlowReads::has_new_results`] has reported it.
    Done(Option<Box<dyn Any + Send>>, bool),
}

impl SlowReads {
    /// Creates an empty table; each caller waits up to `timeout` for its read.
    pub fn new(clock: Clock, timeout: Duration) -> Self {
        Self { reads: Arc::default(), clock, timeout }
    }

    /// Runs a read and returns its result; `None` while it takes longer than the timeout.
    ///
    /// Reads with the same name must read the same data. The part of a name after a NUL distinguishes names but is not
    /// shown.
    pub fn run<T: Send + 'static>(
        &self,
        name: &str,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let previous = {
            let mut reads = self.lock();
            match reads.remove(name) {
                Some(running @ SlowRead::Running(..)) => {
                    reads.insert(name.to_owned(), running);
                    return None;
                }
                previous => previous,
            }
        };
        if let Some(SlowRead::Done(Some(result), _)) = previous
            && let Ok(result) = result.downcast()
        {
            return Some(*result);
        }
        let (sender, receiver) = channel();
        let started = self.clock.elapsed();
        let (reads, owned) = (self.reads.clone(), name.to_owned());
        let thread = std::thread::Builder::new().name("read".to_owned()).spawn(move || {
            let result = read();
            // Under the lock: either the caller still waits, or it has added the name.
            let mut reads = reads.lock().unwrap_or_else(PoisonError::into_inner);
            match reads.get_mut(&owned) {
                Some(slow) => {
                    let is_stale = matches!(slow, SlowRead::Running(_, true));
                    let result: Option<Box<dyn Any + Send>> =
                        if is_stale { None } else { Some(Box::new(result)) };
                    *slow = SlowRead::Done(result, false);
                }
                None => _ = sender.send(result),
            }
        });
        // If no thread can be started, there is no result, as after a timeout.
        thread.ok()?;
        match receiver.recv_timeout(self.timeout) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => {
                let mut reads = self.lock();
                // It may have ended before the lock was acquired.
                if let Ok(result) = receiver.try_recv() {
                    return Some(result);
                }
                reads.insert(name.to_owned(), SlowRead::Running(started, false));
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Returns the names of the reads that exceed the timeout, and how long each has run.
    pub fn stuck(&self) -> Vec<(String, Duration)> {
        let now = self.clock.elapsed();
        let reads = self.lock();
        let running = reads.iter().filter_map(|(name, read)| match read {
            SlowRead::Running(started, _) => {
                let shown = name.split('\0').next().unwrap_or_default();
                Some((shown.to_owned(), now.saturating_sub(*started)))
            }
            SlowRead::Done(..) => None,
        });
        running.collect()
    }

    /// Returns whether a read that exceeded the timeout has ended since the last call.
    pub fn has_new_results(&self) -> bool {
        let mut has_new_results = false;
        for read in self.lock().values_mut() {
            if let SlowRead::Done(_, is_reported) = read {
                has_new_results |= !std::mem::replace(is_reported, true);
            }
        }
        has_new_results
    }

    /// Drops results that nobody has taken, so that the following reads read again.
    pub fn forget_results(&self) {
        self.lock().retain(|_, read| matches!(read, SlowRead::Running(..)));
    }

    /// Drops results that nobody has taken, and later those of reads that are running: the data that they read has
    /// changed.
    pub fn make_stale(&self) {
        let mut reads = self.lock();
        reads.retain(|_, read| matches!(read, SlowRead::Running(..)));
        for read in reads.values_mut() {
            if let SlowRead::Running(_, is_stale) = read {
                *is_stale = true;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, SlowRead>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hanging_read_is_reported_and_does_not_block_others() {
        let slow = SlowReads::new(Clock::new(), Duration::from_millis(20));
        assert_eq!(slow.run("fast", || 5), Some(5));
        let (release, wait) = channel::<u32>();
        assert_eq!(slow.run("hangs", move || wait.recv().unwrap()), None);
        let names: Vec<_> = slow.stuck().into_iter().map(|(name, _)| name).collect();
        assert_eq!((names, slow.has_new_results()), (vec!["hangs".to_owned()], false));
        assert_eq!(slow.run("hangs", || 1_u32), None, "it is not started again");
        assert_eq!(slow.run("another", || 6), Some(6));
        release.send(7).unwrap();
        while !slow.has_new_results() {
            std::thread::yield_now();
        }
        assert!(!slow.has_new_results(), "it is reported once");
        assert!(slow.stuck().is_empty());
        assert_eq!(slow.run("hangs", || 1_u32), Some(7), "its result is returned");
        assert_eq!(slow.run("hangs", || 1_u32), Some(1), "a result is returned once");
    }

    #[test]
    fn stale_results_are_dropped() {
        let slow = SlowReads::new(Clock::new(), Duration::from_millis(20));
        let hang = || {
            let (release, wait) = channel::<u32>();
            assert_eq!(slow.run("hangs\0a", move || wait.recv().unwrap()), None);
            release
        };
        let end = |release: std::sync::mpsc::Sender<u32>| {
            release.send(7).unwrap();
            while !slow.has_new_results() {
                std::thread::yield_now();
            }
        };
        let release = hang();
        assert_eq!(slow.stuck()[0].0, "hangs");
        slow.make_stale();
        end(release);
        assert_eq!(slow.run("hangs\0a", || 1_u32), Some(1));
        end(hang());
        slow.forget_results();
        assert_eq!(slow.run("hangs\0a", || 2_u32), Some(2));
    }
}
