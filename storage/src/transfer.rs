//! The export and the import that a table takes part in.

use crate::announce::{AnnounceOutcome, SwarmAnnounce};
use crate::export::Export;
use crate::import::StoppedPeers;
use crate::peer_output::PeerOutput;
use crate::table::{Prefetch, Table};
use crate::types::AnnounceEvent;

/// The export and the import of a table that are in progress.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    pub(crate) export: Option<Export>,
    /// Peers that have stopped since the import began.
    pub(crate) stopped: Option<StoppedPeers>,
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
        if announce.event == AnnounceEvent::Stopped
            && let Some(stopped) = &mut self.stopped
        {
            stopped.add(&announce.info_hash, announce.endpoint, table.now.signed());
        }
        if let Some(export) = &mut self.export {
            let now = table.now.signed();
            let announced_at = table.context.ticks.start_of(now, table.context.tick);
            export.record(announce, outcome.change, announced_at);
        }
        outcome
    }

    /// Returns whether neither an export nor an import is in progress.
    pub(crate) fn is_idle(&self) -> bool {
        self.export.is_none() && self.stopped.is_none()
    }
}
