//! Blocks of a few sizes for the peers of middle-sized swarms, without holes.
//!
//! Blocks of a size lie dense: freeing one moves the last into its place and names the entry whose
//! handle must follow. So memory comes back to the last slab, whatever was freed in which order.

use crate::chunks::Chunks;
use crate::effort;

/// Payload bytes by class, in steps of a third to a half; the last holds 64 IPv6 records
const CLASS_BYTES: [usize; 11] = [48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280];

/// Bytes before the payload: the position of the owning entry
const OWNER_BYTES: usize = 4;

/// About 64 KiB, so that the last, partly used slabs of all classes stay below a megabyte
const SLAB_BYTES: usize = 64 << 10;

/// Names a size of blocks
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class(u8);

impl Class {
    pub(crate) const COUNT: usize = CLASS_BYTES.len();

    /// The smallest class that holds so many records of `N` bytes
    pub(crate) fn holding<const N: usize>(records: usize) -> Option<Self> {
        CLASS_BYTES.iter().position(|bytes| bytes / N >= records).map(|class| Self(class as u8))
    }

    pub(crate) fn capacity<const N: usize>(self) -> usize {
        CLASS_BYTES[usize::from(self.0)] / N
    }

    /// The class so many steps smaller
    pub(crate) fn smaller(self, steps: u8) -> Option<Self> {
        self.0.checked_sub(steps).map(Self)
    }

    pub(crate) fn index(self) -> u8 {
        self.0
    }

    pub(crate) fn from_index(index: u8) -> Option<Self> {
        (usize::from(index) < Self::COUNT).then_some(Self(index))
    }
}

/// All blocks of a table
#[derive(Debug)]
pub(crate) struct Blocks {
    pools: [Pool; Class::COUNT],
}

/// Blocks of one size; block `i` is the `i`th stretch of the slabs
#[derive(Debug)]
struct Pool {
    stride: usize,
    per_slab: usize,
    /// A slab is a list entry of its own; the list itself never moves more than a chunk of pointers.
    slabs: Chunks<Box<[u8]>, 1024>,
    len: u32,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self {
            pools: CLASS_BYTES.map(|payload| {
                let stride = OWNER_BYTES + payload;
                Pool { stride, per_slab: SLAB_BYTES / stride, slabs: Chunks::new(), len: 0 }
            }),
        }
    }

    /// Memory held
    pub(crate) fn bytes(&self) -> usize {
        let slab = |pool: &Pool| pool.slabs.len() * pool.stride * pool.per_slab;
        self.pools.iter().map(|pool| slab(pool) + pool.slabs.bytes()).sum()
    }

    /// A new block, its payload zero or stale
    pub(crate) fn allocate(&mut self, class: Class, owner: u32) -> u32 {
        let pool = &mut self.pools[usize::from(class.0)];
        let handle = pool.len;
        if handle as usize == pool.slabs.len() * pool.per_slab {
            pool.slabs.push(vec![0; pool.stride * pool.per_slab].into_boxed_slice());
        }
        pool.len += 1;
        pool.set_owner(handle, owner);
        handle
    }

    /// Frees a block; if that moved another one to its handle, the moved one's owner and old handle
    pub(crate) fn free(&mut self, class: Class, handle: u32) -> Option<(u32, u32)> {
        let pool = &mut self.pools[usize::from(class.0)];
        pool.len -= 1;
        let last = pool.len;
        let moved = (handle != last).then(|| {
            pool.move_block(last, handle);
            (pool.owner(handle), last)
        });
        if pool.len as usize <= (pool.slabs.len() - 1) * pool.per_slab {
            pool.slabs.pop();
        }
        moved
    }

    pub(crate) fn set_owner(&mut self, class: Class, handle: u32, owner: u32) {
        self.pools[usize::from(class.0)].set_owner(handle, owner);
    }

    /// The records of a block, used ones first
    pub(crate) fn records_mut<const N: usize>(
        &mut self,
        class: Class,
        handle: u32,
    ) -> &mut [[u8; N]] {
        let block = self.pools[usize::from(class.0)].block_mut(handle);
        block[OWNER_BYTES..].as_chunks_mut().0
    }
}

impl Pool {
    fn place(&self, handle: u32) -> (usize, usize) {
        debug_assert!(handle < self.len);
        let (slab, within) = (handle as usize / self.per_slab, handle as usize % self.per_slab);
        (slab, within * self.stride)
    }

    fn block(&self, handle: u32) -> &[u8] {
        let (slab, start) = self.place(handle);
        &self.slabs.at(slab)[start..start + self.stride]
    }

    fn block_mut(&mut self, handle: u32) -> &mut [u8] {
        let (slab, start) = self.place(handle);
        &mut self.slabs.at_mut(slab)[start..start + self.stride]
    }

    fn owner(&self, handle: u32) -> u32 {
        let owner = self.block(handle).first_chunk().copied().unwrap_or_default();
        u32::from_ne_bytes(owner)
    }

    fn set_owner(&mut self, handle: u32, owner: u32) {
        self.block_mut(handle)[..OWNER_BYTES].copy_from_slice(&owner.to_ne_bytes());
    }

    /// Copies the block just beyond the end, `last`, over the freed one
    fn move_block(&mut self, last: u32, freed: u32) {
        effort::records(self.stride);
        let mut copy = [0; OWNER_BYTES + CLASS_BYTES[Class::COUNT - 1]];
        let (slab, start) =
            (last as usize / self.per_slab, last as usize % self.per_slab * self.stride);
        let copy = &mut copy[..self.stride];
        copy.copy_from_slice(&self.slabs.at(slab)[start..start + self.stride]);
        self.block_mut(freed).copy_from_slice(copy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_places_are_filled_and_memory_comes_back() {
        let mut blocks = Blocks::new();
        let class = Class::holding::<8>(5).unwrap();
        assert_eq!(class.capacity::<8>(), 6);
        let mut handles: Vec<u32> = (0..5_000).map(|owner| blocks.allocate(class, owner)).collect();
        for (owner, handle) in handles.iter().enumerate() {
            blocks.records_mut::<8>(class, *handle)[5] = (owner as u64).to_ne_bytes();
        }
        let full = blocks.bytes();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut alive: Vec<u32> = (0..5_000).collect();
        while alive.len() > 10 {
            let owner = alive.swap_remove(rng.usize(..alive.len()));
            let freed = handles[owner as usize];
            if let Some((moved, old)) = blocks.free(class, freed) {
                assert_eq!(handles[moved as usize], old);
                handles[moved as usize] = freed;
            }
        }
        for owner in alive {
            let record = blocks.records_mut::<8>(class, handles[owner as usize])[5];
            assert_eq!(record, u64::from(owner).to_ne_bytes());
        }
        assert!(blocks.bytes() * 3 < full);
    }

    #[test]
    fn classes_cover_sixty_four_records_of_both_families() {
        assert_eq!(Class::holding::<8>(64).map(Class::capacity::<8>), Some(64));
        assert_eq!(Class::holding::<20>(64).map(Class::capacity::<20>), Some(64));
        assert_eq!(Class::holding::<20>(65), None);
        assert_eq!(Class::holding::<8>(1).and_then(|class| class.smaller(1)), None);
    }
}
