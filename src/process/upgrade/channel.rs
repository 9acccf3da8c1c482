//! The channel between the two processes of an upgrade: messages and descriptors over a unix socket.

use rustix::io::IoSliceMut;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Maximum length of a message.
const MESSAGE_LEN_MAX: usize = 8 << 20;

/// Number of descriptors that are sent at once; the kernel permits 253.
const DESCRIPTORS_AT_ONCE: usize = 200;

/// A message of one of the processes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum UpgradeMessage {
    /// From the old process: who it is, as JSON. Its sockets and links follow.
    Hello(Vec<u8>),
    /// From the new one: its config is valid, and it has the sockets.
    Ready,
    /// From the old one: records, as a stream of [`crate::state`].
    Records(Vec<u8>),
    /// From the old one: all torrents were sent. Changes follow.
    CaughtUp,
    /// From the new one: it serves. The old one is to stop.
    Serving,
    /// From the old one: it has answered its last request, and sent all changes.
    Done,
    /// From the new one: it has all swarms.
    Complete,
}

impl UpgradeMessage {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::Hello(json) => (1, json),
            Self::Ready => (2, &[]),
            Self::Records(stream) => (3, stream),
            Self::CaughtUp => (4, &[]),
            Self::Serving => (5, &[]),
            Self::Done => (6, &[]),
            Self::Complete => (7, &[]),
        }
    }

    fn from_parts(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        Ok(match (kind, payload.is_empty()) {
            (1, false) => Self::Hello(payload),
            (2, true) => Self::Ready,
            (3, false) => Self::Records(payload),
            (4, true) => Self::CaughtUp,
            (5, true) => Self::Serving,
            (6, true) => Self::Done,
            (7, true) => Self::Complete,
            _ => return Err(io::Error::other(format!("message of unknown kind {kind}"))),
        })
    }
}

/// One end of the channel.
#[derive(Debug)]
pub(super) struct UpgradeChannel(UnixStream);

impl UpgradeChannel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Sets the time that sending and receiving may take.
    pub(super) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(timeout))?;
        self.0.set_write_timeout(Some(timeout))
    }

    /// Closes the channel for both processes, also if other handles of it are open.
    pub(super) fn close(&self) {
        // It may be closed already.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    pub(super) fn send(&mut self, message: &UpgradeMessage) -> io::Result<()> {
        let (kind, payload) = message.parts();
        let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let [a, b, c, d] = len.to_le_bytes();
        self.0.write_all(&[kind, a, b, c, d]).map_err(explain)?;
        self.0.write_all(payload).map_err(explain)
    }

    pub(super) fn receive(&mut self) -> io::Result<UpgradeMessage> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).map_err(explain)?;
        let [kind, len @ ..] = head;
        let len = u32::from_le_bytes(len) as usize;
        if len > MESSAGE_LEN_MAX {
            return Err(io::Error::other(format!("message of {len} bytes")));
        }
        let mut payload = vec![0; len];
        self.0.read_exact(&mut payload).map_err(explain)?;
        UpgradeMessage::from_parts(kind, payload)
    }

    /// Returns whether a message, or the end of the channel, can be received without waiting.
    pub(super) fn is_readable(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1..))
    }

    /// Sends descriptors to the other process.
    pub(super) fn send_descriptors(&self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        for part in descriptors.chunks(DESCRIPTORS_AT_ONCE) {
            let mut space =
                vec![std::mem::MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(part).size()];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(part)) {
                return Err(io::Error::other("too many descriptors at once"));
            }
            sendmsg(&self.0, &[IoSlice::new(b"d")], &mut ancillary, SendFlags::empty())?;
        }
        Ok(())
    }

    /// Receives descriptors that the other process has sent.
    pub(super) fn receive_descriptors(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let mut descriptors = Vec::new();
        while descriptors.len() < count {
            let mut space = [std::mem::MaybeUninit::uninit(); 4 * DESCRIPTORS_AT_ONCE + 64];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let received = recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut byte)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            if received.bytes == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    descriptors.extend(passed);
                }
            }
        }
        Ok(descriptors)
    }
}

/// Returns an error that says what has happened: a timeout of a socket is reported as if it would block.
fn explain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::from(io::ErrorKind::TimedOut),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut one, mut other) = (UpgradeChannel::new(one), UpgradeChannel::new(other));
        let listeners: Vec<_> =
            (0..450).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        assert!(!other.is_readable());
        let sender = std::thread::spawn(move || {
            one.send(&UpgradeMessage::Hello(b"{}".to_vec())).unwrap();
            let sockets: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            one.send_descriptors(&sockets).unwrap();
            one.send(&UpgradeMessage::Records(vec![7; 300_000])).unwrap();
            one.send(&UpgradeMessage::CaughtUp).unwrap();
            listeners.iter().map(|it| it.local_addr().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(other.receive().unwrap(), UpgradeMessage::Hello(b"{}".to_vec()));
        let sockets = other.receive_descriptors(450).unwrap();
        assert_eq!(other.receive().unwrap(), UpgradeMessage::Records(vec![7; 300_000]));
        assert_eq!(other.receive().unwrap(), UpgradeMessage::CaughtUp);
        let addresses: Vec<_> = sockets
            .into_iter()
            .map(|socket| std::net::TcpListener::from(socket).local_addr().unwrap())
            .collect();
        assert_eq!(addresses, sender.join().unwrap());
        assert!(other.is_readable(), "the end of the channel");
        assert!(other.receive().is_err());
    }

    #[test]
    fn invalid_messages_are_refused() {
        for bytes in [[9, 0, 0, 0, 0], [2, 1, 0, 0, 0], [3, 0xff, 0xff, 0xff, 0xff]] {
            let (mut one, other) = UnixStream::pair().unwrap();
            one.write_all(&bytes).unwrap();
            one.write_all(b"x").unwrap();
            assert!(UpgradeChannel::new(other).receive().is_err(), "{bytes:?}");
        }
    }
}
