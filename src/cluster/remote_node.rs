//! What a node knows of another one.

use super::message::{Hello, HelloState};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// Maximum bytes of batches that wait for an earlier one.
const WAITING_BYTES_MAX: usize = 2 << 20;

/// Bytes that a waiting batch takes beside its message, about.
const WAITING_OVERHEAD: usize = 96;

/// Time after which a node that says nothing is taken for lost.
pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which a batch must be missing before it is requested.
const GAP_DELAY: Duration = Duration::from_millis(100);

/// Time after which a request to send batches again is repeated.
const RESEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which an offset of clocks is computed anew.
const OFFSET_PERIOD: Duration = Duration::from_secs(60);

/// Number of batches that a node cannot send between two hellos.
const AHEAD_MAX: u64 = 10_000;

/// Time for which a node that has restarted may take to get the swarms of the other nodes. After it, its own swarms are
/// requested.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time after which missing batches are given up if requests bring none of them.
const GAP_TIMEOUT: Duration = Duration::from_secs(15);

/// What a node stores about another node.
#[derive(Debug)]
pub(super) struct RemoteNode {
    pub(super) boot: u64,
    pub(super) hello: Hello,
    pub(super) heard_at: Duration,
    /// Whether it takes part and a hello has arrived recently.
    pub(super) is_present: bool,
    /// All batches with lower numbers were applied or given up.
    pub(super) next: u64,
    /// Number of the batch after the last one that is known to exist.
    pub(super) end: u64,
    /// Batches that wait for an earlier one.
    waiting: BTreeMap<u64, Vec<u8>>,
    waiting_bytes: usize,
    /// Since when batches are missing.
    gap_since: Option<Duration>,
    /// Time of the first and of the last request for the batches that are missing.
    first_requested_at: Option<Duration>,
    requested_at: Option<Duration>,
    /// Batches with lower numbers were missed. `None` once a snapshot includes them.
    pub(super) missed_before: Option<u64>,
    /// Whether changes of the boot before were missed. The node itself may not have them after its restart, until it
    /// has the swarms of the other nodes.
    has_missed_previous_boot: bool,
    /// The highest number of a hello, and how many hellos in a row had lower ones.
    highest_next: u64,
    lower_hellos: u32,
    /// Since when batches are missing or were missed.
    lacking_since: Option<Duration>,
    clock_offset: ClockOffset,
}

/// How a batch that has arrived follows those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchOrder {
    /// It is the next one.
    Next,
    /// An earlier one is missing: it was kept, or will be requested again.
    Early,
    /// It was applied already.
    Repeated,
    /// Its number is impossible.
    Invalid,
}

/// The difference between the clock of another node and the local one.
///
/// It is computed from the message with the least delay in the last one to two minutes, so that delayed messages do not
/// change it and clocks that drift apart do.
#[derive(Clone, Copy, Debug)]
struct ClockOffset {
    /// Seconds to add to a time of the other clock to get the local time.
    secs: i64,
    /// Time at which the present minute began, and the smallest offset in it.
    began: Duration,
    smallest: i64,
}

impl ClockOffset {
    fn new(now: Duration, sent_at: i64) -> Self {
        let secs = (now.as_secs() as i64).saturating_sub(sent_at);
        Self { secs, began: now, smallest: secs }
    }

    fn update(&mut self, now: Duration, sent_at: i64) {
        let secs = (now.as_secs() as i64).saturating_sub(sent_at);
        self.smallest = self.smallest.min(secs);
        self.secs = self.secs.min(secs);
        if now.saturating_sub(self.began) >= OFFSET_PERIOD {
            (self.secs, self.smallest, self.began) = (self.smallest, secs, now);
        }
    }
}

impl RemoteNode {
    /// Creates the state of a node after its first hello since its boot. `had_all` says whether nothing was missed of
    /// the boot before.
    pub(super) fn new(now: Duration, boot: u64, hello: &Hello, had_all: bool) -> Self {
        // If nothing was missed before, the batches of this boot are enough. Otherwise a snapshot has more than the
        // node could send, and has the changes of all nodes in their order.
        let has_all = match had_all {
            true => hello.oldest <= 1,
            false => hello.next <= 1 && !hello.has_older_state,
        };
        let next = if has_all { 1 } else { hello.next };
        let mut node = Self {
            boot,
            hello: *hello,
            heard_at: now,
            is_present: false,
            next,
            end: hello.next.max(next),
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            gap_since: None,
            first_requested_at: None,
            requested_at: None,
            missed_before: (!has_all).then_some(hello.next),
            has_missed_previous_boot: false,
            highest_next: hello.next,
            lower_hellos: 0,
            lacking_since: None,
            clock_offset: ClockOffset::new(now, hello.sent_at),
        };
        node.update_gap(now);
        node
    }

    /// Returns whether all of its changes were applied that it may still have after a restart, whose first hello is
    /// `restarted`.
    pub(super) fn has_missed_nothing(&self, restarted: &Hello) -> bool {
        // After a crash it may have read changes from its files that it could not publish before.
        let has_published_all = self.hello.state == HelloState::Leaving
            || self.is_present && !restarted.has_older_state;
        self.missed_before.is_none() && self.next >= self.end && has_published_all
    }

    /// Records that this node has followed one of the same name of which changes were missed.
    pub(super) fn set_missed_previous_boot(&mut self) {
        self.has_missed_previous_boot = self.missed_before.is_some();
    }

    /// Returns whether a snapshot is wanted, and the node can be expected to have what was missed of it.
    pub(super) fn can_heal(&self, now: Duration) -> bool {
        let is_overdue = |since| now.saturating_sub(since) >= COMPLETE_TIMEOUT;
        self.is_present
            && self.missed_before.is_some()
            && (!self.has_missed_previous_boot
                || self.hello.is_complete
                || self.lacking_since.is_some_and(is_overdue))
    }

    /// Returns whether two hellos of the same boot have had lower numbers than one before: that one was wrong, or the
    /// node was set back to an earlier state, as a virtual machine can be. A single one may have been delayed.
    pub(super) fn was_set_back(&mut self, hello: &Hello) -> bool {
        let is_lower = hello.next < self.highest_next;
        self.lower_hellos = if is_lower { self.lower_hellos + 1 } else { 0 };
        self.highest_next = self.highest_next.max(hello.next);
        self.lower_hellos >= 2
    }

    /// Records a hello; returns whether batches were missed that the sender no longer has.
    pub(super) fn hear(&mut self, now: Duration, hello: &Hello) -> bool {
        self.clock_offset.update(now, hello.sent_at);
        self.hello = *hello;
        self.heard_at = now;
        self.end = self.end.max(hello.next);
        let has_missed = self.next < hello.oldest && self.end > self.next;
        if has_missed {
            self.give_up_before(now, hello.oldest);
        }
        self.update_gap(now);
        has_missed
    }

    /// Converts a time of the clock of the other node to the local time.
    pub(super) fn local_time(&self, time: i64) -> i64 {
        time.saturating_add(self.clock_offset.secs)
    }

    /// Compares the number of a batch with that of the next one. One that is early is kept if there is space.
    pub(super) fn accept_batch(
        &mut self,
        now: Duration,
        sequence: u64,
        message: &[u8],
    ) -> BatchOrder {
        if sequence < self.next {
            return BatchOrder::Repeated;
        }
        if sequence == self.next {
            return BatchOrder::Next;
        }
        if sequence >= self.hello.next.saturating_add(AHEAD_MAX) {
            // No node sends as many batches between two hellos.
            return BatchOrder::Invalid;
        }
        self.end = self.end.max(sequence.saturating_add(1));
        let bytes = message.len() + WAITING_OVERHEAD;
        if self.waiting_bytes + bytes <= WAITING_BYTES_MAX && !self.waiting.contains_key(&sequence)
        {
            self.waiting_bytes += bytes;
            self.waiting.insert(sequence, message.to_vec());
        }
        self.update_gap(now);
        BatchOrder::Early
    }

    /// Records that the next batch was applied; returns the one after it if it waits.
    pub(super) fn advance(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.next = self.next.saturating_add(1);
        self.end = self.end.max(self.next);
        // More of the requested batches will follow.
        self.requested_at = self.requested_at.map(|_| now);
        self.first_requested_at = None;
        self.gap_since = None;
        self.update_gap(now);
        self.take_waiting()
    }

    /// Returns the next batch if it waits.
    pub(super) fn take_waiting(&mut self) -> Option<Vec<u8>> {
        let message = self.waiting.remove(&self.next)?;
        self.waiting_bytes -= message.len() + WAITING_OVERHEAD;
        Some(message)
    }

    /// Returns since when batches are missing or were missed.
    pub(super) fn lacking_since(&self) -> Option<Duration> {
        self.lacking_since
    }

    /// Has missing batches requested again for the full time, because requests could not be sent or answered before.
    pub(super) fn restart_requests(&mut self) {
        (self.requested_at, self.first_requested_at) = (None, None);
    }

    /// Does not count the time until now against missing batches, because none are requested now.
    pub(super) fn pause_requests(&mut self) {
        self.first_requested_at = None;
    }

    /// Returns the numbers of the batches that are to be requested now, at most once in a while.
    pub(super) fn take_due_request(&mut self, now: Duration) -> Option<Range<u64>> {
        let gap_since = self.gap_since?;
        let is_due = match self.requested_at {
            None => now.saturating_sub(gap_since) >= GAP_DELAY,
            Some(at) => now.saturating_sub(at) >= RESEND_TIMEOUT,
        };
        if !is_due || !self.is_present {
            return None;
        }
        self.requested_at = Some(now);
        self.first_requested_at.get_or_insert(now);
        Some(self.next..self.gap_end())
    }

    /// Gives up batches that have been missing for too long; returns whether there were some.
    pub(super) fn give_up_late_batches(&mut self, now: Duration) -> bool {
        let is_late =
            self.first_requested_at.is_some_and(|at| now.saturating_sub(at) >= GAP_TIMEOUT);
        if !is_late || !self.is_present {
            return false;
        }
        // Numbers that no hello has confirmed were wrong.
        self.end = self.hello.next.max(self.next);
        drop(self.waiting.split_off(&self.end));
        self.count_waiting_bytes();
        if self.next == self.end {
            self.update_gap(now);
            return false;
        }
        self.give_up_before(now, self.gap_end());
        true
    }

    /// Records that a snapshot includes the batches before a number.
    pub(super) fn cover(&mut self, now: Duration, before: u64) {
        self.missed_before.take_if(|missed_before| *missed_before <= before);
        self.has_missed_previous_boot &= self.missed_before.is_some();
        if before > self.next && before <= self.end {
            self.skip_to(now, before);
        }
        self.update_gap(now);
    }

    fn give_up_before(&mut self, now: Duration, before: u64) {
        self.missed_before = Some(self.missed_before.map_or(before, |known| known.max(before)));
        self.skip_to(now, before);
    }

    fn skip_to(&mut self, now: Duration, next: u64) {
        self.next = next;
        self.end = self.end.max(next);
        self.waiting = self.waiting.split_off(&next);
        self.count_waiting_bytes();
        self.restart_requests();
        self.gap_since = None;
        self.update_gap(now);
    }

    fn count_waiting_bytes(&mut self) {
        let lengths = self.waiting.values().map(|message| message.len() + WAITING_OVERHEAD);
        self.waiting_bytes = lengths.sum();
    }

    /// Returns the number of the batch after the last one that is missing before those that wait.
    fn gap_end(&self) -> u64 {
        self.waiting.keys().next().copied().unwrap_or(self.end)
    }

    fn update_gap(&mut self, now: Duration) {
        match self.next < self.end {
            true => self.gap_since = self.gap_since.or(Some(now)),
            false => {
                self.gap_since = None;
                self.restart_requests();
            }
        }
        let is_lacking = self.gap_since.is_some() || self.missed_before.is_some();
        self.lacking_since = is_lacking.then(|| self.lacking_since.unwrap_or(now));
    }
}
