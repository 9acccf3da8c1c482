//! Binds the UDP sockets of all shards.
//!
//! They are bound in the order of the shards: the kernel numbers the sockets of a group in the order in which they were
//! bound, and the steering program selects them by that number.

use crate::clock::Clock;
use crate::config::{SteeringMode, UdpConfig};
use crate::process::deadline::Deadline;
use crate::process::interfaces::host_interfaces;
use crate::process::listen::inherited::{InheritedError, InheritedSockets};
use crate::process::listen::key::ListenKey;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use thiserror::Error;
use tsubame_udp::ring::UdpSocket;
use tsubame_udp::steering::{self, SteeringKeys};

/// Maximum number of local addresses that get sockets of their own for one wildcard address. The wildcard socket
/// receives the datagrams of all others.
const LOCAL_ADDRESSES_MAX: usize = 32;

/// Reason why an address could not be bound.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another process uses the address.
    #[error(
        "{0}: {1} is taken by another process (run ss -{ss_option}lpn 'sport = {port}' to find it); stop that \
         process, or choose another port", ss_option = .0.ss_option(), port = .1.port()
    )]
    Taken(ListenKey, SocketAddr),
    /// The process lacks a privilege.
    #[error(
        "{0}: no permission to bind {1}; grant CAP_NET_BIND_SERVICE, which ports below 1024 require \
         (AmbientCapabilities in the unit), or choose another port"
    )]
    Denied(ListenKey, SocketAddr),
    /// The machine does not have the address.
    #[error("{0}: {1} is not an address of this machine; choose one that `ip address` lists")]
    NotLocal(ListenKey, SocketAddr),
    /// The machine does not support the address family.
    #[error("{0}: cannot bind {1} because this machine has no IPv6; remove the address")]
    NoFamily(ListenKey, SocketAddr),
    /// The kernel refused the steering program, which the config requires.
    #[error(
        "udp.steering: is on, but the kernel refuses the steering program: {0}; set it to auto or off"
    )]
    Steering(#[source] io::Error),
    /// Too many files are open.
    #[error(
        "{0}: cannot bind {1} because too many files are open; raise the limit (ulimit -n, LimitNOFILE \
         in the unit): each shard opens one file for each address"
    )]
    Files(ListenKey, SocketAddr),
    /// A socket that the service manager passed cannot be used.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// Any other error.
    #[error(
        "{0}: cannot bind {1}: {2}{hint}", hint = scope_hint(.1)
    )]
    Failed(ListenKey, SocketAddr, #[source] io::Error),
}

/// Returns the cure for a link-local address without an interface, and nothing for others.
fn scope_hint(address: &SocketAddr) -> &'static str {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
            "; an IPv6 link-local address needs the number of its interface, for example [fe80::1%2]:6969"
        }
        _ => "; check that the interface is up, or choose another address",
    }
}

/// The bound UDP sockets.
#[derive(Debug)]
pub struct UdpListeners {
    /// Sockets of each shard, in the same order for all shards.
    pub shards: Vec<Vec<UdpSocket>>,
    /// Configured addresses, with the ports that were assigned.
    pub addresses: Vec<SocketAddr>,
    /// Number of local addresses that have a socket of their own in addition to a wildcard.
    pub local_addresses: usize,
    /// Whether the kernel steers, or its error if it refused the steering program.
    pub steered: Result<bool, io::Error>,
    /// One socket of each group that is steered.
    pub steered_groups: Vec<OwnedFd>,
    /// Bytes of the smallest receive buffer.
    pub receive_buffer: usize,
    /// Addresses that were skipped because this machine does not support their address family.
    pub left_out: Vec<SocketAddr>,
}

impl UdpListeners {
    /// Binds all configured addresses, once for each shard, or takes their inherited sockets.
    ///
    /// # Errors
    ///
    /// Returns an error if an address cannot be bound, if the steering program is required and refused, or if an
    /// inherited socket cannot be used.
    pub fn bind(
        udp: &UdpConfig,
        keys: &SteeringKeys,
        shards: u16,
        (clock, inherited): (&Clock, &mut InheritedSockets),
    ) -> Result<Self, ListenError> {
        let mut listeners = Self {
            shards: (0..shards).map(|_| Vec::new()).collect(),
            addresses: Vec::new(),
            local_addresses: 0,
            steered: Ok(false),
            steered_groups: Vec::new(),
            receive_buffer: usize::MAX,
            left_out: Vec::new(),
        };
        let mut passed = Vec::new();
        for address in &udp.listen {
            passed.push((*address, inherited.take_udp(*address, shards)?));
        }
        // Every address is bound exclusively once before any is bound for the shards: with their sockets, a wildcard
        // could not be bound exclusively.
        let claim = |address| UdpSocket::bind_exclusive(address).map(|socket| socket.address());
        let to_bind = passed.extract_if(.., |(_, sockets)| sockets.is_empty());
        let to_bind: Vec<SocketAddr> = to_bind.map(|(address, _)| address).collect();
        let (claimed, left_out) =
            claim_addresses((ListenKey::Udp, &to_bind, !passed.is_empty()), clock, claim)?;
        listeners.left_out = left_out;
        let steering = if shards == 1 { SteeringMode::Off } else { udp.steering };
        let binding = GroupBinding { udp, keys, shards, steering };
        listeners.steered = Ok(steering != SteeringMode::Off);
        for (address, sockets) in passed {
            let take = |socket| UdpSocket::inherited(socket, udp.receive_buffer);
            let group = sockets.into_iter().map(take).collect::<io::Result<Vec<_>>>();
            let failed = |error| InheritedError::Failed(address.to_string(), error);
            let group = group.map_err(failed)?;
            if let Some(socket) = group.first() {
                // A program that a previous process attached has other keys. Usually there is none.
                let _ = steering::detach(socket.as_fd());
            }
            listeners.add_group(group, &binding)?;
            listeners.addresses.push(address);
        }
        for address in claimed {
            listeners.bind_configured(address, &binding)?;
        }
        Ok(listeners)
    }

    /// Returns whether the kernel delivers each announce to the shard that owns its torrent.
    pub fn is_steered(&self) -> bool {
        matches!(self.steered, Ok(true))
    }

    fn bind_configured(
        &mut self,
        address: SocketAddr,
        binding: &GroupBinding<'_>,
    ) -> Result<(), ListenError> {
        if address.ip().is_unspecified() {
            for local in local_addresses(address) {
                if self.has_socket(local) {
                    continue;
                }
                match self.bind_group(local, binding) {
                    Ok(()) => self.local_addresses += 1,
                    Err(error @ (ListenError::Files(..) | ListenError::Steering(_))) => {
                        return Err(error);
                    }
                    // The address may have been removed or not be ready yet; the wildcard socket receives its
                    // datagrams.
                    Err(_) => {}
                }
            }
        }
        if !self.has_socket(address) {
            self.bind_group(address, binding)?;
        }
        self.addresses.push(address);
        Ok(())
    }

    fn has_socket(&self, address: SocketAddr) -> bool {
        self.shards[0].iter().any(|socket| socket.address() == address)
    }

    /// Binds an address once for each shard.
    fn bind_group(
        &mut self,
        address: SocketAddr,
        binding: &GroupBinding<'_>,
    ) -> Result<(), ListenError> {
        let bind = |_| UdpSocket::bind_shared(address, binding.udp.receive_buffer);
        let group: Vec<UdpSocket> = (0..self.shards.len())
            .map(bind)
            .collect::<io::Result<_>>()
            .map_err(|error| explain(ListenKey::Udp, address, error))?;
        self.add_group(group, binding)
    }

    /// Adds a group of one socket for each shard.
    fn add_group(
        &mut self,
        group: Vec<UdpSocket>,
        binding: &GroupBinding<'_>,
    ) -> Result<(), ListenError> {
        for (shard, socket) in self.shards.iter_mut().zip(group) {
            self.receive_buffer = self.receive_buffer.min(socket.receive_buffer());
            shard.push(socket);
        }
        self.steer_last(binding)
    }

    /// Attaches the steering program to the group that was bound last, before its datagrams are read.
    ///
    /// If the kernel refuses it for one group, it is detached from all: a tracker that is steered in part is hard to
    /// understand.
    fn steer_last(&mut self, binding: &GroupBinding<'_>) -> Result<(), ListenError> {
        let Some(socket) = self.shards[0].last().filter(|_| matches!(self.steered, Ok(true)))
        else {
            return Ok(());
        };
        let attached = steering::attach(socket.as_fd(), binding.keys, binding.shards)
            .and_then(|()| socket.as_fd().try_clone_to_owned());
        let error = match attached {
            Ok(group) => {
                self.steered_groups.push(group);
                return Ok(());
            }
            Err(error) => error,
        };
        if binding.steering == SteeringMode::On {
            return Err(ListenError::Steering(error));
        }
        for socket in &self.shards[0] {
            let _ = steering::detach(socket.as_fd());
        }
        self.steered_groups.clear();
        self.steered = Err(error);
        Ok(())
    }
}

/// Parameters that all socket groups share.
struct GroupBinding<'a> {
    udp: &'a UdpConfig,
    keys: &'a SteeringKeys,
    shards: u16,
    steering: SteeringMode,
}

/// Checks that no other process uses these addresses, and assigns a port where port 0 is configured. Returns the
/// addresses, and those that are skipped because this machine does not support their address family. `has_others` says
/// whether the key has other addresses, which are served already.
///
/// SO_REUSEPORT would let a second process of the same user join a group unnoticed and receive a part of the datagrams.
/// So each address is first bound without it.
pub(crate) fn claim_addresses(
    (key, addresses, has_others): (ListenKey, &[SocketAddr], bool),
    clock: &Clock,
    bind_exclusive: impl Fn(SocketAddr) -> io::Result<SocketAddr>,
) -> Result<(Vec<SocketAddr>, Vec<SocketAddr>), ListenError> {
    let (mut claimed, mut left_out) = (Vec::new(), Vec::new());
    for address in addresses {
        match claim(key, *address, clock, &bind_exclusive) {
            Ok(address) => claimed.push(address),
            // One address family is enough: many machines and containers have no IPv6.
            Err(ListenError::NoFamily(_, address)) if addresses.len() > 1 || has_others => {
                left_out.push(address);
            }
            Err(error) => return Err(error),
        }
    }
    match left_out.first() {
        Some(address) if claimed.is_empty() && !has_others => {
            Err(ListenError::NoFamily(key, *address))
        }
        _ => Ok((claimed, left_out)),
    }
}

fn claim(
    key: ListenKey,
    address: SocketAddr,
    clock: &Clock,
    bind_exclusive: impl Fn(SocketAddr) -> io::Result<SocketAddr>,
) -> Result<SocketAddr, ListenError> {
    // The kernel releases the sockets of an io_uring tens of milliseconds after its process has ended.
    let deadline = Deadline::of_predecessor(*clock);
    loop {
        match bind_exclusive(address) {
            Ok(address) => return Ok(address),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !deadline.has_passed() => {
                deadline.pause();
            }
            Err(error) => return Err(explain(key, address, error)),
        }
    }
}

pub(crate) fn explain(key: ListenKey, address: SocketAddr, error: io::Error) -> ListenError {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(&error);
    match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken(key, address),
        io::ErrorKind::PermissionDenied => ListenError::Denied(key, address),
        io::ErrorKind::AddrNotAvailable if address.ip().is_unspecified() => {
            ListenError::NoFamily(key, address)
        }
        io::ErrorKind::AddrNotAvailable => ListenError::NotLocal(key, address),
        // These have no `ErrorKind`.
        _ if errno == Some(Errno::AFNOSUPPORT) => ListenError::NoFamily(key, address),
        _ if errno == Some(Errno::MFILE) => ListenError::Files(key, address),
        _ => ListenError::Failed(key, address, error),
    }
}

/// Returns the addresses of this machine that a wildcard address covers.
///
/// A socket that is bound to one address sends replies from it without control messages, which makes it faster than the
/// wildcard socket.
fn local_addresses(wildcard: SocketAddr) -> Vec<SocketAddr> {
    let mut addresses = BTreeSet::new();
    let interfaces = host_interfaces().unwrap_or_default().into_values();
    for mut address in interfaces.flat_map(|interface| interface.addresses) {
        if address.is_ipv4() == wildcard.is_ipv4() {
            address.set_port(wildcard.port());
            addresses.insert(address);
        }
    }
    addresses.into_iter().take(LOCAL_ADDRESSES_MAX).collect()
}
