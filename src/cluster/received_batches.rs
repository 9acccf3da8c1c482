//! The batches of another node: those that were applied, those that wait for an earlier one, and missing ones.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// Maximum bytes of batches that wait for an earlier one.
const WAITING_BYTES_MAX: usize = 2 << 20;

/// Bytes that a waiting batch takes beside its message, about.
const WAITING_OVERHEAD: usize = 96;

/// Maximum number of batches that are requested, and sent again, at once. The receiver may have to keep them until an
/// earlier one arrives.
pub(super) const REQUESTED_BATCHES_MAX: u64 = 256;

/// Time for which a batch must be missing before it is requested.
const REQUEST_DELAY: Duration = Duration::from_millis(100);

/// Time after which a request to send batches again is repeated.
const RESEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which missing batches are given up if requests bring none of them.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(15);

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

/// The batches of another node since its boot, or since the snapshot before them.
#[derive(Debug)]
pub(super) struct ReceivedBatches {
    /// All batches with lower numbers were applied or given up.
    next: u64,
    /// Number of the batch after the last one that is known to exist.
    end: u64,
    /// Batches that wait for an earlier one, by their numbers.
    waiting: BTreeMap<u64, Vec<u8>>,
    waiting_bytes: usize,
    /// Since when there are missing batches.
    missing_since: Option<Duration>,
    /// Since when the next batch is missing.
    next_missing_since: Option<Duration>,
    /// Time of the first and of the last request for the next batch.
    first_requested_at: Option<Duration>,
    requested_at: Option<Duration>,
    /// Number of the batch after the last one that was requested.
    requested_end: u64,
}

impl ReceivedBatches {
    /// Creates the state before the batch `next`, of which those before `end` exist.
    pub(super) fn new(now: Duration, next: u64, end: u64) -> Self {
        let mut batches = Self {
            next,
            end,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            missing_since: None,
            next_missing_since: None,
            first_requested_at: None,
            requested_at: None,
            requested_end: 0,
        };
        batches.update_missing(now);
        batches
    }

    /// Returns the number of the batch that is applied next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Returns the number of the batch after the last one that is known to exist.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Returns how many batches were not applied yet.
    pub(super) fn missing(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }

    /// Returns since when there are missing batches.
    pub(super) fn missing_since(&self) -> Option<Duration> {
        self.missing_since
    }

    /// Records that the batches before `end` exist.
    pub(super) fn extend(&mut self, now: Duration, end: u64) {
        self.end = self.end.max(end);
        self.update_missing(now);
    }

    /// Compares the number of a batch with that of the next one. One that is early is kept if there is space; one from
    /// `limit` on is invalid.
    pub(super) fn accept(
        &mut self,
        now: Duration,
        sequence: u64,
        limit: u64,
        message: &[u8],
    ) -> BatchOrder {
        if sequence < self.next {
            return BatchOrder::Repeated;
        }
        if sequence == self.next {
            return BatchOrder::Next;
        }
        if sequence >= limit {
            return BatchOrder::Invalid;
        }
        let bytes = message.len() + WAITING_OVERHEAD;
        if self.waiting_bytes + bytes <= WAITING_BYTES_MAX && !self.waiting.contains_key(&sequence)
        {
            self.waiting_bytes += bytes;
            self.waiting.insert(sequence, message.to_vec());
        }
        self.extend(now, sequence.saturating_add(1));
        BatchOrder::Early
    }

    /// Records that the next batch was applied; returns the one after it if it waits.
    pub(super) fn advance(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.next = self.next.saturating_add(1);
        self.end = self.end.max(self.next);
        // More of the requested batches will follow. Those after them are requested without a timeout.
        let is_awaited = self.next < self.requested_end;
        self.requested_at = self.requested_at.filter(|_| is_awaited).map(|_| now);
        self.first_requested_at = None;
        self.next_missing_since = None;
        self.update_missing(now);
        self.take_waiting()
    }

    /// Returns the next batch if it waits.
    pub(super) fn take_waiting(&mut self) -> Option<Vec<u8>> {
        let message = self.waiting.remove(&self.next)?;
        self.waiting_bytes -= message.len() + WAITING_OVERHEAD;
        Some(message)
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
        let missing_since = self.next_missing_since?;
        let is_due = match self.requested_at {
            None => now.saturating_sub(missing_since) >= REQUEST_DELAY,
            Some(at) => now.saturating_sub(at) >= RESEND_TIMEOUT,
        };
        if !is_due {
            return None;
        }
        self.requested_at = Some(now);
        self.first_requested_at.get_or_insert(now);
        let end = self.missing_end().min(self.next.saturating_add(REQUESTED_BATCHES_MAX));
        self.requested_end = end;
        Some(self.next..end)
    }

    /// Returns whether requests have brought none of the missing batches for so long that they are to be given up.
    pub(super) fn are_overdue(&self, now: Duration) -> bool {
        self.first_requested_at.is_some_and(|at| now.saturating_sub(at) >= GIVE_UP_TIMEOUT)
    }

    /// Drops the batches from `end` on, which do not exist.
    pub(super) fn truncate(&mut self, now: Duration, end: u64) {
        self.end = end.max(self.next);
        drop(self.waiting.split_off(&self.end));
        self.count_waiting_bytes();
        self.update_missing(now);
    }

    /// Goes on with the batch `next`: those before it were given up, or a snapshot includes them.
    pub(super) fn skip_to(&mut self, now: Duration, next: u64) {
        self.next = next;
        self.end = self.end.max(next);
        self.waiting = self.waiting.split_off(&next);
        self.count_waiting_bytes();
        self.restart_requests();
        self.next_missing_since = None;
        self.update_missing(now);
    }

    /// Returns the number of the batch after the last one that is missing before those that wait.
    pub(super) fn missing_end(&self) -> u64 {
        self.waiting.keys().next().copied().unwrap_or(self.end)
    }

    fn count_waiting_bytes(&mut self) {
        let lengths = self.waiting.values().map(|message| message.len() + WAITING_OVERHEAD);
        self.waiting_bytes = lengths.sum();
    }

    fn update_missing(&mut self, now: Duration) {
        if self.next < self.end {
            self.missing_since.get_or_insert(now);
            self.next_missing_since.get_or_insert(now);
        } else {
            (self.missing_since, self.next_missing_since) = (None, None);
            self.restart_requests();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn missing_batches_are_requested_in_parts() {
        let mut batches = ReceivedBatches::new(at(0), 1, 1_001);
        assert_eq!(batches.take_due_request(at(50)), None);
        assert_eq!(batches.take_due_request(at(100)), Some(1..257));
        assert_eq!(batches.take_due_request(at(500)), None);
        for number in 1..257 {
            assert_eq!(batches.accept(at(200), number, u64::MAX, b""), BatchOrder::Next);
            batches.advance(at(200));
        }
        assert_eq!(batches.take_due_request(at(300)), Some(257..513));
        // Nothing arrives: the request is repeated.
        assert_eq!(batches.take_due_request(at(1_299)), None);
        assert_eq!(batches.take_due_request(at(1_300)), Some(257..513));
        assert_eq!((batches.missing(), batches.missing_since()), (744, Some(at(0))));
        assert!(!batches.are_overdue(at(15_299)) && batches.are_overdue(at(15_300)));
    }

    #[test]
    fn early_batches_wait_up_to_a_number_of_bytes() {
        let mut batches = ReceivedBatches::new(at(0), 1, 1);
        let message = vec![7; WAITING_BYTES_MAX / 2 - WAITING_OVERHEAD];
        for number in 2..5 {
            assert_eq!(batches.accept(at(0), number, 100, &message), BatchOrder::Early);
        }
        assert_eq!(batches.accept(at(0), 100, 100, &message), BatchOrder::Invalid);
        assert_eq!(batches.take_due_request(at(100)), Some(1..2));
        let mut waiting = batches.advance(at(100));
        assert_eq!(waiting.as_ref(), Some(&message));
        for _ in 0..2 {
            waiting = batches.advance(at(100));
        }
        // The fourth one found no space, and is requested again.
        assert_eq!((waiting, batches.next(), batches.missing()), (None, 4, 1));
        assert_eq!(batches.waiting_bytes, 0);
        assert_eq!(batches.take_due_request(at(200)), Some(4..5));
        batches.skip_to(at(200), 5);
        assert_eq!((batches.missing(), batches.missing_since()), (0, None));
    }
}
