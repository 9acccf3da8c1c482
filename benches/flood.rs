//! Floods a tracker on this machine with announces of one info hash and forged connection ids: all go to one shard.
//!
//! `flood PORT SECONDS`: UDP on 127.0.0.1. The kernel is handed 40 datagrams at a time (segmentation offload), so that
//! one core sends more than a shard can take.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const ANNOUNCE_LEN: usize = 98;
const SEGMENTS: usize = 40;

/// Ports that the flood comes from
const SOCKETS: usize = 64;

#[expect(clippy::disallowed_methods, reason = "how long to send is a matter of time")]
fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u16>());
    let (Some(Ok(port)), Some(Ok(seconds))) = (arguments.next(), arguments.next()) else {
        return Err(std::io::Error::other("give a port and a number of seconds"));
    };
    let sockets: Vec<UdpSocket> = (0..SOCKETS).map(|_| socket(port)).collect::<Result<_, _>>()?;
    let mut announce = [0_u8; ANNOUNCE_LEN];
    // An id that nobody was given, and the action.
    announce[..8].fill(0x77);
    announce[11] = 1;
    announce[16..36].fill(0x41);
    let (begun, duration) = (Instant::now(), Duration::from_secs(seconds.into()));
    let mut sent: u64 = 0;
    while Instant::now() - begun < duration {
        for socket in &sockets {
            announce[0] = announce[0].wrapping_add(1);
            socket.send(announce.repeat(SEGMENTS).as_slice())?;
            sent += SEGMENTS as u64;
        }
    }
    println!("{} a second", sent / u64::from(seconds.max(1)));
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
