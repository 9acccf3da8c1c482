//! The tracker: decides which requests are admitted, and answers them from the swarm table.
//!
//! A request is handled in two steps. Admission selects no peers and runs on the shard that received the request:
//! [`Tracker::admit`] over UDP, [`Tracker::admit_announce`] and [`Tracker::admit_scrape`] over HTTP. The answer needs
//! the swarm and runs on the shard that owns the torrent: [`Tracker::answer`] over UDP, [`Tracker::fill_peer_list`] and
//! [`Tracker::swarm_stats`] over HTTP. Nothing here does I/O, reads a clock, allocates for a datagram or logs. The
//! shards, the simulation, the fuzz targets and the benchmarks all call these functions.

mod http;
pub mod peer_list;
mod purge;
mod reply;
mod request;
mod settings;
mod udp;

pub use reply::UdpReply;
pub use request::{AdmittedAnnounce, AdmittedRequest, AdmittedScrape};
pub use settings::AnnounceSettings;

use crate::clock::Now;
use crate::policy::Policy;
use purge::Purge;
use std::net::IpAddr;
use tsubame_storage::{
    AnnounceEvent, AnnounceOutcome, Endpoint, ImportCursor, InfoHash, PeerOutput, Prefetch, Role,
    Seconds, StateRecord, SwarmAnnounce, SwarmCounts, SwarmStats, Swarms, TableSettings,
};
use tsubame_udp::connection_id::ConnectionIds;

/// The tracker of a shard: its policy and its swarms.
#[derive(Debug)]
pub struct Tracker {
    ids: ConnectionIds,
    settings: AnnounceSettings,
    policy: Policy,
    swarms: Swarms,
    /// Progress of removing the torrents that the current policy forbids.
    purge: Purge,
}

impl Tracker {
    /// Creates a tracker without hooks.
    pub fn new(ids: ConnectionIds, settings: AnnounceSettings, swarms: Swarms) -> Self {
        Self { ids, settings, policy: Policy::default(), swarms, purge: Purge::Done }
    }

    /// Replaces the policy; the new one takes over the counters. The old policy is left in `policy`, to be freed by the
    /// caller.
    pub fn exchange_policy(&mut self, now: Now, policy: &mut Policy) {
        policy.inherit(&mut self.policy);
        std::mem::swap(&mut self.policy, policy);
        self.swarms.set_subnet_preference(self.policy.subnets());
        if self.policy.serves_same_torrents(policy) {
            return;
        }
        self.purge = Purge::after_policy_change(now, self.policy.has_lists());
    }

    /// Replaces the settings; the swarms stay.
    pub fn reconfigure(
        &mut self,
        ids: ConnectionIds,
        settings: AnnounceSettings,
        table: TableSettings,
    ) {
        (self.ids, self.settings) = (ids, settings);
        self.swarms.reconfigure(table);
    }

    /// Starts a turn of the shard: see [`Policy::begin_turn`].
    pub fn begin_turn(&mut self) {
        self.policy.begin_turn();
    }

    /// Removes, in a bounded step, torrents that policy forbids; returns whether more work is due.
    pub fn purge(&mut self, now: Now) -> bool {
        self.purge.run(&mut self.swarms, &self.policy, now)
    }

    /// Returns the policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the settings of announces.
    pub fn settings(&self) -> &AnnounceSettings {
        &self.settings
    }

    /// Returns the swarms of this shard.
    pub fn swarms(&self) -> &Swarms {
        &self.swarms
    }

    /// Returns the swarms of this shard mutably.
    pub fn swarms_mut(&mut self) -> &mut Swarms {
        &mut self.swarms
    }

    /// Imports records in a bounded step, without torrents that policy forbids; returns whether records are left.
    pub fn import(
        &mut self,
        now: Seconds,
        cursor: &mut ImportCursor,
        records: &[StateRecord],
    ) -> bool {
        let policy = &self.policy;
        self.swarms.import(now, cursor, records, |info_hash| policy.serves(info_hash))
    }

    /// Reads the index slot of a torrent: see [`Swarms::prefetch_index`].
    pub fn prefetch_index(&self, info_hash: &InfoHash) -> Prefetch {
        self.swarms.prefetch_index(info_hash)
    }

    /// Reads the entry of a torrent: see [`Swarms::prefetch_entry`].
    pub fn prefetch_entry(&self, prefetch: &Prefetch) -> u8 {
        self.swarms.prefetch_entry(prefetch)
    }

    /// Returns the counts of a swarm, which are zero for a torrent that policy forbids.
    pub fn scrape(&self, info_hash: &InfoHash) -> SwarmCounts {
        if !self.policy.serves(info_hash) {
            return SwarmCounts::default();
        }
        self.swarms.scrape(&self.swarms.prefetch_index(info_hash), info_hash)
    }

    /// Returns the counts of a swarm and its partial seeds, which are zero for a torrent that policy forbids.
    pub fn swarm_stats(&self, info_hash: &InfoHash) -> SwarmStats {
        if !self.policy.serves(info_hash) {
            return SwarmStats::default();
        }
        self.swarms.swarm_stats(&self.swarms.prefetch_index(info_hash), info_hash)
    }

    /// Applies an announce to its swarm and selects peers.
    fn announce(
        &mut self,
        now: Now,
        prefetch: Prefetch,
        announce: &AdmittedAnnounce,
        output: PeerOutput<'_>,
    ) -> AnnounceOutcome {
        let AdmittedAnnounce { info_hash, endpoint, role, event, .. } = *announce;
        let announce = SwarmAnnounce { info_hash, endpoint, role, event };
        self.swarms.announce(now.monotonic, prefetch, &announce, output)
    }

    /// Returns the endpoint of a peer. Its address is the one that the client claims, if the source is trusted with
    /// that.
    #[inline(always)]
    fn endpoint(
        &self,
        source: IpAddr,
        claimed: impl FnOnce() -> Option<IpAddr>,
        port: u16,
    ) -> Endpoint {
        let is_trusted = self.settings.trust_client_ip.iter().any(|net| net.contains(&source));
        Endpoint::new(if is_trusted { claimed() } else { None }.unwrap_or(source), port)
    }

    fn numwant(&self, wanted: Option<u32>) -> u16 {
        let wanted = wanted.unwrap_or(self.settings.numwant_default);
        // The config permits no value that does not fit in 16 bits.
        wanted.min(self.settings.numwant_max) as u16
    }
}

/// Returns the role of a peer by its event and the bytes that it lacks.
fn role_of(event: AnnounceEvent, left: u64) -> Role {
    match (event, left) {
        (AnnounceEvent::Paused, 1..) => Role::PartialSeed,
        (_, 0) => Role::Seeder,
        _ => Role::Leecher,
    }
}
