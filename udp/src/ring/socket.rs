//! UDP sockets with the options that the ring needs.

#![expect(unsafe_code, reason = "setsockopt for options that no crate offers")]

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A bound UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    /// Address to which the socket is bound.
    address: SocketAddr,
    /// Bytes of the receive buffer, without the bookkeeping of the kernel.
    receive_buffer: usize,
}

impl UdpSocket {
    /// Binds one of the sockets that share an address (SO_REUSEPORT).
    ///
    /// `receive_buffer` is the wanted size of the receive buffer in bytes; the kernel may limit it. IPv6 sockets
    /// receive only IPv6, as each family has its own sockets. A wildcard socket reports the destination of each
    /// datagram, so that the reply is sent from there.
    pub fn bind_shared(address: SocketAddr, receive_buffer: usize) -> io::Result<Self> {
        let socket = Self::open(address)?;
        socket.set_reuse_port(true)?;
        set_options(&socket, address, Some(receive_buffer))?;
        socket.bind(&SockAddr::from(address))?;
        Self::bound(socket, address)
    }

    /// Takes over a socket that a service manager has bound; the parameters are as for [`Self::bind_shared`]. A receive
    /// buffer that is larger already stays so: the service manager may exceed the limit of the kernel.
    pub fn inherited(socket: std::net::UdpSocket, receive_buffer: usize) -> io::Result<Self> {
        let address = socket.local_addr()?;
        // The ring waits for datagrams itself; a receive on a nonblocking socket would fail instead.
        socket.set_nonblocking(false)?;
        let socket = Socket::from(socket);
        let has_buffer = socket.recv_buffer_size()? / 2 >= receive_buffer;
        set_options(&socket, address, (!has_buffer).then_some(receive_buffer))?;
        Self::bound(socket, address)
    }

    /// Binds an address exclusively.
    ///
    /// # Errors
    ///
    /// If another socket uses the address, even with SO_REUSEPORT.
    pub fn bind_exclusive(address: SocketAddr) -> io::Result<Self> {
        let socket = Self::open(address)?;
        socket.bind(&SockAddr::from(address))?;
        Self::bound(socket, address)
    }

    /// Creates a socket that is not bound.
    fn open(address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    }

    /// Wraps a socket that was bound to the address `wanted`.
    fn bound(socket: Socket, wanted: SocketAddr) -> io::Result<Self> {
        let address = socket.local_addr()?.as_socket().unwrap_or(wanted);
        // The kernel reports twice the size: half of it is for its bookkeeping.
        let receive_buffer = socket.recv_buffer_size()? / 2;
        Ok(Self { socket, address, receive_buffer })
    }

    /// Returns the address to which the socket is bound, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the bytes of the receive buffer, without the bookkeeping of the kernel.
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// Returns the number of datagrams that the kernel dropped at this socket, modulo 2^32; `None` if it is unknown.
    pub(super) fn drops(&self) -> Option<u32> {
        let mut words = [0_u32; 9];
        let mut len = size_of_val(&words) as libc::socklen_t;
        // SAFETY: pointer and length describe `words`, which the kernel fills up to that length.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                words.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        // The last word is SK_MEMINFO_DROPS.
        (result == 0).then_some(words[8])
    }

    /// Returns whether the socket reports the destination address of each datagram.
    pub(super) fn reports_local(&self) -> bool {
        self.address.ip().is_unspecified()
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sets the options of a socket that serves requests, and the size of its receive buffer if there is one.
fn set_options(
    socket: &Socket,
    address: SocketAddr,
    receive_buffer: Option<usize>,
) -> io::Result<()> {
    // Replies must arrive: by default, routers must not fragment them, and tunnels with a smaller MTU would drop them
    // silently.
    if address.is_ipv4() {
        let omit = libc::IP_PMTUDISC_OMIT;
        set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, omit)?;
    }
    if address.ip().is_unspecified() {
        let (level, option) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        };
        set_option(socket.as_fd(), level, option, 1)?;
    }
    let Some(receive_buffer) = receive_buffer else { return Ok(()) };
    // With CAP_NET_ADMIN the size may exceed the limit of the sysctl. The actual size is reported, not enforced.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, receive_buffer).is_err() {
        socket.set_recv_buffer_size(receive_buffer)?;
    }
    Ok(())
}

/// Sets a socket option whose value is a C int.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: an int is plain memory without padding.
    unsafe { set_raw_option(socket, level, option, &value) }
}

/// Attaches a classic BPF program that selects among the sockets of an SO_REUSEPORT group.
pub(crate) fn set_reuseport_program(
    socket: BorrowedFd<'_>,
    instructions: &mut [libc::sock_filter],
) -> io::Result<()> {
    let len = u16::try_from(instructions.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    let option = libc::SO_ATTACH_REUSEPORT_CBPF;
    // SAFETY: the option takes a `sock_fprog`, whose pointer and length describe the instructions; the kernel copies
    // them before it returns.
    unsafe { set_raw_option(socket, libc::SOL_SOCKET, option, &program) }
}

/// Sets a socket option.
///
/// # Safety
///
/// The option must take a value of this type, and all that its pointers point to must be valid during the call.
// SAFETY: callers must fulfil the section above.
unsafe fn set_raw_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which outlives the call; the caller guarantees the rest.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
