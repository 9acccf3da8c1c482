//! The interface between a shard and its datapath, which receives datagrams and sends replies.

use std::io;
use std::time::Duration;
use tsubame_udp::ring::{Datagram, ForwardSlot, Received, ReturnPath, Ring, RingCounts};

/// Receives datagrams and sends replies, in batches, without waiting.
///
/// A received datagram comes with a slot for its reply. Its bytes stay valid until the reply is sent or the datagram is
/// released; a datagram that is neither sent nor released keeps its buffer for ever.
pub trait Datapath {
    /// A datagram that was received and has not been answered
    type Received;
    /// A slot for the reply to a datagram that another shard received
    type Slot;

    /// Sends replies and receives; returns how many datagrams wait in [`Self::take`].
    ///
    /// With `patience` it waits at most that long for more datagrams, unless a full batch is there at once.
    fn turn(&mut self, patience: Option<Duration>) -> io::Result<usize>;

    /// Returns the next datagram.
    fn take(&mut self) -> Option<Self::Received>;

    /// Returns a datagram and its reply slot; `None` if the received bytes cannot be read.
    fn open<'a>(&'a mut self, received: &Self::Received) -> Option<(Datagram<'a>, &'a mut [u8])>;

    /// Sends the first `len` bytes of the reply slot to the source of the datagram.
    fn send(&mut self, received: Self::Received, len: usize) -> io::Result<()>;

    /// Gives a datagram back without a reply.
    fn release(&mut self, received: Self::Received);

    /// Returns where the reply to a datagram goes, for another shard to send it.
    fn return_path(&self, received: &Self::Received) -> Option<ReturnPath>;

    /// Takes a slot for the reply to another shard's datagram; `None` while all slots are in use.
    fn forward_slot(&mut self) -> Option<Self::Slot>;

    /// Returns the bytes of a slot.
    fn forward_reply(&mut self, slot: &Self::Slot) -> &mut [u8];

    /// Sends the first bytes of a slot along a return path.
    fn send_forward(&mut self, slot: Self::Slot, path: &ReturnPath, len: usize) -> io::Result<()>;

    /// Gives a slot back without a reply.
    fn release_forward(&mut self, slot: Self::Slot);

    /// Asks to be woken when [`Self::turn`] would find work, or no longer.
    fn ask_for_event(&mut self, asked: bool);

    /// Updates how many datagrams were dropped before they were received. This may take a system call for each socket.
    fn count_drops(&mut self);

    /// Returns what became of operations so far.
    fn counts(&self) -> RingCounts;

    /// Ends all operations and waits for their end, at most for `patience`; true if none is in flight any more.
    fn stop(&mut self, patience: Duration) -> bool;
}

impl Datapath for Ring {
    type Received = Received;
    type Slot = ForwardSlot;

    fn turn(&mut self, patience: Option<Duration>) -> io::Result<usize> {
        match patience {
            Some(patience) => self.turn_patiently(patience),
            None => Self::turn(self),
        }
    }

    fn take(&mut self) -> Option<Received> {
        Self::take(self)
    }

    fn open<'a>(&'a mut self, received: &Received) -> Option<(Datagram<'a>, &'a mut [u8])> {
        Self::open(self, received)
    }

    fn send(&mut self, received: Received, len: usize) -> io::Result<()> {
        Self::send(self, received, len)
    }

    fn release(&mut self, received: Received) {
        Self::release(self, received);
    }

    fn return_path(&self, received: &Received) -> Option<ReturnPath> {
        Self::return_path(self, received)
    }

    fn forward_slot(&mut self) -> Option<ForwardSlot> {
        Self::forward_slot(self)
    }

    fn forward_reply(&mut self, slot: &ForwardSlot) -> &mut [u8] {
        Self::forward_reply(self, slot)
    }

    fn send_forward(&mut self, slot: ForwardSlot, path: &ReturnPath, len: usize) -> io::Result<()> {
        Self::send_forward(self, slot, path, len)
    }

    fn release_forward(&mut self, slot: ForwardSlot) {
        Self::release_forward(self, slot);
    }

    fn ask_for_event(&mut self, asked: bool) {
        Self::ask_for_event(self, asked);
    }

    fn count_drops(&mut self) {
        Self::count_drops(self);
    }

    fn counts(&self) -> RingCounts {
        Self::counts(self)
    }

    fn stop(&mut self, patience: Duration) -> bool {
        Self::stop(self, patience)
    }
}
