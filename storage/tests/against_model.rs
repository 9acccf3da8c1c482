//! Comparison of the swarm table with a simple model, over random operations.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod model;

use model::{Checker, LIFETIME, Operation};
use tsubame_storage::{
    AnnounceEvent, Caps, Endpoint, Family, InfoHash, PeerOutput, Role, Seconds, SwarmAnnounce,
    Swarms, TableSettings,
};

/// Kind of an operation that announces.
const ANNOUNCE: u8 = 0;

/// Returns whether an operation is of the kind that waits for up to 765 seconds.
fn is_wait(operation: Operation) -> bool {
    operation.kind % 16 == 14
}

/// Compares `steps` random operations; `has_subnets` sets a subnet preference.
fn run(seed: u64, steps: usize, (torrents, peers): (u8, u16), caps: Caps, has_subnets: bool) {
    println!("seed {seed}, {torrents} torrents, {peers} peers, {caps:?}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut checker = Checker::new(seed, peers, caps);
    checker.set_subnet_preference(has_subnets);
    for _ in 0..if cfg!(miri) { 60 } else { steps } {
        let bytes = std::array::from_fn(|_| rng.u8(..));
        let mut operation = Operation::from_bytes(bytes);
        operation.torrent %= torrents;
        // Waiting is rarer than announcing; otherwise no swarm would grow.
        if is_wait(operation) && rng.u16(..) > peers.max(1_000) / 64 {
            operation.kind = ANNOUNCE;
        }
        checker.apply(operation);
    }
    checker.finish();
}

#[test]
fn small_swarms_agree_with_the_model() {
    for seed in 1..=6 {
        run(seed, 20_000, (200, 12), Caps::default(), false);
    }
}

#[test]
fn middle_sized_swarms_agree_with_the_model() {
    for seed in 10..=13 {
        run(seed, 12_000, (7, 150), Caps::default(), false);
    }
}

#[test]
fn large_swarms_agree_with_the_model() {
    for seed in 20..=21 {
        run(seed, 12_000, (2, 4_000), Caps::default(), false);
    }
}

#[test]
fn caps_agree_with_the_model() {
    for seed in 30..=33 {
        let caps = Caps { swarm: 0, per_ipv4: 3, per_ipv6_64: 2 };
        run(seed, 10_000, (3, 900), caps, false);
        run(seed, 10_000, (3, 900), Caps { swarm: 70, ..caps }, false);
    }
}

#[test]
fn preferred_subnet_peers_agree_with_the_model() {
    for (seed, torrents, peers) in [(40, 50, 30), (41, 7, 150), (42, 2, 4_000)] {
        let caps = Caps { per_ipv4: 5, ..Caps::default() };
        run(seed, 20_000, (torrents, peers), caps, true);
    }
}

#[test]
fn completed_downloads_are_kept_after_a_stop_of_an_expired_peer() {
    let mut checker = Checker::new(1, 1, Caps::default());
    let announce = |detail| Operation { kind: ANNOUNCE, torrent: 1, peer: 0, detail };
    let [started_leecher, completed_seeder, stopped_seeder] = [12, 2, 0].map(announce);
    checker.apply(started_leecher);
    checker.apply(completed_seeder);
    checker.wait(u64::from(LIFETIME) + 500);
    checker.apply(stopped_seeder);
    checker.finish();
}

#[test]
fn a_delayed_sweep_revives_no_expired_peer() {
    // A tick is 20 s here. The sweep may be 100 ticks late; after a longer gap the table checks all peers at once.
    for pause_secs in [1_000, 1_210, 1_360, 1_500, 2_560, 2_600, 26_000, 51_200, 52_000, 1_000_000]
    {
        let mut checker = Checker::new(pause_secs, 400, Caps::default());
        let mut rng = fastrand::Rng::with_seed(pause_secs);
        let mut announce_some = |checker: &mut Checker, count: usize| {
            for _ in 0..count {
                let (peer, detail) = (rng.u16(..), rng.u8(..));
                checker.apply(Operation { kind: ANNOUNCE, torrent: peer as u8 % 3, peer, detail });
            }
        };
        for _ in 0..20 {
            announce_some(&mut checker, 60);
            checker.wait(u64::from(LIFETIME) / 25);
        }
        checker.wait_without_sweeps(pause_secs);
        // The announces check that no expired peer is returned.
        announce_some(&mut checker, 300);
        checker.finish();
    }
}

/// After a reload to a longer lifetime a tick is less than a sixtieth of it: an age must not wrap around in a pause.
#[test]
fn peers_expire_in_a_pause_after_the_lifetime_was_raised() {
    let settings = TableSettings { peer_lifetime_secs: 2_700, ..TableSettings::with_known_keys(1) };
    let mut swarms = Swarms::new(settings);
    swarms.reconfigure(TableSettings { peer_lifetime_secs: 6_750, ..settings });
    let info_hash = InfoHash([7; 20]);
    let endpoint = Endpoint::new([9, 9, 9, 9].into(), 6_881);
    let (role, event) = (Role::Leecher, AnnounceEvent::Started);
    let announce = SwarmAnnounce { info_hash, endpoint, role, event };
    let prefetch = swarms.prefetch_index(&info_hash);
    swarms.announce(Seconds(0), prefetch, &announce, PeerOutput::for_family(Family::V4, &mut []));
    (1..=6_300).for_each(|second| _ = swarms.sweep(Seconds(second)));
    let leechers =
        |swarms: &Swarms| swarms.scrape(&swarms.prefetch_index(&info_hash), &info_hash).leechers;
    assert_eq!(leechers(&swarms), 1);
    swarms.sweep(Seconds(6_300 + 9_000));
    assert_eq!(leechers(&swarms), 0);
}
