//! Users, permissions, credentials and certificates of the NATS server.

use super::{Node, config, storage_in};
use crate::nats::Nats;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;

#[test]
#[ignore = "needs nats-server: tests/run"]
fn users_and_certificates_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let (certificate_file, key_file) =
        (directory.path().join("certificate.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate_file, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let nats = Nats::start(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\n\
         authorization {{ user: tracker, password: secret-word }}",
        certificate_file.display().to_string(),
        key_file.display().to_string()
    ));
    let ca = format!(", tls: {{ca: {:?}}}", certificate_file.display().to_string());
    let url = |user: &str| format!("tls://{user}127.0.0.1:{}", nats.address.port());
    // Each serves alone, and says what is wrong.
    for (server, tls, expected) in [
        (url(""), ca.as_str(), "refuses the user"),
        (url("tracker:wrong@"), &ca, "refuses the user"),
        (url("tracker:secret-word@"), "", "cannot be reached with TLS"),
    ] {
        let mut node = Node::start(&config("x", &server, tls));
        let line = node.tracker.wait_for("this node serves alone and tries again");
        assert!(line.contains(expected) && !line.contains("wrong"), "{line}");
        node.announce(1, 2_001, 0, 2);
        assert_eq!(node.counts(1), [1, 0, 0]);
        node.tracker.stop();
    }
    let [mut a, mut b] =
        ["a", "b"].map(|node| Node::start(&config(node, &url("tracker:secret-word@"), &ca)));
    a.announce(1, 2_001, 0, 2);
    b.wait_for_counts(1, [1, 0, 0]);
    a.tracker.stop();
    b.tracker.stop();
}

/// Returns a JSON web token of NATS: `claims` about the key `subject`, signed by `issuer`.
fn nats_token(issuer: &KeyPair, subject: &KeyPair, claims: &str) -> String {
    let encoded = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let head = encoded("{\"typ\":\"JWT\",\"alg\":\"ed25519-nkey\"}");
    let body = encoded(&format!(
        "{{\"jti\":\"1\",\"iat\":1700000000,\"iss\":\"{}\",\"sub\":\"{}\",\"name\":\"test\",\"nats\":{claims}}}",
        issuer.public_key(),
        subject.public_key()
    ));
    let signature = issuer.sign(format!("{head}.{body}").as_bytes()).unwrap();
    format!("{head}.{body}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

#[test]
#[ignore = "needs nats-server: tests/run"]
fn a_credentials_file_is_used() {
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let user = KeyPair::new_user();
    let limits = "\"limits\":{\"subs\":-1,\"data\":-1,\"payload\":-1,\"imports\":-1,\"exports\":-1,\
                  \"wildcards\":true,\"conn\":-1,\"leaf\":-1}";
    let account_claims = format!("{{{limits},\"type\":\"account\",\"version\":2}}");
    let user_claims = "{\"pub\":{},\"sub\":{},\"subs\":-1,\"data\":-1,\"payload\":-1,\"type\":\"user\",\"version\":2}";
    let nats = Nats::start(&format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {} }}\n",
        nats_token(&operator, &operator, "{\"type\":\"operator\",\"version\":2}"),
        account.public_key(),
        nats_token(&operator, &account, &account_claims)
    ));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tracker.creds");
    let credentials = |issuer: &KeyPair| {
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            nats_token(issuer, &user, user_claims),
            user.seed().unwrap()
        );
        std::fs::write(&file, text).unwrap();
    };
    let more = format!(", credentials: {:?}", file.display().to_string());
    // An account that the server does not know.
    credentials(&KeyPair::new_account());
    let mut refused = Node::start(&config("x", &nats.url(), &more));
    refused.tracker.wait_for("refuses the user");
    credentials(&account);
    let [mut a, mut b] = ["a", "b"].map(|node| Node::start(&config(node, &nats.url(), &more)));
    a.announce(1, 2_001, 0, 2);
    b.wait_for_counts(1, [1, 0, 0]);
}

/// Returns the subjects of a cell of a table, for a node.
fn subjects(cell: &str, node: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(|subject| subject.replace("NODE", node)).collect()
}

/// Returns the user of a node with the permissions that docs/cluster.md names for it.
fn user_of(node: &str) -> String {
    let (_, table) = include_str!("../../docs/cluster.md")
        .split_once("| publish | subscribe |\n|---|---|\n")
        .unwrap();
    let (mut publish, mut subscribe) = (Vec::new(), Vec::new());
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.split('|').collect();
        publish.extend(subjects(cells[1], node));
        subscribe.extend(subjects(cells[2], node));
    }
    assert_eq!((publish.len(), subscribe.len()), (4, 4));
    format!(
        "{{user: {node}, password: x, permissions: {{publish: {publish:?}, subscribe: {subscribe:?}}}}}"
    )
}

/// With the permissions that docs/cluster.md names, nodes exchange batches and snapshots; without them, the log says
/// what to permit.
#[test]
#[ignore = "needs nats-server: tests/run"]
fn each_node_needs_the_permissions_of_the_docs() {
    let deaf = "{user: deaf, password: x, permissions: {subscribe: \"tsubame.hello.*\"}}";
    let mute = "{user: mute, password: x, permissions: {publish: {deny: \">\"}}}";
    let users = [&user_of("a"), &user_of("b"), deaf, mute].join(", ");
    let nats = Nats::start(&format!("authorization {{users: [{users}]}}"));
    let start = |node: &str| {
        let url = format!("nats://{node}:x@{}", nats.address);
        Node::start(&config(node, &url, ""))
    };
    let directory = tempfile::tempdir().unwrap();
    let storage = storage_in(directory.path());
    let with_storage = || {
        let url = format!("nats://a:x@{}", nats.address);
        Node::start_with(&format!("{}{storage}", config("a", &url, "")))
    };
    // After a restart, the swarms of "a" are in no batch.
    let mut a = with_storage();
    a.announce(1, 2_001, 0, 2);
    a.tracker.stop();
    let mut a = with_storage();
    let mut b = start("b");
    b.tracker.wait_for("received the swarms of node \"a\"");
    b.announce(2, 2_001, 0, 2);
    a.wait_for_counts(2, [1, 0, 0]);
    b.wait_for_counts(1, [1, 0, 0]);
    let mut deaf = start("deaf");
    let line = deaf.tracker.wait_for("this node serves alone and tries again every 30 s");
    let cure = "permit this user to publish and subscribe to \"tsubame.>\"";
    assert!(line.contains(cure), "{line}");
    let mut mute = start("mute");
    let line = mute.tracker.wait_for(cure);
    assert!(line.contains("tsubame.hello.mute"), "{line}");
    mute.tracker.wait_for("node \"b\" has joined");
    b.announce(3, 2_001, 0, 2);
    mute.wait_for_counts(3, [1, 0, 0]);
    for node in [a, b] {
        let log = node.tracker.stop_with_log();
        assert!(!log.iter().any(|line| line.contains("permit this user")), "{log:?}");
    }
}
