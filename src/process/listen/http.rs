//! Binds the listening sockets of HTTP: for each address a group of one socket per shard, among which the kernel
//! distributes connections.

use crate::clock::Clock;
use crate::process::listen::inherited::{InheritedError, InheritedSockets};
use crate::process::listen::key::ListenKey;
use crate::process::listen::udp::{ListenError, claim_addresses, explain};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Maximum number of connections that wait to be accepted; the kernel limits it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Bytes of the send buffer of a connection. The kernel doubles them for its bookkeeping.
const SEND_BUFFER: usize = 32 << 10;
/// Bytes of the receive buffer of a connection. The kernel doubles them for its bookkeeping.
const RECEIVE_BUFFER: usize = 8 << 10;

/// Time after which the kernel closes a connection whose client does not acknowledge sent data, or keeps its receive
/// window closed.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(30);

/// The bound TCP sockets.
#[derive(Debug, Default)]
pub struct HttpListeners {
    /// Sockets of each shard.
    pub shards: Vec<Vec<TcpListener>>,
    /// Configured addresses, with the ports that were assigned.
    pub addresses: Vec<SocketAddr>,
    /// Addresses whose sockets the service manager has passed, and keeps.
    pub inherited: Vec<SocketAddr>,
    /// Addresses that were skipped because this machine does not support their address family.
    pub left_out: Vec<SocketAddr>,
}

/// Binds all addresses, once for each shard, or takes their inherited sockets.
///
/// # Errors
///
/// Returns an error if an address cannot be bound, for example because another process uses it, or if an inherited
/// socket cannot be used.
pub fn bind(
    key: ListenKey,
    addresses: &[SocketAddr],
    shards: u16,
    (clock, inherited): (&Clock, &mut InheritedSockets),
) -> Result<HttpListeners, ListenError> {
    let mut listeners = HttpListeners {
        shards: (0..shards).map(|_| Vec::new()).collect(),
        ..HttpListeners::default()
    };
    let mut to_bind = Vec::new();
    for address in addresses {
        let sockets = inherited.take_tcp(key, *address, shards)?;
        if sockets.is_empty() {
            to_bind.push(*address);
            continue;
        }
        listeners.addresses.push(*address);
        listeners.inherited.push(*address);
        for (shard, socket) in listeners.shards.iter_mut().zip(sockets) {
            let failed = |error| InheritedError::Failed(address.to_string(), error);
            set_options(&SockRef::from(&socket)).map_err(failed)?;
            shard.push(socket);
        }
    }
    // First bound without SO_REUSEPORT: with it, a second process could take a part of the connections unnoticed.
    let claim = |address| listen(address, false)?.local_addr();
    let (claimed, left_out) =
        claim_addresses((key, &to_bind, !listeners.addresses.is_empty()), clock, claim)?;
    listeners.left_out = left_out;
    for address in claimed {
        for shard in &mut listeners.shards {
            let socket = listen(address, true).map_err(|error| explain(key, address, error))?;
            shard.push(socket);
        }
        listeners.addresses.push(address);
    }
    Ok(listeners)
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a previous process that are still being closed must not block the port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    set_options(&socket)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets the options of a listening socket that its connections inherit.
fn set_options(socket: &Socket) -> io::Result<()> {
    // A reply is one write that must not be delayed; a client that reads no replies makes the kernel buffer little; and
    // a client that acknowledges nothing is disconnected.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))
}
