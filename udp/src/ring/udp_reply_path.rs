//! The path of a reply: its destination, source address and socket, small enough to be sent to another thread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Destination, source address and socket of the reply to a datagram, for the ring of another shard.
///
/// Sockets have the same numbers in all rings of a process. A path has 40 bytes: two addresses, an interface, a port
/// and the number of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpReplyPath {
    destination: [u8; 16],
    local: [u8; 16],
    /// Scope id of an IPv6 destination, or index of the interface of the local address; for link-local addresses they
    /// are equal.
    interface: u32,
    port: u16,
    /// Number of the socket; the highest two bits are `PATH_IS_V4` and `PATH_HAS_LOCAL`.
    socket: u16,
}

const _: () = assert!(size_of::<UdpReplyPath>() == 40);

/// Bit that is set if the destination has an IPv4 address.
const PATH_IS_V4: u16 = 1 << 15;
/// Bit that is set if the local address is known.
const PATH_HAS_LOCAL: u16 = 1 << 14;
/// Mask of the number of the socket.
const PATH_SOCKET: u16 = PATH_HAS_LOCAL - 1;

impl UdpReplyPath {
    /// Returns the path of replies to `destination` from the socket with this number.
    ///
    /// `local` is the source address and interface of the replies; `None` if the socket is bound to one address.
    pub fn new(socket: u16, destination: SocketAddr, local: Option<(IpAddr, u32)>) -> Self {
        let wide = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let scope = match destination {
            SocketAddr::V6(destination) => destination.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let local_flag = if local.is_some() { PATH_HAS_LOCAL } else { 0 };
        let v4_flag = if destination.is_ipv4() { PATH_IS_V4 } else { 0 };
        Self {
            destination: wide(destination.ip()),
            local: local.map_or([0; 16], |(address, _)| wide(address)),
            interface: local.map_or(scope, |(_, interface)| interface.max(scope)),
            port: destination.port(),
            socket: socket | local_flag | v4_flag,
        }
    }

    /// Returns the number of the socket.
    pub(super) fn socket(&self) -> u16 {
        self.socket & PATH_SOCKET
    }

    /// Returns an address from its bytes.
    fn address(&self, bytes: [u8; 16]) -> IpAddr {
        let [.., a, b, c, d] = bytes;
        if self.socket & PATH_IS_V4 != 0 {
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(bytes).into()
        }
    }

    /// Returns the destination of the reply.
    pub fn destination(&self) -> SocketAddr {
        match self.address(self.destination) {
            IpAddr::V4(peer) => SocketAddr::new(peer.into(), self.port),
            IpAddr::V6(peer) => {
                let scope = if peer.is_unicast_link_local() { self.interface } else { 0 };
                SocketAddrV6::new(peer, self.port, 0, scope).into()
            }
        }
    }

    /// Returns the source address and interface of the reply, if they are known.
    pub(super) fn local(&self) -> Option<(IpAddr, u32)> {
        (self.socket & PATH_HAS_LOCAL != 0).then(|| (self.address(self.local), self.interface))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_path_are_returned() {
        for (peer, local) in [
            ("192.0.2.1:7", None),
            ("192.0.2.1:7", Some(("127.0.0.5", 0))),
            ("[2001:db8::1]:9", Some(("2001:db8::2", 4))),
            ("[fe80::1%4]:9", Some(("fe80::2", 4))),
            ("[fe80::1%4]:9", None),
        ] {
            let peer: SocketAddr = peer.parse().unwrap();
            let local = local.map(|(address, interface)| (address.parse().unwrap(), interface));
            let path = UdpReplyPath::new(5, peer, local);
            assert_eq!((path.socket(), path.destination(), path.local()), (5, peer, local));
        }
    }
}
