//! What a node knows of another one.

use super::message::{Hello, HelloState};
use super::received_batches::{BatchOrder, ReceivedBatches};
use std::ops::Range;
use std::time::Duration;

/// Time without a hello after which a node counts as lost.
pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which an offset of clocks is computed anew.
const OFFSET_PERIOD: Duration = Duration::from_secs(60);

/// Maximum distance of the number of a batch from that in the last hello: a node sends some hundred batches a second.
const AHEAD_MAX: u64 = 10_000;

/// Time for which a node that has restarted may take to get the swarms of the other nodes. After it, its own swarms are
/// requested.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a node stores about another node.
#[derive(Debug)]
pub(super) struct RemoteNode {
    pub(super) boot: u64,
    pub(super) hello: Hello,
    pub(super) last_hello_at: Duration,
    /// Whether it takes part and a hello has arrived recently.
    pub(super) is_present: bool,
    pub(super) batches: ReceivedBatches,
    /// Changes that were missed, until a snapshot includes them.
    missed: Option<MissedChanges>,
    /// The highest number of a hello, and how many hellos in a row had lower ones.
    highest_next: u64,
    lower_hellos: u32,
    clock_offset: ClockOffset,
}

/// Changes of a node that were missed, and that it cannot send again.
#[derive(Clone, Copy, Debug)]
struct MissedChanges {
    /// The batches with lower numbers were missed.
    before: u64,
    since: Duration,
    /// Whether changes of the boot before were missed. The node itself may not have them after its restart, until it
    /// has the swarms of the other nodes.
    of_previous_boot: bool,
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
    /// Creates the state of a node after its first hello since its boot. `previous` is what was known of its boot
    /// before.
    pub(super) fn new(now: Duration, boot: u64, hello: &Hello, previous: Option<&Self>) -> Self {
        // If nothing was missed before, the batches of this boot are enough. Otherwise a snapshot has more than the
        // node could send, and has the changes of all nodes in their order.
        let has_missed_nothing = match previous {
            Some(previous) => previous.has_missed_nothing(hello),
            None => !hello.has_older_state,
        };
        let has_all = has_missed_nothing && hello.oldest <= 1;
        let next = if has_all { 1 } else { hello.next };
        let missed =
            MissedChanges { before: hello.next, since: now, of_previous_boot: previous.is_some() };
        Self {
            boot,
            hello: *hello,
            last_hello_at: now,
            is_present: false,
            batches: ReceivedBatches::new(now, next, hello.next.max(next)),
            missed: (!has_all).then_some(missed),
            highest_next: hello.next,
            lower_hellos: 0,
            clock_offset: ClockOffset::new(now, hello.sent_at),
        }
    }

    /// Returns whether nothing needs to be requested of the node after its restart: all changes that it may have stored
    /// were applied. `restarted` is its first hello after that.
    fn has_missed_nothing(&self, restarted: &Hello) -> bool {
        // After a crash it may have read changes from its files that it could not publish before.
        let has_published_all =
            self.hello.state == HelloState::Leaving || !restarted.has_older_state;
        self.missed.is_none() && self.batches.missing() == 0 && has_published_all
    }

    /// Returns whether changes were missed that only a snapshot can bring.
    pub(super) fn needs_snapshot(&self) -> bool {
        self.missed.is_some()
    }

    /// Returns whether changes are missing that were made before this node knew the other one, or that only a snapshot
    /// can bring.
    pub(super) fn lacks_swarms(&self) -> bool {
        self.needs_snapshot() || self.batches.next() <= 1 && self.batches.missing() > 0
    }

    /// Returns whether a snapshot is needed, and the node can be expected to have what was missed of it.
    pub(super) fn can_send_missed(&self, now: Duration) -> bool {
        self.is_present
            && self.missed.is_some_and(|missed| {
                !missed.of_previous_boot
                    || self.hello.is_complete
                    || now.saturating_sub(missed.since) >= COMPLETE_TIMEOUT
            })
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
    pub(super) fn record_hello(&mut self, now: Duration, hello: &Hello) -> bool {
        self.clock_offset.update(now, hello.sent_at);
        self.hello = *hello;
        self.last_hello_at = now;
        self.batches.extend(now, hello.next);
        let has_missed = self.batches.missing() > 0 && self.batches.next() < hello.oldest;
        if has_missed {
            self.give_up_before(now, hello.oldest);
        }
        has_missed
    }

    /// Converts a time of the clock of the other node to the local time.
    pub(super) fn local_time(&self, time: i64) -> i64 {
        time.saturating_add(self.clock_offset.secs)
    }

    /// Compares the number of a batch with that of the next one: see [`ReceivedBatches::accept`].
    pub(super) fn accept_batch(
        &mut self,
        now: Duration,
        sequence: u64,
        message: &[u8],
    ) -> BatchOrder {
        // No node sends as many batches between two hellos.
        let limit = self.hello.next.saturating_add(AHEAD_MAX);
        self.batches.accept(now, sequence, limit, message)
    }

    /// Returns since when batches are missing or were missed.
    pub(super) fn lag_since(&self) -> Option<Duration> {
        let missed_since = self.missed.map(|missed| missed.since);
        missed_since.into_iter().chain(self.batches.missing_since()).min()
    }

    /// Returns the numbers of the batches that are to be requested now.
    pub(super) fn take_due_request(&mut self, now: Duration) -> Option<Range<u64>> {
        if self.is_present { self.batches.take_due_request(now) } else { None }
    }

    /// Gives up batches that have been missing for too long; returns whether there were some.
    pub(super) fn give_up_late_batches(&mut self, now: Duration) -> bool {
        if !self.is_present || !self.batches.are_overdue(now) {
            return false;
        }
        // Numbers that no hello has confirmed were wrong.
        self.batches.truncate(now, self.hello.next);
        let has_missed = self.batches.missing() > 0;
        if has_missed {
            self.give_up_before(now, self.batches.missing_end());
        }
        has_missed
    }

    /// Records that a snapshot includes the batches before a number.
    pub(super) fn cover(&mut self, now: Duration, before: u64) {
        self.missed.take_if(|missed| missed.before <= before);
        if before > self.batches.next() && before <= self.batches.end() {
            self.batches.skip_to(now, before);
        }
    }

    fn give_up_before(&mut self, now: Duration, before: u64) {
        let since = self.lag_since().unwrap_or(now);
        let missed =
            self.missed.get_or_insert(MissedChanges { before, since, of_previous_boot: false });
        missed.before = missed.before.max(before);
        self.batches.skip_to(now, before);
    }
}
