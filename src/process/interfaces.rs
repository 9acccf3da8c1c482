//! The network interfaces of this host and their addresses.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostInterface {
    /// Its number, which changes when it is removed and added again.
    pub(crate) index: u32,
    /// Its hardware address; `None` if it has none of Ethernet.
    pub(crate) mac: Option<[u8; 6]>,
    /// Whether it is switched on.
    pub(crate) is_up: bool,
    /// Its addresses. Link-local ones have the interface as their scope. The port is 0.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// Returns all interfaces by their names.
pub(crate) fn host_interfaces() -> BTreeMap<String, HostInterface> {
    let mut interfaces = BTreeMap::<String, HostInterface>::new();
    let Ok(found) = getifaddrs() else { return interfaces };
    for found in found {
        let interface = interfaces.entry(found.interface_name).or_default();
        interface.is_up |= found.flags.contains(InterfaceFlags::IFF_UP);
        let Some(address) = found.address else { continue };
        if let Some(link) = address.as_link_addr() {
            interface.index = link.ifindex() as u32;
            interface.mac = link.addr().filter(|mac| *mac != [0; 6]);
        } else if let Some(address) = address.as_sockaddr_in() {
            interface.addresses.push(SocketAddr::new(address.ip().into(), 0));
        } else if let Some(address) = address.as_sockaddr_in6() {
            let ip = address.ip();
            let scope = if ip.is_unicast_link_local() { address.scope_id() } else { 0 };
            interface.addresses.push(SocketAddrV6::new(ip, 0, 0, scope).into());
        }
    }
    interfaces
}

/// Returns all addresses of this host, without those of the loopback network.
pub(crate) fn host_addresses(interfaces: &BTreeMap<String, HostInterface>) -> Vec<IpAddr> {
    let addresses = interfaces.values().flat_map(|interface| &interface.addresses);
    addresses.map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect()
}

/// Returns the number of receive queues of an interface, at least one.
pub(crate) fn receive_queues(name: &str) -> usize {
    let queues = std::fs::read_dir(Path::new("/sys/class/net").join(name).join("queues"));
    let names = queues.into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("rx-")).count().max(1)
}

/// Returns the name of the driver of an interface, if the kernel says it.
pub(crate) fn driver(name: &str) -> Option<String> {
    let link = std::fs::read_link(Path::new("/sys/class/net").join(name).join("device/driver"));
    Some(link.ok()?.file_name()?.to_string_lossy().into_owned())
}
