//! Access lists of several nodes: changes over the API reach all nodes.

use super::{Node, config};
use crate::common::info_hash_of;
use crate::nats::Nats;
use std::process::Command;
use std::time::Duration;

/// Returns the options of an access list whose changes are kept in a directory.
fn access_list(directory: &tempfile::TempDir) -> String {
    let file = directory.path().join("overrides").display().to_string();
    format!(
        "hooks: [{{name: access_list, options: {{mode: allow, info_hashes: [], overrides_file: {file:?}}}}}]\n"
    )
}

/// Adds a torrent to the access list over the API with `PUT`, or removes it with `DELETE`.
fn change_list(node: &Node, method: &str, torrent: u32) {
    let hash: String = info_hash_of(torrent).iter().map(|byte| format!("{byte:02x}")).collect();
    let url = format!("http://{}/v1/access_list/{hash}", node.control);
    let curl = Command::new("curl").args(["-fsS", "-o", "/dev/null", "-X", method, &url]).status();
    assert!(curl.unwrap().success());
}

#[test]
#[ignore = "needs nats-server: tests/run"]
fn changes_of_the_access_list_reach_all_nodes_and_survive_their_restarts() {
    let nats = Nats::start("");
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let node = |number: usize| {
        let name = ["a", "b"][number];
        let list = access_list(&directories[number]);
        Node::start(&format!("{}{list}", config(name, &nats.url(), "")))
    };
    let (mut a, mut b) = (node(0), node(1));
    a.tracker.wait_for("node \"b\" has joined");
    b.tracker.wait_for("node \"a\" has joined");
    change_list(&a, "PUT", 3);
    b.tracker.wait_within(Duration::from_secs(1), "is on the access list");
    // The shards get it a moment later.
    b.announce_until_permitted(3);
    a.wait_for_counts(3, [1, 0, 0]);
    b.tracker.stop();
    // What changes while a node is away reaches it when it comes back.
    change_list(&a, "PUT", 4);
    let mut b = node(1);
    b.announce(3, 2_001, 0, 2);
    assert_eq!(b.counts(3), [1, 0, 0]);
    b.announce_until_permitted(4);
    a.tracker.stop();
    b.tracker.stop();
}

/// Of changes that divided nodes have made of one torrent, the latest counts, on the node that has run for longer, too.
#[test]
#[ignore = "needs nats-server: tests/run"]
fn the_latest_change_of_the_access_list_counts() {
    let mut nats = Nats::start("");
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let node = |number: usize, url: &str| {
        let name = ["a", "b"][number];
        let list = access_list(&directories[number]);
        Node::start(&format!("{}{list}", config(name, url, "")))
    };
    let url = nats.url();
    let (mut a, mut b) = (node(0, &url), node(1, &url));
    a.tracker.wait_for("node \"b\" has joined");
    b.tracker.wait_for("node \"a\" has joined");
    nats.kill();
    for node in [&mut a, &mut b] {
        node.tracker.wait_for("lost the connection to NATS");
    }
    for (node, method, torrent) in [
        (&b, "PUT", 3),
        (&a, "PUT", 3),
        (&a, "DELETE", 3),
        (&b, "PUT", 3),
        (&a, "PUT", 4),
        (&b, "PUT", 4),
        (&b, "DELETE", 4),
    ] {
        change_list(node, method, torrent);
    }
    // After a restart its changes are in its file only.
    b.tracker.stop();
    let mut b = node(1, &url);
    nats.restart();
    for node in [&mut a, &mut b] {
        node.announce_until_permitted(3);
        node.wait_until_refused(4);
    }
    a.tracker.stop();
    b.tracker.stop();
}
