//! What a node reports to its operator.

use std::fmt;
use std::time::Duration;

/// A change that the operator should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// Another node was heard for the first time, or again.
    NodeFound(String),
    /// Another node has ended.
    NodeLeft(String),
    /// Another node was not heard for this time.
    NodeLost(String, Duration),
    /// A node of the same name is older: this one takes no part.
    NameTaken(String),
    /// The older node of the same name is not heard any more.
    NameFree(String),
    /// A younger node of the same name was heard.
    NameUsed(String),
    /// Another node has another lifetime of peers, in seconds; the second one is that of this node.
    OtherLifetime(String, u32, u32),
    /// Another node has another key of connection ids.
    OtherKeys(String),
    /// Another node has a newer version of the protocol, and is ignored.
    NewerVersion(String, u16),
    /// There are too many nodes, and this one is ignored.
    TooManyNodes(String),
    /// Changes of another node were missed which it can send no more.
    Missed(String),
    /// A snapshot was asked for.
    SnapshotRequested(String),
    /// A snapshot was received: number of its records, and the time that it took.
    SnapshotReceived(String, u64, Duration),
    /// A snapshot was given up.
    SnapshotFailed(String),
    /// A message was no valid one.
    Invalid(String),
    /// The server permits messages of this many bytes only, and not of the second number.
    ShortMessages(usize, usize),
    /// There were so many events that further ones are not reported for a minute.
    TooManyEvents,
}

impl ClusterEvent {
    /// Returns whether the operator should do something about it.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::NodeFound(_)
            | Self::NodeLeft(_)
            | Self::NameFree(_)
            | Self::SnapshotRequested(_)
            | Self::SnapshotReceived(..) => false,
            Self::NodeLost(..)
            | Self::NameTaken(_)
            | Self::NameUsed(_)
            | Self::OtherLifetime(..)
            | Self::OtherKeys(_)
            | Self::NewerVersion(..)
            | Self::TooManyNodes(_)
            | Self::Missed(_)
            | Self::SnapshotFailed(_)
            | Self::Invalid(_)
            | Self::ShortMessages(..)
            | Self::TooManyEvents => true,
        }
    }
}

impl fmt::Display for ClusterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeFound(node) => write!(f, "node {node:?} is connected"),
            Self::NodeLeft(node) => write!(f, "node {node:?} has stopped"),
            Self::NodeLost(node, time) => write!(
                f,
                "node {node:?} was not heard for {} s; its peers stay until they expire; check that it runs and \
                 reaches a NATS server",
                time.as_secs()
            ),
            Self::NameTaken(node) => write!(
                f,
                "another node is named {node:?} and is older: this one serves alone; set cluster.node to another name"
            ),
            Self::NameFree(node) => {
                write!(f, "the other node named {node:?} is gone: this one takes part")
            }
            Self::NameUsed(node) => write!(
                f,
                "another node is named {node:?} and takes no part; set its cluster.node to another name"
            ),
            Self::OtherLifetime(node, other, own) => write!(
                f,
                "announce.peer_lifetime is {other} s on node {node:?} and {own} s on this node: peers expire at \
                 different times; set the same value on all nodes"
            ),
            Self::OtherKeys(node) => write!(
                f,
                "node {node:?} has another udp.connection_id_keys: clients that change nodes need new connection ids; \
                 give all nodes the same file"
            ),
            Self::NewerVersion(node, version) => write!(
                f,
                "node {node:?} has version {version} of the protocol and is ignored; upgrade this node"
            ),
            Self::TooManyNodes(node) => write!(
                f,
                "node {node:?} is ignored: there are {} other nodes already; run fewer nodes in one cluster",
                super::message::NODES_MAX
            ),
            Self::Missed(node) => write!(
                f,
                "changes of node {node:?} were missed which it can send no more: a snapshot will replace them"
            ),
            Self::SnapshotRequested(node) => write!(f, "requesting the swarms of node {node:?}"),
            Self::SnapshotReceived(node, records, time) => write!(
                f,
                "received the swarms of node {node:?}: {} torrents and peers in {:.1} s",
                crate::text::grouped(*records),
                time.as_secs_f64()
            ),
            Self::SnapshotFailed(node) => {
                write!(
                    f,
                    "node {node:?} has sent no part of its swarms for 10 s; requesting them again"
                )
            }
            Self::ShortMessages(len, min) => write!(
                f,
                "the NATS server permits messages of {len} bytes only; set its max_payload to at least {min}"
            ),
            Self::TooManyEvents => {
                write!(f, "further events of other nodes are not logged for a minute")
            }
            Self::Invalid(reason) => write!(
                f,
                "a message was ignored: {reason}; permit only nodes to publish on the subjects below cluster.subject"
            ),
        }
    }
}
