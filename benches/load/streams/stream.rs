//! A non-blocking connection, plain or with TLS.

use super::tls;
use crate::http;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

/// A non-blocking connection.
pub(super) struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// Bytes that the kernel has not accepted yet.
    out: Vec<u8>,
    /// Received bytes that have not been processed yet.
    pub(super) arrived: Vec<u8>,
    /// Number of replies received over this connection.
    pub(super) answers: u32,
}

impl Stream {
    /// Starts to connect, from `from` if it is given, and with TLS if the server has a name.
    pub(super) fn open(
        from: Option<IpAddr>,
        to: SocketAddr,
        name: Option<&ServerName<'static>>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let tls = name.map(tls::session).transpose()?.map(Box::new);
        let (out, arrived) = (Vec::new(), Vec::new());
        Ok(Self { socket: socket.into(), tls, out, arrived, answers: 0 })
    }

    /// Queues bytes and sends as many as the kernel accepts now.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(bytes)?,
            None => self.out.extend_from_slice(bytes),
        }
        self.flush()
    }

    /// Sends queued bytes, as many as the kernel accepts now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.out)?;
            }
        }
        while !self.out.is_empty() {
            match self.socket.write(&self.out) {
                Ok(len) => _ = self.out.drain(..len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads all bytes that have arrived; returns whether the connection has ended. With `hung_up`, the kernel has
    /// reported the end already.
    pub(super) fn read_available(&mut self, buffer: &mut [u8], hung_up: bool) -> io::Result<bool> {
        loop {
            let len = match self.socket.read(buffer) {
                Ok(0) => return Ok(true),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let bytes = &buffer[..len];
            match &mut self.tls {
                Some(tls) => {
                    let ended = decrypt(tls, bytes, &mut self.arrived)?;
                    self.flush()?;
                    if ended {
                        return Ok(true);
                    }
                }
                None => self.arrived.extend_from_slice(bytes),
            }
            if self.arrived.len() > http::REPLY_LEN_MAX {
                return Err(io::Error::other("the reply is too long"));
            }
            // A read that does not fill the buffer has emptied the socket. If the stream ends later, epoll reports it.
            if len < buffer.len() && !hung_up {
                return Ok(false);
            }
        }
    }
}

/// Decrypts bytes; returns whether the server has closed the TLS tls.
fn decrypt(
    tls: &mut ClientConnection,
    mut bytes: &[u8],
    arrived: &mut Vec<u8>,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes)?;
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let len = state.plaintext_bytes_to_read();
        let at = arrived.len();
        arrived.resize(at + len, 0);
        tls.reader().read_exact(&mut arrived[at..])?;
        if state.peer_has_closed() {
            return Ok(true);
        }
    }
    Ok(false)
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
