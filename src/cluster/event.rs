//! What a node reports to its operator.

use super::message::{NODES_MAX, PROTOCOL_VERSION};
use std::fmt;
use std::time::Duration;

/// A change that the operator should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// The first hello of another node, or the first one after it was lost.
    NodeFound(String),
    /// Another node has ended.
    NodeLeft(String),
    /// No message of another node has arrived for this time.
    NodeLost(String, Duration),
    /// A node of the same name was started earlier: this one takes no part.
    NameTaken(String),
    /// The other node of the same name has stopped.
    NameFree(String),
    /// A node of the same name was started later.
    NameUsed(String),
    /// The lifetimes of peers of another node and of this node differ. Both are in seconds.
    DifferentLifetime {
        /// The other node.
        node: String,
        /// The lifetime on the other node.
        other: u32,
        /// The lifetime on this node.
        own: u32,
    },
    /// The keys of connection ids of another node differ.
    DifferentKeys(String),
    /// Another node has this other version of the protocol, and is ignored.
    OtherVersion(String, u16),
    /// There are too many nodes, and this one is ignored.
    TooManyNodes(String),
    /// Batches were missed that the other node no longer has.
    Missed(String),
    /// An event of a snapshot that the node receives or sends.
    Snapshot(SnapshotEvent),
    /// A message was invalid. The text has the reason and the cure.
    Invalid(String),
    /// The `max_payload` of the server is too small.
    PayloadLimitTooSmall {
        /// The `max_payload` in bytes.
        len: usize,
        /// The smallest one with which a node works.
        min: usize,
    },
    /// There were so many events that further ones are not reported for a minute.
    TooManyEvents,
}

impl ClusterEvent {
    /// Returns whether the operator should do something about it.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::NodeFound(_) | Self::NodeLeft(_) | Self::NameFree(_) => false,
            Self::Snapshot(event) => event.is_warning(),
            Self::NodeLost(..)
            | Self::NameTaken(_)
            | Self::NameUsed(_)
            | Self::DifferentLifetime { .. }
            | Self::DifferentKeys(_)
            | Self::OtherVersion(..)
            | Self::TooManyNodes(_)
            | Self::Missed(_)
            | Self::Invalid(_)
            | Self::PayloadLimitTooSmall { .. }
            | Self::TooManyEvents => true,
        }
    }
}

impl fmt::Display for ClusterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeFound(node) => write!(f, "node {node:?} has joined"),
            Self::NodeLeft(node) => write!(f, "node {node:?} has stopped"),
            Self::NodeLost(node, time) => write!(
                f,
                "no message from node {node:?} for {} s; its peers stay until they expire; check that it runs and \
                 reaches a NATS server",
                time.as_secs()
            ),
            Self::NameTaken(node) => write!(
                f,
                "another node is named {node:?} and was started earlier: this node serves alone; set cluster.node to \
                 another name and restart"
            ),
            Self::NameFree(node) => {
                write!(f, "the other node named {node:?} has stopped: this node takes part")
            }
            Self::NameUsed(node) => write!(
                f,
                "another node is named {node:?} and was started later: it serves alone; set its cluster.node to \
                 another name and restart it"
            ),
            Self::DifferentLifetime { node, other, own } => write!(
                f,
                "announce.peer_lifetime is {other} s on node {node:?} and {own} s on this node: peers expire at \
                 different times; set the same value on all nodes"
            ),
            Self::DifferentKeys(node) => write!(
                f,
                "udp.connection_id_keys of node {node:?} differ: clients that change nodes must connect again; give \
                 all nodes the same file of keys"
            ),
            Self::OtherVersion(node, version) => write!(
                f,
                "node {node:?} has version {version} of the protocol, this node {PROTOCOL_VERSION}: they ignore each \
                 other; upgrade the one with the older version"
            ),
            Self::TooManyNodes(node) => write!(
                f,
                "node {node:?} is ignored: there are {NODES_MAX} other nodes already; run fewer nodes in one cluster"
            ),
            Self::Missed(node) => write!(
                f,
                "node {node:?} no longer has batches that this node has missed: a snapshot will be requested"
            ),
            Self::Snapshot(event) => event.fmt(f),
            Self::PayloadLimitTooSmall { len, min } => write!(
                f,
                "max_payload of the NATS server is {len} bytes: too little for the changes and snapshots of a large \
                 tracker; set it to at least {min} bytes"
            ),
            Self::TooManyEvents => {
                write!(
                    f,
                    "too many events of the cluster in a minute; further ones in this minute are not logged"
                )
            }
            Self::Invalid(reason) => write!(f, "ignored a message: {reason}"),
        }
    }
}

/// An event of a snapshot between two nodes. The name is that of the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotEvent {
    /// The first part of a snapshot has arrived.
    Begun(String),
    /// The other node has refused to send a snapshot.
    Refused(String),
    /// A snapshot was received: number of its records, and the time that it took.
    Received(String, u64, Duration),
    /// The snapshot of the other node was given up.
    Failed(String),
    /// The other node has not received the snapshot of this node in the maximum time.
    TooSlow(String, Duration),
}

impl SnapshotEvent {
    fn is_warning(&self) -> bool {
        match self {
            Self::Begun(_) | Self::Refused(_) | Self::Received(..) => false,
            Self::Failed(_) | Self::TooSlow(..) => true,
        }
    }
}

impl fmt::Display for SnapshotEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun(node) => write!(f, "receiving the swarms of node {node:?}"),
            Self::Refused(node) => write!(
                f,
                "node {node:?} cannot send its swarms now: it is busy, still reads its snapshot from the disk, or \
                 sends its swarms to another node; requesting them again every 2 s, from another node if there is one"
            ),
            Self::Received(node, records, time) => write!(
                f,
                "received the swarms of node {node:?}: {} torrents and peers in {:.1} s",
                crate::text::grouped(*records),
                time.as_secs_f64()
            ),
            Self::Failed(node) => write!(
                f,
                "node {node:?} has sent no part of its swarms for 10 s; requesting them again, from another node if \
                 there is one"
            ),
            Self::TooSlow(node, time) => write!(
                f,
                "node {node:?} has not received the swarms of this node within {} s; check the network and the \
                 max_payload of the NATS server",
                time.as_secs()
            ),
        }
    }
}
