//! Which peers are returned: their distribution, roles, families and addresses.

mod common;

use common::TORRENT;
use std::collections::BTreeMap;
use tsubame_storage::{
    AnnounceEvent, Caps, Endpoint, PeerOutput, Role, Seconds, SwarmAnnounce, Swarms, TableSettings,
};

fn swarms(seed: u64) -> Swarms {
    Swarms::new(TableSettings::with_known_keys(seed))
}

fn peer(number: u32) -> Endpoint {
    Endpoint::new((0x5000_0000 + number).to_be_bytes().into(), 6_881)
}

fn announce(swarms: &mut Swarms, endpoint: Endpoint, role: Role, wanted: usize) -> Vec<Endpoint> {
    common::announce(swarms, endpoint, role, AnnounceEvent::None, wanted)
}

/// Returns the chi-square statistic of the counts per degree of freedom: about 1 if they are equal except for chance.
fn chi_square_per_degree(observed: &BTreeMap<Endpoint, u32>) -> f64 {
    let sum: u32 = observed.values().sum();
    let expected = f64::from(sum) / observed.len() as f64;
    let square = |count: &u32| (f64::from(*count) - expected).powi(2) / expected;
    observed.values().map(square).sum::<f64>() / (observed.len() - 1) as f64
}

/// Every peer of a swarm is returned equally often, regardless of the order of joins and stops.
#[test]
fn peers_are_selected_uniformly() {
    for (size, wanted) in [(4, 2), (30, 7), (64, 20), (200, 50), (5_000, 50)] {
        for requester_role in [Role::Leecher, Role::Seeder] {
            let seed = u64::from(size) + 1;
            println!("seed {seed}: {wanted} of {size} for a {requester_role:?}");
            let mut observed = BTreeMap::new();
            // Many new swarms with joins and stops: the order of joins must have no influence.
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
                // The requester is in the swarm; the records next to its own must not be preferred or avoided.
                let requester = if requester_role == Role::Leecher { peer(1) } else { peer(0) };
                for _ in 0..(size / wanted as u32 * 25).max(250) {
                    for returned in announce(&mut table, requester, requester_role, wanted) {
                        assert_ne!(returned, requester);
                        *observed.entry(returned).or_insert(0) += 1;
                    }
                }
            }
            let eligible =
                (0..size).filter(|n| requester_role == Role::Leecher || n % 3 != 0).count();
            let own = usize::from(requester_role == Role::Leecher);
            assert_eq!(observed.len(), eligible - own);
            // Peers are returned in runs of adjacent records, so the counts vary more than independent draws, at most
            // by the length of a run divided by the number of swarms. A bias would show as a multiple of that.
            let spread = chi_square_per_degree(&observed);
            assert!(spread < 3.5, "the counts vary {spread:.2} times as much as independent draws");
        }
    }
}

#[test]
fn partial_seeds_are_returned_to_leechers_only() {
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

/// If one family has too few usable peers for its share of a reply, the other family fills it.
#[test]
fn the_other_family_fills_an_unused_share() {
    let mut table = swarms(11);
    for number in 0..100 {
        // Private addresses, which the requester below cannot reach.
        let v4 = Endpoint::new([10, 0, 0, number].into(), 6_881);
        announce(&mut table, v4, Role::Leecher, 0);
        let v6 = [0x2a00, 1, 0, 0, 0, 0, 0, u16::from(number)];
        announce(&mut table, Endpoint::new(v6.into(), 6_881), Role::Leecher, 0);
    }
    let endpoint = Endpoint::new([0x2a00, 2, 0, 0, 0, 0, 0, 1].into(), 6_881);
    let request = SwarmAnnounce {
        info_hash: TORRENT,
        endpoint,
        role: Role::Leecher,
        event: AnnounceEvent::None,
    };
    let (mut v4, mut v6) = ([0; 50 * 6], [0; 50 * 18]);
    let output = PeerOutput { v4: &mut v4, v6: &mut v6, peers_max: 50 };
    let prefetch = table.prefetch_index(&TORRENT);
    let announced = table.announce(Seconds(5), prefetch, &request, output);
    assert_eq!((announced.v4_len, announced.v6_len / 18), (0, 50));
}

/// A reply has at most four peers of one address, unless there are too few others.
#[test]
fn a_reply_has_few_peers_of_one_address() {
    for caps in [Caps::default(), Caps { swarm: 0, per_ipv4: 200, per_ipv6_64: 200 }] {
        for others in [20, 46, 300] {
            let mut table = Swarms::new(TableSettings {
                caps,
                ..TableSettings::with_known_keys(others.into())
            });
            for port in 0..100 {
                let endpoint = Endpoint::new([9, 9, 9, 9].into(), 2_000 + port);
                announce(&mut table, endpoint, Role::Leecher, 0);
            }
            (0..others).for_each(|other| _ = announce(&mut table, peer(other), Role::Seeder, 0));
            for round in 0..200 {
                let returned = announce(&mut table, peer(10_000), Role::Leecher, 50);
                let of_one = returned.iter().filter(|it| it.address() == peer(0).address()).count();
                assert!(of_one <= 1);
                let of_many = returned.iter().filter(|it| it.port() != 6_881).count();
                let expected = if others < 46 { 50 - others as usize } else { 4 };
                // A peer whose address shares a counter with others may be skipped; a peer of the crowded address then
                // takes its place: at most 2 here.
                assert!(
                    of_many <= expected + 2 && returned.len() == 50,
                    "round {round}: {of_many}"
                );
            }
        }
    }
}
