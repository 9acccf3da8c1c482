//! Counts what a call moves and visits, so that a test can hold the bound on it.
//!
//! Outside of this crate's tests the functions are empty and vanish.

#[cfg(test)]
mod counted {
    use std::cell::Cell;

    /// Work done on this thread since the last [`take`]
    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct Effort {
        pub(crate) record_bytes: usize,
        pub(crate) index_slots: usize,
    }

    thread_local! {
        static EFFORT: Cell<Effort> = const { Cell::new(Effort { record_bytes: 0, index_slots: 0 }) };
    }

    pub(crate) fn records(bytes: usize) {
        EFFORT.with(|cell| {
            let effort = cell.get();
            cell.set(Effort { record_bytes: effort.record_bytes + bytes, ..effort });
        });
    }

    pub(crate) fn slots(count: usize) {
        EFFORT.with(|cell| {
            let effort = cell.get();
            cell.set(Effort { index_slots: effort.index_slots + count, ..effort });
        });
    }

    pub(crate) fn take() -> Effort {
        EFFORT.with(Cell::take)
    }
}

#[cfg(test)]
pub(crate) use counted::{records, slots, take};

#[cfg(not(test))]
pub(crate) fn records(_bytes: usize) {}

#[cfg(not(test))]
pub(crate) fn slots(_count: usize) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::SEGMENT_SLOTS_MAX;
    use crate::{
        Announce, Caps, Endpoint, Event, Family, InfoHash, Lengths, PeerSpace, Role, Seconds,
        Settings, Subnets, Swarms, TableCursor,
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

    /// Runs one call and holds the bound, with so many indexes that a peer may be in
    fn bounded<T>(indexes: usize, what: &str, call: impl FnOnce() -> T) -> T {
        take();
        let result = call();
        let effort = take();
        assert!(effort.record_bytes <= RECORD_BYTES_MAX, "{what}: {effort:?}");
        assert!(effort.index_slots <= indexes * SEGMENT_SLOTS_MAX, "{what}: {effort:?}");
        result
    }

    #[test]
    fn no_call_does_more_than_the_bound_at_any_size() {
        let lengths = |lengths: &[u8]| Lengths::new(lengths).expect("they fall");
        let (v4, v6) = (lengths(&[24, 16]), lengths(&[128, 112]));
        hold_the_bound(1, 1_000_000, Subnets::default());
        hold_the_bound(3, 300_000, Subnets { v4, v6, at_random_percent: 0 });
    }

    fn hold_the_bound(indexes: usize, peers: u32, subnets: Subnets) {
        let peers = if cfg!(miri) { 300 } else { peers };
        let mut swarms = Swarms::new(Settings {
            peer_lifetime_secs: 2_700,
            keep_completed_secs: 86_400,
            memory_bytes: 1 << 30,
            source_share_per_10_000: 200,
            caps: Caps::default(),
            allow_private: true,
            hash_key: (1, 2),
            seed: 3,
        });
        swarms.prefer(subnets);
        let mut reply = [0; 1_200];
        let mut announce = |swarms: &mut Swarms, now, torrent: u32, number, event| {
            let mut info_hash = InfoHash([0; 20]);
            info_hash.0[..4].copy_from_slice(&torrent.to_be_bytes());
            let role = if number % 3 == 0 { Role::Seeder } else { Role::Leecher };
            let announce = Announce { info_hash, endpoint: peer(number), role, event };
            let ahead = swarms.look_ahead(&info_hash);
            let space = PeerSpace::of(Family::V4, &mut reply);
            bounded(indexes, "announce", || swarms.announce(now, ahead, &announce, space));
        };
        for number in 0..peers {
            announce(&mut swarms, Seconds(0), 0, number, Event::Started);
            if number % 4 == 0 {
                announce(&mut swarms, Seconds(0), number + 1, number, Event::Started);
            }
        }
        assert_eq!(
            swarms.totals().seeders.iter().sum::<u64>() as u32,
            peers.div_ceil(3) + peers.div_ceil(12)
        );
        for number in (0..peers).step_by(5) {
            announce(&mut swarms, Seconds(2_000), 0, number, Event::Stopped);
        }
        for now in (2_000..6_000).step_by(20) {
            while bounded(indexes, "sweep", || swarms.sweep(Seconds(now))) {}
        }
        assert_eq!(swarms.totals().torrents, 0);
        assert!(swarms.totals().bytes < 512 << 10, "{} bytes are left", swarms.totals().bytes);
        for number in 0..peers {
            announce(&mut swarms, Seconds(6_000), number % 4 / 3 * number, number, Event::Started);
        }
        let mut purge = TableCursor::default();
        while bounded(indexes, "purge", || swarms.purge(&mut purge, |_| false)) {}
        assert_eq!(swarms.totals().torrents, 0);
    }
}
