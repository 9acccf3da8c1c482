//! Steering during a flood that targets one shard.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::policy::wait_until;
use common::{
    Announce, Client, NO_REPLY_TIMEOUT, Tracker, WAIT_TIMEOUT, control_of, cpus, head, http_get,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Number of datagrams of one system call (UDP_SEGMENT), so that one thread sends more than a shard can process.
const SEGMENTS: usize = 40;

/// Sends announces of one info hash from one core until `done` is set.
///
/// The connection id is valid: datagrams with forged ids cost so little that one core may not send enough of them.
fn flood_one_torrent(tracker: SocketAddr, core: usize, done: &AtomicBool) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).unwrap();
    let id = Client::connected("127.0.0.1", tracker).id;
    let announce = Announce::of(1, 7_001).bytes(id, 1);
    let sockets: Vec<UdpSocket> = (0..16).map(|_| segmenting(tracker, announce.len())).collect();
    let segments = announce.repeat(SEGMENTS);
    while !done.load(Ordering::Relaxed) {
        for socket in &sockets {
            // Errors are expected: the flood fills the queue.
            let _ = socket.send(&segments);
        }
    }
}

fn segmenting(tracker: SocketAddr, len: usize) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(tracker).unwrap();
    let len = len as libc::c_int;
    // SAFETY: pointer and length describe `len`, which outlives the call.
    let result = unsafe {
        let value = (&raw const len).cast();
        let size = size_of_val(&len) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, size)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    socket
}

/// Returns the core of the shard that does not own the torrent, so that the flood leaves the other core to the shard
/// that does. Returns `None` if both shards run on one core.
fn core_of_other_shard(tracker: SocketAddr, control: SocketAddr) -> Option<usize> {
    Client::connected("127.0.0.1", tracker).announce(&Announce::of(1, 7_000));
    let owns = |shard: usize| {
        http_get(control, "/metrics").contains(&format!("tsubame_torrents{{shard=\"{shard}\"}} 1"))
    };
    wait_until(|| owns(0) || owns(1));
    let cores = cpus(2);
    let cores: Vec<usize> =
        cores.trim_matches('"').split(',').map(|core| core.parse().unwrap()).collect();
    let core = if owns(0) { cores[1] } else { cores[0] };
    (cores[0] != cores[1]).then_some(core)
}

#[test]
fn steering_is_detached_while_a_flood_targets_one_shard() {
    let mut tracker = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n",
        cpus(2)
    ));
    let control = control_of(&mut tracker);
    let (address, done) = (tracker.addresses()[0], AtomicBool::new(false));
    let Some(core) = core_of_other_shard(address, control) else {
        eprintln!("skipped: with one core, no shard is idle while another one is busy");
        return;
    };
    std::thread::scope(|scope| {
        scope.spawn(|| flood_one_torrent(address, core, &done));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            tracker.wait_within(3 * WAIT_TIMEOUT, "is overloaded while others idle");
            let page = http_get(control, "/metrics");
            assert!(page.contains("tsubame_steering_attached 0"), "{page}");
            assert!(page.contains("tsubame_steering_detached_total 1"), "{page}");
        }));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    // The socket queues may still be full of datagrams of the flood: requests are then answered late or dropped.
    let is_answered = |_| {
        let client = Client::new("127.0.0.1", address);
        client.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
        client.ask(&head(0x0417_2710_1980, 0, 1)).is_some()
    };
    wait_until(|| (0..8).all(is_answered));
    // Each torrent is still served by its owner, whichever shard receives the datagram.
    for torrent in 2..20 {
        for port in [7_001, 7_002] {
            let mut client = Client::connected("127.0.0.1", address);
            let leechers = client.announce(&Announce::of(torrent, port)).leechers;
            assert_eq!(leechers, u32::from(port) - 7_000);
        }
    }
    tracker.stop();
}
