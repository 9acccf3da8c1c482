//! The threads of the shards: started together, supervised, and ended together.
//!
//! If one shard ended alone, its sockets would stay in their groups, and the kernel would deliver datagrams to them
//! that nobody answers. So the process ends with it.

use crate::process::cpus;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc as notices;
use tsubame_udp::ring::SetupError;

/// Exit code of success.
pub const EXIT_DONE: i32 = 0;
/// Exit code of a mistake in the config or on the command line.
pub const EXIT_USAGE: i32 = 1;
/// Exit code when the tracker could not start.
pub const EXIT_START: i32 = 2;
/// Exit code when a shard has died.
pub const EXIT_SHARD: i32 = 3;

/// Why a shard could not start, or did not continue.
#[derive(Debug, Error)]
pub enum ShardError {
    /// The io_uring cannot be created.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The core cannot be used.
    #[error("cpus: cannot run on core {0}: {1}; name other cores, or auto")]
    Pin(usize, #[source] io::Error),
    /// The thread or its runtime cannot be started.
    #[error("cannot start: {0}; raise the limits on threads (ulimit -u) and files (ulimit -n)")]
    Start(#[source] io::Error),
    /// The io_uring failed while serving.
    #[error("the ring failed: {0}")]
    Ring(#[source] io::Error),
}

/// The end of a shard.
#[derive(Debug)]
pub struct ShardExit {
    /// Number of the shard.
    pub number: u16,
    /// Why it ended.
    pub result: Result<(), ShardError>,
}

/// The running shards.
#[derive(Debug)]
pub struct Supervisor {
    threads: Vec<JoinHandle<()>>,
    /// Receives the ends of shards.
    pub ended: notices::UnboundedReceiver<ShardExit>,
}

impl Supervisor {
    /// Starts a thread for each core, and waits until each body has called `ready`.
    ///
    /// A body does its setup, calls `ready`, and serves until it is stopped.
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
                // Fails only when the process is about to end.
                let _ = tell.send(ShardExit { number, result });
                // A shard that has ended must not be waited for.
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

    /// Waits at most `timeout` until all shards have ended; returns whether they have.
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
                // A panic would have ended the process.
                let _ = thread.join();
            }
        }
        ended
    }
}

/// Ends the process with a log message when any thread panics.
///
/// That is needed in builds that unwind: a shard that has ended must not go unnoticed.
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
