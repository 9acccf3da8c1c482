//! Threads of shards: started together, watched, ended together.
//!
//! A shard that ends alone leaves its sockets in their groups, and the kernel would go on filling them: a
//! part of all torrents would be dark. So the end of one is the end of the process.

use crate::process::cpus;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc as notices;
use tsubame_udp::ring::SetupError;

/// Exit code when everything was done
pub const EXIT_DONE: i32 = 0;
/// Exit code for a mistaken config or command line
pub const EXIT_USAGE: i32 = 1;
/// Exit code when the tracker could not start
pub const EXIT_START: i32 = 2;
/// Exit code when a shard has died
pub const EXIT_SHARD: i32 = 3;

/// Why a shard could not start or did not go on
#[derive(Debug, Error)]
pub enum ShardError {
    /// No ring
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The core is not to be had
    #[error("cpus: cannot run on core {0}: {1}; name other cores, or auto")]
    Pin(usize, #[source] io::Error),
    /// No thread, or no runtime on it
    #[error("cannot start: {0}; raise the limits on threads (ulimit -u) and files (ulimit -n)")]
    Start(#[source] io::Error),
    /// The ring failed while serving
    #[error("the ring failed: {0}")]
    Ring(#[source] io::Error),
}

/// A shard that has ended, well or not
#[derive(Debug)]
pub struct ShardExit {
    /// Its number
    pub number: u16,
    /// How
    pub result: Result<(), ShardError>,
}

/// Running shards
#[derive(Debug)]
pub struct Supervisor {
    threads: Vec<JoinHandle<()>>,
    /// Tells of shards that end
    pub ended: notices::UnboundedReceiver<ShardExit>,
}

impl Supervisor {
    /// Starts a thread for each core, and waits until every one has called its `ready`
    ///
    /// A body does its setup, calls `ready`, and serves until it is told to stop.
    pub fn start<B>(bodies: Vec<(usize, B)>) -> Result<Self, ShardError>
    where
        B: FnOnce(&dyn Fn()) -> Result<(), ShardError> + Send + 'static,
    {
        let (ready, all_ready) = mpsc::channel();
        let (tell, ended) = notices::unbounded_channel();
        let mut supervisor = Self { threads: Vec::new(), ended };
        for (number, (cpu, body)) in bodies.into_iter().enumerate() {
            let number = number as u16;
            let (ready, tell) = (ready.clone(), tell.clone());
            let thread = std::thread::Builder::new().name(format!("shard-{number}"));
            let spawned = thread.spawn(move || {
                let tell_ready = || {
                    let _ = ready.send(());
                };
                let pinned = cpus::pin(cpu).map_err(|error| ShardError::Pin(cpu, error));
                let result = pinned.and_then(|()| body(&tell_ready));
                // Nobody listens any more only when the process is about to end anyway.
                let _ = tell.send(ShardExit { number, result });
                // One that has ended is not waited for, either.
                tell_ready();
            });
            supervisor.threads.push(spawned.map_err(ShardError::Start)?);
        }
        drop((ready, tell));
        for _ in 0..supervisor.threads.len() {
            let _ = all_ready.recv();
        }
        match supervisor.ended.try_recv() {
            Ok(ShardExit { result: Err(error), .. }) => Err(error),
            _ => Ok(supervisor),
        }
    }

    /// Waits until all shards have ended, for so long; true if they have
    pub async fn all_ended(&mut self, timeout: Duration) -> bool {
        let count = self.threads.len();
        let all = async {
            for _ in 0..count {
                if self.ended.recv().await.is_none() {
                    break;
                }
            }
        };
        let ended = tokio::time::timeout(timeout, all).await.is_ok();
        if ended {
            for thread in self.threads.drain(..) {
                // A panic has ended the process already.
                let _ = thread.join();
            }
        }
        ended
    }
}

/// Ends the process with one line when any thread panics
///
/// Also in builds that would unwind: a shard that is gone must not go unnoticed.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a thread");
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
        tracing::error!("{name} panicked{place}: {message}; this is a bug, please report it");
        std::process::exit(EXIT_SHARD);
    }));
}
