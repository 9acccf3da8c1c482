//! Tests of the ring with real sockets on loopback.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]
#![cfg(feature = "ring")]

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket as Client};
use std::os::fd::AsFd;
use std::time::Duration;
use tsubame_storage::InfoHash;
use tsubame_udp::ring::{
    REPLY_LEN_MAX, Ring, UdpReplyPath, UdpSocket, Wait, WatchMode, epoll_that_polls,
};
use tsubame_udp::steering::{self, SteeringKeys};

/// Timeout after which a test fails.
const TIMEOUT: Duration = Duration::from_secs(5);

fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind_shared(address.parse().unwrap(), 1 << 20).unwrap()
}

fn client(address: &str) -> Client {
    let client = Client::bind(address).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client
}

/// Calls [`Ring::turn`] until datagrams arrive, and in between waits for the event of the ring as a shard does.
fn arrivals(ring: &mut Ring) -> usize {
    loop {
        ring.set_event_enabled(true);
        let arrived = ring.turn(Wait::No).unwrap();
        if arrived > 0 {
            ring.set_event_enabled(false);
            return arrived;
        }
        let event = ring.event();
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)).unwrap();
        assert!(ready > 0, "no datagram arrived");
        let _ = rustix::io::read(ring.event(), &mut [0; 8]);
    }
}

/// Replies to all received datagrams; `answer` writes a reply and returns its length, or 0 for none.
fn serve(ring: &mut Ring, mut answer: impl FnMut(&[u8], bool, &mut [u8]) -> usize) {
    while let Some(received) = ring.take().map(Result::unwrap) {
        let (datagram, reply) = ring.datagram_and_slot(&received);
        match answer(datagram.payload, datagram.truncated, reply) {
            0 => ring.release(received),
            len => ring.send(received, len).unwrap(),
        }
    }
    ring.turn(Wait::No).unwrap();
}

fn echo(payload: &[u8], _: bool, reply: &mut [u8]) -> usize {
    let len = payload.len().min(reply.len());
    reply[..len].copy_from_slice(&payload[..len]);
    len
}

#[test]
fn datagrams_are_echoed_over_both_families() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let socket = bind(address);
        let server = socket.address();
        let mut ring = Ring::new(vec![socket]).unwrap();
        let client = client(address);
        for len in [1, 16, 98, 1_400] {
            let sent: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
            client.send_to(&sent, server).unwrap();
            arrivals(&mut ring);
            serve(&mut ring, echo);
            let mut reply = [0; 2_000];
            let (received, from) = client.recv_from(&mut reply).unwrap();
            assert_eq!((&reply[..received], from), (sent.as_slice(), server));
        }
        assert_eq!((ring.counts().sent, ring.counts().send_failed), (4, 0));
        assert!(ring.stop(TIMEOUT));
    }
}

#[test]
fn a_wildcard_socket_replies_from_the_destination_address() {
    let cases = [
        ("0.0.0.0:0", "127.0.0.1:0", ["127.0.0.1", "127.0.0.5", "127.200.3.4"].as_slice()),
        ("[::]:0", "[::1]:0", ["::1"].as_slice()),
    ];
    for (wildcard, from, destinations) in cases {
        let socket = bind(wildcard);
        let port = socket.address().port();
        let mut ring = Ring::new(vec![socket]).unwrap();
        let client = client(from);
        for address in destinations {
            let server = SocketAddr::new(address.parse().unwrap(), port);
            client.send_to(b"hello", server).unwrap();
            arrivals(&mut ring);
            serve(&mut ring, echo);
            let (_, reply_source) = client.recv_from(&mut [0; 64]).unwrap();
            assert_eq!(reply_source, server);
        }
    }
}

#[test]
fn a_datagram_longer_than_any_request_is_marked_as_truncated() {
    let socket = bind("127.0.0.1:0");
    let server = socket.address();
    let mut ring = Ring::new(vec![socket]).unwrap();
    let client = client("127.0.0.1:0");
    for (len, cut) in [(1_496, false), (4_000, true), (65_507, true), (0, false)] {
        client.send_to(&vec![7; len], server).unwrap();
        arrivals(&mut ring);
        let mut seen = None;
        serve(&mut ring, |payload, truncated, _| {
            seen = Some((payload.len(), truncated));
            0
        });
        let (arrived, truncated) = seen.unwrap();
        assert_eq!(truncated, cut, "{len} bytes");
        assert!(arrived == len || cut && arrived >= 1_496, "{arrived} of {len} bytes");
    }
}

#[test]
fn a_turn_that_gathers_sends_first_and_gathers_datagrams() {
    let socket = bind("127.0.0.1:0");
    let server = socket.address();
    let mut ring = Ring::new(vec![socket]).unwrap();
    let (first, second) = (client("127.0.0.1:0"), client("127.0.0.1:0"));
    first.send_to(b"one", server).unwrap();
    arrivals(&mut ring);
    let received = ring.take().map(Result::unwrap).unwrap();
    let len = echo(b"one", false, ring.datagram_and_slot(&received).1);
    ring.send(received, len).unwrap();
    // More datagrams follow only after the reply to the first one: by then the turn already waits.
    let sender = std::thread::spawn(move || {
        first.recv_from(&mut [0; 64]).unwrap();
        for _ in 0..3 {
            second.send_to(b"more", server).unwrap();
        }
    });
    let (mut arrived, enters_before) = (0, ring.counts().enters);
    while arrived < 3 {
        arrived = ring.turn(Wait::Gather(Duration::from_millis(50))).unwrap();
    }
    sender.join().unwrap();
    assert_eq!(arrived, 3);
    let entered = ring.counts().enters - enters_before;
    assert!(entered < 20, "{entered} system calls: the turns did not wait");
    serve(&mut ring, echo);
    assert_eq!(
        ring.turn(Wait::Gather(Duration::from_millis(1))).unwrap(),
        0,
        "a turn without datagrams must end"
    );
}

fn monotonic() -> Duration {
    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).try_into().unwrap()
}

/// A wait for an event lasts until there is a datagram or a watched descriptor is readable, and no longer than its
/// timeout. An eventfd ends one wait for each write although it is never read.
#[test]
fn a_wait_for_an_event_ends_when_there_is_one() {
    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(2);
    let socket = bind("127.0.0.1:0");
    let server = socket.address();
    let mut ring = Ring::new(vec![socket]).unwrap();
    let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let watch = ring.add_watch(event.try_clone().unwrap(), WatchMode::Always);
    ring.set_watch_enabled(watch, true).unwrap();
    ring.turn(Wait::No).unwrap();
    for gather in [Duration::ZERO, Duration::from_micros(200)] {
        let wait = |timeout| Wait::Event { gather, timeout };
        let begun = monotonic();
        assert_eq!(ring.turn(wait(SHORT)).unwrap(), 0, "nothing has happened");
        assert!(monotonic() - begun >= SHORT);
        for _ in 0..3 {
            assert!(!ring.take_signal(watch));
            rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
            assert_eq!(ring.turn(wait(LONG)).unwrap(), 0);
            assert!(ring.take_signal(watch));
        }
        let client = client("127.0.0.1:0");
        client.send_to(b"one", server).unwrap();
        assert_eq!(ring.turn(wait(LONG)).unwrap(), 1);
        let received = ring.take().map(Result::unwrap).unwrap();
        let len = echo(b"one", false, ring.datagram_and_slot(&received).1);
        ring.send(received, len).unwrap();
        // The turn submits the reply, then waits. Without gathering, only the client's next datagram ends the wait.
        let answer = std::thread::spawn(move || {
            client.recv_from(&mut [0; 64]).unwrap();
            std::thread::yield_now();
            client.send_to(b"two", server).unwrap();
        });
        let (mut arrived, mut turns) = (0, 0);
        while arrived == 0 {
            (arrived, turns) = (ring.turn(wait(LONG)).unwrap(), turns + 1);
        }
        assert!(turns == 1 || !gather.is_zero(), "{turns} turns");
        answer.join().unwrap();
        serve(&mut ring, echo);
    }
    // A watch that is disabled ends no wait, and can be enabled again.
    ring.set_watch_enabled(watch, false).unwrap();
    rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
    let none = Wait::Event { gather: Duration::ZERO, timeout: SHORT };
    assert_eq!(ring.turn(none).unwrap(), 0);
    ring.take_signal(watch);
    rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
    let begun = monotonic();
    assert_eq!(ring.turn(none).unwrap(), 0);
    assert!(monotonic() - begun >= SHORT);
    assert!(!ring.take_signal(watch));
    ring.set_watch_enabled(watch, true).unwrap();
    ring.turn(Wait::Event { gather: Duration::ZERO, timeout: LONG }).unwrap();
    assert!(ring.take_signal(watch), "the eventfd is readable");
}

#[test]
fn the_epoll_instance_of_a_runtime_is_found() {
    let (event, other) = (eventfd(0, EventfdFlags::NONBLOCK).unwrap(), client("127.0.0.1:0"));
    assert!(epoll_that_polls(event.as_fd()).is_none());
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let data = rustix::event::epoll::EventData::new_u64(0);
    let flags = rustix::event::epoll::EventFlags::IN;
    rustix::event::epoll::add(&epoll, &event, data, flags).unwrap();
    // A wait for the instance that was found ends when the descriptor that it polls is readable.
    let mut ring = Ring::new(Vec::new()).unwrap();
    let watch = ring.add_watch(epoll_that_polls(event.as_fd()).unwrap(), WatchMode::Always);
    ring.set_watch_enabled(watch, true).unwrap();
    rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
    ring.turn(Wait::Event { gather: Duration::ZERO, timeout: TIMEOUT }).unwrap();
    assert!(ring.take_signal(watch));
    assert!(epoll_that_polls(other.as_fd()).is_none());
}

#[test]
fn without_free_buffers_datagrams_wait() {
    let socket = bind("127.0.0.1:0");
    let server = socket.address();
    let mut ring = Ring::new(vec![socket]).unwrap();
    let client = client("127.0.0.1:0");
    let count = Ring::buffers_max() + 100;
    for number in 0..count as u32 {
        client.send_to(&number.to_be_bytes(), server).unwrap();
    }
    let mut held = Vec::new();
    let mut numbers = BTreeSet::new();
    let mut take = |ring: &mut Ring, held: &mut Vec<_>| {
        while let Some(received) = ring.take().map(Result::unwrap) {
            let (datagram, _) = ring.datagram_and_slot(&received);
            numbers.insert(u32::from_be_bytes(datagram.payload.try_into().unwrap()));
            held.push(received);
        }
        numbers.len()
    };
    while take(&mut ring, &mut held) < Ring::buffers_max() {
        arrivals(&mut ring);
    }
    // All buffers are in use: further turns receive nothing.
    for _ in 0..10 {
        assert_eq!(ring.turn(Wait::No).unwrap(), 0);
    }
    assert!(ring.counts().out_of_buffers > 0);
    held.drain(..).for_each(|received| ring.release(received));
    while take(&mut ring, &mut held) < count {
        arrivals(&mut ring);
        held.drain(..).for_each(|received| ring.release(received));
    }
    held.drain(..).for_each(|received| ring.release(received));
    assert!(ring.stop(TIMEOUT));
}

#[test]
fn another_ring_replies_along_the_reply_path() {
    for (address, from) in
        [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("0.0.0.0:0", "127.0.0.1:0")]
    {
        let first = bind(address);
        let server = first.address();
        let second = bind(&server.to_string());
        let mut rings = [Ring::new(vec![first]).unwrap(), Ring::new(vec![second]).unwrap()];
        let client = client(from);
        let server = SocketAddr::new(
            if address.starts_with('0') { "127.0.0.9" } else { &from[..from.rfind(':').unwrap()] }
                .trim_matches(['[', ']'])
                .parse()
                .unwrap(),
            server.port(),
        );
        client.send_to(b"question", server).unwrap();
        // The kernel selected one of the two rings; the other one replies.
        let mut path: Option<(usize, UdpReplyPath)> = None;
        let deadline = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec + 5;
        while path.is_none() {
            assert!(
                rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec < deadline
            );
            for (number, ring) in rings.iter_mut().enumerate() {
                ring.turn(Wait::No).unwrap();
                if let Some(received) = ring.take().map(Result::unwrap) {
                    path = Some((number, ring.reply_path(&received)));
                    ring.release(received);
                }
            }
        }
        let (receiver, path) = path.unwrap();
        let other = &mut rings[1 - receiver];
        let slot = other.forward_slot().unwrap();
        other.forward_slot_bytes(&slot)[..6].copy_from_slice(b"answer");
        other.send_forwarded_reply(slot, &path, 6).unwrap();
        other.turn(Wait::No).unwrap();
        let mut reply = [0; 64];
        let (len, reply_source) = client.recv_from(&mut reply).unwrap();
        assert_eq!((&reply[..len], reply_source), (b"answer".as_slice(), server));
    }
}

#[test]
fn forward_slots_are_limited_and_reused() {
    let mut ring = Ring::new(vec![bind("127.0.0.1:0")]).unwrap();
    let mut slots: Vec<_> = std::iter::from_fn(|| ring.forward_slot()).collect();
    assert!(slots.len() >= 64);
    let slot = slots.pop().unwrap();
    assert_eq!(ring.forward_slot_bytes(&slot).len(), REPLY_LEN_MAX);
    ring.release_forward_slot(slot);
    assert!(ring.forward_slot().is_some());
}

#[test]
fn stopping_with_replies_in_flight_frees_the_port() {
    for _ in 0..20 {
        let socket = bind("127.0.0.1:0");
        let server = socket.address();
        let mut ring = Ring::new(vec![socket]).unwrap();
        let client = client("127.0.0.1:0");
        for _ in 0..200 {
            client.send_to(&[0; 98], server).unwrap();
        }
        arrivals(&mut ring);
        while let Some(received) = ring.take().map(Result::unwrap) {
            ring.send(received, 1_000).unwrap();
        }
        assert!(ring.stop(TIMEOUT));
        // The port is free at once, although the ring still exists.
        UdpSocket::bind_exclusive(server).unwrap();
    }
}

#[test]
fn a_full_submission_queue_is_submitted_without_a_turn() {
    let socket = bind("127.0.0.1:0");
    let server = socket.address();
    let mut ring = Ring::new(vec![socket]).unwrap();
    let client = client("127.0.0.1:0");
    for _ in 0..Ring::buffers_max() {
        client.send_to(b"question", server).unwrap();
    }
    let mut held = Vec::new();
    while held.len() < Ring::buffers_max() {
        arrivals(&mut ring);
        held.extend(std::iter::from_fn(|| ring.take().map(Result::unwrap)));
    }
    // One reply for each buffer is more than the submission queue holds.
    let (count, enters_before) = (held.len() as u64, ring.counts().enters);
    held.drain(..).for_each(|received| ring.send(received, 20).unwrap());
    assert!(ring.counts().enters > enters_before, "nothing was submitted before the turn");
    while ring.counts().sent < count {
        ring.turn(Wait::No).unwrap();
    }
    assert!(ring.stop(TIMEOUT));
}

#[test]
fn a_ring_that_is_dropped_without_stop_frees_its_port() {
    let socket = bind("127.0.0.1:0");
    let server = socket.address();
    let mut ring = Ring::new(vec![socket]).unwrap();
    ring.turn(Wait::No).unwrap();
    drop(ring);
    UdpSocket::bind_exclusive(server).unwrap();
}

/// The kernel and `SteeringKeys::owner` agree on every datagram with an info hash.
#[test]
fn the_kernel_steers_to_the_owner() {
    for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
        for shards in [1_u16, 2, 3, 4] {
            let seed = u64::from(shards);
            println!("seed {seed}");
            let mut rng = fastrand::Rng::with_seed(seed);
            let first = bind(address);
            let server = first.address();
            let mut sockets = vec![first];
            sockets.extend((1..shards).map(|_| bind(&server.to_string())));
            let keys = SteeringKeys::new(std::array::from_fn(|_| rng.u32(..)));
            steering::attach(sockets[0].as_fd(), &keys, shards).unwrap();
            let mut rings: Vec<Ring> =
                sockets.into_iter().map(|socket| Ring::new(vec![socket]).unwrap()).collect();
            let from = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
            let client = client(from);
            let target = SocketAddr::new(client.local_addr().unwrap().ip(), server.port());
            let mut received = 0;
            for _ in 0..300 {
                let mut datagram = vec![0; *rng.choice(&[36, 98, 110, 1_496]).unwrap()];
                rng.fill(&mut datagram);
                let action = match datagram.len() {
                    98 => 1,
                    110 => 4,
                    _ => 2,
                };
                datagram[8..12].copy_from_slice(&u32::to_be_bytes(action));
                client.send_to(&datagram, target).unwrap();
                let info_hash = InfoHash(datagram[16..36].try_into().unwrap());
                let owner = keys.owner(&info_hash, shards);
                arrivals(&mut rings[usize::from(owner)]);
                serve(&mut rings[usize::from(owner)], |payload, _, _| {
                    assert_eq!(payload, datagram);
                    received += 1;
                    0
                });
            }
            assert_eq!(received, 300);
            // A datagram without an info hash arrives at any ring.
            client.send_to(&[0; 16], target).unwrap();
            let deadline = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec + 5;
            while !rings.iter_mut().any(|ring| ring.turn(Wait::No).unwrap() > 0) {
                assert!(
                    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec < deadline
                );
            }
        }
    }
}
