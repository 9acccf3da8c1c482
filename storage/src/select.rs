//! Selection of the peers for a reply: a uniform sample of those that the requester can use, after the peers of its
//! subnet if those are preferred.

use crate::family_peers::FamilyPeers;
use crate::record::{RecordContext, RoleCounts, V6, cap_prefix, compact, flags, scope_of};
use crate::subnet::{Prefix, PrefixLengths, fnv1a, prefix_of};
use crate::types::{Role, Scope};

/// Number of records that are visited for each wanted peer before a search gives up. Announces must stay cheap in a
/// swarm of peers that the requester cannot use.
const VISITS_PER_PEER: usize = 4;
/// Number of records that a search may visit even if few peers are wanted.
const VISITS_MIN: usize = 64;

/// As [`VISITS_PER_PEER`], where the number of peers of one address is limited.
const VISITS_PER_PEER_WITH_ADDRESS_LIMIT: usize = 16;

/// Maximum number of peers of one address (IPv6: of one /64) in a reply, unless there are not enough others.
pub(crate) const PER_ADDRESS_MAX: u32 = 4;

/// The client that the reply is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester {
    pub(crate) role: Role,
    pub(crate) scope: Scope,
}

/// What a reply should contain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection<'a, const N: usize> {
    pub(crate) requester: Requester,
    /// Position of the requester's own record, which is not returned.
    pub(crate) own: Option<usize>,
    /// Subnet whose peers come first.
    pub(crate) subnet: Option<&'a SubnetRequest<N>>,
    /// Whether at most [`PER_ADDRESS_MAX`] peers of an address are returned while there are others.
    pub(crate) limit_addresses: bool,
}

/// Subnets whose peers are preferred: those of the requester, by prefix length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubnetRequest<const N: usize> {
    /// A record with the endpoint of the requester.
    pub(crate) record: [u8; N],
    pub(crate) lengths: PrefixLengths,
    /// Percentage of the reply that is selected at random despite the preference.
    pub(crate) at_random_percent: u8,
}

impl Requester {
    /// Returns a table of 16 bits: bit `flags & USED_FLAGS` of a record says whether the requester can use the peer.
    fn usable(self) -> u16 {
        USABLE[usize::from(self.role == Role::Leecher)][self.scope as usize]
    }
}

/// The tables of [`Requester::usable`], by whether the requester is a leecher, and by its scope.
const USABLE: [[u16; Scope::ALL.len()]; 2] = [usable_by_scope(false), usable_by_scope(true)];

const fn usable_by_scope(is_leecher: bool) -> [u16; Scope::ALL.len()] {
    let mut tables = [0; Scope::ALL.len()];
    let mut scope = 0;
    while scope < Scope::ALL.len() {
        let mut flags = 0;
        while flags <= USED_FLAGS {
            let is_partial = flags & flags::PARTIAL_SEED != 0;
            let is_usable =
                scope_of(flags).reaches(Scope::ALL[scope]) && (is_leecher || !is_partial);
            tables[scope] |= (is_usable as u16) << flags;
            flags += 1;
        }
        scope += 1;
    }
    tables
}

/// The half of the flags byte that selection reads.
const USED_FLAGS: u8 = 0x0f;

const _: () = assert!(flags::PARTIAL_SEED | flags::COMPLETED | flags::SCOPE == USED_FLAGS);

/// Writes peers to `out` in compact form, as many as fit; returns the number of bytes.
///
/// A leecher gets seeders and leechers, each peer with the same probability. A seeder or partial seed gets leechers
/// only. No client gets itself. Subnet peers come first.
pub(crate) fn select<const N: usize>(
    peers: &FamilyPeers<'_, N>,
    wanted: &Selection<'_, N>,
    context: &RecordContext,
    rng: &mut fastrand::Rng,
    out: &mut [u8],
) -> usize {
    let Selection { requester, own, subnet, limit_addresses } = *wanted;
    if out.len() < N - 2 {
        return 0;
    }
    let usable = requester.usable();
    let mut writer = ReplyWriter {
        out,
        written: 0,
        usable,
        context,
        subnet_peers: None,
        address_limit: None,
        checks_whole_reply: false,
    };
    let role = requester.role;
    if subnet.is_none() && !limit_addresses {
        writer.take_sample::<N, false>(peers, role, own, RoleCounts::default(), rng);
        return writer.written;
    }
    // The address limit does not apply to subnet peers, which are selected because of their addresses.
    let selected = subnet.map_or(RoleCounts::default(), |subnet| {
        writer.take_subnet_peers(peers, subnet, role, own, rng)
    });
    writer.address_limit = limit_addresses.then(AddressLimit::new);
    writer.take_sample::<N, true>(peers, role, own, selected, rng);
    if let Some(address_limit) = writer.address_limit {
        for from in address_limit.skipped::<N>() {
            let (written, rest) = writer.out.split_at_mut(writer.written);
            let Some(to) = rest.get_mut(..N - 2) else { break };
            // A peer may have been skipped twice.
            if !written.chunks_exact(N - 2).any(|selected| selected == from) {
                to.copy_from_slice(from);
                writer.written += N - 2;
            }
        }
    }
    writer.written
}

/// Number of skipped peers that are remembered, in case there are not enough of other addresses.
const SKIPPED_MAX: usize = 128;

/// Counts the peers of each address in a reply.
///
/// Addresses whose hashes select the same counter share its limit, so a reply may have fewer of their peers than
/// permitted.
#[derive(Debug)]
struct AddressLimit {
    counts: [u8; 256],
    /// The skipped endpoints in compact form, concatenated. A record has two bytes more than its compact form.
    skipped: [u8; SKIPPED_MAX * (V6 - 2)],
    skipped_len: usize,
}

impl AddressLimit {
    fn new() -> Self {
        let skipped = [0; SKIPPED_MAX * (V6 - 2)];
        Self { counts: [0; 256], skipped, skipped_len: 0 }
    }

    /// Returns whether a peer may be written, and counts it. A peer whose address has enough already is kept in
    /// `skipped`.
    fn admit<const N: usize>(&mut self, record: &[u8; N]) -> bool {
        let mixed = fnv1a(cap_prefix(record));
        let count = &mut self.counts[(mixed ^ mixed >> 16) as usize % 256];
        if u32::from(*count) < PER_ADDRESS_MAX {
            *count += 1;
            return true;
        }
        let end = self.skipped_len + N - 2;
        if let Some(to) = self.skipped.get_mut(self.skipped_len..end) {
            to.copy_from_slice(compact(record));
            self.skipped_len = end;
        }
        false
    }

    fn skipped<const N: usize>(&self) -> impl Iterator<Item = &[u8]> {
        self.skipped[..self.skipped_len].chunks_exact(N - 2)
    }
}

/// Returns how many of the wanted peers are seeders, so that each peer has the same probability.
///
/// The exact share is rounded up or down at random.
fn seeder_share(wanted: usize, seeders: usize, leechers: usize, rng: &mut fastrand::Rng) -> usize {
    let all = seeders + leechers;
    if wanted >= all || seeders == 0 {
        return seeders.min(wanted);
    }
    let exact = wanted * seeders;
    let share = exact / all + usize::from(rng.usize(..all) < exact % all);
    share.min(seeders)
}

/// Writes peers to a reply.
struct ReplyWriter<'a> {
    out: &'a mut [u8],
    written: usize,
    usable: u16,
    context: &'a RecordContext,
    subnet_peers: Option<WrittenSubnetPeers>,
    address_limit: Option<AddressLimit>,
    /// Whether a record may be anywhere in the reply already, not only among the subnet peers.
    checks_whole_reply: bool,
}

/// Subnet peers that are in the reply already.
struct WrittenSubnetPeers {
    /// Number of their bytes in the reply.
    end: usize,
    /// Prefix that they share, and its length.
    prefix: Prefix,
    length: u8,
    /// A bit filter: an endpoint whose bit is not set is not among them.
    filter: [u64; FILTER_WORDS],
}

/// Words of the filter.
const FILTER_WORDS: usize = 16;

/// Returns the word and the bit of an endpoint in the filter.
fn filter_bit(endpoint: &[u8]) -> (usize, u64) {
    let mixed = fnv1a(endpoint);
    (mixed as usize / 64 % FILTER_WORDS, 1 << (mixed % 64))
}

impl WrittenSubnetPeers {
    fn contains<const N: usize>(&self, out: &[u8], record: &[u8; N]) -> bool {
        let (word, bit) = filter_bit(compact(record));
        self.filter[word] & bit != 0
            && self.prefix.shares(prefix_of(record), self.length)
            && out[..self.end].chunks_exact(N - 2).any(|selected| selected == compact(record))
    }
}

impl ReplyWriter<'_> {
    /// Writes a sample of all peers to the rest of the reply. With `CHECK`, peers that are in the reply already
    /// are left out, and the address limit applies if there is one.
    fn take_sample<const N: usize, const CHECK: bool>(
        &mut self,
        peers: &FamilyPeers<'_, N>,
        role: Role,
        own: Option<usize>,
        selected: RoleCounts,
        rng: &mut fastrand::Rng,
    ) {
        let (seeders, end) = (peers.roles.seeders as usize, peers.roles.len());
        let wanted = self.out.len() / (N - 2) - selected.len();
        let own_is_seeder = own.is_some_and(|own| own < seeders);
        let without_own = |len: usize, includes_own: bool| len - usize::from(includes_own);
        let available_seeders = match role {
            Role::Leecher => without_own(seeders, own_is_seeder) - selected.seeders as usize,
            Role::Seeder | Role::PartialSeed => 0,
        };
        let own_is_leecher = own.is_some() && !own_is_seeder;
        let available_leechers =
            without_own(end - seeders, own_is_leecher) - selected.leechers as usize;
        let share = seeder_share(wanted, available_seeders, available_leechers, rng);
        if available_seeders > 0 {
            self.take_run::<N, CHECK>(peers, 0..seeders, own, share, rng);
        }
        // Leechers also fill the places for which no usable seeder was found.
        let rest = (self.out.len() - self.written) / (N - 2);
        if available_leechers > 0 {
            self.take_run::<N, CHECK>(peers, seeders..end, own, rest, rng);
        }
        if CHECK && self.address_limit.is_some() && available_seeders > share {
            // If there are few addresses among the leechers, the reply has more seeders than their share.
            self.checks_whole_reply = true;
            let rest = (self.out.len() - self.written) / (N - 2);
            self.take_run::<N, CHECK>(peers, 0..seeders, own, rest, rng);
        }
    }

    /// Writes subnet peers, those with the longest common prefix first; returns how many of each role.
    #[inline(never)]
    fn take_subnet_peers<const N: usize>(
        &mut self,
        peers: &FamilyPeers<'_, N>,
        subnet: &SubnetRequest<N>,
        role: Role,
        own: Option<usize>,
        rng: &mut fastrand::Rng,
    ) -> RoleCounts {
        let mut roles = RoleCounts::default();
        let prefix = prefix_of(&subnet.record);
        let wanted = self.out.len() / (N - 2);
        let end = (wanted - wanted * usize::from(subnet.at_random_percent) / 100) * (N - 2);
        for (level, length) in subnet.lengths.iter().enumerate() {
            if self.written >= end {
                break;
            }
            let filter =
                self.subnet_peers.take().map_or([0; FILTER_WORDS], |selected| selected.filter);
            self.subnet_peers =
                Some(WrittenSubnetPeers { end: self.written, prefix, length, filter });
            let subnet_peers =
                peers.subnet_peers(subnet.lengths, level, &subnet.record, self.context, rng);
            let positions = subnet_peers.positions();
            let (before, from) = positions.split_at(rng.usize(..positions.len().max(1)));
            for position in from.iter().chain(before).map(|position| *position as usize) {
                if self.written >= end {
                    break;
                }
                let is_seeder = peers.is_seeder(position);
                if own == Some(position) || is_seeder && role != Role::Leecher {
                    continue;
                }
                let (record, before) = (peers.at(position), self.written);
                self.write_usable::<N, true>(std::slice::from_ref(record), end);
                if self.written == before {
                    continue;
                }
                *if is_seeder { &mut roles.seeders } else { &mut roles.leechers } += 1;
                if let Some(selected) = &mut self.subnet_peers {
                    let (word, bit) = filter_bit(compact(record));
                    selected.filter[word] |= bit;
                    selected.end = self.written;
                }
            }
        }
        roles
    }

    /// Writes up to `wanted` peers from a run of records with a random start, which wraps around.
    ///
    /// Records are in random order, so a run is a sample. The start is counted from the requester's own record:
    /// otherwise the record after it would be the first twice as often as others.
    fn take_run<const N: usize, const CHECK: bool>(
        &mut self,
        peers: &FamilyPeers<'_, N>,
        range: std::ops::Range<usize>,
        own: Option<usize>,
        wanted: usize,
        rng: &mut fastrand::Rng,
    ) {
        let own = own.filter(|own| range.contains(own));
        let others = range.len() - usize::from(own.is_some());
        let each = if self.address_limit.is_some() {
            VISITS_PER_PEER_WITH_ADDRESS_LIMIT
        } else {
            VISITS_PER_PEER
        };
        let visits = others.min((wanted * each).max(VISITS_MIN));
        let mut position = match own {
            Some(own) => own + 1 + rng.usize(..others),
            None => range.start + rng.usize(..others),
        };
        let (mut visits, end) = (visits, self.written + wanted * (N - 2));
        while visits > 0 && self.written < end {
            if position >= range.end {
                position -= range.len();
            }
            if own == Some(position) {
                position += 1;
                continue;
            }
            let stop = own.filter(|own| position < *own).unwrap_or(range.end);
            let run = peers.run_from(position);
            let run = &run[..run.len().min(stop - position).min(visits)];
            let visited = self.write_usable::<N, CHECK>(run, end);
            visits -= visited;
            position += visited;
        }
    }

    /// Returns whether a record may be written: it is not in the reply already, and its address is below its limit
    /// there. If so, counts the peer for its address.
    fn permit<const N: usize>(&mut self, record: &[u8; N]) -> bool {
        let written = &self.out[..self.written];
        let is_taken = match self.checks_whole_reply {
            true => written.chunks_exact(N - 2).any(|selected| selected == compact(record)),
            false => self
                .subnet_peers
                .as_ref()
                .is_some_and(|selected| selected.contains(self.out, record)),
        };
        !is_taken
            && self.address_limit.as_mut().is_none_or(|address_limit| address_limit.admit(record))
    }

    /// Writes the usable ones of some records while there is space for a whole record, which is longer than what a
    /// reply has of it. Returns how many were visited.
    fn write_whole<const N: usize>(&mut self, records: &[[u8; N]], end: usize) -> usize {
        let (usable, context) = (u32::from(self.usable), self.context.clone());
        let mut rest = &mut self.out[self.written..end];
        let (before, mut visited) = (rest.len(), 0);
        for record in records {
            let Some(to) = rest.first_chunk_mut::<N>() else { break };
            visited += 1;
            let is_usable = usable >> (record[N - 2] & USED_FLAGS) & 1;
            let is_useful = is_usable & u32::from(!context.is_expired(record));
            // The record is copied in any case and overwritten by the next one if it is not usable: no branch to
            // predict.
            to.copy_from_slice(record);
            rest = &mut rest[is_useful as usize * (N - 2)..];
        }
        self.written += before - rest.len();
        visited
    }

    /// Writes the usable ones of some records until the reply has `end` bytes; returns how many were visited.
    fn write_usable<const N: usize, const CHECK: bool>(
        &mut self,
        records: &[[u8; N]],
        end: usize,
    ) -> usize {
        let mut visited = if CHECK { 0 } else { self.write_whole(records, end) };
        for record in &records[visited..] {
            if self.written == end {
                break;
            }
            visited += 1;
            let useful = self.usable >> (record[N - 2] & USED_FLAGS) & 1 == 1;
            let useful = useful && !self.context.is_expired(record);
            let useful = useful && (!CHECK || self.permit(record));
            if useful {
                self.out[self.written..][..N - 2].copy_from_slice(compact(record));
                self.written += N - 2;
            }
        }
        visited
    }
}
