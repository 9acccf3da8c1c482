//! Queue of HTTP requests that wait until the signature of their token may be checked.

use crate::address::source_prefix;
use std::collections::VecDeque;
use std::net::IpAddr;
use tokio::sync::oneshot::{Receiver, Sender, channel};

/// Maximum number of waiting requests.
const WAITING_MAX: usize = 256;
/// Maximum number of waiting requests of one source.
const PER_SOURCE_MAX: usize = 8;

/// Queues of requests by source: an IPv4 address or an IPv6 /64.
///
/// The sources take turns: each permit goes to the next source.
#[derive(Debug, Default)]
pub(super) struct TokenQueue {
    sources: VecDeque<(IpAddr, VecDeque<Sender<()>>)>,
    len: usize,
}

impl TokenQueue {
    /// Returns whether no request waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a request, which may continue when the receiver gets its permit; returns `None` if the queue is full.
    pub(super) fn add(&mut self, source: IpAddr) -> Option<Receiver<()>> {
        let source = source_prefix(source);
        if self.len >= WAITING_MAX {
            return None;
        }
        let (sender, receiver) = channel();
        match self.sources.iter_mut().find(|(of, _)| *of == source) {
            Some((_, waiting)) if waiting.len() >= PER_SOURCE_MAX => return None,
            Some((_, waiting)) => waiting.push_back(sender),
            None => self.sources.push_back((source, VecDeque::from([sender]))),
        }
        self.len += 1;
        Some(receiver)
    }

    /// Permits the next request to continue.
    pub(super) fn permit_one(&mut self) {
        while let Some((source, mut waiting)) = self.sources.pop_front() {
            let next = waiting.pop_front();
            self.len -= usize::from(next.is_some());
            if !waiting.is_empty() {
                self.sources.push_back((source, waiting));
            }
            // A request that stopped waiting does not use up the permit.
            if next.is_some_and(|next| next.send(()).is_ok()) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_take_turns_regardless_of_their_number_of_requests() {
        let mut queue = TokenQueue::default();
        let [busy, calm, third]: [IpAddr; 3] =
            ["2a00::1", "192.0.2.7", "192.0.2.8"].map(|address| address.parse().unwrap());
        let mut waiting: Vec<_> = (0..8).map(|_| queue.add(busy).unwrap()).collect();
        assert!(queue.add("2a00::2".parse().unwrap()).is_none(), "the queue of the /64 is full");
        waiting.extend([queue.add(calm).unwrap(), queue.add(third).unwrap()]);
        waiting.remove(1);
        let mut order = Vec::new();
        while !queue.is_empty() {
            queue.permit_one();
            let next = waiting.iter_mut().position(|it| it.try_recv().is_ok());
            order.extend(next);
        }
        // The sources take turns; the request that stopped waiting costs no permit.
        assert_eq!(order, [0, 7, 8, 1, 2, 3, 4, 5, 6]);
        let many: Vec<_> =
            (0..300_u32).filter_map(|it| queue.add(IpAddr::from(it.to_be_bytes()))).collect();
        assert_eq!(many.len(), WAITING_MAX);
    }
}
