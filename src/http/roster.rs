//! Who is connected, what each connection is doing, and since when.
//!
//! What is limited is limited by time in one state, so the connection that is the first to be ended is the one that
//! has been in its state for longest. Each state has a list in that order; nothing is searched for, however many
//! thousands an attacker holds open.

use slab::Slab;
use tsubame_storage::Seconds;

/// What a connection is doing
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Waits for the client's next request
    Idling,
    /// Has a part of a request, or none yet of the first
    Reading,
    /// Waits for the client to take what it asked for
    Writing,
    /// Being answered, or being ended: not limited
    Working,
}

const LISTS: usize = 3;

impl Doing {
    fn list(self) -> Option<usize> {
        match self {
            Self::Idling => Some(0),
            Self::Reading => Some(1),
            Self::Writing => Some(2),
            Self::Working => None,
        }
    }
}

/// How many seconds a connection may be in each state
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    pub(super) idling: u64,
    pub(super) reading: u64,
    pub(super) writing: u64,
}

/// All connections of a shard
#[derive(Debug)]
pub(super) struct Roster<T> {
    seats: Slab<Seat<T>>,
    lists: [List; LISTS],
    patience: [u64; LISTS],
}

#[derive(Debug)]
struct Seat<T> {
    connection: T,
    doing: Doing,
    since: Seconds,
    before: Option<usize>,
    after: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: Option<usize>,
    last: Option<usize>,
}

impl<T> Roster<T> {
    pub(super) fn new(patience: Patience) -> Self {
        let Patience { idling, reading, writing } = patience;
        let patience = [idling, reading, writing];
        Self { seats: Slab::new(), lists: [List::default(); LISTS], patience }
    }

    pub(super) fn set_patience(&mut self, Patience { idling, reading, writing }: Patience) {
        self.patience = [idling, reading, writing];
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    /// A connection has come; it is to send its first request
    pub(super) fn join(&mut self, connection: T, now: Seconds) -> usize {
        let seat =
            Seat { connection, doing: Doing::Working, since: now, before: None, after: None };
        let number = self.seats.insert(seat);
        self.turn_to(number, Doing::Reading, now);
        number
    }

    pub(super) fn leave(&mut self, number: usize) -> Option<T> {
        self.unlink(number);
        self.seats.try_remove(number).map(|seat| seat.connection)
    }

    /// A connection does something else now; one that goes on with the same has not begun anew
    pub(super) fn turn_to(&mut self, number: usize, doing: Doing, now: Seconds) {
        if self.seats.get(number).is_none_or(|seat| seat.doing == doing) {
            return;
        }
        self.unlink(number);
        let last = doing.list().and_then(|list| self.lists[list].last);
        let Some(seat) = self.seats.get_mut(number) else { return };
        (seat.doing, seat.since, seat.before) = (doing, now, last);
        let Some(list) = doing.list() else { return };
        self.lists[list].last = Some(number);
        match last.and_then(|last| self.seats.get_mut(last)) {
            Some(last) => last.after = Some(number),
            None => self.lists[list].first = Some(number),
        }
    }

    /// Takes a connection that has been in its state for too long out of its list; it is to be ended
    pub(super) fn next_due(&mut self, now: Seconds) -> Option<&T> {
        let due = |list: &usize| {
            let first = self.lists[*list].first.and_then(|first| self.seats.get(first));
            first.is_some_and(|seat| seat.since.0 + self.patience[*list] < now.0)
        };
        let list = (0..LISTS).find(due)?;
        self.take_first(list, now)
    }

    /// Takes the connection that can best be spared out of its list; it is to be ended
    ///
    /// The one that has been idle for longest; where nobody is idle, the one that has not sent its request for
    /// longest.
    pub(super) fn spare(&mut self, now: Seconds) -> Option<&T> {
        let list = (0..LISTS).find(|list| self.lists[*list].first.is_some())?;
        self.take_first(list, now)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Doing, &T)> {
        self.seats.iter().map(|(_, seat)| (seat.doing, &seat.connection))
    }

    fn take_first(&mut self, list: usize, now: Seconds) -> Option<&T> {
        let first = self.lists[list].first?;
        self.turn_to(first, Doing::Working, now);
        self.seats.get(first).map(|seat| &seat.connection)
    }

    fn unlink(&mut self, number: usize) {
        let Some(seat) = self.seats.get_mut(number) else { return };
        let (before, after) = (seat.before.take(), seat.after.take());
        let Some(list) = seat.doing.list() else { return };
        match before.and_then(|before| self.seats.get_mut(before)) {
            Some(before) => before.after = after,
            None => self.lists[list].first = after,
        }
        match after.and_then(|after| self.seats.get_mut(after)) {
            Some(after) => after.before = before,
            None => self.lists[list].last = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a list of who does what since when, in order
    #[test]
    fn the_first_to_end_is_who_has_been_at_it_for_longest() {
        const STATES: [Doing; 4] = [Doing::Idling, Doing::Reading, Doing::Writing, Doing::Working];
        let patience = Patience { idling: 30, reading: 10, writing: 20 };
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut roster = Roster::new(patience);
            let mut model: Vec<(usize, Doing, u64)> = Vec::new();
            for now in (0..400).map(|step| step / 2) {
                let time = Seconds(now);
                match rng.u8(..8) {
                    0 | 1 => {
                        let number = roster.join(now, time);
                        model.push((number, Doing::Reading, now));
                    }
                    2 if !model.is_empty() => {
                        let (number, ..) = model.swap_remove(rng.usize(..model.len()));
                        assert!(roster.leave(number).is_some(), "seed {seed}");
                    }
                    3 => {
                        let rank = |doing: Doing| doing.list();
                        let spared = model
                            .iter()
                            .filter(|(_, doing, _)| rank(*doing).is_some())
                            .min_by_key(|(_, doing, since)| (rank(*doing), *since))
                            .copied();
                        let found = roster.spare(time).is_some();
                        assert_eq!(found, spared.is_some(), "seed {seed}");
                        resolve(&mut model, &roster, now);
                    }
                    _ if !model.is_empty() => {
                        let at = rng.usize(..model.len());
                        let doing = STATES[rng.usize(..4)];
                        roster.turn_to(model[at].0, doing, time);
                        if model[at].1 != doing {
                            (model[at].1, model[at].2) = (doing, now);
                        }
                    }
                    _ => {}
                }
                while roster.next_due(time).is_some() {}
                for (_, doing, since) in &mut model {
                    let limit = match doing {
                        Doing::Idling => 30,
                        Doing::Reading => 10,
                        Doing::Writing => 20,
                        Doing::Working => continue,
                    };
                    if *since + limit < now {
                        (*doing, *since) = (Doing::Working, now);
                    }
                }
                assert_eq!(roster.len(), model.len());
                for (number, doing, _) in &model {
                    assert_eq!(roster.seats[*number].doing, *doing, "seed {seed} at {now}");
                }
            }
        }
    }

    /// Several may have been at it for equally long: the model follows whom the roster took, if it was one of them
    fn resolve(model: &mut [(usize, Doing, u64)], roster: &Roster<u64>, now: u64) {
        let taken =
            model.iter().position(|(number, doing, _)| roster.seats[*number].doing != *doing);
        let Some(at) = taken else { return };
        let (_, doing, since) = model[at];
        let better = |other: &(usize, Doing, u64)| {
            other.1.list().is_some_and(|list| (Some(list), other.2) < (doing.list(), since))
        };
        assert!(!model.iter().any(better), "another was to go first");
        (model[at].1, model[at].2) = (Doing::Working, now);
    }
}
