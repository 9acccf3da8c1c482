//! Moves datagrams in and out over io_uring, in batches.
//!
//! A datagram is taken together with the slot its reply goes into; without a free buffer nothing is taken,
//! and waits in the socket. Received bytes stay valid until [`Ring::send`] or [`Ring::release`] takes the
//! [`Received`] back. Everything is allocated when the ring is made.
//!
//! A ring belongs to the thread that made it. It does not know what datagrams mean, and does not sleep:
//! [`Ring::event`] becomes readable when [`Ring::turn`] would find work. [`Ring::turn_patiently`] waits, for so
//! short a time that nothing else on the thread minds.

#![expect(unsafe_code, reason = "memory and descriptors handed to the kernel")]

mod enter;
mod memory;
mod operation;
mod packet;
mod return_path;
mod setup;
mod socket;
mod token;

pub use memory::{DATAGRAM_LEN_MAX, REPLY_LEN_MAX};
pub use return_path::ReturnPath;
pub use setup::{KERNEL_OLDEST, SetupError};
pub use socket::UdpSocket;

pub(crate) use socket::{set_option, set_reuseport_program};

use io_uring::types::{CancelBuilder, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use memory::{BUFFER_LEN, Buffers, Region, Slot};
use operation::{To, receive_message, reply_entry};
use packet::HEADER_LEN;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;
use token::Token;

/// Receive buffers, and so replies in flight; what does not fit waits in the socket
///
/// They are used in turn, so all of them compete for the caches: twice as many cost 5 % more time a datagram.
const BUFFERS: u16 = 256;

/// Slots for replies to datagrams that other shards received
const FORWARD_SLOTS: u16 = 256;

/// Sockets that a ring can have
pub const SOCKETS_MAX: usize = 1_024;

// Completions that can be there at once: each buffer was received into and its reply sent, each
// forwarded reply sent, and on each socket a receive ended and its cancellation.
const _: () = assert!(
    2 * BUFFERS as usize + FORWARD_SLOTS as usize + 2 * SOCKETS_MAX <= setup::COMPLETIONS as usize
);

/// Receives that may fail one after another, other than for want of buffers
const FAILURES_MAX: u32 = 1_000;

/// Rings made in this process
static RINGS: AtomicU32 = AtomicU32::new(0);

/// Number of the buffer ring; there is one
const BUFFER_GROUP: u16 = 0;

/// A datagram that was received and has not been answered
///
/// It must go back to the ring it came from; another one panics.
#[derive(Debug)]
#[must_use = "a buffer that is neither sent nor released is lost"]
pub struct Received {
    ring: u32,
    buffer: u16,
    socket: u16,
    len: u32,
}

/// What was received
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Where it came from; forged for all one knows
    pub source: SocketAddr,
    /// Its bytes, up to the longest request
    pub payload: &'a [u8],
    /// Whether more bytes were sent
    pub truncated: bool,
}

// What a shard may take at start, its share of sockets' buffers and the mesh aside.
const _: () = assert!(Ring::memory_bytes() <= 8 << 20);

/// A slot for the reply to a datagram that another shard received
#[derive(Debug)]
#[must_use = "a slot that is neither sent nor released is lost"]
pub struct ForwardSlot {
    ring: u32,
    slot: u16,
}

/// What became of operations, counted since the ring was made
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// Turns that called into the kernel
    pub turns: u64,
    /// Replies the kernel took
    pub sent: u64,
    /// Replies the kernel refused: a full send buffer, or no way to the destination
    pub send_failed: u64,
    /// Times a receive ended for want of buffers
    pub out_of_buffers: u64,
    /// Times a receive failed for another reason; it is armed again
    pub receive_failed: u64,
    /// Datagrams the kernel dropped at the sockets, mostly for a full receive buffer, as of the last
    /// [`Ring::count_drops`]
    pub dropped_by_kernel: u64,
}

/// Sockets, buffers and reply slots over one io_uring
pub struct Ring {
    ring: IoUring,
    event: OwnedFd,
    state: State,
}

/// What is in flight, and what it may write to
struct State {
    /// Tells this ring's datagrams and slots from another's
    number: u32,
    sockets: Vec<UdpSocket>,
    /// By socket: how many datagrams the kernel had dropped at the last look
    drops_seen: Vec<u32>,
    /// By socket: whether a receive is in flight
    armed: Vec<bool>,
    memory: Option<Memory>,
    arrived: VecDeque<Received>,
    /// Buffers the kernel may fill
    free_buffers: u16,
    failures_in_a_row: u32,
    free_forwards: Vec<u16>,
    replies_in_flight: usize,
    forwards_in_flight: usize,
    counts: RingCounts,
    stopping: bool,
}

/// All that the kernel may write to or read from while operations are in flight
struct Memory {
    /// By socket: what its receive leaves room for before the payload
    messages: Box<[libc::msghdr]>,
    buffers: Buffers,
    slots: Region<Slot>,
    forwards: Region<Slot>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("counts", &self.state.counts).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring over these sockets, numbered in this order, for the calling thread
    pub fn new(sockets: Vec<UdpSocket>) -> Result<Self, SetupError> {
        if sockets.len() > SOCKETS_MAX {
            return Err(SetupError::Sockets(sockets.len()));
        }
        let ring = setup::create()?;
        let explain = |what| move |error| setup::explain(what, error);
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| setup::explain("make an eventfd", error.into()))?;
        let submitter = ring.submitter();
        let descriptors: Vec<_> = sockets.iter().map(|socket| socket.as_fd().as_raw_fd()).collect();
        // None, where only HTTP is served: of nothing the kernel makes no table.
        if !descriptors.is_empty() {
            submitter.register_files(&descriptors).map_err(explain("register sockets"))?;
        }
        submitter.register_eventfd(event.as_raw_fd()).map_err(explain("register an eventfd"))?;
        let memory = Memory {
            messages: sockets.iter().map(receive_message).collect(),
            buffers: Buffers::new(BUFFERS),
            slots: Region::new(usize::from(BUFFERS)),
            forwards: Region::new(usize::from(FORWARD_SLOTS)),
        };
        let (address, count) = (memory.buffers.ring_address(), memory.buffers.count());
        // SAFETY: the ring of buffers lies on pages of its own, has as many entries as said, and is freed
        // only after the io_uring is gone (`Drop`).
        let registered =
            unsafe { submitter.register_buf_ring_with_flags(address, count, BUFFER_GROUP, 0) };
        registered.map_err(explain("register receive buffers"))?;
        let mut state = State {
            number: RINGS.fetch_add(1, Ordering::Relaxed),
            armed: vec![false; sockets.len()],
            drops_seen: vec![0; sockets.len()],
            sockets,
            memory: Some(memory),
            free_buffers: 0,
            failures_in_a_row: 0,
            arrived: VecDeque::with_capacity(usize::from(BUFFERS)),
            free_forwards: (0..FORWARD_SLOTS).collect(),
            replies_in_flight: 0,
            forwards_in_flight: 0,
            counts: RingCounts::default(),
            stopping: false,
        };
        (0..BUFFERS).for_each(|buffer| state.give_back(buffer));
        let mut ring = Self { ring, event, state };
        ring.ask_for_event(false);
        Ok(ring)
    }

    /// Becomes readable when a [`Self::turn`] has work to find, while that is asked for
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Asks for the event, or no longer: whoever takes turns anyway is spared its cost
    ///
    /// To sleep: ask for it, turn until nothing is found, then wait. In any other order a wake-up is lost.
    /// After that it may be readable once for nothing.
    pub fn ask_for_event(&mut self, asked: bool) {
        let completions = self.ring.completion();
        match asked {
            true => completions.enable_eventfd(),
            false => completions.disable_eventfd(),
        }
        drop(completions);
        // The turn that follows must not look at the kernel's flags before the kernel can see ours.
        fence(Ordering::SeqCst);
    }

    /// Fixed memory a ring allocates at start
    pub const fn memory_bytes() -> usize {
        Buffers::bytes(BUFFERS)
            + (BUFFERS as usize + FORWARD_SLOTS as usize) * size_of::<Slot>()
            + setup::RING_BYTES
    }

    /// What became of operations so far
    pub fn counts(&self) -> RingCounts {
        self.state.counts
    }

    /// Asks the kernel how many datagrams it has dropped: mostly for want of room in a receive buffer
    ///
    /// A system call for each socket: not for every turn.
    pub fn count_drops(&mut self) {
        let State { sockets, drops_seen, counts, .. } = &mut self.state;
        for (socket, seen) in sockets.iter().zip(drops_seen) {
            let Some(now) = socket.drops() else { continue };
            // The kernel's counter has 32 bits and wraps.
            counts.dropped_by_kernel += u64::from(now.wrapping_sub(std::mem::replace(seen, now)));
        }
    }

    /// Datagrams that can be in the hands of the tracker at once
    pub fn buffers_max() -> usize {
        usize::from(BUFFERS)
    }

    /// Hands replies to the kernel and takes what it has received; returns how many datagrams wait in
    /// [`Self::take`]
    ///
    /// Fails if the kernel does, or if receives have failed so often that this ring serves nobody.
    pub fn turn(&mut self) -> io::Result<usize> {
        self.turn_within(None)
    }

    /// As [`Self::turn`], but lets datagrams come together for as long as `patience`, unless enough for a
    /// turn are there at once
    ///
    /// Replies are handed over first. Most of what a datagram costs at moderate load is waking up for it.
    pub fn turn_patiently(&mut self, patience: Duration) -> io::Result<usize> {
        self.turn_within(Some(patience))
    }

    fn turn_within(&mut self, patience: Option<Duration>) -> io::Result<usize> {
        self.state.memory_ref().buffers.publish();
        match patience {
            Some(patience) => self.enter_and_wait(patience)?,
            None => self.enter()?,
        }
        self.reap();
        // Buffers first, then receives: one that finds no buffer ends at once.
        if !self.state.stopping && self.state.free_buffers > 0 && self.state.armed.contains(&false)
        {
            self.state.memory_ref().buffers.publish();
            self.arm()?;
            self.enter()?;
            self.reap();
        }
        match self.state.failures_in_a_row {
            FAILURES_MAX.. => Err(io::Error::other("the kernel refuses to receive")),
            _ => Ok(self.state.arrived.len()),
        }
    }

    /// The next datagram
    pub fn take(&mut self) -> Option<Received> {
        self.state.arrived.pop_front()
    }

    /// A received datagram and the slot for its reply; `None` if what the kernel wrote cannot be read
    pub fn open<'a>(&'a mut self, received: &Received) -> Option<(Datagram<'a>, &'a mut [u8])> {
        let control_len = self.state.control_len(received);
        let parsed = packet::parse(self.state.bytes(received), control_len)?;
        let mut slot = self.state.memory_ref().slots.at(usize::from(received.buffer));
        // SAFETY: the slot belongs to the buffer, and whoever holds its `Received` has it alone: no reply
        // is in flight from it. The received bytes lie elsewhere.
        let slot = unsafe { slot.as_mut() };
        let (source, payload) = (parsed.source, parsed.payload);
        Some((Datagram { source, payload, truncated: parsed.truncated }, &mut slot.reply))
    }

    /// Sends the first bytes of a datagram's reply slot to where it came from
    pub fn send(&mut self, received: Received, len: usize) -> io::Result<()> {
        let Received { buffer, socket, .. } = received;
        let control_len = self.state.control_len(&received);
        let buffer_at = self.state.memory_ref().buffers.at(buffer).cast::<u8>();
        // SAFETY: the name lies behind the header, well within the buffer.
        let name = unsafe { buffer_at.add(HEADER_LEN) };
        let local = match control_len {
            0 => None,
            _ => packet::parse(self.state.bytes(&received), control_len)
                .and_then(|parsed| parsed.local),
        };
        let slot = self.state.memory_ref().slots.at(usize::from(buffer));
        let entry = reply_entry(slot, To::Name(name), socket, len, local);
        self.state.replies_in_flight += 1;
        self.push(entry.user_data(Token::Reply { buffer }.pack()))
    }

    /// Gives a datagram's buffer back without a reply
    pub fn release(&mut self, received: Received) {
        assert_eq!(received.ring, self.state.number);
        self.state.give_back(received.buffer);
    }

    /// Where the reply to a datagram goes, for another shard to send it
    pub fn return_path(&self, received: &Received) -> Option<ReturnPath> {
        let control_len = self.state.control_len(received);
        let parsed = packet::parse(self.state.bytes(received), control_len)?;
        Some(ReturnPath::new(received.socket, parsed.source, parsed.local))
    }

    /// A slot for a reply to another shard's datagram; `None` while all are in flight
    pub fn forward_slot(&mut self) -> Option<ForwardSlot> {
        let ring = self.state.number;
        self.state.free_forwards.pop().map(|slot| ForwardSlot { ring, slot })
    }

    /// The bytes of a slot
    pub fn forward_reply(&mut self, slot: &ForwardSlot) -> &mut [u8] {
        assert_eq!(slot.ring, self.state.number);
        let mut slot = self.state.memory_ref().forwards.at(usize::from(slot.slot));
        // SAFETY: the slot was taken from the free ones, so no reply is in flight from it.
        let slot = unsafe { slot.as_mut() };
        &mut slot.reply
    }

    /// Sends the first bytes of a slot along a return path
    pub fn send_forward(
        &mut self,
        slot: ForwardSlot,
        path: &ReturnPath,
        len: usize,
    ) -> io::Result<()> {
        assert_eq!(slot.ring, self.state.number);
        let socket = path.socket();
        if usize::from(socket) >= self.state.sockets.len() {
            self.release_forward(slot);
            return Ok(());
        }
        let number = slot.slot;
        let slot = self.state.memory_ref().forwards.at(usize::from(number));
        let entry = reply_entry(slot, To::Address(path.peer()), socket, len, path.local());
        self.state.forwards_in_flight += 1;
        self.push(entry.user_data(Token::Forward { slot: number }.pack()))
    }

    /// Gives a slot back without a reply
    pub fn release_forward(&mut self, slot: ForwardSlot) {
        assert_eq!(slot.ring, self.state.number);
        self.state.free_forwards.push(slot.slot);
    }

    /// Ends all operations, for at most so long, and closes the sockets; true if all have ended
    ///
    /// Sockets are closed here and not by dropping the ring: a ring's end takes the kernel tens of
    /// milliseconds, and the ports would stay taken for as long.
    pub fn stop(&mut self, patience: Duration) -> bool {
        self.state.stopping = true;
        let mut ended = self.cancel().is_ok();
        let slice = Duration::from_millis(10);
        for _ in 0..patience.as_millis().div_ceil(slice.as_millis()).max(1) {
            while let Some(received) = self.take() {
                self.release(received);
            }
            if self.state.is_quiet() {
                break;
            }
            let timeout = Timespec::from(slice);
            let arguments = SubmitArgs::new().timespec(&timeout);
            // A timeout is an error here, and just means another look.
            let _ = self.ring.submitter().submit_with_args(1, &arguments);
            self.reap();
        }
        ended &= self.state.is_quiet();
        let _ = self.ring.submitter().unregister_files();
        self.state.sockets.clear();
        ended
    }

    fn cancel(&mut self) -> io::Result<()> {
        for socket in 0..self.state.armed.len() as u16 {
            if self.state.armed[usize::from(socket)] {
                let receive = CancelBuilder::user_data(Token::Receive { socket }.pack());
                let entry = opcode::AsyncCancel2::new(receive).build();
                self.push(entry.user_data(Token::Cancel.pack()))?;
            }
        }
        self.enter()
    }

    /// Starts a receive on each socket that has none
    fn arm(&mut self) -> io::Result<()> {
        for socket in 0..self.state.armed.len() as u16 {
            if !std::mem::replace(&mut self.state.armed[usize::from(socket)], true) {
                let message = &raw const self.state.memory_ref().messages[usize::from(socket)];
                let fixed = Fixed(u32::from(socket));
                let entry = opcode::RecvMsgMulti::new(fixed, message, BUFFER_GROUP).build();
                self.push(entry.user_data(Token::Receive { socket }.pack()))?;
            }
        }
        Ok(())
    }
}

impl State {
    fn is_quiet(&self) -> bool {
        !self.armed.contains(&true) && self.replies_in_flight == 0 && self.forwards_in_flight == 0
    }

    fn memory_ref(&self) -> &Memory {
        self.memory.as_ref().expect("memory is taken by `drop` alone")
    }

    fn memory_mut(&mut self) -> &mut Memory {
        self.memory.as_mut().expect("memory is taken by `drop` alone")
    }

    /// The bytes the kernel wrote for a datagram
    fn bytes(&self, received: &Received) -> &[u8] {
        let buffer = self.memory_ref().buffers.at(received.buffer);
        // SAFETY: the kernel has filled this buffer and does not touch it again before it is given back,
        // which takes the `Received`.
        let bytes: &[u8; BUFFER_LEN] = unsafe { buffer.as_ref() };
        &bytes[..(received.len as usize).min(BUFFER_LEN)]
    }

    fn complete(&mut self, completion: &cqueue::Entry) {
        let (result, flags) = (completion.result(), completion.flags());
        match Token::unpack(completion.user_data()) {
            Some(Token::Receive { socket }) => self.received(socket, result, flags),
            Some(Token::Reply { buffer }) => {
                self.replies_in_flight -= 1;
                self.count_sent(result);
                self.give_back(buffer);
            }
            Some(Token::Forward { slot }) => {
                self.forwards_in_flight -= 1;
                self.count_sent(result);
                self.free_forwards.push(slot);
            }
            Some(Token::Cancel) | None => {}
        }
    }

    fn received(&mut self, socket: u16, result: i32, flags: u32) {
        if !cqueue::more(flags) {
            self.armed[usize::from(socket)] = false;
        }
        match (result, cqueue::buffer_select(flags)) {
            (0.., Some(buffer)) => {
                self.failures_in_a_row = 0;
                self.free_buffers -= 1;
                let (ring, len) = (self.number, result as u32);
                self.arrived.push_back(Received { ring, buffer, socket, len });
            }
            (0.., None) => self.receive_failed(),
            (error, buffer) => {
                match -error {
                    libc::ENOBUFS => self.counts.out_of_buffers += 1,
                    libc::ECANCELED => {}
                    _ => self.receive_failed(),
                }
                if let Some(buffer) = buffer {
                    self.free_buffers -= 1;
                    self.give_back(buffer);
                }
            }
        }
    }

    fn receive_failed(&mut self) {
        self.counts.receive_failed += 1;
        self.failures_in_a_row += 1;
    }

    fn give_back(&mut self, buffer: u16) {
        self.memory_mut().buffers.give_back(buffer);
        self.free_buffers += 1;
    }

    /// Room for control messages before the payload of a received datagram
    fn control_len(&self, received: &Received) -> usize {
        assert_eq!(received.ring, self.number);
        self.memory_ref().messages[usize::from(received.socket)].msg_controllen
    }

    fn count_sent(&mut self, result: i32) {
        if result >= 0 {
            self.counts.sent += 1;
        } else {
            self.counts.send_failed += 1;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let quiet = self.state.is_quiet() || self.stop(Duration::from_millis(500));
        if !quiet {
            // Operations that would not end may still write here.
            std::mem::forget(self.state.memory.take());
        }
        let _ = self.ring.submitter().unregister_buf_ring(BUFFER_GROUP);
    }
}
