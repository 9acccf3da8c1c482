//! Snapshots of the swarms in `storage.directory`: read at start, written at intervals and at stop, by a thread of
//! their own.
//!
//! The shards export and import pages of records between turns and never wait for this thread, which encodes and stores
//! them. If the disk is slow or full, the last complete snapshot stays.

mod directory;
mod restore;
mod write;

use crate::clock::Clock;
use crate::config::Config;
use crate::control::monitored::ProcessStats;
use crate::process::cpus;
use crate::process::deadline::Deadline;
use crate::process::settings::table_bytes;
use crate::process::shard_export::{SHARD_TIMEOUT, ShardSender};
pub(crate) use directory::connection_id_key;
use directory::{DirectoryError, SNAPSHOT_FILE, StateDirectory};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;
use tokio::sync::oneshot;
use tsubame_udp::steering::SteeringKeys;

/// Time after which a snapshot that is due is tried again while there is another export.
const TURN_RETRY: Duration = Duration::from_secs(1);

/// Pause between two attempts to open and lock the directory.
const OPEN_RETRY: Duration = Duration::from_secs(10);

/// What the thread needs to know at start.
pub(crate) struct SnapshotSettings {
    /// Directory of the snapshot.
    pub(crate) directory: PathBuf,
    /// Time between two snapshots; zero for none but at stop.
    pub(crate) interval: Duration,
    pub(crate) clock: Clock,
    pub(crate) keys: SteeringKeys,
    pub(crate) process: Arc<ProcessStats>,
    /// Maximum bytes of the swarm tables of all shards.
    pub(crate) memory_bytes: u64,
    /// Age in seconds from which on nothing in a snapshot is of use.
    pub(crate) useful_secs: u64,
}

impl SnapshotSettings {
    /// Returns the settings for a config, or `None` if it has no directory.
    pub(crate) fn new(
        config: &Config,
        (clock, shards, keys): (Clock, u16, SteeringKeys),
        process: &Arc<ProcessStats>,
    ) -> Option<Self> {
        let directory = config.storage.directory.clone()?;
        process.snapshots.is_enabled.store(true, Ordering::Relaxed);
        let useful = config.announce.peer_lifetime.max(config.storage.keep_completed);
        Some(Self {
            directory,
            interval: config.storage.snapshot_interval,
            clock,
            keys,
            process: process.clone(),
            memory_bytes: (table_bytes(config, shards) * usize::from(shards)) as u64,
            useful_secs: useful.as_secs(),
        })
    }
}

/// Returns whether there may be a snapshot to be read, now or later, if the directory is not mounted yet.
pub(crate) fn may_exist(config: &Config) -> bool {
    config.storage.directory.as_ref().is_some_and(|directory| {
        !directory.is_dir() || directory.join(SNAPSHOT_FILE).try_exists().unwrap_or(true)
    })
}

/// A message to the thread.
#[derive(Debug)]
enum SnapshotCommand {
    /// Sets the time between two snapshots.
    SetInterval(Duration),
    /// Writes the final snapshot, and ends the thread.
    WriteFinal(FinalSnapshotSenders),
}

/// The progress of the final snapshot, as the thread reports it.
#[derive(Debug)]
struct FinalSnapshotSenders {
    /// All but the latest changes were written: the shards may stop. Dropped if that fails.
    caught_up: oneshot::Sender<()>,
    /// The snapshot is complete. Dropped if that fails.
    done: oneshot::Sender<()>,
}

/// The progress of the final snapshot, as the control plane awaits it. A channel is closed if the snapshot fails.
#[derive(Debug)]
pub(crate) struct FinalSnapshot {
    /// All but the latest changes were written: the shards may stop.
    pub(crate) caught_up: oneshot::Receiver<()>,
    /// The snapshot is complete.
    pub(crate) done: oneshot::Receiver<()>,
}

/// The thread that reads and writes snapshots.
#[derive(Debug)]
pub(crate) struct SnapshotThread {
    commands: Sender<SnapshotCommand>,
}

impl SnapshotThread {
    /// Starts the thread. If `taken_over` is given, the swarms come from another process, and the thread waits for a
    /// message that they are complete before it does anything; otherwise it reads the snapshot first.
    ///
    /// # Errors
    ///
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(
        settings: SnapshotSettings,
        shards: ShardSender,
        taken_over: Option<oneshot::Receiver<()>>,
    ) -> io::Result<Self> {
        let (commands, receiver) = channel();
        let job = SnapshotJob {
            interval: settings.interval,
            settings,
            shards,
            commands: receiver,
            last: None,
        };
        // Until the directory is open, nobody knows whether there are swarms.
        let is_restoring = taken_over.is_none();
        job.settings.process.snapshots.is_restoring.store(is_restoring, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("snapshots".to_owned());
        thread.spawn(move || job.run(taken_over))?;
        Ok(Self { commands })
    }

    /// Sets the time between two snapshots.
    pub(crate) fn set_interval(&self, interval: Duration) {
        // The thread has ended only after the final snapshot.
        let _ = self.commands.send(SnapshotCommand::SetInterval(interval));
    }

    /// Has the final snapshot written, with the changes until the shards have stopped.
    pub(crate) fn write_final(&self) -> FinalSnapshot {
        let (caught_up, is_caught_up) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let senders = FinalSnapshotSenders { caught_up, done };
        let _ = self.commands.send(SnapshotCommand::WriteFinal(senders));
        FinalSnapshot { caught_up: is_caught_up, done: is_done }
    }
}

/// The state of the thread.
struct SnapshotJob {
    settings: SnapshotSettings,
    interval: Duration,
    shards: ShardSender,
    commands: Receiver<SnapshotCommand>,
    /// Set once the final snapshot was asked for.
    last: Option<FinalSnapshotSenders>,
}

impl SnapshotJob {
    fn run(mut self, taken_over: Option<oneshot::Receiver<()>>) {
        cpus::set_lowest_priority();
        let has_predecessor = taken_over.is_some();
        // The channel is closed if the tracker stops before.
        let _ = taken_over.map(oneshot::Receiver::blocking_recv);
        let Some(directory) = self.open_directory() else { return };
        if !has_predecessor {
            self.restore(&directory.file(SNAPSHOT_FILE));
        }
        let mut started = self.settings.clock.elapsed();
        loop {
            if self.last.is_some() {
                // If another export does not end, its shards end it now.
                let guard = self.shards.export_lock.lock_urgently(SHARD_TIMEOUT);
                self.write(&directory, guard.as_ref());
                return;
            }
            let elapsed = self.settings.clock.elapsed().saturating_sub(started);
            let is_due = !self.interval.is_zero() && elapsed >= self.interval;
            let guard = if is_due { self.shards.export_lock.try_lock() } else { None };
            if guard.is_some() {
                let now = self.settings.clock.elapsed();
                // One that was given up is written as soon as that is possible.
                if self.write(&directory, guard.as_ref()) {
                    started = now;
                }
                continue;
            }
            let wait = match self.interval.is_zero() {
                true => Duration::MAX,
                false if is_due => TURN_RETRY,
                false => self.interval - elapsed,
            };
            if !self.handle_command(wait) {
                return;
            }
        }
    }

    /// Opens and locks the directory; tries again until that succeeds. Returns `None` if the tracker stops
    /// before.
    fn open_directory(&mut self) -> Option<StateDirectory> {
        let mut reported = String::new();
        let deadline = Deadline::of_predecessor(self.settings.clock);
        loop {
            match StateDirectory::open(&self.settings.directory) {
                Ok(directory) => return Some(directory),
                Err(DirectoryError::InUse(_)) if !deadline.has_passed() => {
                    deadline.pause();
                    continue;
                }
                Err(error) => {
                    self.settings.process.snapshots.is_restoring.store(false, Ordering::Relaxed);
                    let text = error.to_string();
                    if text != reported {
                        tracing::warn!(
                            "storage.directory: {text}; until then no snapshot is read or written"
                        );
                        reported = text;
                    }
                    self.settings.process.snapshots.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
            if !self.handle_command(OPEN_RETRY) || self.last.is_some() {
                return None;
            }
        }
    }

    /// Waits for a command and handles it; returns false if the control plane has ended.
    fn handle_command(&mut self, wait: Duration) -> bool {
        match self.commands.recv_timeout(wait) {
            Ok(command) => self.apply(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    /// Handles the commands that have arrived; returns whether the final snapshot was asked for.
    fn is_interrupted(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.apply(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                    return self.last.is_some();
                }
            }
        }
    }

    fn apply(&mut self, command: SnapshotCommand) {
        match command {
            SnapshotCommand::SetInterval(interval) => self.interval = interval,
            SnapshotCommand::WriteFinal(senders) => self.last = Some(senders),
        }
    }
}
