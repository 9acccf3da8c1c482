//! Counts the bytes of records that a call moves or compares and the index slots that it visits, so that a test can
//! check the bound.
//!
//! Outside of the unit tests of this crate the functions do nothing.

#[cfg(test)]
mod counter {
    use std::cell::Cell;

    /// Work that was done on this thread since the last [`take`].
    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct Work {
        pub(crate) record_bytes: usize,
        pub(crate) index_slots: usize,
    }

    thread_local! {
        static WORK: Cell<Work> = const { Cell::new(Work { record_bytes: 0, index_slots: 0 }) };
    }

    pub(crate) fn count_records(bytes: usize) {
        WORK.with(|cell| {
            let work = cell.get();
            cell.set(Work { record_bytes: work.record_bytes + bytes, ..work });
        });
    }

    pub(crate) fn count_slots(count: usize) {
        WORK.with(|cell| {
            let work = cell.get();
            cell.set(Work { index_slots: work.index_slots + count, ..work });
        });
    }

    pub(crate) fn take() -> Work {
        WORK.with(Cell::take)
    }
}

#[cfg(test)]
pub(crate) use counter::{count_records, count_slots, take};

#[cfg(not(test))]
pub(crate) fn count_records(_bytes: usize) {}

#[cfg(not(test))]
pub(crate) fn count_slots(_count: usize) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::SEGMENT_SLOTS_MAX;
    use crate::{
        AnnounceEvent, Endpoint, ExportProgress, Family, InfoHash, PeerOutput, PrefixLengths, Role,
        Seconds, StateRecord, SubnetPreference, SwarmAnnounce, Swarms, TableCursor, TableSettings,
    };
    use std::net::IpAddr;

    const RECORD_BYTES_MAX: usize = 64 << 10;

    fn peer(number: u32) -> Endpoint {
        let address: IpAddr = match number % 2 {
            0 => number.to_be_bytes().into(),
            _ => ((0x2a00 << 112) | u128::from(number)).to_be_bytes().into(),
        };
        Endpoint::new(address, 6_881)
    }

    /// Calls a function and checks the bound on its work. A peer is in up to `indexes` indexes: that of endpoints, and
    /// one for each prefix length.
    fn assert_bounded<T>(indexes: usize, what: &str, call: impl FnOnce() -> T) -> T {
        take();
        let result = call();
        let work = take();
        assert!(work.record_bytes <= RECORD_BYTES_MAX, "{what}: {work:?}");
        assert!(work.index_slots <= indexes * SEGMENT_SLOTS_MAX, "{what}: {work:?}");
        result
    }

    #[test]
    fn no_call_does_more_than_the_bound_at_any_size() {
        let lengths = |lengths: &[u8]| {
            PrefixLengths::new(lengths).expect("the lengths are in descending order")
        };
        let (v4, v6) = (lengths(&[24, 16]), lengths(&[128, 112]));
        check_bound(1, 1_000_000, SubnetPreference::default());
        check_bound(3, 300_000, SubnetPreference { v4, v6, at_random_percent: 0 });
    }

    fn check_bound(indexes: usize, peers: u32, subnet: SubnetPreference) {
        let peers = if cfg!(miri) { 300 } else { peers };
        let mut swarms =
            Swarms::new(TableSettings { allow_private: true, ..TableSettings::with_known_keys(3) });
        swarms.set_subnet_preference(subnet);
        let mut reply = [0; 1_200];
        let mut announce = |swarms: &mut Swarms, now, torrent: u32, number, event| {
            let mut info_hash = InfoHash([0; 20]);
            info_hash.0[..4].copy_from_slice(&torrent.to_be_bytes());
            let role = if number % 3 == 0 { Role::Seeder } else { Role::Leecher };
            let announce = SwarmAnnounce { info_hash, endpoint: peer(number), role, event };
            let prefetch = swarms.prefetch_index(&info_hash);
            let peer_output = PeerOutput::for_family(Family::V4, &mut reply);
            assert_bounded(indexes, "announce", || {
                swarms.announce(now, prefetch, &announce, peer_output)
            });
        };
        for number in 0..peers {
            announce(&mut swarms, Seconds(0), 0, number, AnnounceEvent::Started);
            if number % 4 == 0 {
                announce(&mut swarms, Seconds(0), number + 1, number, AnnounceEvent::Started);
            }
        }
        assert_eq!(
            swarms.stats().seeders.iter().sum::<u64>() as u32,
            peers.div_ceil(3) + peers.div_ceil(12)
        );
        swarms.begin_export(0);
        let (mut exported, mut progress) = (0, ExportProgress::Torrents);
        while progress != ExportProgress::Complete {
            let mut records = Vec::new();
            progress = assert_bounded(indexes, "export", || swarms.export(&mut records));
            let is_peer = |record: &&StateRecord| matches!(record, StateRecord::Peer(_));
            exported += records.iter().filter(is_peer).count() as u32;
        }
        swarms.end_export();
        assert_eq!(exported, peers + peers.div_ceil(4));
        for number in (0..peers).step_by(5) {
            announce(&mut swarms, Seconds(2_000), 0, number, AnnounceEvent::Stopped);
        }
        for now in (2_000..6_000).step_by(20) {
            while assert_bounded(indexes, "sweep", || swarms.sweep(Seconds(now))) {}
        }
        assert_eq!(swarms.stats().torrents, 0);
        assert!(swarms.stats().bytes < 512 << 10, "{} bytes are left", swarms.stats().bytes);
        // Three of four peers announce to torrent 0, each other peer to a torrent of its own.
        for number in 0..peers {
            announce(
                &mut swarms,
                Seconds(6_000),
                number % 4 / 3 * number,
                number,
                AnnounceEvent::Started,
            );
        }
        let mut purge = TableCursor::default();
        while assert_bounded(indexes, "purge", || swarms.purge(&mut purge, |_| false)) {}
        assert_eq!(swarms.stats().torrents, 0);
    }
}
