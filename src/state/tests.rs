//! Tests of the format: reading back, damage, truncation.

use super::format::HEADER_BYTES;
use super::*;
use std::net::IpAddr;
use tsubame_storage::{
    ChangeKind, Endpoint, InfoHash, PeerRecord, Role, StateRecord, TorrentRecord,
};

/// Draws records of up to `torrents` torrents, with times up to `now`.
fn draw_records(rng: &mut fastrand::Rng, torrents: usize, now: i64) -> Vec<StateRecord> {
    let peer = |rng: &mut fastrand::Rng| {
        let address: IpAddr = match rng.bool() {
            true => rng.u32(..).to_be_bytes().into(),
            false => ((0x2a00 << 112) | rng.u128(..) >> 16).to_be_bytes().into(),
        };
        PeerRecord {
            endpoint: Endpoint::new(address, rng.u16(..)),
            role: [Role::Seeder, Role::Leecher, Role::PartialSeed][rng.usize(..3)],
            is_counted: rng.bool(),
            is_remote: rng.bool(),
            announced_at: now - rng.i64(0..100_000),
        }
    };
    let mut records = Vec::new();
    for _ in 0..rng.usize(..=torrents) {
        let info_hash = InfoHash(std::array::from_fn(|_| rng.u8(..)));
        if rng.u8(..5) == 0 {
            let kinds = [
                ChangeKind::Joined,
                ChangeKind::Refreshed,
                ChangeKind::Completed,
                ChangeKind::Stopped,
            ];
            records.push(StateRecord::Change(info_hash, kinds[rng.usize(..4)], peer(rng)));
            continue;
        }
        let (completed, used_at) = (rng.u32(..) >> rng.u8(..32), now - rng.i64(0..100_000));
        records.push(StateRecord::Torrent(TorrentRecord { info_hash, completed, used_at }));
        let peers = if rng.u8(..20) == 0 { 300 } else { 4 };
        (0..rng.usize(..peers)).for_each(|_| records.push(StateRecord::Peer(peer(rng))));
    }
    records
}

/// Writes a stream with a block for each list of records.
fn stream(blocks: &[Vec<StateRecord>], now: i64) -> Vec<u8> {
    let (mut bytes, mut totals) = (Vec::new(), StreamTotals::default());
    write_header(1_000, &mut bytes);
    for records in blocks {
        write_block(records, now, 2_000, &mut bytes);
        totals.count(records);
    }
    write_end(&totals, 3_000, &mut bytes);
    bytes
}

/// Reads a stream, with the records of all blocks.
fn read(bytes: &[u8], now: i64) -> (Vec<StateRecord>, ReadCounts) {
    let mut reader = BlockReader::new(bytes).unwrap();
    let mut records = Vec::new();
    while let Some(block) = reader.next_block().unwrap() {
        assert_eq!(block.unix_secs, 2_000);
        assert!(block.records(now, &mut records));
    }
    (records, reader.counts())
}

#[test]
fn a_stream_is_read_back() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let now = rng.i64(-100_000..1_000_000);
        let blocks: Vec<_> = (0..rng.u8(..5)).map(|_| draw_records(&mut rng, 40, now)).collect();
        let bytes = stream(&blocks, now);
        let (records, counts) = read(&bytes, now);
        assert!(records == blocks.concat(), "seed {seed}");
        assert!(counts.is_intact(), "{counts:?}");
        // On another clock, all times are moved by the same amount.
        let (moved, _) = read(&bytes, now - 500);
        assert_eq!(moved.len(), records.len());
        if let (Some(StateRecord::Torrent(before)), Some(StateRecord::Torrent(after))) =
            (records.first(), moved.first())
        {
            assert_eq!(before.used_at - after.used_at, 500);
        }
    }
}

#[test]
fn records_are_short_and_long_lists_are_divided() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut records = Vec::new();
    for _ in 0..50_000 {
        let info_hash = InfoHash(std::array::from_fn(|_| rng.u8(..)));
        let torrent = TorrentRecord { info_hash, completed: 3, used_at: 100 };
        records.push(StateRecord::Torrent(torrent));
        let endpoint = Endpoint::new([1, 2, 3, 4].into(), 6_881);
        let (role, announced_at) = (Role::Seeder, -2_000);
        let peer = PeerRecord { endpoint, role, is_counted: false, is_remote: false, announced_at };
        records.push(StateRecord::Peer(peer));
    }
    let bytes = stream(&[records.clone()], 100);
    assert!(bytes.len() < 50_000 * (24 + 9) + 10_000, "{} bytes", bytes.len());
    let (read_back, counts) = read(&bytes, 100);
    assert!(counts.is_intact() && counts.blocks >= 6, "{counts:?}");
    assert!(read_back == records);
}

/// What is damaged is passed over, and all other blocks are read.
#[test]
fn damage_costs_only_the_damaged_block() {
    let mut rng = fastrand::Rng::with_seed(7);
    let blocks: Vec<_> = (0..4).map(|_| draw_records(&mut rng, 60, 500)).collect();
    let parts: Vec<Vec<u8>> = blocks
        .iter()
        .map(|records| {
            let mut bytes = Vec::new();
            write_block(records, 500, 2_000, &mut bytes);
            bytes
        })
        .collect();
    let bytes = stream(&blocks, 500);
    for damaged in 0..4 {
        let start = HEADER_BYTES + parts[..damaged].iter().map(Vec::len).sum::<usize>();
        let len = parts[damaged].len();
        let others: Vec<_> = (0..4).filter(|block| *block != damaged).collect();
        let expected: Vec<_> = others.iter().flat_map(|block| blocks[*block].clone()).collect();
        for _ in 0..200 {
            let mut bytes = bytes.clone();
            bytes[start + rng.usize(..len)] ^= 1 << rng.u8(..8);
            let (records, counts) = read(&bytes, 500);
            assert!(records == expected, "block {damaged}");
            assert!(!counts.is_intact() && counts.totals.is_some(), "{counts:?}");
        }
        // A part that is missing, and bytes that are inserted.
        let mut shorter = bytes.clone();
        shorter.drain(start + 10..start + len - 10);
        assert!(read(&shorter, 500).0 == expected);
        let mut longer = bytes.clone();
        longer.splice(start..start, b"some BLCK bytes".iter().copied());
        let (records, counts) = read(&longer, 500);
        assert!(records == blocks.concat() && counts.skipped_bytes == 15, "{counts:?}");
    }
}

#[test]
fn a_truncated_stream_has_its_complete_blocks() {
    let mut rng = fastrand::Rng::with_seed(8);
    let blocks: Vec<_> = (0..3).map(|_| draw_records(&mut rng, 30, 500)).collect();
    let bytes = stream(&blocks, 500);
    for len in HEADER_BYTES..bytes.len() {
        let (records, counts) = read(&bytes[..len], 500);
        assert!(blocks.concat().starts_with(&records));
        assert!(!counts.is_intact(), "{len} of {} bytes: {counts:?}", bytes.len());
    }
}

#[test]
fn what_is_no_stream_is_refused() {
    for bytes in [&b""[..], b"TSUBAME\n", &[0; 1_000], b"listen: [0.0.0.0:6969] # some other file"]
    {
        assert!(matches!(BlockReader::new(bytes), Err(HeaderError::NotAStream)), "{bytes:?}");
    }
    let mut bytes = stream(&[], 0);
    bytes[8] = 2;
    assert!(matches!(BlockReader::new(&bytes[..]), Err(HeaderError::NotAStream)));
    let checksum = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&checksum.to_le_bytes());
    let refused = BlockReader::new(&bytes[..]);
    assert!(matches!(refused, Err(HeaderError::Version(2))), "{refused:?}");
}
