//! The program end to end: started, queried, misconfigured, stopped, killed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::{
    Announce, Client, Tracker, UNCAPPED, WAIT_TIMEOUT, control_of, count_in, cpus,
    deny_system_call, head, http_get, info_hash_of, now, tsubame, udp_suite,
};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

fn config(listen: &str, shards: usize, steering: &str) -> String {
    format!(
        "cpus: {}\nudp: {{listen: [{listen}], steering: {steering}}}\ncontrol: {{listen: \"\"}}\n{UNCAPPED}",
        cpus(shards)
    )
}

const BOTH: &str = "\"127.0.0.1:0\", \"[::1]:0\"";

#[test]
fn both_families_are_served_and_shutdown_logs_counts() {
    let tracker = Tracker::start(&config(BOTH, 1, "auto"));
    let addresses = tracker.addresses();
    assert_eq!(addresses.len(), 2);
    for address in addresses {
        let from = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
        let mut client = Client::connected(from, address);
        let seeder = Announce { left: 0, ..Announce::of(1, 7_001) };
        client.announce(&seeder);
        let announced = client.announce(&Announce::of(1, 7_002));
        // The peers are of one family, the counts are of both.
        assert_eq!(announced.peers, [(from.parse().unwrap(), 7_001)].into());
        let peers = if from == "::1" { 2 } else { 1 };
        assert_eq!(
            (announced.seeders, announced.leechers, announced.interval),
            (peers, peers, 1800)
        );
    }
    let begun = now();
    let line = tracker.stop();
    assert!(begun.elapsed() < Duration::from_secs(1), "the shutdown took {:?}", begun.elapsed());
    assert_eq!((count_in(&line, "connects"), count_in(&line, "announces")), (2, 4), "{line}");
    assert_eq!((count_in(&line, "torrents"), count_in(&line, "peers")), (1, 4), "{line}");
    assert_eq!((count_in(&line, "rejected"), count_in(&line, "shed")), (0, 0), "{line}");
}

#[test]
fn a_wildcard_listener_replies_from_the_destination_address() {
    let tracker = Tracker::start(&config("\"0.0.0.0:0\"", 2, "auto"));
    for address in ["127.0.0.1", "127.0.0.5", "127.3.2.1"] {
        // `Client` checks the source of the replies.
        let mut client = Client::connected(
            "127.0.0.1",
            SocketAddr::new(address.parse().unwrap(), tracker.port()),
        );
        for torrent in 0..20 {
            client.announce(&Announce::of(torrent, 7_001));
        }
    }
    let line = tracker.stop();
    assert_eq!(count_in(&line, "announces"), 60, "{line}");
}

/// Modifies or wraps the command that starts the tracker.
type PrepareCommand = fn(Command) -> Command;

/// Makes the kernel refuse the steering program.
fn without_steering(mut command: Command) -> Command {
    let option = libc::SO_ATTACH_REUSEPORT_CBPF;
    deny_system_call(&mut command, libc::SYS_setsockopt, Some(option), libc::EPERM);
    command
}

/// The replies do not depend on the number of shards or on how requests reach the shard that owns the torrent.
#[test]
fn shards_and_steering_do_not_change_replies() {
    let unchanged = |command| command;
    let variants: [(usize, &str, PrepareCommand, bool); 7] = [
        (1, "auto", unchanged, false),
        (2, "on", unchanged, false),
        (2, "off", unchanged, true),
        (2, "auto", without_steering, true),
        (4, "on", unchanged, false),
        (4, "off", unchanged, true),
        (4, "auto", without_steering, true),
    ];
    let mut all = Vec::new();
    for (shards, steering, prepare, crosses) in variants {
        let tracker = Tracker::start_with_command(&config(BOTH, shards, steering), prepare);
        let addresses = tracker.addresses();
        let mut client = Client::connected("127.0.0.1", addresses[0]);
        let mut client_v6 = Client::connected("::1", addresses[1]);
        let replies = udp_suite::replies(&mut client, &mut client_v6);
        let line = tracker.stop();
        let counts = (count_in(&line, "announces"), count_in(&line, "scrapes"));
        assert_eq!((counts, count_in(&line, "shed")), (udp_suite::REPLIES, 0), "{line}");
        // Announces reach their shard through the kernel, or else through the mesh.
        assert_eq!(
            count_in(&line, "forwarded") > 0,
            crosses,
            "{shards} shards, {steering}: {line}"
        );
        all.push(replies);
    }
    for (number, replies) in all.iter().enumerate() {
        assert!(*replies == all[0], "variant {number} replies differently");
    }
}

#[test]
fn kernel_refusals_are_explained() {
    for (errno, words) in [
        (libc::EPERM, ["refused", "seccomp"]),
        (libc::ENOSYS, ["no io_uring", "6.1"]),
        (libc::ENOMEM, ["locked memory", "LimitMEMLOCK"]),
    ] {
        let mut tracker = Tracker::spawn(&config(BOTH, 2, "auto"), |mut command| {
            deny_system_call(&mut command, libc::SYS_io_uring_setup, None, errno);
            command
        });
        assert_eq!(tracker.wait().code(), Some(2));
        let log = tracker.log.join("\n");
        assert!(words.iter().all(|word| log.contains(word)), "{log}");
    }
    let mut tracker = Tracker::spawn(&config(BOTH, 2, "on"), without_steering);
    assert_eq!(tracker.wait().code(), Some(2));
    let log = tracker.log.join("\n");
    assert!(log.contains("udp.steering: is on") && log.contains("set it to auto or off"), "{log}");
}

#[test]
fn wildcard_and_specific_addresses_may_overlap() {
    // Below the range (32768 and above by default) from which the sockets of other tests get their ports.
    let mut rng = fastrand::Rng::with_seed(std::process::id().into());
    let port = std::iter::repeat_with(|| rng.u16(20_000..30_000))
        .find(|port| std::net::UdpSocket::bind(("0.0.0.0", *port)).is_ok())
        .unwrap();
    for (listen, from) in [
        (format!("\"0.0.0.0:{port}\", \"127.0.0.1:{port}\""), "127.0.0.1"),
        (format!("\"127.0.0.1:{port}\", \"0.0.0.0:{port}\""), "127.0.0.1"),
        (format!("\"[::]:{port}\", \"[::1]:{port}\""), "::1"),
    ] {
        let tracker = Tracker::start(&config(&listen, 2, "on"));
        let mut client = Client::connected(from, SocketAddr::new(from.parse().unwrap(), port));
        for torrent in 0..20 {
            client.announce(&Announce::of(torrent, 7_001));
        }
        let line = tracker.stop();
        assert_eq!((count_in(&line, "announces"), count_in(&line, "forwarded")), (20, 0), "{line}");
    }
}

#[test]
fn udp_replies_follow_the_specification() {
    let tracker = Tracker::start(&config(BOTH, 1, "auto"));
    let address = tracker.addresses()[0];
    let mut client = Client::connected("127.0.0.1", address);
    udp_suite::replies_follow_the_specification(&mut client, 5);
    tracker.stop();
}

#[test]
fn trusted_clients_may_name_another_address() {
    let tracker = Tracker::start(
        "udp: {listen: \"127.0.0.1:0\", wrong_connection_id: error}\ncontrol: {listen: \"\"}\n\
         announce: {trust_client_ip: [127.0.0.2], allow_private: true, interval: 20m}\n",
    );
    let address = tracker.addresses()[0];
    let mut trusted = Client::connected("127.0.0.2", address);
    let mut other = Client::connected("127.0.0.3", address);
    trusted.announce(&Announce { ip: [9, 8, 7, 6], ..Announce::of(1, 7_001) });
    let announced = other.announce(&Announce { ip: [9, 8, 7, 6], ..Announce::of(1, 7_002) });
    assert_eq!(announced.peers, [([9, 8, 7, 6].into(), 7_001)].into());
    assert_eq!(announced.interval, 1_200);
    let announced = trusted.announce(&Announce::of(1, 7_003));
    assert!(announced.peers.contains(&([127, 0, 0, 3].into(), 7_002)));
    // The error for a wrong id is not longer than the request.
    let error = other.ask(&Announce::of(1, 7_002).bytes(5, 9)).unwrap();
    assert_eq!(error, [head(0, 3, 9)[8..].to_vec(), b"wrong connection id".to_vec()].concat());
    let mut scrape = head(5, 2, 9);
    scrape.extend([0; 20]);
    assert!(other.ask(&scrape).unwrap().len() <= 36);
    tracker.stop();
}

#[test]
fn random_datagrams_do_not_stop_the_service() {
    let mut rng = fastrand::Rng::with_seed(11);
    let tracker = Tracker::start(&config("\"0.0.0.0:0\"", 2, "auto"));
    let address: SocketAddr = ([127, 0, 0, 1], tracker.port()).into();
    // Forged connection ids from many sources: all of 127.0.0.0/8 is local.
    for source in 0..200_u8 {
        udp_suite::forged_announces(&format!("127.7.{source}.1"), address, &mut rng);
    }
    let honest = Client::connected("127.0.0.9", address);
    let flood = Client::connected("127.0.0.1", address);
    udp_suite::random_datagrams_do_not_stop_the_service(&flood, &honest, 11);
    let mut tracker = tracker;
    tracker.signal("TERM");
    assert_eq!(tracker.wait().code(), Some(0));
    let line = tracker.wait_for("stopped after");
    assert!(count_in(&line, "rejected") > 1_000, "{line}");
    assert!(tracker.log.len() < 20, "datagrams are logged:\n{}", tracker.log.join("\n"));
}

#[test]
fn replies_to_unproven_sources_do_not_amplify() {
    let tracker = Tracker::start(&config(BOTH, 1, "auto"));
    let address = tracker.addresses()[0];
    let mut client = Client::new("127.0.0.1", address);
    let other = Client::new("127.0.0.2", address);
    udp_suite::replies_to_unproven_sources_do_not_amplify(&mut client, &other);
    tracker.stop();
}

#[test]
fn a_port_in_use_is_reported_with_its_address() {
    let first = Tracker::start(&config("\"127.0.0.1:0\"", 1, "auto"));
    let taken = first.addresses()[0];
    for listen in [taken.to_string(), format!("0.0.0.0:{}", taken.port())] {
        let mut second = Tracker::spawn(&config(&format!("{listen:?}"), 1, "auto"), |run| run);
        assert_eq!(second.wait().code(), Some(2));
        let log = second.log.join("\n");
        assert!(
            log.contains("udp.listen") && log.contains(&listen) && log.contains("taken"),
            "{log}"
        );
    }
    first.stop();
}

#[test]
fn start_failures_are_explained() {
    for (config, words) in [
        (config("\"192.0.2.1:6969\"", 1, "auto"), ["udp.listen", "not an address of this machine"]),
        ("cpus: 4095\n".to_owned(), ["cpus: core 4095", "auto"]),
        (
            format!("udp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"{}\"}}", taken_tcp().1),
            ["control.listen", "taken"],
        ),
    ] {
        let mut tracker = Tracker::spawn(&config, |run| run);
        assert_eq!(tracker.wait().code(), Some(2), "{config}");
        let log = tracker.log.join("\n");
        assert!(words.iter().all(|word| log.contains(word)), "{log}");
    }
    let mut tracker = Tracker::spawn("udp: {lisen: []}\nlog: {level: loud}", |run| run);
    assert_eq!(tracker.wait().code(), Some(1));
    let log = tracker.log.join("\n");
    assert!(
        log.contains("did you mean listen?") && log.contains("\"loud\" is not one of"),
        "{log}"
    );
}

fn taken_tcp() -> (&'static std::net::TcpListener, SocketAddr) {
    let listener = Box::leak(Box::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap()));
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn a_killed_tracker_is_replaced_at_once_with_steering() {
    let first = Tracker::start(&config("\"127.0.0.1:0\"", 2, "on"));
    let address = first.addresses()[0];
    let mut client = Client::connected("127.0.0.1", address);
    client.announce(&Announce::of(1, 7_001));
    first.signal("KILL");
    drop(first);
    let second = Tracker::start(&config(&format!("\"{address}\""), 2, "on"));
    client.connect();
    for torrent in 0..100 {
        assert_eq!(client.announce(&Announce::of(torrent, 7_001)).leechers, 1);
    }
    let line = second.stop();
    assert_eq!((count_in(&line, "announces"), count_in(&line, "shed")), (100, 0), "{line}");
    assert_eq!(count_in(&line, "forwarded"), 0, "{line}");
}

#[test]
fn configs_of_other_trackers_are_imported() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["chihaya.yaml", "opentracker.conf"] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import/").to_owned() + file;
        let output = tsubame().args(["import", &path]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let notes = String::from_utf8(output.stderr).unwrap();
        assert!(notes.lines().count() > 5 && notes.contains(": no exact counterpart: "), "{notes}");
        if file == "opentracker.conf" {
            // The imported config is valid, except that its list and its address do not exist here.
            let config = String::from_utf8(output.stdout).unwrap();
            let made = directory.path().join(file);
            let list = directory.path().join("list");
            std::fs::write(&list, "").unwrap();
            let list = list.display().to_string();
            let config = config.replace("/etc/opentracker/whitelist", &list);
            std::fs::write(&made, config.replace("192.0.2.1", "127.0.0.1")).unwrap();
            let output = tsubame().args(["check", "--config"]).arg(&made).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{errors}");
        }
    }
    for (file, words) in [("/nowhere", "cannot be read"), ("/dev/null", "is neither a Chihaya")] {
        let output = tsubame().args(["import", file]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && errors.contains(words), "{errors}");
    }
}

#[test]
fn health_is_served() {
    let mut tracker = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\"}}\ncontrol: {{listen: \"127.0.0.1:0\"}}\n\
         log: {{format: json}}\n",
        cpus(1)
    ));
    let address = control_of(&mut tracker);
    let serving = tracker.wait_for("serving udp://");
    let serving: serde_json::Value = serde_json::from_str(&serving).unwrap();
    assert_eq!(serving["level"], "INFO");
    let page = http_get(address, "/healthz");
    assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("ok\n"), "{page}");
    assert!(http_get(address, "/nothing").starts_with("HTTP/1.1 404"));
    tracker.signal("HUP");
    tracker.wait_for("reloaded: 0 hooks");
    tracker.signal("INT");
    assert_eq!(tracker.wait().code(), Some(0));
}

/// Returns the sum over all shards of the metric lines that start with a name and contain a label.
fn metric(page: &str, name: &str, label: &str) -> u64 {
    let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

#[test]
fn metrics_count_requests_and_kernel_drops() {
    let mut tracker = Tracker::start(&format!(
        "cpus: {}\nudp: {{listen: \"127.0.0.1:0\", receive_buffer: 64KiB}}\n\
         control: {{listen: \"127.0.0.1:0\"}}\n",
        cpus(1)
    ));
    let control = control_of(&mut tracker);
    let server = tracker.addresses()[0];
    let mut client = Client::connected("127.0.0.1", server);
    for port in [7_000, 7_001, 7_001] {
        client.announce(&Announce::of(1, port));
    }
    client.scrape(&[info_hash_of(1)]).unwrap();
    let until = |holds: &dyn Fn(&str) -> bool| {
        let end = now() + WAIT_TIMEOUT;
        loop {
            let page = http_get(control, "/metrics");
            if holds(&page) {
                return page;
            }
            assert!(now() < end, "{page}");
            std::thread::yield_now();
        }
    };
    let page = until(&|page| metric(page, "tsubame_requests_total", "\"scraped\"") == 1);
    assert!(page.contains("text/plain; version=0.0.4") && !page.contains("# EOF"), "{page}");
    for (name, label, value) in [
        ("tsubame_requests_total", "family=\"ipv4\",kind=\"connect\"", 1),
        ("tsubame_requests_total", "outcome=\"joined\"", 2),
        ("tsubame_requests_total", "outcome=\"refreshed\"", 1),
        ("tsubame_replies_sent_total", "", 5),
        ("tsubame_peers{", "", 2),
        ("tsubame_batch_datagrams_sum", "", 5),
        ("tsubame_kernel_dropped_total", "", 0),
    ] {
        assert_eq!(metric(&page, name, label), value, "{name} {label}\n{page}");
    }
    tracker.signal("STOP");
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..2_000 {
        other.send_to(&[0; 98], server).unwrap();
    }
    tracker.signal("CONT");
    until(&|page| {
        let (dropped, seen) = (
            metric(page, "tsubame_kernel_dropped_total", ""),
            metric(page, "tsubame_requests_total", "outcome=\"bad_magic\""),
        );
        dropped > 0 && dropped + seen == 2_000
    });
    tracker.stop();
}

#[test]
fn subcommands_report_results_and_exit_codes() {
    let run = |arguments: &[&str]| {
        let output = tsubame().args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("default.yaml");
    let (code, printed, _) = run(&["config"]);
    assert_eq!(code, 0);
    std::fs::write(&path, printed).unwrap();
    let (code, out, _) = run(&["check", "--config", path.to_str().unwrap()]);
    assert!(code == 0 && out.contains("no mistakes"), "{out}");
    std::fs::write(&path, "a: 1\nb: 2\n").unwrap();
    let (code, _, errors) = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!((code, errors.lines().count()), (1, 2), "{errors}");
    assert_eq!(run(&["check", "--config", "/nonexistent"]).0, 1);
    let (code, out, _) = run(&["doctor", "--json", "--config", path.to_str().unwrap()]);
    assert!(code == 1 && out.contains("default.yaml:1: a: is not a key"), "{out}");
    std::fs::write(&path, "storage: {memory: 64TiB}\n").unwrap();
    let (code, out, _) = run(&["doctor", "--config", path.to_str().unwrap()]);
    assert!(code == 1 && out.contains("warning  memory") && out.contains("io_uring"), "{out}");
    let (_, out, _) = run(&["doctor", "--json"]);
    let diagnosis: serde_json::Value = serde_json::from_str(&out).unwrap();
    let findings = diagnosis["findings"].as_array().unwrap();
    assert!(findings.iter().any(|it| it["check"] == "kernel" && it["level"] == "ok"), "{out}");
    assert_eq!(run(&["nonsense"]).0, 1);
    assert_eq!(run(&["--help"]).0, 0);
    assert!(run(&["--version"]).1.starts_with("tsubame "));

    let tracker = Tracker::start(&config(BOTH, 2, "auto"));
    let urls: Vec<_> = tracker.addresses().iter().map(|a| format!("udp://{a}/announce")).collect();
    let (code, out, errors) = run(&["e2e", &urls[0], &urls[1]]);
    assert!(code == 0 && out.matches("the tracker works").count() == 2, "{out}{errors}");
    tracker.stop();
    for url in ["http://127.0.0.1:1", "udp://", "udp://127.0.0.1:1"] {
        let (code, _, errors) = run(&["e2e", url]);
        assert!(code == 1 && !errors.is_empty(), "{url}: {errors}");
    }
}

#[test]
fn connection_ids_of_a_configured_key_survive_a_restart() {
    let keyed = "control: {listen: \"\"}\nudp:\n  listen: \"127.0.0.1:0\"\n  \
                 connection_id_keys: [00112233445566778899aabbccddeeff]\n";
    let first = Tracker::start(keyed);
    let client = Client::connected("127.0.0.1", first.addresses()[0]);
    first.stop();
    let second = Tracker::start(keyed);
    let again = Client { tracker: second.addresses()[0], ..client };
    assert!(again.ask(&Announce::of(1, 7_001).bytes(again.id, 1)).is_some());
    second.stop();
}
