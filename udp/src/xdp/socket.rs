//! AF_XDP sockets: receive and send the Ethernet frames of a receive queue, in memory that is shared with the kernel
//! (UMEM).
//!
//! The memory of a socket consists of buffers. A buffer is free, provided to the kernel (fill ring), received (RX ring;
//! it then belongs to the holder of its [`ReceivedFrame`]), or being sent (TX ring), until the kernel has finished with
//! it (completion ring). All memory is allocated when the socket is created; the kernel drops frames for which no
//! buffer is provided.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

mod mapping;
mod open;
mod shared_ring;

pub use open::QueueProblem;

use mapping::Mapping;
use open::{BUFFER_BYTES, BUFFERS, OpenedSocket, RING_LEN};
use rustix::net::sockopt::xdp_statistics;
use rustix::net::xdp::{XdpDesc, XdpDescOptions};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use shared_ring::{Consumer, Producer};
use std::ops::AddAssign;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes at the start of a buffer before the frame.
const HEADROOM: usize = 256;

/// Maximum number of buffers that are provided to the kernel if it copies frames; others are for replies to datagrams
/// of other queues.
///
/// These are used in rotation, and compete for the caches: with 512 of them, 17 % more announces were answered than
/// with 2,048. But they must hold the frames that arrive while the shard is delayed.
const PROVIDED_MAX_COPY: usize = 1024;

/// Maximum number of buffers that are provided to the kernel with zero copy: all frames of the queue are received in
/// them, also those for the network stack, and the card holds as many as its own ring has places.
const PROVIDED_MAX_ZERO_COPY: usize = RING_LEN as usize;

/// Number of sockets created in this process.
static SOCKETS: AtomicU32 = AtomicU32::new(0);

/// A frame that was received. It must be returned to the socket that received it; another socket panics.
#[derive(Debug)]
#[must_use = "a buffer that is neither sent nor released is lost"]
pub struct ReceivedFrame {
    socket: u32,
    /// Position of the frame in the memory of the socket.
    start: u32,
    len: u32,
}

/// Counters of a socket since its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Number of system calls.
    pub enters: u64,
    /// Number of frames that the kernel has finished with: the driver may have dropped some.
    pub sent: u64,
    /// Number of replies that were not sent, because the TX ring was full.
    pub send_failed: u64,
    /// Number of received frames that the kernel dropped, because no buffer was provided or the RX ring was full. With
    /// zero copy, the card drops them, and its own statistics count them (`ethtool -S`).
    pub dropped_by_kernel: u64,
}

impl AddAssign for FrameCounts {
    fn add_assign(&mut self, other: Self) {
        self.enters += other.enters;
        self.sent += other.sent;
        self.send_failed += other.send_failed;
        self.dropped_by_kernel += other.dropped_by_kernel;
    }
}

/// An AF_XDP socket with its memory.
pub struct FrameSocket {
    /// Identifies the socket of a frame.
    number: u32,
    rx: Consumer<XdpDesc>,
    tx: Producer<XdpDesc>,
    fill: Producer<u64>,
    completion: Consumer<u64>,
    /// Positions of free buffers. The one that was used last is used first, as it is in a cache.
    free: Vec<u32>,
    /// Number of buffers that the kernel may fill, or has filled.
    provided_len: usize,
    /// Number of buffers with frames that are being sent.
    sending_len: usize,
    is_zero_copy: bool,
    counts: FrameCounts,
    descriptor: OwnedFd,
    /// The memory. It may be unmapped while the kernel still uses it: the kernel holds its pages.
    umem: Mapping,
}

impl std::fmt::Debug for FrameSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameSocket").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl FrameSocket {
    /// Creates a socket for a receive queue of the interface with an index. Without a choice of `zero_copy`, the driver
    /// uses the buffers of the socket if it can; otherwise the kernel copies frames.
    ///
    /// The socket receives what an XDP program redirects to it. Needs CAP_NET_RAW.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel refuses the socket or its memory, or if the queue has a socket already: also for
    /// some time after that was closed.
    pub fn open(interface: u32, queue: u32, zero_copy: Option<bool>) -> Result<Self, QueueProblem> {
        let OpenedSocket { descriptor, umem, rx, tx, fill, completion, is_zero_copy } =
            open::open(interface, queue, zero_copy)?;
        let mut socket = Self {
            number: SOCKETS.fetch_add(1, Ordering::Relaxed),
            rx,
            tx,
            fill,
            completion,
            free: (0..BUFFERS).rev().map(|buffer| (buffer * BUFFER_BYTES) as u32).collect(),
            provided_len: 0,
            sending_len: 0,
            is_zero_copy,
            counts: FrameCounts::default(),
            descriptor,
            umem,
        };
        socket.provide(false);
        Ok(socket)
    }

    /// Returns the bytes of memory of a socket.
    pub const fn memory_bytes() -> usize {
        BUFFERS * BUFFER_BYTES
    }

    /// Returns whether the driver uses the buffers of the socket (zero copy).
    pub fn is_zero_copy(&self) -> bool {
        self.is_zero_copy
    }

    /// Returns the counters.
    pub fn counts(&self) -> FrameCounts {
        self.counts
    }

    /// Reads how many frames the kernel dropped. This takes a system call.
    pub fn count_drops(&mut self) {
        if let Ok(statistics) = xdp_statistics(&self.descriptor) {
            let ring_full = statistics.rx_ring_full.unwrap_or(0);
            self.counts.dropped_by_kernel = statistics.rx_dropped + ring_full;
        }
    }

    /// Has the kernel send the queued frames, reuses the buffers of those that were sent, and looks for received
    /// frames; returns how many [`Self::take`] can return.
    pub fn transfer(&mut self) -> usize {
        self.reclaim();
        self.transmit();
        // In copy mode, frames are sent at once.
        self.reclaim();
        self.rx.publish();
        let received = self.rx.refresh() as usize;
        self.provide(received == 0);
        received
    }

    /// Returns whether frames wait for the kernel to send them.
    pub fn has_unsent(&mut self) -> bool {
        self.tx.pending() > 0
    }

    /// Returns whether the kernel has not finished with all frames that were queued.
    pub fn is_sending(&self) -> bool {
        self.sending_len > 0
    }

    /// Frees the buffers that the kernel has finished with.
    fn reclaim(&mut self) {
        if self.completion.refresh() > 0 {
            while let Some(start) = self.completion.pop() {
                self.counts.sent += 1;
                self.sending_len -= 1;
                self.free.push(buffer_of(start));
            }
            self.completion.publish();
        }
    }

    /// Returns the next received frame.
    pub fn take(&mut self) -> Option<ReceivedFrame> {
        let XdpDesc { addr, len, .. } = self.rx.pop()?;
        self.provided_len -= 1;
        Some(ReceivedFrame { socket: self.number, start: addr as u32, len })
    }

    /// Returns the bytes of a received frame.
    pub fn bytes(&self, frame: &ReceivedFrame) -> &[u8] {
        assert_eq!(frame.socket, self.number);
        let bytes = self.umem.at(frame.start as usize, frame.len as usize);
        // SAFETY: the bytes are within the memory, and belong to the holder of the frame: neither the kernel nor
        // another frame uses them.
        unsafe { NonNull::slice_from_raw_parts(bytes, frame.len as usize).as_ref() }
    }

    /// Has `write` turn a received frame into a frame that is sent: its argument is the frame, followed by the rest of
    /// the buffer, and its result the length of the new frame. With `None`, nothing is sent.
    pub fn send(&mut self, frame: ReceivedFrame, write: impl FnOnce(&mut [u8]) -> Option<usize>) {
        assert_eq!(frame.socket, self.number);
        if !self.write(frame.start, write) {
            self.counts.send_failed += 1;
        }
    }

    /// Has `write` write a frame into a free buffer and sends it, as [`Self::send`]; returns whether that was possible.
    pub fn send_new(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        match self.free.pop() {
            Some(buffer) => self.write(buffer + HEADROOM as u32, write),
            None => false,
        }
    }

    /// Releases the buffer of a frame.
    pub fn release(&mut self, frame: ReceivedFrame) {
        assert_eq!(frame.socket, self.number);
        self.free.push(buffer_of(frame.start.into()));
    }

    /// Writes a frame at a position and queues it.
    fn write(&mut self, start: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        // The frame may fill the rest of its buffer.
        let len_max = BUFFER_BYTES - start as usize % BUFFER_BYTES;
        let bytes = self.umem.at(start as usize, len_max);
        // SAFETY: the bytes are within the memory, and are those of a buffer that is neither free nor used by the
        // kernel.
        let bytes = unsafe { NonNull::slice_from_raw_parts(bytes, len_max).as_mut() };
        let len = write(bytes).filter(|len| *len <= len_max);
        let is_queued = len.is_some_and(|len| {
            let options = XdpDescOptions::empty();
            self.tx.push(XdpDesc { addr: start.into(), len: len as u32, options })
        });
        match is_queued {
            true => self.sending_len += 1,
            false => self.free.push(buffer_of(start.into())),
        }
        is_queued
    }

    /// Has the kernel send the queued frames.
    fn transmit(&mut self) {
        let mut pending = self.tx.pending();
        if pending > 0 {
            self.tx.publish();
        }
        while pending > 0 && self.tx.needs_wakeup() {
            self.counts.enters += 1;
            // In copy mode, a call sends up to 32 frames. An error is that of a busy driver, or of an interface that is
            // down or gone, which the control plane notices.
            let _ = send(&self.descriptor, &[], SendFlags::DONTWAIT);
            let before = std::mem::replace(&mut pending, self.tx.pending());
            if pending == before {
                break;
            }
        }
    }

    /// Provides free buffers to the kernel. `is_idle` tells that nothing was received: a driver may wait for a system
    /// call since it had no buffers.
    fn provide(&mut self, is_idle: bool) {
        let provided_max =
            if self.is_zero_copy { PROVIDED_MAX_ZERO_COPY } else { PROVIDED_MAX_COPY };
        let mut has_provided = false;
        while self.provided_len < provided_max
            && let Some(buffer) = self.free.pop()
        {
            if !self.fill.push(buffer.into()) {
                self.free.push(buffer);
                break;
            }
            self.provided_len += 1;
            has_provided = true;
        }
        if has_provided {
            self.fill.publish();
        }
        if (has_provided || is_idle && self.is_zero_copy) && self.fill.needs_wakeup() {
            self.counts.enters += 1;
            // Only wakes the driver.
            let _ = recv(&self.descriptor, &mut [0; 0], RecvFlags::DONTWAIT);
        }
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Returns the position of the buffer of a frame.
fn buffer_of(start: u64) -> u32 {
    (start - start % BUFFER_BYTES as u64) as u32
}
