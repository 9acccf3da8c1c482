//! Expiry: a hand that goes round the table once each quarter of a lifetime, a little at a time.
//!
//! It goes downwards. What fills a hole comes from the end, where the hand has been, and is visited once
//! more at worst; nothing unvisited is moved behind it unchecked.

use crate::part::{Part, V4, V6};
use crate::room::{Homes, Width};
use crate::swarms::Swarms;
use crate::time::Seconds;
use crate::types::{Family, InfoHash};

/// What one call does, at most: some 50 microseconds of cache misses, or as long for removing what it finds
pub(crate) const BUDGET: Budget = Budget { entries: 512, records: 2048, slots: 2048 };

/// What a removal costs beside a look: an index entry goes, others move
const REMOVAL: usize = 16;

/// Work a call may still do; the last step may overdraw it by one segment of the index
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    entries: usize,
    records: usize,
    slots: usize,
}

impl Budget {
    fn is_spent(self) -> bool {
        self.entries == 0 || self.records == 0 || self.slots == 0
    }
}

/// Passes in a lifetime
const PASSES: u64 = 4;

/// Where the hand is
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hand {
    /// Entries below this position are still to be visited in this pass
    entry: usize,
    /// In the entry above, the family and the records below this position are still to be visited
    inside: Option<(Family, usize)>,
    /// Entries there were when the pass began
    entries: usize,
    began: Seconds,
    /// When the last complete pass began: everything has been visited since
    complete_since: Seconds,
}

impl Hand {
    fn begin(&mut self, now: Seconds, entries: usize) {
        self.complete_since = self.began;
        *self = Self { entry: entries, inside: None, entries, began: now, ..*self };
    }

    /// Everything has just been visited
    pub(crate) fn caught_up(&mut self, now: Seconds) {
        *self = Self { began: now, complete_since: now, ..Self::default() };
    }

    /// Whether the hand is where it should be by now
    fn is_on_time(&self, now: Seconds, period: u64) -> bool {
        let elapsed = now.0.saturating_sub(self.began.0).min(period);
        let left = self.entries as u64 * (period - elapsed) / period;
        self.entry as u64 <= left && self.inside.is_none()
    }
}

/// Which of the peers that are visited are removed
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Those that are too old
    ByAge,
    /// Those whose source has more peers than this
    AboveLimit(u32),
    /// All, and the torrent
    Condemned,
}

/// Position of a walk over the table that removes torrents or peers.
#[derive(Clone, Copy, Debug)]
pub struct TableCursor {
    /// Entries below this position are still to be looked at
    left: usize,
    /// In the entry above, the torrent, and what is still to be visited of it
    inside: Option<(InfoHash, Family, usize)>,
}

impl Default for TableCursor {
    /// At the beginning
    fn default() -> Self {
        Self { left: usize::MAX, inside: None }
    }
}

impl Swarms {
    /// Removes what has expired, and what memory is too short for, a bounded bit at a time; true if it should be called
    /// again at once
    ///
    /// To be called at least each second and after each batch, idle or loaded.
    pub fn sweep(&mut self, now: Seconds) -> bool {
        self.advance(now);
        let period = u64::from(self.settings.peer_lifetime_secs / PASSES as u32).max(1);
        let finished = self.hand.entry == 0 && self.hand.inside.is_none();
        if finished && now.0 >= self.hand.began.0 + period {
            self.hand.begin(now, self.store.entries.len());
        }
        let mut budget = BUDGET;
        while !budget.is_spent() && !self.hand.is_on_time(now, period) {
            self.sweep_step(&mut budget);
        }
        let evicting = self.evict();
        evicting || !self.hand.is_on_time(now, period)
    }

    /// Whether a record may have been missed for so long that its age can no longer be told
    pub(crate) fn is_starved(&self, now: Seconds) -> bool {
        now.0.saturating_sub(self.hand.complete_since.0) >= self.rules.ticks.ambiguous_secs()
    }

    /// Visits everything at once
    ///
    /// The one call without a bound: the process was stopped for half an hour and more, and clients have
    /// long gone elsewhere.
    pub(crate) fn sweep_all(&mut self) {
        self.hand.begin(self.now, self.store.entries.len());
        while self.hand.entry > 0 || self.hand.inside.is_some() {
            self.sweep_step(&mut BUDGET.clone());
        }
        self.hand.complete_since = self.now;
    }

    /// Visits the next entry, or a stretch of a large one
    fn sweep_step(&mut self, budget: &mut Budget) {
        let entries = self.store.entries.len();
        budget.entries -= 1;
        if self.hand.inside.is_none() {
            self.hand.entry = self.hand.entry.min(entries).saturating_sub(1);
        }
        if entries == 0 {
            return;
        }
        let position = self.hand.entry.min(entries - 1) as u32;
        let inside = self.hand.inside.take();
        self.hand.inside = self.visit(position, inside, budget, Fate::ByAge);
    }

    /// Removes what is due of an entry, from this family and record downwards; returns how far it came unless it is
    /// done
    fn visit(
        &mut self,
        position: u32,
        inside: Option<(Family, usize)>,
        budget: &mut Budget,
        fate: Fate,
    ) -> Option<(Family, usize)> {
        let (mut family, mut left) = inside.unwrap_or((Family::V4, usize::MAX));
        let before = self.store.entry(position).peers();
        if family == Family::V4 {
            left = self.sweep_part::<V4>(position, left, budget, fate);
            if left == 0 {
                (family, left) = (Family::V6, usize::MAX);
            }
        }
        if family == Family::V6 && !budget.is_spent() {
            left = self.sweep_part::<V6>(position, left, budget, fate);
        }
        let after = self.store.entry(position).peers();
        if after < before {
            self.settle(position);
        }
        if left == 0 && after == 0 {
            let visited = match fate {
                Fate::ByAge => self.remove_if_forgotten(position),
                // While memory is short, counts of downloads are not kept.
                Fate::AboveLimit(_) | Fate::Condemned => self.remove_entry(position),
            };
            budget.slots = budget.slots.saturating_sub(visited);
            budget.records = budget.records.saturating_sub(REMOVAL);
        }
        (left > 0).then_some((family, left))
    }

    /// Removes torrents that are not served any more, a bounded bit at a time; true if it should be called again
    pub fn purge(&mut self, cursor: &mut TableCursor, serves: impl Fn(&InfoHash) -> bool) -> bool {
        self.walk(cursor, &mut BUDGET.clone(), |swarms, position| {
            let is_served = serves(&swarms.store.entry(position).info_hash());
            (!is_served).then_some(Fate::Condemned)
        })
    }

    /// Visits entries downwards and does to each what `fate` says, within a budget; true if there are more
    pub(crate) fn walk(
        &mut self,
        cursor: &mut TableCursor,
        budget: &mut Budget,
        fate: impl Fn(&Self, u32) -> Option<Fate>,
    ) -> bool {
        while !budget.is_spent() {
            let entries = self.store.entries.len();
            if cursor.inside.is_none() {
                cursor.left = cursor.left.min(entries);
                let Some(next) = cursor.left.checked_sub(1) else { return false };
                cursor.left = next;
                budget.entries -= 1;
            }
            if cursor.left >= entries {
                cursor.inside = None;
                continue;
            }
            let position = cursor.left as u32;
            let info_hash = self.store.entry(position).info_hash();
            // Since the last call the sweep may have moved another torrent to this place.
            let inside = cursor.inside.take().filter(|(hash, ..)| *hash == info_hash);
            if let Some(fate) = fate(self, position) {
                let inside = inside.map(|(_, family, left)| (family, left));
                let left = self.visit(position, inside, budget, fate);
                cursor.inside = left.map(|(family, left)| (info_hash, family, left));
            }
        }
        true
    }

    /// Visits records of one family downwards; returns how many are left
    fn sweep_part<const N: usize>(
        &mut self,
        position: u32,
        from: usize,
        budget: &mut Budget,
        fate: Fate,
    ) -> usize
    where
        Homes: Width<N>,
    {
        let rules = self.rules_for::<N>();
        let before = self.store.entry(position).roles(<Homes as Width<N>>::FAMILY);
        let lengths = self.lengths(<Homes as Width<N>>::FAMILY);
        let left = self.store.change(position, |part: &mut Part<'_, N>| {
            part.keep_neighbours(lengths);
            let mut left = from.min(part.roles.len());
            while left > 0 && budget.records > 0 && budget.slots > 0 {
                left -= 1;
                crate::effort::records(N);
                budget.records -= 1;
                let is_removed = match fate {
                    Fate::ByAge => rules.is_expired(part.at(left)),
                    Fate::AboveLimit(limit) => part.source_count(left) > limit,
                    Fate::Condemned => true,
                };
                if is_removed {
                    let visited = part.remove(left, &rules);
                    budget.records = budget.records.saturating_sub(REMOVAL);
                    budget.slots = budget.slots.saturating_sub(visited);
                }
            }
            left
        });
        self.count_change(before, position, <Homes as Width<N>>::FAMILY);
        left
    }
}
