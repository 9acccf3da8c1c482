//! Selection of the source addresses of the clients.

use crate::population::SourceAddresses;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// Number of peers per address above which more addresses are used; each peer of an address needs its own port.
const PEERS_PER_ADDRESS: u32 = 60_000;

/// First source address on loopback. All of 127.0.0.0/8 is local; floods use other addresses.
const LOOPBACK_FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
/// Number of source addresses on loopback.
const LOOPBACK_COUNT: u32 = (127 << 16) - 1;

/// Selects `wanted` addresses of the address family of the target, or more if the peers need them.
///
/// They are fewer if the source network has fewer addresses, and one if no source network of the target's family is
/// given and the target is not on IPv4 loopback.
pub(crate) fn choose(
    target: SocketAddr,
    wanted: u32,
    peers: u32,
    networks: &[IpNet],
) -> Result<SourceAddresses, String> {
    let needed = wanted.max(peers.div_ceil(PEERS_PER_ADDRESS));
    let is_family = |net: &&IpNet| net.addr().is_ipv4() == target.is_ipv4();
    if let Some(network) = networks.iter().find(is_family) {
        let host_bits = network.max_prefix_len() - network.prefix_len();
        let available = (1_u128 << host_bits.min(32)).saturating_sub(2).max(1);
        let count = u128::from(needed).min(available) as u32;
        let first = match network.network() {
            address if host_bits < 2 => address,
            IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) + 1).into(),
            IpAddr::V6(address) => std::net::Ipv6Addr::from(u128::from(address) + 1).into(),
        };
        return Ok(SourceAddresses { first, count, sets_source_address: true });
    }
    if target.is_ipv4() && target.ip().is_loopback() {
        let count = needed.min(LOOPBACK_COUNT);
        return Ok(SourceAddresses {
            first: LOOPBACK_FIRST.into(),
            count,
            sets_source_address: true,
        });
    }
    let first = own_address(target).map_err(|error| format!("no route to {target}: {error}"))?;
    Ok(SourceAddresses { first, count: 1, sets_source_address: false })
}

/// Returns the address from which the kernel would send to the target.
fn own_address(target: SocketAddr) -> std::io::Result<IpAddr> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_enough_addresses_for_the_peers() {
        let loopback: SocketAddr = "127.0.0.1:6969".parse().unwrap();
        let sources = choose(loopback, 8, 10_000_000, &[]).unwrap();
        assert_eq!((sources.first, sources.count), (IpAddr::from([127, 1, 0, 1]), 167));
        let networks = ["10.9.0.0/24".parse().unwrap(), "fd00:9::/64".parse().unwrap()];
        let sources = choose(loopback, 300, 1, &networks).unwrap();
        assert_eq!((sources.first, sources.count), (IpAddr::from([10, 9, 0, 1]), 254));
        let sources = choose("[::1]:1".parse().unwrap(), 300, 1, &networks).unwrap();
        assert_eq!(
            (sources.address(299).to_string(), sources.sets_source_address),
            ("fd00:9::12c".to_owned(), true)
        );
        let sources = choose("[::1]:1".parse().unwrap(), 300, 1, &[]).unwrap();
        assert_eq!((sources.first.to_string(), sources.count), ("::1".to_owned(), 1));
    }
}
