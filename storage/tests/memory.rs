//! Eviction and refusals when the table reaches its memory limit.

mod common;

use common::TORRENT;
use tsubame_storage::{
    AnnounceEvent, AnnounceOutcome, Endpoint, Family, InfoHash, JoinRefusal, PeerOutput, Role,
    Seconds, SwarmAnnounce, SwarmChange, Swarms, TableSettings,
};

const MEMORY_LIMIT: usize = 4 << 20;

fn torrent(number: u32) -> InfoHash {
    let mut info_hash = TORRENT;
    info_hash.0[..4].copy_from_slice(&number.to_be_bytes());
    info_hash
}

/// Returns an endpoint in a /24 network of its own.
fn peer_of_own_network(number: u32) -> Endpoint {
    Endpoint::new((0x1000_0000 + number * 256).to_be_bytes().into(), 6_881)
}

fn announce_to(
    table: &mut Swarms,
    info_hash: InfoHash,
    endpoint: Endpoint,
    event: AnnounceEvent,
) -> AnnounceOutcome {
    let role = if event == AnnounceEvent::Completed { Role::Seeder } else { Role::Leecher };
    let announce = SwarmAnnounce { info_hash, endpoint, role, event };
    let prefetch = table.prefetch_index(&info_hash);
    let mut v4 = [0; 60];
    let announced = table.announce(
        Seconds(1),
        prefetch,
        &announce,
        PeerOutput::for_family(Family::V4, &mut v4),
    );
    assert!(table.stats().bytes <= MEMORY_LIMIT);
    announced
}

fn sweep(table: &mut Swarms) {
    while table.sweep(Seconds(1)) {}
}

/// If all sources have equal shares, new torrents are refused first, later all joins that need memory.
#[test]
fn the_memory_limit_refuses_new_torrents_first() {
    let mut table = Swarms::new(TableSettings {
        memory_bytes: MEMORY_LIMIT,
        ..TableSettings::with_known_keys(1)
    });
    let refused = (0..100_000).filter(|number| {
        let announced = announce_to(
            &mut table,
            torrent(*number),
            peer_of_own_network(*number),
            AnnounceEvent::Started,
        );
        sweep(&mut table);
        if announced.change == SwarmChange::Joined {
            return false;
        }
        assert_eq!(announced.change, SwarmChange::Refused(JoinRefusal::NewTorrent));
        assert_eq!(announced.counts.leechers, 1, "the requester is counted");
        true
    });
    let refused = refused.count();
    assert!((40_000..60_000).contains(&refused), "{refused}");
    let stats = table.stats();
    assert_eq!((stats.pressure_per_1_000, stats.evicted.source_peers), (1_000, 0));
    assert!(stats.evicted.episodes > 0);
    // A stored torrent still accepts peers.
    let announced =
        announce_to(&mut table, torrent(7), peer_of_own_network(200_000), AnnounceEvent::Started);
    assert_eq!((announced.change, announced.counts.leechers), (SwarmChange::Joined, 2));
    let stored = (0..300_000).take_while(|number| {
        let joined = announce_to(
            &mut table,
            torrent(7),
            peer_of_own_network(300_000 + number),
            AnnounceEvent::Started,
        );
        joined.change != SwarmChange::Refused(JoinRefusal::Memory)
    });
    let stored = stored.count();
    assert!((1_000..299_999).contains(&stored), "{stored} peers stored");
    let announced =
        announce_to(&mut table, torrent(7), peer_of_own_network(900_000), AnnounceEvent::Started);
    assert_eq!(announced.counts.leechers as usize, stored + 3, "the requester is counted");
    assert_eq!(announced.v4_len, 60, "a peer that is not stored still gets peers");
}

/// Torrents without peers are evicted before any peer, and all of them at once on demand.
#[test]
fn torrents_without_peers_are_evicted_first() {
    let mut table = Swarms::new(TableSettings {
        memory_bytes: MEMORY_LIMIT,
        ..TableSettings::with_known_keys(2)
    });
    for number in 0..20_000 {
        announce_to(
            &mut table,
            torrent(number),
            peer_of_own_network(number),
            AnnounceEvent::Started,
        );
        sweep(&mut table);
    }
    for number in 20_000..200_000 {
        for event in [AnnounceEvent::Started, AnnounceEvent::Completed, AnnounceEvent::Stopped] {
            // All from one source, whose peers would be evicted next.
            let endpoint = Endpoint::new([9, 9, 9, 9].into(), 6_881);
            let change = announce_to(&mut table, torrent(number), endpoint, event).change;
            assert!(!matches!(change, SwarmChange::Refused(_)), "{number}: {change:?}");
        }
        sweep(&mut table);
    }
    let stats = table.stats();
    assert!(stats.evicted.empty_torrents > 100_000, "{stats:?}");
    assert_eq!((stats.evicted.source_peers, stats.leechers[0]), (0, 20_000));
    assert_eq!(stats.torrents, stats.empty_torrents + 20_000);
    assert!(stats.empty_torrents > 0);
    assert_eq!(table.evict_empty_torrents(), stats.empty_torrents);
    sweep(&mut table);
    assert_eq!((table.stats().empty_torrents, table.stats().torrents), (0, 20_000));
}

/// Peers of a source above its share are evicted until it has its share; the source is reported, and its new peers are
/// refused while memory is short.
#[test]
fn a_source_is_limited_to_its_share() {
    let mut table = Swarms::new(TableSettings {
        memory_bytes: MEMORY_LIMIT,
        ..TableSettings::with_known_keys(3)
    });
    for number in 0..20_000 {
        announce_to(
            &mut table,
            torrent(number),
            peer_of_own_network(number),
            AnnounceEvent::Started,
        );
    }
    let mut refused = 0;
    for number in 0..500_000_u32 {
        let endpoint = Endpoint::new([9, 9, 9, number as u8].into(), number as u16 | 1_024);
        let announced =
            announce_to(&mut table, torrent(20_000 + number), endpoint, AnnounceEvent::Started);
        refused += u32::from(announced.change == SwarmChange::Refused(JoinRefusal::Source));
        if number % 64 == 0 {
            // As a shard, which sweeps between batches.
            table.sweep(Seconds(1));
        }
    }
    assert!(refused > 0);
    let stats = table.stats();
    assert!(stats.evicted.source_peers > 0 && stats.evicted.episodes > 1, "{stats:?}");
    let top = stats.top_sources[0].unwrap();
    assert_eq!(top.source.to_string(), "9.9.9.0/24");
    for number in 0..20_000 {
        let known = announce_to(
            &mut table,
            torrent(number),
            peer_of_own_network(number),
            AnnounceEvent::None,
        );
        assert_eq!(known.change, SwarmChange::Refreshed, "{number}");
    }
}

/// The memory limit, the caps and the lifetime can be changed while the table is in use.
#[test]
fn settings_can_change_while_the_table_is_in_use() {
    let mut table = Swarms::new(TableSettings {
        memory_bytes: MEMORY_LIMIT,
        ..TableSettings::with_known_keys(4)
    });
    let peer_of_one_address = |port: u16| Endpoint::new([9, 9, 9, 9].into(), port);
    (0..300).for_each(|port| {
        _ = announce_to(
            &mut table,
            torrent(1),
            peer_of_one_address(2_000 + port),
            AnnounceEvent::Started,
        )
    });
    let caps = tsubame_storage::Caps { swarm: 0, per_ipv4: 5, per_ipv6_64: 5 };
    let capped =
        TableSettings { memory_bytes: MEMORY_LIMIT, caps, ..TableSettings::with_known_keys(4) };
    table.reconfigure(capped);
    for (port, expected) in (0..7).zip(
        [SwarmChange::Joined; 5]
            .into_iter()
            .chain([SwarmChange::Refused(JoinRefusal::AddressCap); 2]),
    ) {
        assert_eq!(
            announce_to(
                &mut table,
                torrent(2),
                peer_of_one_address(5_000 + port),
                AnnounceEvent::Started
            )
            .change,
            expected
        );
    }
    // Stored peers stay.
    for port in 0..300 {
        let known = announce_to(
            &mut table,
            torrent(1),
            peer_of_one_address(2_000 + port),
            AnnounceEvent::None,
        );
        assert_eq!(known.change, SwarmChange::Refreshed);
    }
    table.reconfigure(TableSettings {
        peer_lifetime_secs: 60,
        memory_bytes: MEMORY_LIMIT,
        ..TableSettings::with_known_keys(4)
    });
    while table.sweep(Seconds(400)) {}
    for second in 400..500 {
        while table.sweep(Seconds(second)) {}
    }
    assert_eq!(table.stats().leechers, [0, 0]);
}
