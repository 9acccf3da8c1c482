//! Reads the snapshot at start, while the tracker serves.

use super::SnapshotJob;
use crate::process::shard_export::SHARD_TIMEOUT;
use crate::shard::transfer::{ImportedPage, PAGE_RECORDS, TransferRequest};
use crate::state::{BlockReader, HeaderError, ReadCounts};
use crate::text::{grouped, plural};
use humantime::format_duration;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::{ImportCounts, StateRecord};

/// Maximum number of pages that a shard has been sent and has not imported yet.
const PAGES_PER_SHARD: usize = 2;

/// Bytes of swarm tables for each byte of a snapshot, at most: a torrent takes about 75 bytes instead of 25, a peer up
/// to 3 times as much. If a snapshot may be too large for the memory, small swarms are read before others.
const TABLE_BYTES_PER_BYTE: u64 = 4;

/// Maximum number of peers of a torrent that is read in the first of two passes.
const SMALL_SWARM_PEERS: usize = 64;

/// Which torrents a pass over the snapshot reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    All,
    SmallSwarms,
    LargeSwarms,
}

impl Pass {
    /// Returns whether a record is read that is followed by this number of peers. Changes come after all torrents.
    fn includes(self, record: &StateRecord, peers: usize) -> bool {
        match (self, record) {
            (Self::All, _) => true,
            (Self::SmallSwarms, StateRecord::Change(..)) => false,
            (Self::LargeSwarms, StateRecord::Change(..)) => true,
            (Self::SmallSwarms, _) => peers <= SMALL_SWARM_PEERS,
            (Self::LargeSwarms, _) => peers > SMALL_SWARM_PEERS,
        }
    }
}

/// Reason why a snapshot was not read to its end.
#[derive(Debug, Error)]
enum RestoreError {
    /// The file is not a snapshot, or has another version of the format.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A shard does not answer.
    #[error("a shard has not answered for {} s", SHARD_TIMEOUT.as_secs())]
    Shard,
}

/// The lists of records that the shards are sent, and those that they send back.
struct ShardPages {
    reply: Sender<ImportedPage>,
    imported: Receiver<ImportedPage>,
    /// Records for each shard that were not sent yet.
    pages: Vec<Vec<StateRecord>>,
    /// Number of pages of each shard that were sent and not imported yet.
    in_flight: Vec<usize>,
    unused: Vec<Vec<StateRecord>>,
    counts: ImportCounts,
}

impl ShardPages {
    fn new(shards: usize) -> Self {
        let (reply, imported) = channel();
        Self {
            reply,
            imported,
            pages: vec![Vec::new(); shards],
            in_flight: vec![0; shards],
            unused: Vec::new(),
            counts: ImportCounts::default(),
        }
    }

    /// Waits until a shard has imported a page.
    fn wait(&mut self) -> Result<(), RestoreError> {
        let page = match self.imported.recv_timeout(SHARD_TIMEOUT) {
            Ok(page) => page,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(RestoreError::Shard);
            }
        };
        self.in_flight[page.shard] -= 1;
        self.unused.push(page.records);
        self.counts.add(&page.counts);
        Ok(())
    }
}

impl SnapshotJob {
    /// Reads a snapshot, if there is one, into the shards.
    pub(super) fn restore(&mut self, path: &Path) {
        self.settings.process.snapshots.is_restoring.store(true, Ordering::Relaxed);
        self.restore_from(path);
        self.settings.process.snapshots.is_restoring.store(false, Ordering::Relaxed);
        for shard in 0..self.shards.shards {
            self.shards.send(shard, TransferRequest::EndImport);
        }
    }

    fn restore_from(&mut self, path: &Path) {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(
                    "the snapshot {} cannot be read: {error}; the tracker starts without its swarms",
                    path.display()
                );
                return;
            }
        };
        let started = self.settings.clock.elapsed();
        match self.try_restore(file, path) {
            Ok(None) => {}
            Ok(Some((counts, found, age))) => {
                let duration = self.settings.clock.elapsed().saturating_sub(started);
                self.report(path, (&counts, &found), age, duration);
            }
            Err(error) => tracing::warn!(
                "the snapshot {} was not read to its end: {error}; the tracker continues with what was read",
                path.display()
            ),
        }
    }

    fn report(
        &self,
        path: &Path,
        (counts, found): (&ImportCounts, &ReadCounts),
        age: Duration,
        duration: Duration,
    ) {
        let status = &self.settings.process.snapshots;
        status.restored_torrents.store(counts.torrents, Ordering::Relaxed);
        status.restored_peers.store(counts.peers, Ordering::Relaxed);
        tracing::info!(
            "restored from a snapshot of {} ago: {} torrents, {} peers in {:.1} s; {} were too old or have announced \
             since",
            format_duration(age),
            grouped(counts.torrents),
            grouped(counts.peers),
            duration.as_secs_f64(),
            plural(counts.outdated, "peer"),
        );
        if counts.refused > 0 {
            tracing::warn!(
                "{} torrents and peers of the snapshot were left out: memory is short, or a swarm has its maximum \
                 number of peers; raise storage.memory or storage.caps",
                grouped(counts.refused)
            );
        }
        if !found.is_intact() {
            tracing::warn!(
                "the snapshot {} is damaged or incomplete: {} and {} were passed over{}; check the disk",
                path.display(),
                plural(found.damaged_blocks, "block"),
                plural(found.skipped_bytes, "byte"),
                if found.totals.is_none() { ", and its end is missing" } else { "" }
            );
        }
    }

    /// Reads a snapshot; returns what the shards did with it, what was found in it, and its age. Returns `None` if it
    /// is so old that nothing in it is of use.
    fn try_restore(
        &self,
        file: File,
        path: &Path,
    ) -> Result<Option<(ImportCounts, ReadCounts, Duration)>, RestoreError> {
        let len = file.metadata()?.len();
        let mut pages = ShardPages::new(self.shards.shards);
        let passes: &[Pass] =
            match len.saturating_mul(TABLE_BYTES_PER_BYTE) > self.settings.memory_bytes {
                true => &[Pass::SmallSwarms, Pass::LargeSwarms],
                false => &[Pass::All],
            };
        let mut file = Some(file);
        let (mut found, mut age) = (ReadCounts::default(), Duration::ZERO);
        for pass in passes {
            let file = match file.take() {
                Some(file) => file,
                None => File::open(path)?,
            };
            let mut reader = BlockReader::new(file)?;
            let written_at = reader.written_at();
            let status = &self.settings.process.snapshots;
            status.written_unix_secs.store(written_at, Ordering::Relaxed);
            status.written_bytes.store(len, Ordering::Relaxed);
            age =
                Duration::from_secs(self.settings.clock.now().unix_secs.saturating_sub(written_at));
            if age.as_secs() > self.settings.useful_secs {
                tracing::info!(
                    "the snapshot {} is from {} ago: all of its peers have expired",
                    path.display(),
                    format_duration(age)
                );
                return Ok(None);
            }
            self.read_blocks(&mut reader, *pass, &mut pages)?;
            found = reader.counts();
        }
        for shard in 0..self.shards.shards {
            self.send_page(shard, &mut pages)?;
        }
        while pages.in_flight.iter().any(|in_flight| *in_flight > 0) {
            pages.wait()?;
        }
        Ok(Some((pages.counts, found, age)))
    }

    /// Reads all blocks, and sends the records of a pass to the shards that own the torrents now.
    fn read_blocks(
        &self,
        reader: &mut BlockReader<File>,
        pass: Pass,
        pages: &mut ShardPages,
    ) -> Result<(), RestoreError> {
        let mut records = Vec::new();
        while let Some(block) = reader.next_block()? {
            let now = self.settings.clock.now();
            // If the wall clock was set back, the block counts as written now.
            let since = now.unix_secs.saturating_sub(block.unix_secs);
            let written_at = now.monotonic.signed().saturating_sub_unsigned(since);
            records.clear();
            if !block.records(written_at, &mut records) {
                tracing::warn!(
                    "a block of the snapshot has records that this version does not know"
                );
            }
            let mut rest = &records[..];
            while let Some((first, after)) = rest.split_first() {
                let peers = after.iter().take_while(|it| matches!(it, StateRecord::Peer(_)));
                let peers = peers.count();
                let (torrent, others) = rest.split_at(1 + peers);
                rest = others;
                if let Some(info_hash) = first.info_hash()
                    && pass.includes(first, peers)
                {
                    let shard = self.settings.keys.owner(info_hash, self.shards.shards as u16);
                    let shard = usize::from(shard);
                    pages.pages[shard].extend_from_slice(torrent);
                    if pages.pages[shard].len() >= PAGE_RECORDS {
                        self.send_page(shard, pages)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a shard its records, after it has imported most of the earlier ones.
    fn send_page(&self, shard: usize, pages: &mut ShardPages) -> Result<(), RestoreError> {
        while pages.in_flight[shard] >= PAGES_PER_SHARD {
            pages.wait()?;
        }
        pages.in_flight[shard] += 1;
        let unused = pages.unused.pop().unwrap_or_default();
        let records = std::mem::replace(&mut pages.pages[shard], unused);
        let reply = pages.reply.clone();
        self.shards.send(shard, TransferRequest::ImportPage { number: 0, records, reply });
        Ok(())
    }
}
