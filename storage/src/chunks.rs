//! A growable array of chunks: growing moves no elements, and shrinking frees chunks.

/// Elements of the first chunk. Each further chunk doubles the capacity until chunks have the maximum size.
const FIRST: usize = 4;

/// An array whose chunks double in size up to `CHUNK` elements.
///
/// A `Vec` of a million records would copy all of them when it grows, and keep its capacity when it is emptied.
#[derive(Debug)]
pub(crate) struct Chunks<T, const CHUNK: usize> {
    chunks: Vec<Vec<T>>,
    len: usize,
}

impl<T, const CHUNK: usize> Chunks<T, CHUNK> {
    /// Number of chunks that hold the first `CHUNK` elements.
    const SMALL: usize = (CHUNK / FIRST).ilog2() as usize + 1;

    pub(crate) const fn new() -> Self {
        const { assert!(CHUNK.is_power_of_two() && CHUNK >= FIRST) };
        Self { chunks: Vec::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the memory held, used or not.
    pub(crate) fn bytes(&self) -> usize {
        let values = match self.chunks.len() {
            0 => 0,
            chunks if chunks <= Self::SMALL => FIRST << (chunks - 1),
            chunks => (chunks - Self::SMALL + 1) * CHUNK,
        };
        values * size_of::<T>() + self.chunks.capacity() * size_of::<Vec<T>>()
    }

    /// Returns the memory that the next push allocates; mostly 0.
    pub(crate) fn next_push_bytes(&self) -> usize {
        let (chunk, _) = Self::locate(self.len);
        if chunk == self.chunks.len() { self.next_capacity() * size_of::<T>() } else { 0 }
    }

    /// Returns the memory that is allocated and not used.
    pub(crate) fn unused_bytes(&self) -> usize {
        self.chunks.last().map_or(0, |last| (last.capacity() - last.len()) * size_of::<T>())
    }

    /// Returns the memory that the next chunk will take.
    pub(crate) fn next_chunk_bytes(&self) -> usize {
        self.next_capacity() * size_of::<T>()
    }

    pub(crate) fn at(&self, position: usize) -> &T {
        let (chunk, within) = Self::locate(position);
        &self.chunks[chunk][within]
    }

    /// Returns the elements from a position to the end of its chunk.
    pub(crate) fn run_from(&self, position: usize) -> &[T] {
        let (chunk, within) = Self::locate(position);
        &self.chunks[chunk][within..]
    }

    pub(crate) fn at_mut(&mut self, position: usize) -> &mut T {
        let (chunk, within) = Self::locate(position);
        &mut self.chunks[chunk][within]
    }

    pub(crate) fn push(&mut self, value: T) {
        let (chunk, within) = Self::locate(self.len);
        if chunk == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(self.next_capacity()));
        }
        debug_assert_eq!(within, self.chunks[chunk].len());
        self.chunks[chunk].push(value);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let last = self.chunks.last_mut()?;
        let value = last.pop();
        if last.is_empty() {
            self.chunks.pop();
        }
        if self.chunks.len() < self.chunks.capacity() / 4 {
            self.chunks.shrink_to(self.chunks.len() * 2);
        }
        self.len -= 1;
        value
    }

    /// Returns the capacity of the next chunk: that of all chunks so far, within bounds.
    fn next_capacity(&self) -> usize {
        FIRST << (self.chunks.len().clamp(1, Self::SMALL) - 1)
    }

    fn locate(position: usize) -> (usize, usize) {
        if position >= CHUNK {
            (Self::SMALL + position / CHUNK - 1, position % CHUNK)
        } else if position < FIRST {
            (0, position)
        } else {
            // The chunk that starts at the highest power of two in the position.
            let start = position.ilog2();
            (start as usize - FIRST.ilog2() as usize + 1, position - (1 << start))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_a_vec_and_gives_memory_back() {
        let mut chunks = Chunks::<u64, 16>::new();
        for value in 0..1000 {
            let before = chunks.chunks.iter().map(Vec::capacity).sum::<usize>() * 8;
            let next = chunks.next_push_bytes();
            chunks.push(value);
            let after = chunks.chunks.iter().map(Vec::capacity).sum::<usize>() * 8;
            assert_eq!(after - before, next);
            assert_eq!(chunks.len() as u64, value + 1);
            let capacity: usize = chunks.chunks.iter().map(Vec::capacity).sum();
            let list = chunks.chunks.capacity() * size_of::<Vec<u64>>();
            assert_eq!(chunks.bytes(), capacity * 8 + list);
            assert!(capacity <= (2 * chunks.len()).max(4) && capacity < chunks.len() + 17);
        }
        *chunks.at_mut(500) = 7;
        assert_eq!((*chunks.at(499), *chunks.at(500), *chunks.at(501)), (499, 7, 501));
        assert_eq!((*chunks.at(3), *chunks.at(4), *chunks.at(15), *chunks.at(16)), (3, 4, 15, 16));
        let full = chunks.bytes();
        for value in (1..1000).rev() {
            assert_eq!(chunks.pop(), Some(if value == 500 { 7 } else { value }));
        }
        assert!(chunks.bytes() * 20 < full, "{} of {full} bytes held", chunks.bytes());
        assert_eq!((chunks.pop(), chunks.pop(), chunks.len()), (Some(0), None, 0));
    }
}
