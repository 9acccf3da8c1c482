//! Blocks: arrays of a few sizes for the peers of medium swarms, without fragmentation.
//!
//! The blocks of a size are contiguous. Freeing one moves the last block of its size into the gap and returns the owner
//! of the moved block, whose handle has changed. So memory is always freed from the last slab.

use crate::chunks::Chunks;
use crate::work_counter;

/// Maximum number of peers of one family in a block. A swarm with more is a large swarm, which has an index.
pub(crate) const BLOCK_PEERS_MAX: usize = 64;

/// Payload bytes of each class, in steps of a quarter to a half; the last holds 64 IPv6 records.
const CLASS_BYTES: [usize; 11] = [48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280];

/// Bytes before the payload: the position of the owning entry.
const OWNER_BYTES: usize = 4;

/// Approximate bytes of a slab. The last slab of each class may be mostly unused: together less than a megabyte.
const SLAB_BYTES: usize = 64 << 10;

/// A size of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class(u8);

impl Class {
    pub(crate) const COUNT: usize = CLASS_BYTES.len();

    /// Returns the smallest class that holds a number of records of `N` bytes.
    pub(crate) fn holding<const N: usize>(records: usize) -> Option<Self> {
        CLASS_BYTES.iter().position(|bytes| bytes / N >= records).map(|class| Self(class as u8))
    }

    /// Returns the number of records of `N` bytes that a block holds.
    pub(crate) fn capacity<const N: usize>(self) -> usize {
        CLASS_BYTES[usize::from(self.0)] / N
    }

    /// Returns the class that is a number of steps smaller.
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

/// All blocks of a table.
#[derive(Debug)]
pub(crate) struct Blocks {
    pools: [Pool; Class::COUNT],
}

/// The blocks of one size.
#[derive(Debug)]
struct Pool {
    block_bytes: usize,
    blocks_per_slab: usize,
    /// A slab is one element; the list itself grows by chunks of pointers.
    slabs: Chunks<Box<[u8]>, 1024>,
    len: u32,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self {
            pools: CLASS_BYTES.map(|payload| {
                let block_bytes = OWNER_BYTES + payload;
                Pool {
                    block_bytes,
                    blocks_per_slab: SLAB_BYTES / block_bytes,
                    slabs: Chunks::new(),
                    len: 0,
                }
            }),
        }
    }

    /// Returns the memory held.
    pub(crate) fn bytes(&self) -> usize {
        let slab = |pool: &Pool| pool.slabs.len() * pool.block_bytes * pool.blocks_per_slab;
        self.pools.iter().map(|pool| slab(pool) + pool.slabs.bytes()).sum()
    }

    /// Allocates a block and returns its handle; its payload has unspecified bytes.
    pub(crate) fn allocate(&mut self, class: Class, owner: u32) -> u32 {
        let pool = &mut self.pools[usize::from(class.0)];
        let handle = pool.len;
        if handle as usize == pool.slabs.len() * pool.blocks_per_slab {
            pool.slabs.push(vec![0; pool.block_bytes * pool.blocks_per_slab].into_boxed_slice());
        }
        pool.len += 1;
        pool.set_owner(handle, owner);
        handle
    }

    /// Frees a block. If that moved another block to this handle, returns the owner and the old handle of the moved
    /// block.
    pub(crate) fn free(&mut self, class: Class, handle: u32) -> Option<(u32, u32)> {
        let pool = &mut self.pools[usize::from(class.0)];
        pool.len -= 1;
        let last = pool.len;
        let moved = (handle != last).then(|| {
            pool.move_last_to(last, handle);
            (pool.owner(handle), last)
        });
        if pool.len as usize <= (pool.slabs.len() - 1) * pool.blocks_per_slab {
            pool.slabs.pop();
        }
        moved
    }

    pub(crate) fn set_owner(&mut self, class: Class, handle: u32, owner: u32) {
        self.pools[usize::from(class.0)].set_owner(handle, owner);
    }

    /// Returns the records of a block, the used ones first.
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
    fn slab_and_offset(&self, handle: u32) -> (usize, usize) {
        debug_assert!(handle < self.len);
        let (slab, within) =
            (handle as usize / self.blocks_per_slab, handle as usize % self.blocks_per_slab);
        (slab, within * self.block_bytes)
    }

    fn block(&self, handle: u32) -> &[u8] {
        let (slab, start) = self.slab_and_offset(handle);
        &self.slabs.at(slab)[start..start + self.block_bytes]
    }

    fn block_mut(&mut self, handle: u32) -> &mut [u8] {
        let (slab, start) = self.slab_and_offset(handle);
        &mut self.slabs.at_mut(slab)[start..start + self.block_bytes]
    }

    fn owner(&self, handle: u32) -> u32 {
        let owner = self.block(handle).first_chunk().copied().unwrap_or_default();
        u32::from_ne_bytes(owner)
    }

    fn set_owner(&mut self, handle: u32, owner: u32) {
        self.block_mut(handle)[..OWNER_BYTES].copy_from_slice(&owner.to_ne_bytes());
    }

    /// Copies the block at `last`, which is just beyond the end, over a freed block.
    fn move_last_to(&mut self, last: u32, freed: u32) {
        work_counter::count_records(self.block_bytes);
        let mut copy = [0; OWNER_BYTES + CLASS_BYTES[Class::COUNT - 1]];
        let (slab, start) = (
            last as usize / self.blocks_per_slab,
            last as usize % self.blocks_per_slab * self.block_bytes,
        );
        let copy = &mut copy[..self.block_bytes];
        copy.copy_from_slice(&self.slabs.at(slab)[start..start + self.block_bytes]);
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
