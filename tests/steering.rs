//! Steering during a flood that targets one shard.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::flood::{core_of_shard_without_torrent, flood_one_torrent};
use common::policy::wait_until;
use common::{
    Announce, Client, NO_REPLY_TIMEOUT, SetOnDrop, Tracker, WAIT_TIMEOUT, control_of, cpus, head,
    http_get,
};
use std::sync::atomic::AtomicBool;

#[test]
fn steering_is_detached_while_a_flood_targets_one_shard() {
    let mut tracker = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n",
        cpus(2)
    ));
    let control = control_of(&mut tracker);
    let (address, done) = (tracker.addresses()[0], AtomicBool::new(false));
    let Some(core) = core_of_shard_without_torrent(address, control) else {
        eprintln!("skipped: with one core, no shard is idle while another one is busy");
        return;
    };
    std::thread::scope(|scope| {
        scope.spawn(|| flood_one_torrent(address, core, &done));
        let _end = SetOnDrop(&done);
        tracker.wait_within(3 * WAIT_TIMEOUT, "is overloaded while others idle");
        let page = http_get(control, "/metrics");
        assert!(page.contains("tsubame_steering_attached 0"), "{page}");
        assert!(page.contains("tsubame_steering_detached_total 1"), "{page}");
    });
    // The socket queues may still be full of datagrams of the flood: requests are then answered late or dropped.
    let is_answered = |_| {
        let client = Client::new("127.0.0.1", address);
        client.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
        client.ask(&head(0x0417_2710_1980, 0, 1)).is_some()
    };
    wait_until(|| (0..8).all(is_answered));
    // Each torrent is still served by its owner, whichever shard receives the datagram.
    for torrent in 2..20 {
        for port in [7_001, 7_002] {
            let mut client = Client::connected("127.0.0.1", address);
            let leechers = client.announce(&Announce::of(torrent, port)).leechers;
            assert_eq!(leechers, u32::from(port) - 7_000);
        }
    }
    tracker.stop();
}
