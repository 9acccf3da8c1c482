//! Expiry: a pass over the table in each quarter of a peer lifetime, a few entries at a time.
//!
//! A pass visits entries from the last to the first. A gap is filled with the last entry, which was visited already: an
//! entry may be visited twice, but none is skipped.

use crate::removal::{RecordCursor, Removal, WORK_PER_CALL, WorkBudget};
use crate::table::Table;
use crate::time::Seconds;

/// Passes in a peer lifetime.
const PASSES_PER_LIFETIME: u64 = 4;

/// Position of the sweep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SweepCursor {
    /// Number of entries that are still to be visited in this pass.
    left: usize,
    /// Position within the entry at which to continue.
    inside: Option<RecordCursor>,
    /// Number of entries when the pass began.
    entries: usize,
    /// Time at which the pass began.
    began: Seconds,
    /// Time at which the last complete pass began: every entry was visited since.
    complete_since: Seconds,
}

impl SweepCursor {
    /// Visits as many entries as are due at this time, within the work of one call. Returns whether more are due.
    pub(crate) fn run(&mut self, table: &mut Table, now: Seconds) -> bool {
        let period =
            u64::from(table.settings.peer_lifetime_secs / PASSES_PER_LIFETIME as u32).max(1);
        let finished = self.left == 0 && self.inside.is_none();
        if finished && now.0 >= self.began.0 + period {
            self.begin_pass(now, table.store.entries.len());
        }
        let mut budget = WORK_PER_CALL;
        while !budget.is_spent() && !self.is_on_time(now, period) {
            self.visit_next(table, &mut budget);
        }
        !self.is_on_time(now, period)
    }

    /// Returns whether the last complete pass began so long ago that the one-byte age of a record may be ambiguous.
    pub(crate) fn is_overdue(&self, table: &Table, now: Seconds) -> bool {
        now.0.saturating_sub(self.complete_since.0) >= table.context.ticks.unambiguous_secs()
    }

    /// Sets the time of the table to `now` after a pause so long that one-byte ages would wrap around.
    ///
    /// Every entry is visited at the current time of the table, at or before which all peers have announced. More
    /// visits follow, close enough to each other that no age wraps around, until every peer has expired, and then
    /// until all counts of completed downloads have. No visit uses a time after `now`. These are the only passes
    /// without a bound on their work.
    pub(crate) fn catch_up(&mut self, table: &mut Table, now: Seconds) {
        self.visit_all(table);
        for ticks in [table.context.ticks, table.idle_ticks] {
            let end = now.min(Seconds(table.now.0 + ticks.expiry_secs()));
            while table.now < end {
                table.set_time(end.min(Seconds(table.now.0 + ticks.unambiguous_secs())));
                self.visit_all(table);
            }
        }
        table.set_time(now);
        *self = Self { began: now, complete_since: now, ..Self::default() };
    }

    fn visit_all(&mut self, table: &mut Table) {
        self.begin_pass(table.now, table.store.entries.len());
        while self.left > 0 || self.inside.is_some() {
            self.visit_next(table, &mut WORK_PER_CALL.clone());
        }
        self.complete_since = table.now;
    }

    fn begin_pass(&mut self, now: Seconds, entries: usize) {
        self.complete_since = self.began;
        *self = Self { left: entries, inside: None, entries, began: now, ..*self };
    }

    /// Returns whether the pass is where it should be at this time.
    fn is_on_time(&self, now: Seconds, period: u64) -> bool {
        let elapsed = now.0.saturating_sub(self.began.0).min(period);
        let left = self.entries as u64 * (period - elapsed) / period;
        self.left as u64 <= left && self.inside.is_none()
    }

    /// Visits the next entry, or a part of its records.
    fn visit_next(&mut self, table: &mut Table, budget: &mut WorkBudget) {
        let entries = table.store.entries.len();
        budget.entries -= 1;
        if self.inside.is_none() {
            self.left = self.left.min(entries).saturating_sub(1);
        }
        if entries == 0 {
            return;
        }
        let position = self.left.min(entries - 1) as u32;
        let inside = self.inside.take();
        self.inside = table.visit(position, inside, budget, Removal::Expired);
    }
}
