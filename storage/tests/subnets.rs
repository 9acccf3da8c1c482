//! Subnet peers are returned first, also in swarms that are too large for a full search.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use tsubame_storage::{
    AnnounceEvent, Endpoint, Family, PrefixLengths, Role, Seconds, SubnetPreference, Swarms,
    TableSettings,
};

/// Number of hosts of a rack, which share the longer prefix.
const RACK: u32 = 20;
/// Number of hosts of a site, which share the shorter prefix.
const SITE: u32 = 100;
/// Number of hosts: a swarm that is too large for a full search.
const HOSTS: u32 = 10_000;

const WANTED: usize = 50;

fn preference(v4: &[u8], at_random_percent: u8) -> SubnetPreference {
    SubnetPreference {
        v4: PrefixLengths::new(v4).unwrap(),
        v6: PrefixLengths::new(&[64, 48]).unwrap(),
        at_random_percent,
    }
}

fn swarms(subnets: SubnetPreference) -> Swarms {
    let mut swarms =
        Swarms::new(TableSettings { allow_private: true, ..TableSettings::with_known_keys(3) });
    swarms.set_subnet_preference(subnets);
    swarms
}

/// Returns the endpoint of a host. A rack is a /24 in a site of a /16 for IPv4, a /64 in a /48 for IPv6.
fn host(number: u32, family: Family) -> Endpoint {
    let (site, rack, host) = (number / SITE, number % SITE / RACK, number % RACK);
    let [site, rack, host] = [site as u16, rack as u16, host as u16];
    let address = match family {
        Family::V4 => [10 + (site >> 8) as u8, site as u8, rack as u8, host as u8].into(),
        Family::V6 => [0x2a00, 1, site, rack, 0, 0, 0, host].into(),
    };
    Endpoint::new(address, 6_881)
}

fn announce(
    swarms: &mut Swarms,
    endpoint: Endpoint,
    event: AnnounceEvent,
    wanted: usize,
) -> Vec<Endpoint> {
    let returned = common::announce(swarms, endpoint, Role::Leecher, event, wanted);
    let distinct: BTreeSet<_> = returned.iter().collect();
    assert_eq!(distinct.len(), returned.len(), "a peer was returned twice");
    assert!(!distinct.contains(&endpoint), "the requester was returned to itself");
    returned
}

fn fill(swarms: &mut Swarms, hosts: impl Iterator<Item = u32>, family: Family) {
    hosts
        .for_each(|number| drop(announce(swarms, host(number, family), AnnounceEvent::Started, 0)));
}

#[test]
fn peers_are_returned_by_rack_then_site_then_at_random() {
    for family in Family::ALL {
        // The preference is set from the start, or changed while the swarm is large, after which its peers announce
        // again.
        for late in [false, true] {
            let subnets = preference(&[24, 16], 0);
            let mut table = swarms(if late { SubnetPreference::default() } else { subnets });
            fill(&mut table, 0..HOSTS, family);
            if late {
                table.set_subnet_preference(preference(&[20], 0));
                fill(&mut table, 0..HOSTS / 2, family);
                table.set_subnet_preference(subnets);
                fill(&mut table, 0..HOSTS, family);
            }
            let requester = 4_321;
            let rack = requester / RACK * RACK;
            let site = requester / SITE * SITE;
            let hosts = |range: std::ops::Range<u32>| -> BTreeSet<_> {
                range.filter(|other| *other != requester).map(|n| host(n, family)).collect()
            };
            let (rack, site) = (hosts(rack..rack + RACK), hosts(site..site + SITE));
            let returned =
                announce(&mut table, host(requester, family), AnnounceEvent::None, WANTED);
            assert_eq!(returned[..rack.len()].iter().copied().collect::<BTreeSet<_>>(), rack);
            assert!(returned.iter().all(|peer| site.contains(peer)), "{returned:?}");
            assert_eq!(returned.len(), WANTED);
            // At most 64 peers of a prefix are examined; the rest of the reply is selected at random from the whole
            // swarm.
            let returned =
                announce(&mut table, host(requester, family), AnnounceEvent::None, 2 * WANTED);
            let near = returned.iter().filter(|peer| site.contains(peer)).count();
            assert_eq!(returned.len(), 2 * WANTED);
            assert!((63..SITE as usize).contains(&near), "{near} subnet peers");
            // Peers that have stopped are not returned.
            for number in 4_300..4_400 {
                announce(&mut table, host(number, family), AnnounceEvent::Stopped, 0);
            }
            let returned =
                announce(&mut table, host(requester, family), AnnounceEvent::None, WANTED);
            assert_eq!(returned.len(), WANTED);
            assert!(returned.iter().all(|peer| !site.contains(peer)));
        }
    }
}

#[test]
fn all_peers_of_a_large_subnet_are_returned_over_time() {
    let mut table = swarms(preference(&[8], 0));
    fill(&mut table, 0..HOSTS / 10, Family::V4);
    let mut observed = BTreeMap::new();
    for _ in 0..20 {
        for number in 0..HOSTS / 10 {
            let returned =
                announce(&mut table, host(number, Family::V4), AnnounceEvent::None, WANTED);
            assert_eq!(returned.len(), WANTED);
            returned.into_iter().for_each(|peer| *observed.entry(peer).or_insert(0) += 1);
        }
    }
    // Each peer is returned 1,000 times on average.
    assert_eq!(observed.len(), HOSTS as usize / 10, "some peers are never returned");
    let (least, most) = (observed.values().min().unwrap(), observed.values().max().unwrap());
    assert!(*least > 250 && *most < 3_000, "{least} to {most} times");
}

#[test]
fn the_random_share_comes_from_the_whole_swarm() {
    for hosts in [40, HOSTS] {
        let mut table = swarms(preference(&[24], 20));
        fill(&mut table, 0..hosts, Family::V4);
        let returned = announce(&mut table, host(7, Family::V4), AnnounceEvent::None, 20);
        let near = |peer: &Endpoint| (0..RACK).any(|number| host(number, Family::V4) == *peer);
        assert_eq!(returned.len(), 20);
        assert!(returned[..16].iter().all(near));
        let rest = returned[16..].iter().filter(|peer| near(peer)).count();
        // Three subnet peers are left: without a random share all of them would follow.
        assert!(rest < 3, "{rest} of 4 random peers are subnet peers");
    }
}

/// The memory of the subnet indexes is freed when the preference is removed.
#[test]
fn subnet_indexes_are_freed() {
    let mut table = swarms(SubnetPreference::default());
    fill(&mut table, 0..HOSTS, Family::V4);
    let without = table.stats().bytes;
    table.set_subnet_preference(preference(&[32, 24, 16, 8], 0));
    fill(&mut table, 0..HOSTS, Family::V4);
    let with = table.stats().bytes;
    assert!(with > without + 4 * HOSTS as usize, "{with} bytes with, {without} without");
    table.set_subnet_preference(SubnetPreference::default());
    for now in 0..1_000 {
        while table.sweep(Seconds(now)) {}
    }
    assert_eq!(table.stats().bytes, without);
}

/// After a change of prefix lengths, a requester that is not stored still gets all peers of a large swarm, each once.
#[test]
fn all_peers_are_returned_after_a_change_of_prefix_lengths() {
    let mut table = swarms(preference(&[16, 8], 0));
    // A hundred peers, each in its own /24.
    let hosts: Vec<_> =
        (0..100).map(|rack| Endpoint::new([81, 7, rack, 1].into(), 7_000)).collect();
    for host in &hosts {
        announce(&mut table, *host, AnnounceEvent::Started, 0);
    }
    let requester = |port| Endpoint::new([81, 7, 200, 1].into(), port);
    for lengths in [&[24, 12][..], &[20], &[16, 8], &[32, 24, 16, 8]] {
        table.set_subnet_preference(preference(lengths, 0));
        // A requester with port 0 gets a reply and is not stored.
        assert_eq!(announce(&mut table, requester(0), AnnounceEvent::None, 200).len(), hosts.len());
        assert_eq!(announce(&mut table, hosts[3], AnnounceEvent::None, 200).len(), hosts.len() - 1);
    }
}
