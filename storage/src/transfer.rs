//! The export, the import and the publication of a table, as far as they are active.

use crate::announce::{AnnounceOutcome, SwarmAnnounce, SwarmChange};
use crate::change_queue::ChangeQueue;
use crate::export::Export;
use crate::peer_output::PeerOutput;
use crate::record::flags;
use crate::stopped_peers::StoppedPeers;
use crate::table::{Prefetch, Table};
use crate::types::AnnounceEvent;

/// The active export, import and publication of a table.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    pub(crate) export: Option<Export>,
    /// Peers that have stopped, during an import or a publication.
    pub(crate) stopped: Option<StoppedPeers>,
    /// Changes for the other nodes of the cluster.
    pub(crate) publication: Option<ChangeQueue>,
}

impl Transfer {
    /// Applies an announce, and records its change for the export and the publication.
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
            // Without an import, only changes of other nodes can be older. A peer may stop here and join there within a
            // second.
            let stopped_at = now - i64::from(!stopped.is_importing);
            stopped.add(&announce.info_hash, announce.endpoint, stopped_at, now);
        }
        if let Some(export) = &mut self.export {
            let announced_at = table.context.ticks.start_of(now, table.context.tick);
            export.record(announce, outcome.change, announced_at);
        }
        if let Some(changes) = &mut self.publication
            && should_publish(&outcome, announce, table.context.period_flags)
        {
            changes.push(announce, outcome.change, now);
        }
        outcome
    }

    /// Returns whether neither an export nor an import nor a publication is active.
    pub(crate) fn is_idle(&self) -> bool {
        self.export.is_none() && self.stopped.is_none() && self.publication.is_none()
    }
}

/// Returns whether an announce is published to the other nodes. One that changes only the age of a peer is published if
/// the peer was not published in the current period, which has the flags `period`.
fn should_publish(outcome: &AnnounceOutcome, announce: &SwarmAnnounce, period: u8) -> bool {
    outcome.change != SwarmChange::Refreshed
        || outcome.previous != Some(announce.role)
        || outcome.previous_flags & flags::PUBLICATION_PERIOD != period
}
