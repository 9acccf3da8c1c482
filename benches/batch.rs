//! Datagrams in batches over plain sockets: `recvmmsg` and `sendmmsg`.
//!
//! The load generator and the reflector use it: what is measured with another datapath than the tracker's own
//! cannot share its faults.

#![expect(unsafe_code, reason = "no crate sends a batch of which each datagram has its own source")]

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

/// Datagrams in a batch, at most
pub const BATCH: usize = 64;

/// Bytes of a datagram sent: one announce, or segments of it
const SEND_LEN: usize = 98 * SEGMENTS_MAX;

/// Bytes of a datagram received; more is cut
const RECEIVE_LEN: usize = 1500;

/// Requests the kernel takes as one (UDP_MAX_SEGMENTS of older kernels)
pub const SEGMENTS_MAX: usize = 64;

/// Room for two control messages: the source (IPv6, the longer one) and the segment length
const CONTROL_LEN: usize = 40 + 24;

/// Where `SO_MEMINFO` has the number of datagrams dropped (`SK_MEMINFO_DROPS`)
const MEMINFO_DROPS: usize = 8;

/// A socket for batches
#[derive(Debug)]
pub struct BatchSocket(Socket);

impl BatchSocket {
    /// Binds an address, with a receive buffer of 16 MiB if the kernel permits
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

    /// Where it is bound
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))
    }

    /// How long a receive that waits does so; forever without
    pub fn set_patience(&self, patience: std::time::Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(patience))
    }

    /// Datagrams the kernel has dropped because this socket was not emptied in time
    pub fn drops(&self) -> u64 {
        let mut figures = [0_u32; 9];
        let mut len = size_of_val(&figures) as libc::socklen_t;
        let (descriptor, at) = (self.0.as_raw_fd(), figures.as_mut_ptr().cast());
        // SAFETY: pointer and length describe `figures`, which the kernel fills up to that length.
        let result = unsafe {
            libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_MEMINFO, at, &raw mut len)
        };
        if result == 0 { figures[MEMINFO_DROPS].into() } else { 0 }
    }
}

/// Control messages, aligned as the kernel asks
#[derive(Clone)]
#[repr(align(8))]
struct Control([u8; CONTROL_LEN]);

/// Memory that the headers of a batch point to; never grows, so that the pointers stay good
struct Parts {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_in6]>,
    controls: Box<[Control]>,
    bytes: Box<[u8]>,
    datagram_len: usize,
}

impl Parts {
    fn new(datagram_len: usize) -> Self {
        // SAFETY: headers, vectors and addresses of zeros are valid: null pointers with lengths of zero.
        let (header, vector, name) = unsafe { std::mem::zeroed() };
        let mut parts = Self {
            headers: vec![header; BATCH].into(),
            vectors: vec![vector; BATCH].into(),
            names: vec![name; BATCH].into(),
            controls: vec![Control([0; CONTROL_LEN]); BATCH].into(),
            bytes: vec![0; BATCH * datagram_len].into(),
            datagram_len,
        };
        let vectors = parts.vectors.iter_mut();
        for (vector, bytes) in vectors.zip(parts.bytes.chunks_exact_mut(datagram_len)) {
            *vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: datagram_len };
        }
        for (index, header) in parts.headers.iter_mut().enumerate() {
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut parts.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut parts.vectors[index];
            header.msg_iovlen = 1;
        }
        parts
    }

    fn bytes(&mut self, index: usize) -> &mut [u8] {
        &mut self.bytes[index * self.datagram_len..][..self.datagram_len]
    }
}

/// Datagrams on their way out
pub struct SendBatch {
    parts: Parts,
    len: usize,
}

/// A destination as the kernel reads it
#[derive(Clone, Copy)]
pub struct Name {
    bytes: libc::sockaddr_in6,
    len: u32,
}

impl From<SocketAddr> for Name {
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
        Self { parts: Parts::new(SEND_LEN), len: 0 }
    }
}

impl SendBatch {
    /// Whether no more fits
    pub fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// Whether there is nothing to send
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a datagram, which `write` writes, returning its length
    ///
    /// It leaves from `source` if there is one, whichever address its socket is bound to. With `segment`, it
    /// is cut into datagrams of so many bytes on its way.
    pub fn push(
        &mut self,
        to: &Name,
        source: Option<IpAddr>,
        segment: Option<u16>,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let index = self.len;
        self.len += 1;
        let len = write(self.parts.bytes(index));
        assert!(len <= SEND_LEN, "{len} bytes are written where {SEND_LEN} fit");
        self.parts.vectors[index].iov_len = len;
        self.parts.names[index] = to.bytes;
        let control = &mut self.parts.controls[index].0;
        let mut control_len = source.map_or(0, |source| write_source(control, source));
        if let Some(segment) = segment.filter(|segment| usize::from(*segment) < len) {
            let data = segment.to_ne_bytes();
            let rest = &mut control[control_len..];
            control_len += write_control(rest, libc::SOL_UDP, libc::UDP_SEGMENT, &data);
        }
        let header = &mut self.parts.headers[index].msg_hdr;
        header.msg_namelen = to.len;
        header.msg_controllen = control_len;
        header.msg_control = match control_len {
            0 => std::ptr::null_mut(),
            _ => self.parts.controls[index].0.as_mut_ptr().cast(),
        };
    }

    /// Hands all to the kernel; returns how many it would not take, which are forgotten
    pub fn send(&mut self, socket: &BatchSocket) -> io::Result<usize> {
        let (mut done, len) = (0, std::mem::take(&mut self.len));
        while done < len {
            let headers = self.parts.headers[done..len].as_mut_ptr();
            // SAFETY: the headers point to memory of `parts`, which lives until after the call.
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
                        // Refused: an ICMP message for an earlier one, as while a server restarts.
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

/// Writes the control message that has a datagram leave from `source`; returns its length
fn write_source(control: &mut [u8], source: IpAddr) -> usize {
    match source {
        IpAddr::V4(source) => {
            // Interface 0 is "by the routes"; then ipi_spec_dst, and a field that sending ignores.
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

/// Writes a control message; returns the length it takes with its padding
fn write_control(control: &mut [u8], level: i32, kind: i32, data: &[u8]) -> usize {
    let len = size_of::<libc::cmsghdr>() + data.len();
    control[..8].copy_from_slice(&len.to_ne_bytes());
    control[8..12].copy_from_slice(&level.to_ne_bytes());
    control[12..16].copy_from_slice(&kind.to_ne_bytes());
    control[16..len].copy_from_slice(data);
    len.next_multiple_of(8)
}

/// Datagrams that came in
pub struct ReceiveBatch {
    parts: Parts,
    len: usize,
}

impl Default for ReceiveBatch {
    fn default() -> Self {
        Self { parts: Parts::new(RECEIVE_LEN), len: 0 }
    }
}

impl ReceiveBatch {
    /// Takes what has arrived, without waiting; returns how many
    pub fn receive(&mut self, socket: &BatchSocket) -> io::Result<usize> {
        self.receive_with(socket, libc::MSG_DONTWAIT)
    }

    /// Takes what has arrived, or waits for the first for as long as the socket's patience
    pub fn receive_waiting(&mut self, socket: &BatchSocket) -> io::Result<usize> {
        self.receive_with(socket, libc::MSG_WAITFORONE)
    }

    fn receive_with(&mut self, socket: &BatchSocket, flags: i32) -> io::Result<usize> {
        for header in &mut self.parts.headers {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
        }
        let (descriptor, headers) = (socket.0.as_raw_fd(), self.parts.headers.as_mut_ptr());
        // SAFETY: the headers point to memory of `parts`, which lives until after the call; no timeout.
        let received = unsafe {
            libc::recvmmsg(descriptor, headers, BATCH as u32, flags, std::ptr::null_mut())
        };
        self.len = 0;
        match usize::try_from(received) {
            Ok(received) => self.len = received,
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    // Refused: an ICMP message for a datagram sent earlier, as while a server restarts.
                    Some(libc::EAGAIN | libc::EINTR | libc::ECONNREFUSED) => {}
                    _ => return Err(error),
                }
            }
        }
        Ok(self.len)
    }

    /// The datagrams, each with where it came from
    pub fn datagrams(&self) -> impl Iterator<Item = (&[u8], Name)> {
        let datagrams = self.parts.bytes.chunks_exact(self.parts.datagram_len);
        let headers = self.parts.headers.iter().take(self.len);
        datagrams.zip(headers).zip(&self.parts.names).map(|((bytes, header), name)| {
            let len = (header.msg_len as usize).min(bytes.len());
            (&bytes[..len], Name { bytes: *name, len: header.msg_hdr.msg_namelen })
        })
    }
}

impl Name {
    /// Whether both are the same address and port
    pub fn is(&self, other: &Self) -> bool {
        let (a, b) = (&self.bytes, &other.bytes);
        let same = (a.sin6_family, a.sin6_port) == (b.sin6_family, b.sin6_port);
        // In an IPv4 name the address stands where IPv6 has its flow label.
        match i32::from(a.sin6_family) {
            libc::AF_INET => same && a.sin6_flowinfo == b.sin6_flowinfo,
            _ => same && a.sin6_addr.s6_addr == b.sin6_addr.s6_addr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_batch_leaves_from_many_sources_and_is_cut_into_segments() {
        let server = BatchSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = BatchSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        server.set_patience(Duration::from_secs(5)).unwrap();
        let to = Name::from(server.address().unwrap());
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
                    from.is(&Name::from(SocketAddr::from(([127, 3, 2, *source], port))))
                });
                seen.push((source.unwrap(), bytes.to_vec()));
            }
        }
        let expected = [(7, "abcd"), (7, "ef"), (8, "abcd"), (8, "ef")];
        assert_eq!(seen, expected.map(|(source, text)| (source, text.as_bytes().to_vec())));
        assert_eq!(server.drops(), 0);
    }
}
