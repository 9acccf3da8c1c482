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

    /// Returns whether so many changes wait that no more are to be requested.
    pub(super) fn is_busy(&self) -> bool {
        self.waiting.len() >= BUSY_CHANGES
    }
}
