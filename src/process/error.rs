//! Errors that prevent the start of the tracker or end it.

use crate::control::listeners::ControlError;
use crate::http::TlsError;
use crate::policy::PolicyError;
use crate::process::cpus::CpuError;
use crate::process::listen::inherited::InheritedError;
use crate::process::listen::udp::ListenError;
use crate::process::privileges::PrivilegeError;
use crate::process::supervisor::ShardError;
use crate::process::upgrade::error::UpgradeError;
use crate::process::xdp::XdpStartError;
use std::io;
use thiserror::Error;

/// Reason why the tracker could not start or has failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// The cores could not be chosen.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// A socket could not be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A socket that the service manager passed cannot be used.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The process that is to be replaced cannot be taken over from.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// Privileges could not be given up.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// XDP cannot be used as configured.
    #[error(transparent)]
    Xdp(#[from] XdpStartError),
    /// The control plane could not listen.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The token of the control plane could not be read.
    #[error("{0}")]
    ControlToken(String),
    /// The certificate could not be loaded.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The hooks or their lists could not be loaded.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A shard could not start.
    #[error(transparent)]
    Shards(ShardError),
    /// The kernel returned no random numbers.
    #[error("cannot read random keys from the kernel: {0}; permit getrandom(2)")]
    Randomness(getrandom::Error),
    /// The runtime of the control plane or its signal handlers could not be started.
    #[error("cannot start the control plane: {0}; raise the limit on open files (ulimit -n)")]
    Runtime(#[source] io::Error),
    /// A shard ended although the tracker was not stopped.
    #[error("shard {0} has died: {1}")]
    ShardDied(u16, String),
    /// The process that has taken over has died before this one has ended.
    #[error("upgrade: process {0} has taken over and died: {1}")]
    SuccessorDied(u32, String),
}
