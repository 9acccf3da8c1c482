//! Messages between nodes: any bytes, and any sequence of messages, are handled without a panic and without more memory
//! than a multiple of their number.
//!
//! Input: messages, each after a byte for its source and one for its length. If the first byte is odd, a message of a
//! valid form is made from the bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use tsubame::cluster::{
    Action, BatchPosition, Body, ClusterNode, ClusterSettings, Hello, HelloState, MessageSource,
    PROTOCOL_VERSION, Sender, SwarmState, encode,
};

fuzz_target!(|bytes: &[u8]| {
    let mut now = Duration::from_secs(100);
    let mut node = ClusterNode::new(ClusterSettings {
        node: "own".to_owned(),
        boot: 5,
        peer_lifetime_secs: 60,
        key_digest: 1,
        has_older_state: false,
    });
    node.connected(now, 64 << 10);
    let mut input = bytes;
    while let Some(([kind, len], rest)) = input.split_first_chunk() {
        let (part, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        input = rest;
        let names = ["a", "b", "own"];
        let name = names[usize::from(kind >> 1) % 3];
        let source = if kind & 0x20 == 0 {
            MessageSource::FromNode(name)
        } else {
            MessageSource::ToThisNode
        };
        let message = match kind & 1 {
            0 => part.to_vec(),
            _ => made_message(name, kind >> 3, part),
        };
        node.receive(now, source, &message);
        now += Duration::from_millis(u64::from(*len) * 20);
        if *len == 255 {
            node.disconnected();
            node.tick(now, SwarmState::default());
            node.connected(now, 64 << 10);
        }
        let is_restoring = kind & 0x40 != 0;
        node.tick(now, SwarmState { torrents: 1, is_busy: kind & 0x80 != 0, is_restoring });
        if node.wants_block() {
            node.add_block(now, &[], kind & 2 == 0);
        }
        let mut imported = 0;
        for action in node.take_actions() {
            match action {
                Action::Import(records) => imported += records.len(),
                // The node can ask for no more than it is sent.
                Action::Publish(_, message) => assert!(message.len() < 64 << 10),
                _ => {}
            }
        }
        // Batches that waited for this one are at most all of the input.
        assert!(imported <= bytes.len());
        assert!(node.nodes(now).len() <= 2);
    }
});

/// Makes a message of a valid form.
fn made_message(node: &str, kind: u8, part: &[u8]) -> Vec<u8> {
    let number = |at: usize| u64::from(part.get(at).copied().unwrap_or(1));
    let sender = Sender { version: PROTOCOL_VERSION, node, boot: number(0) % 3 + 4 };
    let body = match kind % 6 {
        0 => Body::Hello(Hello {
            state: [
                HelloState::Checking,
                HelloState::Active,
                HelloState::Refused,
                HelloState::Leaving,
            ][number(1) as usize % 4],
            next: number(2),
            oldest: number(3),
            sent_at: number(4) as i64 - 100,
            peer_lifetime_secs: 60,
            key_digest: 1,
            torrents: number(5),
            is_complete: number(6) & 1 == 1,
            has_older_state: number(6) & 2 == 2,
        }),
        1 => {
            Body::Batch { sequence: number(1), sent_at: number(2) as i64, list_changes: Vec::new() }
        }
        2 => Body::ResendRequest { first: number(1), end: number(2) },
        3 => Body::SnapshotRequest {
            session: number(1),
            received: number(2) as u32,
            end: number(3) as u32,
        },
        4 => Body::SnapshotBlock {
            session: 5 + number(1) % 4,
            block: number(2) as u32 % 4,
            sent_at: number(3) as i64,
            is_last: number(4) & 1 == 1,
            covered: vec![BatchPosition { node: "a".to_owned(), boot: 4, next: number(5) }],
            list_changes: Vec::new(),
        },
        _ => Body::SnapshotRefused { session: 5 + number(1) % 4 },
    };
    encode(&sender, &body, part.get(7..).unwrap_or_default())
}
