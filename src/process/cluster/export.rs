//! Exports the swarms for another node, in a thread of its own.

use crate::clock::Clock;
use crate::process::cpus;
use crate::process::export_turns::ExportTurn;
use crate::process::shard_export::{ShardExport, ShardSender, UnansweredExport};
use thiserror::Error;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tsubame_storage::StateRecord;

/// Maximum number of pages that wait to be sent.
const PAGES_WAITING: usize = 2;

/// A part of an export.
#[derive(Debug)]
pub(super) enum ExportPart {
    /// Records, of which the first is not a peer.
    Records(Vec<StateRecord>),
    /// All records were exported.
    Complete,
}

/// Reason why an export has ended early.
#[derive(Debug, Error)]
enum ExportError {
    #[error(transparent)]
    Shard(#[from] UnansweredExport),
    #[error("a snapshot at stop, or an upgrade, has begun")]
    Wanted,
    #[error("the other node has gone")]
    Closed,
}

/// Starts an export. The channel is closed when it has ended; if the receiver is dropped, it ends.
pub(super) fn start(shards: ShardSender, clock: Clock) -> Option<Receiver<ExportPart>> {
    let turn = shards.turns.take()?;
    let (parts, receiver) = channel(PAGES_WAITING);
    let thread = std::thread::Builder::new().name("cluster-export".to_owned());
    let spawned = thread.spawn(move || {
        cpus::set_lowest_priority();
        if let Err(error @ ExportError::Shard(_)) = export(&shards, clock, &turn, &parts) {
            tracing::warn!("cluster: the swarms cannot be sent to another node: {error}");
        }
    });
    spawned.ok().map(|_| receiver)
}

fn export(
    shards: &ShardSender,
    clock: Clock,
    turn: &ExportTurn,
    parts: &Sender<ExportPart>,
) -> Result<(), ExportError> {
    let send = |mut part: ExportPart| loop {
        check_wanted(turn, parts)?;
        match parts.try_send(part) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(unsent)) => part = unsent,
            Err(TrySendError::Closed(_)) => return Err(ExportError::Closed),
        }
        clock.pause_before_retry();
    };
    let mut export = ShardExport::begin(shards.clone(), clock, false);
    while export.has_torrents() {
        // A step without a page sends nothing.
        check_wanted(turn, parts)?;
        export.step(&mut |records: &[StateRecord]| match records {
            [] => Ok(()),
            records => send(ExportPart::Records(records.to_vec())),
        })?;
    }
    send(ExportPart::Complete)
}

/// Returns an error if the export is to end.
fn check_wanted(turn: &ExportTurn, parts: &Sender<ExportPart>) -> Result<(), ExportError> {
    match (turn.is_wanted(), parts.is_closed()) {
        (true, _) => Err(ExportError::Wanted),
        (_, true) => Err(ExportError::Closed),
        _ => Ok(()),
    }
}
