//! Removal of the torrents that a new policy forbids.

use crate::clock::Now;
use crate::policy::Policy;
use tsubame_storage::{Seconds, Swarms, TableCursor};

/// Seconds after which every shard uses a policy that was sent to all.
const POLICY_SETTLED_SECS: u64 = 5;

/// Progress of removing the torrents that the current policy forbids.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purge {
    /// All stored torrents are permitted.
    Done,
    /// The first pass. A second one starts at the given time: until then, other shards may forward announces that they
    /// admitted under the previous policy.
    FirstPass(TableCursor, Seconds),
    /// Waits for the time at which the second pass starts.
    Waiting(Seconds),
    /// The second pass.
    SecondPass(TableCursor),
}

impl Purge {
    /// Returns the purge that is due after a change of policy; `has_lists` is whether the new policy has lists.
    pub(super) fn after_policy_change(now: Now, has_lists: bool) -> Self {
        let settled = Seconds(now.monotonic.0 + POLICY_SETTLED_SECS);
        if has_lists { Self::FirstPass(TableCursor::default(), settled) } else { Self::Done }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Removes forbidden torrents in a bounded step; returns whether more work is due.
    pub(super) fn run(&mut self, swarms: &mut Swarms, policy: &Policy, now: Now) -> bool {
        match self {
            Self::Done => return false,
            Self::FirstPass(cursor, settled) => {
                if swarms.purge(cursor, |info_hash| policy.serves(info_hash)) {
                    return true;
                }
                *self = Self::Waiting(*settled);
            }
            Self::Waiting(settled) if *settled <= now.monotonic => {
                *self = Self::SecondPass(TableCursor::default());
                return true;
            }
            Self::Waiting(_) => {}
            Self::SecondPass(cursor) => {
                if swarms.purge(cursor, |info_hash| policy.serves(info_hash)) {
                    return true;
                }
                *self = Self::Done;
            }
        }
        false
    }
}
