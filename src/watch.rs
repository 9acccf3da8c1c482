//! The control plane's loop: signals, reloads, steering, warnings.

use crate::control::{self, ControlListeners, Watched};
use crate::mesh::{Message, Port};
use crate::reload::{Command, Job, Reloads};
use crate::run::RunError;
use crate::settings::ShardUpdate;
use crate::stats::{Board, Figures};
use crate::steering::{ShardLoad, Steering};
use crate::supervisor::{Ended, Supervisor};
use crate::{cpus, memory, report};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How long shards may take to stop
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

/// How often the control plane looks at shards and files, and how many looks there are between two of warnings
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOKS_PER_REPORT: u32 = 10;

/// A running tracker, with what the control plane needs to watch it
pub(crate) struct Running {
    pub(crate) supervisor: Supervisor,
    pub(crate) control: Port,
    pub(crate) watched: Watched,
    pub(crate) steering: Steering,
    pub(crate) reloads: Reloads,
    /// Policies that no shard goes by any more
    pub(crate) to_free: UnboundedReceiver<Box<ShardUpdate>>,
}

/// Serves the control plane on this thread until the end; `started` is called once signals are heard
pub(crate) fn control_plane(
    runtime: &Runtime,
    (running, signals): (Running, Signals),
    listeners: ControlListeners,
    started: impl FnOnce(&ControlListeners),
) -> Result<(), RunError> {
    cpus::step_back();
    runtime.block_on(async {
        let stop = |kind| signal(kind).map_err(RunError::Runtime);
        let stop = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
        started(&listeners);
        let socket = listeners.unix.as_ref().map(|(_, path)| path.clone());
        let (ask, commands) = unbounded_channel();
        let hosts = running.reloads.config().control.hosts.clone();
        let watched = running.watched.clone();
        tokio::spawn(async move {
            if let Err(error) = control::serve(listeners, hosts, watched, ask).await {
                tracing::error!("control: cannot be served: {error}; restart the tracker");
            }
        });
        let ended = watch(running, stop, signals, commands).await;
        if let Some(socket) = socket {
            // It may be gone already.
            let _ = std::fs::remove_file(socket);
        }
        ended
    })
}

/// The signals that do not end the process; they are handled before anything is read
pub(crate) struct Signals {
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    /// Signals that are ignored, whose default action ends the process
    ignored: [Signal; 6],
}

impl Signals {
    /// Handles them from now on, in the runtime that the caller has entered
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            ignored: [
                signal(SignalKind::alarm())?,
                signal(SignalKind::io())?,
                signal(SignalKind::pipe())?,
                // These have no names there.
                signal(SignalKind::from_raw(libc::SIGVTALRM))?,
                signal(SignalKind::from_raw(libc::SIGPROF))?,
                signal(SignalKind::from_raw(libc::SIGPWR))?,
            ],
        })
    }
}

/// Waits for a signal that is ignored; returns its name
async fn ignored(
    [alarm, io, pipe, virtual_alarm, profile, power]: &mut [Signal; 6],
) -> &'static str {
    tokio::select! {
        _ = alarm.recv() => "SIGALRM",
        _ = io.recv() => "SIGIO",
        _ = pipe.recv() => "SIGPIPE",
        _ = virtual_alarm.recv() => "SIGVTALRM",
        _ = profile.recv() => "SIGPROF",
        _ = power.recv() => "SIGPWR",
    }
}

async fn watch(
    mut running: Running,
    (mut interrupt, mut terminate): (Signal, Signal),
    signals: Signals,
    mut commands: UnboundedReceiver<Command>,
) -> Result<(), RunError> {
    let Signals { mut hangup, mut user1, mut user2, ignored: mut others } = signals;
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    let mut looks = Looks::new(&running);
    let signal = loop {
        tokio::select! {
            _ = interrupt.recv() => break "SIGINT",
            _ = terminate.recv() => break "SIGTERM",
            _ = hangup.recv() => running.reloads.ask((Job::Config, None)),
            _ = user1.recv() => running.reloads.ask((Job::Config, None)),
            _ = user2.recv() => {
                tracing::info!("SIGUSR2 is ignored: it is reserved for a later version");
            }
            name = ignored(&mut others) => tracing::debug!("{name} is ignored"),
            Some(command) = commands.recv() => running.reloads.ask(command),
            updates = running.reloads.done() => send(&mut running.control, updates).await,
            Some(retired) = running.to_free.recv() => free(retired),
            _ = look.tick() => looks.look(&mut running),
            ended = running.supervisor.ended.recv() => return Err(died(ended)),
        }
    };
    tracing::info!("{signal}: stopping");
    for shard in 0..running.watched.boards.len() {
        running.control.send(shard, Message::Stop);
    }
    running.control.ring();
    let ended = running.supervisor.all_ended(STOP_TIMEOUT).await;
    report::stopped(&sum(&running.watched.boards), running.watched.clock.elapsed(), ended);
    Ok(())
}

/// State of the shards when the control plane last looked at them
struct Looks {
    count: u32,
    /// By shard: when it published, and what
    shards: Vec<(u64, Figures)>,
    reported: Figures,
    episodes: u64,
    stuck: Vec<String>,
    /// UDP ports, until it is known that the kernel tracks connections to one
    untracked_ports: Vec<u16>,
}

impl Looks {
    fn new(running: &Running) -> Self {
        let read = |board: &Arc<Board>| (board.written().0, board.read());
        let shards = running.watched.boards.iter().map(read).collect();
        Self {
            count: 0,
            shards,
            reported: Figures::default(),
            episodes: 0,
            stuck: Vec::new(),
            untracked_ports: running.reloads.udp_ports(),
        }
    }

    fn look(&mut self, running: &mut Running) {
        running.reloads.look();
        self.look_at_steering(running);
        self.look_at_reads(running);
        let watched = &running.watched;
        let figures = sum(&watched.boards);
        let ceiling = memory::ceiling(running.reloads.config().storage.memory);
        watched.process.memory_ceiling_bytes.store(ceiling.bytes as u64, Ordering::Relaxed);
        if figures.table.evicted.episodes > self.episodes && figures.table.top_sources[0].is_some()
        {
            self.episodes = figures.table.evicted.episodes;
            report::pressure(&figures);
        }
        self.count += 1;
        if self.count.is_multiple_of(LOOKS_PER_REPORT) {
            report::watched(&self.reported, &figures, running.steering.is_attached());
            self.reported = figures;
            if report::connection_tracking(&self.untracked_ports) {
                self.untracked_ports.clear();
            }
        }
    }

    /// Switches steering off where one shard is overloaded while others idle, and on again
    fn look_at_steering(&mut self, running: &mut Running) {
        let watched = &running.watched;
        let read = |board: &Arc<Board>| (board.written().0, board.read());
        let shards: Vec<(u64, Figures)> = watched.boards.iter().map(read).collect();
        // Shards publish once a second, each at its own time: two looks may fall between the same.
        let both = self.shards.iter().zip(&shards);
        if both.clone().any(|((before, _), (now, _))| before >= now) {
            return;
        }
        let load =
            |((before_secs, before), (now_secs, now)): (&(u64, Figures), &(u64, Figures))| {
                let seconds = (now_secs - before_secs) as f64;
                let busy = now.busy_us.saturating_sub(before.busy_us) as f64 / 1e6 / seconds;
                let dropped = now.ring.dropped_by_kernel - before.ring.dropped_by_kernel;
                let waited = now.ring.out_of_buffers - before.ring.out_of_buffers;
                ShardLoad { busy, dropped, waited }
            };
        let loads: Vec<ShardLoad> = both.map(load).collect();
        self.shards = shards;
        report::steering(running.steering.observe(watched.clock.elapsed(), &loads));
        let process = &watched.process;
        process.steering_attached.store(running.steering.is_attached(), Ordering::Relaxed);
        process.steering_detached.store(running.steering.detached(), Ordering::Relaxed);
    }

    /// Says which reads of files take too long, once each
    fn look_at_reads(&mut self, running: &Running) {
        let stuck = running.watched.slow_reads.stuck();
        for (name, since) in stuck.iter().filter(|(name, _)| !self.stuck.contains(name)) {
            tracing::error!(
                "reading {name} takes longer than {} s; see that its file system answers. What was read before is used",
                since.as_secs()
            );
        }
        self.stuck = stuck.into_iter().map(|(name, _)| name).collect();
    }
}

/// Sends each shard what changes for it, waiting for room if need be
async fn send(control: &mut Port, updates: Vec<ShardUpdate>) {
    for (shard, update) in updates.into_iter().enumerate() {
        // A shard that is stuck for so long ends the process soon, or is ended by who watches.
        for _ in 0..1_000 {
            if control.has_room(shard) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !control.send(shard, Message::Update(Box::new(update))) {
            tracing::error!(
                "shard {shard} takes no messages and goes by the settings before; restart the tracker"
            );
        }
    }
    control.ring();
}

/// Frees a policy where nobody waits
fn free(retired: Box<ShardUpdate>) {
    tokio::task::spawn_blocking(move || drop(retired));
}

fn died(ended: Option<Ended>) -> RunError {
    match ended {
        Some(Ended { number, result: Err(error) }) => {
            RunError::ShardDied(number, error.to_string())
        }
        Some(Ended { number, result: Ok(()) }) => {
            RunError::ShardDied(number, "it ended without being told to".to_owned())
        }
        None => RunError::ShardDied(0, "all shards have ended".to_owned()),
    }
}

fn sum(boards: &[Arc<Board>]) -> Figures {
    let mut sum = Figures::default();
    boards.iter().for_each(|board| sum.add(&board.read()));
    sum
}
