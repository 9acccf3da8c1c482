//! Writes a snapshot.

use super::directory::StateDirectory;
use super::{FinalSnapshotSenders, SnapshotJob};
use crate::clock::Clock;
use crate::process::export_lock::ExportGuard;
use crate::process::shard_export::{ShardExport, UnansweredExport};
use crate::state::{StreamTotals, write_block, write_end, write_header};
use crate::text::{grouped, iec};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use thiserror::Error;
use tokio::sync::oneshot::Sender;
use tsubame_storage::StateRecord;

/// Reason why no snapshot was written.
#[derive(Debug, Error)]
enum SnapshotError {
    /// A file could not be written.
    #[error("{} cannot be written: {}; make space on the disk, and the directory writable", .0.display(), .1)]
    Write(PathBuf, #[source] io::Error),
    /// A shard does not answer.
    #[error(transparent)]
    Shard(#[from] UnansweredExport),
    /// The final snapshot, or an upgrade, was asked for.
    #[error("the tracker is stopping or being upgraded")]
    Interrupted,
}

/// A snapshot that is being written.
struct NewSnapshot<'a> {
    directory: &'a StateDirectory,
    file: File,
    buffer: Vec<u8>,
    totals: StreamTotals,
    bytes: u64,
}

impl<'a> NewSnapshot<'a> {
    fn new(directory: &'a StateDirectory, file: File) -> Self {
        let (buffer, totals) = (Vec::new(), StreamTotals::default());
        Self { directory, file, buffer, totals, bytes: 0 }
    }

    /// Writes records as a block.
    fn add(&mut self, clock: Clock, records: &[StateRecord]) -> Result<(), SnapshotError> {
        let now = clock.now();
        write_block(records, now.monotonic.signed(), now.unix_secs, &mut self.buffer);
        self.totals.count(records);
        self.flush()
    }

    /// Writes the bytes of the buffer.
    fn flush(&mut self) -> Result<(), SnapshotError> {
        self.file.write_all(&self.buffer).map_err(|error| self.failed(error))?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn publish(&self) -> Result<(), SnapshotError> {
        self.directory.publish_snapshot(&self.file).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> SnapshotError {
        SnapshotError::Write(self.directory.file(super::SNAPSHOT_FILE), error)
    }
}

impl SnapshotJob {
    /// Writes a snapshot, the last one if that was asked for, and reports the result. Returns false if it was given up
    /// because of a command.
    pub(super) fn write(
        &mut self,
        directory: &StateDirectory,
        guard: Option<&ExportGuard>,
    ) -> bool {
        let clock = self.settings.clock;
        let started = clock.elapsed();
        let last = self.last.take();
        let is_last = last.is_some();
        let mut done = None;
        let written = self.try_write((directory, guard), last, &mut done);
        let status = &self.settings.process.snapshots;
        match written {
            Ok((totals, bytes)) => {
                let duration = clock.elapsed().saturating_sub(started);
                status.written_unix_secs.store(clock.now().unix_secs, Ordering::Relaxed);
                status.written_ms.store(duration.as_millis() as u64, Ordering::Relaxed);
                status.written_bytes.store(bytes, Ordering::Relaxed);
                status.written.fetch_add(1, Ordering::Relaxed);
                let text = format!(
                    "snapshot written: {} torrents, {} peers, {} in {:.1} s",
                    grouped(totals.torrents),
                    grouped(totals.peers),
                    iec(bytes),
                    duration.as_secs_f64()
                );
                match is_last {
                    true => tracing::info!("{text}"),
                    false => tracing::debug!("{text}"),
                }
                // After the message: the process is about to end.
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
            Err(SnapshotError::Interrupted) => {
                directory.discard_snapshot();
                return false;
            }
            Err(error) => {
                directory.discard_snapshot();
                status.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    "storage.directory: no snapshot was written, the previous one stays: {error}"
                );
            }
        }
        true
    }

    fn try_write(
        &mut self,
        (directory, guard): (&StateDirectory, Option<&ExportGuard>),
        last: Option<FinalSnapshotSenders>,
        done: &mut Option<Sender<()>>,
    ) -> Result<(StreamTotals, u64), SnapshotError> {
        let clock = self.settings.clock;
        let create_error =
            |error| SnapshotError::Write(directory.file(super::SNAPSHOT_FILE), error);
        let file = directory.create_snapshot().map_err(create_error)?;
        let mut snapshot = NewSnapshot::new(directory, file);
        write_header(clock.now().unix_secs, &mut snapshot.buffer);
        snapshot.flush()?;
        let mut add = |records: &[StateRecord]| snapshot.add(clock, records);
        let mut export = ShardExport::begin(self.shards.clone(), clock, last.is_some());
        while export.has_torrents() {
            export.step(&mut add)?;
            let is_preempted = guard.is_some_and(ExportGuard::is_preempted);
            if last.is_none() && (self.is_interrupted() || is_preempted) {
                return Err(SnapshotError::Interrupted);
            }
        }
        if let Some(senders) = last {
            export.settle(&mut add)?;
            let _ = senders.caught_up.send(());
            let lost = export.finish(&mut add, &|| false)?;
            if lost > 0 {
                tracing::warn!("the snapshot lacks {} changes of its last seconds", grouped(lost));
            }
            *done = Some(senders.done);
        }
        write_end(&snapshot.totals, clock.now().unix_secs, &mut snapshot.buffer);
        snapshot.flush()?;
        snapshot.publish()?;
        Ok((snapshot.totals, snapshot.bytes))
    }
}
