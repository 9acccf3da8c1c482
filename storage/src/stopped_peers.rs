//! Peers that have stopped, so that older records of them add no peers.

use crate::types::{Endpoint, InfoHash};
use siphasher::sip::SipHasher13;
use std::collections::BTreeMap;

/// Maximum number of peers that are remembered for one period.
const STOPPED_MAX: usize = 1 << 18;

/// Number of discarded times that are freed at a time.
const DISCARDED_PER_STEP: usize = 16;

/// Number of seconds for which peers are remembered at least, unless there are too many.
const PERIOD_SECS: i64 = 120;

/// Peers that have stopped recently: in the current and in the previous period of two minutes, up to [`STOPPED_MAX`] in
/// each; during an import the last ones since it began, up to twice as many. Peers that are not remembered may be added
/// again by an older record, until they expire.
pub(crate) struct StoppedPeers {
    hasher: SipHasher13,
    /// The time of the last stop, by a hash of torrent and peer.
    times: BTreeMap<u64, i64>,
    previous_times: BTreeMap<u64, i64>,
    /// The times of the period before, which are freed in small steps.
    discarded_times: BTreeMap<u64, i64>,
    period_began: i64,
    /// Whether an import is active, during which peers are forgotten only if there are too many.
    pub(crate) is_importing: bool,
}

impl std::fmt::Debug for StoppedPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoppedPeers").field("len", &self.times.len()).finish_non_exhaustive()
    }
}

impl StoppedPeers {
    pub(crate) fn new(hasher: SipHasher13, now: i64) -> Self {
        Self {
            hasher,
            times: BTreeMap::new(),
            previous_times: BTreeMap::new(),
            discarded_times: BTreeMap::new(),
            period_began: now,
            is_importing: false,
        }
    }

    /// Remembers that a peer has stopped at a time.
    pub(crate) fn add(&mut self, info_hash: &InfoHash, endpoint: Endpoint, time: i64, now: i64) {
        let is_period_over = match self.is_importing {
            true => self.times.len() >= STOPPED_MAX,
            false => now - self.period_began >= PERIOD_SECS,
        };
        // Discarded times must never be freed all at once.
        if is_period_over && self.discarded_times.is_empty() {
            self.discarded_times =
                std::mem::replace(&mut self.previous_times, std::mem::take(&mut self.times));
            self.period_began = now;
        }
        self.free_discarded();
        if self.times.len() < STOPPED_MAX {
            let stopped_at = self.times.entry(self.hash(info_hash, endpoint)).or_insert(time);
            *stopped_at = time.max(*stopped_at);
        }
    }

    /// Frees some of the discarded times.
    pub(crate) fn free_discarded(&mut self) {
        (0..DISCARDED_PER_STEP).for_each(|_| _ = self.discarded_times.pop_first());
    }

    /// Returns whether a peer has stopped at a time or later.
    pub(crate) fn has_stopped_since(
        &self,
        info_hash: &InfoHash,
        endpoint: Endpoint,
        time: i64,
    ) -> bool {
        if self.times.is_empty() && self.previous_times.is_empty() {
            return false;
        }
        let hash = self.hash(info_hash, endpoint);
        let stopped_at = self.times.get(&hash).or_else(|| self.previous_times.get(&hash));
        stopped_at.is_some_and(|stopped_at| *stopped_at >= time)
    }

    fn hash(&self, info_hash: &InfoHash, endpoint: Endpoint) -> u64 {
        let mut bytes = [0; 20 + 16 + 2];
        bytes[..20].copy_from_slice(&info_hash.0);
        let address = match endpoint.address() {
            std::net::IpAddr::V4(address) => address.to_ipv6_mapped(),
            std::net::IpAddr::V6(address) => address,
        };
        bytes[20..36].copy_from_slice(&address.octets());
        bytes[36..].copy_from_slice(&endpoint.port().to_be_bytes());
        self.hasher.hash(&bytes)
    }
}
