//! A connection that never waits, plain or encrypted.

use super::tls;
use crate::http;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

pub(super) struct Stream {
    socket: TcpStream,
    session: Option<Box<ClientConnection>>,
    /// What the kernel has not taken yet
    out: Vec<u8>,
    /// What has come and was not taken yet
    pub(super) arrived: Vec<u8>,
    /// Answers it has brought
    pub(super) answers: u32,
}

impl Stream {
    /// Begins to connect, from an address if one is given; encrypted if the server has a name
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
        let session = name.map(tls::session).transpose()?.map(Box::new);
        let (out, arrived) = (Vec::new(), Vec::new());
        Ok(Self { socket: socket.into(), session, out, arrived, answers: 0 })
    }

    /// Sends as much as the kernel takes now; the rest when it takes more
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.session {
            Some(session) => session.writer().write_all(bytes)?,
            None => self.out.extend_from_slice(bytes),
        }
        self.flush()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(session) = &mut self.session {
            while session.wants_write() {
                session.write_tls(&mut self.out)?;
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

    /// Takes what has come; returns whether it has ended. `hung_up` if an end is known to be there
    pub(super) fn take(&mut self, buffer: &mut [u8], hung_up: bool) -> io::Result<bool> {
        loop {
            let len = match self.socket.read(buffer) {
                Ok(0) => return Ok(true),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let bytes = &buffer[..len];
            match &mut self.session {
                Some(session) => {
                    let ended = decrypt(session, bytes, &mut self.arrived)?;
                    self.flush()?;
                    if ended {
                        return Ok(true);
                    }
                }
                None => self.arrived.extend_from_slice(bytes),
            }
            if self.arrived.len() > http::REPLY_LEN_MAX {
                return Err(io::Error::other("a reply without end"));
            }
            // A buffer that was not filled took all there was; an end that comes later is told of anew.
            if len < buffer.len() && !hung_up {
                return Ok(false);
            }
        }
    }
}

/// Takes encrypted bytes; returns whether the server has said goodbye
fn decrypt(
    session: &mut ClientConnection,
    mut bytes: &[u8],
    arrived: &mut Vec<u8>,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        session.read_tls(&mut bytes)?;
        let state = session.process_new_packets().map_err(io::Error::other)?;
        let len = state.plaintext_bytes_to_read();
        let at = arrived.len();
        arrived.resize(at + len, 0);
        session.reader().read_exact(&mut arrived[at..])?;
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
