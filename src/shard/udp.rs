//! UDP requests of a shard: received, admitted and answered in batches.

use super::datapath::{Datapath, ReplyPath};
use super::message::{Message, ScrapeRows};
use super::node::Node;
use super::pending_scrapes::{PendingScrape, PendingScrapes};
use super::phase_timer::PhaseTimer;
use crate::clock::Now;
use crate::sizes::SCRAPE_REPLY_LEN_MAX;
use crate::stats::outcome::Outcome;
use crate::stats::shard_stats::{Protocol, TurnPhase};
use crate::tracker::{AdmittedAnnounce, AdmittedRequest, AdmittedScrape, UdpReply};
use std::io;
use tsubame_storage::{Family, Prefetch, Seconds, SwarmStats};
use tsubame_udp::ring::{Datagram, Wait};
use tsubame_udp::wire::{ANNOUNCE_REPLY_LEN, SCRAPE_ROW_LEN, TransactionId, UdpRequest};

/// Maximum number of datagrams that are answered together. Larger batches would delay replies: with clients that wait
/// for a reply before their next request, tracker and clients would take turns working.
pub(super) const BATCH_MAX: usize = 64;

/// The datapath of a shard, and the UDP requests in progress.
#[derive(Debug)]
pub(super) struct UdpRequests<D: Datapath> {
    pub(super) datapath: D,
    batch: Vec<BatchItem<D::Received>>,
    /// Spare vector for the requests of a batch that policy permits.
    permitted: Vec<BatchItem<D::Received>>,
    pending_scrapes: PendingScrapes,
    timer: PhaseTimer,
}

/// A request in a batch.
#[derive(Debug)]
struct BatchItem<R> {
    received: R,
    family: Family,
    request: AdmittedRequest,
    prefetch: Prefetch,
}

impl<D: Datapath> UdpRequests<D> {
    pub(super) fn new(datapath: D) -> Self {
        let batch = Vec::with_capacity(BATCH_MAX);
        let permitted = Vec::with_capacity(BATCH_MAX);
        let (pending_scrapes, timer) = (PendingScrapes::new(), PhaseTimer::default());
        Self { datapath, batch, permitted, pending_scrapes, timer }
    }

    /// Returns the memory that a shard allocates for pending requests at start.
    pub(super) const fn bytes() -> usize {
        PendingScrapes::bytes()
    }

    /// Sends replies, waits if `wait` says so, receives datagrams and answers a batch of them; returns the time and the
    /// size of the batch.
    pub(super) fn turn(&mut self, node: &mut Node, wait: Wait) -> io::Result<(Now, usize)> {
        self.timer.begin_turn(&node.clock);
        let available = self.datapath.turn(wait)?.min(BATCH_MAX);
        if wait != Wait::No {
            // Early, so that other shards do not wake one that works.
            node.endpoint.end_sleep();
        }
        self.timer.end_phase(&node.clock, TurnPhase::Transfer);
        node.begin_turn();
        let now = node.clock.now();
        if available > 0 {
            node.stats.count_batch(available);
            let mut batch = std::mem::take(&mut self.batch);
            self.admit(node, now, available, &mut batch)?;
            self.sample_client(node, &batch);
            self.timer.end_phase(&node.clock, TurnPhase::Admit);
            for item in batch.drain(..) {
                self.answer(node, now, item)?;
            }
            self.batch = batch;
            self.timer.end_phase(&node.clock, TurnPhase::Answer);
        }
        Ok((now, available))
    }

    /// Returns whether, after the datapath has stopped receiving, all requests were answered or forwarded.
    pub(super) fn has_drained(&self) -> bool {
        self.pending_scrapes.is_empty() && self.datapath.has_drained()
    }

    /// Ends a turn with `datagrams` datagrams, after messages were handled.
    pub(super) fn end_turn(&mut self, node: &mut Node, datagrams: usize) {
        self.timer.end_phase(&node.clock, TurnPhase::Messages);
        self.timer.end_turn(&mut node.stats.turn_times, datagrams);
    }

    /// Samples the client program of the first request of a batch, if it is an announce.
    fn sample_client(&mut self, node: &mut Node, batch: &[BatchItem<D::Received>]) {
        let Some(item) = batch.first().filter(|_| node.client_samples.wants_more()) else { return };
        if let (Datagram { payload, .. }, _) = self.datapath.datagram_and_slot(&item.received)
            && let Ok(UdpRequest::Announce(announce)) = UdpRequest::parse(payload)
        {
            node.client_samples.add(&announce.peer_id());
        }
    }

    /// Receives and admits up to `count` datagrams; connects and refused requests are answered here.
    fn admit(
        &mut self,
        node: &mut Node,
        now: Now,
        count: usize,
        batch: &mut Vec<BatchItem<D::Received>>,
    ) -> io::Result<()> {
        for _ in 0..count {
            let Some(received) = self.datapath.take() else { break };
            let Ok(received) = received else {
                count_outcome(node, Family::V4, Outcome::Unreadable);
                continue;
            };
            let (datagram, reply) = self.datapath.datagram_and_slot(&received);
            let family = Family::of(datagram.source.ip());
            node.stats.received_bytes += datagram.payload.len() as u64;
            match node.tracker.prove(now, datagram.source, datagram.payload, reply) {
                Ok(request) => {
                    let prefetch = node.tracker.prefetch_index(&request.info_hash());
                    batch.push(BatchItem { received, family, request, prefetch });
                }
                Err(refused) => self.finish(node, received, family, refused)?,
            }
        }
        // The entries of the whole batch are read before the first is needed, so that cache misses overlap.
        let entries = batch.iter().map(|item| node.tracker.prefetch_entry(&item.prefetch));
        std::hint::black_box(entries.fold(0, u8::wrapping_add));
        if node.tracker.policy().has_hooks() {
            self.check_policy(node, now, batch)?;
        }
        Ok(())
    }

    /// Has the hooks check the requests of the batch, and answers those that they refuse.
    fn check_policy(
        &mut self,
        node: &mut Node,
        now: Now,
        batch: &mut Vec<BatchItem<D::Received>>,
    ) -> io::Result<()> {
        let mut proven = std::mem::replace(batch, std::mem::take(&mut self.permitted));
        for mut item in proven.drain(..) {
            let BatchItem { received, request, prefetch, .. } = &mut item;
            let (Datagram { source, payload, .. }, reply) =
                self.datapath.datagram_and_slot(received);
            match node.tracker.check_policy(now, source.ip(), request, prefetch, payload, reply) {
                Ok(()) => batch.push(item),
                Err(refused) => self.finish(node, item.received, item.family, refused)?,
            }
        }
        self.permitted = proven;
        Ok(())
    }

    /// Answers an admitted request, or forwards it to the shard that owns the torrent.
    fn answer(
        &mut self,
        node: &mut Node,
        now: Now,
        item: BatchItem<D::Received>,
    ) -> io::Result<()> {
        let BatchItem { received, family, request, prefetch } = item;
        let is_owner = node.owns(&request.info_hash());
        match &request {
            AdmittedRequest::Announce(announce, transaction_id) if !is_owner => {
                self.forward(node, received, family, announce, *transaction_id);
                return Ok(());
            }
            AdmittedRequest::Scrape(scrape) if !is_owner || scrape.rows > 1 && node.shards > 1 => {
                return self.scrape_shards(node, now, received, family, scrape);
            }
            AdmittedRequest::Announce(..) | AdmittedRequest::Scrape(_) => {}
        }
        let (datagram, reply) = self.datapath.datagram_and_slot(&received);
        let reply = node.tracker.answer(now, prefetch, &request, datagram.payload, reply);
        if let AdmittedRequest::Announce(announce, _) = &request {
            count_announce(node, announce, reply);
        }
        self.finish(node, received, family, reply)
    }

    /// Counts a request and sends its reply, if there is one.
    fn finish(
        &mut self,
        node: &mut Node,
        received: D::Received,
        family: Family,
        reply: UdpReply,
    ) -> io::Result<()> {
        count_outcome(node, family, reply.outcome);
        node.stats.sent_bytes += reply.len as u64;
        match reply.len {
            0 => self.datapath.release(received),
            len => self.datapath.send(received, len)?,
        }
        Ok(())
    }

    /// Sends an announce to the shard that owns the torrent, which replies from its own socket.
    fn forward(
        &mut self,
        node: &mut Node,
        received: D::Received,
        family: Family,
        announce: &AdmittedAnnounce,
        transaction_id: TransactionId,
    ) {
        let owner = usize::from(node.owner(&announce.info_hash));
        let path = self.datapath.reply_path(&received);
        let is_sent = node.endpoint.send(owner, Message::Announce(*announce, transaction_id, path));
        let outcome = if is_sent { Outcome::Forwarded } else { Outcome::ShedMesh };
        count_outcome(node, family, outcome);
        self.datapath.release(received);
    }

    /// Answers an announce that another shard forwarded.
    pub(super) fn answer_forwarded(
        &mut self,
        node: &mut Node,
        now: Now,
        (announce, transaction_id): (&AdmittedAnnounce, TransactionId),
        path: &ReplyPath,
        prefetch: Prefetch,
    ) -> io::Result<()> {
        let Some(slot) = self.forward_slot()? else {
            count_outcome(node, announce.family, Outcome::ShedSlots);
            return Ok(());
        };
        let out = self.datapath.forward_slot_bytes(&slot);
        let reply = node.tracker.answer_announce(now, prefetch, announce, transaction_id, out);
        count_announce(node, announce, reply);
        node.stats.sent_bytes += reply.len as u64;
        count_outcome(node, announce.family, reply.outcome);
        match reply.len {
            0 => self.datapath.release_forward_slot(slot),
            len => self.datapath.send_forwarded_reply(slot, path, len)?,
        }
        Ok(())
    }

    /// Returns a slot for a reply without a received datagram, or `None` if all slots are in use.
    ///
    /// Another shard received the datagram, or it was released while its scrape waited for rows.
    fn forward_slot(&mut self) -> io::Result<Option<D::Slot>> {
        if let Some(slot) = self.datapath.forward_slot() {
            return Ok(Some(slot));
        }
        // Slots of replies that the kernel has taken become free.
        self.datapath.turn(Wait::No)?;
        Ok(self.datapath.forward_slot())
    }

    /// Answers a scrape that may need rows of other shards: requests those, and keeps the reply until they arrive. If
    /// no row is missing, replies at once.
    fn scrape_shards(
        &mut self,
        node: &mut Node,
        now: Now,
        received: D::Received,
        family: Family,
        scrape: &AdmittedScrape,
    ) -> io::Result<()> {
        let Some(id) = self.pending_scrapes.next_id() else {
            return self.finish(node, received, family, UdpReply::none(Outcome::ShedScrape));
        };
        let (mut missing, mut all_sent) = (0, true);
        let mut reply = [0; SCRAPE_REPLY_LEN_MAX];
        node.scrape_requests.begin(id);
        let mut reply_len = scrape.begin_reply(&mut reply);
        let (datagram, _) = self.datapath.datagram_and_slot(&received);
        for (number, info_hash) in scrape.info_hashes(datagram.payload).enumerate() {
            reply_len += SCRAPE_ROW_LEN;
            let owner = node.owner(&info_hash);
            if owner == node.number {
                scrape.write_row(&mut reply, number, node.tracker.scrape(&info_hash));
                continue;
            }
            missing += 1;
            let Node { scrape_requests, endpoint, .. } = &mut *node;
            all_sent &= scrape_requests.add(endpoint, usize::from(owner), number as u8, info_hash);
        }
        let Node { scrape_requests, endpoint, .. } = &mut *node;
        all_sent &= scrape_requests.flush(endpoint);
        if !all_sent {
            // A reply with false zeros would be worse than none.
            return self.finish(node, received, family, UdpReply::none(Outcome::ShedMesh));
        }
        if missing == 0 {
            let (_, out) = self.datapath.datagram_and_slot(&received);
            out[..reply_len].copy_from_slice(&reply[..reply_len]);
            let reply = UdpReply { outcome: Outcome::Scraped, len: reply_len };
            return self.finish(node, received, family, reply);
        }
        let (scrape, path) = (*scrape, self.datapath.reply_path(&received));
        let pending = PendingScrape { path, family, scrape, missing, reply_len, reply };
        self.pending_scrapes.add(id, now.monotonic, pending);
        self.datapath.release(received);
        Ok(())
    }

    /// Adds rows of another shard to a scrape, and sends the reply if it is complete.
    pub(super) fn add_rows(
        &mut self,
        node: &mut Node,
        rows: &ScrapeRows<SwarmStats>,
    ) -> io::Result<()> {
        let Some(complete) = self.pending_scrapes.add_rows(rows) else { return Ok(()) };
        let Some(slot) = self.forward_slot()? else {
            count_outcome(node, complete.family, Outcome::ShedSlots);
            return Ok(());
        };
        count_outcome(node, complete.family, Outcome::Scraped);
        let reply = &complete.reply[..complete.reply_len];
        node.stats.sent_bytes += reply.len() as u64;
        self.datapath.forward_slot_bytes(&slot)[..reply.len()].copy_from_slice(reply);
        self.datapath.send_forwarded_reply(slot, &complete.path, reply.len())
    }

    /// Drops scrapes whose rows did not arrive in time.
    pub(super) fn drop_late_scrapes(&mut self, node: &mut Node, now: Seconds) {
        while let Some(late) = self.pending_scrapes.remove_late(now) {
            count_outcome(node, late.family, Outcome::ShedScrape);
        }
    }
}

/// Counts an announce by its event and by the peers of its reply.
fn count_announce(node: &mut Node, announce: &AdmittedAnnounce, reply: UdpReply) {
    let peers = reply.len.saturating_sub(ANNOUNCE_REPLY_LEN) / announce.family.compact_len();
    node.stats.count_announce(Protocol::Udp, announce.event, peers);
}

fn count_outcome(node: &mut Node, family: Family, outcome: Outcome) {
    node.stats.count(Protocol::Udp, family, outcome);
}
