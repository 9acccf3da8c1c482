//! Requests on their way: a ring in the order they left, so that what is overdue stands in front.

/// Slots; at a million requests a second one is used again after a second
const SLOTS: usize = 1 << 20;

/// Transaction ids from here on belong to requests that deserve no answer
pub(crate) const UNPROVEN: u32 = 1 << 31;

/// Those with this bit belong to connects of a flood, whose answers nobody waits for
pub(crate) const FLOOD: u32 = 1 << 30;

/// What was waited for
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arrival {
    /// This request, the so-manieth to leave
    Expected(Request, u64),
    /// A request that was answered or given up already
    Late,
    /// No request at all
    Unknown,
}

/// What was asked
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A connection id
    #[default]
    Connect,
    /// Peers; the subject is the announcing peer
    Announce {
        /// Whether the peer said goodbye
        stopped: bool,
    },
    /// Counts; the subject is the first torrent
    Scrape,
}

/// A request on its way
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    /// Of which family the client is
    pub(crate) group: u8,
    /// Peers wanted, or rows
    pub(crate) wanted: u16,
    /// The client's address, by number
    pub(crate) source: u32,
    pub(crate) subject: u32,
    /// When it was due: that is what its answer is measured against
    pub(crate) due_ns: u64,
    /// When it left
    pub(crate) sent_ns: u64,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    request: Request,
    waiting: bool,
}

/// All requests on their way
pub(crate) struct Flight {
    slots: Box<[Slot]>,
    oldest: u64,
    next: u64,
    waiting: usize,
}

impl Flight {
    pub(crate) fn new() -> Self {
        Self { slots: vec![Slot::default(); SLOTS].into(), oldest: 0, next: 0, waiting: 0 }
    }

    /// How many wait for an answer
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many have left so far: a clock for what came before what
    pub(crate) fn departed(&self) -> u64 {
        self.next
    }

    /// Enters a request; returns its transaction id, and what was given up for it
    pub(crate) fn depart(&mut self, request: Request) -> (u32, Option<Request>) {
        let given_up = match self.next - self.oldest == SLOTS as u64 {
            true => self.pop_oldest(),
            false => None,
        };
        let transaction = self.next as u32 & (FLOOD - 1);
        self.slots[self.next as usize % SLOTS] = Slot { request, waiting: true };
        self.next += 1;
        self.waiting += 1;
        (transaction, given_up)
    }

    /// Takes out the request with this transaction id
    pub(crate) fn arrive(&mut self, transaction: u32) -> Arrival {
        // The latest number with these low bits.
        let behind = (self.next as u32).wrapping_sub(transaction) & (FLOOD - 1);
        let number = match self.next.checked_sub(behind.into()) {
            Some(number) if number < self.next => number,
            _ => return Arrival::Unknown,
        };
        let slot = &mut self.slots[number as usize % SLOTS];
        if number < self.oldest || !slot.waiting {
            return Arrival::Late;
        }
        slot.waiting = false;
        self.waiting -= 1;
        Arrival::Expected(slot.request, number)
    }

    /// Takes out the oldest request if it left before this time
    pub(crate) fn expire(&mut self, before_ns: u64) -> Option<Request> {
        while self.oldest < self.next {
            let slot = &self.slots[self.oldest as usize % SLOTS];
            if slot.waiting && slot.request.sent_ns >= before_ns {
                return None;
            }
            if let Some(request) = self.pop_oldest() {
                return Some(request);
            }
        }
        None
    }

    fn pop_oldest(&mut self) -> Option<Request> {
        let slot = &mut self.slots[self.oldest as usize % SLOTS];
        self.oldest += 1;
        let waiting = std::mem::take(&mut slot.waiting);
        self.waiting -= usize::from(waiting);
        waiting.then_some(slot.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sent_ns: u64) -> Request {
        Request { sent_ns, ..Request::default() }
    }

    #[test]
    fn answered_once_or_given_up_once() {
        let mut flight = Flight::new();
        let transactions: Vec<u32> = (0..4).map(|time| flight.depart(at(time)).0).collect();
        let first = flight.arrive(transactions[1]);
        assert!(matches!(first, Arrival::Expected(Request { sent_ns: 1, .. }, 1)), "{first:?}");
        assert!(matches!(flight.arrive(transactions[1]), Arrival::Late), "twice");
        assert!(matches!(flight.arrive(77), Arrival::Unknown), "never sent");
        assert_eq!(flight.expire(3).unwrap().sent_ns, 0);
        assert_eq!(flight.expire(3).unwrap().sent_ns, 2);
        assert!(flight.expire(3).is_none());
        assert!(matches!(flight.arrive(transactions[0]), Arrival::Late), "too late");
        assert_eq!(flight.waiting(), 1);
    }

    #[test]
    fn a_full_ring_gives_up_the_oldest() {
        let mut flight = Flight::new();
        let lost = (0..SLOTS as u64 + 2).filter_map(|time| flight.depart(at(time)).1);
        assert_eq!(lost.map(|request| request.sent_ns).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(flight.waiting(), SLOTS);
    }
}
