//! Two network namespaces that are connected by a veth pair.

use std::net::IpAddr;
use std::process::Command;

/// Address of the tracker.
pub(crate) const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 211, 0, 1));

/// Network of the clients' addresses, which is routed to the generator's namespace.
pub(crate) const CLIENTS: &str = "10.212.0.0/16";

/// Two connected network namespaces, which are deleted when it is dropped.
#[derive(Debug)]
pub(crate) struct Veth {
    /// Namespace of the tracker.
    pub(crate) server: String,
    /// Namespace of the load generator.
    pub(crate) load: String,
}

impl Veth {
    /// Creates the namespaces; needs root.
    pub(crate) fn new() -> Result<Self, String> {
        let process = std::process::id();
        let pair =
            Self { server: format!("tsubame-s{process}"), load: format!("tsubame-l{process}") };
        let (server, load) = (&pair.server, &pair.load);
        for line in [
            format!("netns add {server}"),
            format!("netns add {load}"),
            format!("link add tsb-s netns {server} type veth peer name tsb-l netns {load}"),
            format!("-n {server} address add 10.211.0.1/24 dev tsb-s"),
            format!("-n {load} address add 10.211.0.2/24 dev tsb-l"),
            format!("-n {server} link set lo up"),
            format!("-n {load} link set lo up"),
            format!("-n {server} link set tsb-s up"),
            format!("-n {load} link set tsb-l up"),
            format!("-n {load} route add local {CLIENTS} dev lo"),
            format!("-n {server} route add {CLIENTS} via 10.211.0.2"),
        ] {
            let output = Command::new("ip").args(line.split(' ')).output();
            let output = output.map_err(|error| format!("ip (package iproute2): {error}"))?;
            if !output.status.success() {
                return Err(format!(
                    "ip {line}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ));
            }
        }
        Ok(pair)
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.load] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
        }
    }
}
