//! Neighbours are handed out first, also where a swarm is too large to be looked through.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::settings;
use std::collections::{BTreeMap, BTreeSet};
use tsubame_storage::{
    AnnounceEvent, Endpoint, Family, PrefixLengths, Role, Seconds, SubnetPreference, Swarms,
    TableSettings,
};

/// Racks of 20 hosts, sites of 100, and a swarm of so many sites that an announce cannot look at all
const RACK: u32 = 20;
const SITE: u32 = 100;
const HOSTS: u32 = 10_000;

const WANTED: usize = 50;

fn preferring(v4: &[u8], at_random_percent: u8) -> SubnetPreference {
    SubnetPreference {
        v4: PrefixLengths::new(v4).unwrap(),
        v6: PrefixLengths::new(&[64, 48]).unwrap(),
        at_random_percent,
    }
}

fn swarms(subnets: SubnetPreference) -> Swarms {
    let mut swarms = Swarms::new(TableSettings { allow_private: true, ..settings(3) });
    swarms.set_subnet_preference(subnets);
    swarms
}

/// A rack is a /24 in a site that is a /16; of IPv6 a /64 in a /48
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
    let handed = common::announce(swarms, endpoint, Role::Leecher, event, wanted);
    let distinct: BTreeSet<_> = handed.iter().collect();
    assert_eq!(distinct.len(), handed.len(), "a peer was handed out twice");
    assert!(!distinct.contains(&endpoint), "handed itself");
    handed
}

fn fill(swarms: &mut Swarms, hosts: impl Iterator<Item = u32>, family: Family) {
    hosts
        .for_each(|number| drop(announce(swarms, host(number, family), AnnounceEvent::Started, 0)));
}

#[test]
fn the_rack_comes_first_then_the_site_then_anybody() {
    for family in Family::ALL {
        // However the preference came about: from the start, or when the swarm was there, whose peers announce again.
        for late in [false, true] {
            let subnets = preferring(&[24, 16], 0);
            let mut table = swarms(if late { SubnetPreference::default() } else { subnets });
            fill(&mut table, 0..HOSTS, family);
            if late {
                table.set_subnet_preference(preferring(&[20], 0));
                fill(&mut table, 0..HOSTS / 2, family);
                table.set_subnet_preference(subnets);
                fill(&mut table, 0..HOSTS, family);
            }
            let asker = 4_321;
            let rack = asker / RACK * RACK;
            let site = asker / SITE * SITE;
            let hosts = |range: std::ops::Range<u32>| -> BTreeSet<_> {
                range.filter(|other| *other != asker).map(|n| host(n, family)).collect()
            };
            let (rack, site) = (hosts(rack..rack + RACK), hosts(site..site + SITE));
            let handed = announce(&mut table, host(asker, family), AnnounceEvent::None, WANTED);
            assert_eq!(handed[..rack.len()].iter().copied().collect::<BTreeSet<_>>(), rack);
            assert!(handed.iter().all(|peer| site.contains(peer)), "{handed:?}");
            assert_eq!(handed.len(), WANTED);
            // Of a prefix no more than 64 are looked at; the others come by chance.
            let handed = announce(&mut table, host(asker, family), AnnounceEvent::None, 2 * WANTED);
            let near = handed.iter().filter(|peer| site.contains(peer)).count();
            assert_eq!(handed.len(), 2 * WANTED);
            assert!((63..SITE as usize).contains(&near), "{near} neighbours");
            // Those who have left are not handed out.
            for number in 4_300..4_400 {
                announce(&mut table, host(number, family), AnnounceEvent::Stopped, 0);
            }
            let handed = announce(&mut table, host(asker, family), AnnounceEvent::None, WANTED);
            assert_eq!(handed.len(), WANTED);
            assert!(handed.iter().all(|peer| !site.contains(peer)));
        }
    }
}

#[test]
fn neighbours_beyond_number_are_all_handed_out_in_turn() {
    let mut table = swarms(preferring(&[8], 0));
    fill(&mut table, 0..HOSTS / 10, Family::V4);
    let mut observed = BTreeMap::new();
    for _ in 0..20 {
        for number in 0..HOSTS / 10 {
            let handed =
                announce(&mut table, host(number, Family::V4), AnnounceEvent::None, WANTED);
            assert_eq!(handed.len(), WANTED);
            handed.into_iter().for_each(|peer| *observed.entry(peer).or_insert(0) += 1);
        }
    }
    // 1,000 times each on average.
    assert_eq!(observed.len(), HOSTS as usize / 10, "some are never handed out");
    let (least, most) = (observed.values().min().unwrap(), observed.values().max().unwrap());
    assert!(*least > 250 && *most < 3_000, "{least} to {most} times");
}

#[test]
fn a_share_comes_from_anywhere() {
    for hosts in [40, HOSTS] {
        let mut table = swarms(preferring(&[24], 20));
        fill(&mut table, 0..hosts, Family::V4);
        let handed = announce(&mut table, host(7, Family::V4), AnnounceEvent::None, 20);
        let near = |peer: &Endpoint| (0..RACK).any(|number| host(number, Family::V4) == *peer);
        assert_eq!(handed.len(), 20);
        assert!(handed[..16].iter().all(near));
        let rest = handed[16..].iter().filter(|peer| near(peer)).count();
        assert!(rest < 4, "{rest} of 4 are neighbours as well");
    }
}

/// What is known of neighbours goes with them, and where they are no longer preferred
#[test]
fn memory_comes_back() {
    let mut table = swarms(SubnetPreference::default());
    fill(&mut table, 0..HOSTS, Family::V4);
    let without = table.stats().bytes;
    table.set_subnet_preference(preferring(&[32, 24, 16, 8], 0));
    fill(&mut table, 0..HOSTS, Family::V4);
    let with = table.stats().bytes;
    assert!(with > without + 4 * HOSTS as usize, "{with} bytes with, {without} without");
    table.set_subnet_preference(SubnetPreference::default());
    for now in 0..1_000 {
        while table.sweep(Seconds(now)) {}
    }
    assert_eq!(table.stats().bytes, without);
}

/// Who is not stored finds a large swarm's neighbours as they were known by other lengths: none twice, and no fewer
#[test]
fn other_lengths_hold_at_once() {
    let mut table = swarms(preferring(&[16, 8], 0));
    // A hundred, each in a /24 of its own.
    let hosts: Vec<_> =
        (0..100).map(|rack| Endpoint::new([81, 7, rack, 1].into(), 7_000)).collect();
    for host in &hosts {
        announce(&mut table, *host, AnnounceEvent::Started, 0);
    }
    let asker = |port| Endpoint::new([81, 7, 200, 1].into(), port);
    for lengths in [&[24, 12][..], &[20], &[16, 8], &[32, 24, 16, 8]] {
        table.set_subnet_preference(preferring(lengths, 0));
        // Nobody can connect to port 0, so it is answered and not stored.
        assert_eq!(announce(&mut table, asker(0), AnnounceEvent::None, 200).len(), hosts.len());
        assert_eq!(announce(&mut table, hosts[3], AnnounceEvent::None, 200).len(), hosts.len() - 1);
    }
}
