//! Binds the listening sockets of HTTP: for each address a group of one socket per shard, among which the kernel
//! distributes connections.

use crate::clock::Clock;
use crate::process::listen::udp::{ListenError, ListenKey, claimed, explain};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Maximum number of connections that wait to be accepted; the kernel limits it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Bytes of replies that the kernel buffers for a connection, in addition to its own overhead.
const SEND_BUFFER: usize = 32 << 10;
/// Bytes of requests that the kernel buffers for a connection.
const RECEIVE_BUFFER: usize = 8 << 10;

/// How long sent bytes may stay unacknowledged, or unread by a client whose window is closed.
const UNTAKEN_TIMEOUT: Duration = Duration::from_secs(30);

/// The listening sockets.
#[derive(Debug, Default)]
pub struct HttpListeners {
    /// Sockets of each shard.
    pub shards: Vec<Vec<TcpListener>>,
    /// Configured addresses, with the ports that were assigned.
    pub addresses: Vec<SocketAddr>,
    /// Addresses that were left out because this machine does not support their family.
    pub left_out: Vec<SocketAddr>,
}

/// Binds all addresses, with a socket for each shard.
pub fn bind(
    key: ListenKey,
    addresses: &[SocketAddr],
    shards: u16,
    clock: &Clock,
) -> Result<HttpListeners, ListenError> {
    // Bound alone first: SO_REUSEPORT would let a second process take part of the connections unnoticed.
    let claim = |address| listen(address, false)?.local_addr();
    let (addresses, left_out) = claimed(key, addresses, clock, claim)?;
    let mut shards: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    for address in &addresses {
        for shard in &mut shards {
            let socket = listen(*address, true).map_err(|error| explain(key, *address, error))?;
            shard.push(socket);
        }
    }
    Ok(HttpListeners { shards, addresses, left_out })
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a predecessor that are still being closed do not keep the port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // All of these are inherited by each connection: a reply is one write and not to wait for more; a client that sends
    // requests and takes no replies makes the kernel hold little; and one that takes nothing for so long is gone, with
    // what it was sent.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_tcp_user_timeout(Some(UNTAKEN_TIMEOUT))?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
