//! Reads of files that may never return, as from a file system that hangs.
//!
//! Each read is done by a thread of its own and waited for only so long. One that takes longer goes on, and what it has
//! read is taken when the same is read next; until then it is reported, and not started a second time.

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

#[derive(Debug)]
enum SlowRead {
    /// It is going on since this time; whether its result is out of date
    Running(Duration, bool),
    /// It has ended with a result that nobody has taken yet, if that is not out of date; whether
    /// [`SlowReads::news`] has told so
    Done(Option<Box<dyn Any + Send>>, bool),
}

impl SlowReads {
    /// Waits for each read for as long as `timeout`.
    pub fn new(clock: Clock, timeout: Duration) -> Self {
        Self { reads: Arc::default(), clock, timeout }
    }

    /// Runs a read and returns its result; `None` while it takes longer than the timeout.
    ///
    /// Reads of the same name must be of the same thing. What stands behind a NUL tells names apart and is not shown.
    pub fn run<T: Send + 'static>(
        &self,
        name: &str,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let known = {
            let mut reads = self.lock();
            match reads.remove(name) {
                Some(running @ SlowRead::Running(..)) => {
                    reads.insert(name.to_owned(), running);
                    return None;
                }
                known => known,
            }
        };
        if let Some(SlowRead::Done(Some(result), _)) = known
            && let Ok(result) = result.downcast()
        {
            return Some(*result);
        }
        let (sender, receiver) = channel();
        let begun = self.clock.elapsed();
        let (reads, owned) = (self.reads.clone(), name.to_owned());
        let thread = std::thread::Builder::new().name("read".to_owned()).spawn(move || {
            let result = read();
            // Under the lock: either it is waited for still, or the name is there.
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
        // Without a thread there is no result, as if it took too long.
        thread.ok()?;
        match receiver.recv_timeout(self.timeout) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => {
                let mut reads = self.lock();
                // It may have ended just now.
                if let Ok(result) = receiver.try_recv() {
                    return Some(result);
                }
                reads.insert(name.to_owned(), SlowRead::Running(begun, false));
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Returns the names of reads that are going on for longer than the timeout, and for how long.
    pub fn stuck(&self) -> Vec<(String, Duration)> {
        let now = self.clock.elapsed();
        let reads = self.lock();
        let running = reads.iter().filter_map(|(name, read)| match read {
            SlowRead::Running(begun, _) => {
                let shown = name.split('\0').next().unwrap_or_default();
                Some((shown.to_owned(), now.saturating_sub(*begun)))
            }
            SlowRead::Done(..) => None,
        });
        running.collect()
    }

    /// Whether a read has ended since this was last asked, so that it is time to read again.
    pub fn news(&self) -> bool {
        let mut news = false;
        for read in self.lock().values_mut() {
            if let SlowRead::Done(_, told) = read {
                news |= !std::mem::replace(told, true);
            }
        }
        news
    }

    /// Drops results that nobody has taken, for what is read from now on is to be read anew.
    pub fn forget_results(&self) {
        self.lock().retain(|_, read| matches!(read, SlowRead::Running(..)));
    }

    /// Drops results that nobody has taken, and those of the reads that are going on: what they read has changed.
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
    fn a_read_that_hangs_is_reported_and_holds_up_no_other() {
        let slow = SlowReads::new(Clock::new(), Duration::from_millis(20));
        assert_eq!(slow.run("fast", || 5), Some(5));
        let (release, wait) = channel::<u32>();
        assert_eq!(slow.run("hangs", move || wait.recv().unwrap()), None);
        let names: Vec<_> = slow.stuck().into_iter().map(|(name, _)| name).collect();
        assert_eq!((names, slow.news()), (vec!["hangs".to_owned()], false));
        assert_eq!(slow.run("hangs", || 1_u32), None, "it is not begun again");
        assert_eq!(slow.run("another", || 6), Some(6));
        release.send(7).unwrap();
        while !slow.news() {
            std::thread::yield_now();
        }
        assert!(!slow.news(), "it is told once");
        assert!(slow.stuck().is_empty());
        assert_eq!(slow.run("hangs", || 1_u32), Some(7), "what it has read is taken");
        assert_eq!(slow.run("hangs", || 1_u32), Some(1), "once");
    }

    #[test]
    fn what_has_changed_since_is_not_taken() {
        let slow = SlowReads::new(Clock::new(), Duration::from_millis(20));
        let hang = || {
            let (release, wait) = channel::<u32>();
            assert_eq!(slow.run("hangs\0a", move || wait.recv().unwrap()), None);
            release
        };
        let end = |release: std::sync::mpsc::Sender<u32>| {
            release.send(7).unwrap();
            while !slow.news() {
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
