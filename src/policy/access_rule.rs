//! An access list as a hook uses it.

use super::access_list::{AccessList, ListMode};
use super::refusal::RefusalReply;
use tsubame_storage::InfoHash;

/// A list of torrents, its mode, and the reply to announces of torrents that it forbids.
#[derive(Clone, Debug)]
pub(super) struct AccessRule {
    pub(super) list: AccessList,
    pub(super) mode: ListMode,
    pub(super) reply: RefusalReply,
}

impl AccessRule {
    /// Returns the identity of the list, by its pointers: equal means unchanged.
    pub(super) fn identity(&self) -> (ListMode, [*const (); 2]) {
        (self.mode, self.list.identity())
    }

    pub(super) fn permits(&self, hash: &InfoHash) -> bool {
        self.list.contains(hash) == (self.mode == ListMode::Allow)
    }
}
