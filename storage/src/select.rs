//! Which peers an announce is answered with: a uniform sample of those the requester can use.

use crate::part::{Part, Rules, compact, flags, scope_of};
use crate::words::{Role, Scope};

/// Records passed over for each one wanted before a search gives up: a swarm of peers that this requester
/// cannot use must not make its announces dear
const VISITS_PER_PEER: usize = 4;
const VISITS_MIN: usize = 64;

/// Who asks
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester {
    pub(crate) role: Role,
    pub(crate) scope: Scope,
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
/// A seeder, partial or not, gets leechers only. Nobody gets itself, at `own`.
pub(crate) fn select<const N: usize>(
    part: &Part<'_, N>,
    requester: Requester,
    own: Option<usize>,
    rules: &Rules,
    rng: &mut fastrand::Rng,
    out: &mut [u8],
) -> usize {
    let (seeders, end) = (part.roles.seeders as usize, part.roles.len());
    let wanted = out.len() / (N - 2);
    if wanted == 0 || end == 0 {
        return 0;
    }
    let own_is_seeder = own.is_some_and(|own| own < seeders);
    let others = |len: usize, is_own: bool| len - usize::from(is_own);
    let of_seeders = match requester.role {
        Role::Leecher => others(seeders, own_is_seeder),
        Role::Seeder | Role::PartialSeed => 0,
    };
    let of_leechers = others(end - seeders, own.is_some() && !own_is_seeder);
    let share = seeder_share(wanted, of_seeders, of_leechers, rng);
    let mut sink = Sink { out, written: 0, usable: requester.usable(), rules };
    if of_seeders > 0 {
        sink.take_run(part, 0..seeders, own, share, rng);
    }
    // Where seeders are of no use to the requester, leechers take their share.
    let rest = wanted - sink.written / (N - 2);
    if of_leechers > 0 {
        sink.take_run(part, seeders..end, own, rest, rng);
    }
    sink.written
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
}

impl Sink<'_> {
    /// Takes up to `wanted` peers from a run of records that starts anywhere and goes round
    ///
    /// Records lie in random order, so a run is a sample. One's own record is the fixed point the start is
    /// counted from: the one behind it would otherwise be first twice as often.
    fn take_run<const N: usize>(
        &mut self,
        part: &Part<'_, N>,
        range: std::ops::Range<usize>,
        own: Option<usize>,
        wanted: usize,
        rng: &mut fastrand::Rng,
    ) {
        let own = own.filter(|own| range.contains(own));
        let others = range.len() - usize::from(own.is_some());
        let visits = others.min((wanted * VISITS_PER_PEER).max(VISITS_MIN));
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
            let visited = self.offer(run, end);
            visits -= visited;
            position += visited;
        }
    }

    /// Takes what is useful of some records, until so many bytes are written; returns how many it looked at
    fn offer<const N: usize>(&mut self, records: &[[u8; N]], end: usize) -> usize {
        let mut visited = 0;
        for record in records {
            if self.written == end {
                break;
            }
            visited += 1;
            let useful = self.usable >> (record[N - 2] & LOW_HALF) & 1 == 1;
            let useful = useful && !self.rules.is_expired(record);
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
