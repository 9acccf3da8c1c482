//! Writes a snapshot.

use super::directory::StateDirectory;
use super::{LastSnapshotSenders, SHARD_TIMEOUT, SnapshotJob};
use crate::shard::transfer::{ExportedPage, TransferRequest};
use crate::state::{StreamTotals, write_block, write_end, write_header};
use crate::text::{grouped, iec};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::{ExportProgress, StateRecord};

/// Maximum number of changes that each shard keeps between two pages of the last snapshot: 4 MiB. At 50,000 announces a
/// second a shard has as many in a second.
const CHANGES_MAX: usize = 1 << 16;

/// Time after which the changes of a shard are fetched again, while others still export their torrents.
const CHANGES_INTERVAL: Duration = Duration::from_millis(20);

/// Reason why no snapshot was written.
#[derive(Debug, Error)]
enum SnapshotError {
    /// A file could not be written.
    #[error("{} cannot be written: {}; make space on the disk, and the directory writable", .0.display(), .1)]
    Write(PathBuf, #[source] io::Error),
    /// A shard does not answer.
    #[error("a shard has not answered for {} s; if that happens again, restart the tracker", SHARD_TIMEOUT.as_secs())]
    Shard,
    /// The tracker is stopping, and the last snapshot replaces this one.
    #[error("the tracker is stopping")]
    Superseded,
}

/// A snapshot that is being written.
struct NewSnapshot<'a> {
    directory: &'a StateDirectory,
    file: File,
    buffer: Vec<u8>,
    totals: StreamTotals,
    bytes: u64,
}

impl NewSnapshot<'_> {
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
    /// Writes a snapshot, the last one if that was asked for, and reports the result.
    pub(super) fn write(&mut self, directory: &StateDirectory) {
        let clock = self.settings.clock;
        let started = clock.elapsed();
        let last = self.last.take();
        let is_last = last.is_some();
        let written = self.try_write(directory, last);
        for shard in 0..self.settings.shards {
            self.request(shard, TransferRequest::EndExport);
        }
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
            }
            Err(SnapshotError::Superseded) => directory.discard_snapshot(),
            Err(error) => {
                directory.discard_snapshot();
                status.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    "storage.directory: no snapshot was written, the last one stays: {error}"
                );
            }
        }
    }

    fn try_write(
        &mut self,
        directory: &StateDirectory,
        last: Option<LastSnapshotSenders>,
    ) -> Result<(StreamTotals, u64), SnapshotError> {
        let created = directory.create_snapshot();
        let create_error =
            |error| SnapshotError::Write(directory.file(super::SNAPSHOT_FILE), error);
        let mut snapshot = NewSnapshot {
            directory,
            file: created.map_err(create_error)?,
            buffer: Vec::new(),
            totals: StreamTotals::default(),
            bytes: 0,
        };
        write_header(self.settings.clock.now().unix_secs, &mut snapshot.buffer);
        snapshot.flush()?;
        let (last_changes, last_pages) = channel();
        self.export_torrents(&mut snapshot, last.as_ref().map(|_| last_changes))?;
        let done = match last {
            Some(LastSnapshotSenders { caught_up, done }) => {
                let _ = caught_up.send(());
                self.export_last_changes(&mut snapshot, &last_pages)?;
                Some(done)
            }
            None => None,
        };
        write_end(&snapshot.totals, self.settings.clock.now().unix_secs, &mut snapshot.buffer);
        snapshot.flush()?;
        snapshot.publish()?;
        if let Some(done) = done {
            let _ = done.send(());
        }
        Ok((snapshot.totals, snapshot.bytes))
    }

    /// Has all shards export their torrents, and writes them. With `last_changes`, writes their changes, too, until all
    /// have exported all of their torrents.
    fn export_torrents(
        &mut self,
        snapshot: &mut NewSnapshot<'_>,
        last_changes: Option<Sender<ExportedPage>>,
    ) -> Result<(), SnapshotError> {
        let clock = self.settings.clock;
        let (reply, pages) = channel();
        let is_last = last_changes.is_some();
        let changes_max = if is_last { CHANGES_MAX } else { 0 };
        // Shards that have exported everything at the moment, with their empty lists.
        let mut idle: Vec<(usize, Vec<StateRecord>)> = Vec::new();
        for shard in 0..self.settings.shards {
            let last_changes = last_changes.clone();
            self.request(shard, TransferRequest::BeginExport { changes_max, last_changes });
            idle.push((shard, Vec::new()));
        }
        let mut has_torrents = vec![true; self.settings.shards];
        let (mut requested, mut received_at) = (0, clock.elapsed());
        let mut requested_at = None;
        while requested > 0 || has_torrents.contains(&true) {
            let now = clock.elapsed();
            let is_due = requested_at.is_none_or(|at| now.saturating_sub(at) >= CHANGES_INTERVAL);
            if is_due && (is_last || requested_at.is_none()) && has_torrents.contains(&true) {
                requested_at = Some(now);
                for (shard, records) in idle.drain(..) {
                    requested += 1;
                    self.request_page(shard, records, &reply);
                }
            }
            match pages.recv_timeout(CHANGES_INTERVAL) {
                Ok(ExportedPage { shard, mut records, progress, .. }) => {
                    received_at = clock.elapsed();
                    self.add_page(snapshot, &records)?;
                    records.clear();
                    if progress == ExportProgress::Complete {
                        has_torrents[shard] = false;
                        requested -= 1;
                        idle.push((shard, records));
                    } else {
                        self.request_page(shard, records, &reply);
                    }
                }
                Err(_) if clock.elapsed().saturating_sub(received_at) >= SHARD_TIMEOUT => {
                    return Err(SnapshotError::Shard);
                }
                Err(_) => {}
            }
            if !is_last && self.is_last_wanted() {
                return Err(SnapshotError::Superseded);
            }
        }
        Ok(())
    }

    fn request_page(&self, shard: usize, records: Vec<StateRecord>, reply: &Sender<ExportedPage>) {
        let reply = reply.clone();
        self.request(shard, TransferRequest::ExportPage { records, reply });
    }

    /// Writes what the shards have changed since, up to their last request.
    fn export_last_changes(
        &mut self,
        snapshot: &mut NewSnapshot<'_>,
        last_pages: &Receiver<ExportedPage>,
    ) -> Result<(), SnapshotError> {
        let mut lost = 0;
        for _ in 0..self.settings.shards {
            let page = last_pages.recv_timeout(SHARD_TIMEOUT).map_err(|_| SnapshotError::Shard)?;
            self.add_page(snapshot, &page.records)?;
            lost += page.lost_changes;
        }
        if lost > 0 {
            tracing::warn!("the snapshot lacks {} changes of its last seconds", grouped(lost));
        }
        Ok(())
    }

    fn add_page(
        &self,
        snapshot: &mut NewSnapshot<'_>,
        records: &[StateRecord],
    ) -> Result<(), SnapshotError> {
        let now = self.settings.clock.now();
        write_block(records, now.monotonic.signed(), now.unix_secs, &mut snapshot.buffer);
        snapshot.totals.count(records);
        snapshot.flush()
    }
}
