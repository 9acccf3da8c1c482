//! Errors of a process that is to take over from another one.

use thiserror::Error;

/// Reason why a process cannot take over from another one.
#[derive(Debug, Error)]
pub enum UpgradeError {
    /// The standard input is not the channel, or the other process has ended.
    #[error("upgrade: the process that is to be replaced cannot be reached: {0}")]
    Channel(#[source] std::io::Error),
    /// The other process has another version of the messages.
    #[error(
        "upgrade: the running tracker is of another version ({0}); stop it, and start this one"
    )]
    Version(String),
    /// The number of shards differs.
    #[error(
        "upgrade: cpus: the running tracker has {0} shards, and the config {1}; restart instead"
    )]
    Shards(u16, u16),
    /// A key with addresses has changed.
    #[error("upgrade: {0} differs from what the running tracker serves; restart instead")]
    Addresses(&'static str),
    /// A socket cannot be used.
    #[error("upgrade: a socket of the running tracker cannot be used: {0}")]
    Socket(#[source] std::io::Error),
    /// The records cannot be read.
    #[error("upgrade: the running tracker has sent invalid records; restart instead")]
    Records,
    /// A shard of this process does not answer.
    #[error("upgrade: a shard has not imported records in time; see /healthz")]
    Shard,
}
