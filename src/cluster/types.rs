//! What a node of a cluster is given, and what it returns.

use super::event::ClusterEvent;
use crate::policy::overrides::ListChange;
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::StateRecord;

/// Settings of a [`crate::cluster::ClusterNode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Name of this node.
    pub node: String,
    /// Time of the start in nanoseconds since 1970.
    pub boot: u64,
    /// How long a peer is stored after its last announce, in seconds.
    pub peer_lifetime_secs: u32,
    /// Digest of the key of connection ids, from which the key cannot be computed.
    pub key_digest: u64,
    /// Whether it may have swarms or changes of the access list of before its start.
    pub has_older_state: bool,
}

/// State of the swarms of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmState {
    /// Number of torrents.
    pub torrents: u64,
    /// Whether too much waits to be applied, so that no more is to be requested.
    pub is_busy: bool,
    /// Whether swarms of before the start are still being read, so that no snapshot can be sent.
    pub is_restoring: bool,
}

/// Where a message is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageSubject {
    /// Hellos of this node.
    Hello,
    /// Batches of this node.
    Delta,
    /// Requests to the node with this name.
    Request(String),
    /// Replies to the node with this name.
    Reply(String),
}

/// The subscription by which a message has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageSource<'a> {
    /// Hellos and batches of the node with this name as a token: see [`crate::cluster::subject_token`].
    FromNode(&'a str),
    /// Requests and replies to this node.
    ToThisNode,
}

/// An action that the caller of a [`crate::cluster::ClusterNode`] must perform.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Publish a message.
    Publish(MessageSubject, Arc<[u8]>),
    /// Import records of other nodes. Their times are of the own clock.
    Import(Vec<StateRecord>),
    /// Make those of these changes of the access list that are later than the own ones.
    ApplyListChanges(Vec<ListChange>),
    /// Begin an export of all swarms: [`crate::cluster::ClusterNode::wants_block`].
    BeginExport,
    /// End the export that [`Self::BeginExport`] began.
    EndExport,
    /// Report an event.
    Report(ClusterEvent),
}

/// Counts of what has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterCounts {
    /// Batches that were published.
    pub sent_batches: u64,
    /// Changes in the published batches.
    pub sent_changes: u64,
    /// Bytes of all messages that were published.
    pub sent_bytes: u64,
    /// Batches of other nodes that were applied.
    pub received_batches: u64,
    /// Changes in the applied batches.
    pub received_changes: u64,
    /// Bytes of all messages that were received.
    pub received_bytes: u64,
    /// Batches that were sent again.
    pub resent_batches: u64,
    /// Requests to other nodes to send batches again.
    pub resend_requests: u64,
    /// Snapshots that were sent.
    pub sent_snapshots: u64,
    /// Snapshots that were received.
    pub received_snapshots: u64,
    /// Messages that were invalid, or of a node that is ignored.
    pub ignored_messages: u64,
}

/// What is known of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Whether it takes part and a hello has arrived recently.
    pub is_present: bool,
    /// Number of batches that are missing.
    pub missing_batches: u64,
    /// For how long batches have been missing, or a snapshot in their place; zero if none are.
    pub lag: Duration,
}
