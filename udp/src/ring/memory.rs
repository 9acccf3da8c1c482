//! Memory shared with the kernel: receive buffers, the ring that provides them, and reply slots.
//!
//! The one hazard of io_uring is the kernel writing to memory that has another owner by then. So this
//! memory is reached through raw pointers only, is borrowed for as long as an operation holds it, and is
//! freed by [`super::Ring`] after the last operation has ended, or never.

#![expect(unsafe_code, reason = "memory the kernel writes to")]

use super::packet::{CONTROL_LEN, HEADER_LEN, NAME_LEN};
use io_uring::types::BufRingEntry;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Bytes of the longest datagram that is received whole
pub const DATAGRAM_LEN_MAX: usize = 1496;

/// Bytes of the longest reply: what an Ethernet frame carries over IPv4
pub const REPLY_LEN_MAX: usize = 1472;

/// Bytes of a receive buffer: the longest datagram with all the kernel writes before it, and room for a
/// second control message (SO_RXQ_OVFL, 24 bytes)
///
/// A multiple of a cache line, but not of a power of two that would map all headers to few cache sets.
pub(super) const BUFFER_LEN: usize =
    (HEADER_LEN + NAME_LEN + CONTROL_LEN + 24 + DATAGRAM_LEN_MAX).next_multiple_of(64);

const _: () = assert!(BUFFER_LEN >= 1604 && !BUFFER_LEN.is_power_of_two());

/// A reply and all the kernel reads to send it
#[repr(C, align(64))]
pub(super) struct Slot {
    pub(super) reply: [u8; REPLY_LEN_MAX],
    pub(super) name: [u8; NAME_LEN],
    pub(super) control: [u8; CONTROL_LEN],
    pub(super) message: libc::msghdr,
    pub(super) part: libc::iovec,
}

const _: () = assert!(!size_of::<Slot>().is_power_of_two());

const PAGE: usize = 4096;

/// A fixed number of values on pages of their own, zero at first
///
/// Values are handed out as pointers: whether one may be used follows from which operations are in flight.
pub(super) struct Region<T> {
    start: NonNull<T>,
    count: usize,
}

impl<T> Region<T> {
    pub(super) fn new(count: usize) -> Self {
        let layout = Self::layout(count);
        // SAFETY: the layout has a size: counts and types are constants of this crate, none empty.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start.cast()) {
            Some(start) => Self { start, count },
            None => handle_alloc_error(layout),
        }
    }

    fn layout(count: usize) -> Layout {
        let layout = Layout::array::<T>(count).and_then(|layout| layout.align_to(PAGE));
        layout.expect("a few thousand values of a few kilobytes fit the address space")
    }

    /// Where value `index` lies
    pub(super) fn at(&self, index: usize) -> NonNull<T> {
        assert!(index < self.count, "value {index} of {}", self.count);
        // SAFETY: the index is below the count, so the result stays within the allocation.
        unsafe { self.start.add(index) }
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once, here.
        unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.count)) };
    }
}

/// An entry of the ring of buffers: `struct io_uring_buf`
///
/// In the first entry the reserved field is the tail of the ring, which the kernel reads at any time.
#[repr(C)]
struct BufferEntry {
    address: u64,
    len: u32,
    buffer: u16,
    tail: u16,
}

const _: () = assert!(size_of::<BufferEntry>() == size_of::<BufRingEntry>());
const _: () = assert!(align_of::<BufferEntry>() == align_of::<BufRingEntry>());

/// Receive buffers, and the ring on which the kernel finds the free ones
pub(super) struct Buffers {
    memory: Region<[u8; BUFFER_LEN]>,
    ring: Region<BufRingEntry>,
    tail: u16,
}

impl Buffers {
    /// `count` must be a power of two, as the kernel demands
    pub(super) fn new(count: u16) -> Self {
        assert!(count.is_power_of_two());
        let count = usize::from(count);
        Self { memory: Region::new(count), ring: Region::new(count), tail: 0 }
    }

    pub(super) fn count(&self) -> u16 {
        self.ring.count as u16
    }

    /// Memory that so many buffers take
    pub(super) const fn bytes(count: u16) -> usize {
        count as usize * (BUFFER_LEN + size_of::<BufRingEntry>())
    }

    pub(super) fn ring_address(&self) -> u64 {
        self.ring.start.as_ptr() as u64
    }

    /// Where a buffer lies; what the kernel wrote there is ours until the buffer is given back
    pub(super) fn at(&self, buffer: u16) -> NonNull<[u8; BUFFER_LEN]> {
        self.memory.at(usize::from(buffer))
    }

    /// Gives a buffer back; the kernel sees it after the next [`Self::publish`]
    pub(super) fn give_back(&mut self, buffer: u16) {
        let place = usize::from(self.tail) & (self.ring.count - 1);
        let address = self.at(buffer).as_ptr() as u64;
        let entry = self.ring.at(place).cast::<BufferEntry>().as_ptr();
        // No reference is made to the entry: the tail lies within the first one, and the kernel may read that
        // meanwhile. It reads the other fields only after the tail has moved past the entry.
        // SAFETY: the entry lies within the ring, so its field does.
        let address_field = unsafe { &raw mut (*entry).address };
        // SAFETY: as above.
        let len_field = unsafe { &raw mut (*entry).len };
        // SAFETY: as above.
        let buffer_field = unsafe { &raw mut (*entry).buffer };
        // SAFETY: the field is aligned and within the ring, and neither the kernel nor a reference uses it now.
        unsafe { address_field.write(address) };
        // SAFETY: as above.
        unsafe { len_field.write(BUFFER_LEN as u32) };
        // SAFETY: as above.
        unsafe { buffer_field.write(buffer) };
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel all buffers given back
    pub(super) fn publish(&self) {
        // SAFETY: the address is that of the ring's first entry, which is initialised.
        let tail = unsafe { BufRingEntry::tail(self.ring.start.as_ptr()) };
        // SAFETY: the tail is an aligned u16 within the ring's memory; the kernel only reads it, and
        // nothing of ours refers to it otherwise.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
