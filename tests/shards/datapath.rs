//! A datapath in memory, with few buffers and slots, whose sends can be held back.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tsubame::shard::datapath::{Datapath, ReplyPath};
use tsubame_udp::ring::{Datagram, RingCounts, UdpReplyPath, UnreadableDatagram, Wait};

/// Number of receive buffers, few so that they run out.
pub(crate) const BUFFERS: usize = 8;
/// Number of forward slots, few so that they run out.
pub(crate) const SLOTS: usize = 4;

/// Maximum number of datagrams in the socket.
const SOCKET_LEN: usize = 2_000;

/// The side of the datapath that the simulation reads and controls.
#[derive(Default)]
pub(crate) struct DatapathHandle {
    /// Datagrams in the socket.
    socket: RefCell<VecDeque<(SocketAddr, Vec<u8>)>>,
    /// Replies that were sent.
    pub(crate) sent: RefCell<Vec<(SocketAddr, Vec<u8>)>>,
    /// Whether sent replies are discarded instead of kept.
    pub(crate) discards_replies: Cell<bool>,
    /// Whether sends are held back.
    pub(crate) holds_sends: Cell<bool>,
    /// Whether the shard waits for an event.
    waits_for_event: Cell<bool>,
    /// Whether the last turn waited and found no datagrams.
    pub(crate) has_waited_without_datagrams: Cell<bool>,
    in_flight: Cell<usize>,
    /// Numbers of free buffers and free slots.
    pub(crate) free: Cell<(usize, usize)>,
}

impl DatapathHandle {
    /// Puts a datagram into the socket. Returns false if it is full.
    pub(crate) fn arrive(&self, source: SocketAddr, bytes: Vec<u8>) -> bool {
        let mut socket = self.socket.borrow_mut();
        let fits = socket.len() < SOCKET_LEN;
        if fits {
            socket.push_back((source, bytes));
        }
        fits
    }

    /// Returns whether an event would wake the shard.
    pub(crate) fn has_event(&self) -> bool {
        let can_receive = !self.socket.borrow().is_empty() && self.free.get().0 > 0;
        let can_send = self.in_flight.get() > 0 && !self.holds_sends.get();
        self.waits_for_event.get() && (can_receive || can_send)
    }
}

struct Buffer {
    source: SocketAddr,
    bytes: Vec<u8>,
    reply: [u8; 1_472],
}

/// The memory that holds a reply while it is sent.
enum ReplyMemory {
    Buffer(usize),
    Slot(usize),
}

pub(crate) struct Model {
    handle: Rc<DatapathHandle>,
    buffers: Vec<Buffer>,
    free_buffers: Vec<usize>,
    slots: Vec<[u8; 1_472]>,
    free_slots: Vec<usize>,
    arrived: VecDeque<ReceivedDatagram>,
    in_flight: Vec<(SocketAddr, usize, ReplyMemory)>,
    counts: RingCounts,
}

/// A received datagram: the number of its buffer.
pub(crate) struct ReceivedDatagram(usize);

impl Model {
    pub(crate) fn new(handle: Rc<DatapathHandle>) -> Self {
        let unset = SocketAddr::from(([0; 4], 0));
        let buffer = |_| Buffer { source: unset, bytes: Vec::new(), reply: [0; 1_472] };
        handle.free.set((BUFFERS, SLOTS));
        Self {
            handle,
            buffers: (0..BUFFERS).map(buffer).collect(),
            free_buffers: (0..BUFFERS).collect(),
            slots: vec![[0; 1_472]; SLOTS],
            free_slots: (0..SLOTS).collect(),
            arrived: VecDeque::new(),
            in_flight: Vec::new(),
            counts: RingCounts::default(),
        }
    }

    fn finish_sends(&mut self) {
        for (to, len, memory) in self.in_flight.drain(..) {
            let reply = match memory {
                ReplyMemory::Buffer(at) => {
                    self.free_buffers.push(at);
                    &self.buffers[at].reply
                }
                ReplyMemory::Slot(at) => {
                    self.free_slots.push(at);
                    &self.slots[at]
                }
            };
            if !self.handle.discards_replies.get() {
                self.handle.sent.borrow_mut().push((to, reply[..len].to_vec()));
            }
            self.counts.sent += 1;
        }
    }

    fn publish(&self) {
        self.handle.free.set((self.free_buffers.len(), self.free_slots.len()));
        self.handle.in_flight.set(self.in_flight.len());
    }
}

impl Datapath for Model {
    type Received = ReceivedDatagram;
    type Slot = usize;

    fn turn(&mut self, wait: Wait) -> io::Result<usize> {
        self.counts.enters += 1;
        if !self.handle.holds_sends.get() {
            self.finish_sends();
        }
        let mut socket = self.handle.socket.borrow_mut();
        while !socket.is_empty()
            && let Some(at) = self.free_buffers.pop()
            && let Some((source, bytes)) = socket.pop_front()
        {
            let buffer = &mut self.buffers[at];
            (buffer.source, buffer.bytes) = (source, bytes);
            buffer.reply.fill(0xdd);
            self.arrived.push_back(ReceivedDatagram(at));
        }
        drop(socket);
        self.publish();
        self.handle.has_waited_without_datagrams.set(wait != Wait::No && self.arrived.is_empty());
        Ok(self.arrived.len())
    }

    fn take(&mut self) -> Option<Result<ReceivedDatagram, UnreadableDatagram>> {
        self.arrived.pop_front().map(Ok)
    }

    fn datagram_and_slot<'a>(
        &'a mut self,
        received: &ReceivedDatagram,
    ) -> (Datagram<'a>, &'a mut [u8]) {
        let Buffer { source, bytes, reply } = &mut self.buffers[received.0];
        let datagram = Datagram { source: *source, payload: bytes, truncated: false };
        (datagram, reply)
    }

    fn send(&mut self, received: ReceivedDatagram, len: usize) -> io::Result<()> {
        let to = self.buffers[received.0].source;
        self.in_flight.push((to, len, ReplyMemory::Buffer(received.0)));
        self.publish();
        Ok(())
    }

    fn release(&mut self, received: ReceivedDatagram) {
        self.free_buffers.push(received.0);
        self.publish();
    }

    fn reply_path(&mut self, received: &ReceivedDatagram) -> ReplyPath {
        ReplyPath::Socket(UdpReplyPath::new(0, self.buffers[received.0].source, None))
    }

    fn forward_slot(&mut self) -> Option<usize> {
        self.free_slots.pop()
    }

    fn forward_slot_bytes(&mut self, slot: &usize) -> &mut [u8] {
        &mut self.slots[*slot]
    }

    fn send_forwarded_reply(
        &mut self,
        slot: usize,
        path: &ReplyPath,
        len: usize,
    ) -> io::Result<()> {
        let ReplyPath::Socket(path) = path else { panic!("there are no frames") };
        self.in_flight.push((path.destination(), len, ReplyMemory::Slot(slot)));
        self.publish();
        Ok(())
    }

    fn release_forward_slot(&mut self, slot: usize) {
        self.free_slots.push(slot);
        self.publish();
    }

    fn set_event_enabled(&mut self, waits_for_event: bool) {
        self.handle.waits_for_event.set(waits_for_event);
    }

    fn maintain(&mut self) {}

    fn counts(&self) -> RingCounts {
        self.counts
    }

    fn stop_receiving(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn has_drained(&self) -> bool {
        self.arrived.is_empty() && self.in_flight.is_empty()
    }

    fn stop(&mut self, _: Duration) -> bool {
        self.finish_sends();
        true
    }
}
