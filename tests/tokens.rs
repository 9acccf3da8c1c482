//! Tokens that approve torrents, end to end.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::http::{Connection, failure, rows_of};
use common::policy::ClientReply::Swarm;
use common::policy::{
    ClientReply, NOT_SERVED, PEER_ID, TrackerWithClients, config, error, hex, over_http,
    scrape_target, wait_until,
};
use common::{Announce, Client, WAIT_TIMEOUT, info_hash_of, now};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// A server of one page, which can be replaced. Without a page, it closes connections without a reply.
struct KeyServer {
    url: String,
    page: Arc<Mutex<Option<String>>>,
}

impl KeyServer {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let page = Arc::new(Mutex::new(None::<String>));
        let served = page.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request);
                let Some(page) = served.lock().unwrap().clone() else { continue };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", page.len());
                let _ = stream.write_all(format!("{head}{page}").as_bytes());
            }
        });
        Self { url, page }
    }

    fn serve(&self, page: &str) {
        *self.page.lock().unwrap() = Some(page.to_owned());
    }
}

/// A key pair that signs tokens, and the key set with its public key.
struct Issuer {
    id: &'static str,
    key: rcgen::KeyPair,
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        Self { id, key: rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap() }
    }

    fn page(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(rcgen::PublicKeyData::der_bytes(&self.key));
        format!(
            r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "kid": "{}", "x": "{x}"}}]}}"#,
            self.id
        )
    }

    fn token_query(&self, torrent: u32, exp: u64) -> String {
        let kid = Some(self.id.to_owned());
        let header = jsonwebtoken::Header {
            kid,
            ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA)
        };
        let key = jsonwebtoken::EncodingKey::from_ed_der(self.key.serialized_der());
        let claims =
            serde_json::json!({"iss": "i", "aud": "a", "infohash": hex(torrent), "exp": exp});
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        format!("?jwt={token}")
    }
}

const FAR_FUTURE: u64 = 10_000_000_000;

#[test]
fn tokens_are_checked_while_the_key_server_fails_and_changes_keys() {
    let (first, second, server) = (Issuer::new("first"), Issuer::new("second"), KeyServer::new());
    let hooks = format!(
        "  - name: jwt\n    options: {{issuer: i, audience: a, jwk_set_url: '{}', scrapes: true, \
         jwk_set_update_interval: 1s}}\n",
        server.url
    );
    // The key server does not answer at first.
    let mut setup = TrackerWithClients::new(2, &hooks);
    setup.tracker.wait_for("cannot fetch http://127.0.0.1");
    let unknown = error("the key of the token is unknown");
    assert_eq!(
        setup.announce_over_both(1, PEER_ID, &first.token_query(1, FAR_FUTURE)),
        [unknown.clone(), unknown.clone()]
    );
    server.serve(&first.page());
    setup.tracker.wait_for("a new key set of 1 keys");
    let served = |answers: [ClientReply; 2]| answers.iter().all(|it| matches!(it, Swarm(..)));
    wait_until(|| served(setup.announce_over_both(1, PEER_ID, &first.token_query(1, FAR_FUTURE))));
    let text = "no token (jwt) in the announce URL";
    assert_eq!(setup.announce_over_both(1, PEER_ID, ""), [error(text), error(text)]);
    let text = "the token is for another torrent";
    assert_eq!(
        setup.announce_over_both(2, PEER_ID, &first.token_query(1, FAR_FUTURE)),
        [error(text), error(text)]
    );
    let text = "the token has expired";
    assert_eq!(
        setup.announce_over_both(3, PEER_ID, &first.token_query(3, 1_000)),
        [error(text), error(text)]
    );
    let text = "the token is not valid for this tracker";
    assert_eq!(setup.announce_over_both(1, PEER_ID, "?jwt=a.b.c"), [error(text), error(text)]);
    // Scrapes need a token, too. A scrape over UDP cannot carry one.
    let mut scrape = common::head(setup.udp.id, 2, 5);
    scrape.extend(info_hash_of(1));
    let reply = setup.udp.ask(&scrape).unwrap();
    assert_eq!(&reply[8..], b"scrapes require a passkey or token; scrape over HTTP");
    let target = scrape_target(&[info_hash_of(1)]);
    let mut connection = Connection::to(setup.http);
    assert_eq!(failure(&connection.get(&target)), "no token (jwt) in the announce URL");
    let token = first.token_query(1, FAR_FUTURE).replace('?', "&");
    assert_eq!(rows_of(&connection.get(&format!("{target}{token}")).body)[0].1, [0, 0, 1, 1]);
    // An invalid key set is reported, and the previous one stays in use.
    server.serve("<html>maintenance</html>");
    setup.tracker.wait_for("is not a JWK set");
    assert!(served(setup.announce_over_both(1, PEER_ID, &first.token_query(1, FAR_FUTURE))));
    // The log has an earlier error, from before the first page.
    setup.tracker.log.clear();
    server.serve(&format!("{{\"keys\": [{}]}}", " ".repeat(3 << 20)));
    setup.tracker.wait_for("cannot fetch");
    assert!(served(setup.announce_over_both(4, PEER_ID, &first.token_query(4, FAR_FUTURE))));
    // A new key set replaces the previous one.
    server.serve(&second.page());
    wait_until(|| served(setup.announce_over_both(5, PEER_ID, &second.token_query(5, FAR_FUTURE))));
    wait_until(|| {
        setup.announce_over_both(6, PEER_ID, &first.token_query(6, FAR_FUTURE))
            == [unknown.clone(), unknown.clone()]
    });
    for protocol in ["udp", "http"] {
        assert!(setup.metric("unknown_token_key", protocol) >= 2);
        setup.wait_for_metric("expired_token", protocol, 1);
    }
}

#[test]
fn a_flood_of_new_tokens_does_not_delay_known_tokens() {
    let issuer = Issuer::new("k");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    fs::write(&file, issuer.page()).unwrap();
    let hooks = format!("  - {{name: jwt, options: {{jwk_set_file: {}}}}}\n", file.display());
    let setup = TrackerWithClients::new(1, &hooks);
    let good = issuer.token_query(1, FAR_FUTURE);
    assert!(setup.announce_over_both(1, PEER_ID, &good).iter().all(|it| matches!(it, Swarm(..))));
    // More tokens than a shard may check in its turns: only some of their signatures are checked.
    let flood = Client::connected("127.0.0.2", setup.udp.tracker);
    for number in 0..2_000 {
        let mut request = Announce::of(1, 7_001).bytes(flood.id, number);
        let url = format!("{good}{number}");
        for piece in url.as_bytes().chunks(255) {
            request.extend([2, piece.len() as u8]);
            request.extend(piece);
        }
        flood.socket.send_to(&request, flood.tracker).unwrap();
    }
    assert!(setup.announce_over_both(1, PEER_ID, &good).iter().all(|it| matches!(it, Swarm(..))));
    // Over HTTP, requests wait until their token is checked.
    for number in 0..20 {
        let answer =
            over_http(setup.http, &Announce::of(1, 7_001), PEER_ID, &format!("{good}x{number}"));
        assert_eq!(answer, error("the token is not valid for this tracker"));
    }
    let [bad, unchecked] = ["bad_token", "token_not_checked"].map(|it| setup.metric(it, "udp"));
    println!("flood: {bad} tokens were checked, {unchecked} were refused without a check");
    assert!(bad > 0 && unchecked > 0);
}

#[test]
fn a_hanging_key_server_does_not_block_reloads() {
    // A server that accepts connections and never replies.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hooks = format!(
        "  - {{name: access_list, options: {{mode: deny, info_hashes: [{}]}}}}\n  \
           - {{name: jwt, options: {{jwk_set_url: 'http://{}/'}}}}\n",
        hex(1),
        listener.local_addr().unwrap()
    );
    let setup = TrackerWithClients::new(1, &hooks);
    let hanging = listener.accept().unwrap();
    let began = now();
    for torrent in [2, 3] {
        setup.tracker.write_config(&config(1, &hooks.replace(&hex(1), &hex(torrent))));
        assert_eq!(setup.ask("POST", "/v1/reload").0, 200);
        wait_until(|| setup.announce_over_both(torrent, PEER_ID, "")[0] == error(NOT_SERVED));
    }
    assert!(began.elapsed() < WAIT_TIMEOUT / 2, "{:?}", began.elapsed());
    drop(hanging);
}
