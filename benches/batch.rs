//! Batches of datagrams over plain sockets, with `recvmmsg` and `sendmmsg`.
//!
//! The load generator and the reflector use these sockets instead of the tracker's io_uring datapath, so that they
//! cannot have the same bugs.

#![expect(unsafe_code, reason = "no crate sends batches with a source for each datagram")]

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

/// Maximum number of datagrams in a batch.
pub const BATCH: usize = 64;

/// Maximum bytes of a datagram to send: one announce, or several as segments.
const SEND_LEN: usize = 98 * SEGMENTS_MAX;

/// Maximum bytes of a received datagram; longer ones are truncated.
const RECEIVE_LEN: usize = 1500;

/// Maximum number of segments of a datagram (UDP_MAX_SEGMENTS of older kernels).
pub const SEGMENTS_MAX: usize = 64;

/// Bytes of two control messages: the source (IPv6, the longer one) and the segment length.
const CONTROL_LEN: usize = 40 + 24;

/// Index of the number of dropped datagrams in `SO_MEMINFO` (`SK_MEMINFO_DROPS`).
const MEMINFO_DROPS: usize = 8;

/// A socket for batches.
#[derive(Debug)]
pub struct BatchSocket(Socket);

impl BatchSocket {
    /// Binds an address, with a receive buffer of 16 MiB if the kernel permits it.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        const BUFFER: usize = 16 << 20;
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        socket.bind(&SockAddr::from(address))?;
        Ok(Self(socket))
    }

    /// Returns the address to which the socket is bound.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))
    }

    /// Sets the maximum time for which [`ReceiveBatch::receive_waiting`] waits; without it, there is no limit.
    pub fn set_receive_timeout(&self, timeout: std::time::Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(timeout))
    }

    /// Returns the number of datagrams that the kernel has dropped at the socket, mostly because the receive buffer was
    /// full.
    pub fn drops(&self) -> u64 {
        let mut stats = [0_u32; 9];
        let mut len = size_of_val(&stats) as libc::socklen_t;
        let (descriptor, at) = (self.0.as_raw_fd(), stats.as_mut_ptr().cast());
        // SAFETY: pointer and length describe `stats`, which the kernel fills up to that length.
        let result = unsafe {
            libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_MEMINFO, at, &raw mut len)
        };
        if result == 0 { stats[MEMINFO_DROPS].into() } else { 0 }
    }
}

/// Buffer for control messages, with the alignment that the kernel requires.
#[derive(Clone)]
#[repr(align(8))]
struct ControlBuffer([u8; CONTROL_LEN]);

/// Memory to which the headers of a batch point. It never grows, so that the pointers remain valid.
struct BatchBuffers {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_in6]>,
    controls: Box<[ControlBuffer]>,
    bytes: Box<[u8]>,
    datagram_len: usize,
}

impl BatchBuffers {
    fn new(datagram_len: usize) -> Self {
        // SAFETY: headers, vectors and addresses of zeros are valid: null pointers with lengths of zero.
        let (header, vector, name) = unsafe { std::mem::zeroed() };
        let mut buffers = Self {
            headers: vec![header; BATCH].into(),
            vectors: vec![vector; BATCH].into(),
            names: vec![name; BATCH].into(),
            controls: vec![ControlBuffer([0; CONTROL_LEN]); BATCH].into(),
            bytes: vec![0; BATCH * datagram_len].into(),
            datagram_len,
        };
        let vectors = buffers.vectors.iter_mut();
        for (vector, bytes) in vectors.zip(buffers.bytes.chunks_exact_mut(datagram_len)) {
            *vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: datagram_len };
        }
        for (index, header) in buffers.headers.iter_mut().enumerate() {
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut buffers.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut buffers.vectors[index];
            header.msg_iovlen = 1;
        }
        buffers
    }

    /// Returns the buffer of a datagram.
    fn bytes(&mut self, index: usize) -> &mut [u8] {
        &mut self.bytes[index * self.datagram_len..][..self.datagram_len]
    }
}

/// Datagrams to send.
pub struct SendBatch {
    buffers: BatchBuffers,
    len: usize,
}

/// Address of a socket in the format of the kernel.
#[derive(Clone, Copy)]
pub struct SocketName {
    bytes: libc::sockaddr_in6,
    len: u32,
}

impl From<SocketAddr> for SocketName {
    fn from(address: SocketAddr) -> Self {
        let address = SockAddr::from(address);
        // SAFETY: an address of zeros is valid.
        let mut bytes: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        let len = (address.len() as usize).min(size_of_val(&bytes));
        // SAFETY: both are at least `len` long, and do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                address.as_ptr().cast::<u8>(),
                (&raw mut bytes).cast(),
                len,
            );
        }
        Self { bytes, len: len as u32 }
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self { buffers: BatchBuffers::new(SEND_LEN), len: 0 }
    }
}

impl SendBatch {
    /// Returns whether the batch is full.
    pub fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// Returns whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a datagram; `write` writes it and returns its length.
    ///
    /// It is sent from `source` if that is given, otherwise from the address of the socket. With `segment`, the kernel
    /// splits it into datagrams of this number of bytes.
    ///
    /// # Panics
    ///
    /// Panics if the batch is full ([`Self::is_full`]), or if `write` returns more than a datagram may have.
    pub fn push(
        &mut self,
        to: &SocketName,
        source: Option<IpAddr>,
        segment: Option<u16>,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let index = self.len;
        self.len += 1;
        let len = write(self.buffers.bytes(index));
        assert!(len <= SEND_LEN, "a datagram of {len} bytes exceeds {SEND_LEN} bytes");
        self.buffers.vectors[index].iov_len = len;
        self.buffers.names[index] = to.bytes;
        let control = &mut self.buffers.controls[index].0;
        let mut control_len = source.map_or(0, |source| write_source(control, source));
        if let Some(segment) = segment.filter(|segment| usize::from(*segment) < len) {
            let data = segment.to_ne_bytes();
            let rest = &mut control[control_len..];
            control_len += write_control(rest, libc::SOL_UDP, libc::UDP_SEGMENT, &data);
        }
        let header = &mut self.buffers.headers[index].msg_hdr;
        header.msg_namelen = to.len;
        header.msg_controllen = control_len;
        header.msg_control = match control_len {
            0 => std::ptr::null_mut(),
            _ => self.buffers.controls[index].0.as_mut_ptr().cast(),
        };
    }

    /// Passes all datagrams to the kernel; returns the number of those that it refused, which are dropped.
    pub fn send(&mut self, socket: &BatchSocket) -> io::Result<usize> {
        let (mut done, len) = (0, std::mem::take(&mut self.len));
        while done < len {
            let headers = self.buffers.headers[done..len].as_mut_ptr();
            // SAFETY: the headers point to memory of `buffers`, which lives until after the call.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.0.as_raw_fd(),
                    headers,
                    (len - done) as u32,
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(sent) {
                Ok(sent) => done += sent,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match error.raw_os_error() {
                        // ECONNREFUSED: an ICMP message for an earlier datagram, as while a server restarts.
                        Some(libc::EINTR | libc::ECONNREFUSED) => {}
                        Some(libc::EAGAIN | libc::ENOBUFS) => return Ok(len - done),
                        _ => return Err(error),
                    }
                }
            }
        }
        Ok(0)
    }
}

/// Writes the control message that sets the source of a datagram; returns its length.
fn write_source(control: &mut [u8], source: IpAddr) -> usize {
    match source {
        IpAddr::V4(source) => {
            // in_pktinfo: ipi_ifindex 0 (the routing table decides), ipi_spec_dst, ipi_addr (ignored when sending).
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&source.octets());
            write_control(control, libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
        }
        IpAddr::V6(source) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&source.octets());
            write_control(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
        }
    }
}

/// Writes a control message; returns its length with padding.
fn write_control(control: &mut [u8], level: i32, kind: i32, data: &[u8]) -> usize {
    let len = size_of::<libc::cmsghdr>() + data.len();
    control[..8].copy_from_slice(&len.to_ne_bytes());
    control[8..12].copy_from_slice(&level.to_ne_bytes());
    control[12..16].copy_from_slice(&kind.to_ne_bytes());
    control[16..len].copy_from_slice(data);
    len.next_multiple_of(8)
}

/// Received datagrams.
pub struct ReceiveBatch {
    buffers: BatchBuffers,
    len: usize,
}

impl Default for ReceiveBatch {
    fn default() -> Self {
        Self { buffers: BatchBuffers::new(RECEIVE_LEN), len: 0 }
    }
}

impl ReceiveBatch {
    /// Receives the datagrams that have arrived, without waiting; returns their number.
    pub fn receive(&mut self, socket: &BatchSocket) -> io::Result<usize> {
        self.receive_with(socket, libc::MSG_DONTWAIT)
    }

    /// Receives the datagrams that have arrived, or waits for the first until the timeout of the socket; returns their
    /// number.
    pub fn receive_waiting(&mut self, socket: &BatchSocket) -> io::Result<usize> {
        self.receive_with(socket, libc::MSG_WAITFORONE)
    }

    fn receive_with(&mut self, socket: &BatchSocket, flags: i32) -> io::Result<usize> {
        for header in &mut self.buffers.headers {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
        }
        let (descriptor, headers) = (socket.0.as_raw_fd(), self.buffers.headers.as_mut_ptr());
        // SAFETY: the headers point to memory of `buffers`, which lives until after the call; no timeout.
        let received = unsafe {
            libc::recvmmsg(descriptor, headers, BATCH as u32, flags, std::ptr::null_mut())
        };
        self.len = 0;
        match usize::try_from(received) {
            Ok(received) => self.len = received,
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    // ECONNREFUSED: an ICMP message for an earlier datagram, as while a server restarts.
                    Some(libc::EAGAIN | libc::EINTR | libc::ECONNREFUSED) => {}
                    _ => return Err(error),
                }
            }
        }
        Ok(self.len)
    }

    /// Returns the datagrams with their sources.
    pub fn datagrams(&self) -> impl Iterator<Item = (&[u8], SocketName)> {
        let datagrams = self.buffers.bytes.chunks_exact(self.buffers.datagram_len);
        let headers = self.buffers.headers.iter().take(self.len);
        datagrams.zip(headers).zip(&self.buffers.names).map(|((bytes, header), name)| {
            let len = (header.msg_len as usize).min(bytes.len());
            (&bytes[..len], SocketName { bytes: *name, len: header.msg_hdr.msg_namelen })
        })
    }
}

impl SocketName {
    /// Returns whether both have the same address and port.
    pub fn is_same_endpoint(&self, other: &Self) -> bool {
        let (a, b) = (&self.bytes, &other.bytes);
        let is_same_port = (a.sin6_family, a.sin6_port) == (b.sin6_family, b.sin6_port);
        // In sockaddr_in the address is at the offset of sin6_flowinfo.
        match i32::from(a.sin6_family) {
            libc::AF_INET => is_same_port && a.sin6_flowinfo == b.sin6_flowinfo,
            _ => is_same_port && a.sin6_addr.s6_addr == b.sin6_addr.s6_addr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_batch_is_sent_from_many_sources_and_split_into_segments() {
        let server = BatchSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = BatchSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        server.set_receive_timeout(Duration::from_secs(5)).unwrap();
        let to = SocketName::from(server.address().unwrap());
        let port = client.address().unwrap().port();
        let mut out = SendBatch::default();
        for source in [7, 8] {
            let source = IpAddr::from([127, 3, 2, source]);
            out.push(&to, Some(source), Some(4), |bytes| {
                bytes[..6].copy_from_slice(b"abcdef");
                6
            });
        }
        assert_eq!(out.send(&client).unwrap(), 0);
        let (mut batch, mut seen) = (ReceiveBatch::default(), Vec::new());
        while seen.len() < 4 {
            assert!(batch.receive_waiting(&server).unwrap() > 0, "only {seen:?} arrived");
            for (bytes, from) in batch.datagrams() {
                let source = (7..9).find(|source| {
                    from.is_same_endpoint(&SocketName::from(SocketAddr::from((
                        [127, 3, 2, *source],
                        port,
                    ))))
                });
                seen.push((source.unwrap(), bytes.to_vec()));
            }
        }
        let expected = [(7, "abcd"), (7, "ef"), (8, "abcd"), (8, "ef")];
        assert_eq!(seen, expected.map(|(source, text)| (source, text.as_bytes().to_vec())));
        assert_eq!(server.drops(), 0);
    }
}
