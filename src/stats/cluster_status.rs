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
    /// Number of torrents and peers of other nodes that were not added because memory was short or a swarm was at its
    /// limit.
    pub refused_records: u64,
    /// Number of records and changes of the access list of other nodes that were not applied because too many waited.
    pub dropped_records: u64,
    /// Number of records of other nodes that wait to be imported.
    pub waiting_records: u64,
}

impl ClusterStatus {
    /// Returns the state as a text. A node without the other ones serves alone, which is no failure.
    pub fn state(&self) -> String {
        let (present, lost): (Vec<_>, Vec<_>) = self.nodes.iter().partition(|node| node.is_present);
        let names = |nodes: &[&NodeStatus]| {
            nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        if !self.is_connected {
            return "not connected to NATS: serving alone; see the log".to_owned();
        }
        let state = match self {
            Self { is_refused: true, .. } => {
                "another node has the same name: serving alone; set cluster.node to another name and restart"
                    .to_owned()
            }
            _ if present.is_empty() => "connected to NATS; no other nodes".to_owned(),
            Self { is_complete: false, .. } => {
                format!(
                    "connected to NATS; other nodes: {}; some of their swarms are still missing",
                    names(&present)
                )
            }
            _ => format!("connected to NATS; other nodes: {}", names(&present)),
        };
        match lost.is_empty() {
            true => state,
            false => format!("{state}; no message from {}", names(&lost)),
        }
    }
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
