//! What is known about the cluster, written by its thread and read by the control plane.

use crate::cluster::{ClusterCounts, NodeStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The latest [`ClusterStatus`], written by the thread of the cluster and read by the control plane.
#[derive(Debug, Default)]
pub struct SharedClusterStatus {
    status: Mutex<ClusterStatus>,
}

/// State of this node in the cluster, and of the other nodes.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    /// Name of this node.
    pub node: String,
    /// Whether a NATS server is connected.
    pub is_connected: bool,
    /// Whether another node of the same name was started earlier, so that this one takes no part.
    pub is_refused: bool,
    /// Whether the node is connected, takes part, and has the swarms of every node from which it has hellos.
    pub is_complete: bool,
    /// Counts of messages.
    pub counts: ClusterCounts,
    /// The other nodes.
    pub nodes: Vec<NodeStatus>,
    /// Number of changes of clients that were lost before they were published, because there were too many.
    pub lost_changes: u64,
    /// Number of messages that were not sent because there was no connection, or it was too slow. Most are sent later.
    pub unsent_messages: u64,
    /// Number of torrents, peers and changes of other nodes that were imported.
    pub imported_records: u64,
    /// Number of records and changes of the access list of other nodes that were dropped because too many waited.
    pub dropped_records: u64,
    /// Number of records of other nodes that wait to be imported.
    pub waiting_records: u64,
}

impl SharedClusterStatus {
    /// Changes the status.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ClusterStatus)) {
        change(&mut self.lock());
    }

    /// Returns the status.
    pub fn read(&self) -> ClusterStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ClusterStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
