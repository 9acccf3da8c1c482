//! Announces: joining, refreshing and leaving a swarm, and selecting the peers of the reply.

use crate::announce::{AnnounceOutcome, JoinRefusal, SwarmAnnounce, SwarmChange};
use crate::blocks::BLOCK_PEERS_MAX;
use crate::family_peers::FamilyPeers;
use crate::peer_output::{PeerOutput, cut, v4_share};
use crate::placement::{PeerStores, RecordWidth};
use crate::record::{EndpointHasher, RecordContext, V4, V6, flags, record_of, scope_flags};
use crate::select::{PER_ADDRESS_MAX, Requester, Selection, SubnetRequest, select};
use crate::table::{Prefetch, Table};
use crate::types::{AnnounceEvent, Family, Role, Scope, SwarmCounts};

/// Maximum number of peers of one address in a large swarm that was created with a cap, once the cap is removed: its
/// index still hashes the address only, so every search passes all of them.
const UNCAPPED_ADDRESS_PEERS_MAX: u32 = 256;

/// What an announce did to the peers of its family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AppliedAnnounce {
    /// Position of the peer's record.
    own: Option<usize>,
    pub(crate) change: SwarmChange,
    previous: Option<Role>,
    /// Flags that the record had before it was refreshed; 0 if none was.
    previous_flags: u8,
}

impl Default for AppliedAnnounce {
    fn default() -> Self {
        Self { own: None, change: SwarmChange::Nothing, previous: None, previous_flags: 0 }
    }
}

impl Table {
    /// Applies an announce and selects peers. The caller has set the time ([`Table::set_time`]).
    pub(crate) fn announce(
        &mut self,
        prefetch: Prefetch,
        announce: &SwarmAnnounce,
        mut peers: PeerOutput<'_>,
    ) -> AnnounceOutcome {
        debug_assert_eq!(prefetch.hash, self.hash(&announce.info_hash));
        let known = self.find(&prefetch, &announce.info_hash);
        let joins = announce.event != AnnounceEvent::Stopped && announce.endpoint.is_listening();
        let position = match known {
            None if joins => match self.add_torrent(prefetch.hash, announce) {
                Ok(position) => position,
                Err(refusal) => {
                    let mut counts = SwarmCounts::default();
                    counts.include(announce.role);
                    let change = SwarmChange::Refused(refusal);
                    return AnnounceOutcome {
                        counts,
                        change,
                        ..AnnounceOutcome::unknown_torrent()
                    };
                }
            },
            None => return AnnounceOutcome::unknown_torrent(),
            Some(position) => position,
        };
        let scope = self.scope(announce.endpoint);
        let applied = match announce.endpoint.family() {
            Family::V4 => self.apply_announce::<V4>(position, announce, scope),
            Family::V6 => self.apply_announce::<V6>(position, announce, scope),
        };
        if applied.change == SwarmChange::Completed {
            self.store.entry_mut(position).add_completed();
        }
        let both_families = !peers.v4.is_empty() && !peers.v6.is_empty();
        if both_families {
            self.limit_v4_share(position, announce.role, &mut peers);
        }
        let own = |family| applied.own.filter(|_| announce.endpoint.family() == family);
        let (mut v4_len, mut v6_len) = (0, 0);
        if announce.event != AnnounceEvent::Stopped {
            let requester = Requester { role: announce.role, scope };
            let (own_v4, own_v6) = (own(Family::V4), own(Family::V6));
            v4_len = self.select_peers::<V4>(position, (announce, requester), own_v4, peers.v4);
            if both_families {
                // IPv6 peers also take the places for which there was no IPv4 peer that the requester can use.
                let rest = peers.peers_max - v4_len / Family::V4.compact_len();
                cut(&mut peers.v6, Family::V6, rest);
            }
            v6_len = self.select_peers::<V6>(position, (announce, requester), own_v6, peers.v6);
        }
        let mut counts = self.counts_at(position);
        if let SwarmChange::Refused(_) = applied.change {
            // A peer that is not stored is counted in its own reply anyway.
            counts.include(announce.role);
        }
        AnnounceOutcome {
            counts,
            v4_len,
            v6_len,
            change: applied.change,
            previous: applied.previous,
            previous_flags: applied.previous_flags,
        }
    }

    /// Applies an announce to the peers of its family.
    fn apply_announce<const N: usize>(
        &mut self,
        position: u32,
        announce: &SwarmAnnounce,
        scope: Scope,
    ) -> AppliedAnnounce
    where
        PeerStores: RecordWidth<N>,
    {
        let partial = match announce.role {
            Role::PartialSeed => flags::PARTIAL_SEED,
            Role::Seeder | Role::Leecher => 0,
        };
        let endpoint = announce.endpoint;
        let flags = scope_flags(scope) | partial | self.context.period_flags;
        let record = record_of::<N>(endpoint.address(), endpoint.port(), flags, self.context.tick);
        match record {
            Some(record) => self.apply_record(position, announce, record),
            None => AppliedAnnounce::default(),
        }
    }

    /// Applies an announce. `record` is the new record of the peer; if the event is `stopped`, only its endpoint is
    /// used.
    #[inline(always)] // The call is a part of every announce.
    pub(crate) fn apply_record<const N: usize>(
        &mut self,
        position: u32,
        announce: &SwarmAnnounce,
        record: [u8; N],
    ) -> AppliedAnnounce
    where
        PeerStores: RecordWidth<N>,
    {
        let context = &self.context;
        let before = self.store.entry(position).roles(<PeerStores as RecordWidth<N>>::FAMILY);
        let rng = &mut self.rng;
        let (same_address, stored) = self.store.change(position, |peers| {
            let found = peers.find(&record, context);
            let stored = found.position.map(|own| match announce.event {
                AnnounceEvent::Stopped => {
                    let previous = Some(peers.role(own));
                    peers.remove(own, context);
                    AppliedAnnounce {
                        change: SwarmChange::Stopped,
                        previous,
                        ..AppliedAnnounce::default()
                    }
                }
                _ => refresh(peers, own, record, announce, context, rng),
            });
            (found.same_address, stored)
        });
        let applied = match (stored, announce.event) {
            (Some(stopped), AnnounceEvent::Stopped) => {
                self.after_removal(position);
                stopped
            }
            (Some(refreshed), _) => refreshed,
            (None, AnnounceEvent::Stopped) => AppliedAnnounce::default(),
            (None, _) if !announce.endpoint.is_listening() => AppliedAnnounce::default(),
            (None, _) => self.join(position, record, announce, same_address),
        };
        let is_seeder = announce.role == Role::Seeder;
        let keeps_role = |previous| (previous == Role::Seeder) == is_seeder;
        if announce.event == AnnounceEvent::Stopped || !applied.previous.is_some_and(keeps_role) {
            self.count_change(before, position, <PeerStores as RecordWidth<N>>::FAMILY);
        }
        let lengths = self.prefix_lengths(<PeerStores as RecordWidth<N>>::FAMILY);
        if let Some(own) = applied.own
            && !lengths.is_empty()
            && !self.is_short_of_memory()
        {
            let (context, rng) = (&self.context, &mut self.rng);
            self.store.change(position, |peers| peers.index_subnets(own, lengths, context, rng));
        }
        applied
    }

    /// Adds a peer. `same_address` is the number of other peers of its address that the search passed.
    fn join<const N: usize>(
        &mut self,
        position: u32,
        record: [u8; N],
        announce: &SwarmAnnounce,
        same_address: u32,
    ) -> AppliedAnnounce
    where
        PeerStores: RecordWidth<N>,
    {
        let refused = |why| AppliedAnnounce {
            change: SwarmChange::Refused(why),
            ..AppliedAnnounce::default()
        };
        let (swarm_cap, address_cap) = (self.settings.caps.swarm, self.address_cap::<N>());
        let stored = self.store.entry(position).peers();
        if swarm_cap > 0 && stored >= swarm_cap as usize {
            return refused(JoinRefusal::SwarmCap);
        }
        let peers = self.store.family_peers::<N>(position);
        let (has_free_slot, finds_all_of_address) =
            (peers.has_free_slot(), peers.finds_all_of_address());
        let shares_address = match finds_all_of_address {
            true => same_address >= PER_ADDRESS_MAX,
            false => peers.seems_to_share_address(&record, &mut self.rng),
        };
        let address_cap = match address_cap {
            0 if finds_all_of_address && stored > BLOCK_PEERS_MAX => UNCAPPED_ADDRESS_PEERS_MAX,
            cap => cap,
        };
        if address_cap > 0 && finds_all_of_address && same_address >= address_cap {
            return refused(JoinRefusal::AddressCap);
        }
        if self.has_reached_source_limit(&record) {
            return refused(JoinRefusal::Source);
        }
        // Without a free slot, the swarm must grow. A large swarm may have one and still have to allocate a chunk or
        // index slots.
        if (!has_free_slot || stored >= BLOCK_PEERS_MAX)
            && (self.is_out_of_memory() || !self.grow::<N>(position))
        {
            return refused(JoinRefusal::Memory);
        }
        if shares_address && !self.store.entry(position).is_inline() {
            self.store.entry_mut(position).set_shares_addresses(true);
        }
        let (context, rng) = (&self.context, &mut self.rng);
        let is_seeder = announce.role == Role::Seeder;
        match self.store.change(position, |peers| peers.insert(is_seeder, record, context, rng)) {
            Some(own) => AppliedAnnounce {
                own: Some(own),
                change: SwarmChange::Joined,
                ..AppliedAnnounce::default()
            },
            None => refused(JoinRefusal::Memory),
        }
    }

    /// Allocates space for one more peer of a family in a swarm; returns whether that succeeded.
    fn grow<const N: usize>(&mut self, position: u32) -> bool
    where
        PeerStores: RecordWidth<N>,
    {
        let hashes_without_port = self.address_cap::<N>() > 0;
        self.store.grow::<N>(
            position,
            EndpointHasher { hasher: &self.context.hasher, hashes_without_port },
        )
    }

    /// Cuts the output for IPv4 peers to the share of IPv4 among the peers that the requester can use.
    #[inline(never)]
    fn limit_v4_share(&self, position: u32, role: Role, peers: &mut PeerOutput<'_>) {
        let usable = |family| {
            let roles = self.store.entry(position).roles(family);
            match role {
                Role::Leecher => roles.len(),
                Role::Seeder | Role::PartialSeed => roles.leechers as usize,
            }
        };
        let (v4, v6) = (usable(Family::V4), usable(Family::V6));
        cut(&mut peers.v4, Family::V4, v4_share(peers.peers_max, v4, v6));
    }

    /// Writes peers of one family to `out`; returns the number of bytes.
    fn select_peers<const N: usize>(
        &mut self,
        position: u32,
        (announce, requester): (&SwarmAnnounce, Requester),
        own: Option<usize>,
        out: &mut [u8],
    ) -> usize
    where
        PeerStores: RecordWidth<N>,
    {
        let entry = self.store.entry(position);
        let has_others =
            entry.roles(<PeerStores as RecordWidth<N>>::FAMILY).len() > usize::from(own.is_some());
        if out.is_empty() || !has_others {
            return 0;
        }
        let limit_addresses = entry.shares_addresses();
        let lengths = self.prefix_lengths(<PeerStores as RecordWidth<N>>::FAMILY);
        let (endpoint, at_random_percent) = (announce.endpoint, self.subnets.at_random_percent);
        let subnet = (!lengths.is_empty())
            .then(|| record_of::<N>(endpoint.address(), endpoint.port(), 0, 0))
            .flatten()
            .map(|record| SubnetRequest { record, lengths, at_random_percent });
        let peers = self.store.family_peers::<N>(position);
        let selection = Selection { requester, own, subnet: subnet.as_ref(), limit_addresses };
        select(&peers, &selection, &self.context, &mut self.rng, out)
    }
}

/// Updates the record of a peer that is stored.
fn refresh<const N: usize>(
    peers: &mut FamilyPeers<'_, N>,
    own: usize,
    mut record: [u8; N],
    announce: &SwarmAnnounce,
    context: &RecordContext,
    rng: &mut fastrand::Rng,
) -> AppliedAnnounce {
    let previous = peers.role(own);
    let is_seeder = announce.role == Role::Seeder;
    let previous_flags = peers.at(own)[N - 2];
    let counted = previous_flags & flags::COMPLETED;
    let completes = announce.event == AnnounceEvent::Completed
        && is_seeder
        && previous != Role::Seeder
        && counted == 0;
    record[N - 2] |= if completes { flags::COMPLETED } else { counted };
    let own = if peers.is_seeder(own) == is_seeder {
        peers.replace(own, record);
        Some(own)
    } else {
        peers.remove(own, context);
        peers.insert(is_seeder, record, context, rng)
    };
    let change = if completes { SwarmChange::Completed } else { SwarmChange::Refreshed };
    AppliedAnnounce { own, change, previous: Some(previous), previous_flags }
}
