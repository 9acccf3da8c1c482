//! The export, the import and the publication that a table takes part in.

use crate::announce::{AnnounceOutcome, SwarmAnnounce, SwarmChange};
use crate::change_queue::ChangeQueue;
use crate::export::Export;
use crate::peer_output::PeerOutput;
use crate::record::flags;
use crate::stopped_peers::StoppedPeers;
use crate::table::{Prefetch, Table};
use crate::types::AnnounceEvent;

/// The export, the import and the publication of a table that are in progress.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    pub(crate) export: Option<Export>,
    /// Peers that have stopped, during an import or a publication.
    pub(crate) stopped: Option<StoppedPeers>,
    /// Changes for the other nodes of the cluster.
    pub(crate) publication: Option<ChangeQueue>,
}

impl Transfer {
    /// Applies an announce, and takes note of it.
    #[cold]
    pub(crate) fn announce(
        &mut self,
        table: &mut Table,
        prefetch: Prefetch,
        announce: &SwarmAnnounce,
        peers: PeerOutput<'_>,
    ) -> AnnounceOutcome {
        let outcome = table.announce(prefetch, announce, peers);
        let now = table.now.signed();
        if announce.event == AnnounceEvent::Stopped
            && let Some(stopped) = &mut self.stopped
            // Without an import, a peer that was not known costs no memory.
            && (outcome.change == SwarmChange::Stopped || stopped.is_importing)
        {
            stopped.add(&announce.info_hash, announce.endpoint, now, now);
        }
        if let Some(export) = &mut self.export {
            let announced_at = table.context.ticks.start_of(now, table.context.tick);
            export.record(announce, outcome.change, announced_at);
        }
        if let Some(changes) = &mut self.publication
            && is_to_be_published(&outcome, announce, table.context.published)
        {
            changes.push(announce, outcome.change, now);
        }
        outcome
    }

    /// Returns whether neither an export nor an import nor a publication is in progress.
    pub(crate) fn is_idle(&self) -> bool {
        self.export.is_none() && self.stopped.is_none() && self.publication.is_none()
    }
}

/// Returns whether the other nodes are to hear of an announce. Of one that changes only the age of a peer they hear if
/// they have not heard of the peer in the present third of its lifetime, which `published` stands for.
fn is_to_be_published(outcome: &AnnounceOutcome, announce: &SwarmAnnounce, published: u8) -> bool {
    outcome.change != SwarmChange::Refreshed
        || outcome.previous != Some(announce.role)
        || outcome.previous_flags & flags::PUBLISHED != published
}
