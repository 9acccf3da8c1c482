//! Two network namespaces that are connected by a veth pair.

use std::net::IpAddr;
use std::process::Command;

/// Address of the tracker.
pub(crate) const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 211, 0, 1));

/// Interfaces of the tracker and of the load generator.
pub(crate) const SERVER_INTERFACE: &str = "tsb-s";
pub(crate) const LOAD_INTERFACE: &str = "tsb-l";

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
            format!(
                "link add {SERVER_INTERFACE} netns {server} type veth peer name {LOAD_INTERFACE} netns {load}"
            ),
            format!("-n {server} address add 10.211.0.1/24 dev {SERVER_INTERFACE}"),
            format!("-n {load} address add 10.211.0.2/24 dev {LOAD_INTERFACE}"),
            format!("-n {server} link set lo up"),
            format!("-n {load} link set lo up"),
            format!("-n {server} link set {SERVER_INTERFACE} up"),
            format!("-n {load} link set {LOAD_INTERFACE} up"),
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

/// Runs a program in a namespace; returns its output.
pub(crate) fn run_in(namespace: &str, program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).args(arguments);
    let output = command.output().map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let error = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program} {}: {}", arguments.join(" "), error.trim()))
        }
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.load] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
        }
    }
}
