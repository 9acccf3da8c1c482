//! The answer to an announce over HTTP, before it is bencode: figures, and peers of both families.
//!
//! It is lent: the shard that was asked fills it, or has the owner of the info hash fill it, and gets it back.

use crate::clock::Now;
use crate::outcome::Outcome;
use crate::tracker::{Announce, Tracker};
use tsubame_storage::{Family, PeerOutput, Prefetch, SwarmCounts};

/// Figures and peers
#[derive(Debug)]
pub struct PeerList {
    /// Which request it is for, where several wait
    pub ticket: u32,
    /// What became of the announce
    pub outcome: Outcome,
    /// The swarm's figures
    pub counts: SwarmCounts,
    /// IPv4 peers, 6 bytes each
    pub v4: Vec<u8>,
    /// IPv6 peers, 18 bytes each
    pub v6: Vec<u8>,
}

impl Default for PeerList {
    fn default() -> Self {
        Self {
            ticket: 0,
            outcome: Outcome::NotStored,
            counts: SwarmCounts::default(),
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }
}

impl PeerList {
    /// Enters an announce into its swarm, which this tracker owns, and takes down the answer
    ///
    /// `prefetch` is what a look ahead has found, if there was one.
    pub fn fill(
        &mut self,
        tracker: &mut Tracker,
        now: Now,
        announce: &Announce,
        prefetch: Option<Prefetch>,
    ) {
        let peers_max = usize::from(announce.numwant);
        self.v4.resize(peers_max * Family::V4.compact_len(), 0);
        self.v6.resize(peers_max * Family::V6.compact_len(), 0);
        let output = PeerOutput { v4: &mut self.v4, v6: &mut self.v6, peers_max };
        let prefetch =
            prefetch.unwrap_or_else(|| tracker.swarms().prefetch_index(&announce.info_hash));
        let announced = tracker.enter(now, prefetch, announce, output);
        self.v4.truncate(announced.v4_len);
        self.v6.truncate(announced.v6_len);
        self.outcome = Outcome::from(announced.change);
        self.counts = announced.counts;
    }
}
