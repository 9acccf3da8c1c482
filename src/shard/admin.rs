//! Requests of the control plane about the torrents of a shard, done in small steps between turns.

use crate::tracker::Tracker;
use std::collections::VecDeque;
use tokio::sync::oneshot::Sender;
use tsubame_storage::{
    InfoHash, PageScan, SummaryScan, SwarmSummary, TorrentDetails, TorrentPage, TorrentRemoval,
};

/// Maximum number of requests that wait; the reply channels of further ones are dropped.
const REQUESTS_MAX: usize = 64;

/// A request of the control plane about torrents.
#[derive(Debug)]
pub enum AdminRequest {
    /// Summarizes all swarms of the shard.
    Summarize {
        /// How many of the torrents with the most peers the summary lists.
        largest_count: usize,
        /// Key of the hash by which distinct peers are counted, the same for all shards; `None` to leave that out.
        distinct_key: Option<(u64, u64)>,
        /// Receives the summary.
        reply: Sender<SwarmSummary>,
    },
    /// Returns a torrent with some of its peers.
    Inspect {
        /// The torrent, which the shard owns.
        info_hash: InfoHash,
        /// Maximum number of peers.
        peers_max: usize,
        /// Receives the torrent, or `None` if it is unknown.
        reply: Sender<Option<TorrentDetails>>,
    },
    /// Returns the next torrents in the order of their info hashes, without those that policy forbids.
    ListPage {
        /// The torrents come after this one; `None` for the first ones.
        after: Option<InfoHash>,
        /// Receives the page.
        reply: Sender<TorrentPage>,
    },
    /// Removes a torrent and its peers.
    Remove {
        /// The torrent, which the shard owns.
        info_hash: InfoHash,
        /// Receives whether the torrent was known, when it has been removed.
        reply: Sender<bool>,
    },
}

/// A request that is being worked on.
#[derive(Debug)]
enum AdminJob {
    Summarize(Box<SummaryScan>, Sender<SwarmSummary>),
    ListPage(PageScan, Sender<TorrentPage>),
    Remove(TorrentRemoval, Sender<bool>),
}

impl AdminJob {
    /// Returns whether the job must continue: somebody waits for its result, or it removes a torrent.
    fn must_continue(&self) -> bool {
        match self {
            Self::Summarize(_, reply) => !reply.is_closed(),
            Self::ListPage(_, reply) => !reply.is_closed(),
            // Otherwise some of the peers would stay.
            Self::Remove(..) => true,
        }
    }
}

/// Requests of the control plane that have not been answered; the first one is being worked on.
#[derive(Debug, Default)]
pub(super) struct AdminJobs {
    waiting: VecDeque<AdminRequest>,
    current: Option<AdminJob>,
}

impl AdminJobs {
    /// Adds a request. A lookup, which is bounded, is answered at once.
    pub(super) fn add(&mut self, request: AdminRequest, tracker: &mut Tracker) {
        match request {
            AdminRequest::Inspect { info_hash, peers_max, reply } => {
                let _ = reply.send(tracker.swarms_mut().inspect(&info_hash, peers_max));
            }
            request if self.waiting.len() < REQUESTS_MAX => self.waiting.push_back(request),
            // The requester notices that its channel is dropped.
            _ => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.current.is_none()
    }

    /// Does a bounded step. A job that nobody waits for any more is dropped, unless it removes a torrent.
    pub(super) fn run(&mut self, tracker: &mut Tracker) {
        let Some(job) = self.current.take().filter(AdminJob::must_continue) else {
            self.current = self.waiting.pop_front().and_then(|request| begin(request, tracker));
            return;
        };
        match job {
            AdminJob::Summarize(mut scan, reply) => {
                if scan.step(tracker.swarms_mut()) {
                    let _ = reply.send(scan.finish(tracker.swarms()));
                } else {
                    self.current = Some(AdminJob::Summarize(scan, reply));
                }
            }
            AdminJob::ListPage(mut scan, reply) => {
                let policy = tracker.policy();
                if scan.step(tracker.swarms(), |info_hash| policy.serves(info_hash)) {
                    let _ = reply.send(scan.finish());
                } else {
                    self.current = Some(AdminJob::ListPage(scan, reply));
                }
            }
            AdminJob::Remove(mut removal, reply) => {
                if tracker.swarms_mut().remove_torrent(&mut removal) {
                    self.current = Some(AdminJob::Remove(removal, reply));
                } else {
                    let _ = reply.send(true);
                }
            }
        }
    }
}

/// Answers a request, or returns the job that it takes.
fn begin(request: AdminRequest, tracker: &mut Tracker) -> Option<AdminJob> {
    let swarms = tracker.swarms();
    match request {
        // Answered when it arrived.
        AdminRequest::Inspect { .. } => None,
        AdminRequest::Summarize { largest_count, distinct_key, reply } => {
            let scan = SummaryScan::begin(swarms, largest_count, distinct_key);
            Some(AdminJob::Summarize(Box::new(scan), reply))
        }
        AdminRequest::ListPage { after, reply } => {
            Some(AdminJob::ListPage(PageScan::begin(swarms, after), reply))
        }
        AdminRequest::Remove { info_hash, reply } => {
            if !swarms.contains(&swarms.prefetch_index(&info_hash), &info_hash) {
                let _ = reply.send(false);
                return None;
            }
            Some(AdminJob::Remove(TorrentRemoval::new(info_hash), reply))
        }
    }
}
