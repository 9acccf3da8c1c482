//! Entries and the homes of their peers: inline, in a block, among the large swarms. Moves peers
//! between homes as swarms grow and shrink, and closes every hole.

use crate::blocks::{Blocks, Class};
use crate::chunks::Chunks;
use crate::effort;
use crate::entry::{Entry, Home, fits_inline};
use crate::many::{Many, ManyStore};
use crate::part::{EndpointKey, Part, Records, Roles, V4, V6, partial_seed};
use crate::sources::SourceCounts;
use crate::types::Family;
use siphasher::sip::SipHasher13;

/// Peers of one family a block holds, at most; more get an index
pub(crate) const BLOCK_PEERS_MAX: usize = 64;

/// A large swarm that shrinks this far goes back into a block: well below where it left one
const BLOCK_PEERS_AGAIN: usize = 48;

/// Where peers live
#[derive(Debug)]
pub(crate) struct Store {
    /// In chunks of a megabyte: the allocator wastes little on such, and the list of them stays short
    pub(crate) entries: Chunks<Entry, 16384>,
    homes: Homes,
    /// Stored peers by source
    pub(crate) sources: SourceCounts,
}

#[derive(Debug)]
pub(crate) struct Homes {
    blocks: Blocks,
    many_v4: ManyStore<V4>,
    many_v6: ManyStore<V6>,
}

/// Ties a record width to its address family
pub(crate) trait Width<const N: usize> {
    const FAMILY: Family;
    fn many(&mut self) -> &mut ManyStore<N>;
}

impl Width<V4> for Homes {
    const FAMILY: Family = Family::V4;
    fn many(&mut self) -> &mut ManyStore<V4> {
        &mut self.many_v4
    }
}

impl Width<V6> for Homes {
    const FAMILY: Family = Family::V6;
    fn many(&mut self) -> &mut ManyStore<V6> {
        &mut self.many_v6
    }
}

/// The records of a part that fits a block, on their way from one home to another
struct Luggage<const N: usize> {
    records: [[u8; N]; BLOCK_PEERS_MAX],
    roles: Roles,
    partial_seeds: u32,
}

impl<const N: usize> Luggage<N> {
    fn packed(part: &Part<'_, N>) -> Self {
        let mut records = [[0; N]; BLOCK_PEERS_MAX];
        for (position, record) in records.iter_mut().take(part.roles.len()).enumerate() {
            *record = *part.at(position);
        }
        effort::records(part.roles.len() * N);
        let partial_seeds = records[..part.roles.len()].iter().map(partial_seed).sum();
        Self { records, roles: part.roles, partial_seeds }
    }

    fn records(&self) -> &[[u8; N]] {
        &self.records[..self.roles.len()]
    }
}

impl Store {
    pub(crate) fn new(hasher: SipHasher13) -> Self {
        let (many_v4, many_v6) = (ManyStore::new(), ManyStore::new());
        let homes = Homes { blocks: Blocks::new(), many_v4, many_v6 };
        Self { entries: Chunks::new(), homes, sources: SourceCounts::new(hasher) }
    }

    /// Memory held
    pub(crate) fn bytes(&self) -> usize {
        let homes = &self.homes;
        self.entries.bytes() + homes.blocks.bytes() + homes.many_v4.bytes() + homes.many_v6.bytes()
    }

    pub(crate) fn entry(&self, position: u32) -> &Entry {
        self.entries.at(position as usize)
    }

    pub(crate) fn entry_mut(&mut self, position: u32) -> &mut Entry {
        self.entries.at_mut(position as usize)
    }

    /// A torrent's peers of one family
    pub(crate) fn part<const N: usize>(&mut self, position: u32) -> Part<'_, N>
    where
        Homes: Width<N>,
    {
        let entry = self.entries.at_mut(position as usize);
        let family = <Homes as Width<N>>::FAMILY;
        let roles = entry.roles(family);
        let records = match entry.home(family) {
            Home::Inline => Records::Few(entry.inline_mut()),
            Home::None => Records::Few(&mut []),
            Home::Block(class, handle) => {
                Records::Few(self.homes.blocks.records_mut(class, handle))
            }
            Home::Many(handle) => Records::Many(self.homes.many().at_mut(handle)),
        };
        Part { records, roles, more_partial_seeds: 0, sources: &mut self.sources }
    }

    /// Changes a torrent's peers of one family and writes down what became of their number
    pub(crate) fn change<const N: usize, T>(
        &mut self,
        position: u32,
        change: impl FnOnce(&mut Part<'_, N>) -> T,
    ) -> T
    where
        Homes: Width<N>,
    {
        let family = <Homes as Width<N>>::FAMILY;
        let mut part = self.part::<N>(position);
        let before = held(&part);
        let result = change(&mut part);
        let (roles, more) = (part.roles, part.more_partial_seeds);
        let entry = self.entry_mut(position);
        entry.set_roles(family, roles);
        if more != 0 {
            let partial_seeds = entry.partial_seeds_of(family);
            entry.set_partial_seeds(family, partial_seeds.saturating_add_signed(more));
        }
        if let Home::Many(handle) = self.entry(position).home(family) {
            self.homes.many().account(before, handle);
        }
        result
    }

    /// Whether one more peer has room where the others are
    pub(crate) fn has_room<const N: usize>(&mut self, position: u32) -> bool
    where
        Homes: Width<N>,
    {
        self.part::<N>(position).has_room()
    }

    /// Moves a torrent's peers of one family to where there is room for one more, unless there is
    ///
    /// False if no home is large enough.
    pub(crate) fn make_room<const N: usize>(&mut self, position: u32, key: EndpointKey) -> bool
    where
        Homes: Width<N>,
    {
        if self.has_room::<N>(position) {
            return true;
        }
        if self.entry(position).is_inline() {
            self.spread(position, <Homes as Width<N>>::FAMILY);
            return true;
        }
        let part = self.part::<N>(position);
        if matches!(part.records, Records::Many(_)) {
            return false;
        }
        let luggage = Luggage::packed(&part);
        match Class::holding::<N>(luggage.roles.len() + 1) {
            Some(class) if luggage.roles.len() < BLOCK_PEERS_MAX => {
                self.leave::<N>(position);
                self.enter_block(position, class, &luggage);
                true
            }
            _ => {
                let Some(many) = Many::holding(luggage.records(), key) else { return false };
                self.leave::<N>(position);
                self.enter_many(position, many, &luggage);
                true
            }
        }
    }

    /// Moves what has shrunk to a smaller home
    pub(crate) fn fit(&mut self, position: u32) {
        let entry = self.entry(position);
        if entry.is_inline() {
            return;
        }
        let (v4, v6) = (entry.roles(Family::V4).len(), entry.roles(Family::V6).len());
        if fits_inline(v4, v6) {
            self.gather(position);
        } else {
            self.fit_family::<V4>(position);
            self.fit_family::<V6>(position);
        }
    }

    /// Takes the entry out: the last fills its place. Returns the position that was moved from
    pub(crate) fn remove(&mut self, position: u32) -> Option<u32> {
        debug_assert_eq!(self.entry(position).peers(), 0);
        self.leave::<V4>(position);
        self.leave::<V6>(position);
        let last = self.entries.pop()?;
        let from = self.entries.len() as u32;
        if from == position {
            return None;
        }
        for family in Family::ALL {
            match (last.home(family), family) {
                (Home::Inline | Home::None, _) => {}
                (Home::Block(class, handle), _) => {
                    self.homes.blocks.set_owner(class, handle, position);
                }
                (Home::Many(handle), Family::V4) => {
                    self.homes.many_v4.set_owner(handle, position);
                }
                (Home::Many(handle), Family::V6) => {
                    self.homes.many_v6.set_owner(handle, position);
                }
            }
        }
        *self.entry_mut(position) = last;
        Some(from)
    }

    fn fit_family<const N: usize>(&mut self, position: u32)
    where
        Homes: Width<N>,
    {
        let family = <Homes as Width<N>>::FAMILY;
        let entry = self.entry(position);
        let len = entry.roles(family).len();
        let target = match entry.home(family) {
            Home::Block(..) if len == 0 => {
                self.leave::<N>(position);
                return;
            }
            // Two classes smaller would do: then one class smaller leaves room to grow again.
            Home::Block(class, _) => {
                let roomy = class.smaller(2).is_some_and(|class| len <= class.capacity::<N>());
                class.smaller(1).filter(|_| roomy)
            }
            Home::Many(_) if len <= BLOCK_PEERS_AGAIN => Class::holding::<N>(len + 1),
            _ => None,
        };
        if let Some(class) = target {
            let luggage = Luggage::packed(&self.part::<N>(position));
            self.leave::<N>(position);
            self.enter_block(position, class, &luggage);
        }
    }

    /// From inline to blocks, with room for one more peer of `growing`
    fn spread(&mut self, position: u32, growing: Family) {
        let v4 = Luggage::packed(&self.part::<V4>(position));
        let v6 = Luggage::packed(&self.part::<V6>(position));
        self.entry_mut(position).set_shares_addresses(false);
        for family in Family::ALL {
            let entry = self.entry_mut(position);
            entry.set_home(family, Home::None);
            entry.set_roles(family, Roles::default());
            entry.set_partial_seeds(family, 0);
        }
        self.enter_fitting_block(position, &v4, growing);
        self.enter_fitting_block(position, &v6, growing);
    }

    /// From blocks to inline
    fn gather(&mut self, position: u32) {
        let v4 = Luggage::packed(&self.part::<V4>(position));
        let v6 = Luggage::packed(&self.part::<V6>(position));
        self.leave::<V4>(position);
        self.leave::<V6>(position);
        let entry = self.entry_mut(position);
        for family in Family::ALL {
            entry.set_home(family, Home::Inline);
        }
        entry.set_roles(Family::V4, v4.roles);
        entry.set_roles(Family::V6, v6.roles);
        entry.inline_mut()[..v4.roles.len()].copy_from_slice(v4.records());
        entry.inline_mut()[..v6.roles.len()].copy_from_slice(v6.records());
    }

    /// Gives up a family's home; the entry then says that there is none
    fn leave<const N: usize>(&mut self, position: u32)
    where
        Homes: Width<N>,
    {
        let family = <Homes as Width<N>>::FAMILY;
        let entry = self.entry_mut(position);
        let home = entry.home(family);
        if !entry.is_inline() {
            entry.set_home(family, Home::None);
            entry.set_roles(family, Roles::default());
            entry.set_partial_seeds(family, 0);
        }
        match home {
            Home::Inline | Home::None => {}
            Home::Many(handle) => {
                if let Some(owner) = self.homes.many().free(handle) {
                    self.entry_mut(owner).set_home(family, Home::Many(handle));
                }
            }
            Home::Block(class, handle) => {
                if let Some((owner, old)) = self.homes.blocks.free(class, handle) {
                    self.follow(owner, class, old, handle);
                }
            }
        }
    }

    /// A block has moved: its owner must learn the new handle
    fn follow(&mut self, owner: u32, class: Class, old: u32, new: u32) {
        let entry = self.entry_mut(owner);
        for family in Family::ALL {
            if entry.home(family) == Home::Block(class, old) {
                entry.set_home(family, Home::Block(class, new));
            }
        }
    }

    fn enter_fitting_block<const N: usize>(
        &mut self,
        position: u32,
        luggage: &Luggage<N>,
        growing: Family,
    ) where
        Homes: Width<N>,
    {
        let more = usize::from(growing == <Homes as Width<N>>::FAMILY);
        let needed = luggage.roles.len() + more;
        if let Some(class) = Class::holding::<N>(needed).filter(|_| needed > 0) {
            self.enter_block(position, class, luggage);
        }
    }

    fn enter_block<const N: usize>(&mut self, position: u32, class: Class, luggage: &Luggage<N>)
    where
        Homes: Width<N>,
    {
        let family = <Homes as Width<N>>::FAMILY;
        let handle = self.homes.blocks.allocate(class, position);
        let records = self.homes.blocks.records_mut(class, handle);
        records[..luggage.roles.len()].copy_from_slice(luggage.records());
        let entry = self.entry_mut(position);
        entry.set_home(family, Home::Block(class, handle));
        entry.set_roles(family, luggage.roles);
        entry.set_partial_seeds(family, luggage.partial_seeds);
    }

    fn enter_many<const N: usize>(&mut self, position: u32, many: Many<N>, luggage: &Luggage<N>)
    where
        Homes: Width<N>,
    {
        let handle = self.homes.many().add(many, position);
        let family = <Homes as Width<N>>::FAMILY;
        let entry = self.entry_mut(position);
        entry.set_home(family, Home::Many(handle));
        entry.set_roles(family, luggage.roles);
        entry.set_partial_seeds(family, luggage.partial_seeds);
    }
}

fn held<const N: usize>(part: &Part<'_, N>) -> usize {
    match &part.records {
        Records::Few(_) => 0,
        Records::Many(many) => many.bytes(),
    }
}
