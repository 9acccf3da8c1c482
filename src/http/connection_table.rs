//! The connections of a shard, the state of each, and the time since when it is in that state.
//!
//! Timeouts limit the time in one state, so the connection that has been in its state for longest is ended first. Each
//! state has a list in that order: nothing is searched, however many connections an attacker opens.

use slab::Slab;
use tsubame_storage::Seconds;

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// Waits for the next request.
    Idle,
    /// Has received a part of a request, or nothing yet of the first one.
    Reading,
    /// Waits for the client to read a reply.
    Writing,
    /// A request is being answered, or the connection is being ended; without a timeout.
    Answering,
}

/// Number of states with a timeout.
const TIMED_STATES: usize = 3;

impl ConnectionState {
    /// Returns the number of the list of this state; `None` for a state without a timeout.
    fn queue(self) -> Option<usize> {
        match self {
            Self::Idle => Some(0),
            Self::Reading => Some(1),
            Self::Writing => Some(2),
            Self::Answering => None,
        }
    }
}

/// Timeouts of the states, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StateTimeouts {
    pub(super) idle: u64,
    pub(super) reading: u64,
    pub(super) writing: u64,
}

/// All connections of a shard.
#[derive(Debug)]
pub(super) struct ConnectionTable<T> {
    connections: Slab<ConnectionEntry<T>>,
    queues: [StateList; TIMED_STATES],
    timeouts: [u64; TIMED_STATES],
}

/// A connection with its position in the list of its state.
#[derive(Debug)]
struct ConnectionEntry<T> {
    connection: T,
    state: ConnectionState,
    since: Seconds,
    before: Option<usize>,
    after: Option<usize>,
}

/// A doubly linked list of the connections in one state, ordered by the time since when they are in it.
#[derive(Clone, Copy, Debug, Default)]
struct StateList {
    first: Option<usize>,
    last: Option<usize>,
}

impl<T> ConnectionTable<T> {
    pub(super) fn new(timeouts: StateTimeouts) -> Self {
        let StateTimeouts { idle, reading, writing } = timeouts;
        let timeouts = [idle, reading, writing];
        Self { connections: Slab::new(), queues: [StateList::default(); TIMED_STATES], timeouts }
    }

    pub(super) fn set_timeouts(&mut self, StateTimeouts { idle, reading, writing }: StateTimeouts) {
        self.timeouts = [idle, reading, writing];
    }

    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Adds a connection, which has not sent anything yet; returns its number.
    pub(super) fn insert(&mut self, connection: T, now: Seconds) -> usize {
        let entry = ConnectionEntry {
            connection,
            state: ConnectionState::Answering,
            since: now,
            before: None,
            after: None,
        };
        let number = self.connections.insert(entry);
        self.set_state(number, ConnectionState::Reading, now);
        number
    }

    /// Removes a connection.
    pub(super) fn remove(&mut self, number: usize) -> Option<T> {
        self.unlink(number);
        self.connections.try_remove(number).map(|entry| entry.connection)
    }

    /// Sets the state of a connection. Setting the current state again does not restart its timeout.
    pub(super) fn set_state(&mut self, number: usize, state: ConnectionState, now: Seconds) {
        if self.connections.get(number).is_none_or(|entry| entry.state == state) {
            return;
        }
        self.unlink(number);
        let last = state.queue().and_then(|queue| self.queues[queue].last);
        let Some(entry) = self.connections.get_mut(number) else { return };
        (entry.state, entry.since, entry.before) = (state, now, last);
        let Some(queue) = state.queue() else { return };
        self.queues[queue].last = Some(number);
        match last.and_then(|last| self.connections.get_mut(last)) {
            Some(last) => last.after = Some(number),
            None => self.queues[queue].first = Some(number),
        }
    }

    /// Removes a connection whose timeout has passed from its list and returns it; the caller ends it.
    pub(super) fn next_overdue(&mut self, now: Seconds) -> Option<&T> {
        let due = |queue: &usize| {
            let first = self.queues[*queue].first.and_then(|first| self.connections.get(first));
            first.is_some_and(|entry| entry.since.0 + self.timeouts[*queue] < now.0)
        };
        let queue = (0..TIMED_STATES).find(due)?;
        self.take_first(queue, now)
    }

    /// Removes the connection that must be ended for a new one from its list and returns it.
    ///
    /// This is the connection that has been idle for longest. If none is idle, it is the one that has been sending its
    /// request for longest, else the one that has been reading its reply for longest.
    pub(super) fn evict(&mut self, now: Seconds) -> Option<&T> {
        let queue = (0..TIMED_STATES).find(|queue| self.queues[*queue].first.is_some())?;
        self.take_first(queue, now)
    }

    /// Returns all connections with their states.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionState, &T)> {
        self.connections.iter().map(|(_, entry)| (entry.state, &entry.connection))
    }

    /// Removes the first connection of a list and returns it.
    fn take_first(&mut self, queue: usize, now: Seconds) -> Option<&T> {
        let first = self.queues[queue].first?;
        self.set_state(first, ConnectionState::Answering, now);
        self.connections.get(first).map(|entry| &entry.connection)
    }

    /// Removes a connection from the list of its state.
    fn unlink(&mut self, number: usize) {
        let Some(entry) = self.connections.get_mut(number) else { return };
        let (before, after) = (entry.before.take(), entry.after.take());
        let Some(queue) = entry.state.queue() else { return };
        match before.and_then(|before| self.connections.get_mut(before)) {
            Some(before) => before.after = after,
            None => self.queues[queue].first = after,
        }
        match after.and_then(|after| self.connections.get_mut(after)) {
            Some(after) => after.before = before,
            None => self.queues[queue].last = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the table with a plain list of connections, their states and times.
    #[test]
    fn the_connection_that_is_longest_in_its_state_ends_first() {
        const STATES: [ConnectionState; 4] = [
            ConnectionState::Idle,
            ConnectionState::Reading,
            ConnectionState::Writing,
            ConnectionState::Answering,
        ];
        let timeouts = StateTimeouts { idle: 30, reading: 10, writing: 20 };
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut connections = ConnectionTable::new(timeouts);
            let mut model: Vec<(usize, ConnectionState, u64)> = Vec::new();
            for now in (0..400).map(|step| step / 2) {
                let time = Seconds(now);
                match rng.u8(..8) {
                    0 | 1 => {
                        let number = connections.insert(now, time);
                        model.push((number, ConnectionState::Reading, now));
                    }
                    2 if !model.is_empty() => {
                        let (number, ..) = model.swap_remove(rng.usize(..model.len()));
                        assert!(connections.remove(number).is_some(), "seed {seed}");
                    }
                    3 => {
                        let rank = |state: ConnectionState| state.queue();
                        let expected = model
                            .iter()
                            .filter(|(_, state, _)| rank(*state).is_some())
                            .min_by_key(|(_, state, since)| (rank(*state), *since))
                            .copied();
                        let found = connections.evict(time).is_some();
                        assert_eq!(found, expected.is_some(), "seed {seed}");
                        resolve(&mut model, &connections, now);
                    }
                    _ if !model.is_empty() => {
                        let at = rng.usize(..model.len());
                        let state = STATES[rng.usize(..4)];
                        connections.set_state(model[at].0, state, time);
                        if model[at].1 != state {
                            (model[at].1, model[at].2) = (state, now);
                        }
                    }
                    _ => {}
                }
                while connections.next_overdue(time).is_some() {}
                for (_, state, since) in &mut model {
                    let limit = match state {
                        ConnectionState::Idle => 30,
                        ConnectionState::Reading => 10,
                        ConnectionState::Writing => 20,
                        ConnectionState::Answering => continue,
                    };
                    if *since + limit < now {
                        (*state, *since) = (ConnectionState::Answering, now);
                    }
                }
                assert_eq!(connections.len(), model.len());
                for (number, state, _) in &model {
                    assert_eq!(
                        connections.connections[*number].state, *state,
                        "seed {seed} at {now}"
                    );
                }
            }
        }
    }

    /// Applies an eviction to the model. Of several connections with the same time, the table may evict any one.
    fn resolve(
        model: &mut [(usize, ConnectionState, u64)],
        connections: &ConnectionTable<u64>,
        now: u64,
    ) {
        let taken = model
            .iter()
            .position(|(number, state, _)| connections.connections[*number].state != *state);
        let Some(at) = taken else { return };
        let (_, state, since) = model[at];
        let better = |other: &(usize, ConnectionState, u64)| {
            other.1.queue().is_some_and(|queue| (Some(queue), other.2) < (state.queue(), since))
        };
        assert!(!model.iter().any(better), "another connection should have been evicted first");
        (model[at].1, model[at].2) = (ConnectionState::Answering, now);
    }
}
