//! Binds the UDP sockets of all shards, in one place and in shard order: the kernel numbers the sockets of a
//! group by the order of their binding, and steers by that number.

use crate::clock::Clock;
use crate::config::{SteeringMode, UdpConfig};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use std::{fmt, io};
use thiserror::Error;
use tsubame_udp::ring::UdpSocket;
use tsubame_udp::steering::{self, SteeringKeys};

/// How long a predecessor that is just ending may still hold its ports: a ring's end takes the kernel tens
/// of milliseconds after the process is gone
const PREDECESSOR: Duration = Duration::from_secs(2);

/// Sockets a shard has for one wildcard address: a machine with more addresses is served by the wildcard
/// socket beyond that
const LOCAL_ADDRESSES_MAX: usize = 32;

/// Which key of the config an address stands under
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenKey {
    /// `udp.listen`
    Udp,
    /// `http.listen`
    Http,
    /// `http.tls.listen`
    Https,
}

impl fmt::Display for ListenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp.listen",
            Self::Http => "http.listen",
            Self::Https => "http.tls.listen",
        })
    }
}

impl ListenKey {
    /// The option of `ss` that shows such sockets
    fn letter(self) -> char {
        if self == Self::Udp { 'u' } else { 't' }
    }
}

/// Why an address could not be bound
#[derive(Debug, Error)]
pub enum ListenError {
    /// Somebody has it
    #[error(
        "{0}: {1} is taken by another process (ss -{letter}lpn 'sport = {port}' shows which); stop that, \
         or choose another port", letter = .0.letter(), port = .1.port()
    )]
    Taken(ListenKey, SocketAddr),
    /// A privilege is missing
    #[error(
        "{0}: no permission to bind {1}; ports below 1024 need CAP_NET_BIND_SERVICE \
         (AmbientCapabilities in the unit), or choose another port"
    )]
    Denied(ListenKey, SocketAddr),
    /// Not ours
    #[error("{0}: {1} is not an address of this machine (ip address shows them); choose another")]
    NotLocal(ListenKey, SocketAddr),
    /// The kernel does not speak the family
    #[error("{0}: this machine has no IPv6, so {1} cannot be bound; leave it out")]
    NoFamily(ListenKey, SocketAddr),
    /// The BPF program was refused though demanded
    #[error("udp.steering: is on, but the kernel refuses the program: {0}; set it to auto or off")]
    Steering(#[source] io::Error),
    /// Too many descriptors
    #[error(
        "{0}: no file descriptors are left at {1}; raise the limit (ulimit -n, LimitNOFILE in the \
         unit): each shard needs one for each address it listens on"
    )]
    Files(ListenKey, SocketAddr),
    /// Anything else
    #[error(
        "{0}: cannot bind {1}: {2}; an IPv6 link-local address is written with its interface's \
         number, as [fe80::1%2]:6969"
    )]
    Failed(ListenKey, SocketAddr, #[source] io::Error),
}

/// What was bound
#[derive(Debug)]
pub struct UdpListeners {
    /// The sockets of each shard, in the same order in all
    pub shards: Vec<Vec<UdpSocket>>,
    /// The configured addresses, with the ports that were taken
    pub addresses: Vec<SocketAddr>,
    /// Local addresses bound for themselves in place of a wildcard
    pub local_addresses: usize,
    /// Whether the kernel steers; why not, if it should
    pub steered: Result<bool, io::Error>,
    /// A socket of each group that is steered
    pub steered_groups: Vec<OwnedFd>,
    /// Bytes of the smallest receive buffer
    pub receive_buffer: usize,
    /// Addresses left out because this machine lacks their family
    pub left_out: Vec<SocketAddr>,
}

impl UdpListeners {
    /// Binds all configured addresses for so many shards
    pub fn bind(
        udp: &UdpConfig,
        keys: &SteeringKeys,
        shards: u16,
        clock: &Clock,
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
        // All are claimed before any is bound: ours would be in each other's way.
        let claim = |address| UdpSocket::bind_alone(address).map(|socket| socket.address());
        let (claimed, left_out) = claimed(ListenKey::Udp, &udp.listen, clock, claim)?;
        listeners.left_out = left_out;
        let steering = if shards == 1 { SteeringMode::Off } else { udp.steering };
        let binding = GroupBinding { udp, keys, shards, steering };
        listeners.steered = Ok(steering != SteeringMode::Off);
        for address in claimed {
            listeners.bind_configured(address, &binding)?;
        }
        Ok(listeners)
    }

    /// Whether the kernel brings announces to their shard
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
                // An address may be gone or not ready yet; the wildcard takes its datagrams.
                if self.has(local) {
                    continue;
                }
                match self.bind_group(local, binding) {
                    Ok(()) => self.local_addresses += 1,
                    Err(error @ (ListenError::Files(..) | ListenError::Steering(_))) => {
                        return Err(error);
                    }
                    Err(_) => {}
                }
            }
        }
        if !self.has(address) {
            self.bind_group(address, binding)?;
        }
        self.addresses.push(address);
        Ok(())
    }

    fn has(&self, address: SocketAddr) -> bool {
        self.shards[0].iter().any(|socket| socket.address() == address)
    }

    /// Binds one address once for each shard
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
        for (shard, socket) in self.shards.iter_mut().zip(group) {
            self.receive_buffer = self.receive_buffer.min(socket.receive_buffer());
            shard.push(socket);
        }
        self.steer_last(binding)
    }

    /// Has the kernel steer the group bound last, as soon as it is there
    ///
    /// All groups or none: a half-steered tracker is hard to understand.
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

/// What all groups are bound by
struct GroupBinding<'a> {
    udp: &'a UdpConfig,
    keys: &'a SteeringKeys,
    shards: u16,
    steering: SteeringMode,
}

/// Makes sure that nobody else has these addresses, and takes ports where none are given; also those left out
/// because this machine lacks their family
///
/// SO_REUSEPORT would let a second process of the same user into the group unnoticed, and part of the
/// datagrams with it. So each address is first bound without.
pub(crate) fn claimed(
    key: ListenKey,
    addresses: &[SocketAddr],
    clock: &Clock,
    bind_alone: impl Fn(SocketAddr) -> io::Result<SocketAddr>,
) -> Result<(Vec<SocketAddr>, Vec<SocketAddr>), ListenError> {
    let (mut claimed, mut left_out) = (Vec::new(), Vec::new());
    for address in addresses {
        match claim(key, *address, clock, &bind_alone) {
            Ok(address) => claimed.push(address),
            // One family is enough: many machines and containers have no IPv6.
            Err(ListenError::NoFamily(_, address)) if addresses.len() > 1 => left_out.push(address),
            Err(error) => return Err(error),
        }
    }
    match left_out.first() {
        Some(address) if claimed.is_empty() => Err(ListenError::NoFamily(key, *address)),
        _ => Ok((claimed, left_out)),
    }
}

fn claim(
    key: ListenKey,
    address: SocketAddr,
    clock: &Clock,
    bind_alone: impl Fn(SocketAddr) -> io::Result<SocketAddr>,
) -> Result<SocketAddr, ListenError> {
    let start = clock.elapsed();
    loop {
        match bind_alone(address) {
            Ok(address) => return Ok(address),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && clock.elapsed() - start < PREDECESSOR =>
            {
                clock.pause_before_retry();
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
        // These have no kind of their own.
        _ if errno == Some(Errno::AFNOSUPPORT) => ListenError::NoFamily(key, address),
        _ if errno == Some(Errno::MFILE) => ListenError::Files(key, address),
        _ => ListenError::Failed(key, address, error),
    }
}

/// The addresses of this machine that a wildcard stands for
///
/// A socket bound to one of them answers from it without being told, which is faster than the wildcard's way.
fn local_addresses(wildcard: SocketAddr) -> Vec<SocketAddr> {
    let mut addresses = BTreeSet::new();
    for interface in if_addrs::get_if_addrs().unwrap_or_default() {
        let scope = interface.index.unwrap_or(0);
        match interface.ip() {
            IpAddr::V4(ip) if wildcard.is_ipv4() => {
                addresses.insert(SocketAddr::new(ip.into(), wildcard.port()));
            }
            IpAddr::V6(ip) if wildcard.is_ipv6() => {
                let scope = if ip.is_unicast_link_local() { scope } else { 0 };
                addresses.insert(SocketAddrV6::new(ip, wildcard.port(), 0, scope).into());
            }
            _ => {}
        }
    }
    addresses.into_iter().take(LOCAL_ADDRESSES_MAX).collect()
}
