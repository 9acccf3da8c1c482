//! Passes changes of the access list by other nodes to the reloader.

use crate::policy::overrides::{ListChange, Override};
use crate::process::reload::{ControlCommand, ReloadJob};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tsubame_storage::InfoHash;

/// Maximum number of changes that wait.
const WAITING_MAX: usize = 1 << 16;

/// Number of waiting changes from which on no more of a snapshot is to be requested.
const BUSY_CHANGES: usize = WAITING_MAX / 4;

/// Time after a job that has failed before the next one is started.
const RETRY_TIME: Duration = Duration::from_secs(10);

/// Maximum time for which records of other nodes wait for the changes that arrived before them.
const BLOCKING_TIME: Duration = Duration::from_secs(2);

/// Changes of the access list by other nodes. One job at a time makes them.
pub(super) struct RemoteListChanges {
    /// Runs the jobs.
    control: UnboundedSender<ControlCommand>,
    waiting: BTreeMap<InfoHash, Override>,
    job: Option<ListJob>,
    /// Since when there are changes that have not been made.
    pending_since: Option<Duration>,
    /// No job is started before this time.
    retry_at: Duration,
    /// Number of changes that were dropped because too many waited.
    pub(super) dropped: u64,
}

/// A job that makes changes.
struct ListJob {
    changes: Vec<ListChange>,
    reply: oneshot::Receiver<Result<String, String>>,
}

impl RemoteListChanges {
    pub(super) fn new(control: UnboundedSender<ControlCommand>) -> Self {
        Self {
            control,
            waiting: BTreeMap::new(),
            job: None,
            pending_since: None,
            retry_at: Duration::ZERO,
            dropped: 0,
        }
    }

    /// Adds changes, of which the latest one of each torrent counts.
    pub(super) fn add(&mut self, mut changes: Vec<ListChange>) {
        changes.retain(|(info_hash, change)| {
            self.waiting.get(info_hash).is_none_or(|waiting| change.is_later_than(waiting))
        });
        let free = WAITING_MAX.saturating_sub(self.waiting.len());
        self.dropped += changes.len().saturating_sub(free) as u64;
        self.waiting.extend(changes.into_iter().take(free));
    }

    /// Starts a job for the waiting changes, if none runs.
    pub(super) fn advance(&mut self, now: Duration) {
        let had_job = self.job.is_some();
        if let Some(mut job) = self.job.take() {
            match job.reply.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.job = Some(job);
                    return;
                }
                Ok(Ok(_)) => {}
                // There were too many jobs, or the file cannot be written.
                Ok(Err(_)) | Err(TryRecvError::Closed) => {
                    self.add(job.changes);
                    self.retry_at = now + RETRY_TIME;
                }
            }
        }
        if self.waiting.is_empty() {
            // The shards get the list a moment after the reply.
            self.pending_since.take_if(|_| !had_job);
            return;
        }
        if now < self.retry_at {
            return;
        }
        self.pending_since.get_or_insert(now);
        let changes: Vec<ListChange> = std::mem::take(&mut self.waiting).into_iter().collect();
        let (sender, reply) = oneshot::channel();
        let job = (ReloadJob::ApplyRemoteListChanges(changes.clone()), Some(sender));
        self.job = Some(ListJob { changes, reply });
        // Fails only when the tracker stops.
        let _ = self.control.send(ControlCommand::Job(job));
    }

    /// Returns whether records of other nodes are to wait: a torrent may just have been permitted, and its peers must
    /// not be refused.
    pub(super) fn blocks_records(&self, now: Duration) -> bool {
        self.pending_since.is_some_and(|since| now.saturating_sub(since) < BLOCKING_TIME)
    }

    /// Returns whether there are changes that have not been made.
    pub(super) fn has_pending(&self) -> bool {
        self.job.is_some() || !self.waiting.is_empty()
    }

    /// Returns whether so many changes wait that no more are to be requested. After a failed job they do not count:
    /// without space, further ones are dropped.
    pub(super) fn is_busy(&self, now: Duration) -> bool {
        self.waiting.len() >= BUSY_CHANGES && now >= self.retry_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::reload::JobReply;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn changes(numbers: impl IntoIterator<Item = u32>, changed_at_ms: u64) -> Vec<ListChange> {
        let change = |number: u32| {
            let mut info_hash = [0; 20];
            info_hash[..4].copy_from_slice(&number.to_be_bytes());
            (InfoHash(info_hash), Override { on: true, changed_at_ms })
        };
        numbers.into_iter().map(change).collect()
    }

    /// Returns the changes of the job that was started, and the channel for its result.
    fn started(
        jobs: &mut UnboundedReceiver<ControlCommand>,
    ) -> Option<(Vec<ListChange>, JobReply)> {
        match jobs.try_recv().ok()? {
            ControlCommand::Job((ReloadJob::ApplyRemoteListChanges(changes), Some(reply))) => {
                Some((changes, reply))
            }
            command => panic!("{command:?}"),
        }
    }

    #[test]
    fn records_wait_for_changes_that_are_being_made() {
        let (control, mut jobs) = unbounded_channel();
        let mut list_changes = RemoteListChanges::new(control);
        let at = Duration::from_millis;
        list_changes.add(changes(0..3, 10));
        assert!(list_changes.has_pending());
        list_changes.advance(at(0));
        let (made, reply) = started(&mut jobs).unwrap();
        assert_eq!(made, changes(0..3, 10));
        assert!(list_changes.blocks_records(at(100)) && list_changes.has_pending());
        assert!(!list_changes.blocks_records(BLOCKING_TIME));
        // Meanwhile no other job is started.
        list_changes.add(changes(3..4, 10));
        list_changes.advance(at(100));
        assert!(started(&mut jobs).is_none());
        reply.send(Ok(String::new())).unwrap();
        list_changes.advance(at(200));
        let (made, reply) = started(&mut jobs).unwrap();
        assert_eq!(made, changes(3..4, 10));
        reply.send(Ok(String::new())).unwrap();
        list_changes.advance(at(300));
        assert!(list_changes.blocks_records(at(300)) && !list_changes.has_pending());
        list_changes.advance(at(320));
        assert!(!list_changes.blocks_records(at(320)));
    }

    #[test]
    fn a_failed_job_is_repeated_with_the_latest_changes() {
        let (control, mut jobs) = unbounded_channel();
        let mut list_changes = RemoteListChanges::new(control);
        list_changes.add(changes(0..BUSY_CHANGES as u32, 10));
        assert!(list_changes.is_busy(Duration::ZERO));
        list_changes.advance(Duration::ZERO);
        let (_, reply) = started(&mut jobs).unwrap();
        list_changes.add(changes(5..6, 20));
        reply.send(Err("the disk is full".to_owned())).unwrap();
        let failed = Duration::from_secs(1);
        list_changes.advance(failed);
        // The node goes on with the swarms, and tries again later.
        assert!(started(&mut jobs).is_none() && list_changes.has_pending());
        assert!(!list_changes.is_busy(failed) && !list_changes.blocks_records(BLOCKING_TIME));
        list_changes.advance(failed + RETRY_TIME);
        let (made, _reply) = started(&mut jobs).unwrap();
        assert_eq!(made.len(), BUSY_CHANGES);
        assert_eq!(made[5], changes(5..6, 20)[0], "the later one");
    }

    #[test]
    fn too_many_changes_are_dropped_and_counted() {
        let mut list_changes = RemoteListChanges::new(unbounded_channel().0);
        list_changes.add(changes(0..WAITING_MAX as u32 - 1, 10));
        list_changes.add(changes(u32::MAX - 2..u32::MAX, 10));
        assert_eq!((list_changes.waiting.len(), list_changes.dropped), (WAITING_MAX, 1));
    }
}
