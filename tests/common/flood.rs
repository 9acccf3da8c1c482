//! A flood of announces for one torrent, which reaches one shard.

use super::policy::wait_until;
use super::{Announce, Client, cpus, http_get};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Number of datagrams of one system call (UDP_SEGMENT), so that one thread sends more than a shard can process.
const SEGMENTS: usize = 40;

/// Sends announces of one info hash from one core until `done` is set.
///
/// The connection id is valid: datagrams with forged ids cost so little that one core may not send enough of them.
pub(crate) fn flood_one_torrent(tracker: SocketAddr, core: usize, done: &AtomicBool) {
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
pub(crate) fn core_of_shard_without_torrent(
    tracker: SocketAddr,
    control: SocketAddr,
) -> Option<usize> {
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
