//! Snapshots between nodes: the one that a node sends, and the one that it receives.

use super::message::BatchPosition;
use std::collections::VecDeque;
use std::time::Duration;

/// Number of blocks that may be on their way.
pub(super) const BLOCKS_IN_FLIGHT: u32 = 4;

/// Maximum bytes that are sent in a second.
const BYTES_PER_SEC: i64 = 16 << 20;

/// Maximum bytes that are sent at once: those of a fifth of a second.
const BURST_BYTES: i64 = BYTES_PER_SEC / 5;

/// Time without a request after which a node stops sending a snapshot.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time for which a node sends a snapshot. Meanwhile it writes no snapshot to its disk.
pub(super) const TIME_MAX: Duration = Duration::from_secs(600);

/// Time without a block after which a request is repeated.
const BLOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// Time without a block after which a node stops waiting for a snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// A snapshot that is being sent.
#[derive(Debug)]
pub(super) struct OutgoingSnapshot {
    /// The node that asked for it.
    pub(super) to: String,
    pub(super) session: u64,
    /// What the first block says that the snapshot includes.
    pub(super) covered: Vec<BatchPosition>,
    requested_at: Duration,
    /// The blocks that were made and perhaps have not arrived; the first one has the number `first`.
    blocks: VecDeque<Vec<u8>>,
    first: u32,
    /// Number of the first block that was not sent since the last request.
    next_to_send: u32,
    /// Number of the block after the last one that may be sent.
    end: u32,
    /// Whether the last block was made.
    is_complete: bool,
    began: Duration,
    /// Bytes that may be sent now, negative after a larger block, and the time up to which they were computed.
    budget_bytes: i64,
    budget_at: Duration,
}

impl OutgoingSnapshot {
    pub(super) fn new(
        now: Duration,
        to: String,
        session: u64,
        covered: Vec<BatchPosition>,
    ) -> Self {
        Self {
            to,
            session,
            covered,
            requested_at: now,
            blocks: VecDeque::new(),
            first: 0,
            next_to_send: 0,
            end: 0,
            is_complete: false,
            began: now,
            budget_bytes: BURST_BYTES,
            budget_at: now,
        }
    }

    /// Records a request: the blocks before `received` have arrived, those before `end` may be sent.
    pub(super) fn request(&mut self, now: Duration, received: u32, end: u32) {
        let is_repeated = self.first == received && self.next_to_send > received;
        self.requested_at = now;
        while self.first < received && self.blocks.pop_front().is_some() {
            self.first += 1;
        }
        if is_repeated {
            self.next_to_send = self.first;
        }
        self.next_to_send = self.next_to_send.max(self.first);
        self.end = end.min(self.first.saturating_add(BLOCKS_IN_FLIGHT));
    }

    /// Returns whether another block is to be made.
    pub(super) fn wants_block(&self) -> bool {
        !self.is_complete && self.blocks.len() < BLOCKS_IN_FLIGHT as usize
    }

    /// Returns the number of the block that is made next.
    pub(super) fn next_block(&self) -> u32 {
        self.first + self.blocks.len() as u32
    }

    /// Adds the message of the next block.
    pub(super) fn add(&mut self, message: Vec<u8>, is_last: bool) {
        self.blocks.push_back(message);
        self.is_complete = is_last;
    }

    /// Returns the message of a block that may be sent now.
    pub(super) fn next_message(&mut self, now: Duration) -> Option<Vec<u8>> {
        let elapsed_ms = now.saturating_sub(self.budget_at).as_millis() as u32;
        let earned = BYTES_PER_SEC * i64::from(elapsed_ms) / 1_000;
        self.budget_bytes = (self.budget_bytes + earned).min(BURST_BYTES);
        self.budget_at += Duration::from_millis(elapsed_ms.into());
        if self.next_to_send >= self.end || self.budget_bytes <= 0 {
            return None;
        }
        let message = self.blocks.get((self.next_to_send - self.first) as usize)?;
        self.next_to_send += 1;
        self.budget_bytes -= message.len() as i64;
        Some(message.clone())
    }

    /// Returns whether the receiver has everything.
    pub(super) fn is_received(&self) -> bool {
        self.is_complete && self.blocks.is_empty()
    }

    /// Returns whether the receiver has requested nothing for too long.
    pub(super) fn has_failed(&self, now: Duration) -> bool {
        now.saturating_sub(self.requested_at) >= REQUEST_TIMEOUT
    }

    /// Returns whether the snapshot has taken [`TIME_MAX`].
    pub(super) fn is_too_slow(&self, now: Duration) -> bool {
        now.saturating_sub(self.began) >= TIME_MAX
    }
}

/// A snapshot that is being received.
#[derive(Debug)]
pub(super) struct IncomingSnapshot {
    /// The node that sends it.
    pub(super) from: String,
    pub(super) session: u64,
    /// Number of the next block.
    pub(super) next: u32,
    /// Number of the block after the last one that was requested.
    pub(super) end: u32,
    pub(super) began: Duration,
    /// Time of the last block, or of the first request.
    advanced_at: Duration,
    requested_at: Duration,
    pub(super) covered: Vec<BatchPosition>,
    pub(super) records: u64,
}

impl IncomingSnapshot {
    pub(super) fn new(now: Duration, from: String, session: u64) -> Self {
        Self {
            from,
            session,
            next: 0,
            end: 0,
            began: now,
            advanced_at: now,
            requested_at: now,
            covered: Vec::new(),
            records: 0,
        }
    }

    /// Records that the next block has arrived.
    pub(super) fn advance(&mut self, now: Duration) {
        self.next += 1;
        (self.advanced_at, self.requested_at) = (now, now);
    }

    /// Records that no block is expected now.
    pub(super) fn pause(&mut self, now: Duration) {
        self.advanced_at = now;
    }

    /// Returns whether the request is to be repeated now, at most once in [`BLOCK_TIMEOUT`].
    pub(super) fn take_due_request(&mut self, now: Duration) -> bool {
        let is_due = now.saturating_sub(self.requested_at) >= BLOCK_TIMEOUT;
        if is_due {
            self.requested_at = now;
        }
        is_due
    }

    /// Returns whether no block has arrived for too long.
    pub(super) fn has_failed(&self, now: Duration) -> bool {
        now.saturating_sub(self.advanced_at) >= SNAPSHOT_TIMEOUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_sent_with_a_limited_rate() {
        let mut now = Duration::ZERO;
        let mut snapshot = OutgoingSnapshot::new(now, "b".to_owned(), 1, Vec::new());
        let (mut sent, mut blocks) = (0, 0);
        // The receiver requests more at once, in steps of a batch interval.
        for _ in 0..100 {
            now += Duration::from_millis(20);
            snapshot.request(now, blocks, blocks + BLOCKS_IN_FLIGHT);
            while snapshot.wants_block() {
                snapshot.add(vec![0; 270_000], false);
            }
            while let Some(message) = snapshot.next_message(now) {
                (sent, blocks) = (sent + message.len() as i64, blocks + 1);
            }
        }
        let permitted = 2 * BYTES_PER_SEC + BURST_BYTES;
        assert!((2 * BYTES_PER_SEC - 540_000..=permitted + 270_000).contains(&sent), "{sent}");
    }
}
