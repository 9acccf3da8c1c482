//! Export: the contents of a table as records, in bounded steps, while announces change it.
//!
//! The walk visits entries from the last to the first, and the records of a large swarm likewise. A torrent or a peer
//! that is stored during the whole walk is exported at least once. What is moved from a part that has not been visited
//! to one that has been is kept ([`MovedRecords`]) and exported in the next step.

use crate::announce::{SwarmAnnounce, SwarmChange};
use crate::change_queue::ChangeQueue;
use crate::family_peers::{FamilyPeers, RecordStorage};
use crate::moved_records::MovedRecords;
use crate::placement::{PeerStores, RecordWidth};
use crate::record::{RecordContext, V4, V6, compact, flags, role_of};
use crate::removal::{RecordCursor, WORK_PER_CALL, WorkBudget};
use crate::state_record::{PeerRecord, StateRecord, TorrentRecord};
use crate::table::Table;
use crate::types::{Endpoint, Family, InfoHash};
use crate::work_counter;

/// Maximum number of changes that a step exports.
const CHANGES_PER_STEP: usize = 1024;

/// Progress of an export.
#[derive(Debug)]
pub(crate) struct Export {
    /// Number of entries that are still to be visited.
    left: usize,
    /// The torrent behind those, if a part of its peers is still to be visited.
    inside: Option<(InfoHash, RecordCursor)>,
    changes: Option<ChangeQueue>,
}

/// What is left of an export after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportProgress {
    /// Torrents are left.
    Torrents,
    /// All torrents were exported; changes are left.
    Changes,
    /// Everything was exported.
    Complete,
}

impl Export {
    /// Starts an export of all torrents. Changes by announces are exported, too, if `changes_max` is not zero: up to
    /// that number are kept between two steps.
    pub(crate) fn begin(table: &Table, changes_max: usize) -> Self {
        let changes = (changes_max > 0).then(|| ChangeQueue::new(changes_max));
        Self { left: table.store.entries.len(), inside: None, changes }
    }

    /// Returns the number of changes that were lost.
    pub(crate) fn lost_changes(&self) -> u64 {
        self.changes.as_ref().map_or(0, ChangeQueue::lost)
    }

    /// Keeps the change that an announce made.
    pub(crate) fn record(
        &mut self,
        announce: &SwarmAnnounce,
        change: SwarmChange,
        announced_at: i64,
    ) {
        if let Some(queue) = &mut self.changes {
            queue.push(announce, change, announced_at);
        }
    }

    /// Appends changes, then torrents with their peers, to `records`, in a bounded step.
    pub(crate) fn step(
        &mut self,
        table: &mut Table,
        records: &mut Vec<StateRecord>,
    ) -> ExportProgress {
        if let Some(queue) = &mut self.changes {
            records.extend(queue.take(CHANGES_PER_STEP));
            if !queue.is_empty() {
                return self.progress();
            }
        }
        let mut budget = WORK_PER_CALL;
        while !budget.is_spent() && self.progress() == ExportProgress::Torrents {
            self.visit_next(table, &mut budget, records);
        }
        self.progress()
    }

    fn progress(&self) -> ExportProgress {
        if self.left > 0 || self.inside.is_some() {
            ExportProgress::Torrents
        } else if self.changes.as_ref().is_some_and(|queue| !queue.is_empty()) {
            ExportProgress::Changes
        } else {
            ExportProgress::Complete
        }
    }

    /// Has the table keep no more records for this export.
    pub(crate) fn end(self, table: &mut Table) {
        self.drop_moved(table);
    }

    /// Has the torrent of which a part was visited keep no more records.
    fn drop_moved(&self, table: &mut Table) {
        let Some((info_hash, _)) = self.inside else { return };
        let Some(position) = table.find(&table.prefetch_index(&info_hash), &info_hash) else {
            return;
        };
        drop_moved(table.store.family_peers::<V4>(position));
        drop_moved(table.store.family_peers::<V6>(position));
    }

    /// Exports the next torrent, or a part of its peers.
    fn visit_next(
        &mut self,
        table: &mut Table,
        budget: &mut WorkBudget,
        records: &mut Vec<StateRecord>,
    ) {
        let entries = table.store.entries.len();
        if self.inside.is_none() {
            self.left = self.left.min(entries).saturating_sub(1);
            budget.entries -= 1;
        }
        // The torrent of `inside` may have been removed. Then another one is at its position, which was exported
        // already, or none.
        if self.left >= entries {
            self.drop_moved(table);
            self.inside = None;
            return;
        }
        let position = self.left as u32;
        let info_hash = table.store.entry(position).info_hash();
        let inside = self.inside.filter(|(hash, _)| *hash == info_hash);
        if inside.is_none() {
            self.drop_moved(table);
        }
        self.inside = None;
        let used_at = match table.store.entry(position).peers() {
            0 => table.emptied_at(position),
            _ => table.now.signed(),
        };
        let completed = table.store.entry(position).completed();
        records.push(StateRecord::Torrent(TorrentRecord { info_hash, completed, used_at }));
        let (mut family, mut left) = match inside {
            Some((_, (family, left))) => (family, Some(left)),
            None => (Family::V4, None),
        };
        if family == Family::V4 {
            left = export_peers::<V4>(table, position, left, budget, records);
            if left.is_none() {
                family = Family::V6;
            }
        }
        if family == Family::V6 {
            left = export_peers::<V6>(table, position, left, budget, records);
        }
        self.inside = left.map(|left| (info_hash, (family, left)));
    }
}

/// Exports the peers of a family at the positions below `from`, or all if it is `None`; those in an entry or a block in
/// one step. Returns how many are left, or `None` if all were exported.
fn export_peers<const N: usize>(
    table: &mut Table,
    position: u32,
    from: Option<usize>,
    budget: &mut WorkBudget,
    records: &mut Vec<StateRecord>,
) -> Option<usize>
where
    PeerStores: RecordWidth<N>,
{
    let now = table.now.signed();
    let context = &table.context;
    let mut peers = table.store.family_peers::<N>(position);
    let mut left = peers.roles.len();
    let mut wanted = left;
    let mut moved = MovedRecords::default();
    if let RecordStorage::LargeSwarm(large_swarm) = &mut peers.records {
        // A swarm that has kept no moved records had too many, or is another one: all of it is exported again.
        if let (Some(from), Some(kept)) = (from, large_swarm.take_moved()) {
            (left, moved) = (left.min(from), *kept);
        }
        for record in moved.take(budget.records()) {
            budget.spend_records(1);
            // As it is stored now: it may have stopped, or changed its role, since it was moved.
            if let Some(at) = peers.find(&record, context).position {
                export_peer((peers.at(at), peers.is_seeder(at)), context, now, records);
            }
        }
        wanted = left.min(budget.records());
    }
    for at in (left - wanted..left).rev() {
        export_peer((peers.at(at), peers.is_seeder(at)), context, now, records);
    }
    budget.spend_records(wanted);
    left -= wanted;
    let is_complete = left == 0 && moved.is_empty();
    if let RecordStorage::LargeSwarm(large_swarm) = &mut peers.records
        && !is_complete
    {
        moved.visited_from = left;
        large_swarm.keep_moved(Box::new(moved));
    }
    (!is_complete).then_some(left)
}

/// Appends a peer unless it has expired.
fn export_peer<const N: usize>(
    (record, is_seeder): (&[u8; N], bool),
    context: &RecordContext,
    now: i64,
    records: &mut Vec<StateRecord>,
) {
    work_counter::count_records(N);
    if context.is_expired(record) {
        return;
    }
    let Some(endpoint) = Endpoint::from_compact(compact(record)) else { return };
    let role = role_of(record, is_seeder);
    let is_counted = record[N - 2] & flags::COMPLETED != 0;
    let is_remote = record[N - 2] & flags::REMOTE != 0;
    let announced_at = context.ticks.start_of(now, record[N - 1]);
    let peer = PeerRecord { endpoint, role, is_counted, is_remote, announced_at };
    records.push(StateRecord::Peer(peer));
}

/// Has a large swarm keep no more records.
fn drop_moved<const N: usize>(mut peers: FamilyPeers<'_, N>) {
    if let RecordStorage::LargeSwarm(large_swarm) = &mut peers.records {
        large_swarm.take_moved();
    }
}
