//! Why the tracker did not start or did not continue.

use crate::control::server::ControlError;
use crate::http::TlsError;
use crate::policy::PolicyError;
use crate::process::cpus::CpuError;
use crate::process::listen::udp::ListenError;
use crate::process::supervisor::ShardError;
use std::io;
use thiserror::Error;

/// Why the tracker did not start, or did not continue.
#[derive(Debug, Error)]
pub enum RunError {
    /// No cores can be used.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// A socket cannot be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The control plane cannot be opened.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The hooks cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A shard cannot start.
    #[error(transparent)]
    Shards(ShardError),
    /// The kernel returns no random numbers.
    #[error("cannot draw keys from the kernel: {0}; getrandom(2) must be permitted")]
    Randomness(getrandom::Error),
    /// The runtime of the control plane cannot start.
    #[error("cannot start the control plane: {0}; raise the limit on files (ulimit -n)")]
    Runtime(#[source] io::Error),
    /// A shard ended without being stopped.
    #[error("shard {0} has died: {1}")]
    ShardDied(u16, String),
}
