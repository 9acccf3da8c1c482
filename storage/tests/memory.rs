//! What a table does when memory runs short.

mod common;

use common::{TORRENT, settings};
use tsubame_storage::{
    Announce, Announced, Change, Endpoint, Event, Family, InfoHash, PeerSpace, Refusal, Role,
    Seconds, Settings, Swarms,
};

const CEILING: usize = 4 << 20;

fn torrent(number: u32) -> InfoHash {
    let mut info_hash = TORRENT;
    info_hash.0[..4].copy_from_slice(&number.to_be_bytes());
    info_hash
}

/// Addresses of different /24 networks
fn stranger(number: u32) -> Endpoint {
    Endpoint::new((0x1000_0000 + number * 256).to_be_bytes().into(), 6_881)
}

fn enter(table: &mut Swarms, info_hash: InfoHash, endpoint: Endpoint, event: Event) -> Announced {
    let role = if event == Event::Completed { Role::Seeder } else { Role::Leecher };
    let announce = Announce { info_hash, endpoint, role, event };
    let ahead = table.look_ahead(&info_hash);
    let mut v4 = [0; 60];
    let announced =
        table.announce(Seconds(1), ahead, &announce, PeerSpace::of(Family::V4, &mut v4));
    assert!(table.totals().bytes <= CEILING);
    announced
}

fn sweep(table: &mut Swarms) {
    while table.sweep(Seconds(1)) {}
}

/// Where nobody has more than anybody else, new torrents are refused, and later everything that grows
#[test]
fn the_ceiling_refuses_new_torrents_first() {
    let mut table = Swarms::new(Settings { memory_bytes: CEILING, ..settings(1) });
    let refused = (0..100_000).filter(|number| {
        let announced = enter(&mut table, torrent(*number), stranger(*number), Event::Started);
        sweep(&mut table);
        if announced.change == Change::Joined {
            return false;
        }
        assert_eq!(announced.change, Change::Refused(Refusal::NewTorrent));
        assert_eq!(announced.counts.leechers, 1, "the announcer is counted");
        true
    });
    let refused = refused.count();
    assert!((40_000..60_000).contains(&refused), "{refused}");
    let totals = table.totals();
    assert_eq!((totals.pressure_per_1_000, totals.evicted.source_peers), (1_000, 0));
    assert!(totals.evicted.episodes > 0);
    // A torrent that is there still takes peers.
    let announced = enter(&mut table, torrent(7), stranger(200_000), Event::Started);
    assert_eq!((announced.change, announced.counts.leechers), (Change::Joined, 2));
    let stored = (0..300_000).take_while(|number| {
        let joined = enter(&mut table, torrent(7), stranger(300_000 + number), Event::Started);
        joined.change != Change::Refused(Refusal::Memory)
    });
    let stored = stored.count();
    assert!((1_000..299_999).contains(&stored), "{stored} peers stored");
    let announced = enter(&mut table, torrent(7), stranger(900_000), Event::Started);
    assert_eq!(announced.counts.leechers as usize, stored + 3, "the announcer is counted");
    assert_eq!(announced.v4_len, 60, "it gets peers");
}

/// Torrents without peers go before anybody's peer, and all of them at once if that is asked for
#[test]
fn torrents_without_peers_go_first() {
    let mut table = Swarms::new(Settings { memory_bytes: CEILING, ..settings(2) });
    for number in 0..20_000 {
        enter(&mut table, torrent(number), stranger(number), Event::Started);
        sweep(&mut table);
    }
    for number in 20_000..200_000 {
        for event in [Event::Started, Event::Completed, Event::Stopped] {
            // One source: it would be next.
            let endpoint = Endpoint::new([9, 9, 9, 9].into(), 6_881);
            let change = enter(&mut table, torrent(number), endpoint, event).change;
            assert!(!matches!(change, Change::Refused(_)), "{number}: {change:?}");
        }
        sweep(&mut table);
    }
    let totals = table.totals();
    assert!(totals.evicted.empty_torrents > 100_000, "{totals:?}");
    assert_eq!((totals.evicted.source_peers, totals.leechers[0]), (0, 20_000));
    assert_eq!(totals.torrents, totals.empty_torrents + 20_000);
    assert!(totals.empty_torrents > 0);
    assert_eq!(table.drop_empty_torrents(), totals.empty_torrents);
    sweep(&mut table);
    assert_eq!((table.totals().empty_torrents, table.totals().torrents), (0, 20_000));
}

/// A source keeps its share and no more; it is named, and joins no more peers while memory is short
#[test]
fn a_source_keeps_its_share() {
    let mut table = Swarms::new(Settings { memory_bytes: CEILING, ..settings(3) });
    for number in 0..20_000 {
        enter(&mut table, torrent(number), stranger(number), Event::Started);
    }
    let mut refused = 0;
    for number in 0..500_000_u32 {
        let endpoint = Endpoint::new([9, 9, 9, number as u8].into(), number as u16 | 1_024);
        let announced = enter(&mut table, torrent(20_000 + number), endpoint, Event::Started);
        refused += u32::from(announced.change == Change::Refused(Refusal::Source));
        if number % 64 == 0 {
            // As a shard does after a batch.
            table.sweep(Seconds(1));
        }
    }
    assert!(refused > 0);
    let totals = table.totals();
    assert!(totals.evicted.source_peers > 0 && totals.evicted.episodes > 1, "{totals:?}");
    let top = totals.top_sources[0].unwrap();
    assert_eq!(top.source.to_string(), "9.9.9.0/24");
    for number in 0..20_000 {
        let known = enter(&mut table, torrent(number), stranger(number), Event::None);
        assert_eq!(known.change, Change::Refreshed, "{number}");
    }
}

/// Settings change while the table is used: a ceiling, caps, a lifetime
#[test]
fn settings_change_while_the_table_is_used() {
    let mut table = Swarms::new(Settings { memory_bytes: CEILING, ..settings(4) });
    let many = |port: u16| Endpoint::new([9, 9, 9, 9].into(), port);
    (0..300).for_each(|port| _ = enter(&mut table, torrent(1), many(2_000 + port), Event::Started));
    let caps = tsubame_storage::Caps { swarm: 0, per_ipv4: 5, per_ipv6_64: 5 };
    let capped = Settings { memory_bytes: CEILING, caps, ..settings(4) };
    table.reconfigure(capped);
    for (port, expected) in
        (0..7).zip([Change::Joined; 5].into_iter().chain([Change::Refused(Refusal::AddressCap); 2]))
    {
        assert_eq!(
            enter(&mut table, torrent(2), many(5_000 + port), Event::Started).change,
            expected
        );
    }
    // What was there keeps being found.
    for port in 0..300 {
        let known = enter(&mut table, torrent(1), many(2_000 + port), Event::None);
        assert_eq!(known.change, Change::Refreshed);
    }
    table.reconfigure(Settings { peer_lifetime_secs: 60, memory_bytes: CEILING, ..settings(4) });
    while table.sweep(Seconds(400)) {}
    for second in 400..500 {
        while table.sweep(Seconds(second)) {}
    }
    assert_eq!(table.totals().leechers, [0, 0]);
}
