//! Which peers are handed out, over many announces.

mod common;

use common::{TORRENT, settings};
use std::collections::BTreeMap;
use tsubame_storage::{
    AnnounceEvent, Caps, Endpoint, PeerOutput, Role, Seconds, SwarmAnnounce, Swarms, TableSettings,
};

fn swarms(seed: u64) -> Swarms {
    Swarms::new(settings(seed))
}

fn peer(number: u32) -> Endpoint {
    Endpoint::new((0x5000_0000 + number).to_be_bytes().into(), 6_881)
}

fn announce(swarms: &mut Swarms, endpoint: Endpoint, role: Role, wanted: usize) -> Vec<Endpoint> {
    common::announce(swarms, endpoint, role, AnnounceEvent::None, wanted)
}

/// How far the observed numbers are from equal ones: about 1 a degree of freedom if they only vary by chance
fn chi_square_per_degree(observed: &BTreeMap<Endpoint, u32>) -> f64 {
    let sum: u32 = observed.values().sum();
    let expected = f64::from(sum) / observed.len() as f64;
    let square = |count: &u32| (f64::from(*count) - expected).powi(2) / expected;
    observed.values().map(square).sum::<f64>() / (observed.len() - 1) as f64
}

/// Every peer of a swarm is handed out equally often, however the swarm came to be
#[test]
fn peers_are_handed_out_uniformly() {
    for (size, wanted) in [(4, 2), (30, 7), (64, 20), (200, 50), (5_000, 50)] {
        for asks in [Role::Leecher, Role::Seeder] {
            let seed = u64::from(size) + 1;
            println!("seed {seed}: {wanted} of {size} for a {asks:?}");
            let mut observed = BTreeMap::new();
            // Many swarms, built anew with joins and leaves: positions must not remember the order.
            for round in 0..40 {
                let mut table = swarms(seed * 1_000 + round);
                for number in 0..size + size / 2 {
                    let role = if number % 3 == 0 { Role::Seeder } else { Role::Leecher };
                    announce(&mut table, peer(number), role, 0);
                }
                for number in size..size + size / 2 {
                    let (role, event) = (Role::Leecher, AnnounceEvent::Stopped);
                    common::announce(&mut table, peer(number), role, event, 0);
                }
                // The announcer is one of the swarm: it must not bias its neighbours.
                let asker = if asks == Role::Leecher { peer(1) } else { peer(0) };
                for _ in 0..(size / wanted as u32 * 25).max(250) {
                    for handed in announce(&mut table, asker, asks, wanted) {
                        assert_ne!(handed, asker);
                        *observed.entry(handed).or_insert(0) += 1;
                    }
                }
            }
            let eligible = (0..size).filter(|n| asks == Role::Leecher || n % 3 != 0).count();
            let own = usize::from(asks == Role::Leecher);
            assert_eq!(observed.len(), eligible - own);
            // A run shares its members, so counts vary by more than independent draws would, at most by
            // the length of the run over the number of swarms; a bias would show as many times that.
            let spread = chi_square_per_degree(&observed);
            assert!(spread < 3.5, "counts vary {spread:.2} times as much as chance");
        }
    }
}

#[test]
fn partial_seeds_are_handed_to_leechers_only() {
    let mut table = swarms(1);
    announce(&mut table, peer(1), Role::PartialSeed, 9);
    announce(&mut table, peer(2), Role::Leecher, 9);
    announce(&mut table, peer(3), Role::Seeder, 9);
    let sorted = |mut peers: Vec<Endpoint>| {
        peers.sort();
        peers
    };
    assert_eq!(sorted(announce(&mut table, peer(2), Role::Leecher, 9)), [peer(1), peer(3)]);
    assert_eq!(announce(&mut table, peer(3), Role::Seeder, 9), [peer(2)]);
    assert_eq!(announce(&mut table, peer(1), Role::PartialSeed, 9), [peer(2)]);
}

/// Where both families share a reply, what one has no peers for goes to the other
#[test]
fn a_share_that_cannot_be_filled_is_not_lost() {
    let mut table = swarms(11);
    for number in 0..100 {
        // Private, so of no use to the requester below.
        let v4 = Endpoint::new([10, 0, 0, number].into(), 6_881);
        announce(&mut table, v4, Role::Leecher, 0);
        let v6 = [0x2a00, 1, 0, 0, 0, 0, 0, u16::from(number)];
        announce(&mut table, Endpoint::new(v6.into(), 6_881), Role::Leecher, 0);
    }
    let endpoint = Endpoint::new([0x2a00, 2, 0, 0, 0, 0, 0, 1].into(), 6_881);
    let asks = SwarmAnnounce {
        info_hash: TORRENT,
        endpoint,
        role: Role::Leecher,
        event: AnnounceEvent::None,
    };
    let (mut v4, mut v6) = ([0; 50 * 6], [0; 50 * 18]);
    let output = PeerOutput { v4: &mut v4, v6: &mut v6, peers_max: 50 };
    let prefetch = table.prefetch_index(&TORRENT);
    let announced = table.announce(Seconds(5), prefetch, &asks, output);
    assert_eq!((announced.v4_len, announced.v6_len / 18), (0, 50));
}

/// One address with many ports has four places in a reply, unless nobody else is there
#[test]
fn a_reply_has_few_peers_of_one_address() {
    for caps in [Caps::default(), Caps { swarm: 0, per_ipv4: 200, per_ipv6_64: 200 }] {
        for others in [20, 46, 300] {
            let mut table = Swarms::new(TableSettings { caps, ..settings(others.into()) });
            for port in 0..100 {
                let endpoint = Endpoint::new([9, 9, 9, 9].into(), 2_000 + port);
                announce(&mut table, endpoint, Role::Leecher, 0);
            }
            (0..others).for_each(|other| _ = announce(&mut table, peer(other), Role::Seeder, 0));
            for round in 0..200 {
                let handed = announce(&mut table, peer(10_000), Role::Leecher, 50);
                let of_one = handed.iter().filter(|it| it.address() == peer(0).address()).count();
                assert!(of_one <= 1);
                let of_many = handed.iter().filter(|it| it.port() != 6_881).count();
                let expected = if others < 46 { 50 - others as usize } else { 4 };
                // Addresses that share a counter with another may be passed over.
                assert!(of_many <= expected + 2 && handed.len() == 50, "round {round}: {of_many}");
            }
        }
    }
}
