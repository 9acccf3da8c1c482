//! Tests of the generator over HTTP and HTTPS.

use super::parse_options;
use crate::measure;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tsubame_bench::empty_table;
use tsubame_bench::record::StepRecord;
use tsubame_http::head::{self, RequestHead};
use tsubame_http::query;
use tsubame_http::reply::{
    AnnounceResponse, BodyLength, ContentType, ResponseHead, StatusCode, begin_scrape, end_scrape,
    write_row,
};
use tsubame_storage::{Endpoint, PeerOutput, Role, Seconds, SwarmAnnounce, Swarms};

/// Handler of a request: returns the bytes of a reply, or `None` to close the connection.
type Handler = dyn FnMut(IpAddr, &RequestHead<'_>) -> Option<Vec<u8>> + Send;

/// A server that uses a thread for each connection. Dropping it stops it.
struct Server {
    url: String,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(
        address: &str,
        tls: Option<Arc<ServerConfig>>,
        answer: impl FnMut(IpAddr, &RequestHead<'_>) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let answer: Arc<Mutex<Handler>> = Arc::new(Mutex::new(answer));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut connections: Vec<JoinHandle<()>> = Vec::new();
            while let Ok((stream, from)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (tls, answer) = (tls.clone(), answer.clone());
                connections.push(std::thread::spawn(move || match tls {
                    Some(config) => {
                        let session = ServerConnection::new(config).unwrap();
                        serve(StreamOwned::new(session, stream), from.ip(), &answer);
                    }
                    None => serve(stream, from.ip(), &answer),
                }));
            }
            connections.into_iter().for_each(|connection| connection.join().unwrap());
        });
        Self { url: format!("{scheme}://{address}/announce"), address, stop, thread: Some(thread) }
    }

    /// Starts a tracker whose replies are modified by `modify`.
    fn modifying(
        mut modify: impl FnMut(&RequestHead<'_>, Vec<u8>) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let mut table = empty_table();
        Self::start("127.0.0.1:0", None, move |from, head| {
            modify(head, answer(&mut table, from, head))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Answers requests one after the other until either side closes the connection.
fn serve(mut stream: impl Read + Write, from: IpAddr, answer: &Mutex<Handler>) {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        while let Ok(Some((head, len))) = head::parse(&bytes) {
            let keep_alive = head.keep_alive;
            let reply = answer.lock().unwrap()(from, &head);
            bytes.drain(..len);
            let Some(reply) = reply else { return };
            if stream.write_all(&reply).is_err() || !keep_alive {
                let _ = stream.flush();
                return;
            }
        }
        // Not a request: a client that speaks TLS to a server without it.
        if head::parse(&bytes).is_err() {
            return;
        }
        match stream.read(&mut part) {
            Ok(len) if len > 0 => bytes.extend_from_slice(&part[..len]),
            _ => return,
        }
    }
}

/// Returns the reply to a request, written with the tracker's own code.
fn answer(table: &mut Swarms, from: IpAddr, head: &RequestHead<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    match query::AnnounceQuery::parse(head.query) {
        Ok(query) => {
            let (mut v4, mut v6) = (vec![0; 6 * 50], vec![0; 18 * 50]);
            let peers_max = query.numwant.unwrap() as usize;
            let peers = PeerOutput { v4: &mut v4, v6: &mut v6, peers_max };
            let announce = SwarmAnnounce {
                info_hash: query.info_hash,
                endpoint: Endpoint::new(from, query.port),
                role: if query.left == 0 { Role::Seeder } else { Role::Leecher },
                event: query.event,
            };
            let prefetch = table.prefetch_index(&query.info_hash);
            let announced = table.announce(Seconds(1), prefetch, &announce, peers);
            let reply = AnnounceResponse {
                counts: announced.counts,
                interval: 1_800,
                min_interval: 900,
                external_ip: from,
                v4: &v4[..announced.v4_len],
                v6: &v6[..announced.v6_len],
                compact: query.compact,
                warning: None,
            };
            reply.write(&mut body);
        }
        Err(_) => {
            let mut requested: Vec<_> =
                query::info_hashes(head.query).map(Result::unwrap).collect();
            requested.sort_unstable();
            begin_scrape(&mut body);
            for info_hash in &requested {
                let swarm_stats = table.swarm_stats(&table.prefetch_index(info_hash), info_hash);
                write_row(&mut body, info_hash, swarm_stats);
            }
            end_scrape(&mut body, 900);
        }
    }
    ok_reply(&body, head.keep_alive)
}

/// Returns a reply with this body.
fn ok_reply(body: &[u8], keep_alive: bool) -> Vec<u8> {
    let mut reply = Vec::new();
    ResponseHead {
        status: StatusCode::Ok,
        content: ContentType::Plain,
        encoding: None,
        length: BodyLength::Bytes(body.len()),
        keep_alive,
    }
    .write(&mut reply);
    reply.extend_from_slice(body);
    reply
}

fn body_of(reply: &[u8]) -> &[u8] {
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    &reply[end + 4..]
}

/// Performs a short run; returns its only step.
fn step(urls: &[&str], arguments: &[&str]) -> StepRecord {
    let arguments = [urls, &["--duration=200ms", "--in-flight=20"], arguments].concat();
    let mut record = measure(&parse_options(&arguments)).unwrap();
    assert_eq!(record.steps.len(), 1);
    record.steps.remove(0)
}

#[test]
fn a_correct_tracker_passes_with_both_address_families_in_a_reply() {
    for close in [false, true] {
        let table = Arc::new(Mutex::new(empty_table()));
        let [v4, v6] = ["127.0.0.1:0", "[::1]:0"].map(|address| {
            let table = table.clone();
            let answer = move |from, head: &RequestHead<'_>| {
                Some(answer(&mut table.lock().unwrap(), from, head))
            };
            Server::start(address, None, answer)
        });
        let mut arguments = vec!["--mix=announce=5,scrape=1", "--churn=0.3", "--ipv6=0.5"];
        arguments.extend(close.then_some("--close"));
        let step = step(&[&v4.url, &v6.url], &arguments);
        assert_eq!((step.wrong.len(), step.lost, step.broken), (0, 0, 0), "{:?}", step.wrong);
        assert_eq!((step.checked, step.sent), (step.answers(), step.answers()));
        assert!(step.answered["announce"] > 100 && step.answered["scrape"] > 10);
        assert!(step.peers > 100, "{} peers", step.peers);
        assert_eq!(step.connections, if close { step.sent } else { 20 });
    }
}

#[test]
fn a_tracker_with_tls_passes() {
    let made = rcgen::generate_simple_self_signed(["t.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    for close in [false, true] {
        let mut table = empty_table();
        let server = Server::start("127.0.0.1:0", Some(config.clone()), move |from, head| {
            Some(answer(&mut table, from, head))
        });
        let close = if close { &["--close"][..] } else { &[] };
        let step = step(&[&server.url], close);
        assert_eq!((step.wrong.len(), step.lost, step.broken), (0, 0, 0), "{:?}", step.wrong);
        assert!(step.answered["announce"] > 20 && step.peers > 0, "{:?}", step.answered);
        assert_eq!(step.connections, if close.is_empty() { 20 } else { step.sent });
    }
}

#[test]
fn each_problem_of_a_reply_is_reported() {
    type Modify = fn(&RequestHead<'_>, Vec<u8>) -> Option<Vec<u8>>;
    let cases: [(&str, Modify); 7] = [
        ("error", |_, _| Some(ok_reply(b"d14:failure reason2:noe", true))),
        ("error", |_, _| Some(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec())),
        ("not canonical bencode", |_, _| Some(ok_reply(b"d5:filesde8:intervali60e", true))),
        ("malformed head", |_, _| Some(b"SSH-2.0\r\n".to_vec())),
        ("bytes after a reply", |_, mut reply| {
            reply.push(b'e');
            Some(reply)
        }),
        ("peer that does not exist", |_, _| {
            let body =
                b"d8:completei9e10:incompletei9e8:intervali60e5:peers6:\x09\x09\x09\x09\x09\x09e";
            Some(ok_reply(body, true))
        }),
        ("keys that are not sorted", |_, _| {
            Some(ok_reply(b"d5:peers0:8:intervali60e5:filesdee", true))
        }),
    ];
    for (what, modify) in cases {
        let server = Server::modifying(modify);
        let arguments =
            ["--mix=announce=5,scrape=1", "--timeout=50ms", "--churn=0", "--peers=9999"];
        let step = step(&[&server.url], &arguments);
        let named: Vec<_> = step.wrong.keys().map(String::as_str).collect();
        assert!(named.contains(&what) && step.wrong[what] > 0, "{what}: {named:?}");
        assert!(named.len() == 1 || what == "peer that does not exist", "{what}: {named:?}");
    }
}

#[test]
fn a_request_on_a_closed_connection_is_retried_once() {
    let mut count = 0;
    let server = Server::modifying(move |_, reply| {
        count += 1;
        (count % 10 != 0).then_some(reply)
    });
    let kept = step(&[&server.url], &["--mix=announce=1"]);
    assert_eq!((kept.lost, kept.wrong.len()), (kept.broken, 0), "{:?}", kept.wrong);
    let share = kept.broken as f64 / kept.sent as f64;
    // Only requests that fail twice are lost.
    assert!(share > 0.0 && share < 0.03, "{} of {}", kept.broken, kept.sent);
    assert!(kept.connections > kept.sent / 20, "{} for {}", kept.connections, kept.sent);
    let closed = step(&[&server.url], &["--mix=announce=1", "--close"]);
    assert_eq!((closed.lost, closed.wrong.len()), (closed.broken, 0), "{:?}", closed.wrong);
    let share = closed.broken as f64 / closed.sent as f64;
    assert!((0.05..0.15).contains(&share), "{} of {} lost", closed.broken, closed.sent);
}

#[test]
fn a_fill_announces_every_peer_despite_losses() {
    for close in [&["--fill"][..], &["--fill", "--close"]] {
        let table = Arc::new(Mutex::new(empty_table()));
        let (shared, mut count) = (table.clone(), 0);
        let server = Server::start("127.0.0.1:0", None, move |from, head| {
            count += 1;
            match count % 7 {
                0 => None,
                // An incomplete reply on a connection that stays open: the request is given up.
                3 => Some(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n".to_vec()),
                _ => Some(answer(&mut shared.lock().unwrap(), from, head)),
            }
        });
        let arguments = [close, &["--duration=0s", "--timeout=30ms", "--peers=999"]].concat();
        let step = step(&[&server.url], &arguments);
        assert_eq!((step.name.as_str(), step.wrong.len()), ("fill", 0), "{:?}", step.wrong);
        assert!(step.lost > 0 && step.sent == 999 + step.lost, "{} {}", step.lost, step.sent);
        let stats = table.lock().unwrap().stats();
        assert_eq!(stats.seeders[0] + stats.leechers[0], 999);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the pause that the test measures")]
fn open_loop_continues_while_the_tracker_is_stopped() {
    let (mut table, mut count) = (empty_table(), 0);
    let server = Server::start("127.0.0.1:0", None, move |from, head| {
        count += 1;
        if count == 100 {
            std::thread::sleep(Duration::from_millis(400));
        }
        Some(answer(&mut table, from, head))
    });
    let arguments = ["--rate=1000", "--duration=1s", "--timeout=5s", "--peers=9999"];
    let step = step(&[&server.url], &arguments);
    assert_eq!((step.lost, step.wrong.len()), (0, 0), "{:?}", step.wrong);
    // Requests that were due during the pause waited for one of 20 connections, and their latency shows it.
    assert!((100..450).contains(&step.waited), "{} waited", step.waited);
    assert!(
        step.latency.value_at(90.0) > 100_000.0 && step.gap_ms_max > 350.0,
        "{:?}",
        step.latency
    );
    assert!(step.sent + step.held_back > 800, "{} and {}", step.sent, step.held_back);
    assert!(step.generator.late < 0.5, "the delay must not count as lateness of the generator");
}

#[test]
fn replies_with_other_framing_are_read() {
    // Replies with a Content-Length, in chunks, and with a long header field.
    let (mut table, mut count) = (empty_table(), 0);
    let server = Server::start("127.0.0.1:0", None, move |from, head| {
        count += 1;
        let reply = answer(&mut table, from, head);
        let body = body_of(&reply);
        let head = match count % 3 {
            0 => return Some(reply),
            1 => "Transfer-Encoding: chunked".to_owned(),
            _ => format!("X: {}\r\nContent-Length: {}", "y".repeat(3_000), body.len()),
        };
        let mut written = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").into_bytes();
        if count % 3 == 1 {
            for chunk in body.chunks(50) {
                written.extend(format!("{:x}\r\n", chunk.len()).bytes());
                written.extend([chunk, b"\r\n"].concat());
            }
            written.extend(b"0\r\n\r\n");
        } else {
            written.extend(body);
        }
        Some(written)
    });
    let step = step(&[&server.url], &["--numwant=50", "--peers=999"]);
    assert_eq!((step.wrong.len(), step.lost), (0, 0), "{:?}", step.wrong);
    assert!(step.answers() > 100 && step.peers > 0);
}

#[test]
fn a_fill_fails_if_the_tracker_stops_replying() {
    let mut count = 0;
    let server = Server::modifying(move |_, reply| {
        count += 1;
        (count < 50).then_some(reply)
    });
    let arguments = ["--fill", "--duration=0s", "--peers=999", "--timeout=1s", "--in-flight=20"];
    let error =
        measure(&parse_options(&[&[server.url.as_str()], &arguments[..]].concat())).unwrap_err();
    assert!(error.contains("is it still up?"), "{error}");
}

#[test]
fn errors_name_the_fix() {
    let server = Server::modifying(|_, reply| Some(reply));
    let error = |url: &str, arguments: &[&str]| {
        measure(&parse_options(&[&[url], arguments].concat())).unwrap_err()
    };
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = format!("http://{free}/announce");
    for (url, arguments, words) in [
        (server.url.as_str(), &["--segments=2"][..], "available over UDP only"),
        (&server.url, &["--mix=connect=1"], "has no request that exists over HTTP"),
        (&server.url.replace("http:", "https:"), &[], "cannot be reached"),
        (&server.url, &["--peers=500000", "--in-flight=2"], "give --in-flight"),
        (&server.url.replace("announce", "a"), &[], "leave scrapes out: --mix announce=1"),
        (&server.url, &["udp://[::1]:1"], "a run supports one protocol"),
        (&refused, &[], "is the tracker up"),
    ] {
        let error = error(url, arguments);
        assert!(error.contains(words), "{error}");
    }
}
