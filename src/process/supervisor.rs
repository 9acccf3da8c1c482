//! Threads of the shards: starts them, reports their exits, and waits for them at the end.
//!
//! If one shard ended alone, its sockets would stay in their SO_REUSEPORT groups, and the kernel would deliver
//! datagrams to them that nobody answers. Therefore the process ends when one shard ends.

use crate::process::cpus;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc as tokio_mpsc;
use tsubame_udp::ring::SetupError;

/// Exit code for success.
pub const EXIT_SUCCESS: i32 = 0;
/// Exit code for a mistake in the config or on the command line, and of every command but `run` that fails.
pub const EXIT_USAGE: i32 = 1;
/// Exit code of a tracker that could not start.
pub const EXIT_START: i32 = 2;
/// Exit code of a tracker of which a shard, or the process that takes over, has died, or a thread has panicked.
pub const EXIT_SHARD: i32 = 3;

/// Reason why a shard could not start or has failed.
#[derive(Debug, Error)]
pub enum ShardError {
    /// The io_uring could not be created.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The thread could not be pinned to its core.
    #[error("cpus: cannot run on core {0}: {1}; choose other cores, or auto")]
    Pin(usize, #[source] io::Error),
    /// The thread or its runtime could not be started.
    #[error(
        "cannot start a shard: {0}; raise the limits on threads (ulimit -u) and open files (ulimit -n)"
    )]
    Start(#[source] io::Error),
    /// The io_uring failed while the shard was serving.
    #[error("io_uring failed: {0}")]
    Ring(#[source] io::Error),
}

/// The exit of a shard.
#[derive(Debug)]
pub struct ShardExit {
    /// Number of the shard.
    pub number: u16,
    /// Result of the thread of the shard.
    pub result: Result<(), ShardError>,
}

/// The threads of all shards.
#[derive(Debug)]
pub struct Supervisor {
    threads: Vec<JoinHandle<()>>,
    /// Receives the exit of each shard that ends.
    pub exits: tokio_mpsc::UnboundedReceiver<ShardExit>,
}

impl Supervisor {
    /// Starts a pinned thread for each pair of core and body, and waits until the shard of each body is set up or has
    /// ended.
    ///
    /// A body gets a function that it calls once its shard is set up; then it serves until the shard is stopped.
    ///
    /// # Errors
    ///
    /// Returns the error of the first shard that failed to start.
    pub fn start<B>(bodies: Vec<(usize, B)>) -> Result<Self, ShardError>
    where
        B: FnOnce(&dyn Fn()) -> Result<(), ShardError> + Send + 'static,
    {
        let (ready, all_ready) = mpsc::channel();
        let (exit_sender, exits) = tokio_mpsc::unbounded_channel();
        let mut supervisor = Self { threads: Vec::new(), exits };
        for (number, (cpu, body)) in bodies.into_iter().enumerate() {
            let number = number as u16;
            let (ready, exit_sender) = (ready.clone(), exit_sender.clone());
            let thread = std::thread::Builder::new().name(format!("shard-{number}"));
            let spawned = thread.spawn(move || {
                let signal_ready = || {
                    let _ = ready.send(());
                };
                let pinned = cpus::pin(cpu).map_err(|error| ShardError::Pin(cpu, error));
                let result = pinned.and_then(|()| body(&signal_ready));
                // Fails only when the process is about to end.
                let _ = exit_sender.send(ShardExit { number, result });
                // `start` must not wait for a shard that has ended.
                signal_ready();
            });
            supervisor.threads.push(spawned.map_err(ShardError::Start)?);
        }
        drop((ready, exit_sender));
        for _ in 0..supervisor.threads.len() {
            let _ = all_ready.recv();
        }
        match supervisor.exits.try_recv() {
            Ok(ShardExit { result: Err(error), .. }) => Err(error),
            _ => Ok(supervisor),
        }
    }

    /// Waits at most `timeout` until all shards have ended; returns whether they have.
    pub async fn wait_for_exits(&mut self, timeout: Duration) -> bool {
        let count = self.threads.len();
        let all = async {
            for _ in 0..count {
                if self.exits.recv().await.is_none() {
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

/// Makes a panic in any thread end the process, with one line in the log.
///
/// This also applies to builds that unwind: a shard that has died must not go unnoticed.
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
