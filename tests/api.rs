//! The API of the operator and the statistics pages of a tracker process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::Connection;
use common::policy::{hex, wait_until};
use common::{Announce, Client, Tracker, control_of, cpus, info_hash_of};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

/// A tracker with two shards, and the address of its control plane.
struct Api {
    tracker: Tracker,
    control: SocketAddr,
}

/// Status, head and body of a reply.
struct ApiReply {
    status: u16,
    head: String,
    body: String,
}

impl ApiReply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Api {
    fn start(config: &str) -> Self {
        let mut tracker = Tracker::start(&format!(
            "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\n{config}",
            cpus(2)
        ));
        let control = control_of(&mut tracker);
        Self { tracker, control }
    }

    fn client(&self) -> Client {
        Client::connected("127.0.0.1", self.tracker.addresses()[0])
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> ApiReply {
        let mut stream = TcpStream::connect(self.control).unwrap();
        stream.set_read_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
        let len = body.len();
        // The tracker may refuse the request before it has read the body.
        let _ = write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len}\r\n\r\n{body}"
        );
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8(reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        ApiReply { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn get(&self, path: &str) -> ApiReply {
        self.send("GET", path, "", "")
    }
}

#[test]
fn torrents_are_shown_listed_and_removed() {
    let api = Api::start("control: {listen: \"127.0.0.1:0\"}\n");
    let mut client = api.client();
    for torrent in 0..12 {
        for peer in 0..=torrent {
            client.announce(&Announce::of(torrent, 7_000 + peer as u16));
        }
    }
    let shown = api.get(&format!("/v1/torrents/{}?peers=3", hex(5))).json();
    assert_eq!((shown["leechers"].as_u64(), shown["seeders"].as_u64()), (Some(6), Some(0)));
    let peers = shown["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 3);
    assert_eq!((&peers[0]["address"], &peers[0]["role"]), (&json!("127.0.0.1"), &json!("leecher")));
    let listed = api.get("/v1/torrents?limit=4").json();
    let torrents: Vec<_> = listed["torrents"].as_array().unwrap().iter().collect();
    let sizes: Vec<_> = torrents.iter().map(|it| it["leechers"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [12, 11, 10, 9], "the largest torrents of both shards");
    assert_eq!(torrents[0]["info_hash"], json!(hex(11)));
    assert_eq!(api.send("DELETE", &format!("/v1/torrents/{}", hex(11)), "", "").status, 204);
    assert_eq!(client.scrape(&[info_hash_of(11)]).unwrap(), [[0; 3]]);
    for (method, path, status) in [
        ("GET", format!("/v1/torrents/{}", hex(11)), 404),
        ("DELETE", format!("/v1/torrents/{}", hex(11)), 404),
        ("GET", "/v1/torrents/xyz".to_owned(), 400),
        ("GET", format!("/v1/torrents/{}?peers=201", hex(5)), 400),
        ("GET", "/v1/torrents?limit=-1".to_owned(), 400),
        ("POST", "/v1/torrents".to_owned(), 405),
        ("GET", "/v1/nothing".to_owned(), 404),
    ] {
        let reply = api.send(method, &path, "", "");
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.body);
        assert!(reply.json()["error"].is_string(), "{}", reply.body);
    }
    let status = api.get("/v1/status").json();
    assert_eq!(status["shards"].as_array().unwrap().len(), 2);
    wait_until(|| api.get("/v1/status").json()["swarms"]["torrents"] == json!(11));
    wait_until(|| {
        let metrics = api.get("/metrics").body;
        // The first scan is made a second after the start.
        metrics.contains("tsubame_swarms{peers_max=\"+Inf\"}")
            && metrics.contains("tsubame_distinct_peers ")
            && metrics.contains("tsubame_client_share{client=\"")
    });
}

#[test]
fn access_lists_are_changed_in_bulk_and_exported() {
    let directory = tempfile::tempdir().unwrap();
    let (list, overrides) = (directory.path().join("list"), directory.path().join("overrides"));
    std::fs::write(&list, format!("{}\n", hex(1))).unwrap();
    let api = Api::start(&format!(
        "control: {{listen: \"127.0.0.1:0\"}}\nhooks:\n  - name: access_list\n    options: {{mode: allow, files: \
         [{}], overrides_file: {}}}\n",
        list.display(),
        overrides.display()
    ));
    let exported = |api: &Api| -> BTreeSet<String> {
        api.get("/v1/access_list").body.lines().map(str::to_owned).collect()
    };
    // The body is chunked, and `get` does not decode it: lines with sizes of chunks are skipped.
    let hashes = |lines: BTreeSet<String>| -> BTreeSet<String> {
        lines.into_iter().filter(|line| line.len() == 40).collect()
    };
    assert_eq!(hashes(exported(&api)), [hex(1)].into());
    let added: Vec<String> = (2..2_500).map(hex).collect();
    let reply = api.send(
        "POST",
        "/v1/access_list",
        "",
        &json!({"add": added, "remove": [hex(1)]}).to_string(),
    );
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(hashes(exported(&api)), (2..2_500).map(hex).collect());
    assert_eq!(std::fs::read_to_string(&overrides).unwrap().lines().count(), 2_499);
    let mut client = api.client();
    wait_until(|| client.announce(&Announce::of(2_000, 7_001)).leechers == 1);
    let status = api.get("/v1/status").json();
    assert_eq!(status["hooks"][0]["name"], json!("access_list"));
    assert_eq!(status["hooks"][0]["entries"], json!(2_498));
    for (body, status) in [
        ("{\"add\": [\"xyz\"]}".to_owned(), 400),
        ("{\"add\": 1}".to_owned(), 400),
        ("{\"added\": []}".to_owned(), 400),
        ("[]".to_owned(), 400),
        (json!({"add": vec![hex(1); 10_001]}).to_string(), 400),
        ("x".repeat(2 << 20), 413),
    ] {
        let reply = api.send("POST", "/v1/access_list", "", &body);
        assert_eq!(reply.status, status, "{}", reply.body);
        assert!(reply.json()["error"].is_string(), "{}", reply.body);
    }
    assert_eq!(hashes(exported(&api)).len(), 2_498, "nothing was changed");
    let without_list = Api::start("control: {listen: \"127.0.0.1:0\"}\n");
    assert_eq!(without_list.get("/v1/access_list").status, 409);
}

#[test]
fn other_hosts_and_proxies_need_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, "correct-horse-battery\n").unwrap();
    let config = |path: &Path| {
        format!("control: {{listen: \"127.0.0.1:0\", token_file: {}}}\n", path.display())
    };
    let api = Api::start(&config(&token_file));
    let authorization = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let proxied = "X-Forwarded-For: 203.0.113.5\r\n";
    assert_eq!(api.get("/v1/status").status, 200, "from this machine");
    let refused = api.send("GET", "/v1/status", proxied, "");
    assert_eq!(refused.status, 401, "{}", refused.body);
    assert!(refused.head.to_ascii_lowercase().contains("www-authenticate: bearer"));
    let with = |token: &str| {
        api.send("GET", "/v1/status", &format!("{proxied}{}", authorization(token)), "").status
    };
    assert_eq!(with("correct-horse-battery"), 200);
    assert_eq!(with("correct-horse-batterY"), 401);
    assert_eq!(api.send("GET", "/metrics", proxied, "").status, 200, "metrics need no token");
    // The token is read again by a reload, which changes nothing if it cannot be read.
    std::fs::write(&token_file, "another-horse-battery").unwrap();
    assert_eq!(api.send("POST", "/v1/reload", "", "").status, 200);
    assert_eq!((with("correct-horse-battery"), with("another-horse-battery")), (401, 200));
    std::fs::write(&token_file, "short").unwrap();
    let reload = api.send("POST", "/v1/reload", "", "");
    assert!(reload.status == 422 && reload.body.contains("control.token_file"), "{}", reload.body);
    assert_eq!(with("another-horse-battery"), 200);
    let metrics = api.get("/metrics").body;
    for line in [
        "tsubame_reloads_total{result=\"success\"} 1",
        "tsubame_reloads_total{result=\"failure\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn the_level_of_the_log_and_readiness_are_changed() {
    let mut api = Api::start("control: {listen: \"127.0.0.1:0\"}\n");
    assert_eq!(api.get("/v1/log_level").json(), json!({"level": "info"}));
    let reply = api.send("PUT", "/v1/log_level", "", "{\"level\": \"debug\"}");
    assert_eq!((reply.status, reply.json()), (200, json!({"level": "debug"})));
    assert_eq!(api.get("/v1/log_level").json(), json!({"level": "debug"}));
    assert_eq!(api.send("PUT", "/v1/log_level", "", "{\"level\": \"loud\"}").status, 400);
    api.tracker.wait_for("control: PUT /v1/log_level by 127.0.0.1: 400");
    api.tracker.signal("PIPE");
    api.tracker.wait_for("SIGPIPE is ignored");
    assert_eq!(api.get("/readyz").status, 200);
    assert_eq!(api.send("PUT", "/v1/drain", "", "{\"draining\": true}").status, 200);
    let ready = api.get("/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (503, "draining\n"));
    assert_eq!(api.get("/healthz").status, 200, "a tracker that drains is healthy");
    assert_eq!(api.client().announce(&Announce::of(1, 7_001)).leechers, 1);
    assert_eq!(api.send("PUT", "/v1/drain", "", "{\"draining\": false}").status, 200);
    assert_eq!(api.get("/readyz").status, 200);
}

/// `tsubame status` prints the state as text or JSON, over TCP and the unix socket, and explains failures.
#[test]
fn the_state_is_printed_by_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control");
    let api = Api::start(&format!(
        "control: {{listen: \"127.0.0.1:0\", socket: {}}}\nhttp: {{listen: \"127.0.0.1:0\"}}\n",
        socket.display()
    ));
    api.client().announce(&Announce::of(1, 7_001));
    let status = |arguments: &[&str]| {
        let output = common::tsubame().arg("status").args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let url = format!("http://{}", api.control);
    let (code, text, errors) = status(&["--control", &url]);
    assert!(code == 0 && text.starts_with("tsubame ") && text.contains("joined"), "{text}{errors}");
    let (code, json, errors) = status(&["--control", &socket.display().to_string(), "--json"]);
    assert_eq!(code, 0, "{errors}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["requests"].as_array().unwrap().len(), 2, "{json}");
    let (code, _, errors) = status(&["--control", "http://127.0.0.1:1"]);
    assert!(code == 1 && errors.contains("is the tracker running?"), "{errors}");
    let (code, _, errors) = status(&["--control", &url, "--token-file", "/nonexistent"]);
    assert!(code == 1 && errors.contains("cannot read /nonexistent"), "{errors}");
    let http = api.tracker.addresses_of("http")[0];
    let (code, _, errors) = status(&["--control", &format!("http://{http}")]);
    assert!(code == 1 && errors.contains("refused the request: 404"), "{errors}");
}

/// Every path and method of the document exists, and a flood of requests is refused.
#[test]
fn the_document_describes_the_api() {
    let mut api = Api::start("control: {listen: \"127.0.0.1:0\"}\n");
    let document = api.get("/v1/openapi.json").json();
    let mut operations = 0;
    // These end the process; tests/upgrade.rs has the upgrade.
    let ends_process = |path: &str| ["/v1/stop", "/v1/upgrade"].contains(&path);
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths.iter().filter(|(path, _)| !ends_process(path)) {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{info_hash}", "0123456789abcdef0123456789abcdef01234567");
            let reply = api.send(&method.to_ascii_uppercase(), &path, "", "");
            assert_ne!(reply.status, 405, "{method} {path}");
            if reply.status == 404 {
                assert!(reply.body.contains("swarm table"), "{method} {path}: {}", reply.body);
            }
            let documented = &document["paths"][path_of(&path)][method]["responses"];
            assert!(
                !documented[reply.status.to_string()].is_null(),
                "{method} {path}: {}",
                reply.status
            );
            operations += 1;
        }
    }
    assert!(operations >= 15, "{operations} operations");
    let statuses: BTreeSet<u16> = (0..300).map(|_| api.get("/v1/drain").status).collect();
    assert!(statuses.contains(&200), "{statuses:?}");
    let too_many = (0..1_000).any(|_| api.get("/v1/drain").status == 429);
    assert!(statuses.contains(&429) || too_many, "no request was refused");
    assert_eq!(api.get("/healthz").status, 200, "the limit is that of the API");
    wait_until(|| api.send("POST", "/v1/stop", "", "").status == 200);
    assert_eq!(api.tracker.wait().code(), Some(0));
}

/// Returns the path in the document for a path with the info hash of the test.
fn path_of(path: &str) -> String {
    path.replace("0123456789abcdef0123456789abcdef01234567", "{info_hash}")
}

/// The page shows all statistics without JavaScript, and the event stream sends new ones. Other hosts do not get it.
#[test]
fn the_status_page_shows_and_streams_statistics() {
    let mut api = Api::start(
        "control: {listen: \"127.0.0.1:0\"}\nhooks: [{name: limits, options: {announces_per_second: 9}}]\n",
    );
    let mut client = api.client();
    for port in 7_001..7_005 {
        client.announce(&Announce::of(3, port));
    }
    wait_until(|| api.get("/").body.contains(&hex(3)));
    let page = api.get("/");
    assert!(
        page.head.contains("text/html") && page.head.contains("default-src 'none'"),
        "{}",
        page.head
    );
    for text in [
        "<b class=good>serving</b>",
        "answers per second",
        "<td>joined</td>",
        "<td>limits</td>",
        "<polyline",
        "serving udp://",
    ] {
        assert!(page.body.contains(text), "{text} is not in\n{}", page.body);
    }
    let mut stream = TcpStream::connect(api.control).unwrap();
    stream.set_read_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut received = String::new();
    let mut buffer = [0; 4096];
    // Two updates.
    while received.matches("data: <header>").count() < 2 {
        let len = common::uninterrupted(|| stream.read(&mut buffer)).unwrap();
        assert!(len > 0, "the stream has ended: {received}");
        received.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
    assert!(received.contains("text/event-stream"), "{received}");
    for path in ["/", "/events"] {
        let reply = api.send("GET", path, "X-Forwarded-For: 203.0.113.5\r\n", "");
        assert!(
            reply.status == 403 && reply.body.contains("ssh -L 6880"),
            "{} {}",
            reply.status,
            reply.body
        );
    }
    api.tracker
        .wait_for("control: refused 1 request without a valid token, the last from 127.0.0.1");
    let streams: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(api.control).unwrap();
            stream.set_read_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
            write!(stream, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            (String::from_utf8_lossy(&start).into_owned(), stream)
        })
        .collect();
    let refused = streams.iter().filter(|(start, _)| start.ends_with("503")).count();
    assert!((4..=6).contains(&refused), "{refused} of 20 refused");
    assert_eq!(api.get("/healthz").status, 200);
}

/// The formats of opentracker, on the control plane and, for permitted networks, on the HTTP listener.
#[test]
fn statistics_have_the_formats_of_opentracker() {
    let api = Api::start(
        "control: {listen: \"127.0.0.1:0\"}\n\
         http: {listen: \"127.0.0.1:0\", trusted_proxies: [127.0.0.1], stats_networks: [203.0.113.0/24]}\n",
    );
    let mut client = api.client();
    for peer in 0..3 {
        client.announce(&Announce::of(1, 7_001 + peer));
    }
    client.announce(&Announce { left: 0, ..Announce::of(2, 7_001) });
    client.scrape(&[info_hash_of(1)]).unwrap();
    wait_until(|| api.get("/v1/status").json()["swarms"]["torrents"] == json!(2));
    let page = |mode: &str| api.get(&format!("/stats?mode={mode}")).body;
    assert_eq!(page("peer"), "4\n1\nopentracker serving 2 torrents\nopentracker");
    assert_eq!(api.get("/stats").body, page("peer"));
    let udp4 = page("udp4");
    let lines: Vec<&str> = udp4.lines().collect();
    // One connect, four announces and a scrape; a scrape is no success.
    assert_eq!((lines.len(), lines[0], lines[1]), (4, "6", "5"), "{udp4}");
    assert!(lines[2].ends_with(" seconds (0 hours)"), "{udp4}");
    assert!(lines[3].starts_with("opentracker udp4 stats, ") && lines[3].ends_with(" success/s."));
    assert!(page("tcp4").starts_with("0\n0\n"), "{}", page("tcp4"));
    assert!(page("conn").starts_with("6\n5\n"));
    assert!(page("scrp").starts_with("0\n1\n"), "{}", page("scrp"));
    let [one, two] = [1, 2].map(|torrent| hex(torrent).to_uppercase());
    assert_eq!(
        page("top10"),
        format!(
            "Top 10 torrents by peers:\n\t3\t{one}\n\t1\t{two}\nTop 10 torrents by seeds:\n\t1\t{two}\n\t0\t{one}\n"
        )
    );
    let list = page("tpbs&format=txt");
    assert!(
        list.contains(&format!("{one}:0:3\n")) && list.contains(&format!("{two}:1:0\n")),
        "{list}"
    );
    assert!(page("tpbs&format=txtp").contains(&format!("{one}:0:3:0\n")));
    let everything = page("everything");
    for element in ["<count_mutex>2</count_mutex>", "<scrape>1</scrape>", "<connect>1</connect>"] {
        assert!(everything.contains(element), "{element} is not in\n{everything}");
    }
    let unknown = api.get("/stats?mode=nothing");
    assert!(unknown.status == 404 && unknown.body.contains("the modes are"), "{}", unknown.body);
    let mut public = Connection::to(api.tracker.addresses_of("http")[0]);
    let permitted = public.get_with("/stats?mode=peer", "X-Forwarded-For: 203.0.113.9\r\n");
    assert_eq!((permitted.status, permitted.body.as_slice()), (200, page("peer").as_bytes()));
    assert_eq!(
        public.get_with("/stats?mode=peer", "X-Forwarded-For: 198.51.100.1\r\n").status,
        404
    );
}
