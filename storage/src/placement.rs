//! Entries, and the placement of their peers: inline, in a block, or in a large swarm.
//!
//! Peers are moved between placements as swarms grow and shrink. Every gap is filled with the last element, so that
//! memory is freed from the end of the arrays.

use crate::blocks::{BLOCK_PEERS_MAX, Blocks, Class};
use crate::chunks::Chunks;
use crate::entry::{Entry, Placement, fits_inline};
use crate::family_peers::{FamilyPeers, RecordStorage};
use crate::large_swarm::{LargeSwarm, LargeSwarms};
use crate::record::{EndpointHasher, RoleCounts, V4, V6, partial_seed};
use crate::sources::SourceCounts;
use crate::types::Family;
use crate::work_counter;
use siphasher::sip::SipHasher13;

/// Number of peers at which a large swarm is moved back to a block: well below [`BLOCK_PEERS_MAX`], so that a swarm
/// does not move back and forth.
const LARGE_SWARM_SHRINK_PEERS: usize = 48;

/// The entries of a table with the records of their peers.
#[derive(Debug)]
pub(crate) struct TorrentStore {
    /// Chunks of a megabyte: the allocator wastes little on them, and the list of them stays short.
    pub(crate) entries: Chunks<Entry, 16384>,
    peer_stores: PeerStores,
    /// Number of stored peers by source.
    pub(crate) sources: SourceCounts,
    /// Number of peers that have expired since the table was created.
    pub(crate) expired_peers: u64,
}

/// The records that are not inline.
#[derive(Debug)]
pub(crate) struct PeerStores {
    blocks: Blocks,
    large_v4: LargeSwarms<V4>,
    large_v6: LargeSwarms<V6>,
}

/// Relates the size of a record to its address family.
pub(crate) trait RecordWidth<const N: usize> {
    const FAMILY: Family;
    fn large_swarms(&mut self) -> &mut LargeSwarms<N>;
}

impl RecordWidth<V4> for PeerStores {
    const FAMILY: Family = Family::V4;
    fn large_swarms(&mut self) -> &mut LargeSwarms<V4> {
        &mut self.large_v4
    }
}

impl RecordWidth<V6> for PeerStores {
    const FAMILY: Family = Family::V6;
    fn large_swarms(&mut self) -> &mut LargeSwarms<V6> {
        &mut self.large_v6
    }
}

/// Copies of the records of at most one block, while they are moved between placements.
struct PeerBuffer<const N: usize> {
    records: [[u8; N]; BLOCK_PEERS_MAX],
    roles: RoleCounts,
    partial_seeds: u32,
}

impl<const N: usize> PeerBuffer<N> {
    fn copy_of(family_peers: &FamilyPeers<'_, N>) -> Self {
        let mut records = [[0; N]; BLOCK_PEERS_MAX];
        for (position, record) in records.iter_mut().take(family_peers.roles.len()).enumerate() {
            *record = *family_peers.at(position);
        }
        work_counter::count_records(family_peers.roles.len() * N);
        let partial_seeds = records[..family_peers.roles.len()].iter().map(partial_seed).sum();
        Self { records, roles: family_peers.roles, partial_seeds }
    }

    fn records(&self) -> &[[u8; N]] {
        &self.records[..self.roles.len()]
    }
}

impl TorrentStore {
    pub(crate) fn new(hasher: SipHasher13) -> Self {
        let (large_v4, large_v6) = (LargeSwarms::new(), LargeSwarms::new());
        let peer_stores = PeerStores { blocks: Blocks::new(), large_v4, large_v6 };
        Self {
            entries: Chunks::new(),
            peer_stores,
            sources: SourceCounts::new(hasher),
            expired_peers: 0,
        }
    }

    /// Returns the memory held by entries and records, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let peer_stores = &self.peer_stores;
        self.entries.bytes()
            + peer_stores.blocks.bytes()
            + peer_stores.large_v4.bytes()
            + peer_stores.large_v6.bytes()
    }

    pub(crate) fn entry(&self, position: u32) -> &Entry {
        self.entries.at(position as usize)
    }

    pub(crate) fn entry_mut(&mut self, position: u32) -> &mut Entry {
        self.entries.at_mut(position as usize)
    }

    /// Returns the peers of one family of a torrent.
    #[inline(always)] // Called twice for an announce: the calls are 2 % of its instructions.
    pub(crate) fn family_peers<const N: usize>(&mut self, position: u32) -> FamilyPeers<'_, N>
    where
        PeerStores: RecordWidth<N>,
    {
        let entry = self.entries.at_mut(position as usize);
        let family = <PeerStores as RecordWidth<N>>::FAMILY;
        let roles = entry.roles(family);
        let records = match entry.placement(family) {
            Placement::Inline => RecordStorage::Slice(entry.inline_records_mut()),
            Placement::None => RecordStorage::Slice(&mut []),
            Placement::Block(class, handle) => {
                RecordStorage::Slice(self.peer_stores.blocks.records_mut(class, handle))
            }
            Placement::LargeSwarm(handle) => {
                RecordStorage::LargeSwarm(self.peer_stores.large_swarms().at_mut(handle))
            }
        };
        FamilyPeers {
            records,
            roles,
            partial_seeds_change: 0,
            sources: &mut self.sources,
            expired: 0,
        }
    }

    /// Calls a function that may change the peers of one family, and updates the counts of the entry.
    pub(crate) fn change<const N: usize, T>(
        &mut self,
        position: u32,
        change: impl FnOnce(&mut FamilyPeers<'_, N>) -> T,
    ) -> T
    where
        PeerStores: RecordWidth<N>,
    {
        let family = <PeerStores as RecordWidth<N>>::FAMILY;
        let mut family_peers = self.family_peers::<N>(position);
        let bytes_before = large_swarm_bytes(&family_peers);
        let result = change(&mut family_peers);
        let (roles, partial_seeds_change) = (family_peers.roles, family_peers.partial_seeds_change);
        self.expired_peers += u64::from(family_peers.expired);
        let entry = self.entries.at_mut(position as usize);
        entry.set_roles(family, roles);
        if partial_seeds_change != 0 {
            let partial_seeds = entry.partial_seeds_of(family);
            entry.set_partial_seeds(
                family,
                partial_seeds.saturating_add_signed(partial_seeds_change),
            );
        }
        if let Placement::LargeSwarm(handle) = entry.placement(family) {
            self.peer_stores.large_swarms().update_bytes(bytes_before, handle);
        }
        result
    }

    /// Returns whether one more peer fits in the current placement.
    pub(crate) fn has_free_slot<const N: usize>(&mut self, position: u32) -> bool
    where
        PeerStores: RecordWidth<N>,
    {
        self.family_peers::<N>(position).has_free_slot()
    }

    /// Moves the peers of a family to a larger placement if theirs is full. Returns whether one more peer fits now.
    pub(crate) fn grow<const N: usize>(&mut self, position: u32, key: EndpointHasher<'_>) -> bool
    where
        PeerStores: RecordWidth<N>,
    {
        if self.has_free_slot::<N>(position) {
            return true;
        }
        if self.entry(position).is_inline() {
            self.promote_to_blocks(position, <PeerStores as RecordWidth<N>>::FAMILY);
            return true;
        }
        let family_peers = self.family_peers::<N>(position);
        if matches!(family_peers.records, RecordStorage::LargeSwarm(_)) {
            return false;
        }
        let buffer = PeerBuffer::copy_of(&family_peers);
        match Class::holding::<N>(buffer.roles.len() + 1) {
            Some(class) if buffer.roles.len() < BLOCK_PEERS_MAX => {
                self.free_placement::<N>(position);
                self.move_to_block(position, class, &buffer);
                true
            }
            _ => {
                let Some(swarm) = LargeSwarm::from_records(buffer.records(), key) else {
                    return false;
                };
                self.free_placement::<N>(position);
                self.move_to_large_swarm(position, swarm, &buffer);
                true
            }
        }
    }

    /// Moves the peers of a torrent to smaller placements if they fit.
    pub(crate) fn shrink_to_fit(&mut self, position: u32) {
        let entry = self.entry(position);
        if entry.is_inline() {
            return;
        }
        let (v4, v6) = (entry.roles(Family::V4).len(), entry.roles(Family::V6).len());
        if fits_inline(v4, v6) {
            self.demote_to_inline(position);
        } else {
            self.shrink_family::<V4>(position);
            self.shrink_family::<V6>(position);
        }
    }

    /// Removes an entry without peers. The last entry fills the gap; returns its previous position, or `None` if the
    /// removed entry was the last.
    pub(crate) fn remove(&mut self, position: u32) -> Option<u32> {
        debug_assert_eq!(self.entry(position).peers(), 0);
        self.free_placement::<V4>(position);
        self.free_placement::<V6>(position);
        let last = self.entries.pop()?;
        let from = self.entries.len() as u32;
        if from == position {
            return None;
        }
        for family in Family::ALL {
            match (last.placement(family), family) {
                (Placement::Inline | Placement::None, _) => {}
                (Placement::Block(class, handle), _) => {
                    self.peer_stores.blocks.set_owner(class, handle, position);
                }
                (Placement::LargeSwarm(handle), Family::V4) => {
                    self.peer_stores.large_v4.set_owner(handle, position);
                }
                (Placement::LargeSwarm(handle), Family::V6) => {
                    self.peer_stores.large_v6.set_owner(handle, position);
                }
            }
        }
        *self.entry_mut(position) = last;
        Some(from)
    }

    fn shrink_family<const N: usize>(&mut self, position: u32)
    where
        PeerStores: RecordWidth<N>,
    {
        let family = <PeerStores as RecordWidth<N>>::FAMILY;
        let entry = self.entry(position);
        let len = entry.roles(family).len();
        let target = match entry.placement(family) {
            Placement::Block(..) if len == 0 => {
                self.free_placement::<N>(position);
                return;
            }
            // A block whose peers would fit two classes lower moves down one class, and so keeps room to grow.
            Placement::Block(class, _) => {
                let fits_two_smaller =
                    class.smaller(2).is_some_and(|class| len <= class.capacity::<N>());
                class.smaller(1).filter(|_| fits_two_smaller)
            }
            Placement::LargeSwarm(_) if len <= LARGE_SWARM_SHRINK_PEERS => {
                Class::holding::<N>(len + 1)
            }
            _ => None,
        };
        if let Some(class) = target {
            let buffer = PeerBuffer::copy_of(&self.family_peers::<N>(position));
            self.free_placement::<N>(position);
            self.move_to_block(position, class, &buffer);
        }
    }

    /// Moves inline records to blocks, with room for one more peer of `growing`.
    fn promote_to_blocks(&mut self, position: u32, growing: Family) {
        let v4 = PeerBuffer::copy_of(&self.family_peers::<V4>(position));
        let v6 = PeerBuffer::copy_of(&self.family_peers::<V6>(position));
        self.entry_mut(position).set_shares_addresses(false);
        for family in Family::ALL {
            let entry = self.entry_mut(position);
            entry.set_placement(family, Placement::None);
            entry.set_roles(family, RoleCounts::default());
            entry.set_partial_seeds(family, 0);
        }
        self.move_to_fitting_block(position, &v4, growing);
        self.move_to_fitting_block(position, &v6, growing);
    }

    /// Moves the records of both families to the entry.
    fn demote_to_inline(&mut self, position: u32) {
        let v4 = PeerBuffer::copy_of(&self.family_peers::<V4>(position));
        let v6 = PeerBuffer::copy_of(&self.family_peers::<V6>(position));
        self.free_placement::<V4>(position);
        self.free_placement::<V6>(position);
        let entry = self.entry_mut(position);
        for family in Family::ALL {
            entry.set_placement(family, Placement::Inline);
        }
        entry.set_roles(Family::V4, v4.roles);
        entry.set_roles(Family::V6, v6.roles);
        entry.inline_records_mut()[..v4.roles.len()].copy_from_slice(v4.records());
        entry.inline_records_mut()[..v6.roles.len()].copy_from_slice(v6.records());
    }

    /// Frees the placement of a family. The entry then has [`Placement::None`], unless it is inline.
    fn free_placement<const N: usize>(&mut self, position: u32)
    where
        PeerStores: RecordWidth<N>,
    {
        let family = <PeerStores as RecordWidth<N>>::FAMILY;
        let entry = self.entry_mut(position);
        let placement = entry.placement(family);
        if !entry.is_inline() {
            entry.set_placement(family, Placement::None);
            entry.set_roles(family, RoleCounts::default());
            entry.set_partial_seeds(family, 0);
        }
        match placement {
            Placement::Inline | Placement::None => {}
            Placement::LargeSwarm(handle) => {
                if let Some(owner) = self.peer_stores.large_swarms().free(handle) {
                    self.entry_mut(owner).set_placement(family, Placement::LargeSwarm(handle));
                }
            }
            Placement::Block(class, handle) => {
                if let Some((owner, old)) = self.peer_stores.blocks.free(class, handle) {
                    self.update_handle(owner, class, old, handle);
                }
            }
        }
    }

    /// Updates the entry that owns a block that has moved.
    fn update_handle(&mut self, owner: u32, class: Class, old: u32, new: u32) {
        let entry = self.entry_mut(owner);
        for family in Family::ALL {
            if entry.placement(family) == Placement::Block(class, old) {
                entry.set_placement(family, Placement::Block(class, new));
            }
        }
    }

    fn move_to_fitting_block<const N: usize>(
        &mut self,
        position: u32,
        buffer: &PeerBuffer<N>,
        growing: Family,
    ) where
        PeerStores: RecordWidth<N>,
    {
        let more = usize::from(growing == <PeerStores as RecordWidth<N>>::FAMILY);
        let needed = buffer.roles.len() + more;
        if let Some(class) = Class::holding::<N>(needed).filter(|_| needed > 0) {
            self.move_to_block(position, class, buffer);
        }
    }

    fn move_to_block<const N: usize>(&mut self, position: u32, class: Class, buffer: &PeerBuffer<N>)
    where
        PeerStores: RecordWidth<N>,
    {
        let family = <PeerStores as RecordWidth<N>>::FAMILY;
        let handle = self.peer_stores.blocks.allocate(class, position);
        let records = self.peer_stores.blocks.records_mut(class, handle);
        records[..buffer.roles.len()].copy_from_slice(buffer.records());
        let entry = self.entry_mut(position);
        entry.set_placement(family, Placement::Block(class, handle));
        entry.set_roles(family, buffer.roles);
        entry.set_partial_seeds(family, buffer.partial_seeds);
    }

    fn move_to_large_swarm<const N: usize>(
        &mut self,
        position: u32,
        swarm: LargeSwarm<N>,
        buffer: &PeerBuffer<N>,
    ) where
        PeerStores: RecordWidth<N>,
    {
        let handle = self.peer_stores.large_swarms().add(swarm, position);
        let family = <PeerStores as RecordWidth<N>>::FAMILY;
        let entry = self.entry_mut(position);
        entry.set_placement(family, Placement::LargeSwarm(handle));
        entry.set_roles(family, buffer.roles);
        entry.set_partial_seeds(family, buffer.partial_seeds);
    }
}

/// Returns the memory of a large swarm, 0 for other placements.
fn large_swarm_bytes<const N: usize>(family_peers: &FamilyPeers<'_, N>) -> usize {
    match &family_peers.records {
        RecordStorage::Slice(_) => 0,
        RecordStorage::LargeSwarm(swarm) => swarm.bytes(),
    }
}
