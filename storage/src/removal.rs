//! Removal of peers and torrents in bounded steps, as used by the sweep, eviction and changes of policy.

use crate::family_peers::FamilyPeers;
use crate::placement::{PeerStores, RecordWidth};
use crate::record::{V4, V6};
use crate::table::Table;
use crate::types::{Family, InfoHash};
use crate::work_counter;

/// Work of one call: about 50 microseconds of cache misses, or of removing what was found.
pub(crate) const WORK_PER_CALL: WorkBudget =
    WorkBudget { entries: 512, records: 2048, slots: 2048 };

/// Records by which a removal counts in addition to its visit: an index entry is removed and others are moved.
const REMOVAL_RECORDS: usize = 16;

/// Work that a call may still do. The last step may exceed it by one segment of an index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkBudget {
    pub(crate) entries: usize,
    records: usize,
    slots: usize,
}

impl WorkBudget {
    pub(crate) fn is_spent(self) -> bool {
        self.entries == 0 || self.records == 0 || self.slots == 0
    }

    /// Returns the number of records that may still be visited.
    pub(crate) fn records(self) -> usize {
        self.records
    }

    /// Subtracts records that were visited.
    pub(crate) fn spend_records(&mut self, count: usize) {
        self.records = self.records.saturating_sub(count);
    }
}

/// Which of the visited peers are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Peers that have not announced for their lifetime.
    Expired,
    /// Peers of sources with more than this number of peers.
    AboveSourceLimit(u32),
    /// All peers, and the torrent.
    All,
}

/// Position within an entry: the family, and the number of its records that are still to be visited.
pub(crate) type RecordCursor = (Family, usize);

/// Position of a walk over the table that removes torrents or peers.
#[derive(Clone, Copy, Debug)]
pub struct TableCursor {
    /// Number of entries that are still to be visited.
    left: usize,
    /// The torrent behind those, if a part of its records is still to be visited.
    inside: Option<(InfoHash, RecordCursor)>,
}

impl Default for TableCursor {
    /// Returns the start of a walk.
    fn default() -> Self {
        Self { left: usize::MAX, inside: None }
    }
}

impl Table {
    /// Visits entries from the last to the first and removes from each what `removal` returns, within a budget.
    /// Returns whether entries are left.
    pub(crate) fn walk(
        &mut self,
        cursor: &mut TableCursor,
        budget: &mut WorkBudget,
        removal: impl Fn(&Self, u32) -> Option<Removal>,
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
            // The sweep may have moved another torrent to this position since the last call.
            let inside = cursor.inside.take().filter(|(hash, _)| *hash == info_hash);
            if let Some(removal) = removal(self, position) {
                let inside = inside.map(|(_, records)| records);
                let left = self.visit(position, inside, budget, removal);
                cursor.inside = left.map(|records| (info_hash, records));
            }
        }
        true
    }

    /// Removes from an entry what `removal` says, starting at `inside`. Returns where to continue, or `None` when all
    /// records were visited.
    pub(crate) fn visit(
        &mut self,
        position: u32,
        inside: Option<RecordCursor>,
        budget: &mut WorkBudget,
        removal: Removal,
    ) -> Option<RecordCursor> {
        let (mut family, mut left) = inside.unwrap_or((Family::V4, usize::MAX));
        let before = self.store.entry(position).peers();
        if family == Family::V4 {
            left = self.visit_records::<V4>(position, left, budget, removal);
            if left == 0 {
                (family, left) = (Family::V6, usize::MAX);
            }
        }
        if family == Family::V6 && !budget.is_spent() {
            left = self.visit_records::<V6>(position, left, budget, removal);
        }
        let after = self.store.entry(position).peers();
        if after < before {
            self.after_removal(position);
        }
        if left == 0 && after == 0 {
            let visited = match removal {
                Removal::Expired => self.remove_torrent_if_expired(position),
                // Eviction, a purge and a removal by the operator do not keep counts of completed downloads.
                Removal::AboveSourceLimit(_) | Removal::All => self.remove_torrent(position),
            };
            budget.slots = budget.slots.saturating_sub(visited);
            budget.records = budget.records.saturating_sub(REMOVAL_RECORDS);
        }
        (left > 0).then_some((family, left))
    }

    /// Visits records of one family from `from` downwards; returns how many are left.
    fn visit_records<const N: usize>(
        &mut self,
        position: u32,
        from: usize,
        budget: &mut WorkBudget,
        removal: Removal,
    ) -> usize
    where
        PeerStores: RecordWidth<N>,
    {
        let context = &self.context;
        let before = self.store.entry(position).roles(<PeerStores as RecordWidth<N>>::FAMILY);
        let lengths = self.prefix_lengths(<PeerStores as RecordWidth<N>>::FAMILY);
        let left = self.store.change(position, |peers: &mut FamilyPeers<'_, N>| {
            peers.drop_other_subnet_index(lengths);
            let mut left = from.min(peers.roles.len());
            while left > 0 && budget.records > 0 && budget.slots > 0 {
                left -= 1;
                work_counter::count_records(N);
                budget.records -= 1;
                let is_removed = match removal {
                    Removal::Expired => context.is_expired(peers.at(left)),
                    Removal::AboveSourceLimit(limit) => peers.source_count(left) > limit,
                    Removal::All => true,
                };
                if is_removed {
                    peers.expired += u32::from(removal == Removal::Expired);
                    let visited = peers.remove(left, context);
                    budget.records = budget.records.saturating_sub(REMOVAL_RECORDS);
                    budget.slots = budget.slots.saturating_sub(visited);
                }
            }
            left
        });
        self.count_change(before, position, <PeerStores as RecordWidth<N>>::FAMILY);
        left
    }
}
