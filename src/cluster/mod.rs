//! The protocol by which the nodes of a cluster exchange their swarms.
//!
//! Each node answers from its own memory. It publishes the changes that its clients make, in numbered batches, and
//! applies the batches of the other nodes. Each second it publishes the number of its next batch, by which the other
//! nodes detect missing ones. A node requests missing batches from their sender. If the sender no longer has them, or
//! the node has just started, it requests a snapshot of all swarms.
//!
//! The messages are on these subjects, where `PREFIX` is `cluster.subject` and `NODE` the name of a node
//! ([`subject_token`]):
//!
//! | subject | sender | messages |
//! |---|---|---|
//! | `PREFIX.hello.NODE` | `NODE` | [`Body::Hello`], in all versions |
//! | `PREFIX.v1.delta.NODE` | `NODE` | [`Body::Batch`] |
//! | `PREFIX.v1.request.NODE` | any other | [`Body::ResendRequest`], [`Body::SnapshotRequest`] |
//! | `PREFIX.v1.reply.NODE` | any other | [`Body::Batch`], [`Body::SnapshotBlock`], [`Body::SnapshotRefused`] |
//!
//! A message is a [`Sender`] and a [`Body`] as [postcard](https://postcard.jamesmunns.com/wire-format) writes them, and
//! records as [`crate::state`] encodes them. The module does no I/O and reads no clock: [`ClusterNode`] gets messages
//! and the time, and returns [`Action`]s.

mod event;
mod event_limits;
mod membership;
mod message;
mod node;
mod received_batches;
mod remote_node;
mod sent_batches;
mod snapshot;
mod swarm_transfer;
mod types;

pub use event::{ClusterEvent, SnapshotEvent};
pub use message::{
    BatchPosition, Body, DecodedMessage, Hello, HelloState, NODE_NAME_MAX, NODES_MAX,
    PROTOCOL_VERSION, Sender, decode, encode, is_node_name, subject_token,
};
pub use node::ClusterNode;
pub use types::{
    Action, ClusterCounts, ClusterSettings, MessageSource, MessageSubject, NodeStatus, SwarmState,
};

#[cfg(test)]
mod tests;
