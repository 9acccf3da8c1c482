//! Requests over HTTP that wait until a token's signature may be checked.

use crate::http::source_key;
use std::collections::VecDeque;
use std::net::IpAddr;
use tokio::sync::oneshot::{Receiver, Sender, channel};

/// Requests that may wait in all, and of one source
const WAITING_MAX: usize = 256;
const PER_SOURCE_MAX: usize = 8;

/// Queues of requests by source, an IPv4 address or an IPv6 /64; each source in turn has one request go on.
#[derive(Debug, Default)]
pub(super) struct TokenQueue {
    sources: VecDeque<(IpAddr, VecDeque<Sender<()>>)>,
    len: usize,
}

impl TokenQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a request; it may go on when the receiver gets its permit. `None` if too many wait
    pub(super) fn add(&mut self, source: IpAddr) -> Option<Receiver<()>> {
        let source = source_key(source);
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

    /// Has the next request go on
    pub(super) fn permit_one(&mut self) {
        while let Some((source, mut waiting)) = self.sources.pop_front() {
            let next = waiting.pop_front();
            self.len -= usize::from(next.is_some());
            if !waiting.is_empty() {
                self.sources.push_back((source, waiting));
            }
            // Whoever has gone does not use up a check.
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
    fn sources_take_turns_however_many_requests_one_has() {
        let mut queue = TokenQueue::default();
        let [busy, calm, third]: [IpAddr; 3] =
            ["2a00::1", "192.0.2.7", "192.0.2.8"].map(|address| address.parse().unwrap());
        let mut waiting: Vec<_> = (0..8).map(|_| queue.add(busy).unwrap()).collect();
        assert!(queue.add("2a00::2".parse().unwrap()).is_none(), "of the same /64");
        waiting.extend([queue.add(calm).unwrap(), queue.add(third).unwrap()]);
        waiting.remove(1);
        let mut order = Vec::new();
        while !queue.is_empty() {
            queue.permit_one();
            let next = waiting.iter_mut().position(|it| it.try_recv().is_ok());
            order.extend(next);
        }
        // The first of one source, then those of the others; one has gone and costs nothing.
        assert_eq!(order, [0, 7, 8, 1, 2, 3, 4, 5, 6]);
        let many: Vec<_> =
            (0..300_u32).filter_map(|it| queue.add(IpAddr::from(it.to_be_bytes()))).collect();
        assert_eq!(many.len(), WAITING_MAX);
    }
}
