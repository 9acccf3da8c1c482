//! The new process of an upgrade: takes over from the one that has started it.

use super::channel::{UpgradeChannel, UpgradeMessage};
use super::error::UpgradeError;
use super::greeting::{ENVIRONMENT, Greeting, LinkEntry, PROTOCOL_VERSION, STEP_TIMEOUT};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::monitored::ProcessStats;
use crate::process::cpus;
use crate::process::identity::Identity;
use crate::process::listen::Listeners;
use crate::process::shard_export::ShardSender;
use crate::shard::transfer::TransferRequest;
use crate::state::BlockReader;
use crate::text::grouped;
use crate::tracker::Tracker;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::sync::oneshot;
use tsubame_storage::{ImportCounts, ImportCursor, InfoHash, Seconds, StateRecord};
use tsubame_udp::steering::SteeringKeys;
use tsubame_udp::xdp::{AttachedInterface, XdpMode};

/// The process that this one takes over from.
#[derive(Debug)]
pub(crate) struct Predecessor {
    channel: UpgradeChannel,
    greeting: Greeting,
    sockets: Vec<OwnedFd>,
    /// Interfaces to which it has attached its XDP program.
    interfaces: Vec<AttachedInterface>,
}

impl Predecessor {
    /// Returns the process that has started this one to take over from it, if there is one.
    ///
    /// # Errors
    ///
    /// Returns an error if it cannot be reached, or has another version.
    pub(crate) fn from_environment() -> Result<Option<Self>, UpgradeError> {
        if std::env::var_os(ENVIRONMENT).is_none() {
            return Ok(None);
        }
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(UpgradeError::Channel)?;
        let mut channel = UpgradeChannel::new(UnixStream::from(input));
        channel.set_timeout(STEP_TIMEOUT).map_err(UpgradeError::Channel)?;
        let UpgradeMessage::Hello(json) = channel.receive().map_err(UpgradeError::Channel)? else {
            return Err(UpgradeError::Version("its first message is not Hello".to_owned()));
        };
        let greeting: Greeting = serde_json::from_slice(&json)
            .map_err(|error| UpgradeError::Version(error.to_string()))?;
        if greeting.version != PROTOCOL_VERSION {
            return Err(UpgradeError::Version(greeting.version.to_string()));
        }
        let count = greeting.sockets.count();
        let descriptors = channel.receive_descriptors(count + greeting.links.len());
        let mut sockets = descriptors.map_err(UpgradeError::Channel)?;
        let links = sockets.split_off(count);
        let attached = |(LinkEntry { interface, is_native }, link): (&LinkEntry, OwnedFd)| {
            let mode = if *is_native { XdpMode::Native } else { XdpMode::Generic };
            AttachedInterface::inherited(*interface, mode, link)
        };
        let interfaces = greeting.links.iter().zip(links).map(attached).collect();
        Ok(Some(Self { channel, greeting, sockets, interfaces }))
    }

    /// Returns a clock with the time of the predecessor.
    pub(crate) fn clock(&self) -> Clock {
        Clock::with_origin(self.greeting.clock_origin)
    }

    /// Returns the keys of the predecessor.
    pub(crate) fn identity(&self) -> Identity {
        self.greeting.identity.clone()
    }

    /// Takes the interfaces to which the predecessor has attached its XDP program.
    pub(crate) fn take_interfaces(&mut self) -> Vec<AttachedInterface> {
        std::mem::take(&mut self.interfaces)
    }

    /// Takes the sockets, if they fit the config.
    ///
    /// # Errors
    ///
    /// Returns an error that names the config key that differs, or if a socket cannot be used.
    pub(crate) fn listeners(
        &mut self,
        config: &Config,
        shards: u16,
    ) -> Result<Listeners, UpgradeError> {
        let list = &self.greeting.sockets;
        if list.shards() != shards {
            return Err(UpgradeError::Shards(list.shards(), shards));
        }
        if let Some(key) = list.changed_key(config) {
            return Err(UpgradeError::Addresses(key));
        }
        let sockets = std::mem::take(&mut self.sockets);
        list.clone().listeners(sockets, &config.udp).map_err(UpgradeError::Socket)
    }

    /// Imports the swarms of the predecessor, until it has sent all of them.
    ///
    /// # Errors
    ///
    /// Returns an error if the predecessor has ended or sends invalid records.
    pub(crate) fn import(
        mut self,
        mut trackers: Vec<Tracker>,
        (clock, keys): (Clock, SteeringKeys),
    ) -> Result<(Vec<Tracker>, TakeOver), UpgradeError> {
        // The predecessor serves on the same cores. A thread of its own, because a lower priority cannot be taken back.
        let thread = std::thread::Builder::new().name("import".to_owned()).spawn(move || {
            cpus::set_lowest_priority();
            let shards = trackers.len();
            self.channel.send(&UpgradeMessage::Ready).map_err(UpgradeError::Channel)?;
            let mut counts = ImportCounts::default();
            loop {
                match self.channel.receive().map_err(UpgradeError::Channel)? {
                    UpgradeMessage::Records(stream) => {
                        let pages = records_by_shard(&stream, &keys, shards)?;
                        let now = clock.now().monotonic;
                        for (tracker, page) in trackers.iter_mut().zip(pages) {
                            counts.add(&import_page(tracker, now, &page));
                        }
                    }
                    UpgradeMessage::CaughtUp => break,
                    _ => return Err(UpgradeError::Records),
                }
            }
            let Self { channel, greeting, .. } = self;
            let predecessor_pid = greeting.process;
            Ok((trackers, TakeOver { channel, predecessor_pid, keys, counts }))
        });
        let imported = thread.map_err(UpgradeError::Channel)?.join();
        // A panic ends the process.
        imported.unwrap_or(Err(UpgradeError::Records))
    }
}

/// Imports all records of a page into a shard that does not serve yet.
fn import_page(tracker: &mut Tracker, now: Seconds, page: &[StateRecord]) -> ImportCounts {
    let mut cursor = ImportCursor::default();
    while tracker.import(now, &mut cursor, page) {}
    cursor.counts()
}

/// The rest of an upgrade, from the time at which this process serves.
#[derive(Debug)]
pub(crate) struct TakeOver {
    channel: UpgradeChannel,
    predecessor_pid: u32,
    keys: SteeringKeys,
    counts: ImportCounts,
}

impl TakeOver {
    /// Tells the predecessor that this process serves, and imports the changes that it still makes, in a thread. When
    /// that is done, and the predecessor has closed its AF_XDP sockets, the returned channel gets a message.
    ///
    /// # Errors
    ///
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(
        self,
        shards: ShardSender,
        process: Arc<ProcessStats>,
    ) -> io::Result<oneshot::Receiver<()>> {
        let (sender, receiver) = oneshot::channel();
        process.is_taking_over.store(true, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("upgrade".to_owned());
        thread.spawn(move || {
            self.run(&shards, &process);
            // The tracker may be stopping.
            let _ = sender.send(());
        })?;
        Ok(receiver)
    }

    fn run(mut self, shards: &ShardSender, process: &ProcessStats) {
        let finished = self.import_changes(shards);
        shards.send_to_all(|| TransferRequest::EndImport);
        // Before `Complete` is sent: a client that requested this upgrade may request the next one once it has the
        // reply.
        process.is_taking_over.store(false, Ordering::Relaxed);
        let finished = finished.and_then(|()| {
            self.channel.send(&UpgradeMessage::Complete).map_err(UpgradeError::Channel)
        });
        let ImportCounts { torrents, peers, refused, .. } = self.counts;
        match finished {
            Ok(()) => tracing::info!(
                "took over from process {}: {} torrents, {} peers and changes of peers, {} refused",
                self.predecessor_pid,
                grouped(torrents),
                grouped(peers),
                grouped(refused)
            ),
            Err(error) => tracing::warn!(
                "the last changes of process {} may be missing: {error}",
                self.predecessor_pid
            ),
        }
        // The standard input is another handle of the channel, which stays open.
        self.channel.close();
    }

    fn import_changes(&mut self, shards: &ShardSender) -> Result<(), UpgradeError> {
        self.channel.send(&UpgradeMessage::Serving).map_err(UpgradeError::Channel)?;
        let (reply, imported) = channel();
        let mut waiting = 0;
        loop {
            match self.channel.receive().map_err(UpgradeError::Channel)? {
                UpgradeMessage::Records(stream) => {
                    let pages = records_by_shard(&stream, &self.keys, shards.shards)?;
                    for (shard, records) in pages.into_iter().enumerate() {
                        let reply = reply.clone();
                        shards
                            .send(shard, TransferRequest::ImportPage { number: 0, records, reply });
                        waiting += 1;
                    }
                    while waiting > 0 {
                        let page = imported.recv_timeout(Duration::from_secs(10));
                        let page = page.map_err(|_| UpgradeError::Shard)?;
                        self.counts.add(&page.counts);
                        waiting -= 1;
                    }
                }
                UpgradeMessage::Done => return Ok(()),
                _ => return Err(UpgradeError::Records),
            }
        }
    }
}

/// Divides the records of a stream among the shards. Their times are those of the clock that both processes share.
fn records_by_shard(
    stream: &[u8],
    keys: &SteeringKeys,
    shards: usize,
) -> Result<Vec<Vec<StateRecord>>, UpgradeError> {
    let mut reader = BlockReader::new(stream).map_err(|_| UpgradeError::Records)?;
    let (mut pages, mut records) = (vec![Vec::new(); shards], Vec::new());
    while let Some(block) = reader.next_block().map_err(UpgradeError::Channel)? {
        // The time of a block is that of the clock.
        if !block.records(Seconds(block.unix_secs).signed(), &mut records) {
            return Err(UpgradeError::Records);
        }
    }
    let mut shard = 0;
    let owner = |info_hash: &InfoHash| usize::from(keys.owner(info_hash, shards as u16));
    for record in records {
        if let Some(info_hash) = record.info_hash() {
            shard = owner(info_hash);
        }
        pages[shard].push(record);
    }
    Ok(pages)
}
