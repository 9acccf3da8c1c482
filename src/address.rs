//! IP addresses of clients.

use std::net::{IpAddr, Ipv6Addr};

/// Returns the address by which the requests of a client are counted: its IPv4 address, or the first address of the /64
/// of its IPv6 address.
pub fn source_prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}
