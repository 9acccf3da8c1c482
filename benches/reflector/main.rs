//! The reflector: answers every request with a made-up reply of the right length, from one thread.
//!
//! It stores nothing and decides nothing: its rate is the upper bound of a tracker that uses plain sockets and one
//! thread on this machine. Replies have the transaction id of the request and a fixed number of peers, so that a load
//! generator accepts them.

use clap::Parser;
use std::net::SocketAddr;
use std::time::Duration;
use tsubame_bench::batch::{BatchSocket, ReceiveBatch, SendBatch};

/// Answers every UDP request at once with a made-up reply, which shows the maximum rate of a tracker on plain sockets.
#[derive(Debug, Parser)]
#[command(name = "tsubame-reflector", version)]
struct ReflectorOptions {
    /// Address to listen on, which is not a wildcard: for that the kernel would choose the source of each reply.
    #[arg(value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Number of peers in a reply to an announce.
    #[arg(long, default_value_t = 16)]
    peers: usize,
}

fn main() -> std::io::Result<()> {
    let options = ReflectorOptions::parse();
    let socket = BatchSocket::bind(options.listen)?;
    socket.set_receive_timeout(Duration::from_secs(3600))?;
    println!("reflecting on udp://{}", socket.address()?);
    let compact_len = if options.listen.is_ipv4() { 6 } else { 18 };
    let announce_len = (20 + compact_len * options.peers).min(1472);
    let (mut incoming, mut out) = (ReceiveBatch::default(), SendBatch::default());
    loop {
        incoming.receive_waiting(&socket)?;
        for (request, from) in incoming.datagrams() {
            if is_request(request) {
                out.push(&from, None, None, |reply| answer(request, reply, announce_len));
            }
        }
        out.send(&socket)?;
    }
}

/// Returns whether a datagram may be a request.
fn is_request(bytes: &[u8]) -> bool {
    bytes.len() >= 16 && bytes[11] <= 2
}

/// Writes a reply that is as long as that of a tracker; returns the length.
fn answer(request: &[u8], reply: &mut [u8], announce_len: usize) -> usize {
    let len = match request[11] {
        0 => 16,
        1 => announce_len,
        _ => 8 + (request.len() - 16) / 20 * 12,
    };
    reply[..4].copy_from_slice(&request[8..12]);
    reply[4..8].copy_from_slice(&request[12..16]);
    // A nonzero interval or connection id.
    reply[8..12].copy_from_slice(&1800_u32.to_be_bytes());
    len
}
