//! The sockets of a tracker, which another process of it takes over.

use crate::config::{Config, UdpConfig};
use crate::control::listeners::ControlListeners;
use crate::process::listen::Listeners;
use crate::process::listen::http::HttpListeners;
use crate::process::listen::udp::UdpListeners;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use tsubame_udp::ring::UdpSocket;

/// What the sockets are, in the order in which they are sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SocketList {
    /// Number of shards.
    shards: u16,
    udp: SocketGroup,
    http: SocketGroup,
    https: SocketGroup,
    /// The addresses in the config: of UDP, HTTP and HTTPS, and of the control plane.
    configured: ([Vec<SocketAddr>; 3], Option<SocketAddr>),
    /// Number of local addresses that have UDP sockets of their own in addition to a wildcard.
    local_addresses: usize,
    /// Whether the kernel steers.
    is_steered: bool,
    has_control_tcp: bool,
    control_unix: Option<PathBuf>,
    /// Path of the unix socket if the tracker has created it, and removes it at the end.
    socket_to_remove: Option<PathBuf>,
}

/// The sockets of a protocol.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SocketGroup {
    /// Number of sockets of each shard.
    per_shard: usize,
    /// Configured addresses, with the ports that were assigned.
    addresses: Vec<SocketAddr>,
}

/// Duplicates of all sockets of a tracker, kept for another process of it.
#[derive(Debug)]
pub(crate) struct SocketCopies {
    pub(super) list: SocketList,
    sockets: Vec<OwnedFd>,
}

impl SocketCopies {
    /// Duplicates all sockets.
    pub(crate) fn new(listeners: &Listeners, config: &Config) -> io::Result<Self> {
        let Listeners { udp, http, https, control } = listeners;
        let mut sockets = Vec::new();
        let mut copy = |socket: BorrowedFd<'_>| -> io::Result<()> {
            sockets.push(socket.try_clone_to_owned()?);
            Ok(())
        };
        udp.shards.iter().flatten().try_for_each(|socket| copy(socket.as_fd()))?;
        http.shards.iter().flatten().try_for_each(|socket| copy(socket.as_fd()))?;
        https.shards.iter().flatten().try_for_each(|socket| copy(socket.as_fd()))?;
        control.tcp.iter().try_for_each(|socket| copy(socket.as_fd()))?;
        control.unix.iter().try_for_each(|(socket, _)| copy(socket.as_fd()))?;
        let of_http = |listeners: &HttpListeners| SocketGroup {
            per_shard: listeners.shards.first().map_or(0, Vec::len),
            addresses: listeners.addresses.clone(),
        };
        let list = SocketList {
            // A config has at most 128 shards.
            shards: udp.shards.len() as u16,
            udp: SocketGroup {
                per_shard: udp.shards.first().map_or(0, Vec::len),
                addresses: udp.addresses.clone(),
            },
            http: of_http(http),
            https: of_http(https),
            configured: configured(config),
            local_addresses: udp.local_addresses,
            is_steered: udp.is_steered(),
            has_control_tcp: control.tcp.is_some(),
            control_unix: control.unix.as_ref().map(|(_, path)| path.clone()),
            socket_to_remove: control.socket_to_remove.clone(),
        };
        Ok(Self { list, sockets })
    }

    /// Returns whether the kernel steered at start.
    pub(crate) fn is_steered(&self) -> bool {
        self.list.is_steered()
    }

    pub(super) fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd).collect()
    }
}

/// Returns the addresses in a config: of UDP, HTTP and HTTPS, and of the control plane.
fn configured(config: &Config) -> ([Vec<SocketAddr>; 3], Option<SocketAddr>) {
    let lists = [&config.udp.listen, &config.http.listen, &config.http.tls.listen];
    (lists.map(Clone::clone), config.control.listen)
}

impl SocketList {
    pub(super) fn shards(&self) -> u16 {
        self.shards
    }

    /// Returns the number of sockets.
    pub(super) fn count(&self) -> usize {
        let per_shard = self.udp.per_shard + self.http.per_shard + self.https.per_shard;
        let control = usize::from(self.has_control_tcp) + usize::from(self.control_unix.is_some());
        per_shard * usize::from(self.shards) + control
    }

    /// Returns whether the kernel steered at start.
    pub(super) fn is_steered(&self) -> bool {
        self.is_steered
    }

    /// Returns the first config key that has other addresses than that of the process whose sockets these are.
    pub(super) fn changed_key(&self, config: &Config) -> Option<&'static str> {
        let ([udp, http, https], control) = configured(config);
        let ([old_udp, old_http, old_https], old_control) = &self.configured;
        let is_same = [
            ("udp.listen", udp == *old_udp),
            ("http.listen", http == *old_http),
            ("http.tls.listen", https == *old_https),
            ("control.listen", control == *old_control),
            ("control.socket", config.control.socket == self.control_unix),
        ];
        is_same.into_iter().find(|(_, is_same)| !is_same).map(|(key, _)| key)
    }

    /// Returns the listeners that the sockets are.
    pub(super) fn listeners(self, sockets: Vec<OwnedFd>, udp: &UdpConfig) -> io::Result<Listeners> {
        let mut sockets = sockets.into_iter();
        let missing = || io::Error::other("fewer sockets were sent than announced");
        let shards = usize::from(self.shards);
        let mut udp_shards = Vec::new();
        for _ in 0..shards {
            let take =
                |socket| UdpSocket::inherited(StdUdpSocket::from(socket), udp.receive_buffer);
            let shard = sockets.by_ref().take(self.udp.per_shard).map(take);
            udp_shards.push(shard.collect::<io::Result<Vec<_>>>()?);
        }
        let mut steered_groups = Vec::new();
        for socket in udp_shards.first().into_iter().flatten().filter(|_| self.is_steered) {
            // The steering program is attached: otherwise the other process permits no upgrade.
            steered_groups.push(socket.as_fd().try_clone_to_owned()?);
        }
        let mut http = |group: SocketGroup| {
            let shard = |_| sockets.by_ref().take(group.per_shard).map(TcpListener::from).collect();
            HttpListeners {
                shards: (0..shards).map(shard).collect(),
                // They stay open in the other process: none may be shut down.
                inherited: group.addresses.clone(),
                addresses: group.addresses,
                left_out: Vec::new(),
            }
        };
        let (http, https) = (http(self.http), http(self.https));
        let tcp = match self.has_control_tcp {
            true => Some(TcpListener::from(sockets.next().ok_or_else(missing)?)),
            false => None,
        };
        let unix = match self.control_unix {
            Some(path) => Some((UnixListener::from(sockets.next().ok_or_else(missing)?), path)),
            None => None,
        };
        let buffers = udp_shards.iter().flatten().map(UdpSocket::receive_buffer);
        let udp = UdpListeners {
            receive_buffer: buffers.min().unwrap_or(usize::MAX),
            shards: udp_shards,
            addresses: self.udp.addresses,
            local_addresses: self.local_addresses,
            steered: Ok(self.is_steered),
            steered_groups,
            left_out: Vec::new(),
        };
        let control = ControlListeners { tcp, unix, socket_to_remove: self.socket_to_remove };
        Ok(Listeners { udp, http, https, control })
    }
}
