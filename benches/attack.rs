//! Simulates an attack on the memory of a swarm table, and measures its effect on honest clients.
//!
//! An honest population that needs 60 % of the memory limit announces, leaves and is replaced. Attackers in a number of
//! /24 networks perform ten times as many actions, most of them one announce: new torrents, torrents whose download
//! they claim to complete before they leave, and peers of honest torrents. There are no sockets and no real time: the
//! same seed gives the same run.

use crate::{endpoint_of, peers_of};
use fastrand::Rng;
use tsubame_storage::{
    AnnounceEvent, Caps, Endpoint, Family, InfoHash, PeerOutput, Role, Seconds, SwarmAnnounce,
    SwarmChange, Swarms, TableSettings,
};

const LIFETIME_SECS: u64 = 900;
const INTERVAL_SECS: u64 = 600;

/// Average bytes of an honest torrent with its peers, after some churn.
const TORRENT_BYTES: usize = 90;

/// Percentage of the honest clients that are in a few networks, as behind CGNAT.
const CGNAT_PERCENT: u32 = 30;
/// Number of /24 networks from which clients behind CGNAT appear.
const CGNAT_NETWORKS: u32 = 200;

/// Parameters of a simulated attack.
#[derive(Clone, Copy, Debug)]
pub struct AttackParameters {
    /// Memory limit of the table.
    pub memory_bytes: usize,
    /// Number of attacking /24 networks; 0 is no attack.
    pub networks: u32,
    /// Seed of the random number generator.
    pub seed: u64,
}

/// Result of a simulated attack, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttackOutcome {
    /// Percentage of the honest peers that were stored at the end.
    pub peers_kept: f64,
    /// Percentage of the honest torrents that were stored at the end.
    pub torrents_kept: f64,
    /// Percentage of honest torrents that were not stored when a new client announced them, and were then stored.
    pub new_torrents_stored: f64,
    /// Percentage of the actions of the attackers whose last announce was stored.
    pub attack_stored: f64,
    /// Percentage of the memory limit that was used at the end.
    pub memory_used_percent: f64,
}

/// An honest client.
#[derive(Clone, Copy, Debug)]
struct HonestClient {
    announce: SwarmAnnounce,
    /// Number of announces until it leaves.
    announces_left: u32,
}

/// State of a simulation.
struct Simulation {
    rng: Rng,
    table: Swarms,
    now: u64,
    /// Honest clients by the second of their next announce, modulo the interval.
    clients: Vec<Vec<HonestClient>>,
    next_torrent: u32,
    next_peer: u32,
    /// Number of new honest torrents that were stored, and of those that were refused.
    new_torrents: [u64; 2],
    /// Number of actions of the attackers whose last announce was stored, and of those that were refused.
    attacker_actions: [u64; 2],
}

/// Simulates an attack that lasts three peer lifetimes, after one interval without attack.
pub fn simulate(attack: AttackParameters) -> AttackOutcome {
    let mut simulation = Simulation::new(attack);
    let torrents = attack.memory_bytes * 6 / 10 / TORRENT_BYTES;
    for torrent in 0..torrents as u32 {
        for _ in 0..peers_of(torrent) {
            let client = simulation.new_client(torrent);
            let due = simulation.rng.u64(..INTERVAL_SECS);
            simulation.clients[due as usize].push(client);
        }
    }
    simulation.next_torrent = torrents as u32;
    let clients: usize = simulation.clients.iter().map(Vec::len).sum();
    let per_second = if attack.networks == 0 { 0 } else { clients as u64 * 10 / INTERVAL_SECS };
    (0..INTERVAL_SECS).for_each(|_| simulation.simulate_second(0, 0));
    (simulation.new_torrents, simulation.attacker_actions) = ([0; 2], [0; 2]);
    (0..3 * LIFETIME_SECS).for_each(|_| simulation.simulate_second(per_second, attack.networks));
    simulation.outcome(attack.memory_bytes)
}

impl Simulation {
    fn new(attack: AttackParameters) -> Self {
        let table = Swarms::new(TableSettings {
            peer_lifetime_secs: LIFETIME_SECS as u32,
            memory_bytes: attack.memory_bytes,
            caps: Caps { swarm: 0, per_ipv4: 16, per_ipv6_64: 16 },
            hash_key: (attack.seed, 7),
            ..TableSettings::with_known_keys(attack.seed)
        });
        Self {
            rng: Rng::with_seed(attack.seed),
            table,
            now: 1_000,
            clients: vec![Vec::new(); INTERVAL_SECS as usize],
            next_torrent: 0,
            next_peer: 0,
            new_torrents: [0; 2],
            attacker_actions: [0; 2],
        }
    }

    /// Returns a new honest client of a torrent.
    fn new_client(&mut self, torrent: u32) -> HonestClient {
        self.next_peer += 1;
        let endpoint = if self.rng.u32(..100) < CGNAT_PERCENT {
            let nat = self.rng.u32(..CGNAT_NETWORKS);
            Endpoint::new([100, 200, nat as u8, self.rng.u8(..)].into(), self.rng.u16(1_024..))
        } else {
            endpoint_of(torrent, self.next_peer % 60_000)
        };
        let role = if self.rng.u8(..4) == 0 { Role::Seeder } else { Role::Leecher };
        let (info_hash, event) = (honest_hash(torrent), AnnounceEvent::Started);
        let announces_left = self.rng.u32(1..12);
        HonestClient {
            announce: SwarmAnnounce { info_hash, endpoint, role, event },
            announces_left,
        }
    }

    /// Processes an announce.
    fn announce(&mut self, announce: &SwarmAnnounce) -> SwarmChange {
        let prefetch = self.table.prefetch_index(&announce.info_hash);
        let output = PeerOutput::for_family(Family::V4, &mut []);
        self.table.announce(Seconds(self.now), prefetch, announce, output).change
    }

    /// Simulates a second: the honest clients that are due, the attackers, and as much sweeping as a shard performs.
    fn simulate_second(&mut self, actions: u64, networks: u32) {
        self.now += 1;
        let at = (self.now % INTERVAL_SECS) as usize;
        let due = std::mem::take(&mut self.clients[at]);
        let mut actions_left = actions;
        let actions_per_client = actions / due.len().max(1) as u64 + 1;
        for client in due {
            let client = self.announce_honest_client(client);
            self.clients[at].push(client);
            for _ in 0..actions_per_client.min(actions_left) {
                self.attacker_action(networks);
            }
            actions_left -= actions_per_client.min(actions_left);
        }
        // A shard sweeps after every 256 datagrams, and each second.
        for _ in 0..=actions / 256 {
            self.table.sweep(Seconds(self.now));
        }
    }

    /// Processes the next announce of an honest client; one that has left is replaced.
    fn announce_honest_client(&mut self, mut client: HonestClient) -> HonestClient {
        if client.announces_left > 0 {
            let is_new = client.announce.event == AnnounceEvent::Started && {
                let prefetch = self.table.prefetch_index(&client.announce.info_hash);
                !self.table.contains(&prefetch, &client.announce.info_hash)
            };
            let change = self.announce(&client.announce);
            if is_new {
                self.new_torrents[usize::from(matches!(change, SwarmChange::Refused(_)))] += 1;
            }
            client.announce.event = AnnounceEvent::None;
            client.announces_left -= 1;
            return client;
        }
        client.announce.event = AnnounceEvent::Stopped;
        self.announce(&client.announce);
        // A new client replaces it; one in four announces a new torrent.
        let torrent = if self.rng.u8(..4) == 0 {
            self.next_torrent += 1;
            self.next_torrent
        } else {
            self.rng.u32(..self.next_torrent)
        };
        let client = self.new_client(torrent);
        self.announce_honest_client(client)
    }

    /// Processes an action of an attacker: one announce, or a torrent that is announced, completed and stopped.
    fn attacker_action(&mut self, networks: u32) {
        let network = (0xcb00_0000 + self.rng.u32(..networks)) << 8;
        let address = network | u32::from(self.rng.u8(..));
        let endpoint = Endpoint::new(address.to_be_bytes().into(), self.rng.u16(1_024..));
        let mut announce = SwarmAnnounce {
            info_hash: InfoHash(std::array::from_fn(|_| self.rng.u8(..))),
            endpoint,
            role: Role::Leecher,
            event: AnnounceEvent::Started,
        };
        match self.rng.u8(..10) {
            0 => announce.info_hash = honest_hash(self.rng.u32(..self.next_torrent)),
            1..=3 => {
                self.announce(&announce);
                (announce.role, announce.event) = (Role::Seeder, AnnounceEvent::Completed);
                self.announce(&announce);
                announce.event = AnnounceEvent::Stopped;
            }
            _ => {}
        }
        let change = self.announce(&announce);
        self.attacker_actions[usize::from(matches!(change, SwarmChange::Refused(_)))] += 1;
    }

    /// Computes the result.
    fn outcome(mut self, memory_bytes: usize) -> AttackOutcome {
        let clients: Vec<HonestClient> = self.clients.iter().flatten().copied().collect();
        let percent = |part: usize, all: usize| part as f64 * 100.0 / all.max(1) as f64;
        // Clients that have announced and have not left.
        let established =
            clients.iter().filter(|client| client.announce.event == AnnounceEvent::None);
        let established: Vec<HonestClient> = established.copied().collect();
        let hashes: std::collections::BTreeSet<InfoHash> =
            established.iter().map(|client| client.announce.info_hash).collect();
        let known = hashes.iter().filter(|info_hash| {
            let prefetch = self.table.prefetch_index(info_hash);
            self.table.contains(&prefetch, info_hash)
        });
        let torrents_kept = percent(known.count(), hashes.len());
        let memory_used_percent = percent(self.table.stats().bytes, memory_bytes);
        let mut kept = 0;
        for client in &established {
            let prefetch = self.table.prefetch_index(&client.announce.info_hash);
            let output = PeerOutput::for_family(Family::V4, &mut []);
            let announced =
                self.table.announce(Seconds(self.now), prefetch, &client.announce, output);
            kept += usize::from(announced.previous.is_some());
        }
        let share =
            |[stored, refused]: [u64; 2]| percent(stored as usize, (stored + refused) as usize);
        AttackOutcome {
            peers_kept: percent(kept, established.len()),
            torrents_kept,
            new_torrents_stored: share(self.new_torrents),
            attack_stored: share(self.attacker_actions),
            memory_used_percent,
        }
    }
}

fn honest_hash(torrent: u32) -> InfoHash {
    crate::info_hash_of(torrent)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that at least 99 % of the honest peers and torrents are kept, and 99 % of new honest torrents are stored.
    #[test]
    fn honest_clients_are_served_while_few_networks_attack() {
        for networks in [0, 1, 16] {
            let seed = u64::from(networks) + 1;
            let outcome = simulate(AttackParameters { memory_bytes: 8 << 20, networks, seed });
            println!("{networks} networks, seed {seed}: {outcome:?}");
            let AttackOutcome {
                peers_kept,
                torrents_kept,
                new_torrents_stored,
                memory_used_percent,
                ..
            } = outcome;
            let served = [peers_kept, torrents_kept, new_torrents_stored];
            assert!(served.iter().all(|share| *share >= 99.0), "{networks}: {outcome:?}");
            assert!(memory_used_percent <= 100.0, "{outcome:?}");
        }
    }
}
