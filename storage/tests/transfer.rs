//! Export and import between tables, while announces, expiry and evictions change them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use tsubame_storage::{
    AnnounceEvent, ChangeKind, Endpoint, ExportProgress, Family, ImportCounts, ImportCursor,
    InfoHash, PeerOutput, PeerRecord, Role, Seconds, StateRecord, SwarmAnnounce, SwarmChange,
    Swarms, TableSettings,
};

const LIFETIME: u32 = 1_200;
const TICK: u64 = 20;

/// A peer of a torrent.
type Member = (InfoHash, Endpoint);

fn settings(seed: u64) -> TableSettings {
    TableSettings {
        peer_lifetime_secs: LIFETIME,
        keep_completed_secs: 12_000,
        ..TableSettings::with_known_keys(seed)
    }
}

fn torrent(number: u32) -> InfoHash {
    let mut info_hash = InfoHash([9; 20]);
    info_hash.0[..4].copy_from_slice(&number.to_be_bytes());
    info_hash
}

fn endpoint(number: u32) -> Endpoint {
    let address: IpAddr = match number % 3 {
        0 => ((0x2a00 << 112) | u128::from(number) << 64).to_be_bytes().into(),
        _ => (0x5000_0000 + number).to_be_bytes().into(),
    };
    Endpoint::new(address, 6_881)
}

fn announce(
    swarms: &mut Swarms,
    now: u64,
    (info_hash, endpoint): Member,
    (role, event): (Role, AnnounceEvent),
) -> SwarmChange {
    let announce = SwarmAnnounce { info_hash, endpoint, role, event };
    let prefetch = swarms.prefetch_index(&info_hash);
    let output = PeerOutput::for_family(Family::V4, &mut []);
    swarms.announce(Seconds(now), prefetch, &announce, output).change
}

/// Draws the role and the event of an announce; one in `stops` stops.
fn draw(rng: &mut fastrand::Rng, stops: u8) -> (Role, AnnounceEvent) {
    let role = [Role::Seeder, Role::Leecher, Role::Leecher, Role::PartialSeed][rng.usize(..4)];
    let event = match rng.u8(..) {
        draw if draw.is_multiple_of(stops) => AnnounceEvent::Stopped,
        0..60 => AnnounceEvent::Completed,
        _ => AnnounceEvent::None,
    };
    (role, event)
}

/// Exports until everything was exported.
fn export_all(swarms: &mut Swarms) -> Vec<StateRecord> {
    let mut records = Vec::new();
    while swarms.export(&mut records) != ExportProgress::Complete {}
    records
}

fn import_all(swarms: &mut Swarms, now: u64, records: &[StateRecord]) -> ImportCounts {
    let mut cursor = ImportCursor::default();
    while swarms.import(Seconds(now), &mut cursor, records, |_| true) {}
    cursor.counts()
}

/// Role and age of each living peer, and the completed downloads of each torrent that has some or has peers.
type Contents = (BTreeMap<Member, (Role, u32)>, BTreeMap<InfoHash, u32>);

/// Lists the contents of a table without an export.
fn contents(swarms: &mut Swarms, torrents: u32) -> Contents {
    let (mut peers, mut completed) = (BTreeMap::new(), BTreeMap::new());
    for info_hash in (0..torrents).map(torrent) {
        let Some(details) = swarms.inspect(&info_hash, usize::MAX >> 32) else { continue };
        if details.stats.counts.completed > 0 {
            completed.insert(info_hash, details.stats.counts.completed);
        }
        for peer in details.peers.iter().filter(|peer| peer.age_secs <= LIFETIME) {
            peers.insert((info_hash, peer.endpoint), (peer.role, peer.age_secs));
        }
    }
    (peers, completed)
}

fn sweep(swarms: &mut Swarms, now: u64) {
    while swarms.sweep(Seconds(now)) {}
}

/// Exports a table with its changes while announces and expiry go on, and imports the records into a second table at
/// the same time. At the end, both tables are the same.
fn copy_while_announcing(seed: u64, torrents: u32, peers: u32, steps: u32) {
    println!("seed {seed}, {torrents} torrents, {peers} peers");
    let steps = if cfg!(miri) { 40 } else { steps };
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut source = Swarms::new(settings(seed));
    let mut target = Swarms::new(TableSettings { hash_key: (7, 7), ..settings(seed) });
    let mut now = 5_000;
    let member =
        move |rng: &mut fastrand::Rng| (torrent(rng.u32(..torrents)), endpoint(rng.u32(..peers)));
    for _ in 0..steps {
        let member = member(&mut rng);
        announce(&mut source, now, member, draw(&mut rng, 13));
        if rng.u32(..steps) < 20 {
            now += TICK / 2;
            sweep(&mut source, now);
        }
    }
    source.begin_export(steps as usize);
    target.begin_import();
    let mut pages = VecDeque::new();
    let mut progress = ExportProgress::Torrents;
    while progress == ExportProgress::Torrents || !pages.is_empty() {
        for _ in 0..rng.u32(..200) {
            let member = member(&mut rng);
            announce(&mut source, now, member, draw(&mut rng, 5));
        }
        if rng.u8(..4) == 0 {
            now += rng.u64(..TICK * 4);
            sweep(&mut source, now);
            sweep(&mut target, now);
        }
        if rng.bool() {
            let mut page = Vec::new();
            progress = source.export(&mut page);
            pages.push_back(page);
        }
        // A peer must not expire before its record arrives.
        if (rng.bool() || pages.len() > 4)
            && let Some(page) = pages.pop_front()
        {
            assert_eq!(import_all(&mut target, now, &page).refused, 0);
        }
    }
    import_all(&mut target, now, &export_all(&mut source));
    assert_eq!(source.lost_changes(), 0);
    source.end_export();
    target.end_import();
    sweep(&mut source, now);
    sweep(&mut target, now);
    let (expected, found) = (contents(&mut source, torrents), contents(&mut target, torrents));
    assert!(!expected.0.is_empty());
    let differs = |(member, peer): &(&Member, &(Role, u32))| found.0.get(member) != Some(peer);
    let peers: Vec<_> = expected.0.iter().filter(differs).collect();
    assert_eq!((peers, found.0.len()), (Vec::new(), expected.0.len()), "seed {seed}");
    let differs = |(info_hash, count): &(&InfoHash, &u32)| found.1.get(info_hash) != Some(count);
    let completed: Vec<_> = expected.1.iter().filter(differs).collect();
    assert_eq!((completed, found.1.len()), (Vec::new(), expected.1.len()), "seed {seed}");
}

#[test]
fn a_copy_of_small_swarms_is_equal() {
    (1..=8).for_each(|seed| copy_while_announcing(seed, 3_000, 20, 20_000));
}

#[test]
fn a_copy_of_middle_sized_swarms_is_equal() {
    (11..=16).for_each(|seed| copy_while_announcing(seed, 100, 150, 20_000));
}

#[test]
fn a_copy_of_large_swarms_is_equal() {
    (21..=26).for_each(|seed| copy_while_announcing(seed, 2, 20_000, 60_000));
}

/// Exports a table without its changes while announces go on: each peer that was stored all the time is exported, and
/// none that was never stored.
fn export_while_announcing(seed: u64, torrents: u32, peers: u32) {
    println!("seed {seed}, {torrents} torrents, {peers} peers");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut source = Swarms::new(settings(seed));
    let (now, steps) = (5_000, if cfg!(miri) { 100 } else { 60_000 });
    for _ in 0..steps {
        let member = (torrent(rng.u32(..torrents)), endpoint(rng.u32(..peers)));
        announce(&mut source, now, member, draw(&mut rng, 13));
    }
    let mut all_the_time: BTreeSet<Member> =
        contents(&mut source, torrents).0.into_keys().collect();
    let mut ever = all_the_time.clone();
    source.begin_export(0);
    let mut records = Vec::new();
    while source.export(&mut records) != ExportProgress::Complete {
        for _ in 0..rng.u32(..300) {
            let member = (torrent(rng.u32(..torrents)), endpoint(rng.u32(..peers)));
            match announce(&mut source, now, member, draw(&mut rng, 5)) {
                SwarmChange::Stopped => _ = all_the_time.remove(&member),
                SwarmChange::Joined => _ = ever.insert(member),
                _ => {}
            }
        }
    }
    let mut info_hash = torrent(0);
    let mut exported = BTreeSet::new();
    for record in records {
        match record {
            StateRecord::Torrent(torrent) => info_hash = torrent.info_hash,
            StateRecord::Peer(peer) => _ = exported.insert((info_hash, peer.endpoint)),
            StateRecord::Change(..) => panic!("a change was exported"),
        }
    }
    assert!(!all_the_time.is_empty());
    let missing: Vec<_> = all_the_time.difference(&exported).collect();
    assert!(missing.is_empty(), "{missing:?} of {}", all_the_time.len());
    assert!(exported.is_subset(&ever));
}

#[test]
fn a_peer_that_is_stored_all_the_time_is_exported() {
    (1..=4).for_each(|seed| export_while_announcing(seed, 3_000, 20));
    (11..=14).for_each(|seed| export_while_announcing(seed, 100, 150));
    (21..=26).for_each(|seed| export_while_announcing(seed, 2, 20_000));
}

/// A table imports records of an earlier one while clients announce to it: what they say is younger, and wins.
#[test]
fn younger_information_wins() {
    for seed in 1..=10 {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (torrents, peers, steps) = (60, 60, if cfg!(miri) { 100 } else { 8_000 });
        let mut earlier = Swarms::new(settings(seed));
        let member =
            |rng: &mut fastrand::Rng| (torrent(rng.u32(..torrents)), endpoint(rng.u32(..peers)));
        let mut now = 50_000;
        for step in 0..steps {
            let member = member(&mut rng);
            announce(&mut earlier, now + step / 40, member, draw(&mut rng, 13));
        }
        now += steps / 40;
        earlier.begin_export(0);
        let records = export_all(&mut earlier);
        let (stored, completed) = contents(&mut earlier, torrents);
        now += 2 * TICK;
        let is_alive = |age: &u32| age + 2 * TICK as u32 <= LIFETIME;
        let mut expected: BTreeMap<Member, Option<Role>> = stored
            .iter()
            .map(|(member, (role, age))| (*member, is_alive(age).then_some(*role)))
            .collect();
        // Its clock has started later: the records are from before its start.
        let start = now - 10;
        let on_new_clock = |time: &mut i64| *time -= start as i64;
        let records: Vec<_> = records
            .into_iter()
            .map(|mut record| {
                match &mut record {
                    StateRecord::Torrent(torrent) => on_new_clock(&mut torrent.used_at),
                    StateRecord::Peer(peer) | StateRecord::Change(_, _, peer) => {
                        on_new_clock(&mut peer.announced_at);
                    }
                }
                record
            })
            .collect();
        let mut later = Swarms::new(TableSettings { seed: 99, ..settings(seed) });
        later.begin_import();
        let (mut cursor, mut more) = (ImportCursor::default(), true);
        while more {
            for _ in 0..rng.u8(..100) {
                let (member, (role, event)) = (member(&mut rng), draw(&mut rng, 3));
                announce(&mut later, 10, member, (role, event));
                expected.insert(member, (event != AnnounceEvent::Stopped).then_some(role));
            }
            more = later.import(Seconds(10), &mut cursor, &records, |_| true);
        }
        later.end_import();
        let found = contents(&mut later, torrents);
        let found_peers: BTreeMap<Member, Role> =
            found.0.into_iter().map(|(member, (role, _))| (member, role)).collect();
        expected.retain(|_, role| role.is_some());
        let expected: BTreeMap<Member, Role> =
            expected.into_iter().map(|(member, role)| (member, role.unwrap())).collect();
        assert_eq!(found_peers, expected, "seed {seed}");
        for (info_hash, count) in completed {
            assert!(found.1.get(&info_hash).is_some_and(|found| *found >= count), "{info_hash}");
        }
    }
}

/// Ages are kept to within a tick of each table, although the ticks of the tables differ in length.
#[test]
fn ages_are_kept_to_within_a_tick_of_each_table() {
    let mut earlier = Swarms::new(TableSettings { peer_lifetime_secs: 2_700, ..settings(1) });
    let started = (Role::Leecher, AnnounceEvent::Started);
    for age in 0..2_000 {
        announce(&mut earlier, 10_000 + u64::from(age), (torrent(1), endpoint(age)), started);
    }
    earlier.begin_export(0);
    let records = export_all(&mut earlier);
    for lifetime in [1_800, 2_700, 6_000] {
        let settings = TableSettings { peer_lifetime_secs: lifetime, ..settings(2) };
        let mut later = Swarms::new(settings);
        later.begin_import();
        let counts = import_all(&mut later, 12_000, &records);
        let details = later.inspect(&torrent(1), 10_000).unwrap();
        assert_eq!(counts.peers as usize, details.peers.len());
        assert!(counts.peers + counts.outdated == 2_000 && counts.peers >= 1_700, "{counts:?}");
        let ages: BTreeMap<_, _> =
            details.peers.iter().map(|peer| (peer.endpoint, peer.age_secs)).collect();
        for (endpoint, age) in ages {
            let number = (0..2_000).find(|number| self::endpoint(*number) == endpoint).unwrap();
            let exact = 2_000 - number;
            let tick = lifetime.div_ceil(60);
            assert!(
                (exact.saturating_sub(tick)..=exact + 45 + tick).contains(&age),
                "{exact} {age}"
            );
        }
    }
}

/// Changes of other nodes are added as long as announces are, which is longer than records of an export.
#[test]
#[cfg(not(miri))]
fn changes_are_imported_until_memory_is_as_short_as_for_announces() {
    let mut swarms = Swarms::new(TableSettings { memory_bytes: 2 << 20, ..settings(1) });
    swarms.begin_publication(10);
    let record = |number: u32| {
        let (role, announced_at) = (Role::Leecher, 0);
        let peer = PeerRecord {
            endpoint: endpoint(number),
            role,
            is_counted: false,
            is_remote: true,
            announced_at,
        };
        StateRecord::Change(torrent(number), ChangeKind::Joined, peer)
    };
    let changes: Vec<StateRecord> = (0..60_000).map(record).collect();
    let counts = import_all(&mut swarms, 0, &changes);
    let imported = swarms.stats();
    // Announces add no more torrents, either.
    for number in 60_000..61_000 {
        let member = (torrent(number), endpoint(number));
        announce(&mut swarms, 0, member, (Role::Leecher, AnnounceEvent::Started));
    }
    assert!(counts.refused > 10_000 && swarms.stats().torrents == imported.torrents, "{counts:?}");
}

/// An import adds nothing while memory is short, and so never causes evictions.
#[test]
fn an_import_leaves_memory_free() {
    let peers = if cfg!(miri) { 50 } else { 60_000 };
    let mut earlier = Swarms::new(settings(1));
    let started = (Role::Leecher, AnnounceEvent::Started);
    for number in 0..peers {
        announce(&mut earlier, 0, (torrent(number), endpoint(number)), started);
    }
    earlier.begin_export(0);
    let records = export_all(&mut earlier);
    let mut later = Swarms::new(TableSettings { memory_bytes: 2 << 20, ..settings(2) });
    later.begin_import();
    let counts = import_all(&mut later, 0, &records);
    sweep(&mut later, 1);
    let stats = later.stats();
    if !cfg!(miri) {
        assert!(counts.refused > 10_000 && counts.torrents > 10_000, "{counts:?}");
        assert!(counts.torrents + counts.refused >= u64::from(peers), "{counts:?}");
    }
    assert_eq!(stats.evicted.episodes, 0, "{stats:?}");
}

/// Torrents that policy forbids are left out, with their peers.
#[test]
fn forbidden_torrents_are_not_imported() {
    let mut earlier = Swarms::new(settings(1));
    for number in 0..100 {
        let member = (torrent(number % 10), endpoint(number));
        announce(&mut earlier, 0, member, (Role::Seeder, AnnounceEvent::Started));
    }
    earlier.begin_export(0);
    let records = export_all(&mut earlier);
    let mut later = Swarms::new(settings(2));
    later.begin_import();
    let mut cursor = ImportCursor::default();
    while later.import(Seconds(0), &mut cursor, &records, |it| *it != torrent(3)) {}
    assert_eq!((cursor.counts().forbidden, cursor.counts().peers), (1, 90));
    assert!(later.inspect(&torrent(3), 1).is_none());
}

/// Takes what was published, as records of another node.
fn take_published(swarms: &mut Swarms) -> Vec<StateRecord> {
    let as_remote = |record| match record {
        StateRecord::Change(info_hash, kind, peer) => {
            StateRecord::Change(info_hash, kind, PeerRecord { is_remote: true, ..peer })
        }
        record => record,
    };
    swarms.take_published(usize::MAX).map(as_remote).collect()
}

#[test]
fn what_others_must_know_is_published_and_repetitions_once_a_third_of_the_lifetime() {
    let mut swarms = Swarms::new(settings(1));
    swarms.begin_publication(100);
    let member = (torrent(1), endpoint(1));
    let mut published = |now, role, event| {
        announce(&mut swarms, now, member, (role, event));
        let kinds = swarms.take_published(10).map(|record| match record {
            StateRecord::Change(_, kind, peer) => (kind, peer.announced_at),
            record => panic!("{record:?}"),
        });
        kinds.collect::<Vec<_>>()
    };
    use AnnounceEvent::{Completed, None as Nothing, Stopped};
    use ChangeKind::{Joined, Refreshed};
    let third = u64::from(LIFETIME) / 3;
    let start = 12 * third + 7;
    assert_eq!(published(start, Role::Leecher, Nothing), [(Joined, start as i64)]);
    assert_eq!(published(start + 100, Role::Leecher, Nothing), []);
    assert_eq!(published(start + third, Role::Leecher, Nothing).len(), 1);
    assert_eq!(published(start + third + 100, Role::Leecher, Nothing), []);
    let at = start + third + 101;
    assert_eq!(published(at, Role::PartialSeed, Nothing), [(Refreshed, at as i64)]);
    assert_eq!(published(at + 1, Role::Seeder, Completed)[0].0, ChangeKind::Completed);
    assert_eq!(published(at + 2, Role::Seeder, Nothing), []);
    assert_eq!(published(at + 3, Role::Seeder, Stopped)[0].0, ChangeKind::Stopped);
    assert_eq!(published(at + 4, Role::Seeder, Stopped), []);
    assert_eq!(swarms.lost_published(), 0);
}

#[test]
fn peers_of_other_nodes_are_stored_marked_and_not_published_again() {
    let (mut own, mut other) = (Swarms::new(settings(1)), Swarms::new(settings(2)));
    own.begin_publication(3);
    other.begin_publication(100);
    for number in 0..4 {
        announce(
            &mut own,
            5_000,
            (torrent(1), endpoint(number)),
            (Role::Seeder, AnnounceEvent::None),
        );
    }
    assert_eq!(own.lost_published(), 1);
    let records = take_published(&mut own);
    assert_eq!(import_all(&mut other, 5_000, &records).peers, 3);
    assert_eq!(take_published(&mut other), []);
    let remote = |swarms: &mut Swarms| {
        let peers = swarms.inspect(&torrent(1), 10).unwrap().peers;
        peers.iter().filter(|peer| peer.is_remote).count()
    };
    assert_eq!((remote(&mut own), remote(&mut other)), (0, 3));
    // The mark survives an export.
    other.begin_export(0);
    let mut restored = Swarms::new(settings(3));
    restored.begin_publication(100);
    import_all(&mut restored, 5_000, &export_all(&mut other));
    assert_eq!(remote(&mut restored), 3);
    // A peer that comes here in the same third of its lifetime is known to the others; one that was here before a
    // restart may not be.
    let member = (torrent(1), endpoint(0));
    announce(&mut restored, 5_001, member, (Role::Seeder, AnnounceEvent::None));
    assert_eq!((remote(&mut restored), take_published(&mut restored).len()), (2, 0));
    restored.begin_export(0);
    let records = export_all(&mut restored);
    let mut restarted = Swarms::new(settings(4));
    restarted.begin_publication(100);
    import_all(&mut restarted, 5_002, &records);
    announce(&mut restarted, 5_003, member, (Role::Seeder, AnnounceEvent::None));
    assert_eq!(take_published(&mut restarted).len(), 1);
}

/// The changes of two other nodes may arrive in any order.
#[test]
fn an_old_change_of_another_node_adds_no_peer_that_has_stopped() {
    let mut swarms = Swarms::new(settings(1));
    swarms.begin_publication(100);
    let change = |kind, announced_at, number| {
        let (role, is_counted, is_remote) = (Role::Leecher, false, true);
        let endpoint = endpoint(number);
        let peer = PeerRecord { endpoint, role, is_counted, is_remote, announced_at };
        StateRecord::Change(torrent(1), kind, peer)
    };
    let mut import = |now, kind, announced_at, number| {
        import_all(&mut swarms, now, &[change(kind, announced_at, number)]);
        let torrent = swarms.inspect(&torrent(1), 10);
        torrent.map_or(0, |torrent| torrent.peers.len())
    };
    import(5_000, ChangeKind::Stopped, 4_990, 1);
    assert_eq!(import(5_001, ChangeKind::Joined, 4_985, 1), 0);
    assert_eq!(import(5_001, ChangeKind::Joined, 4_990, 1), 1, "the same node, within a second");
    assert_eq!(import(5_002, ChangeKind::Stopped, 5_001, 1), 0);
    // It is remembered for two minutes at least.
    import(5_115, ChangeKind::Stopped, 5_115, 2);
    import(5_125, ChangeKind::Stopped, 5_125, 3);
    assert_eq!(import(5_125, ChangeKind::Joined, 5_000, 1), 0);
}
