//! Messages between nodes as bytes.

use crate::policy::overrides::{ListChange, Override};
use serde::{Deserialize, Serialize};
use tsubame_storage::InfoHash;

/// Version of the protocol. All versions have the same [`Sender`] and the same [`Hello`] up to its first field.
pub const PROTOCOL_VERSION: u16 = 1;

/// Maximum length of the name of a node in bytes.
pub const NODE_NAME_MAX: usize = 64;

/// Maximum number of other nodes.
pub const NODES_MAX: usize = 64;

/// Maximum length of a message that is received. Nodes send up to 272 KiB.
const RECEIVED_BYTES_MAX: usize = 1 << 20;

/// The sender of a message, with which every message begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender<'a> {
    /// Version of the protocol.
    pub version: u16,
    /// Name of the node.
    pub node: &'a str,
    /// Time at which the process was started, in nanoseconds since 1970. It differs after each start.
    pub boot: u64,
}

/// The second part of a message. Records may follow it, as [`crate::state`] encodes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// To all nodes, each second: the sender runs.
    Hello(Hello),
    /// To all nodes, and again to a node that requests it: changes. Records follow.
    Batch {
        /// Number of the batch: the first one of a boot is 1.
        sequence: u64,
        /// Time on the clock of the sender, in seconds.
        sent_at: i64,
        /// Changes of the access list.
        list_changes: Vec<EncodedListChange>,
    },
    /// To a node: send the batches again from `first` up to, and without, `end`.
    ResendRequest {
        /// Number of the first batch.
        first: u64,
        /// Number of the batch after the last one.
        end: u64,
    },
    /// To a node: send blocks of a snapshot.
    SnapshotRequest {
        /// Number that the sender has chosen for the snapshot.
        session: u64,
        /// The blocks before this one have arrived.
        received: u32,
        /// Number of the block after the last one to be sent.
        end: u32,
    },
    /// The reply to such a request. Records follow.
    SnapshotBlock {
        /// The number that the receiver has chosen for the snapshot.
        session: u64,
        /// Number of the block: the first one is 0.
        block: u32,
        /// Time on the clock of the sender, in seconds.
        sent_at: i64,
        /// Whether it is the last block.
        is_last: bool,
        /// The batches of each node that the snapshot includes, those of the sender, too. Only in the first block.
        covered: Vec<BatchPosition>,
        /// The last change of each torrent that was added to the access list of the sender or removed from it.
        list_changes: Vec<EncodedListChange>,
    },
    /// The reply to a request for a snapshot that is not sent: another snapshot or export is in progress, swarms are
    /// still being read, or the export has failed.
    SnapshotRefused {
        /// The number that the receiver has chosen for the snapshot.
        session: u64,
    },
}

/// The state of a node, which it publishes each second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Whether it takes part.
    pub state: HelloState,
    /// Number of its next batch.
    pub next: u64,
    /// Number of the oldest batch that it can send again; `next` if it has none.
    pub oldest: u64,
    /// Time on its clock, in seconds.
    pub sent_at: i64,
    /// `announce.peer_lifetime` in seconds.
    pub peer_lifetime_secs: u32,
    /// A number that is the same on nodes with the same key of connection ids.
    pub key_digest: u64,
    /// Number of its torrents.
    pub torrents: u64,
    /// Whether it has the swarms of every node from which it has hellos.
    pub is_complete: bool,
    /// Whether it may have swarms or changes of the access list that no present node has published: those of before its
    /// start, or of a snapshot.
    pub has_older_state: bool,
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloState {
    /// It waits for hellos of another node of its name.
    Checking,
    /// It takes part.
    Active,
    /// Another node of its name was started earlier.
    Refused,
    /// It ends.
    Leaving,
}

/// How much of the changes of a node another one has received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPosition {
    /// Name of the node.
    pub node: String,
    /// Its boot.
    pub boot: u64,
    /// All batches with lower numbers were received.
    pub next: u64,
}

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodedMessage<'a> {
    /// A message of this version, and the records behind it.
    Message(Sender<'a>, Body, &'a [u8]),
    /// A message of another version.
    OtherVersion(Sender<'a>),
}

/// Writes a message, with records that were encoded before.
pub fn encode(sender: &Sender<'_>, body: &Body, records: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128 + records.len());
    // Writing to a vector cannot fail, and postcard supports the types of all fields.
    let written = postcard::to_extend(sender, bytes);
    bytes = written.and_then(|bytes| postcard::to_extend(body, bytes)).unwrap_or_default();
    bytes.extend_from_slice(records);
    bytes
}

/// Reads a message; returns `None` if the bytes are not a valid message.
pub fn decode(bytes: &[u8]) -> Option<DecodedMessage<'_>> {
    if bytes.len() > RECEIVED_BYTES_MAX {
        return None;
    }
    let (sender, rest) = postcard::take_from_bytes::<Sender<'_>>(bytes).ok()?;
    if !is_node_name(sender.node) {
        return None;
    }
    if sender.version != PROTOCOL_VERSION {
        return Some(DecodedMessage::OtherVersion(sender));
    }
    let (body, records) = postcard::take_from_bytes(rest).ok()?;
    Some(DecodedMessage::Message(sender, body, records))
}

/// Returns whether a text can be the name of a node: up to [`NODE_NAME_MAX`] bytes without control characters.
pub fn is_node_name(name: &str) -> bool {
    (1..=NODE_NAME_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// Returns the name of a node as one token of a subject: letters, digits, `-` and `_`, and other bytes as `=` and two
/// hexadecimal digits.
pub fn subject_token(name: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
        byte => format!("={byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

/// A torrent, whether it is to be on the access list, and the time of the change in milliseconds since 1970.
pub(super) type EncodedListChange = ([u8; 20], bool, u64);

/// Returns changes of the access list as a message has them.
pub(super) fn encode_list_changes(changes: &[ListChange]) -> Vec<EncodedListChange> {
    let encode = |(info_hash, change): &ListChange| (info_hash.0, change.on, change.changed_at_ms);
    changes.iter().map(encode).collect()
}

/// Returns the changes of the access list of a message.
pub(super) fn decode_list_changes(changes: Vec<EncodedListChange>) -> Vec<ListChange> {
    let decode =
        |(info_hash, on, changed_at_ms)| (InfoHash(info_hash), Override { on, changed_at_ms });
    changes.into_iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_back() {
        let sender = Sender { version: PROTOCOL_VERSION, node: "a.example", boot: 7 };
        let batch =
            Body::Batch { sequence: 3, sent_at: -5, list_changes: vec![([4; 20], true, 9)] };
        let bytes = encode(&sender, &batch, b"records");
        assert_eq!(
            decode(&bytes),
            Some(DecodedMessage::Message(sender, batch.clone(), b"records"))
        );
        for version in [0, PROTOCOL_VERSION + 1] {
            let other = Sender { version, ..sender };
            let bytes = encode(&other, &batch, b"");
            assert_eq!(decode(&bytes), Some(DecodedMessage::OtherVersion(other)));
        }
        for name in ["", "a\nb", &"a".repeat(65)] {
            assert_eq!(decode(&encode(&Sender { node: name, ..sender }, &batch, b"")), None);
        }
        (0..20).for_each(|len| assert_eq!(decode(&bytes[..len]), None, "{len}"));
        assert_eq!(decode(&vec![1; RECEIVED_BYTES_MAX + 1]), None);
    }

    #[test]
    fn names_are_one_token_of_a_subject() {
        assert_eq!(subject_token("node-1_a"), "node-1_a");
        assert_eq!(subject_token("a.b *>="), "a=2Eb=20=2A=3E=3D");
    }
}
