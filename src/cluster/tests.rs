//! Tests of nodes on a network in memory: names, versions, lifetimes, lost messages, snapshots.

use super::*;
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::{
    ChangeKind, Endpoint, InfoHash, PeerRecord, Role, StateRecord, TorrentRecord,
};

const MESSAGE_BYTES_MAX: usize = 1 << 20;

fn settings(node: &str, boot: u64) -> ClusterSettings {
    ClusterSettings {
        node: node.to_owned(),
        boot,
        peer_lifetime_secs: 2_700,
        key_digest: 1,
        has_older_state: false,
    }
}

fn change(number: u8) -> StateRecord {
    let endpoint = Endpoint::new([9, 9, 9, number].into(), 6_881);
    let (role, is_counted, is_remote) = (Role::Leecher, false, false);
    let peer = PeerRecord { endpoint, role, is_counted, is_remote, announced_at: 100 };
    StateRecord::Change(InfoHash([number; 20]), ChangeKind::Joined, peer)
}

/// Some nodes and a network that delivers everything at once.
struct TestNetwork {
    now: Duration,
    nodes: Vec<(String, ClusterNode)>,
    /// Names of nodes whose messages are lost.
    muted: Vec<&'static str>,
    /// Actions of each node, except those that publish a message.
    done: Vec<(String, Action)>,
}

impl TestNetwork {
    fn new(nodes: &[(&str, u64)]) -> Self {
        let now = Duration::from_secs(100);
        let mut net = Self { now, nodes: Vec::new(), muted: Vec::new(), done: Vec::new() };
        nodes.iter().for_each(|(name, boot)| net.start(name, *boot));
        net
    }

    /// Starts a node, which stores nothing.
    fn start(&mut self, name: &str, boot: u64) {
        self.start_with(settings(name, boot));
    }

    fn start_with(&mut self, settings: ClusterSettings) {
        let name = settings.node.clone();
        let mut node = ClusterNode::new(settings);
        node.connected(self.now, MESSAGE_BYTES_MAX);
        self.nodes.push((name, node));
    }

    fn deliver(&mut self) {
        loop {
            let mut messages: Vec<(usize, MessageSubject, Arc<[u8]>)> = Vec::new();
            for (at, (name, node)) in self.nodes.iter_mut().enumerate() {
                for action in node.take_actions() {
                    match action {
                        Action::Publish(subject, bytes) => messages.push((at, subject, bytes)),
                        action => self.done.push((name.clone(), action)),
                    }
                }
            }
            if messages.is_empty() {
                return;
            }
            for (from, subject, bytes) in messages {
                let sender = self.nodes[from].0.clone();
                if self.muted.contains(&&*sender) {
                    continue;
                }
                let token = subject_token(&sender);
                for (to, (name, node)) in self.nodes.iter_mut().enumerate() {
                    let source = match &subject {
                        MessageSubject::Hello | MessageSubject::Delta if to != from => {
                            MessageSource::FromNode(&token)
                        }
                        MessageSubject::Request(of) | MessageSubject::Reply(of) if of == name => {
                            MessageSource::ToThisNode
                        }
                        _ => continue,
                    };
                    node.receive(self.now, source, &bytes);
                }
            }
        }
    }

    /// Lets time pass.
    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            self.now += Duration::from_millis(100);
            for (_, node) in &mut self.nodes {
                node.tick(self.now, SwarmState::default());
            }
            self.deliver();
        }
    }

    fn node(&mut self, at: usize) -> &mut ClusterNode {
        &mut self.nodes[at].1
    }

    /// Returns the records that a node has imported, and forgets them.
    fn imported(&mut self, of: &str) -> Vec<StateRecord> {
        let mut imported = Vec::new();
        self.done.retain(|(name, action)| match action {
            Action::Import(records) if name == of => {
                imported.extend_from_slice(records);
                false
            }
            _ => true,
        });
        imported
    }

    fn has_reported(&self, of: &str, event: &ClusterEvent) -> bool {
        let expected = Action::Report(event.clone());
        self.done.iter().any(|(name, action)| name == of && *action == expected)
    }
}

#[test]
fn the_older_of_two_nodes_with_one_name_takes_part() {
    let mut net = TestNetwork::new(&[("a", 10), ("b", 11)]);
    net.run(5);
    // A second "a", which is younger.
    net.start("a", 12);
    net.run(5);
    let name = "a".to_owned();
    assert!(net.has_reported("a", &ClusterEvent::NameTaken(name.clone())));
    assert!(net.has_reported("a", &ClusterEvent::NameUsed(name.clone())));
    assert!(!net.node(0).is_refused() && net.node(2).is_refused());
    let now = net.now;
    net.node(2).publish(now, &[change(1)]);
    net.node(0).publish(now, &[change(2)]);
    net.run(2);
    assert_eq!(net.imported("b").len(), 1, "only that of the older one");
    assert_eq!(net.imported("a"), []);
    // Once the older one is gone, the younger one takes part, and requests the swarms of "b". "b" gets what it has
    // published before.
    net.nodes.remove(0);
    net.run(40);
    assert!(net.has_reported("a", &ClusterEvent::NameFree(name)));
    assert_eq!(net.imported("b").len(), 1);
    assert!(net.node(0).wants_block() && net.node(0).is_complete());
}

/// An upgraded node is younger than one that it has refused before.
#[test]
fn a_node_that_is_upgraded_keeps_its_name() {
    let mut net = TestNetwork::new(&[("a", 10), ("b", 11)]);
    net.run(5);
    net.start("a", 12);
    net.run(5);
    assert!(net.node(2).is_refused());
    let now = net.now;
    net.node(0).leave(now);
    net.deliver();
    let mut upgraded = ClusterNode::new(settings("a", 13));
    upgraded.connected(now, MESSAGE_BYTES_MAX);
    net.nodes[0] = ("a".to_owned(), upgraded);
    net.run(40);
    assert!(!net.node(0).is_refused() && net.node(2).is_refused());
}

/// A node that restarts while it sends its swarms is asked for them again.
#[test]
fn a_snapshot_that_was_not_completed_is_requested_again() {
    let mut net = TestNetwork::new(&[("b", 11)]);
    let with_state = |boot| ClusterSettings { has_older_state: true, ..settings("a", boot) };
    net.start_with(with_state(10));
    net.nodes.rotate_left(1);
    net.run(4);
    assert!(net.node(0).wants_block());
    net.nodes.remove(0);
    net.start_with(with_state(12));
    net.nodes.rotate_left(1);
    net.run(20);
    assert!(net.node(0).wants_block() && !net.node(1).is_complete());
    let now = net.now;
    net.node(0).add_block(now, &[], true);
    net.run(1);
    assert!(net.node(1).is_complete());
}

/// What waits behind a gap is applied when the gap is given up.
#[test]
fn batches_behind_a_gap_are_applied_when_it_is_given_up() {
    let mut net = TestNetwork::new(&[("a", 10), ("b", 11)]);
    net.run(5);
    let now = net.now;
    net.muted.push("a");
    net.node(0).publish(now, &[change(1)]);
    net.deliver();
    net.muted.clear();
    net.node(0).publish(now, &[change(2)]);
    // Requests to send the first one again are lost, as are all messages of the receiver.
    net.deliver();
    net.muted.push("b");
    net.run(20);
    assert_eq!(net.imported("b").len(), 1);
    assert_eq!(net.node(1).nodes(now)[0].missing_batches, 0);
    assert!(!net.node(1).is_complete());
}

#[test]
fn other_settings_and_versions_are_reported() {
    let mut net = TestNetwork::new(&[("a", 10)]);
    net.start_with(ClusterSettings { peer_lifetime_secs: 60, key_digest: 2, ..settings("b", 11) });
    net.run(5);
    assert!(net.has_reported(
        "a",
        &ClusterEvent::DifferentLifetime { node: "b".to_owned(), other: 60, own: 2_700 }
    ));
    assert!(net.has_reported("b", &ClusterEvent::DifferentKeys("a".to_owned())));
    let reported = net.done.len();
    net.run(5);
    assert_eq!(net.done.len(), reported, "once");
    let now = net.now;
    let sender = Sender { version: 9, node: "new", boot: 1 };
    let newer = encode(&sender, &Body::SnapshotRefused { session: 1 }, b"other bytes");
    net.node(0).receive(now, MessageSource::FromNode("new"), &newer);
    net.node(0).receive(now, MessageSource::FromNode("new"), &newer);
    net.deliver();
    assert!(net.has_reported("a", &ClusterEvent::OtherVersion("new".to_owned(), 9)));
    assert_eq!(net.node(0).counts().ignored_messages, 2);
    // A node must use its own subject.
    let bytes =
        encode(&Sender { version: 1, ..sender }, &Body::SnapshotRefused { session: 1 }, b"");
    net.node(0).receive(now, MessageSource::FromNode("b"), &bytes);
    assert_eq!(net.node(0).counts().ignored_messages, 3);
}

#[test]
fn a_message_that_was_lost_is_sent_again() {
    let mut net = TestNetwork::new(&[("a", 10), ("b", 11)]);
    net.run(5);
    let now = net.now;
    net.muted.push("a");
    net.node(0).publish(now, &[change(1)]);
    net.deliver();
    net.muted.clear();
    net.node(0).publish(now, &[change(2)]);
    net.deliver();
    assert_eq!(net.imported("b"), [], "the second one waits");
    assert_eq!(net.node(1).nodes(now)[0].missing_batches, 2);
    net.run(1);
    let imported = net.imported("b");
    let hashes = imported.iter().map(|record| match record {
        StateRecord::Change(info_hash, _, peer) if peer.is_remote => info_hash.0[0],
        record => panic!("{record:?}"),
    });
    assert_eq!(hashes.collect::<Vec<_>>(), [1, 2]);
    // The last batch is missed, too, if nothing follows it.
    net.muted.push("a");
    let now = net.now;
    net.node(0).publish(now, &[change(3)]);
    net.deliver();
    net.muted.clear();
    net.run(3);
    assert_eq!(net.imported("b").len(), 1);
}

#[test]
fn a_snapshot_is_divided_to_fit_in_messages() {
    let mut net = TestNetwork::new(&[("a", 10)]);
    net.run(65);
    let now = net.now;
    net.node(0).publish(now, &[change(1)]);
    net.run(65);
    // The batch is kept no more: a node that comes now needs a snapshot.
    let mut joiner = ClusterNode::new(settings("b", 11));
    joiner.connected(net.now, 20 << 10);
    net.node(0).connected(now, 20 << 10);
    net.nodes.push(("b".to_owned(), joiner));
    net.run(4);
    assert!(net.node(0).wants_block() && !net.node(1).is_complete());
    let torrent = TorrentRecord { info_hash: InfoHash([5; 20]), completed: 3, used_at: 10 };
    let mut records = vec![StateRecord::Torrent(torrent)];
    for number in 0..2_000_u16 {
        let endpoint = Endpoint::new([7, 7, (number >> 8) as u8, number as u8].into(), 6_881);
        let (role, is_counted, is_remote) = (Role::Seeder, false, false);
        let peer = PeerRecord { endpoint, role, is_counted, is_remote, announced_at: 50 };
        records.push(StateRecord::Peer(peer));
    }
    let now = net.now;
    net.node(0).add_block(now, &records, true);
    net.run(2);
    let imported = net.imported("b");
    let peers: std::collections::BTreeSet<_> = imported
        .iter()
        .filter_map(|record| match record {
            StateRecord::Peer(peer) => Some(peer.endpoint),
            _ => None,
        })
        .collect();
    assert_eq!(peers.len(), 2_000);
    assert!(net.node(1).is_complete() && !net.node(0).wants_block());
    assert!(net.done.contains(&("a".to_owned(), Action::EndExport)));
}

/// What a node has read from a file is in no batch.
#[test]
fn swarms_of_before_the_start_of_a_node_are_in_its_snapshot() {
    let mut net = TestNetwork::new(&[("b", 11)]);
    let restored = ClusterSettings { has_older_state: true, ..settings("a", 10) };
    let mut node = ClusterNode::new(restored);
    node.connected(net.now, MESSAGE_BYTES_MAX);
    let is_restoring = SwarmState { is_restoring: true, ..SwarmState::default() };
    node.tick(net.now + Duration::from_secs(3), is_restoring);
    net.now += Duration::from_secs(3);
    net.nodes.push(("a".to_owned(), node));
    for _ in 0..50 {
        net.now += Duration::from_millis(100);
        let now = net.now;
        net.node(0).tick(now, SwarmState::default());
        net.node(1).tick(now, is_restoring);
        net.deliver();
    }
    assert!(net.has_reported("b", &ClusterEvent::Snapshot(SnapshotEvent::Refused("a".to_owned()))));
    assert!(!net.node(1).wants_block() && !net.node(0).is_complete(), "still reading");
    net.run(5);
    assert!(net.node(1).wants_block() && !net.node(0).is_complete());
    let now = net.now;
    net.node(1).add_block(now, &[], true);
    net.run(1);
    assert!(net.node(0).is_complete());
}

/// A node that has clients of its own, crashes and comes back empty gets its swarms from one that has none.
#[test]
fn a_node_without_clients_returns_the_swarms_of_others() {
    let mut net = TestNetwork::new(&[("a", 10), ("b", 11)]);
    net.run(5);
    let now = net.now;
    net.node(0).publish(now, &[change(1)]);
    net.run(1);
    assert_eq!(net.imported("b").len(), 1);
    net.nodes.remove(0);
    net.start("a", 12);
    net.run(4);
    assert!(net.node(0).wants_block() && !net.node(1).is_complete());
}

/// While there is no connection, no node is taken for lost, and names do not become free.
#[test]
fn an_outage_of_nats_changes_no_memberships() {
    let mut net = TestNetwork::new(&[("a", 10), ("b", 11)]);
    net.run(5);
    net.start("a", 12);
    net.run(5);
    net.nodes.iter_mut().for_each(|(_, node)| node.disconnected());
    net.run(40);
    let now = net.now;
    net.nodes.iter_mut().for_each(|(_, node)| node.connected(now, MESSAGE_BYTES_MAX));
    net.run(5);
    let is_lost = |(_, action): &(String, Action)| {
        matches!(action, Action::Report(ClusterEvent::NodeLost(..) | ClusterEvent::NameFree(_)))
    };
    assert!(!net.done.iter().any(is_lost));
    assert!(net.node(2).is_refused() && net.node(1).is_complete());
}

/// A wrong number of a batch does not keep out the batches of a node, and one of a hello does so only until two hellos
/// have followed.
#[test]
fn wrong_numbers_are_corrected_by_hellos() {
    for wrong in [5_000, u64::MAX - 1] {
        check_wrong_batch(wrong);
        check_wrong_hello(wrong);
    }
}

const A: Sender<'_> = Sender { version: PROTOCOL_VERSION, node: "a", boot: 10 };

fn check_wrong_batch(sequence: u64) {
    let mut net = TestNetwork::new(&[("a", 10), ("b", 11)]);
    net.run(5);
    let batch = Body::Batch { sequence, sent_at: 0, list_changes: Vec::new() };
    let now = net.now;
    net.node(1).receive(now, MessageSource::FromNode("a"), &encode(&A, &batch, &[]));
    assert_eq!(net.node(1).counts().ignored_messages, u64::from(sequence > 10_000));
    // Until it is given up.
    net.run(20);
    let now = net.now;
    assert!(net.node(1).is_complete());
    assert_eq!(net.node(1).nodes(now)[0].missing_batches, 0);
    net.node(0).publish(now, &[change(1)]);
    net.run(1);
    assert_eq!(net.imported("b").len(), 1);
}

fn check_wrong_hello(next: u64) {
    let mut net = TestNetwork::new(&[("a", 10), ("b", 11)]);
    net.run(5);
    let now = net.now;
    let forged = Hello {
        state: HelloState::Active,
        next,
        oldest: next,
        sent_at: now.as_secs() as i64,
        peer_lifetime_secs: 2_700,
        key_digest: 1,
        torrents: 0,
        is_complete: true,
        has_older_state: false,
    };
    let hello = Body::Hello(forged);
    net.node(1).receive(now, MessageSource::FromNode("a"), &encode(&A, &hello, &[]));
    net.run(3);
    let now = net.now;
    net.node(0).publish(now, &[change(1)]);
    net.run(1);
    assert_eq!(net.imported("b").len(), 1);
    // What was missed meanwhile comes with a snapshot, one after the other.
    while net.node(0).wants_block() {
        let now = net.now;
        net.node(0).add_block(now, &[], true);
        net.run(1);
    }
    assert!(net.node(1).is_complete());
    assert_eq!(net.node(1).counts().received_snapshots, 1);
}

/// The batches of a node that stores nothing from before its start are enough: no snapshot is needed.
#[test]
fn a_new_node_is_not_asked_for_a_snapshot() {
    let mut net = TestNetwork::new(&[("a", 10)]);
    net.run(4);
    net.start("b", 11);
    let now = net.now;
    net.node(1).publish(now, &[change(1)]);
    net.run(4);
    assert_eq!(net.imported("a").len(), 1);
    assert!(net.node(0).is_complete() && !net.node(1).wants_block());
}

/// A snapshot without the list changes of other nodes does not include their batches.
#[test]
fn a_snapshot_of_one_node_only_leaves_the_others_missing() {
    let mut net = TestNetwork::new(&[]);
    for (name, boot) in [("a", 10), ("b", 11)] {
        net.start_with(ClusterSettings { has_older_state: true, ..settings(name, boot) });
    }
    net.run(4);
    for number in 0..2 {
        let now = net.now;
        net.node(number).add_block(now, &[], true);
    }
    net.run(4);
    assert!(net.node(0).is_complete() && net.node(1).is_complete());
    net.start("c", 12);
    net.run(3);
    let source = (0..2).find(|number| net.nodes[*number].1.wants_block()).unwrap();
    let now = net.now;
    net.node(source).exclude_other_nodes();
    net.node(source).add_block(now, &[], true);
    net.run(4);
    assert!(!net.node(2).is_complete());
    assert!(net.node(1 - source).wants_block() && !net.node(source).wants_block());
    let now = net.now;
    net.node(1 - source).add_block(now, &[], true);
    net.run(2);
    assert!(net.node(2).is_complete());
}
