//! Limits how often the list of all torrents is sent.

use crate::address::source_prefix;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tsubame_storage::Seconds;

/// Maximum number of addresses that are remembered; beyond it, the one with the oldest list is forgotten.
const REMEMBERED: usize = 4_096;

/// Times at which addresses got the list of all torrents; one for the whole process.
#[derive(Debug, Default)]
pub struct FullScrapes(Mutex<FullScrapeHistory>);

/// State of [`FullScrapes`].
#[derive(Debug, Default)]
struct FullScrapeHistory {
    /// Whether a list is being sent.
    running: bool,
    /// Time of the last list of each source: an IPv4 address or an IPv6 /64.
    last: HashMap<IpAddr, Seconds>,
}

impl FullScrapes {
    /// Returns a permit to send the list to an address.
    ///
    /// Returns `None` while another list is being sent, or if the address got one less than `interval_secs` ago.
    pub(super) fn begin(
        self: &Arc<Self>,
        address: IpAddr,
        now: Seconds,
        interval_secs: u64,
    ) -> Option<FullScrapePermit> {
        let address = source_prefix(address);
        let mut history = self.history();
        let too_soon = |last: &Seconds| last.0 + interval_secs > now.0;
        if history.running || history.last.get(&address).is_some_and(too_soon) {
            return None;
        }
        history.last.retain(|_, last| too_soon(last));
        if history.last.len() >= REMEMBERED {
            let first = history.last.iter().min_by_key(|(_, last)| last.0);
            if let Some(first) = first.map(|(address, _)| *address) {
                history.last.remove(&first);
            }
        }
        history.last.insert(address, now);
        history.running = true;
        Some(FullScrapePermit { scrapes: self.clone(), address })
    }

    fn history(&self) -> MutexGuard<'_, FullScrapeHistory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permit to send a list; when it is dropped, another list may be sent.
#[derive(Debug)]
pub(super) struct FullScrapePermit {
    scrapes: Arc<FullScrapes>,
    address: IpAddr,
}

impl FullScrapePermit {
    /// Permits the address to request the list again at once, as this list could not be made.
    pub(super) fn allow_retry(&self) {
        self.scrapes.history().last.remove(&self.address);
    }
}

impl Drop for FullScrapePermit {
    fn drop(&mut self) {
        self.scrapes.history().running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_list_is_sent_at_a_time_and_each_address_waits_for_the_interval() {
        let scrapes = Arc::new(FullScrapes::default());
        let [a, b] = ["1.1.1.1", "2a00::1"].map(|address| address.parse::<IpAddr>().unwrap());
        let begin = |address, now| scrapes.begin(address, Seconds(now), 60);
        let running = begin(a, 100).unwrap();
        assert!(begin(b, 101).is_none(), "another list is being sent");
        drop(running);
        assert!(begin(a, 159).is_none());
        drop(begin(b, 159).unwrap());
        assert!(begin("2a00::2".parse().unwrap(), 160).is_none(), "an address of the same /64");
        let broken = begin(a, 160).unwrap();
        broken.allow_retry();
        drop(broken);
        drop(begin(a, 161).unwrap());
        // However many addresses request a list, the history is bounded, and new addresses are served.
        for number in 0..REMEMBERED as u32 + 10 {
            drop(begin(IpAddr::from(number.to_be_bytes()), 161).unwrap());
        }
        assert_eq!(scrapes.history().last.len(), REMEMBERED);
    }
}
