//! Removes the torrents that a new policy forbids.

use super::Tracker;
use crate::clock::Now;
use tsubame_storage::{Seconds, TableCursor};

/// Seconds after which every shard goes by a policy that was sent to all
const EXCHANGED_SECS: u64 = 5;

/// Progress of removing the torrents that the current policy forbids
#[derive(Clone, Copy, Debug)]
pub(super) enum Purging {
    /// There are none: what is in the table is permitted
    Done,
    /// From this position on, and once more from this time on: until then other shards may have passed on what they
    /// took by the policy before
    First(TableCursor, Seconds),
    /// Waiting for that time
    Waiting(Seconds),
    /// For the last time, from this position on
    Last(TableCursor),
}

impl Purging {
    /// What there is to do after a policy was exchanged for one that has lists or not
    pub(super) fn after_exchange(now: Now, has_lists: bool) -> Self {
        match has_lists {
            true => Self::First(TableCursor::default(), Seconds(now.monotonic.0 + EXCHANGED_SECS)),
            false => Self::Done,
        }
    }
}

impl Tracker {
    /// Removes torrents that policy forbids now, a bit at a time; true if it should be called again at once
    pub fn purge(&mut self, now: Now) -> bool {
        let Self { swarms, policy, purge, .. } = self;
        match purge {
            Purging::Done => return false,
            Purging::First(at, settled) => {
                if swarms.purge(at, |info_hash| policy.serves(info_hash)) {
                    return true;
                }
                *purge = Purging::Waiting(*settled);
            }
            Purging::Waiting(settled) if *settled <= now.monotonic => {
                *purge = Purging::Last(TableCursor::default());
                return true;
            }
            Purging::Waiting(_) => {}
            Purging::Last(at) => {
                if swarms.purge(at, |info_hash| policy.serves(info_hash)) {
                    return true;
                }
                *purge = Purging::Done;
            }
        }
        false
    }
}
