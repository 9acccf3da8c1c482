//! The queue by which a shard passes the changes of its swarms to the thread of the cluster.

use crate::tracker::Tracker;
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tsubame_storage::StateRecord;

/// Number of changes that a queue can hold: those of 20 ms at 800,000 changes a second.
const QUEUED_MAX: usize = 16_384;

/// Maximum number of changes that a shard keeps until the end of a step.
const CHANGES_PER_STEP: usize = 8_192;

/// The shard's end of the queue.
#[derive(Debug)]
pub struct PublicationSender {
    queue: Producer<StateRecord>,
    /// Number of changes that were lost because the queue was full.
    lost: Arc<AtomicU64>,
}

/// The cluster's end of the queue.
#[derive(Debug)]
pub struct PublicationReceiver {
    queue: Consumer<StateRecord>,
    lost: Arc<AtomicU64>,
}

/// Creates a queue.
pub fn publication() -> (PublicationSender, PublicationReceiver) {
    let (producer, consumer) = RingBuffer::new(QUEUED_MAX);
    let lost = Arc::<AtomicU64>::default();
    let sender = PublicationSender { queue: producer, lost: lost.clone() };
    (sender, PublicationReceiver { queue: consumer, lost })
}

/// Has a tracker keep changes for a queue. To be called before swarms are imported: the records of peers say when they
/// were published.
pub(crate) fn begin_publication(tracker: &mut Tracker) {
    tracker.swarms_mut().begin_publication(CHANGES_PER_STEP);
}

impl PublicationSender {
    /// Moves the changes of a tracker to the queue. What does not fit waits for the next step.
    pub(super) fn send(&mut self, tracker: &mut Tracker) {
        let Self { queue, lost } = self;
        for change in tracker.swarms_mut().take_published(queue.slots()) {
            // There are enough slots.
            let _ = queue.push(change);
        }
        lost.store(tracker.swarms().lost_published(), Ordering::Relaxed);
    }
}

impl PublicationReceiver {
    /// Appends the changes that are in the queue.
    pub fn receive(&mut self, changes: &mut Vec<StateRecord>) {
        let count = self.queue.slots();
        changes.extend((0..count).map_while(|_| self.queue.pop().ok()));
    }

    /// Returns the number of changes that the shard has lost because neither this queue nor its own list had space.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
