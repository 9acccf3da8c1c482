//! Scans for pages of the list of all torrents, done in small steps between turns.

use super::mesh::MeshEndpoint;
use super::message::{Message, PageReply, PageRequest};
use super::pending_replies::PendingReplies;
use crate::tracker::Tracker;
use std::collections::VecDeque;
use tsubame_storage::PageScan;

/// Pages that were requested of this shard; the first one is being scanned.
#[derive(Debug, Default)]
pub(super) struct PageScans(VecDeque<PageJob>);

#[derive(Debug)]
struct PageJob {
    /// Member of the mesh that the page is for.
    member: usize,
    request: PageRequest,
    scan: Option<PageScan>,
    is_complete: bool,
}

impl PageScans {
    pub(super) fn add(&mut self, member: usize, request: PageRequest) {
        self.0.push_back(PageJob { member, request, scan: None, is_complete: false });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does a bounded step of the first scan, and sends the page when it is complete.
    pub(super) fn run(
        &mut self,
        tracker: &Tracker,
        endpoint: &mut MeshEndpoint,
        pending: &mut PendingReplies,
    ) {
        let (swarms, policy) = (tracker.swarms(), tracker.policy());
        let Some(job) = self.0.front_mut() else { return };
        let after = job.request.after;
        let scan = job.scan.get_or_insert_with(|| PageScan::begin(swarms, after));
        job.is_complete =
            job.is_complete || scan.step(swarms, |info_hash| policy.serves(info_hash));
        let is_own = job.member == endpoint.member();
        // While the queue is full the page waits: a list that lacks a page would be false.
        if !job.is_complete || !is_own && !endpoint.can_send(job.member) {
            return;
        }
        if let Some(PageJob { member, request, scan: Some(scan), .. }) = self.0.pop_front() {
            let reply = PageReply { request_id: request.request_id, page: scan.finish() };
            if is_own {
                pending.complete_page(Box::new(reply));
            } else {
                endpoint.send(member, Message::PageReply(Box::new(reply)));
                endpoint.notify();
            }
        }
    }
}
