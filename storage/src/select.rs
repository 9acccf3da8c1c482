//! Which peers an announce is answered with: a uniform sample of those the requester can use, after its neighbours if
//! those are preferred.

use crate::part::{Part, Roles, Rules, V6, cap_group, compact, flags, prefix_of, scope_of};
use crate::subnets::{Lengths, Prefix, mix};
use crate::types::{Role, Scope};

/// Records passed over for each one wanted before a search gives up: a swarm of peers that this requester
/// cannot use must not make its announces dear
const VISITS_PER_PEER: usize = 4;
const VISITS_MIN: usize = 64;

/// The same where peers share addresses, and others have to be looked for
const VISITS_PER_PEER_LIMITED: usize = 16;

/// Peers of one address in a reply, while there are others: of IPv6 of one /64
pub(crate) const PER_ADDRESS_MAX: u32 = 4;

/// Who asks
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester {
    pub(crate) role: Role,
    pub(crate) scope: Scope,
}

/// What a reply is to have
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a, const N: usize> {
    pub(crate) requester: Requester,
    /// Position of the requester's own record
    pub(crate) own: Option<usize>,
    /// Whose subnet peers come first
    pub(crate) near: Option<&'a Near<N>>,
    /// No more than [`PER_ADDRESS_MAX`] peers of an address, while there are others
    pub(crate) limited: bool,
}

/// Whose neighbours are handed out first
#[derive(Clone, Copy, Debug)]
pub(crate) struct Near<const N: usize> {
    pub(crate) record: [u8; N],
    pub(crate) lengths: Lengths,
    pub(crate) at_random_percent: u8,
}

impl Requester {
    /// Which combinations of a record's flags it can use, a bit for each value of their low half
    fn usable(self) -> u16 {
        let can_use = |record_flags: u8| {
            let partial = record_flags & flags::PARTIAL_SEED != 0;
            scope_of(record_flags).reaches(self.scope) && !(partial && self.role != Role::Leecher)
        };
        (0..=LOW_HALF).filter(|flags| can_use(*flags)).fold(0, |bits, flags| bits | 1 << flags)
    }
}

/// The half of the flags that selection looks at
const LOW_HALF: u8 = 0x0f;

const _: () = assert!(flags::PARTIAL_SEED | flags::COMPLETED | flags::SCOPE == LOW_HALF);

/// Copies peers of a part into `out` in compact form, as many as it has room for; returns the bytes
///
/// A leecher gets seeders and leechers as they are mixed in the swarm, every peer with the same chance.
/// A seeder, partial or not, gets leechers only. Nobody gets itself. Subnet peers come first.
pub(crate) fn select<const N: usize>(
    part: &Part<'_, N>,
    wanted: &Wanted<'_, N>,
    rules: &Rules,
    rng: &mut fastrand::Rng,
    out: &mut [u8],
) -> usize {
    if out.len() < N - 2 || part.roles.len() == 0 {
        return 0;
    }
    let Wanted { requester, own, near, limited } = *wanted;
    let usable = requester.usable();
    let mut sink =
        Sink { out, written: 0, usable, rules, taken: None, addresses: None, again: false };
    let role = requester.role;
    if near.is_none() && !limited {
        sink.take_any::<N, false>(part, role, own, Roles::default(), rng);
        return sink.written;
    }
    // Subnet peers are wanted for their addresses, and not limited.
    let taken = near.map_or(Roles::default(), |near| sink.take_near(part, near, role, own, rng));
    sink.addresses = limited.then(AddressLimit::new);
    sink.take_any::<N, true>(part, role, own, taken, rng);
    if let Some(addresses) = sink.addresses {
        for from in addresses.passed_over::<N>() {
            let (written, rest) = sink.out.split_at_mut(sink.written);
            let Some(to) = rest.get_mut(..N - 2) else { break };
            // It may have been passed over twice.
            if !written.chunks_exact(N - 2).any(|taken| taken == from) {
                to.copy_from_slice(from);
                sink.written += N - 2;
            }
        }
    }
    sink.written
}

/// Peers that are remembered in case that there are too few of other addresses
const PASSED_OVER_MAX: usize = 128;

/// Counts the peers of each address in a reply.
///
/// Addresses that share a counter are counted together: then there may be fewer of them than permitted.
#[derive(Debug)]
struct AddressLimit {
    counts: [u8; 256],
    /// Endpoints in compact form that were passed over, one after the other
    passed_over: [u8; PASSED_OVER_MAX * (V6 - 2)],
    passed_over_len: usize,
}

impl AddressLimit {
    fn new() -> Self {
        let passed_over = [0; PASSED_OVER_MAX * (V6 - 2)];
        Self { counts: [0; 256], passed_over, passed_over_len: 0 }
    }

    /// Counts a peer, unless there are enough of its address
    fn admits<const N: usize>(&mut self, record: &[u8; N]) -> bool {
        let mixed = mix(cap_group(record));
        let count = &mut self.counts[(mixed ^ mixed >> 16) as usize % 256];
        if u32::from(*count) < PER_ADDRESS_MAX {
            *count += 1;
            return true;
        }
        let end = self.passed_over_len + N - 2;
        if let Some(to) = self.passed_over.get_mut(self.passed_over_len..end) {
            to.copy_from_slice(compact(record));
            self.passed_over_len = end;
        }
        false
    }

    fn passed_over<const N: usize>(&self) -> impl Iterator<Item = &[u8]> {
        self.passed_over[..self.passed_over_len].chunks_exact(N - 2)
    }
}

/// How many of the wanted peers are seeders, so that every peer has the same chance
///
/// The exact share is rounded up or down by lot.
fn seeder_share(wanted: usize, seeders: usize, leechers: usize, rng: &mut fastrand::Rng) -> usize {
    let all = seeders + leechers;
    if wanted >= all || seeders == 0 {
        return seeders.min(wanted);
    }
    let exact = wanted * seeders;
    let share = exact / all + usize::from(rng.usize(..all) < exact % all);
    share.min(seeders)
}

struct Sink<'a> {
    out: &'a mut [u8],
    written: usize,
    usable: u16,
    rules: &'a Rules,
    taken: Option<Taken>,
    addresses: Option<AddressLimit>,
    /// Whether records are looked at that may be in the reply already
    again: bool,
}

/// Neighbours that were taken already
struct Taken {
    /// Where they end
    end: usize,
    /// What they have in common
    prefix: Prefix,
    length: u8,
    /// A bit for each, which some share: without one's bit it was not taken
    marks: [u64; MARKS],
}

const MARKS: usize = 16;

/// The mark of an endpoint: a word and its bit
fn mark(endpoint: &[u8]) -> (usize, u64) {
    let mixed = mix(endpoint);
    (mixed as usize / 64 % MARKS, 1 << (mixed % 64))
}

impl Taken {
    fn has<const N: usize>(&self, out: &[u8], record: &[u8; N]) -> bool {
        let (word, bit) = mark(compact(record));
        self.marks[word] & bit != 0
            && self.prefix.shares(prefix_of(record), self.length)
            && out[..self.end].chunks_exact(N - 2).any(|taken| taken == compact(record))
    }
}

impl Sink<'_> {
    /// Takes any peers into the rest of the reply; with `CHECKED` no subnet peer again, and no more of an address than
    /// permitted
    fn take_any<const N: usize, const CHECKED: bool>(
        &mut self,
        part: &Part<'_, N>,
        role: Role,
        own: Option<usize>,
        taken: Roles,
        rng: &mut fastrand::Rng,
    ) {
        let (seeders, end) = (part.roles.seeders as usize, part.roles.len());
        let wanted = self.out.len() / (N - 2) - taken.len();
        let own_is_seeder = own.is_some_and(|own| own < seeders);
        let others = |len: usize, is_own: bool| len - usize::from(is_own);
        let of_seeders = match role {
            Role::Leecher => others(seeders, own_is_seeder) - taken.seeders as usize,
            Role::Seeder | Role::PartialSeed => 0,
        };
        let own_leeches = own.is_some() && !own_is_seeder;
        let of_leechers = others(end - seeders, own_leeches) - taken.leechers as usize;
        let share = seeder_share(wanted, of_seeders, of_leechers, rng);
        if of_seeders > 0 {
            self.take_run::<N, CHECKED>(part, 0..seeders, own, share, rng);
        }
        // Where seeders are of no use to the requester, leechers take their share.
        let rest = (self.out.len() - self.written) / (N - 2);
        if of_leechers > 0 {
            self.take_run::<N, CHECKED>(part, seeders..end, own, rest, rng);
        }
        if CHECKED && self.addresses.is_some() && of_seeders > share {
            // Leechers may share few addresses: then seeders get more than their share.
            self.again = true;
            let rest = (self.out.len() - self.written) / (N - 2);
            self.take_run::<N, CHECKED>(part, 0..seeders, own, rest, rng);
        }
    }

    /// Takes neighbours, the nearest first and of those any; returns how many of either role
    #[inline(never)]
    fn take_near<const N: usize>(
        &mut self,
        part: &Part<'_, N>,
        near: &Near<N>,
        role: Role,
        own: Option<usize>,
        rng: &mut fastrand::Rng,
    ) -> Roles {
        let mut roles = Roles::default();
        let prefix = prefix_of(&near.record);
        let wanted = self.out.len() / (N - 2);
        let end = (wanted - wanted * usize::from(near.at_random_percent) / 100) * (N - 2);
        for (level, length) in near.lengths.iter().enumerate() {
            if self.written >= end {
                break;
            }
            let marks = self.taken.take().map_or([0; MARKS], |taken| taken.marks);
            self.taken = Some(Taken { end: self.written, prefix, length, marks });
            let group = part.group(near.lengths, level, &near.record, self.rules, rng);
            let positions = group.positions();
            let (before, from) = positions.split_at(rng.usize(..positions.len().max(1)));
            for position in from.iter().chain(before).map(|position| *position as usize) {
                if self.written >= end {
                    break;
                }
                let is_seeder = part.is_seeder(position);
                if own == Some(position) || is_seeder && role != Role::Leecher {
                    continue;
                }
                let (record, before) = (part.at(position), self.written);
                self.offer::<N, true>(std::slice::from_ref(record), end);
                if self.written == before {
                    continue;
                }
                *if is_seeder { &mut roles.seeders } else { &mut roles.leechers } += 1;
                if let Some(taken) = &mut self.taken {
                    let (word, bit) = mark(compact(record));
                    taken.marks[word] |= bit;
                    taken.end = self.written;
                }
            }
        }
        roles
    }

    /// Takes up to `wanted` peers from a run of records that starts anywhere and goes round
    ///
    /// Records lie in random order, so a run is a sample. One's own record is the fixed point the start is
    /// counted from: the one behind it would otherwise be first twice as often.
    fn take_run<const N: usize, const CHECKED: bool>(
        &mut self,
        part: &Part<'_, N>,
        range: std::ops::Range<usize>,
        own: Option<usize>,
        wanted: usize,
        rng: &mut fastrand::Rng,
    ) {
        let own = own.filter(|own| range.contains(own));
        let others = range.len() - usize::from(own.is_some());
        let each = if self.addresses.is_some() { VISITS_PER_PEER_LIMITED } else { VISITS_PER_PEER };
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
            let run = part.run_from(position);
            let run = &run[..run.len().min(stop - position).min(visits)];
            let visited = self.offer::<N, CHECKED>(run, end);
            visits -= visited;
            position += visited;
        }
    }

    /// Whether a record is neither in the reply already nor of an address that has enough in it
    fn is_permitted<const N: usize>(&mut self, record: &[u8; N]) -> bool {
        let written = &self.out[..self.written];
        let is_taken = match self.again {
            true => written.chunks_exact(N - 2).any(|taken| taken == compact(record)),
            false => self.taken.as_ref().is_some_and(|taken| taken.has(self.out, record)),
        };
        !is_taken && self.addresses.as_mut().is_none_or(|addresses| addresses.admits(record))
    }

    /// Takes what is useful of some records, until so many bytes are written; returns how many it looked at
    fn offer<const N: usize, const CHECKED: bool>(
        &mut self,
        records: &[[u8; N]],
        end: usize,
    ) -> usize {
        let mut visited = 0;
        for record in records {
            if self.written == end {
                break;
            }
            visited += 1;
            let useful = self.usable >> (record[N - 2] & LOW_HALF) & 1 == 1;
            let useful = useful && !self.rules.is_expired(record);
            let useful = useful && (!CHECKED || self.is_permitted(record));
            // The whole record, of which the next one overwrites what is too much: no branch to predict.
            match self.out[self.written..].first_chunk_mut::<N>() {
                Some(to) => *to = *record,
                None => self.out[self.written..][..N - 2].copy_from_slice(compact(record)),
            }
            self.written += if useful { N - 2 } else { 0 };
        }
        visited
    }
}
