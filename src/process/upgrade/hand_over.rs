//! The old process of an upgrade: starts the new one, and sends it the sockets and the swarms.

use super::channel::{UpgradeChannel, UpgradeMessage};
use super::greeting::{ENVIRONMENT, Greeting, LinkEntry, PROTOCOL_VERSION, STEP_TIMEOUT};
use super::program::{Program, ProgramStarter};
use super::sockets::SocketCopies;
use crate::clock::Clock;
use crate::process::cpus;
use crate::process::identity::Identity;
use crate::process::memory;
use crate::process::shard_export::{ShardExport, ShardSender, UnansweredExport};
use crate::process::xdp::XdpLinks;
use crate::state::{write_block, write_header};
use crate::text::iec;
use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tsubame_storage::StateRecord;
use tsubame_udp::xdp::{AttachedInterface, XdpMode};

/// Free memory that an upgrade needs, as a percentage of that of the swarms.
const MEMORY_PERCENT: usize = 130;

/// Time that an upgrade that is aborted may take to end.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time that a snapshot that is being written may take to be given up.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that the thread that controls XDP may take to duplicate its links.
const LINKS_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason why an upgrade has failed. The process serves on, unless the new one serves already.
#[derive(Debug, Error)]
enum UpgradeFailure {
    #[error(
        "{} of memory are free, and {} are needed: 1.3 times that of the swarms; restart instead",
        iec(*.0 as u64),
        iec(*.1 as u64)
    )]
    Memory(usize, usize),
    #[error("a snapshot is being written to a disk that does not answer; try again later")]
    Snapshot,
    #[error("the networks of XDP are being written; try again later")]
    Xdp,
    #[error("{} cannot be started: {}; install it, and try again", .0.display(), .1)]
    Start(PathBuf, #[source] io::Error),
    #[error("the new process has ended ({0}); its messages are above")]
    Ended(String),
    #[error("the new process does not answer: {0}")]
    Channel(#[from] io::Error),
    #[error(transparent)]
    Shard(#[from] UnansweredExport),
    #[error(
        "clients change more than can be sent: {0} changes were lost; try again when there is less load"
    )]
    Lost(u64),
    #[error("the tracker is stopping")]
    Aborted,
}

/// What happens in an upgrade.
#[derive(Debug)]
pub(crate) enum UpgradeEvent {
    /// It has failed; this process serves on, unless the new one serves.
    Failed {
        /// The reason.
        reason: String,
        /// Whether the new process has ended.
        has_ended: bool,
    },
    /// The process with this number serves. This one is to stop.
    Serving(u32),
    /// The other process has all swarms.
    Complete,
}

/// What an upgrade needs.
pub(crate) struct UpgradeParts {
    pub(crate) program: Program,
    pub(crate) identity: Identity,
    pub(crate) clock: Clock,
    pub(crate) sockets: Arc<SocketCopies>,
    pub(crate) shards: ShardSender,
    pub(crate) starter: ProgramStarter,
    /// Bytes of all swarms.
    pub(crate) table_bytes: usize,
    /// Links of the XDP program, if there is one.
    pub(crate) xdp: Option<XdpLinks>,
}

/// An upgrade that is in progress.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(crate) events: UnboundedReceiver<UpgradeEvent>,
    is_aborted: Arc<AtomicBool>,
    /// Number of the new process; 0 before it was started.
    child: Arc<AtomicU32>,
}

impl Upgrade {
    /// Starts an upgrade in a thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(parts: UpgradeParts) -> io::Result<Self> {
        let (sender, events) = unbounded_channel();
        let is_aborted = Arc::new(AtomicBool::new(false));
        let child = Arc::<AtomicU32>::default();
        let job = UpgradeJob {
            parts,
            events: sender,
            is_aborted: is_aborted.clone(),
            child: child.clone(),
        };
        std::thread::Builder::new().name("upgrade".to_owned()).spawn(move || job.run())?;
        Ok(Self { events, is_aborted, child })
    }

    /// Ends the new process, because this one stops, and waits until the upgrade has ended.
    pub(crate) async fn abort(mut self) {
        self.is_aborted.store(true, Ordering::Relaxed);
        self.kill_child();
        let ended =
            async { while let Some(UpgradeEvent::Serving(_)) = self.events.recv().await {} };
        // A thread that waits for the channel goes on once the process has ended.
        let _ = tokio::time::timeout(ABORT_TIMEOUT, ended).await;
        self.kill_child();
    }

    fn kill_child(&self) {
        // At most 2^22.
        let child = Pid::from_raw(self.child.load(Ordering::Relaxed) as i32);
        if let Some(child) = child {
            let _ = kill_process(child, Signal::KILL);
        }
    }
}

/// The new process, which is ended when this is dropped, unless it serves.
struct Successor {
    process: Child,
    /// Its PID, shared with the control plane; 0 once it was waited for, after which the kernel may reuse the PID.
    number: Arc<AtomicU32>,
    is_serving: bool,
}

impl Successor {
    /// Returns the exit status of the process if it has ended.
    fn exit_status(&mut self) -> Option<ExitStatus> {
        let status = self.process.try_wait().ok().flatten();
        if status.is_some() {
            self.number.store(0, Ordering::Relaxed);
        }
        status
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.is_serving {
            let _ = self.process.kill();
            self.number.store(0, Ordering::Relaxed);
            let _ = self.process.wait();
        }
    }
}

struct UpgradeJob {
    parts: UpgradeParts,
    events: UnboundedSender<UpgradeEvent>,
    is_aborted: Arc<AtomicBool>,
    child: Arc<AtomicU32>,
}

impl UpgradeJob {
    fn run(self) {
        cpus::set_lowest_priority();
        let event = match self.try_run() {
            Ok(()) => UpgradeEvent::Complete,
            Err(failure) => UpgradeEvent::Failed {
                reason: failure.to_string(),
                has_ended: matches!(failure, UpgradeFailure::Ended(_)),
            },
        };
        let _ = self.events.send(event);
    }

    fn try_run(&self) -> Result<(), UpgradeFailure> {
        self.check_memory()?;
        // Dropped at the end, whereupon snapshots are written again.
        let export_lock = &self.parts.shards.export_lock;
        let _guard = export_lock.lock_urgently(LOCK_TIMEOUT).ok_or(UpgradeFailure::Snapshot)?;
        let (mut successor, mut channel) = self.start_successor()?;
        let sent = self.send_swarms(&mut successor, &mut channel);
        match sent {
            // The channel breaks when the process ends, which says more.
            Err(UpgradeFailure::Channel(error)) => {
                // It is closed before the exit status of the process can be read.
                self.parts.clock.pause_before_retry();
                let ended = successor.exit_status();
                Err(match ended {
                    Some(status) => UpgradeFailure::Ended(status.to_string()),
                    None => UpgradeFailure::Channel(error),
                })
            }
            sent => sent,
        }
    }

    fn check_memory(&self) -> Result<(), UpgradeFailure> {
        let needed = self.parts.table_bytes / 100 * MEMORY_PERCENT;
        match memory::free() {
            Some(free) if free < needed => Err(UpgradeFailure::Memory(free, needed)),
            _ => Ok(()),
        }
    }

    /// Starts the new process, and waits until it has read its config and has the sockets.
    fn start_successor(&self) -> Result<(Successor, UpgradeChannel), UpgradeFailure> {
        let links = match &self.parts.xdp {
            Some(xdp) => xdp.duplicate(LINKS_TIMEOUT).ok_or(UpgradeFailure::Xdp)?,
            None => Vec::new(),
        };
        let Program { path, arguments } = &self.parts.program;
        let (own_end, other_end) = UnixStream::pair()?;
        let mut command = Command::new(path);
        command.args(arguments).env(ENVIRONMENT, "1").stdin(Stdio::from(OwnedFd::from(other_end)));
        // The watchdog of systemd expects this process until it is told of the other one. Sockets that systemd has
        // passed are sent with the others.
        command.env_remove("WATCHDOG_PID").env_remove("LISTEN_PID").env_remove("LISTEN_FDS");
        let started = self.parts.starter.start(command);
        let process = started.map_err(|error| UpgradeFailure::Start(path.clone(), error))?;
        self.child.store(process.id(), Ordering::Relaxed);
        let number = self.child.clone();
        let mut process = Successor { process, number, is_serving: false };
        let mut channel = UpgradeChannel::new(own_end);
        channel.set_timeout(STEP_TIMEOUT)?;
        let entry = |attached: &AttachedInterface| LinkEntry {
            interface: attached.index(),
            is_native: attached.mode() == XdpMode::Native,
        };
        let greeting = Greeting {
            version: PROTOCOL_VERSION,
            process: std::process::id(),
            identity: self.parts.identity.clone(),
            clock_origin: self.parts.clock.origin(),
            sockets: self.parts.sockets.list.clone(),
            links: links.iter().map(entry).collect(),
        };
        let sockets = self.parts.sockets.sockets().into_iter();
        let descriptors: Vec<_> = sockets.chain(links.iter().map(AsFd::as_fd)).collect();
        let hello = serde_json::to_vec(&greeting).map_err(io::Error::other)?;
        let exchanged = channel.send(&UpgradeMessage::Hello(hello)).and_then(|()| {
            channel.send_descriptors(&descriptors)?;
            self.wait_for(&mut channel, &UpgradeMessage::Ready)
        });
        match exchanged {
            Ok(()) => Ok((process, channel)),
            Err(error) => {
                // The channel is closed before the exit status of the process can be read.
                self.parts.clock.pause_before_retry();
                let ended = process.exit_status();
                Err(match ended {
                    _ if self.is_aborted.load(Ordering::Relaxed) => UpgradeFailure::Aborted,
                    Some(status) => UpgradeFailure::Ended(status.to_string()),
                    None => UpgradeFailure::Channel(error),
                })
            }
        }
    }

    /// Waits for a message, but no longer than until the upgrade is aborted.
    fn wait_for(&self, channel: &mut UpgradeChannel, message: &UpgradeMessage) -> io::Result<()> {
        let started = self.parts.clock.elapsed();
        while !channel.is_readable() {
            let waited = self.parts.clock.elapsed().saturating_sub(started);
            if waited >= STEP_TIMEOUT || self.is_aborted.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            }
            self.parts.clock.pause_before_retry();
        }
        match channel.receive()? {
            received if received == *message => Ok(()),
            received => Err(io::Error::other(format!("it has sent {received:?}"))),
        }
    }

    /// Sends all swarms and their changes, until the new process serves and this one has answered its last request.
    fn send_swarms(
        &self,
        successor: &mut Successor,
        channel: &mut UpgradeChannel,
    ) -> Result<(), UpgradeFailure> {
        let UpgradeParts { clock, shards, .. } = &self.parts;
        let mut export = ShardExport::begin(shards.clone(), *clock, true);
        let (mut is_caught_up, mut caught_up_at) = (false, Duration::ZERO);
        loop {
            export.step(&mut |records: &[StateRecord]| send_records(channel, *clock, records))?;
            if self.is_aborted.load(Ordering::Relaxed) {
                return Err(UpgradeFailure::Aborted);
            }
            if export.lost_changes() > 0 {
                return Err(UpgradeFailure::Lost(export.lost_changes()));
            }
            if !is_caught_up && !export.has_torrents() {
                channel.send(&UpgradeMessage::CaughtUp)?;
                (is_caught_up, caught_up_at) = (true, clock.elapsed());
            }
            if channel.is_readable() {
                match channel.receive()? {
                    UpgradeMessage::Serving if is_caught_up => break,
                    message => Err(io::Error::other(format!("it has sent {message:?}")))?,
                }
            }
            if is_caught_up && clock.elapsed().saturating_sub(caught_up_at) >= STEP_TIMEOUT {
                Err(io::Error::from(io::ErrorKind::TimedOut))?;
            }
        }
        let mut add = |records: &[StateRecord]| send_records(channel, *clock, records);
        export.settle(&mut add)?;
        if self.is_aborted.load(Ordering::Relaxed) {
            return Err(UpgradeFailure::Aborted);
        }
        successor.is_serving = true;
        let _ = self.events.send(UpgradeEvent::Serving(successor.process.id()));
        let is_aborted = || self.is_aborted.load(Ordering::Relaxed);
        let lost = export.finish(&mut add, &is_aborted)?;
        if lost > 0 {
            tracing::warn!("upgrade: {lost} changes of the last moments were lost");
        }
        channel.send(&UpgradeMessage::Done)?;
        match channel.receive()? {
            UpgradeMessage::Complete => Ok(()),
            message => Err(io::Error::other(format!("it has sent {message:?}")))?,
        }
    }
}

/// Sends records. The time of their block is that of the clock, which both processes share.
fn send_records(
    channel: &mut UpgradeChannel,
    clock: Clock,
    records: &[StateRecord],
) -> Result<(), UpgradeFailure> {
    if records.is_empty() {
        return Ok(());
    }
    let (mut stream, now) = (Vec::new(), clock.now().monotonic);
    write_header(now.0, &mut stream);
    write_block(records, now.signed(), now.0, &mut stream);
    Ok(channel.send(&UpgradeMessage::Records(stream))?)
}
