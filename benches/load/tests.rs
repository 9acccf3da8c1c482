//! Tests of the generator against correct and faulty trackers over UDP.

mod web;

use crate::options::{LoadCli, RunOptions};
use crate::{html, measure, summary};
use clap::Parser;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tsubame::clock::Now;
use tsubame::tracker::Tracker;
use tsubame_bench::record::{Record, StepRecord};
use tsubame_bench::tracker;
use tsubame_storage::Seconds;

/// Handler of a request: returns the length of the reply, 0 for none.
type RequestHandler = Box<dyn FnMut(SocketAddr, &[u8], &mut [u8]) -> usize + Send>;

/// A server on a plain socket, which stops when it is dropped.
struct Server {
    url: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(address: &str, mut handler: RequestHandler) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let url = format!("udp://{}", socket.local_addr().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut request, mut reply) = ([0; 2_000], [0; 2_000]);
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut request) else { continue };
                let len = handler(from, &request[..len], &mut reply);
                if len > 0 {
                    let _ = socket.send_to(&reply[..len], from);
                }
            }
        });
        Self { url, stop, thread: Some(thread) }
    }

    /// Starts a tracker whose replies are modified by `modify`.
    fn modifying(mut modify: impl FnMut(&mut [u8], usize) -> usize + Send + 'static) -> Self {
        let mut tracker = tracker(1);
        Self::start(
            "127.0.0.1:0",
            Box::new(move |from, request, reply| {
                let len = handle(&mut tracker, from, request, reply);
                modify(reply, len)
            }),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Handles a request with the tracker.
fn handle(tracker: &mut Tracker, from: SocketAddr, request: &[u8], reply: &mut [u8]) -> usize {
    let now = Now { monotonic: Seconds(1), unix_secs: 1_000_000 };
    tracker.handle(now, from, request, reply).len
}

/// Parses the arguments of a small run.
fn parse_options(arguments: &[&str]) -> RunOptions {
    let fixed = ["tsubame-load", "--quiet", "--warmup=0s", "--torrents=50", "--sources=20"];
    // A receive buffer of the default size holds about 64 replies.
    let in_flight = ["--in-flight=64"];
    let in_flight =
        if arguments.iter().any(|a| a.starts_with("--in-flight")) { &[][..] } else { &in_flight };
    let cli = LoadCli::try_parse_from([&fixed, in_flight, arguments].concat());
    cli.unwrap_or_else(|error| panic!("{error}")).run
}

/// Performs a short run; returns its only step.
fn step(server: &Server, arguments: &[&str]) -> StepRecord {
    let arguments = [&[server.url.as_str(), "--duration=200ms"], arguments].concat();
    let mut record = measure(&parse_options(&arguments)).unwrap();
    assert_eq!(record.steps.len(), 1);
    record.steps.remove(0)
}

#[test]
fn a_correct_tracker_passes_over_both_address_families() {
    // Two trackers without common swarms: each returns peers of its own address family only.
    let [v4, v6] = ["127.0.0.1:0", "[::1]:0"].map(|address| {
        let mut tracker = tracker(1);
        Server::start(
            address,
            Box::new(move |from, request, reply| handle(&mut tracker, from, request, reply)),
        )
    });
    let mix = "--mix=connect=20,announce=50,scrape=20,forged=5,garbage=5";
    let arguments =
        [v4.url.as_str(), &v6.url, "--duration=300ms", "--churn=0.3", mix, "--ipv6=0.5"];
    let record = measure(&parse_options(&arguments)).unwrap();
    let [step] = record.steps.as_slice() else { panic!() };
    assert_eq!((step.wrong.len(), step.lost, step.late), (0, 0, 0), "{:?}", step.wrong);
    assert_eq!((step.checked, step.sent), (step.answers(), step.answers()));
    assert!(step.sent_unproven > 10 && step.answered_unproven == 0);
    for kind in ["connect", "announce", "scrape"] {
        assert!(step.answered[kind] > 10, "{:?}", step.answered);
    }
    assert!(step.peers > 0, "replies have peers");
    assert!(step.latency.value_at(50.0) > 0.0 && step.latency.max_us < 1e6);
}

#[test]
fn few_peers_with_many_addresses_cause_no_errors() {
    let server = Server::modifying(|_, len| len);
    let step = step(&server, &["--torrents=3", "--peers=7", "--sources=200", "--churn=0.3"]);
    assert_eq!((step.wrong.len(), step.lost), (0, 0), "{:?}", step.wrong);
    assert!(step.answered["announce"] > 100 && step.peers > 0);
}

#[test]
fn each_problem_of_a_reply_is_reported() {
    type Modify = fn(&mut [u8], usize) -> usize;
    let cases: [(&str, Modify); 6] = [
        ("family", |reply, len| if reply[3] == 1 && len > 20 { len - 1 } else { len }),
        ("peer twice", |reply, len| {
            if reply[3] == 1 && len >= 32 {
                reply.copy_within(20..26, 26);
            }
            len
        }),
        ("peer that does not exist", |reply, len| {
            if reply[3] == 1 && len >= 26 {
                reply[20..26].copy_from_slice(&[9, 9, 9, 9, 9, 9]);
            }
            len
        }),
        ("counts above population", |reply, len| {
            if reply[3] == 1 && len > 0 {
                reply[12] = 1;
            }
            len
        }),
        ("scrape rows", |reply, len| if reply[3] == 2 && len > 20 { len - 12 } else { len }),
        ("wrong length", |reply, len| if reply[3] == 2 && len > 20 { len - 1 } else { len }),
    ];
    for (what, modify) in cases {
        let server = Server::modifying(modify);
        let step = step(&server, &["--mix=announce=5,scrape=1", "--timeout=50ms"]);
        let named: Vec<_> = step.wrong.keys().map(String::as_str).collect();
        assert_eq!(named, [what]);
        assert!(step.wrong[what] > 0);
    }
}

#[test]
fn lost_and_unexpected_replies_are_counted() {
    let mut count = 0;
    let server = Server::modifying(move |reply, len| {
        count += 1;
        match count % 10 {
            // The first replies are to connects, which every client needs.
            _ if count < 100 => {}
            3 => return 0,
            6 => reply[4] ^= 1,
            _ => {}
        }
        len
    });
    let step = step(&server, &["--mix=announce=1", "--timeout=100ms", "--duration=1s"]);
    let share = |count: u64| count as f64 / step.sent as f64;
    assert!((0.15..0.25).contains(&share(step.lost)), "{} of {} lost", step.lost, step.sent);
    let unexpected = step.wrong["transaction id"];
    assert!((0.05..0.15).contains(&share(unexpected)), "{unexpected} of {} unexpected", step.sent);
    assert_eq!(step.wrong.len(), 1, "{:?}", step.wrong);
}

/// Starts a server that answers connects, answers announces without peers, and sends the requests to the test.
fn start_recording_server() -> (Server, Receiver<Vec<u8>>) {
    let (sender, requests) = channel();
    let server = Server::start(
        "127.0.0.1:0",
        Box::new(move |_, request, reply| {
            let _ = sender.send(request.to_vec());
            let Some((head, _)) = request.split_first_chunk::<16>() else { return 0 };
            reply[..4].copy_from_slice(&head[8..12]);
            reply[4..8].copy_from_slice(&head[12..16]);
            reply[8..20].copy_from_slice(&[0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
            if head[11] == 0 { 16 } else { 20 }
        }),
    );
    (server, requests)
}

#[test]
fn the_same_random_seed_gives_the_same_requests() {
    let requests_of_run = |seed: &str| -> Vec<Vec<u8>> {
        let (server, requests) = start_recording_server();
        step(&server, &["--in-flight=1", "--duration=600ms", seed]);
        drop(server);
        let after_connects = requests.iter().skip(20);
        after_connects.take(300).collect()
    };
    let first = requests_of_run("--seed=5");
    assert_eq!(first.len(), 300);
    assert_eq!(requests_of_run("--seed=5"), first);
    assert_ne!(requests_of_run("--seed=6"), first);
}

#[test]
fn segments_arrive_as_separate_requests() {
    let (server, requests) = start_recording_server();
    let step = step(&server, &["--segments=8", "--mix=announce=1", "--check=0"]);
    assert_eq!((step.sent, step.lost), (step.answers(), 0));
    assert!(requests.try_iter().skip(20).all(|request| request.len() == 98));
}

#[test]
fn a_fill_announces_every_peer_despite_losses() {
    let (sender, stats) = channel();
    let mut tracker = tracker(1);
    let mut count = 0;
    let server = Server::start(
        "127.0.0.1:0",
        Box::new(move |from, request, reply| {
            count += 1;
            if count % 7 == 0 {
                return 0;
            }
            let len = handle(&mut tracker, from, request, reply);
            let _ = sender.send(tracker.swarms().stats());
            len
        }),
    );
    let arguments =
        [server.url.as_str(), "--fill", "--duration=0s", "--timeout=30ms", "--peers=999"];
    let record = measure(&parse_options(&arguments)).unwrap();
    assert_eq!((record.steps[0].name.as_str(), record.peers), ("fill", 999));
    let stats = stats.try_iter().last().unwrap();
    assert_eq!(stats.seeders[0] + stats.leechers[0], 999);
    assert!(stats.seeders[0] > 200 && stats.leechers[0] > 700);
}

#[test]
fn clients_reconnect_when_the_tracker_has_new_keys() {
    let mut trackers = [tracker(1), tracker(2)];
    let mut count = 0;
    let server = Server::start(
        "127.0.0.1:0",
        Box::new(move |from, request, reply| {
            count += 1;
            handle(&mut trackers[usize::from(count > 500)], from, request, reply)
        }),
    );
    let step = step(&server, &["--mix=announce=1", "--timeout=100ms", "--duration=600ms"]);
    assert!(step.answered["connect"] >= 20, "{:?}", step.answered);
    assert!(step.lost > 0 && step.answered["announce"] > 600, "{:?}", step.answered);
    assert!(step.gap_ms_max >= 80.0, "{} ms", step.gap_ms_max);
}

#[test]
fn a_scenario_floods_pauses_and_runs_commands() {
    let server = Server::modifying(|_, len| len);
    let directory = tempfile::tempdir().unwrap();
    let (scenario, marker) =
        (directory.path().join("scenario.toml"), directory.path().join("touched"));
    let text = format!(
        "[[step]]\nname = 'flood'\nduration = '200ms'\nrate = 1000\nrun = 'touch {}'\n\
         flood = {{ connects = 2000, forged = 1000, garbage = 500 }}\n\
         [[step]]\npause = '20ms'\n[[step]]\nrun = 'true'\n[[step]]\nduration = '50ms'\n",
        marker.display()
    );
    std::fs::write(&scenario, text).unwrap();
    let path = scenario.to_str().unwrap();
    let record =
        measure(&parse_options(&[&server.url, "--scenario", path, "--mix=announce=1"])).unwrap();
    let [flood, calm] = record.steps.as_slice() else { panic!("{:?}", record.steps) };
    assert!(marker.exists());
    // 3,500 requests per second at random times for a fifth of a second; only connects are answered.
    assert!((150..500).contains(&flood.sent_unproven), "{}", flood.sent_unproven);
    assert_eq!(flood.answered_unproven, 0);
    assert!((200..600).contains(&flood.flood_connects), "{}", flood.flood_connects);
    // The last replies may arrive after the end of the step.
    assert!(flood.flood_connects_answered > flood.flood_connects * 9 / 10, "{flood:?}");
    assert!((100..320).contains(&flood.sent), "{}", flood.sent);
    assert_eq!((calm.sent_unproven, calm.lost, calm.wrong_sum()), (0, 0, 0));
    std::fs::write(&scenario, "[[step]]\nrun = 'exit 3'").unwrap();
    let error = measure(&parse_options(&[&server.url, "--scenario", path])).unwrap_err();
    assert!(error.contains("exit 3") && error.contains("step \"run 1\""), "{error}");
}

#[test]
fn an_unreachable_tracker_is_reported() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("udp://{}", socket.local_addr().unwrap());
    let error = measure(&parse_options(&[&url])).unwrap_err();
    assert!(error.contains(&url) && error.contains("is the tracker up"), "{error}");
    let error = measure(&parse_options(&[])).unwrap_err();
    assert!(error.contains("no tracker is given"), "{error}");
    let error = measure(&parse_options(&[&url, "--segments=65"])).unwrap_err();
    assert!(error.contains("--segments must be 1 to 64"), "{error}");
}

#[test]
fn records_are_read_compared_and_plotted() {
    let (server, _requests) = start_recording_server();
    let arguments = [server.url.as_str(), "--duration=250ms", "--name=a <b>", "--rate=2000"];
    let record = measure(&parse_options(&arguments)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.json");
    record.write(&path).unwrap();
    let read = Record::read(&path).unwrap();
    assert_eq!(read.steps[0].answers(), record.steps[0].answers());
    let text = summary::of_run(&read);
    assert!(text.contains("open loop, 2,000/s offered") && text.contains("p99.99"), "{text}");
    let compared = summary::of_comparison(&[read.clone(), read.clone()]);
    assert!(compared.contains("(1.00)"), "{compared}");
    let page = html::report(&[read.clone(), read]);
    assert_eq!(page.matches("<svg").count(), 2);
    assert_eq!(page.matches("<polyline").count(), 4);
    assert!(page.contains("a &lt;b&gt;") && !page.contains("NaN"), "{page}");
    // The page loads nothing from the network.
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("<script"));
}
