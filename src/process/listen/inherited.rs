//! Sockets that a service manager has bound and passes to the process (sd_listen_fds(3)): they outlive a restart, and
//! may have ports below 1024 without a capability.

use crate::process::listen::key::ListenKey;
use listenfd::ListenFd;
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Reason why an inherited socket cannot be used.
#[derive(Debug, Error)]
pub enum InheritedError {
    /// The socket is of another kind; contains its number among all that were passed.
    #[error(
        "the service manager passed socket number {0}, which is neither a UDP socket nor listens on TCP or a unix \
         socket; remove it from the socket unit"
    )]
    Kind(usize),
    /// No key of the config has the address.
    #[error(
        "the service manager passed a socket for {0}, which is not in {1}; add it there, or remove it from the socket \
         unit"
    )]
    NotConfigured(String, &'static str),
    /// The number of sockets for an address is wrong.
    #[error(
        "{key}: number of sockets for {address} that the service manager passed: {passed}; number of shards: {shards}; \
         repeat its line in the socket unit for each shard, with ReusePort=yes, or set cpus to as many cores"
    )]
    Count {
        /// Config key of the address.
        key: ListenKey,
        /// The address.
        address: SocketAddr,
        /// Number of sockets.
        passed: usize,
        /// Number of shards.
        shards: u16,
    },
    /// An IPv6 socket also receives IPv4.
    #[error(
        "{0}: the inherited socket for {1} also receives IPv4; set BindIPv6Only=ipv6-only in the socket unit"
    )]
    DualStack(ListenKey, SocketAddr),
    /// The socket refuses an option that it needs.
    #[error("the socket for {0} that the service manager passed cannot be used: {1}")]
    Failed(String, #[source] io::Error),
}

/// The sockets that were passed and have not been taken yet.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    udp: Vec<(SocketAddr, UdpSocket)>,
    tcp: Vec<(SocketAddr, TcpListener)>,
    unix: Vec<(PathBuf, UnixListener)>,
}

impl InheritedSockets {
    /// Takes the sockets of the environment variables `LISTEN_FDS` and `LISTEN_PID`; without them there are none.
    ///
    /// # Errors
    ///
    /// Returns an error if a socket is of a kind that is not served.
    pub fn from_environment() -> Result<Self, InheritedError> {
        let (mut passed, mut sockets) = (ListenFd::from_env(), Self::default());
        for number in 0..passed.len() {
            // Taking a socket as another kind fails and leaves it where it is.
            let udp = passed.take_udp_socket(number).ok().flatten();
            if let Some((address, socket)) = udp.and_then(|it| Some((it.local_addr().ok()?, it))) {
                sockets.udp.push((address, socket));
                continue;
            }
            let tcp = passed.take_tcp_listener(number).ok().flatten();
            if let Some((address, socket)) = tcp.and_then(|it| Some((it.local_addr().ok()?, it))) {
                sockets.tcp.push((address, socket));
                continue;
            }
            let unix = passed.take_unix_listener(number).ok().flatten();
            let path =
                unix.and_then(|it| Some((it.local_addr().ok()?.as_pathname()?.to_owned(), it)));
            sockets.unix.push(path.ok_or(InheritedError::Kind(number))?);
        }
        Ok(sockets)
    }

    /// Takes the UDP sockets for an address of `udp.listen`: none, or one for each shard.
    ///
    /// # Errors
    ///
    /// Returns an error if there is another number of them, or if one also receives IPv4.
    pub fn take_udp(
        &mut self,
        address: SocketAddr,
        shards: u16,
    ) -> Result<Vec<UdpSocket>, InheritedError> {
        let (key, sockets) = (ListenKey::Udp, take(&mut self.udp, &address));
        let passed = sockets.len();
        if passed != 0 && passed != usize::from(shards) {
            return Err(InheritedError::Count { key, address, passed, shards });
        }
        sockets.iter().try_for_each(|socket| check_family(key, address, &SockRef::from(socket)))?;
        Ok(sockets)
    }

    /// Takes the TCP sockets for an address: none, or one for each shard. If only one was passed, all shards share it.
    ///
    /// # Errors
    ///
    /// Returns an error if there is another number of them, or if one also receives IPv4.
    pub fn take_tcp(
        &mut self,
        key: ListenKey,
        address: SocketAddr,
        shards: u16,
    ) -> Result<Vec<TcpListener>, InheritedError> {
        let mut sockets = take(&mut self.tcp, &address);
        let failed = |error| InheritedError::Failed(address.to_string(), error);
        if let [only] = &sockets[..] {
            let copies = (1..shards).map(|_| only.try_clone());
            let copies = copies.collect::<io::Result<Vec<_>>>().map_err(failed)?;
            sockets.extend(copies);
        }
        let passed = sockets.len();
        if passed != 0 && passed != usize::from(shards) {
            return Err(InheritedError::Count { key, address, passed, shards });
        }
        for socket in &sockets {
            check_family(key, address, &SockRef::from(socket))?;
            // The ring waits for connections itself.
            socket.set_nonblocking(false).map_err(failed)?;
        }
        Ok(sockets)
    }

    /// Takes the TCP socket of the control plane, if it was passed.
    pub fn take_control(&mut self, address: SocketAddr) -> Option<TcpListener> {
        take(&mut self.tcp, &address).pop()
    }

    /// Takes the unix socket of the control plane, if it was passed.
    pub fn take_unix(&mut self, path: &Path) -> Option<UnixListener> {
        take(&mut self.unix, path).pop()
    }

    /// Checks that all sockets have been taken.
    ///
    /// # Errors
    ///
    /// Returns an error that names a socket for which the config has no address.
    pub fn end(self) -> Result<(), InheritedError> {
        let udp = self.udp.first().map(|(address, _)| (address.to_string(), "udp.listen"));
        let tcp = self.tcp.first().map(|(address, _)| {
            (address.to_string(), "http.listen, http.tls.listen or control.listen")
        });
        let unix =
            self.unix.first().map(|(path, _)| (path.display().to_string(), "control.socket"));
        match udp.or(tcp).or(unix) {
            Some((address, keys)) => Err(InheritedError::NotConfigured(address, keys)),
            None => Ok(()),
        }
    }
}

/// Removes the sockets with this address from a list, and returns them in order.
fn take<A, W, S>(sockets: &mut Vec<(A, S)>, wanted: &W) -> Vec<S>
where
    A: std::borrow::Borrow<W>,
    W: PartialEq + ?Sized,
{
    sockets.extract_if(.., |(address, _)| (*address).borrow() == wanted).map(|(_, it)| it).collect()
}

fn check_family(
    key: ListenKey,
    address: SocketAddr,
    socket: &SockRef<'_>,
) -> Result<(), InheritedError> {
    match address.is_ipv6() && !socket.only_v6().unwrap_or(false) {
        true => Err(InheritedError::DualStack(key, address)),
        false => Ok(()),
    }
}
