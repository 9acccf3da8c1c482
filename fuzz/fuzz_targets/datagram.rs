//! Sequences of datagrams to a tracker: nothing panics, and replies to unproven sources are not amplified.
//!
//! Input: for each datagram two bytes of length, a byte that selects the source, and the bytes. If bit 2 of the source
//! byte is set, the valid connection id is written into the datagram, so that the fuzzer reaches the code behind its
//! check. Bits 5 to 7 advance the clock.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::SocketAddr;
use tsubame::clock::Now;
use tsubame::policy::Intervals;
use tsubame::sizes::REPLY_LEN_DEFAULT;
use tsubame::stats::outcome::Outcome;
use tsubame::tracker::{AnnounceSettings, Tracker};
use tsubame_storage::{Caps, Seconds, Swarms, TableSettings};
use tsubame_udp::connection_id::{ConnectionIdKey, ConnectionIds};

fuzz_target!(|bytes: &[u8]| {
    let ids = ConnectionIds::new(ConnectionIdKey([7; 16]), &[], 120);
    let mut tracker = tracker(ids.clone());
    let mut now = Now { monotonic: Seconds(10_000), unix_secs: 1_700_000_000 };
    let mut rest = bytes;
    let mut reply = [0; 1472];
    while let [high, low, source, more @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])) % 2_048;
        let (packet, after) = more.split_at(len.min(more.len()));
        rest = after;
        let address: SocketAddr = match source & 3 {
            0 => ([0x2a00, 0, 0, 0, 0, 0, 0, u16::from(*source)], 5_000).into(),
            1 => ([127, 0, 0, *source], 5_000).into(),
            _ => ([81, 0, 0, *source >> 4], 5_000).into(),
        };
        let mut packet = packet.to_vec();
        let knows_id = source & 4 != 0 && packet.len() >= 8;
        if knows_id {
            packet[..8].copy_from_slice(&ids.issue(now.unix_secs, address.ip()).to_be_bytes());
        }
        let verdict = tracker.handle(now, address, &packet, &mut reply);
        assert!(verdict.len <= reply.len());
        use Outcome::{
            BadMagic, Connected, SourcePortZero, TooShort, UnknownAction, WrongConnectionId,
        };
        let unproven = matches!(
            verdict.outcome,
            Connected | BadMagic | SourcePortZero | TooShort | UnknownAction | WrongConnectionId
        );
        assert!(!unproven || verdict.len <= packet.len());
        now.monotonic.0 += u64::from(source >> 5) * 40;
        while tracker.swarms_mut().sweep(now.monotonic) {}
    }
});

fn tracker(ids: ConnectionIds) -> Tracker {
    let settings = AnnounceSettings {
        intervals: Intervals { interval_secs: 1_800, min_interval_secs: 900 },
        numwant_default: 50,
        numwant_max: 200,
        reply_len_max: REPLY_LEN_DEFAULT,
        trust_client_ip: vec!["127.0.0.0/8".parse().expect("a network")],
        explain_wrong_connection_id: true,
    };
    let swarms = Swarms::new(TableSettings {
        memory_bytes: 1 << 26,
        caps: Caps { swarm: 100, per_ipv4: 5, per_ipv6_64: 3 },
        ..TableSettings::with_known_keys(3)
    });
    Tracker::new(ids, settings, swarms)
}
