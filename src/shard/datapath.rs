//! The interface between a shard and its datapath, which receives datagrams and sends replies.

use std::io;
use std::time::Duration;
use tsubame_udp::ring::{
    Datagram, ForwardSlot, ReceivedDatagram, ReturnPath, Ring, RingCounts, UnreadableDatagram, Wait,
};

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
    fn open<'a>(&'a mut self, received: &Self::Received) -> (Datagram<'a>, &'a mut [u8]);

    /// Sends the first `len` bytes of the reply slot to the source of the datagram.
    fn send(&mut self, received: Self::Received, len: usize) -> io::Result<()>;

    /// Releases a datagram without a reply.
    fn release(&mut self, received: Self::Received);

    /// Returns the path of the reply to a datagram, so that another shard can send it.
    fn return_path(&self, received: &Self::Received) -> ReturnPath;

    /// Returns a free slot for the reply to another shard's datagram; `None` while all slots are in use.
    fn forward_slot(&mut self) -> Option<Self::Slot>;

    /// Returns the bytes of a slot.
    fn forward_slot_bytes(&mut self, slot: &Self::Slot) -> &mut [u8];

    /// Sends the first `len` bytes of a slot along a return path.
    fn send_forwarded_reply(
        &mut self,
        slot: Self::Slot,
        path: &ReturnPath,
        len: usize,
    ) -> io::Result<()>;

    /// Releases a slot without a reply.
    fn release_forward_slot(&mut self, slot: Self::Slot);

    /// Enables or disables the event that wakes the shard when [`Self::turn`] would find work.
    fn set_event_enabled(&mut self, enabled: bool);

    /// Reads how many datagrams the kernel dropped before they were received. May take a system call for each socket.
    fn count_drops(&mut self);

    /// Returns the counters of the datapath.
    fn counts(&self) -> RingCounts;

    /// Cancels all operations and waits up to `timeout` for their end; returns whether none is in flight any more.
    fn stop(&mut self, timeout: Duration) -> bool;
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

    fn open<'a>(&'a mut self, received: &ReceivedDatagram) -> (Datagram<'a>, &'a mut [u8]) {
        Self::open(self, received)
    }

    fn send(&mut self, received: ReceivedDatagram, len: usize) -> io::Result<()> {
        Self::send(self, received, len)
    }

    fn release(&mut self, received: ReceivedDatagram) {
        Self::release(self, received);
    }

    fn return_path(&self, received: &ReceivedDatagram) -> ReturnPath {
        Self::return_path(self, received)
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
        path: &ReturnPath,
        len: usize,
    ) -> io::Result<()> {
        Self::send_forwarded_reply(self, slot, path, len)
    }

    fn release_forward_slot(&mut self, slot: ForwardSlot) {
        Self::release_forward_slot(self, slot);
    }

    fn set_event_enabled(&mut self, enabled: bool) {
        Self::set_event_enabled(self, enabled);
    }

    fn count_drops(&mut self) {
        Self::count_drops(self);
    }

    fn counts(&self) -> RingCounts {
        Self::counts(self)
    }

    fn stop(&mut self, timeout: Duration) -> bool {
        Self::stop(self, timeout)
    }
}
