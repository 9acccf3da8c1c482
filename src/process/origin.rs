//! What a process begins with: new keys and sockets, or those of the process that it takes over from.

use crate::clock::Clock;
use crate::config::Config;
use crate::process::error::RunError;
use crate::process::identity::Identity;
use crate::process::listen::Listeners;
use crate::process::snapshot::connection_id_key;
use crate::process::upgrade::sockets::SocketCopies;
use crate::process::upgrade::take_over::{Predecessor, TakeOver};
use crate::tracker::Tracker;
use std::sync::Arc;
use tsubame_udp::xdp::AttachedInterface;

/// The origin of a process.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) clock: Clock,
    pub(crate) identity: Identity,
    predecessor: Option<Predecessor>,
}

impl Origin {
    /// Reads from the environment whether the process takes over from another one; otherwise draws keys.
    ///
    /// # Errors
    ///
    /// Returns an error if the other process cannot be reached, or the kernel has no random numbers.
    pub(crate) fn new(shards: u16) -> Result<Self, RunError> {
        let predecessor = Predecessor::from_environment()?;
        let (clock, identity) = match &predecessor {
            Some(predecessor) => (predecessor.clock(), predecessor.identity()),
            None => (Clock::new(), Identity::random(shards).map_err(RunError::Randomness)?),
        };
        Ok(Self { clock, identity, predecessor })
    }

    /// Returns whether the process takes over from another one.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.predecessor.is_some()
    }

    /// Binds the sockets of the config, or takes those of the other process; returns them with duplicates for a process
    /// that takes over from this one.
    ///
    /// # Errors
    ///
    /// Returns an error if an address cannot be bound, or differs from those of the other process.
    pub(crate) fn listeners(
        &mut self,
        config: &Config,
        shards: u16,
    ) -> Result<(Listeners, Arc<SocketCopies>), RunError> {
        let keys = self.identity.steering_keys();
        let listeners = match &mut self.predecessor {
            Some(predecessor) => predecessor.listeners(config, shards)?,
            None => Listeners::bind(config, &keys, shards, &self.clock)?,
        };
        let copies = SocketCopies::new(&listeners, config).map_err(RunError::Runtime)?;
        Ok((listeners, Arc::new(copies)))
    }

    /// Returns the interfaces to which the other process has attached its XDP program, if there is one.
    pub(crate) fn take_interfaces(&mut self) -> Vec<AttachedInterface> {
        self.predecessor.as_mut().map(Predecessor::take_interfaces).unwrap_or_default()
    }

    /// Takes the key of connection ids from `storage.directory`, so that the ids that clients have stay valid. Must be
    /// called after privileges were given up.
    pub(crate) fn keep_connection_id_key(&mut self, config: &Config) {
        let Some(directory) = config.storage.directory.as_ref().filter(|_| !self.has_predecessor())
        else {
            return;
        };
        match connection_id_key(directory, self.identity.connection_id_key().0) {
            Ok(key) => self.identity.set_connection_id_key(key),
            Err(error) => tracing::warn!(
                "storage.directory: {error}; until then, clients need new connection ids after a restart"
            ),
        }
    }

    /// Imports the swarms of the other process into the trackers of all shards, if there is one.
    ///
    /// # Errors
    ///
    /// Returns an error if the other process has ended or sends invalid records.
    pub(crate) fn import(
        &mut self,
        trackers: Vec<Tracker>,
    ) -> Result<(Vec<Tracker>, Option<TakeOver>), RunError> {
        let Some(predecessor) = self.predecessor.take() else { return Ok((trackers, None)) };
        let keys = self.identity.steering_keys();
        let (trackers, take_over) = predecessor.import(trackers, (self.clock, keys))?;
        Ok((trackers, Some(take_over)))
    }
}
