//! An export of the swarms of all shards, for a thread that stores or sends them.

use crate::clock::Clock;
use crate::control::torrents::ShardRequest;
use crate::process::export_lock::ExportLock;
use crate::shard::message::Message;
use crate::shard::transfer::{ExportedPage, TransferRequest};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc::UnboundedSender;
use tsubame_storage::{ExportProgress, StateRecord};

/// Maximum number of changes that each shard keeps between two pages: 4 MiB. At 50,000 announces a second a shard has
/// as many in a second.
const CHANGES_MAX: usize = 1 << 16;

/// Time after which the changes of a shard that has exported its torrents are fetched again.
const CHANGES_INTERVAL: Duration = Duration::from_millis(10);

/// Time that a shard may take to answer.
pub(crate) const SHARD_TIMEOUT: Duration = Duration::from_secs(30);

/// Error: a shard does not answer.
#[derive(Clone, Copy, Debug, Error)]
#[error("a shard has not answered for {} s; if that happens again, restart the tracker", SHARD_TIMEOUT.as_secs())]
pub(crate) struct UnansweredExport;

/// Sends messages to the shards, by way of the control plane.
#[derive(Clone, Debug)]
pub(crate) struct ShardSender {
    /// Passes messages to the control plane.
    pub(crate) requests: UnboundedSender<ShardRequest>,
    /// Number of shards.
    pub(crate) shards: usize,
    /// Permits one export at a time.
    pub(crate) export_lock: Arc<ExportLock>,
}

impl ShardSender {
    /// Sends a request to a shard. If it is lost, its reply channel is closed.
    pub(crate) fn send(&self, shard: usize, request: TransferRequest) {
        // Fails only when the tracker stops.
        let _ = self.requests.send((shard, Message::Transfer(Box::new(request))));
    }

    /// Sends a request to each shard.
    pub(crate) fn send_to_all(&self, request: impl Fn() -> TransferRequest) {
        (0..self.shards).for_each(|shard| self.send(shard, request()));
    }
}

/// An export of all shards, which ends when it is dropped.
pub(crate) struct ShardExport {
    shards: ShardSender,
    clock: Clock,
    /// Whether the changes by announces are exported, too.
    has_changes: bool,
    reply: Sender<ExportedPage>,
    pages: Receiver<ExportedPage>,
    last_pages: Receiver<ExportedPage>,
    /// Shards that wait for a request, with empty lists for their records.
    idle: Vec<(usize, Vec<StateRecord>)>,
    /// By shard: whether it has not exported all of its torrents yet.
    has_torrents: Vec<bool>,
    /// By shard: time at which a page was requested that has not arrived.
    waiting_since: Vec<Option<Duration>>,
    requested_at: Option<Duration>,
    /// By shard: number of changes that were lost.
    lost_changes: Vec<u64>,
}

impl ShardExport {
    /// Starts the export of all shards, with the changes that announces make if `has_changes`.
    pub(crate) fn begin(shards: ShardSender, clock: Clock, has_changes: bool) -> Self {
        let (reply, pages) = channel();
        let (last_sender, last_pages) = channel();
        shards.send_to_all(|| TransferRequest::BeginExport {
            changes_max: if has_changes { CHANGES_MAX } else { 0 },
            last_changes: has_changes.then(|| last_sender.clone()),
        });
        Self {
            idle: (0..shards.shards).map(|shard| (shard, Vec::new())).collect(),
            has_torrents: vec![true; shards.shards],
            waiting_since: vec![None; shards.shards],
            lost_changes: vec![0; shards.shards],
            shards,
            clock,
            has_changes,
            reply,
            pages,
            last_pages,
            requested_at: None,
        }
    }

    /// Returns whether a shard has not exported all of its torrents yet.
    pub(crate) fn has_torrents(&self) -> bool {
        self.has_torrents.contains(&true)
    }

    /// Returns the number of changes that were lost, because the shards made them faster than they were fetched.
    pub(crate) fn lost_changes(&self) -> u64 {
        self.lost_changes.iter().sum()
    }

    /// Requests pages that are due, waits up to 10 ms for a page, and passes its records on.
    pub(crate) fn step<E: From<UnansweredExport>>(
        &mut self,
        add: &mut dyn FnMut(&[StateRecord]) -> Result<(), E>,
    ) -> Result<(), E> {
        let now = self.clock.elapsed();
        let is_due = match self.requested_at {
            None => true,
            Some(at) => self.has_changes && now.saturating_sub(at) >= CHANGES_INTERVAL,
        };
        if is_due {
            self.requested_at = Some(now);
            for (shard, records) in std::mem::take(&mut self.idle) {
                self.request_page(shard, records);
            }
        }
        self.receive(add)
    }

    /// Passes on the pages that were requested, and requests no more.
    pub(crate) fn settle<E: From<UnansweredExport>>(
        &mut self,
        add: &mut dyn FnMut(&[StateRecord]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.waiting_since.iter().any(Option::is_some) {
            self.receive(add)?;
        }
        Ok(())
    }

    /// Passes on the changes that the shards have made up to their last request, once they have stopped. Returns the
    /// number of changes that were lost. Gives up when `is_aborted` returns true.
    pub(crate) fn finish<E: From<UnansweredExport>>(
        self,
        add: &mut dyn FnMut(&[StateRecord]) -> Result<(), E>,
        is_aborted: &dyn Fn() -> bool,
    ) -> Result<u64, E> {
        let (mut lost, mut missing) = (0, self.shards.shards);
        let started = self.clock.elapsed();
        while missing > 0 {
            let waited = self.clock.elapsed().saturating_sub(started);
            if waited >= SHARD_TIMEOUT || is_aborted() {
                return Err(UnansweredExport.into());
            }
            let Ok(page) = self.last_pages.recv_timeout(CHANGES_INTERVAL) else { continue };
            add(&page.records)?;
            lost += page.lost_changes;
            missing -= 1;
        }
        Ok(lost)
    }

    fn request_page(&mut self, shard: usize, records: Vec<StateRecord>) {
        self.waiting_since[shard] = Some(self.clock.elapsed());
        let reply = self.reply.clone();
        self.shards.send(shard, TransferRequest::ExportPage { records, reply });
    }

    fn receive<E: From<UnansweredExport>>(
        &mut self,
        add: &mut dyn FnMut(&[StateRecord]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Ok(page) = self.pages.recv_timeout(CHANGES_INTERVAL) else {
            let now = self.clock.elapsed();
            let is_late = |since: &Duration| now.saturating_sub(*since) >= SHARD_TIMEOUT;
            return match self.waiting_since.iter().flatten().any(is_late) {
                true => Err(UnansweredExport.into()),
                false => Ok(()),
            };
        };
        let ExportedPage { shard, mut records, progress, lost_changes } = page;
        self.lost_changes[shard] = lost_changes;
        self.waiting_since[shard] = None;
        add(&records)?;
        records.clear();
        if progress == ExportProgress::Complete {
            self.has_torrents[shard] = false;
            self.idle.push((shard, records));
        } else {
            self.request_page(shard, records);
        }
        Ok(())
    }
}

impl Drop for ShardExport {
    fn drop(&mut self) {
        self.shards.send_to_all(|| TransferRequest::EndExport);
    }
}
