//! Unanswered requests, in a ring in the order in which they were sent: the oldest is first.

/// Number of slots. At a million requests per second, a slot is used again after a second.
const SLOTS: usize = 1 << 20;

/// Bit of the transaction ids of requests that must not be answered.
pub(crate) const UNPROVEN_BIT: u32 = 1 << 31;

/// Bit of the transaction ids of flood connects, whose replies are only counted.
pub(crate) const FLOOD_BIT: u32 = 1 << 30;

/// Result of a lookup of a transaction id.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RequestLookup {
    /// An unanswered request, and its number in the order of sending.
    Expected(SentRequest, u64),
    /// A request that was answered or given up before.
    Closed,
    /// No request with this transaction id was sent.
    Unknown,
}

/// Kind of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// Requests a connection id.
    #[default]
    Connect,
    /// Requests peers; the subject is the announcing peer.
    Announce {
        /// Whether the event is stopped.
        stopped: bool,
    },
    /// Requests counts; the subject is the first torrent.
    Scrape,
}

/// A request that was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SentRequest {
    pub(crate) kind: RequestKind,
    /// Index of the peer group of the client; each address family has one.
    pub(crate) group: u8,
    /// Number of peers or rows that are requested.
    pub(crate) wanted: u16,
    /// Number of the address of the client.
    pub(crate) source: u32,
    /// Peer or torrent; see [`RequestKind`].
    pub(crate) subject: u32,
    /// Time for which it was scheduled; latency is measured from it.
    pub(crate) due_ns: u64,
    /// Time at which it was sent.
    pub(crate) sent_ns: u64,
}

/// A slot of the ring.
#[derive(Clone, Copy, Default)]
struct InFlightSlot {
    request: SentRequest,
    unanswered: bool,
}

/// All unanswered requests.
pub(crate) struct InFlight {
    slots: Box<[InFlightSlot]>,
    oldest: u64,
    next: u64,
    unanswered: usize,
}

impl InFlight {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![InFlightSlot::default(); SLOTS].into(),
            oldest: 0,
            next: 0,
            unanswered: 0,
        }
    }

    /// Returns the number of unanswered requests.
    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Returns the number of requests sent so far, which is also the number of the next request.
    pub(crate) fn sent_count(&self) -> u64 {
        self.next
    }

    /// Adds a request; returns its transaction id, and the oldest request if it was given up to free a slot.
    pub(crate) fn add(&mut self, request: SentRequest) -> (u32, Option<SentRequest>) {
        let lost = match self.next - self.oldest == SLOTS as u64 {
            true => self.pop_oldest(),
            false => None,
        };
        let transaction = self.next as u32 & (FLOOD_BIT - 1);
        self.slots[self.next as usize % SLOTS] = InFlightSlot { request, unanswered: true };
        self.next += 1;
        self.unanswered += 1;
        (transaction, lost)
    }

    /// Removes the request with this transaction id.
    pub(crate) fn take(&mut self, transaction: u32) -> RequestLookup {
        // The highest number below `next` with these low bits.
        let distance = (self.next as u32).wrapping_sub(transaction) & (FLOOD_BIT - 1);
        let number = match self.next.checked_sub(distance.into()) {
            Some(number) if number < self.next => number,
            _ => return RequestLookup::Unknown,
        };
        let slot = &mut self.slots[number as usize % SLOTS];
        if number < self.oldest || !slot.unanswered {
            return RequestLookup::Closed;
        }
        slot.unanswered = false;
        self.unanswered -= 1;
        RequestLookup::Expected(slot.request, number)
    }

    /// Removes the oldest request if it was sent before this time.
    pub(crate) fn expire(&mut self, before_ns: u64) -> Option<SentRequest> {
        while self.oldest < self.next {
            let slot = &self.slots[self.oldest as usize % SLOTS];
            if slot.unanswered && slot.request.sent_ns >= before_ns {
                return None;
            }
            if let Some(request) = self.pop_oldest() {
                return Some(request);
            }
        }
        None
    }

    fn pop_oldest(&mut self) -> Option<SentRequest> {
        let slot = &mut self.slots[self.oldest as usize % SLOTS];
        self.oldest += 1;
        let unanswered = std::mem::take(&mut slot.unanswered);
        self.unanswered -= usize::from(unanswered);
        unanswered.then_some(slot.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sent_ns: u64) -> SentRequest {
        SentRequest { sent_ns, ..SentRequest::default() }
    }

    #[test]
    fn a_request_is_answered_or_lost_once() {
        let mut in_flight = InFlight::new();
        let transactions: Vec<u32> = (0..4).map(|time| in_flight.add(at(time)).0).collect();
        let first = in_flight.take(transactions[1]);
        assert!(
            matches!(first, RequestLookup::Expected(SentRequest { sent_ns: 1, .. }, 1)),
            "{first:?}"
        );
        assert!(matches!(in_flight.take(transactions[1]), RequestLookup::Closed), "twice");
        assert!(matches!(in_flight.take(77), RequestLookup::Unknown), "never sent");
        assert_eq!(in_flight.expire(3).unwrap().sent_ns, 0);
        assert_eq!(in_flight.expire(3).unwrap().sent_ns, 2);
        assert!(in_flight.expire(3).is_none());
        assert!(matches!(in_flight.take(transactions[0]), RequestLookup::Closed), "too late");
        assert_eq!(in_flight.unanswered(), 1);
    }

    #[test]
    fn a_full_ring_gives_up_the_oldest() {
        let mut in_flight = InFlight::new();
        let lost = (0..SLOTS as u64 + 2).filter_map(|time| in_flight.add(at(time)).1);
        assert_eq!(lost.map(|request| request.sent_ns).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(in_flight.unanswered(), SLOTS);
    }
}
