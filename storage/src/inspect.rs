//! What an operator sees of one torrent, and its removal in small steps.

use crate::placement::{PeerStores, RecordWidth};
use crate::record::{V4, V6, compact, flags};
use crate::removal::{RecordCursor, Removal, WORK_PER_CALL};
use crate::swarms::Swarms;
use crate::types::{Endpoint, Family, InfoHash, Role, SwarmStats};

/// A torrent as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorrentDetails {
    /// Counts of the swarm.
    pub stats: SwarmStats,
    /// Some of its peers.
    pub peers: Vec<PeerDetails>,
}

/// A peer as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerDetails {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// Its role.
    pub role: Role,
    /// Seconds since its last announce, to within a sixtieth of the peer lifetime with which the table was created.
    pub age_secs: u32,
    /// Whether it was learned from another node of the cluster, and has not announced to this one since.
    pub is_remote: bool,
}

/// Progress of the removal of a torrent.
#[derive(Clone, Copy, Debug)]
pub struct TorrentRemoval {
    info_hash: InfoHash,
    inside: Option<RecordCursor>,
}

impl TorrentRemoval {
    /// Starts the removal of a torrent.
    pub fn new(info_hash: InfoHash) -> Self {
        Self { info_hash, inside: None }
    }
}

impl Swarms {
    /// Returns a torrent with up to `peers_max` of its peers; `None` if it is unknown.
    ///
    /// The peers are spread evenly over the swarm, so that families and roles have their shares.
    pub fn inspect(&mut self, info_hash: &InfoHash, peers_max: usize) -> Option<TorrentDetails> {
        let position = self.table.find(&self.table.prefetch_index(info_hash), info_hash)?;
        let stats = self.table.stats_at(position);
        let [v4, v6] =
            Family::ALL.map(|family| self.table.store.entry(position).roles(family).len());
        let v4_max = (peers_max * v4).div_ceil((v4 + v6).max(1));
        let mut peers = Vec::new();
        self.list_peers::<V4>(position, v4_max, &mut peers);
        self.list_peers::<V6>(position, peers_max - peers.len(), &mut peers);
        Some(TorrentDetails { stats, peers })
    }

    fn list_peers<const N: usize>(
        &mut self,
        position: u32,
        peers_max: usize,
        list: &mut Vec<PeerDetails>,
    ) where
        PeerStores: RecordWidth<N>,
    {
        let (tick, ticks) = (self.table.context.tick, self.table.context.ticks);
        let peers = self.table.store.family_peers::<N>(position);
        let len = peers.roles.len();
        let wanted = peers_max.min(len);
        list.extend((0..wanted).filter_map(|number| {
            let at = number * len / wanted;
            let record = peers.at(at);
            let role = peers.role(at);
            let endpoint = Endpoint::from_compact(compact(record))?;
            let age_secs = ticks.age_secs(tick, record[N - 1]);
            let is_remote = record[N - 2] & flags::REMOTE != 0;
            Some(PeerDetails { endpoint, role, age_secs, is_remote })
        }));
    }

    /// Removes some peers of a torrent, and at last the torrent. Returns whether there is more to remove.
    pub fn remove_torrent(&mut self, removal: &mut TorrentRemoval) -> bool {
        let TorrentRemoval { info_hash, inside } = removal;
        let prefetch = self.table.prefetch_index(info_hash);
        let Some(position) = self.table.find(&prefetch, info_hash) else { return false };
        let from = inside.take();
        *inside = self.table.visit(position, from, &mut WORK_PER_CALL.clone(), Removal::All);
        inside.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::SwarmAnnounce;
    use crate::peer_output::PeerOutput;
    use crate::settings::TableSettings;
    use crate::time::Seconds;
    use crate::types::AnnounceEvent;
    use std::net::IpAddr;

    fn join(swarms: &mut Swarms, now: u64, peer: u32, role: Role) {
        let address: IpAddr = match peer % 2 {
            0 => ((0x2a00 << 112) | u128::from(peer)).to_be_bytes().into(),
            _ => (0x5000_0000 + peer).to_be_bytes().into(),
        };
        let info_hash = InfoHash([3; 20]);
        let endpoint = Endpoint::new(address, 6_881);
        let announce = SwarmAnnounce { info_hash, endpoint, role, event: AnnounceEvent::Started };
        let prefetch = swarms.prefetch_index(&info_hash);
        let output = PeerOutput::for_family(Family::V4, &mut []);
        swarms.announce(Seconds(now), prefetch, &announce, output);
    }

    #[test]
    fn a_torrent_is_listed_with_roles_and_ages() {
        let mut swarms = Swarms::new(TableSettings {
            peer_lifetime_secs: 600,
            ..TableSettings::with_known_keys(1)
        });
        assert_eq!(swarms.inspect(&InfoHash([3; 20]), 10), None);
        join(&mut swarms, 0, 1, Role::Seeder);
        join(&mut swarms, 200, 2, Role::Leecher);
        join(&mut swarms, 300, 3, Role::PartialSeed);
        let details = swarms.inspect(&InfoHash([3; 20]), 10).expect("three peers have joined");
        let mut ages: Vec<_> = details.peers.iter().map(|it| (it.age_secs, it.role)).collect();
        ages.sort_unstable_by_key(|(age, _)| *age);
        assert_eq!(ages, [(0, Role::PartialSeed), (100, Role::Leecher), (300, Role::Seeder)]);
        assert_eq!((details.stats.counts.seeders, details.stats.partial_seeds), (1, 1));
        assert_eq!(swarms.inspect(&InfoHash([3; 20]), 2).map(|it| it.peers.len()), Some(2));
    }

    #[test]
    fn a_torrent_is_removed_in_steps_while_peers_join() {
        let mut swarms = Swarms::new(TableSettings::with_known_keys(1));
        let peers = if cfg!(miri) { 100 } else { 20_000 };
        (0..peers).for_each(|peer| join(&mut swarms, 0, peer, Role::Leecher));
        let (mut removal, mut steps) = (TorrentRemoval::new(InfoHash([3; 20])), 0);
        while swarms.remove_torrent(&mut removal) {
            steps += 1;
            join(&mut swarms, 0, peers + steps, Role::Seeder);
        }
        assert!(cfg!(miri) || steps > 10, "{steps} steps");
        // Peers that joined during the removal may be left.
        assert!(swarms.table.peers() <= u64::from(steps), "{} peers", swarms.table.peers());
        let mut again = TorrentRemoval::new(InfoHash([3; 20]));
        while swarms.remove_torrent(&mut again) {}
        assert_eq!(swarms.stats().torrents, 0);
    }
}
