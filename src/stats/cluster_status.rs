//! What is known about the cluster, written by its thread and read by the control plane.

use crate::cluster::{ClusterCounts, NodeStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// State of the cluster.
#[derive(Debug, Default)]
pub struct ClusterStatus {
    report: Mutex<ClusterReport>,
}

/// State of the cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct ClusterReport {
    /// Name of this node.
    pub node: String,
    /// Whether a NATS server is connected.
    pub is_connected: bool,
    /// Whether an older node has the same name, so that this one takes no part.
    pub is_refused: bool,
    /// Whether the node takes part, and lacks nothing of the others that a snapshot must bring.
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
    /// Number of those that were dropped because the shards were too busy.
    pub dropped_records: u64,
    /// Number of records of other nodes that wait to be imported.
    pub waiting_records: u64,
}

impl ClusterStatus {
    /// Changes the report.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ClusterReport)) {
        change(&mut self.report());
    }

    /// Returns the report.
    pub fn read(&self) -> ClusterReport {
        self.report().clone()
    }

    fn report(&self) -> MutexGuard<'_, ClusterReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
