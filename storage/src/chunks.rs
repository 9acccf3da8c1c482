//! A growable array in chunks: growing never moves more than one chunk, shrinking gives chunks back.

use crate::effort;

/// An array whose first chunk grows by doubling and whose further chunks are allocated whole
///
/// A `Vec` of a million records copies them all when it grows, and keeps its size when emptied.
#[derive(Debug)]
pub(crate) struct Chunks<T, const CHUNK: usize> {
    chunks: Vec<Vec<T>>,
}

impl<T, const CHUNK: usize> Chunks<T, CHUNK> {
    pub(crate) const fn new() -> Self {
        const { assert!(CHUNK.is_power_of_two()) };
        Self { chunks: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        match self.chunks.last() {
            Some(last) => (self.chunks.len() - 1) * CHUNK + last.len(),
            None => 0,
        }
    }

    /// Memory held, used or not
    pub(crate) fn bytes(&self) -> usize {
        let first = self.chunks.first().map_or(0, Vec::capacity);
        let records = first + self.chunks.len().saturating_sub(1) * CHUNK;
        records * size_of::<T>() + self.chunks.capacity() * size_of::<Vec<T>>()
    }

    pub(crate) fn at(&self, position: usize) -> &T {
        &self.chunks[position / CHUNK][position % CHUNK]
    }

    pub(crate) fn at_mut(&mut self, position: usize) -> &mut T {
        &mut self.chunks[position / CHUNK][position % CHUNK]
    }

    pub(crate) fn push(&mut self, value: T) {
        let first = self.chunks.is_empty();
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK => {
                if last.len() == last.capacity() {
                    effort::records(size_of_val(last.as_slice()));
                    let grown = (last.len() * 2).clamp(4, CHUNK);
                    last.reserve_exact(grown - last.len());
                }
                last.push(value);
            }
            _ => {
                let mut chunk = Vec::with_capacity(if first { 4 } else { CHUNK });
                chunk.push(value);
                self.chunks.push(chunk);
            }
        }
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let value = self.chunks.last_mut()?.pop();
        if self.chunks.last().is_some_and(Vec::is_empty) {
            self.chunks.pop();
        }
        if let [only] = self.chunks.as_mut_slice()
            && only.len() < only.capacity() / 4
        {
            effort::records(size_of_val(only.as_slice()));
            only.shrink_to(only.len() * 2);
        }
        if self.chunks.len() < self.chunks.capacity() / 4 {
            self.chunks.shrink_to(self.chunks.len() * 2);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_a_vec_and_gives_memory_back() {
        let mut chunks = Chunks::<u64, 16>::new();
        for value in 0..1000 {
            chunks.push(value);
            assert_eq!(chunks.len() as u64, value + 1);
        }
        *chunks.at_mut(500) = 7;
        assert_eq!((*chunks.at(499), *chunks.at(500), *chunks.at(501)), (499, 7, 501));
        let full = chunks.bytes();
        for value in (1..1000).rev() {
            assert_eq!(chunks.pop(), Some(if value == 500 { 7 } else { value }));
        }
        assert!(chunks.bytes() * 20 < full, "{} of {full} bytes held", chunks.bytes());
        assert_eq!((chunks.pop(), chunks.pop(), chunks.len()), (Some(0), None, 0));
    }
}
