//! Upgrades in place with XDP: the program is replaced while it answers, and no request is lost.

use super::{
    CONTROL, check_capabilities, client, config, connect_request, has_program, is_answered,
    redirected, wait_for_af_xdp,
};
use crate::common::lab::{Host, INTERFACES, Lab, wait_until};
use crate::common::successor::{Successor, install_tsubame, process_in, replace};
use crate::common::{Announce, SetOnDrop, Tracker, UNCAPPED, WAIT_TIMEOUT, tsubame};
use rustix::thread::CapabilitySet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// Announces and connects from a host without a pause until `has_ended`; returns the number of requests, and of those
/// without a reply.
fn announce_until(lab: &Lab, (host, v6): (Host, bool), has_ended: &AtomicBool) -> (u32, u32) {
    let mut client = client(lab, host, v6);
    client.connect();
    let (mut asked, mut lost) = (0, 0);
    while !has_ended.load(Ordering::Relaxed) {
        asked += 2;
        let announce = Announce::of(asked % 97, 5_000 + (asked % 50) as u16);
        lost += u32::from(client.ask(&announce.bytes(client.id, asked)).is_none());
        // The program answers it.
        lost += u32::from(client.ask(&connect_request()).is_none());
    }
    (asked, lost)
}

/// Starts a tracker from a program that any user can run, with a config that any user can read.
fn start_for_all_users(lab: &Lab, config: &str) -> Tracker {
    let program = lab.directory.path().join("tsubame");
    install_tsubame(&program);
    let permit = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    permit(lab.directory.path());
    Tracker::start_with_command(config, |command| {
        permit(Path::new(command.get_args().last().unwrap()).parent().unwrap());
        let mut own = Command::new(&program);
        own.args(command.get_args());
        lab.command(Host::Tracker, &own)
    })
}

/// Runs a command of `tsubame` for the running tracker; returns whether it succeeded, and its output.
fn control(lab: &Lab, name: &str) -> (bool, String) {
    let address = format!("http://{CONTROL}");
    let run = || tsubame().args([name, "--control", &address]).output().unwrap();
    let output = lab.inside(Host::Tracker, run);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.success(), text)
}

/// Upgrades the running tracker; returns the new process.
fn upgrade(lab: &Lab) -> Successor {
    let (is_replaced, text) = control(lab, "upgrade");
    assert!(is_replaced, "{text}");
    Successor(process_in(&text))
}

/// Stops the running tracker, and waits until no program is attached.
fn stop(lab: &Lab) {
    assert!(control(lab, "stop").0);
    for name in INTERFACES {
        wait_until("the program is detached", WAIT_TIMEOUT, || !has_program(lab, name));
    }
}

/// An upgrade replaces the program while it answers, and loses no request: of the program, of AF_XDP and of sockets.
#[test]
#[ignore = "needs root: tests/run"]
fn an_upgrade_replaces_the_program_under_load() {
    let lab = Lab::routed_with_queues(2);
    for user in ["", "user: nobody\n"] {
        let uncapped = UNCAPPED.replace("storage: {", "storage: {memory: 64MiB, ");
        let config = config("", user).replace("storage: {memory: 64MiB}\n", &uncapped);
        let mut tracker = start_for_all_users(&lab, &config);
        wait_for_af_xdp(&lab);
        let (has_ended, mut successor) = (AtomicBool::new(false), None);
        std::thread::scope(|scope| {
            let hosts = [(Host::Seeder, false), (Host::Seeder, true), (Host::Leecher, false)];
            let (lab, has_ended, end) = (&lab, &has_ended, SetOnDrop(&has_ended));
            let loads = hosts.map(|it| scope.spawn(move || announce_until(lab, it, has_ended)));
            let watch = scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    assert!(INTERFACES.iter().all(|name| has_program(lab, name)), "detached");
                }
            });
            for _ in 0..3 {
                tracker.log.clear();
                let _earlier = successor.replace(upgrade(lab));
                tracker.wait_for("left to the new process");
                for name in INTERFACES {
                    tracker.wait_for(&format!(
                        "AF_XDP sockets in copy mode for 2 receive queues of {name}"
                    ));
                }
                wait_until("redirected requests", WAIT_TIMEOUT, || redirected(lab) > 100);
            }
            drop(end);
            watch.join().unwrap();
            for load in loads {
                let (asked, lost) = load.join().unwrap();
                println!("{asked} requests, {lost} lost");
                assert!(asked > 1_000 && lost == 0, "{user}: {lost} of {asked} requests lost");
            }
        });
        if !user.is_empty() {
            // The successors have been started with the capability for locked memory, and may keep it.
            check_capabilities(successor.as_ref().unwrap().0 as u32, CapabilitySet::IPC_LOCK);
        }
        stop(&lab);
    }
}

/// A new process that ends before it serves changes nothing: requests are redirected as before.
#[test]
#[ignore = "needs root: tests/run"]
fn a_failed_upgrade_leaves_the_program_as_it_is() {
    let lab = Lab::routed_with_queues(2);
    let tracker = start_for_all_users(&lab, &config("", ""));
    wait_for_af_xdp(&lab);
    let program = lab.directory.path().join("tsubame");
    replace(&program, "exit 7");
    let (is_replaced, text) = control(&lab, "upgrade");
    assert!(!is_replaced && text.contains("exit status: 7"), "{text}");
    assert!(INTERFACES.iter().all(|name| has_program(&lab, name)));
    wait_for_af_xdp(&lab);
    // No other process keeps the program attached.
    stop(&lab);
    drop(tracker);
}

/// An upgrade changes the settings of XDP that a reload cannot change.
#[test]
#[ignore = "needs root: tests/run"]
fn an_upgrade_changes_mode_and_interfaces() {
    let lab = Lab::routed();
    let native = config("", "http: {listen: []}\n");
    let mut tracker = start_for_all_users(&lab, &native);
    let client = client(&lab, Host::Seeder, false);
    let generic = native.replace("native", "generic").replace("[port2, port3]", "[port2]");
    tracker.write_config(&generic);
    tracker.log.clear();
    let first = upgrade(&lab);
    tracker.wait_for("port2 (driver unknown) answers connects in generic mode");
    wait_until("port3 is detached", WAIT_TIMEOUT, || !has_program(&lab, "port3"));
    assert!(has_program(&lab, "port2") && is_answered(&client, &connect_request()));
    tracker.write_config(
        &native.replace("[port2, port3]", "[]").replace("mode: native", "mode: auto"),
    );
    let _second = upgrade(&lab);
    wait_until("port2 is detached", WAIT_TIMEOUT, || !has_program(&lab, "port2"));
    assert!(is_answered(&client, &connect_request()));
    drop(first);
    stop(&lab);
}
