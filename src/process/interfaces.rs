//! The network interfaces of this host and their addresses.

use nix::ifaddrs::getifaddrs;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostInterface {
    /// Its number, which changes when it is removed and added again.
    pub(crate) index: u32,
    /// Its hardware address; `None` if it has none of Ethernet.
    pub(crate) mac: Option<[u8; 6]>,
    /// Its addresses. Link-local ones have the interface as their scope. The port is 0.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Broadcast addresses of its IPv4 networks.
    pub(crate) broadcast: Vec<Ipv4Addr>,
}

/// Returns all interfaces by their names.
pub(crate) fn host_interfaces() -> io::Result<BTreeMap<String, HostInterface>> {
    let mut interfaces = BTreeMap::<String, HostInterface>::new();
    for found in getifaddrs()? {
        let interface = interfaces.entry(found.interface_name).or_default();
        let Some(address) = found.address else { continue };
        if let Some(link) = address.as_link_addr() {
            interface.index = link.ifindex() as u32;
            let is_ethernet = link.hatype() == libc::ARPHRD_ETHER && link.halen() == 6;
            interface.mac = link.addr().filter(|mac| is_ethernet && *mac != [0; 6]);
        } else if let Some(address) = address.as_sockaddr_in() {
            interface.addresses.push(SocketAddr::new(address.ip().into(), 0));
            let broadcast = found.broadcast.and_then(|it| Some(it.as_sockaddr_in()?.ip()));
            interface.broadcast.extend(broadcast);
        } else if let Some(address) = address.as_sockaddr_in6() {
            let ip = address.ip();
            let scope = if ip.is_unicast_link_local() { address.scope_id() } else { 0 };
            interface.addresses.push(SocketAddrV6::new(ip, 0, 0, scope).into());
        }
    }
    Ok(interfaces)
}

/// Returns the index and the hardware address of an Ethernet interface that was looked up by its name, or what is wrong
/// with the name.
pub(crate) fn ethernet(
    name: &str,
    found: Option<&HostInterface>,
) -> Result<(u32, [u8; 6]), String> {
    let found = found.ok_or_else(|| {
        format!("{name} is not a network interface of this host; write one that `ip link` lists")
    })?;
    let mac = found.mac.ok_or_else(|| format!("{name} is not an Ethernet interface; remove it"))?;
    Ok((found.index, mac))
}

/// Returns all addresses of this host, without those of the loopback network.
pub(crate) fn host_addresses(interfaces: &BTreeMap<String, HostInterface>) -> Vec<IpAddr> {
    let addresses = interfaces.values().flat_map(|interface| &interface.addresses);
    addresses.map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect()
}

/// Returns whether an interface has VLANs.
pub(crate) fn has_vlans(name: &str) -> bool {
    let directory = Path::new("/sys/class/net").join(name);
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let upper = names.filter_map(|name| name.strip_prefix("upper_").map(str::to_owned));
    upper.into_iter().any(|upper| Path::new("/proc/net/vlan").join(upper).exists())
}

/// Returns the number of receive queues of an interface, at least one.
pub(crate) fn receive_queues(name: &str) -> usize {
    queues(name, "rx-")
}

/// Returns the number of transmit queues of an interface, at least one.
pub(crate) fn transmit_queues(name: &str) -> usize {
    queues(name, "tx-")
}

fn queues(name: &str, prefix: &str) -> usize {
    let queues = std::fs::read_dir(Path::new("/sys/class/net").join(name).join("queues"));
    let names = queues.into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with(prefix)).count().max(1)
}

/// Returns the maximum number of bytes of an IP packet on an interface; that of Ethernet if the kernel does not say it.
pub(crate) fn mtu(name: &str) -> usize {
    let mtu = std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("mtu"));
    mtu.ok().and_then(|mtu| mtu.trim().parse().ok()).unwrap_or(1500)
}

/// Returns the name of the driver of an interface, if the kernel says it.
pub(crate) fn driver(name: &str) -> Option<String> {
    let link = std::fs::read_link(Path::new("/sys/class/net").join(name).join("device/driver"));
    Some(link.ok()?.file_name()?.to_string_lossy().into_owned())
}
