//! `tsubame-reflector`: answers every request with constant bytes of the right kind, from one thread.
//!
//! It keeps nothing and decides nothing: what it answers in a second is the most that any tracker on plain
//! sockets could on this machine. Replies carry the request's transaction id and as many peers as it is told,
//! so that a load generator takes them for a tracker's.

use clap::Parser;
use std::net::SocketAddr;
use std::time::Duration;
use tsubame_bench::batch::{BatchSocket, ReceiveBatch, SendBatch};

/// Answers every request with constant bytes
#[derive(Debug, Parser)]
#[command(name = "tsubame-reflector", version)]
struct Options {
    /// An explicit address: a wildcard would have the kernel choose the source of each reply
    #[arg(value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Peers in a reply to an announce
    #[arg(long, default_value_t = 16)]
    peers: usize,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let socket = BatchSocket::bind(options.listen)?;
    socket.set_patience(Duration::from_secs(3600))?;
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

fn is_request(bytes: &[u8]) -> bool {
    bytes.len() >= 16 && bytes[11] <= 2
}

/// Writes what has the length of a tracker's answer; returns the length
fn answer(head: &[u8], reply: &mut [u8], announce_len: usize) -> usize {
    let len = match head[11] {
        0 => 16,
        1 => announce_len,
        _ => 8 + (head.len() - 16) / 20 * 12,
    };
    reply[..4].copy_from_slice(&head[8..12]);
    reply[4..8].copy_from_slice(&head[12..16]);
    // An interval, and a connection id, above 0.
    reply[8..12].copy_from_slice(&1800_u32.to_be_bytes());
    len
}
