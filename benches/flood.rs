//! Floods a tracker on this machine with announces of one info hash and forged connection ids: one shard receives all
//! of them.
//!
//! `flood PORT SECONDS`: UDP on 127.0.0.1. Each send has 40 datagrams (segmentation offload), so that one core sends
//! more than a shard can process.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const ANNOUNCE_LEN: usize = 98;
/// Number of datagrams per send.
const SEGMENTS: usize = 40;

/// Number of ports from which the flood is sent.
const SOCKETS: usize = 64;

#[expect(clippy::disallowed_methods, reason = "the flood ends at a given time")]
fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u16>());
    let (Some(Ok(port)), Some(Ok(seconds))) = (arguments.next(), arguments.next()) else {
        return Err(std::io::Error::other("usage: flood PORT SECONDS"));
    };
    let sockets: Vec<UdpSocket> = (0..SOCKETS).map(|_| socket(port)).collect::<Result<_, _>>()?;
    let mut announce = [0_u8; ANNOUNCE_LEN];
    // A forged connection id, and the action.
    announce[..8].fill(0x77);
    announce[11] = 1;
    announce[16..36].fill(0x41);
    let (start, duration) = (Instant::now(), Duration::from_secs(seconds.into()));
    let mut sent: u64 = 0;
    while Instant::now() - start < duration {
        for socket in &sockets {
            announce[0] = announce[0].wrapping_add(1);
            socket.send(announce.repeat(SEGMENTS).as_slice())?;
            sent += SEGMENTS as u64;
        }
    }
    println!("{} datagrams per second", sent / u64::from(seconds.max(1)));
    Ok(())
}

fn socket(port: u16) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    let len: libc::c_int = ANNOUNCE_LEN as libc::c_int;
    // SAFETY: pointer and length describe `len`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const len).cast(),
            size_of_val(&len) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(socket) } else { Err(std::io::Error::last_os_error()) }
}
