//! The rings between an AF_XDP socket and the kernel: arrays that wrap around, with a counter that their producer
//! writes and one that their consumer writes.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use super::mapping::Mapping;
use rustix::net::xdp::{XdpRingFlags, XdpRingOffset};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// A ring in memory that is shared with the kernel.
struct SharedRing<T> {
    _mapping: Mapping,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: Option<NonNull<AtomicU32>>,
    values: NonNull<T>,
    /// Number of values that fit; a power of two.
    len: u32,
}

// SAFETY: the pointers are to the mapping, which the ring owns; the counters are atomic, and the values are accessed
// by the side whose turn it is.
unsafe impl<T: Send> Send for SharedRing<T> {}

impl<T: Copy> SharedRing<T> {
    /// Maps a ring of `len` values, which must be a power of two.
    fn map(
        socket: BorrowedFd<'_>,
        len: u32,
        page_offset: u64,
        offset: &XdpRingOffset,
    ) -> io::Result<Self> {
        assert!(len.is_power_of_two());
        let bytes = offset.desc as usize + len as usize * size_of::<T>();
        let mapping = Mapping::of_socket(socket, bytes, page_offset)?;
        Ok(Self {
            producer: mapping.at(offset.producer as usize, 1),
            consumer: mapping.at(offset.consumer as usize, 1),
            flags: offset.flags.map(|flags| mapping.at(flags as usize, 1)),
            values: mapping.at(offset.desc as usize, len as usize),
            len,
            _mapping: mapping,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: the counter lies in the mapping, and is only accessed as an atomic.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    /// Returns whether the kernel works on the ring only after a system call.
    fn needs_wakeup(&self) -> bool {
        let Some(flags) = self.flags else { return true };
        // SAFETY: as above.
        let flags = unsafe { flags.as_ref() };
        // The kernel looks for values after it has set the flag; so the flag must be read after they were published.
        fence(Ordering::SeqCst);
        flags.load(Ordering::Relaxed) & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
    }

    /// Returns the address of the value with a number, which wraps around.
    fn value(&self, number: u32) -> NonNull<T> {
        // SAFETY: the index is below the number of values.
        unsafe { self.values.add((number & (self.len - 1)) as usize) }
    }
}

/// A ring from user space to the kernel.
pub(super) struct Producer<T> {
    ring: SharedRing<T>,
    /// Number of values that were pushed.
    pushed: u32,
    /// Number of values that the kernel had taken at the last look.
    taken: u32,
}

impl<T: Copy> Producer<T> {
    /// Maps an empty ring.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        len: u32,
        page_offset: u64,
        offset: &XdpRingOffset,
    ) -> io::Result<Self> {
        let ring = SharedRing::map(socket, len, page_offset, offset)?;
        Ok(Self { ring, pushed: 0, taken: 0 })
    }

    /// Returns the number of values that the kernel has not taken, also of those that are not published.
    pub(super) fn pending(&mut self) -> u32 {
        self.taken = self.ring.consumer().load(Ordering::Acquire);
        self.pushed.wrapping_sub(self.taken)
    }

    /// Adds a value, which the kernel sees after [`Self::publish`]; returns false if the ring is full.
    pub(super) fn push(&mut self, value: T) -> bool {
        if self.pushed.wrapping_sub(self.taken) == self.ring.len && self.pending() == self.ring.len
        {
            return false;
        }
        // SAFETY: the place is aligned, and the kernel does not read it before it is published.
        unsafe { self.ring.value(self.pushed).write(value) };
        self.pushed = self.pushed.wrapping_add(1);
        true
    }

    /// Makes all values visible to the kernel.
    pub(super) fn publish(&self) {
        self.ring.producer().store(self.pushed, Ordering::Release);
    }

    /// Returns whether the kernel takes values only after a system call.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// A ring from the kernel to user space.
pub(super) struct Consumer<T> {
    ring: SharedRing<T>,
    /// Number of values that were taken.
    taken: u32,
    /// Number of values that the kernel had pushed at the last look.
    pushed: u32,
}

impl<T: Copy> Consumer<T> {
    /// Maps an empty ring.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        len: u32,
        page_offset: u64,
        offset: &XdpRingOffset,
    ) -> io::Result<Self> {
        let ring = SharedRing::map(socket, len, page_offset, offset)?;
        Ok(Self { ring, taken: 0, pushed: 0 })
    }

    /// Looks for new values; returns the number of values that can be taken.
    pub(super) fn refresh(&mut self) -> u32 {
        self.pushed = self.ring.producer().load(Ordering::Acquire);
        self.pushed.wrapping_sub(self.taken)
    }

    /// Takes a value that the last [`Self::refresh`] has found.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.taken == self.pushed {
            return None;
        }
        // SAFETY: the kernel has written the value, and does not write to its place before it is released. Any bytes
        // are a valid value: the rings have integers and structures of integers.
        let value = unsafe { self.ring.value(self.taken).read() };
        self.taken = self.taken.wrapping_add(1);
        Some(value)
    }

    /// Releases the places of all values that were taken.
    pub(super) fn publish(&self) {
        self.ring.consumer().store(self.taken, Ordering::Release);
    }
}
