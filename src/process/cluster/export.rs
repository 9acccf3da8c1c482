//! Exports the swarms for another node, in a thread of its own.

use crate::clock::Clock;
use crate::process::cpus;
use crate::process::export_lock::ExportGuard;
use crate::process::shard_export::{ShardExport, ShardSender, UnansweredExport};
use thiserror::Error;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tsubame_storage::StateRecord;

/// Maximum number of pages that wait to be sent.
const PAGES_WAITING: usize = 2;

/// What an export has yielded.
#[derive(Debug)]
pub(super) enum ExportEvent {
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
    #[error("a snapshot at stop or an upgrade needs the shards")]
    Preempted,
    #[error("the other node no longer requests it")]
    ReceiverClosed,
}

/// Starts an export; returns `None` if another one runs or the thread cannot be started. The channel is closed when the
/// export ends, and the export ends when the receiver is dropped.
pub(super) fn start(shards: ShardSender, clock: Clock) -> Option<Receiver<ExportEvent>> {
    let guard = shards.export_lock.try_lock()?;
    let (events, receiver) = channel(PAGES_WAITING);
    let thread = std::thread::Builder::new().name("cluster-export".to_owned());
    let spawned = thread.spawn(move || {
        cpus::set_lowest_priority();
        if let Err(error @ ExportError::Shard(_)) = export(&shards, clock, &guard, &events) {
            tracing::warn!("cluster: the swarms cannot be sent to another node: {error}");
        }
    });
    spawned.ok().map(|_| receiver)
}

fn export(
    shards: &ShardSender,
    clock: Clock,
    guard: &ExportGuard,
    events: &Sender<ExportEvent>,
) -> Result<(), ExportError> {
    let send = |mut event: ExportEvent| loop {
        check_continues(guard, events)?;
        match events.try_send(event) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(unsent)) => event = unsent,
            Err(TrySendError::Closed(_)) => return Err(ExportError::ReceiverClosed),
        }
        clock.pause_before_retry();
    };
    let mut export = ShardExport::begin(shards.clone(), clock, false);
    while export.has_torrents() {
        // A step without a page sends nothing.
        check_continues(guard, events)?;
        export.step(&mut |records: &[StateRecord]| match records {
            [] => Ok(()),
            records => send(ExportEvent::Records(records.to_vec())),
        })?;
    }
    send(ExportEvent::Complete)
}

/// Returns an error if the export is to end.
fn check_continues(guard: &ExportGuard, events: &Sender<ExportEvent>) -> Result<(), ExportError> {
    match (guard.is_preempted(), events.is_closed()) {
        (true, _) => Err(ExportError::Preempted),
        (_, true) => Err(ExportError::ReceiverClosed),
        _ => Ok(()),
    }
}
