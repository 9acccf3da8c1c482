//! Memory that is mapped for an AF_XDP socket.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};

/// Mapped memory; dropping it unmaps it. Kernel and user space may both access it.
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping has one owner, and the memory can be accessed from any thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps memory that is initially zero.
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: the kernel chooses the address, so no other memory is replaced.
        let start = unsafe { mmap_anonymous(null_mut(), len, access, flags) }?;
        Self::mapped(start.cast(), len)
    }

    /// Maps one of the rings of a socket.
    pub(super) fn of_socket(socket: BorrowedFd<'_>, len: usize, offset: u64) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: as above.
        let start = unsafe { mmap(null_mut(), len, access, flags, socket, offset) }?;
        Self::mapped(start.cast(), len)
    }

    fn mapped(start: *mut u8, len: usize) -> io::Result<Self> {
        // The kernel never maps memory at address 0 unless it is asked to.
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Returns the address of the memory.
    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Returns the address of `count` values at an offset in bytes. Panics if they are not within the mapping, or not
    /// aligned.
    pub(super) fn at<T>(&self, offset: usize, count: usize) -> NonNull<T> {
        let end = size_of::<T>().checked_mul(count).and_then(|bytes| bytes.checked_add(offset));
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{count} values at {offset} of {}",
            self.len
        );
        // SAFETY: the offset is within the mapping.
        let value = unsafe { self.start.add(offset) }.cast::<T>();
        assert!(value.is_aligned());
        value
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the memory was mapped with this length, and nothing refers to it: the owners of a mapping hand out no
        // reference that lives longer than they do. The kernel keeps pages that it uses.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
