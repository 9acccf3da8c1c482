//! The interface between a shard and its datapath, which receives datagrams and sends replies.

use std::io;
use std::time::Duration;
use tsubame_udp::ring::{
    Datagram, ForwardSlot, ReceivedDatagram, Ring, RingCounts, UdpReplyPath, UnreadableDatagram,
    Wait,
};
use tsubame_udp::xdp::frame::FrameReplyPath;

/// The path of the reply to a request, which another shard than the one that received the request can send along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyPath {
    /// From a UDP socket.
    Socket(UdpReplyPath),
    /// In a frame from an AF_XDP socket.
    Frame(FrameReplyPath),
}

/// Receives datagrams and sends replies, in batches and without blocking.
///
/// A received datagram comes with a slot for its reply. The bytes of the datagram stay valid until its reply is sent or
/// it is released. A datagram that is neither answered nor released occupies its buffer forever.
pub trait Datapath {
    /// A datagram that was received and has not been answered.
    type Received;
    /// A slot for the reply to a datagram that another shard received.
    type Slot;

    /// Submits replies, waits if `wait` says so, and collects received datagrams; returns the number of datagrams that
    /// [`Self::take`] can return. While there are such datagrams, it does not wait.
    fn turn(&mut self, wait: Wait) -> io::Result<usize>;

    /// Returns the next datagram; its source and local address are parsed from the metadata of the kernel.
    ///
    /// If these cannot be parsed, the datagram is released and an error is returned.
    fn take(&mut self) -> Option<Result<Self::Received, UnreadableDatagram>>;

    /// Returns the contents of a datagram and its reply slot.
    fn datagram_and_slot<'a>(
        &'a mut self,
        received: &Self::Received,
    ) -> (Datagram<'a>, &'a mut [u8]);

    /// Sends the first `len` bytes of the reply slot to the source of the datagram.
    fn send(&mut self, received: Self::Received, len: usize) -> io::Result<()>;

    /// Releases a datagram without a reply.
    fn release(&mut self, received: Self::Received);

    /// Returns the path of the reply to a datagram, so that another shard can send it.
    fn reply_path(&mut self, received: &Self::Received) -> ReplyPath;

    /// Returns a free slot for the reply to another shard's datagram; `None` while all slots are in use.
    fn forward_slot(&mut self) -> Option<Self::Slot>;

    /// Returns the bytes of a slot.
    fn forward_slot_bytes(&mut self, slot: &Self::Slot) -> &mut [u8];

    /// Sends the first `len` bytes of a slot along a path.
    fn send_forwarded_reply(
        &mut self,
        slot: Self::Slot,
        path: &ReplyPath,
        len: usize,
    ) -> io::Result<()>;

    /// Releases a slot without a reply.
    fn release_forward_slot(&mut self, slot: Self::Slot);

    /// Enables or disables the event that wakes the shard when [`Self::turn`] would find work.
    fn set_event_enabled(&mut self, enabled: bool);

    /// Does what is due about once a second: reads how many datagrams the kernel dropped before they were received. May
    /// take a system call for each socket.
    fn maintain(&mut self);

    /// Returns the counters of the datapath.
    fn counts(&self) -> RingCounts;

    /// Receives no more datagrams; turns return those that were received before.
    fn stop_receiving(&mut self) -> io::Result<()>;

    /// Returns whether, after [`Self::stop_receiving`], all datagrams were returned and all replies were sent.
    fn has_drained(&self) -> bool;

    /// Cancels all operations and waits up to `timeout` for their end; returns whether none is in flight any more.
    fn stop(&mut self, timeout: Duration) -> bool;
}

/// A datapath in whose ring a shard waits.
pub trait RingDatapath: Datapath {
    /// Returns the ring.
    fn ring(&mut self) -> &mut Ring;
}

impl RingDatapath for Ring {
    fn ring(&mut self) -> &mut Ring {
        self
    }
}

impl Datapath for Ring {
    type Received = ReceivedDatagram;
    type Slot = ForwardSlot;

    fn turn(&mut self, wait: Wait) -> io::Result<usize> {
        Self::turn(self, wait)
    }

    fn take(&mut self) -> Option<Result<ReceivedDatagram, UnreadableDatagram>> {
        Self::take(self)
    }

    fn datagram_and_slot<'a>(
        &'a mut self,
        received: &ReceivedDatagram,
    ) -> (Datagram<'a>, &'a mut [u8]) {
        Self::datagram_and_slot(self, received)
    }

    fn send(&mut self, received: ReceivedDatagram, len: usize) -> io::Result<()> {
        Self::send(self, received, len)
    }

    fn release(&mut self, received: ReceivedDatagram) {
        Self::release(self, received);
    }

    fn reply_path(&mut self, received: &ReceivedDatagram) -> ReplyPath {
        ReplyPath::Socket(Self::reply_path(self, received))
    }

    fn forward_slot(&mut self) -> Option<ForwardSlot> {
        Self::forward_slot(self)
    }

    fn forward_slot_bytes(&mut self, slot: &ForwardSlot) -> &mut [u8] {
        Self::forward_slot_bytes(self, slot)
    }

    fn send_forwarded_reply(
        &mut self,
        slot: ForwardSlot,
        path: &ReplyPath,
        len: usize,
    ) -> io::Result<()> {
        match path {
            ReplyPath::Socket(path) => Self::send_forwarded_reply(self, slot, path, len),
            // No shard has AF_XDP sockets if this one can have none.
            ReplyPath::Frame(_) => {
                self.release_forward_slot(slot);
                Ok(())
            }
        }
    }

    fn release_forward_slot(&mut self, slot: ForwardSlot) {
        Self::release_forward_slot(self, slot);
    }

    fn set_event_enabled(&mut self, enabled: bool) {
        Self::set_event_enabled(self, enabled);
    }

    fn maintain(&mut self) {
        self.count_drops();
    }

    fn counts(&self) -> RingCounts {
        Self::counts(self)
    }

    fn stop_receiving(&mut self) -> io::Result<()> {
        Self::stop_receiving(self)
    }

    fn has_drained(&self) -> bool {
        Self::has_drained(self)
    }

    fn stop(&mut self, timeout: Duration) -> bool {
        Self::stop(self, timeout)
    }
}
