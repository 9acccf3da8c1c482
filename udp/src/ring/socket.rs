//! UDP sockets as the ring wants them.

#![expect(unsafe_code, reason = "setsockopt for options no crate offers")]

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A bound UDP socket
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    address: SocketAddr,
    receive_buffer: usize,
}

impl UdpSocket {
    /// Binds one of the sockets that share an address (SO_REUSEPORT), with a receive buffer of so many
    /// bytes if the kernel permits
    ///
    /// IPv6 sockets take IPv6 only; each family has its own. A wildcard socket learns where each datagram
    /// was sent to, so that the reply leaves from there.
    pub fn bind_shared(address: SocketAddr, receive_buffer: usize) -> io::Result<Self> {
        let socket = Self::open(address)?;
        socket.set_reuse_port(true)?;
        // Replies are small and must arrive: the default would forbid routers to fragment them, and
        // tunnels would lose them silently.
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
        // With the privilege beyond the limit, else up to it; what came of it is reported, not demanded.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, receive_buffer).is_err()
        {
            socket.set_recv_buffer_size(receive_buffer)?;
        }
        socket.bind(&SockAddr::from(address))?;
        Self::bound(socket, address)
    }

    /// Binds an address alone: fails if anybody else has it, also with SO_REUSEPORT
    pub fn bind_alone(address: SocketAddr) -> io::Result<Self> {
        let socket = Self::open(address)?;
        socket.bind(&SockAddr::from(address))?;
        Self::bound(socket, address)
    }

    fn open(address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    }

    fn bound(socket: Socket, wanted: SocketAddr) -> io::Result<Self> {
        let address = socket.local_addr()?.as_socket().unwrap_or(wanted);
        // The kernel reports twice what it gives: half is for its own bookkeeping.
        let receive_buffer = socket.recv_buffer_size()? / 2;
        Ok(Self { socket, address, receive_buffer })
    }

    /// Where it is bound, with the port that was taken
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes of datagrams the kernel keeps for it, bookkeeping left out
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// Datagrams the kernel has dropped at this socket, modulo 2^32, if it says
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

    /// Whether datagrams come with the address they were sent to
    pub(super) fn reports_local(&self) -> bool {
        self.address.ip().is_unspecified()
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sets a socket option whose value is a C int
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: an int is plain memory without padding.
    unsafe { set_raw_option(socket, level, option, &value) }
}

/// Attaches a classic BPF program that chooses among the sockets of a SO_REUSEPORT group
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

/// Sets a socket option
///
/// # Safety
///
/// The option must take a value of this type, and all that its pointers point to must be there during the call.
// SAFETY: callers keep the section above.
unsafe fn set_raw_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which outlives the call; the rest is the caller's promise.
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
