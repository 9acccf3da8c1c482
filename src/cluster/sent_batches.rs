//! The last batches that a node has sent, so that it can send them again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Time for which a batch is kept.
const RETENTION_TIME: Duration = Duration::from_secs(60);

/// Maximum bytes of all batches that are kept.
const RETAINED_BYTES_MAX: usize = 64 << 20;

/// The last batches, in the order of their numbers.
#[derive(Debug)]
pub(super) struct SentBatches {
    /// Number of the next batch.
    next: u64,
    /// Time at which each batch was added, and its message.
    batches: VecDeque<(Duration, Arc<[u8]>)>,
    bytes: usize,
}

impl SentBatches {
    pub(super) fn new() -> Self {
        Self { next: 1, batches: VecDeque::new(), bytes: 0 }
    }

    /// Returns the number of the next batch.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Returns the number of the oldest batch that is kept, or of the next one if none is.
    pub(super) fn oldest(&self) -> u64 {
        self.next - self.batches.len() as u64
    }

    /// Adds the message of the next batch, and drops batches that are too old or too many.
    pub(super) fn push(&mut self, now: Duration, message: Arc<[u8]>) {
        self.next += 1;
        self.bytes += message.len();
        self.batches.push_back((now, message));
        while self.bytes > RETAINED_BYTES_MAX {
            self.drop_oldest();
        }
        self.expire(now);
    }

    /// Drops batches that are too old.
    pub(super) fn expire(&mut self, now: Duration) {
        while self.batches.front().is_some_and(|(at, _)| now.saturating_sub(*at) > RETENTION_TIME) {
            self.drop_oldest();
        }
    }

    /// Returns the messages of the batches with these numbers that are kept.
    pub(super) fn get(&self, numbers: Range<u64>) -> impl Iterator<Item = &Arc<[u8]>> {
        let oldest = self.oldest();
        let start = numbers.start.clamp(oldest, self.next) - oldest;
        let end = numbers.end.clamp(oldest, self.next) - oldest;
        // At most the number of batches in memory.
        let range = start as usize..end.max(start) as usize;
        self.batches.range(range).map(|(_, message)| message)
    }

    fn drop_oldest(&mut self) {
        if let Some((_, message)) = self.batches.pop_front() {
            self.bytes -= message.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_kept_for_a_minute_and_up_to_a_number_of_bytes() {
        let seconds = Duration::from_secs;
        let mut sent_batches = SentBatches::new();
        for second in 0..100_u64 {
            sent_batches.push(seconds(second), vec![second as u8].into());
        }
        assert_eq!((sent_batches.oldest(), sent_batches.next()), (40, 101));
        let sent: Vec<u8> = sent_batches.get(1..43).map(|message| message[0]).collect();
        assert_eq!(sent, [39, 40, 41]);
        assert_eq!(sent_batches.get(99..u64::MAX).count(), 2);
        assert_eq!(sent_batches.get(Range { start: 50, end: 40 }).count(), 0);
        sent_batches.push(seconds(100), vec![0; RETAINED_BYTES_MAX].into());
        assert_eq!((sent_batches.oldest(), sent_batches.bytes), (101, RETAINED_BYTES_MAX));
        sent_batches.expire(seconds(200));
        assert_eq!((sent_batches.oldest(), sent_batches.bytes), (102, 0));
    }
}
