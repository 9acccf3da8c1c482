//! Memory shared with the kernel: receive buffers, the ring that provides them to the kernel, and reply slots.
//!
//! The hazard of io_uring is that the kernel writes to memory that has been freed or reused. Therefore this memory is
//! accessed only through raw pointers and through references that end before an operation starts, is not used while an
//! operation holds it, and is freed by [`super::Ring`] after the last operation has ended, or never.

#![expect(unsafe_code, reason = "memory the kernel writes to")]

use super::packet::{CONTROL_LEN, HEADER_LEN, NAME_LEN_MAX};
use io_uring::types::BufRingEntry;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Maximum bytes of a datagram that is received whole.
pub const DATAGRAM_LEN_MAX: usize = 1496;

/// Maximum bytes of a reply: the UDP payload of an Ethernet frame over IPv4.
pub const REPLY_LEN_MAX: usize = 1472;

/// Bytes of a receive buffer: the longest datagram, and what the kernel writes before it.
///
/// The length is a multiple of a cache line, but not a power of two, which would map all headers to few cache sets.
pub(super) const BUFFER_LEN: usize =
    (HEADER_LEN + NAME_LEN_MAX + CONTROL_LEN + DATAGRAM_LEN_MAX).next_multiple_of(64);

const _: () = assert!(BUFFER_LEN >= 1580 && !BUFFER_LEN.is_power_of_two());

/// A reply, and the structures that the kernel reads to send it.
#[repr(C, align(64))]
pub(super) struct ReplySlot {
    pub(super) reply: [u8; REPLY_LEN_MAX],
    pub(super) name: [u8; NAME_LEN_MAX],
    pub(super) control: [u8; CONTROL_LEN],
    pub(super) message: libc::msghdr,
    pub(super) vector: libc::iovec,
}

const _: () = assert!(!size_of::<ReplySlot>().is_power_of_two());

/// Bytes of a page.
const PAGE: usize = 4096;

/// A fixed number of values on pages of their own, initially zero.
///
/// Values are accessed by pointers: the operations in flight determine whether a value may be used.
pub(super) struct Region<T> {
    start: NonNull<T>,
    count: usize,
}

impl<T> Region<T> {
    /// Allocates a region of `count` values.
    pub(super) fn new(count: usize) -> Self {
        let layout = Self::layout(count);
        // SAFETY: the layout is not empty: counts and types are constants of this crate, and none has the size 0.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start.cast()) {
            Some(start) => Self { start, count },
            None => handle_alloc_error(layout),
        }
    }

    fn layout(count: usize) -> Layout {
        let layout = Layout::array::<T>(count).and_then(|layout| layout.align_to(PAGE));
        layout.expect("the region is larger than the address space")
    }

    /// Returns the address of a value. Panics if `index` is out of range.
    pub(super) fn at(&self, index: usize) -> NonNull<T> {
        assert!(index < self.count, "value {index} of {}", self.count);
        // SAFETY: the index is below the count, so the result stays within the allocation.
        unsafe { self.start.add(index) }
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated in `new` with this layout, and is freed only here.
        unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.count)) };
    }
}

/// An entry of the buffer ring: `struct io_uring_buf`.
///
/// In the first entry the reserved field is the tail of the ring, which the kernel may read at any time.
#[repr(C)]
struct BufferEntry {
    address: u64,
    len: u32,
    buffer: u16,
    tail: u16,
}

const _: () = assert!(size_of::<BufferEntry>() == size_of::<BufRingEntry>());
const _: () = assert!(align_of::<BufferEntry>() == align_of::<BufRingEntry>());

/// Receive buffers, and the ring that provides the free ones to the kernel.
pub(super) struct Buffers {
    memory: Region<[u8; BUFFER_LEN]>,
    ring: Region<BufRingEntry>,
    tail: u16,
}

impl Buffers {
    /// Allocates buffers. Panics unless `count` is a power of two, which the kernel requires.
    pub(super) fn new(count: u16) -> Self {
        assert!(count.is_power_of_two());
        let count = usize::from(count);
        Self { memory: Region::new(count), ring: Region::new(count), tail: 0 }
    }

    /// Returns the number of buffers.
    pub(super) fn count(&self) -> u16 {
        self.ring.count as u16
    }

    /// Returns the bytes of memory of `count` buffers.
    pub(super) const fn bytes(count: u16) -> usize {
        count as usize * (BUFFER_LEN + size_of::<BufRingEntry>())
    }

    /// Returns the address of the buffer ring.
    pub(super) fn ring_address(&self) -> u64 {
        self.ring.start.as_ptr() as u64
    }

    /// Returns the address of a buffer. The kernel does not write to a filled one until it is provided again.
    pub(super) fn at(&self, buffer: u16) -> NonNull<[u8; BUFFER_LEN]> {
        self.memory.at(usize::from(buffer))
    }

    /// Provides a buffer to the kernel, which sees it after the next [`Self::publish`].
    pub(super) fn provide(&mut self, buffer: u16) {
        let place = usize::from(self.tail) & (self.ring.count - 1);
        let address = self.at(buffer).as_ptr() as u64;
        let entry = self.ring.at(place).cast::<BufferEntry>().as_ptr();
        // No reference to the entry is created: the first entry contains the tail, which the kernel may read at any
        // time. It reads the other fields only after the tail has moved past the entry.
        // SAFETY: the entry lies within the ring, so its fields do.
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

    /// Makes all provided buffers visible to the kernel.
    pub(super) fn publish(&self) {
        // SAFETY: the address is that of the ring's first entry, which is initialised.
        let tail = unsafe { BufRingEntry::tail(self.ring.start.as_ptr()) };
        // SAFETY: the tail is an aligned u16 within the memory of the ring; the kernel only reads it, and no other
        // reference to it exists.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
