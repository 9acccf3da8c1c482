//! Receives and sends datagrams over io_uring, in batches.
//!
//! A received datagram comes with a slot for its reply. Without a free buffer nothing is received, and datagrams wait
//! in the socket. Received bytes stay valid until the [`ReceivedDatagram`] is passed to [`Ring::send`] or
//! [`Ring::release`]. All memory is allocated when the ring is created.
//!
//! A ring belongs to the thread that created it. It does not interpret datagrams. [`Ring::turn`] waits as its caller
//! says: not at all, for some more datagrams, or for a datagram or a watched descriptor. A thread that waits elsewhere
//! can poll [`Ring::event`], which becomes readable when a turn would find work.

#![expect(unsafe_code, reason = "memory and descriptors handed to the kernel")]

mod enter;
mod epoll;
mod memory;
mod operation;
mod operation_id;
mod packet;
mod setup;
mod socket;
mod stop;
mod udp_reply_path;
mod watch;
mod watching;

pub use epoll::epoll_that_polls;
pub use memory::{DATAGRAM_LEN_MAX, REPLY_LEN_MAX};
pub use setup::{KERNEL_MIN, SOCKETS_MAX, SetupError};
pub use socket::UdpSocket;
pub use udp_reply_path::UdpReplyPath;
pub use watch::{WatchMode, WatchNumber};

pub(crate) use socket::{set_option, set_reuseport_program};

use io_uring::types::Fixed;
use io_uring::{IoUring, cqueue, opcode};
use memory::{BUFFER_LEN, Buffers, Region, ReplySlot};
use operation::{ReplyDestination, receive_message, reply_entry};
use operation_id::OperationId;
use packet::{HEADER_LEN, PacketHeader};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;
use watch::Watches;

/// Number of receive buffers, and so the maximum number of datagrams that are received and not yet answered; more wait
/// in the socket.
///
/// All buffers are used in rotation and compete for the caches: twice as many cost 5 % more time per datagram.
const BUFFERS: u16 = 256;

/// Number of slots for replies to datagrams that other shards received.
const FORWARD_SLOTS: u16 = 256;

// Maximum number of completions at once: a receive and a reply for each buffer, a reply for each forward slot, and the
// end of a receive and of its cancellation for each socket. The rest is for the few of watched descriptors.
const _: () = assert!(
    2 * BUFFERS as usize + FORWARD_SLOTS as usize + 2 * SOCKETS_MAX <= setup::COMPLETIONS as usize
);

/// Number of consecutive failed receives, other than for lack of buffers, after which a turn fails.
const FAILURES_MAX: u32 = 1_000;

/// Number of rings created in this process.
static RINGS: AtomicU32 = AtomicU32::new(0);

/// Id of the buffer ring; there is only one.
const BUFFER_GROUP: u16 = 0;

/// A datagram that was received and has not been answered.
///
/// It must be returned to the ring that received it; another ring panics.
#[derive(Debug)]
#[must_use = "a buffer that is neither sent nor released is lost"]
pub struct ReceivedDatagram {
    completed: CompletedReceive,
    header: PacketHeader,
}

/// A receive buffer that the kernel has filled.
#[derive(Clone, Copy, Debug)]
struct CompletedReceive {
    ring: u32,
    buffer: u16,
    socket: u16,
    len: u32,
}

/// Error: the header that the kernel wrote in front of a datagram cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableDatagram;

/// Contents of a received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Source address, which may be forged.
    pub source: SocketAddr,
    /// Payload, or as much of it as fits into a receive buffer: at least [`DATAGRAM_LEN_MAX`] bytes.
    pub payload: &'a [u8],
    /// Whether the datagram was longer than the payload.
    pub truncated: bool,
}

// The ring must fit into the 8 MiB of memory that a shard may allocate at start. The buffers of sockets and the mesh
// are not part of these.
const _: () = assert!(Ring::memory_bytes() <= 8 << 20);

/// Whether and how a turn waits in the kernel, after it has submitted replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It does not wait.
    No,
    /// It waits this long for more datagrams, or until 32 completions have arrived.
    Gather(Duration),
    /// It waits for a datagram or a watched descriptor, at most for `timeout`.
    Event {
        /// Time for which the wait continues for more datagrams, unless 32 completions arrive earlier: one wake-up then
        /// serves several datagrams.
        gather: Duration,
        /// Maximum time of the wait.
        timeout: Duration,
    },
}

/// A slot for the reply to a datagram that another shard received.
#[derive(Debug)]
#[must_use = "a slot that is neither sent nor released is lost"]
pub struct ForwardSlot {
    ring: u32,
    slot: u16,
}

/// Counters of a ring since its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// Number of system calls that submitted operations or waited for completions.
    pub enters: u64,
    /// Number of replies that the kernel accepted.
    pub sent: u64,
    /// Number of replies that the kernel refused: the send buffer was full, or there was no route.
    pub send_failed: u64,
    /// Number of receives that ended for lack of buffers.
    pub out_of_buffers: u64,
    /// Number of receives that failed for another reason; the next turn starts a new one.
    pub receive_failed: u64,
    /// Number of datagrams that the kernel dropped at the sockets, mostly because a receive buffer was full; as of the
    /// last [`Ring::count_drops`].
    pub dropped_by_kernel: u64,
}

/// An io_uring with its sockets, receive buffers and reply slots.
pub struct Ring {
    ring: IoUring,
    event: OwnedFd,
    state: RingState,
}

/// Operations in flight, and the memory that they use.
struct RingState {
    /// Number of the ring in the process: identifies the ring of a datagram or slot.
    number: u32,
    sockets: Vec<UdpSocket>,
    /// By socket: number of datagrams that the kernel had dropped at the last check.
    drops_seen: Vec<u32>,
    /// By socket: whether a receive is in flight.
    armed: Vec<bool>,
    /// Memory shared with the kernel; `None` only during `drop`.
    memory: Option<RingMemory>,
    /// Received datagrams that have not been taken.
    arrived: VecDeque<CompletedReceive>,
    /// Number of buffers that the kernel may fill.
    free_buffers: u16,
    failures_in_a_row: u32,
    /// Free slots for replies to datagrams of other shards.
    free_forwards: Vec<u16>,
    replies_in_flight: usize,
    forwards_in_flight: usize,
    watches: Watches,
    counts: RingCounts,
    stopping: bool,
}

/// All memory that the kernel may access while operations are in flight.
struct RingMemory {
    /// By socket: header that defines how much space its receive leaves before the payload.
    messages: Box<[libc::msghdr]>,
    buffers: Buffers,
    slots: Region<ReplySlot>,
    forwards: Region<ReplySlot>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("counts", &self.state.counts).finish_non_exhaustive()
    }
}

impl Ring {
    /// Creates a ring for the calling thread. The sockets are numbered in the order given.
    ///
    /// # Errors
    ///
    /// If there are too many sockets, or the kernel lacks or refuses io_uring.
    pub fn new(sockets: Vec<UdpSocket>) -> Result<Self, SetupError> {
        if sockets.len() > SOCKETS_MAX {
            return Err(SetupError::TooManySockets(sockets.len()));
        }
        let ring = setup::create()?;
        let explain = |what| move |error| setup::explain(what, error);
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| setup::explain("make an eventfd", error.into()))?;
        let submitter = ring.submitter();
        let descriptors: Vec<_> = sockets.iter().map(|socket| socket.as_fd().as_raw_fd()).collect();
        // There are no sockets if only HTTP is served, and the kernel refuses an empty table.
        if !descriptors.is_empty() {
            submitter.register_files(&descriptors).map_err(explain("register sockets"))?;
        }
        submitter.register_eventfd(event.as_raw_fd()).map_err(explain("register an eventfd"))?;
        let memory = RingMemory {
            messages: sockets.iter().map(receive_message).collect(),
            buffers: Buffers::new(BUFFERS),
            slots: Region::new(usize::from(BUFFERS)),
            forwards: Region::new(usize::from(FORWARD_SLOTS)),
        };
        let (address, count) = (memory.buffers.ring_address(), memory.buffers.count());
        // SAFETY: the buffer ring lies on pages of its own, has `count` entries, and is freed only after the io_uring
        // is gone (`Drop`).
        let registered =
            unsafe { submitter.register_buf_ring_with_flags(address, count, BUFFER_GROUP, 0) };
        registered.map_err(explain("register receive buffers"))?;
        let mut state = RingState {
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
            watches: Watches::default(),
            counts: RingCounts::default(),
            stopping: false,
        };
        (0..BUFFERS).for_each(|buffer| state.provide(buffer));
        let mut ring = Self { ring, event, state };
        ring.set_event_enabled(false);
        Ok(ring)
    }

    /// Returns a descriptor that becomes readable when [`Self::turn`] would find work, while the event is enabled.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Enables or disables the event. A thread that takes turns without sleeping disables it, because it costs time.
    ///
    /// To sleep, enable the event, call [`Self::turn`] until it finds nothing, then wait; in any other order a wake-up
    /// can be lost. The event may be readable once without work.
    pub fn set_event_enabled(&mut self, enabled: bool) {
        let completions = self.ring.completion();
        match enabled {
            true => completions.enable_eventfd(),
            false => completions.disable_eventfd(),
        }
        drop(completions);
        // The next turn must not read the flags of the kernel before the kernel can see ours.
        fence(Ordering::SeqCst);
    }

    /// Returns the bytes of memory that a ring allocates when it is created.
    pub const fn memory_bytes() -> usize {
        Buffers::bytes(BUFFERS)
            + (BUFFERS as usize + FORWARD_SLOTS as usize) * size_of::<ReplySlot>()
            + setup::RING_BYTES
    }

    /// Returns the counters.
    pub fn counts(&self) -> RingCounts {
        self.state.counts
    }

    /// Reads the number of datagrams that the kernel dropped, mostly because a receive buffer was full.
    ///
    /// This takes a system call for each socket, so it should not be done in every turn.
    pub fn count_drops(&mut self) {
        let RingState { sockets, drops_seen, counts, .. } = &mut self.state;
        for (socket, seen) in sockets.iter().zip(drops_seen) {
            let Some(now) = socket.drops() else { continue };
            // The counter of the kernel has 32 bits and wraps around.
            counts.dropped_by_kernel += u64::from(now.wrapping_sub(std::mem::replace(seen, now)));
        }
    }

    /// Returns the maximum number of datagrams that are received and not yet answered.
    pub fn buffers_max() -> usize {
        usize::from(BUFFERS)
    }

    /// Submits replies, waits if `wait` says so, and collects received datagrams; returns the number of datagrams that
    /// [`Self::take`] can return. While there are such datagrams, it does not wait.
    ///
    /// # Errors
    ///
    /// If a system call fails, or if too many receives failed in a row.
    pub fn turn(&mut self, wait: Wait) -> io::Result<usize> {
        self.state.memory_ref().buffers.publish();
        self.arm_watches()?;
        // Without a receive in flight, no datagram would end a wait; those that have arrived must not wait either.
        let must_not_wait = self.state.armed.contains(&false) || !self.state.arrived.is_empty();
        match if must_not_wait { Wait::No } else { wait } {
            Wait::No => self.enter()?,
            Wait::Gather(time) => self.enter_and_gather(time)?,
            Wait::Event { gather, timeout } => self.enter_and_wait(gather, timeout)?,
        }
        self.reap();
        // Buffers are provided before receives are started: a receive without a buffer ends at once.
        if !self.state.stopping && self.state.free_buffers > 0 && self.state.armed.contains(&false)
        {
            self.state.memory_ref().buffers.publish();
            self.arm()?;
            self.enter()?;
            self.reap();
        }
        match self.state.failures_in_a_row {
            FAILURES_MAX.. => Err(io::Error::other("too many receives failed in a row")),
            _ => Ok(self.state.arrived.len()),
        }
    }

    /// Returns the next datagram; one that cannot be read is released.
    pub fn take(&mut self) -> Option<Result<ReceivedDatagram, UnreadableDatagram>> {
        let completed = self.state.arrived.pop_front()?;
        let control_len = self.state.control_len(completed.socket);
        Some(match packet::parse(self.state.bytes(&completed), control_len) {
            Some(header) => Ok(ReceivedDatagram { completed, header }),
            None => {
                self.state.provide(completed.buffer);
                Err(UnreadableDatagram)
            }
        })
    }

    /// Returns the contents of a received datagram and the slot for its reply.
    pub fn datagram_and_slot<'a>(
        &'a mut self,
        received: &ReceivedDatagram,
    ) -> (Datagram<'a>, &'a mut [u8]) {
        let ReceivedDatagram { completed, header } = received;
        assert_eq!(completed.ring, self.state.number);
        let payload = header.payload(self.state.bytes(completed));
        let mut slot = self.state.memory_ref().slots.at(usize::from(completed.buffer));
        // SAFETY: the slot belongs to the buffer, and the holder of its `ReceivedDatagram` has exclusive access: no
        // reply is in flight from it. The received bytes lie in other memory.
        let slot = unsafe { slot.as_mut() };
        let datagram = Datagram { source: header.source, payload, truncated: header.truncated };
        (datagram, &mut slot.reply)
    }

    /// Sends the first `len` bytes of the reply slot of a datagram to its source.
    pub fn send(&mut self, received: ReceivedDatagram, len: usize) -> io::Result<()> {
        let CompletedReceive { ring, buffer, socket, .. } = received.completed;
        assert_eq!(ring, self.state.number);
        let buffer_at = self.state.memory_ref().buffers.at(buffer).cast::<u8>();
        // SAFETY: the name follows the header and lies within the buffer.
        let name = unsafe { buffer_at.add(HEADER_LEN) };
        let slot = self.state.memory_ref().slots.at(usize::from(buffer));
        let entry =
            reply_entry(slot, ReplyDestination::Name(name), socket, len, received.header.local);
        self.state.replies_in_flight += 1;
        self.push(entry.user_data(OperationId::Reply { buffer }.pack()))
    }

    /// Releases the buffer of a datagram without a reply.
    pub fn release(&mut self, received: ReceivedDatagram) {
        assert_eq!(received.completed.ring, self.state.number);
        self.state.provide(received.completed.buffer);
    }

    /// Returns the address and socket of the reply to a datagram, so that another shard can send it.
    pub fn reply_path(&self, received: &ReceivedDatagram) -> UdpReplyPath {
        let ReceivedDatagram { completed, header } = received;
        UdpReplyPath::new(completed.socket, header.source, header.local)
    }

    /// Returns a free slot for the reply to another shard's datagram; `None` while all are in use.
    pub fn forward_slot(&mut self) -> Option<ForwardSlot> {
        let ring = self.state.number;
        self.state.free_forwards.pop().map(|slot| ForwardSlot { ring, slot })
    }

    /// Returns the bytes of a slot.
    pub fn forward_slot_bytes(&mut self, slot: &ForwardSlot) -> &mut [u8] {
        assert_eq!(slot.ring, self.state.number);
        let mut slot = self.state.memory_ref().forwards.at(usize::from(slot.slot));
        // SAFETY: the slot was removed from the free slots, so no reply is in flight from it.
        let slot = unsafe { slot.as_mut() };
        &mut slot.reply
    }

    /// Sends the first `len` bytes of a slot to the destination and from the socket of `path`. If the ring has no
    /// socket with the number in `path`, the slot is released and nothing is sent.
    pub fn send_forwarded_reply(
        &mut self,
        slot: ForwardSlot,
        path: &UdpReplyPath,
        len: usize,
    ) -> io::Result<()> {
        assert_eq!(slot.ring, self.state.number);
        let socket = path.socket();
        if usize::from(socket) >= self.state.sockets.len() {
            self.release_forward_slot(slot);
            return Ok(());
        }
        let number = slot.slot;
        let slot = self.state.memory_ref().forwards.at(usize::from(number));
        let entry = reply_entry(
            slot,
            ReplyDestination::Address(path.destination()),
            socket,
            len,
            path.local(),
        );
        self.state.forwards_in_flight += 1;
        self.push(entry.user_data(OperationId::Forward { slot: number }.pack()))
    }

    /// Releases a slot without a reply.
    pub fn release_forward_slot(&mut self, slot: ForwardSlot) {
        assert_eq!(slot.ring, self.state.number);
        self.state.free_forwards.push(slot.slot);
    }

    /// Starts a receive on each socket that has none in flight.
    fn arm(&mut self) -> io::Result<()> {
        for socket in 0..self.state.armed.len() as u16 {
            if !std::mem::replace(&mut self.state.armed[usize::from(socket)], true) {
                let message = &raw const self.state.memory_ref().messages[usize::from(socket)];
                let fixed = Fixed(u32::from(socket));
                let entry = opcode::RecvMsgMulti::new(fixed, message, BUFFER_GROUP).build();
                self.push(entry.user_data(OperationId::Receive { socket }.pack()))?;
            }
        }
        Ok(())
    }
}

impl RingState {
    /// Returns whether no receive and no reply is in flight. Polls of watches use none of the memory of the ring.
    fn has_no_transfers(&self) -> bool {
        !self.armed.contains(&true) && self.replies_in_flight == 0 && self.forwards_in_flight == 0
    }

    fn memory_ref(&self) -> &RingMemory {
        self.memory.as_ref().expect("only `drop` removes the memory")
    }

    fn memory_mut(&mut self) -> &mut RingMemory {
        self.memory.as_mut().expect("only `drop` removes the memory")
    }

    /// Returns the bytes that the kernel wrote for a datagram.
    fn bytes(&self, completed: &CompletedReceive) -> &[u8] {
        let buffer = self.memory_ref().buffers.at(completed.buffer);
        // SAFETY: the kernel has filled this buffer and does not access it again before it is provided again.
        // Providing it consumes its `ReceivedDatagram`, or happens before there is one.
        let bytes: &[u8; BUFFER_LEN] = unsafe { buffer.as_ref() };
        &bytes[..(completed.len as usize).min(BUFFER_LEN)]
    }

    /// Handles the completion of an operation.
    fn complete(&mut self, completion: &cqueue::Entry) {
        let (result, flags) = (completion.result(), completion.flags());
        match OperationId::unpack(completion.user_data()) {
            Some(OperationId::Receive { socket }) => self.received(socket, result, flags),
            Some(OperationId::Reply { buffer }) => {
                self.replies_in_flight -= 1;
                self.count_sent(result);
                self.provide(buffer);
            }
            Some(OperationId::Forward { slot }) => {
                self.forwards_in_flight -= 1;
                self.count_sent(result);
                self.free_forwards.push(slot);
            }
            Some(OperationId::Watch { number }) => {
                self.watches.completed(number, result, cqueue::more(flags));
            }
            Some(OperationId::Cancel) | None => {}
        }
    }

    /// Handles the completion of a receive.
    fn received(&mut self, socket: u16, result: i32, flags: u32) {
        if !cqueue::more(flags) {
            self.armed[usize::from(socket)] = false;
        }
        match (result, cqueue::buffer_select(flags)) {
            (0.., Some(buffer)) => {
                self.failures_in_a_row = 0;
                self.free_buffers -= 1;
                let (ring, len) = (self.number, result as u32);
                self.arrived.push_back(CompletedReceive { ring, buffer, socket, len });
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
                    self.provide(buffer);
                }
            }
        }
    }

    fn receive_failed(&mut self) {
        self.counts.receive_failed += 1;
        self.failures_in_a_row += 1;
    }

    /// Returns a buffer to the kernel.
    fn provide(&mut self, buffer: u16) {
        self.memory_mut().buffers.provide(buffer);
        self.free_buffers += 1;
    }

    /// Returns the bytes reserved for control messages before the payload of the datagrams of a socket.
    fn control_len(&self, socket: u16) -> usize {
        self.memory_ref().messages[usize::from(socket)].msg_controllen
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
        let quiet = self.state.has_no_transfers() || self.stop(Duration::from_millis(500));
        if !quiet {
            // Operations that did not end may still write to this memory, so it is leaked.
            std::mem::forget(self.state.memory.take());
        }
        let _ = self.ring.submitter().unregister_buf_ring(BUFFER_GROUP);
    }
}
