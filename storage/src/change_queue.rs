//! A bounded queue of changes that announces have made, until an export or a publication takes them.

use crate::announce::{SwarmAnnounce, SwarmChange};
use crate::state_record::{ChangeKind, PeerRecord, StateRecord};
use std::collections::VecDeque;

/// Changes that were not taken yet.
#[derive(Debug)]
pub(crate) struct ChangeQueue {
    changes: VecDeque<StateRecord>,
    changes_max: usize,
    /// Number of changes that were lost because the queue was full.
    lost: u64,
}

impl ChangeQueue {
    /// Creates an empty queue for up to `changes_max` changes.
    pub(crate) fn new(changes_max: usize) -> Self {
        Self { changes: VecDeque::with_capacity(changes_max), changes_max, lost: 0 }
    }

    /// Adds the change that an announce made, if it made one.
    pub(crate) fn push(
        &mut self,
        announce: &SwarmAnnounce,
        change: SwarmChange,
        announced_at: i64,
    ) {
        let kind = match change {
            SwarmChange::Joined => ChangeKind::Joined,
            SwarmChange::Refreshed => ChangeKind::Refreshed,
            SwarmChange::Completed => ChangeKind::Completed,
            SwarmChange::Stopped => ChangeKind::Stopped,
            SwarmChange::Nothing | SwarmChange::Refused(_) => return,
        };
        if self.changes.len() == self.changes_max {
            self.lost += 1;
            return;
        }
        let SwarmAnnounce { info_hash, endpoint, role, .. } = *announce;
        let is_counted = kind == ChangeKind::Completed;
        let peer = PeerRecord { endpoint, role, is_counted, is_remote: false, announced_at };
        self.changes.push_back(StateRecord::Change(info_hash, kind, peer));
    }

    /// Removes the oldest changes, up to a number.
    pub(crate) fn take(&mut self, count: usize) -> impl Iterator<Item = StateRecord> {
        let count = self.changes.len().min(count);
        self.changes.drain(..count)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns the number of changes that were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}
