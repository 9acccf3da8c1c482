//! Why the tracker did not start or did not continue.

use crate::control::server::ControlError;
use crate::http::TlsError;
use crate::policy::PolicyError;
use crate::process::cpus::CpuError;
use crate::process::listen::udp::ListenError;
use crate::process::supervisor::ShardError;
use std::io;
use thiserror::Error;

/// Why the tracker did not start or did not go on
#[derive(Debug, Error)]
pub enum RunError {
    /// No cores
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// No sockets
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No control plane
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No certificate
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No policy
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No shards
    #[error(transparent)]
    Shards(ShardError),
    /// No keys
    #[error("cannot draw keys from the kernel: {0}; getrandom(2) must be permitted")]
    Randomness(getrandom::Error),
    /// No signals, or no thread for them
    #[error("cannot start the control plane: {0}; raise the limit on files (ulimit -n)")]
    Runtime(#[source] io::Error),
    /// A shard ended by itself
    #[error("shard {0} has died: {1}")]
    ShardDied(u16, String),
}
