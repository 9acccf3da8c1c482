//! The tracker over HTTP: swarms, connections, proxies, and invalid requests.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::http::{Connection, HttpAnnounce, HttpAnnounceReply, failure, header, rows_of};
use common::policy::wait_until;
use common::{Client, Tracker, UNCAPPED, control_of, count_in, cpus, info_hash_of, now};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Duration;

/// Returns a config with both protocols and both families; `http` is added to the section `http`.
fn config(shards: usize, http: &str) -> String {
    let both = "[\"127.0.0.1:0\", \"[::1]:0\"]";
    format!(
        "cpus: {}\nudp: {{listen: {both}}}\nhttp: {{listen: {both}{http}}}\ncontrol: {{listen: \"\"}}\n\
         announce: {{allow_private: true}}\n{UNCAPPED}",
        cpus(shards)
    )
}

fn start(shards: usize, http: &str) -> (Tracker, SocketAddr) {
    let tracker = Tracker::start(&config(shards, http));
    let address = tracker.addresses_of("http")[0];
    (tracker, address)
}

fn peers(list: &[(&str, u16)]) -> BTreeSet<(IpAddr, u16)> {
    list.iter().map(|(ip, port)| (ip.parse().unwrap(), *port)).collect()
}

#[test]
fn both_protocols_and_families_share_one_swarm() {
    for shards in [1, 2] {
        let tracker = Tracker::start(&config(shards, ""));
        let (udp, http) = (tracker.addresses(), tracker.addresses_of("http"));
        // Enough torrents that each shard owns some, whichever shard accepts the connection.
        for torrent in 0..10 {
            let mut udp_v4 = Client::connected("127.0.0.1", udp[0]);
            let mut udp_v6 = Client::connected("::1", udp[1]);
            udp_v4.announce(&common::Announce { left: 0, ..common::Announce::of(torrent, 7_001) });
            udp_v6.announce(&common::Announce::of(torrent, 7_002));
            let mut http_v4 = Connection::to(http[0]);
            let mut http_v6 = Connection::to(http[1]);
            let seen = http_v4.announce(&HttpAnnounce::of(torrent, 7_003, 5));
            assert_eq!(seen.peers, peers(&[("127.0.0.1", 7_001), ("::1", 7_002)]));
            assert_eq!((seen.seeders, seen.leechers, seen.completed), (1, 2, 0));
            assert_eq!((seen.interval, seen.min_interval), (1_800, 900));
            assert_eq!(seen.external_ip, [127, 0, 0, 1]);
            let seen = http_v6.announce(&HttpAnnounce::of(torrent, 7_004, 0));
            assert_eq!(
                seen.peers,
                peers(&[("127.0.0.1", 7_003), ("::1", 7_002)]),
                "a seeder gets leechers only"
            );
            assert_eq!(seen.external_ip.len(), 16);
            let seen = udp_v4.announce(&common::Announce::of(torrent, 7_005));
            assert_eq!(seen.peers, peers(&[("127.0.0.1", 7_001), ("127.0.0.1", 7_003)]));
            assert_eq!((seen.seeders, seen.leechers), (2, 3));
            let rows = http_v6.scrape(&[info_hash_of(torrent)]);
            assert_eq!(rows, [(info_hash_of(torrent), [2, 0, 3, 3])]);
        }
        let line = tracker.stop();
        assert_eq!(
            (count_in(&line, "announces"), count_in(&line, "over HTTP")),
            (50, 30),
            "{line}"
        );
        assert_eq!((count_in(&line, "rejected"), count_in(&line, "shed")), (0, 0), "{line}");
    }
}

#[test]
fn http_announces_follow_the_specification() {
    let (tracker, address) = start(2, "");
    let mut client = Connection::to(address);
    let seeder = HttpAnnounce::of(1, 7_001, 0);
    let leecher = HttpAnnounce::of(1, 7_002, 9);
    assert_eq!(client.announce(&seeder).peers, peers(&[]));
    // The peers as dictionaries, as dictionaries without peer ids, and in compact form.
    for form in ["compact=0", "compact=0&no_peer_id=1", "compact=1"] {
        let reply = client.get(&leecher.with(form).target());
        assert_eq!(HttpAnnounceReply::of(&reply.body).peers, peers(&[("127.0.0.1", 7_001)]));
        let dictionaries = reply.body.windows(11).any(|bytes| bytes == b"5:peersld2:");
        assert_eq!(dictionaries, form != "compact=1", "{form}");
    }
    // A repeated completed event is counted once.
    for _ in 0..3 {
        let done = HttpAnnounce { left: 0, ..leecher.with("event=completed") };
        let seen = client.announce(&done);
        assert_eq!((seen.seeders, seen.leechers, seen.completed), (2, 0, 1));
        assert_eq!(seen.peers, peers(&[]), "a seeder gets leechers only");
    }
    // A partial seed counts as a leecher, but not as a downloader in scrapes (BEP 21).
    let partial = HttpAnnounce::of(1, 7_003, 5).with("event=paused");
    client.announce(&partial);
    client.announce(&HttpAnnounce::of(1, 7_004, 5));
    assert_eq!(client.scrape(&[info_hash_of(1)])[0].1, [2, 1, 2, 1]);
    assert_eq!(client.announce(&partial).peers, peers(&[("127.0.0.1", 7_004)]));
    assert_eq!(client.announce(&seeder).peers, peers(&[("127.0.0.1", 7_004)]));
    // Number of peers by numwant.
    let peers_for = |client: &mut Connection, numwant: &str| {
        client.announce(&HttpAnnounce::of(2, 9_999, 1).with(numwant)).peers.len()
    };
    for port in 0..120 {
        client.announce(&HttpAnnounce::of(2, 8_000 + port, 1).with("numwant=0"));
    }
    assert_eq!(peers_for(&mut client, "numwant=0"), 0);
    assert_eq!(peers_for(&mut client, "numwant=7"), 7);
    assert_eq!(peers_for(&mut client, "numwant=-1"), 50);
    assert_eq!(peers_for(&mut client, "x=y"), 50);
    assert_eq!(peers_for(&mut client, "numwant=100000"), 120);
    // Peers with port 0 or 1 cannot accept connections and are not stored.
    let leechers = |client: &mut Connection| client.scrape(&[info_hash_of(2)])[0].1[2];
    let before = leechers(&mut client);
    assert_eq!(client.announce(&HttpAnnounce::of(2, 0, 1)).peers.len(), 50);
    client.announce(&HttpAnnounce::of(2, 1, 1));
    // Addresses in parameters are ignored for sources that are not trusted.
    client.announce(&HttpAnnounce::of(2, 9_999, 1).with("ip=8.8.8.8&ipv4=8.8.8.8&ipv6=2a00::1"));
    assert_eq!(leechers(&mut client), before);
    let stopped = client.announce(&HttpAnnounce::of(2, 9_999, 1).with("event=stopped&numwant=50"));
    assert_eq!((stopped.peers.len(), stopped.leechers), (0, before - 1));
    for (query, reason) in [
        ("", "info_hash is missing"),
        ("info_hash=abc", "info_hash is not 20 bytes"),
        ("info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=a", "peer_id is not 20 bytes"),
    ] {
        assert_eq!(failure(&client.get(&format!("/announce?{query}"))), reason);
    }
    assert_eq!(count_in(&tracker.stop(), "rejected"), 3);
}

#[test]
fn a_reply_contains_peers_of_both_families() {
    let tracker = Tracker::start(&config(1, ""));
    let http = tracker.addresses_of("http");
    let (mut v4, mut v6) = (Connection::to(http[0]), Connection::to(http[1]));
    for port in 0..200 {
        v4.announce(&HttpAnnounce::of(1, 8_000 + port, 1).with("numwant=0"));
    }
    for port in 0..30 {
        v6.announce(&HttpAnnounce::of(1, 8_000 + port, 1).with("numwant=0"));
    }
    for client in [&mut v4, &mut v6] {
        let seen = client.announce(&HttpAnnounce::of(1, 9_999, 1).with("numwant=40")).peers;
        let of_v6 = seen.iter().filter(|(address, _)| address.is_ipv6()).count();
        assert_eq!((seen.len(), of_v6), (40, 10), "the smaller family gets a quarter of the reply");
    }
    tracker.stop();
}

#[test]
fn scrape_rows_of_all_shards_are_sorted() {
    let (tracker, address) = start(2, "");
    let mut client = Connection::to(address);
    for torrent in 0..60 {
        for port in 0..=torrent % 3 {
            client.announce(&HttpAnnounce::of(torrent, 7_000 + port as u16, u64::from(port)));
        }
    }
    // Known and unknown torrents in random order, some of the known ones twice.
    let mut requested: Vec<u32> = (0..80).chain(10..20).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut requested);
    let hashes: Vec<[u8; 20]> = requested.iter().map(|torrent| info_hash_of(*torrent)).collect();
    let rows = client.scrape(&hashes);
    let expected: std::collections::BTreeMap<_, _> = (0..80)
        .map(|torrent| {
            let leechers = i64::from(torrent % 3);
            let known = i64::from(torrent < 60);
            (info_hash_of(torrent), [known, 0, leechers * known, leechers * known])
        })
        .collect();
    assert_eq!(rows, expected.into_iter().collect::<Vec<_>>());
    assert_eq!(failure(&client.get("/scrape")), "info_hash is missing");
    assert_eq!(failure(&client.get("/scrape?info_hash=a")), "info_hash is not 20 bytes");
    tracker.stop();
}

#[test]
fn pipelining_half_close_and_invalid_requests_are_handled() {
    let (tracker, address) = start(2, ", limits: {requests: 50}");
    // Many requests in one write, and one in many writes.
    let mut pipelined = Connection::to(address);
    let targets: Vec<String> =
        (0..40).map(|torrent| HttpAnnounce::of(torrent, 7_001, 1).target()).collect();
    let requests: String = targets
        .iter()
        .map(|target| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .collect();
    pipelined.send(requests.as_bytes());
    for _ in 0..40 {
        assert_eq!(HttpAnnounceReply::of(&pipelined.reply().unwrap().body).leechers, 1);
    }
    for byte in format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", targets[0]).into_bytes() {
        pipelined.send(&[byte]);
    }
    assert_eq!(HttpAnnounceReply::of(&pipelined.reply().unwrap().body).leechers, 1);
    // After nine more requests the limit of 50 is reached.
    for left in (0..9).rev() {
        let reply = pipelined.get("/");
        let connection = if left == 0 { "close" } else { "keep-alive" };
        assert_eq!(header(&reply.head, "connection").unwrap(), connection);
        assert_eq!(header(&reply.head, "content-type").unwrap(), "text/html; charset=utf-8");
    }
    assert!(pipelined.has_ended());
    // A client that closes its sending side still gets the reply.
    let mut half_closed = Connection::to(address);
    half_closed.send(format!("GET {} HTTP/1.1\r\n\r\n", targets[1]).as_bytes());
    half_closed.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half_closed.reply().unwrap().status, 200);
    assert!(half_closed.has_ended());
    // Versions and methods.
    for (request, status, ends) in [
        ("GET / HTTP/1.0\r\n\r\n", 200, true),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", 200, false),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 200, true),
        ("GET /announcer HTTP/1.1\r\n\r\n", 404, false),
        ("PUT / HTTP/1.1\r\n\r\n", 405, false),
        ("POST /announce HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405, true),
        ("POST /announce HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", 405, true),
        ("GARBAGE\r\n\r\n", 400, true),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03", 400, true),
        ("PROXY TCP4 nonsense\r\n", 0, true),
    ] {
        let mut client = Connection::to(address);
        client.send(request.as_bytes());
        if status > 0 {
            assert_eq!(client.reply().unwrap().status, status, "{request}");
        }
        if ends {
            assert!(client.has_ended(), "{request}");
        } else {
            assert_eq!(client.get("/").status, 200, "{request}");
        }
    }
    let mut head = Connection::to(address);
    head.send(b"HEAD / HTTP/1.1\r\n\r\n");
    let reply = head.reply_to("HEAD").unwrap();
    assert!(reply.body.is_empty() && header(&reply.head, "content-length").unwrap() != "0");
    assert_eq!(head.get("/").status, 200, "the reply to HEAD must have no body");
    let mut oversized = Connection::to(address);
    // The tracker closes the connection while this is sent.
    let _ = oversized.stream.write_all(format!("GET /{} ", "a".repeat(20_000)).as_bytes());
    assert_eq!(oversized.reply().unwrap().status, 431);
    tracker.stop();
}

#[test]
fn a_request_with_a_body_is_refused_at_once() {
    let (tracker, address) = start(1, "");
    let mut client = Connection::to(address);
    client.send(b"POST /announce HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n");
    let begun = now();
    assert_eq!(client.reply().unwrap().status, 405);
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Body bytes are discarded, up to a limit; then the connection is closed.
    client.stream.set_write_timeout(Some(common::WAIT_TIMEOUT)).unwrap();
    let error = loop {
        if let Err(error) = client.stream.write_all(&[0; 4_096]) {
            break error;
        }
    };
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection was not closed");
    tracker.stop();
}

#[test]
fn slow_and_idle_connections_are_closed_oldest_first() {
    let (tracker, address) =
        start(1, ", limits: {connections: 4, request_timeout: 2s, idle_timeout: 4s}");
    let mut idle = Connection::to(address);
    assert_eq!(idle.get("/").status, 200);
    let mut others: Vec<_> = (0..3).map(|_| Connection::to(address)).collect();
    for other in &mut others {
        assert_eq!(other.get("/").status, 200);
    }
    // A new connection replaces only the one that has been idle for longest.
    let mut fifth = Connection::to(address);
    assert_eq!(fifth.get("/").status, 200);
    assert!(idle.has_ended());
    for other in &mut others {
        assert_eq!(other.get("/").status, 200);
    }
    // Single bytes do not extend the timeout of a request.
    let mut slow = Connection::to(address);
    let begun = now();
    let mut sent = 0;
    for byte in b"GET / HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
        if slow.stream.write_all(&[*byte]).is_err() {
            break;
        }
        sent += 1;
        slow.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        match std::io::Read::read(&mut slow.stream, &mut [0; 10]) {
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(8),
        "{took:?}, {sent} bytes"
    );
    // `slow` replaced the fifth connection; the others reached the idle timeout.
    assert!(fifth.has_ended());
    for other in &mut others {
        assert!(other.has_ended(), "an idle connection was not closed");
    }
    tracker.stop();
}

#[test]
fn client_addresses_are_taken_from_trusted_proxies_only() {
    let trusted = ", trusted_proxies: [\"127.0.0.0/8\"]";
    for (http, is_trusted) in [(trusted, true), ("", false)] {
        let (tracker, address) = start(1, http);
        let seen = |client: &mut Connection, headers: &str| {
            let reply = client.get_with(&HttpAnnounce::of(1, 7_001, 1).target(), headers);
            HttpAnnounceReply::of(&reply.body).external_ip
        };
        let expected = |ip: [u8; 4]| if is_trusted { ip } else { [127, 0, 0, 1] };
        let mut client = Connection::to(address);
        assert_eq!(seen(&mut client, ""), [127, 0, 0, 1]);
        let forged = "X-Forwarded-For: 6.6.6.6, 81.2.3.4, 127.9.9.9\r\n";
        assert_eq!(seen(&mut client, forged), expected([81, 2, 3, 4]));
        assert_eq!(seen(&mut client, "X-Real-IP: 81.2.3.5\r\n"), expected([81, 2, 3, 5]));
        let mut proxy_v1 = Connection::to(address);
        proxy_v1.send(b"PROXY TCP4 81.2.3.6 127.0.0.1 5000 6969\r\n");
        assert_eq!(seen(&mut proxy_v1, ""), expected([81, 2, 3, 6]));
        assert_eq!(seen(&mut proxy_v1, "X-Forwarded-For: 6.6.6.6\r\n"), expected([81, 2, 3, 6]));
        let mut proxy_v2 = Connection::to(address);
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        header.extend([81, 2, 3, 7, 127, 0, 0, 1, 1, 1, 2, 2]);
        for byte in header {
            proxy_v2.send(&[byte]);
        }
        assert_eq!(seen(&mut proxy_v2, ""), expected([81, 2, 3, 7]));
        let peers = if is_trusted { 5 } else { 1 };
        assert_eq!(count_in(&tracker.stop(), "peers"), peers);
    }
}

#[test]
fn passkeys_are_read_from_the_path() {
    let (tracker, address) =
        start(1, ", announce_paths: [\"/{key}/announce\", \"/a\"], scrape_paths: auto");
    let mut client = Connection::to(address);
    let target = HttpAnnounce::of(1, 7_001, 1).target();
    for (path, status) in [
        ("/0123456789abcdef/announce", 200),
        ("/a", 200),
        ("/announce", 404),
        ("/x/y/announce", 404),
    ] {
        let target = target.replace("/announce", path);
        assert_eq!(client.get(&target).status, status, "{path}");
    }
    let query = format!("info_hash={}", common::http::escaped(&info_hash_of(1)));
    let reply = client.get(&format!("/0123456789abcdef/scrape?{query}"));
    assert_eq!(rows_of(&reply.body), [(info_hash_of(1), [0, 0, 1, 1])]);
    let page = client.get("/");
    let text = String::from_utf8(page.body).unwrap();
    let url = format!("http://t.example:{}/{{key}}/announce\n", address.port());
    assert!(text.contains(&url), "{text}");
    tracker.stop();
}

#[test]
fn ten_thousand_connections_stay_open() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.maximum.unwrap_or(u64::MAX);
    let raised = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let count = 10_000.min(limit.saturating_sub(500));
    if count < 10_000 {
        // In some containers root cannot raise its own limit.
        eprintln!("only {count} connections are held: the limit on files is {limit} (ulimit -n)");
    }
    let (tracker, address) = start(2, ", limits: {idle_timeout: 10m, per_source: 100%}");
    let target = HttpAnnounce::of(1, 7_001, 1).target();
    let mut connections: Vec<Connection> = (0..count)
        .map(|_| {
            let mut client = Connection::to(address);
            assert_eq!(client.get(&target).status, 200);
            client
        })
        .collect();
    for client in connections.iter_mut().step_by(97) {
        assert_eq!(client.get(&target).status, 200);
    }
    let begun = now();
    let line = tracker.stop();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(count_in(&line, "over HTTP"), count + count.div_ceil(97), "{line}");
}

/// Shards that wait in their rings are woken by datagrams, by each other, and by HTTP connections.
#[test]
fn shards_that_wait_in_their_rings_are_woken() {
    let config = config(2, "").replace("listen: \"\"", "listen: \"127.0.0.1:0\"");
    let config = config.replace("udp: {", "udp: {steering: off, ");
    let mut tracker = Tracker::start(&config);
    let control = control_of(&mut tracker);
    let enters = || -> Vec<u64> {
        let mut connection = Connection::to(control);
        connection.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let page = String::from_utf8(connection.reply().unwrap().body).unwrap();
        let lines = page.lines().filter(|line| line.starts_with("tsubame_io_uring_enters_total{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    // In their rings they wait for a tenth of a second at a time, in the runtime for a second.
    let before = enters();
    assert_eq!(before.len(), 2);
    wait_until(|| enters().iter().zip(&before).all(|(now, before)| now - before > 20));
    let mut client = Client::connected("127.0.0.1", tracker.addresses()[0]);
    let begun = now();
    for torrent in 0..40 {
        let reply = client.announce(&common::Announce::of(torrent, 7_001));
        assert_eq!((reply.seeders, reply.leechers), (0, 1));
    }
    // Half of the torrents belong to the other shard: without a wake-up, each of them would take a tenth of a second.
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for torrent in 0..4 {
        let seen = Connection::to(tracker.addresses_of("http")[0])
            .announce(&HttpAnnounce::of(torrent, 7_003, 5));
        assert_eq!(seen.peers, peers(&[("127.0.0.1", 7_001)]));
    }
    tracker.stop();
}

/// HTTP connections share their threads with the datapaths, and are served during a flood of datagrams.
#[test]
fn a_flood_of_datagrams_does_not_stop_http() {
    let tracker = Tracker::start(&config(1, ""));
    let (udp, http) = (tracker.addresses()[0], tracker.addresses_of("http")[0]);
    let flood = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let floods: Vec<_> = (0..2)
        .map(|_| {
            let flood = flood.clone();
            std::thread::spawn(move || {
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                while flood.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = socket.send_to(&[0; 98], udp);
                }
            })
        })
        .collect();
    let mut kept = Connection::to(http);
    for torrent in 0..50 {
        assert_eq!(kept.announce(&HttpAnnounce::of(torrent, 7_001, 1)).leechers, 1);
        assert_eq!(Connection::to(http).announce(&HttpAnnounce::of(torrent, 7_002, 1)).leechers, 2);
    }
    flood.store(false, std::sync::atomic::Ordering::Relaxed);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    let line = tracker.stop();
    assert!(count_in(&line, "rejected") > 1_000, "{line}");
}

#[test]
fn http_is_served_without_udp() {
    let config = format!(
        "cpus: {}\nudp: {{listen: []}}\nhttp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"\"}}\n",
        cpus(2)
    );
    let tracker = Tracker::start(&config);
    let mut client = Connection::to(tracker.addresses_of("http")[0]);
    assert_eq!(client.announce(&HttpAnnounce::of(1, 7_001, 1)).leechers, 1);
    tracker.stop();
}

#[test]
fn full_scrapes_are_served_to_permitted_networks() {
    let http = ", full_scrape: {networks: [\"127.0.0.1\", \"127.0.0.3\", \"127.0.0.4\", \"::1\"], interval: 1h}, \
                trusted_proxies: [127.0.0.1]";
    let (mut tracker, address) = start(2, http);
    // More torrents than fit a page of each shard.
    const TORRENTS: u32 = 20_000;
    for torrents in (0..TORRENTS).collect::<Vec<_>>().chunks(500) {
        let target = |torrent: &u32| HttpAnnounce::of(*torrent, 7_001, 1).target();
        let requests: String = torrents
            .iter()
            .map(|torrent| format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", target(torrent)))
            .collect();
        let mut pipelined = Connection::to(address);
        pipelined.send(requests.as_bytes());
        torrents.iter().for_each(|_| assert_eq!(pipelined.reply().unwrap().status, 200));
    }
    let mut expected: Vec<_> = (0..TORRENTS).map(|it| (info_hash_of(it), [0, 0, 1, 1])).collect();
    expected.sort_unstable();
    let from = |address: &str, coding: &str| {
        format!("X-Forwarded-For: {address}\r\nAccept-Encoding: {coding}\r\n")
    };
    let mut client = Connection::to(address);
    // A client that disconnects during the transfer does not block other clients.
    let mut aborted = Connection::to(address);
    aborted.send(b"GET /scrape HTTP/1.1\r\nX-Forwarded-For: 127.0.0.4\r\n\r\n");
    let mut beginning = [0; 100];
    std::io::Read::read_exact(&mut aborted.stream, &mut beginning).unwrap();
    drop(aborted);
    let deadline = now() + common::WAIT_TIMEOUT;
    let plain = loop {
        let reply = client.get_with("/scrape", &from("127.0.0.1", "br"));
        if reply.status != 429 {
            break reply;
        }
        assert!(now() < deadline, "the full scrape of a closed connection is still running");
    };
    assert_eq!(rows_of(&plain.body), expected);
    client.send(b"HEAD /scrape HTTP/1.1\r\nX-Forwarded-For: 127.0.0.3\r\n\r\n");
    assert_eq!(client.reply_to("HEAD").unwrap().status, 200);
    // Other networks are refused, and a permitted address may repeat a full scrape only after the interval.
    assert_eq!(client.get_with("/scrape", &from("127.0.0.9", "")).status, 403);
    assert_eq!(client.get_with("/scrape", &from("127.0.0.1", "")).status, 429);
    let zstd = client.get_with("/scrape", &from("127.0.0.3", "gzip, zstd"));
    assert_eq!(header(&zstd.head, "content-encoding").unwrap(), "zstd");
    assert_eq!(rows_of(&zstd::decode_all(zstd.body.as_slice()).unwrap()), expected);
    assert!(zstd.body.len() < plain.body.len() / 2);
    let mut old = Connection::to(address);
    old.send(b"GET /scrape HTTP/1.0\r\nX-Forwarded-For: ::1\r\nAccept-Encoding: gzip\r\n\r\n");
    let gzip = old.reply().unwrap();
    let mut unpacked = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(gzip.body.as_slice());
    std::io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
    assert_eq!(rows_of(&unpacked), expected);
    // The connection stays open, and scrapes of single torrents have no such interval.
    assert_eq!(client.scrape(&[info_hash_of(1)]).len(), 1);
    tracker.signal("TERM");
    assert_eq!(tracker.wait().code(), Some(0));
    let (tracker, address) = start(1, "");
    assert_eq!(failure(&Connection::to(address).get("/scrape")), "info_hash is missing");
    tracker.stop();
}
