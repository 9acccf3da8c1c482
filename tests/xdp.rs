//! Tests of XDP with frames on virtual Ethernet: counts, reloads, addresses and interfaces that change, and failures.
//!
//! They need root and `ip`; `tests/run` runs them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;
#[path = "xdp/upgrade.rs"]
mod upgrade;

use common::lab::{Host, INTERFACES, Lab, TRACKER_V4, TRACKER_V6, wait_until};
use common::{
    Announce, Client, NO_REPLY_TIMEOUT, SetOnDrop, Tracker, UNCAPPED, WAIT_TIMEOUT, count_in, cpus,
    head, http_get, now, tsubame, udp_suite,
};
use rustix::thread::CapabilitySet;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tsubame_udp::connection_id::{ConnectionIdKey, ConnectionIds};
use tsubame_udp::xdp::{Filter, FilterOutcome, FilterSettings, FrameSocket, XdpError, XdpMode};

/// Address of the control plane on the tracker's host.
const CONTROL: &str = "127.0.0.1:6880";

/// Returns a config with XDP on both interfaces; `udp` and `rest` are added to it.
fn config(udp: &str, rest: &str) -> String {
    config_with("", udp, rest)
}

/// As [`config`]; `xdp` is added to the section of XDP.
fn config_with(xdp: &str, udp: &str, rest: &str) -> String {
    let interfaces = INTERFACES.join(", ");
    format!(
        "udp: {{xdp: {{interfaces: [{interfaces}], mode: native{xdp}}}{udp}}}\ncontrol: {{listen: \"{CONTROL}\"}}\n\
         storage: {{memory: 64MiB}}\n{rest}"
    )
}

/// Starts a tracker on its host.
fn start(lab: &Lab, config: &str) -> Tracker {
    Tracker::start_with_command(config, |command| lab.command(Host::Tracker, &command))
}

/// Returns a client with a socket on a host; `v6` selects the address family.
fn client(lab: &Lab, host: Host, v6: bool) -> Client {
    let tracker = if v6 { TRACKER_V6 } else { TRACKER_V4 };
    let to = SocketAddr::new(tracker.parse().unwrap(), 6969);
    lab.inside(host, || Client::new(&host.address(v6), to))
}

fn metrics(lab: &Lab) -> String {
    lab.inside(Host::Tracker, || http_get(CONTROL.parse().unwrap(), "/metrics"))
}

/// Returns the number of frames that were redirected to AF_XDP sockets.
fn redirected(lab: &Lab) -> u64 {
    let page = metrics(lab);
    let is_wanted = |line: &&str| {
        line.starts_with("tsubame_xdp_frames_total") && line.contains("verdict=\"redirected\"")
    };
    let counts = page.lines().filter(is_wanted).map(|line| line.rsplit(' ').next().unwrap());
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

/// Waits until all queues have AF_XDP sockets that shards serve.
fn wait_for_af_xdp(lab: &Lab) {
    let hosts = [Host::Seeder, Host::Leecher];
    let mut clients: Vec<Client> =
        (0..32).map(|number| client(lab, hosts[number % 2], number % 4 < 2)).collect();
    clients.iter_mut().for_each(Client::connect);
    wait_until("AF_XDP for all queues", Duration::from_secs(30), || {
        let before = redirected(lab);
        for client in &mut clients {
            client.announce(&Announce { event: 3, ..Announce::of(900, 7_000) });
        }
        // The counters are read each second.
        let deadline = now() + Duration::from_millis(1_500);
        loop {
            let all = redirected(lab) - before == clients.len() as u64;
            if all || now() > deadline {
                return all;
            }
        }
    });
}

/// Returns the number of requests with an outcome that XDP has counted.
fn counted(lab: &Lab, family: &str, outcome: &str) -> u64 {
    let page = metrics(lab);
    let mark = format!("outcome=\"{outcome}\"");
    let line = page.lines().find(|line| {
        line.starts_with("tsubame_requests_total{shard=\"xdp\"")
            && line.contains(family)
            && line.contains(&mark)
    });
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

fn wait_for_count(lab: &Lab, family: &str, outcome: &str, expected: u64) {
    wait_until(&format!("{expected} {outcome}"), WAIT_TIMEOUT, || {
        counted(lab, family, outcome) == expected
    });
}

/// Returns whether a request is answered.
fn is_answered(client: &Client, request: &[u8]) -> bool {
    client.socket.set_read_timeout(Some(NO_REPLY_TIMEOUT)).unwrap();
    let reply = client.ask(request);
    client.socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    reply.is_some()
}

fn connect_request() -> Vec<u8> {
    head(0x0417_2710_1980, 0, 77)
}

/// Runs `ip` on the tracker's host.
fn ip(lab: &Lab, arguments: &str) {
    let run = || Command::new("ip").args(arguments.split(' ')).status().unwrap().success();
    assert!(lab.inside(Host::Tracker, run), "ip {arguments}");
}

/// Returns whether an XDP program is attached to an interface of the tracker's host.
fn has_program(lab: &Lab, interface: &str) -> bool {
    let show = || Command::new("ip").args(["link", "show", "dev", interface]).output().unwrap();
    String::from_utf8(lab.inside(Host::Tracker, show).stdout).unwrap().contains("prog/xdp")
}

#[test]
#[ignore = "needs root: tests/run"]
fn requests_are_answered_and_counted_as_on_sockets() {
    let lab = Lab::routed();
    let tracker = start(&lab, &config("", ""));
    for (v6, family) in [(false, "ipv4"), (true, "ipv6")] {
        let mut client = client(&lab, Host::Seeder, v6);
        for _ in 0..100 {
            client.connect();
        }
        let announce = Announce::of(u32::from(v6), 1_000);
        let first = client.announce(&announce);
        assert_eq!((first.leechers, first.seeders), (1, 0));
        let info_hash = announce.info_hash;
        assert_eq!(client.scrape(&[info_hash]).unwrap(), [[0, 0, 1]]);
        // A longer connect is answered, too.
        let long = [connect_request(), vec![1; 900]].concat();
        assert_eq!(client.ask(&long).unwrap().len(), 16);
        let bad_magic = head(1, 0, 7);
        let too_short = head(client.id, 1, 7);
        let unknown = [head(client.id, 3, 7), vec![0; 90]].concat();
        let wrong_id = announce.bytes(client.id ^ 1, 7);
        for request in [&bad_magic, &too_short, &unknown, &wrong_id, &vec![], &vec![0; 15]] {
            assert!(!is_answered(&client, request), "{request:?}");
        }
        wait_for_count(&lab, family, "connected", 101);
        wait_for_count(&lab, family, "bad_magic", 1);
        wait_for_count(&lab, family, "too_short", 3);
        wait_for_count(&lab, family, "unknown_action", 1);
        wait_for_count(&lab, family, "wrong_connection_id", 1);
    }
    let log = tracker.stop_with_log();
    assert!(log.iter().any(|line| line.contains("202 connects were answered by XDP")), "{log:?}");
}

/// The replies, counts and refusals are those of the UDP sockets: with the filter alone, and with fewer receive queues
/// than shards, as many and more.
#[test]
#[ignore = "needs root: tests/run"]
fn every_datapath_passes_the_udp_suite() {
    let mut all = Vec::new();
    for (announces, queues, shards) in
        [("", 1, 2), ("socket", 1, 2), ("af_xdp", 1, 2), ("af_xdp", 2, 2), ("af_xdp", 2, 1)]
    {
        println!("announces: {announces}, {queues} queues, {shards} shards");
        let rest = format!(
            "cpus: {}\n{}",
            cpus(shards),
            UNCAPPED.replace("storage: {", "storage: {memory: 64MiB, ")
        );
        let lab = Lab::routed_with_queues(queues);
        let config = config_with(&format!(", announces: {announces}"), ", steering: off", "");
        let config = match announces {
            "" => config
                .replace("interfaces: [port2, port3]", "interfaces: []")
                .replace(", announces: ", ""),
            _ => config,
        };
        let config = config.replace("storage: {memory: 64MiB}\n", &rest);
        let tracker = start(&lab, &config);
        let is_af_xdp = announces == "af_xdp";
        if is_af_xdp {
            wait_for_af_xdp(&lab);
        }
        let before = redirected(&lab);
        let connected = |host, v6| {
            let mut client = client(&lab, host, v6);
            client.connect();
            client
        };
        let (mut v4, mut v6) = (connected(Host::Seeder, false), connected(Host::Leecher, true));
        all.push(udp_suite::replies(&mut v4, &mut v6));
        if is_af_xdp {
            let (announces, scrapes) = udp_suite::REPLIES;
            // The longest scrape is a packet of 1,504 bytes over IPv4: it comes in fragments.
            wait_until("redirected frames", WAIT_TIMEOUT, || {
                redirected(&lab) - before == announces + scrapes - 2
            });
        }
        for (client, torrent) in [(&mut v4, 1_000), (&mut v6, 2_000)] {
            udp_suite::replies_follow_the_specification(client, torrent);
        }
        for v6 in [false, true] {
            let mut unproven = client(&lab, Host::Seeder, v6);
            let other = client(&lab, Host::Leecher, v6);
            udp_suite::replies_to_unproven_sources_do_not_amplify(&mut unproven, &other);
            let flood = connected(Host::Seeder, v6);
            let honest = connected(Host::Leecher, v6);
            udp_suite::random_datagrams_do_not_stop_the_service(&flood, &honest, 11);
        }
        let line = tracker.stop();
        assert!(count_in(&line, "rejected") > 1_000, "{line}");
        assert_eq!(count_in(&line, "forwarded") > 0, shards > 1, "{line}");
    }
    for (number, replies) in all.iter().enumerate() {
        assert!(*replies == all[0], "variant {number} replies differently");
    }
}

#[test]
#[ignore = "needs root: tests/run"]
fn reloads_change_keys_networks_and_errors() {
    let lab = Lab::routed();
    let keys = |keys: &str| config(&format!(", connection_id_keys: [{keys}]"), "");
    let [old, new] = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"];
    let mut tracker = start(&lab, &keys(old));
    let mut first = client(&lab, Host::Seeder, false);
    first.connect();
    let mut reload = |config: &str| {
        tracker.write_config(config);
        tracker.log.clear();
        tracker.signal("HUP");
        tracker.wait_for("reloaded");
    };
    let announce =
        |client: &Client| is_answered(client, &Announce::of(7, 1_000).bytes(client.id, 1));
    assert!(announce(&first));
    let old_id = first.id;
    reload(&keys(&format!("{new}, {old}")));
    wait_until("an id of the new key", WAIT_TIMEOUT, || {
        first.connect();
        first.id != old_id
    });
    assert!(announce(&first));
    first.id = old_id;
    assert!(announce(&first), "ids of the old key are still accepted");
    let dropped = counted(&lab, "ipv4", "wrong_connection_id");
    reload(&keys(new));
    wait_until("the old key is refused by XDP", WAIT_TIMEOUT, || {
        !announce(&first) && counted(&lab, "ipv4", "wrong_connection_id") > dropped
    });
    first.connect();
    assert!(announce(&first), "ids of the new key are accepted");
    let deny =
        "hooks: [{name: networks, options: {mode: deny, networks: [10.99.0.2, 2001:db8:99::/64]}}]";
    reload(&config("", deny));
    let (v4, v6) = (client(&lab, Host::Seeder, false), client(&lab, Host::Seeder, true));
    let other = client(&lab, Host::Leecher, false);
    for client in [&v4, &v6] {
        wait_until("the network is refused", WAIT_TIMEOUT, || {
            !is_answered(client, &connect_request())
        });
        assert!(is_answered(&other, &connect_request()));
    }
    for family in ["ipv4", "ipv6"] {
        wait_until("drops by XDP", WAIT_TIMEOUT, || counted(&lab, family, "forbidden_network") > 0);
    }
    reload(&config(", wrong_connection_id: error", ""));
    wait_until("the network is permitted", WAIT_TIMEOUT, || is_answered(&v4, &connect_request()));
    wait_until("an error for a wrong id", WAIT_TIMEOUT, || {
        is_answered(&v4, &Announce::of(7, 1_000).bytes(1, 1))
    });
}

/// While keys and networks change, every connect is answered by the program, and every announce with its id by a shard.
#[test]
#[ignore = "needs root: tests/run"]
fn reloads_under_load_lose_nothing() {
    let lab = Lab::routed();
    let config_of = |round: u32| {
        let key = |round: u32| format!("{round:032x}");
        let keys = format!(", connection_id_keys: [{}, {}]", key(round + 1), key(round));
        let networks: Vec<_> = (0..200).map(|number| format!("7.{round}.{number}.0/24")).collect();
        let options = format!("{{mode: deny, networks: [{}]}}", networks.join(", "));
        config_with(
            ", announces: af_xdp",
            &keys,
            &format!("hooks: [{{name: networks, options: {options}}}]"),
        )
    };
    let mut tracker = start(&lab, &config_of(1));
    wait_for_af_xdp(&lab);
    let (mut observer, mut loaded) =
        (client(&lab, Host::Leecher, false), client(&lab, Host::Seeder, false));
    let has_ended = AtomicBool::new(false);
    let (asked, lost) = std::thread::scope(|scope| {
        let end = SetOnDrop(&has_ended);
        let load = scope.spawn(|| {
            let (mut asked, mut lost) = (0, 0);
            while !has_ended.load(Ordering::Relaxed) {
                loaded.connect();
                asked += 1;
                lost +=
                    usize::from(!is_answered(&loaded, &Announce::of(7, 1_000).bytes(loaded.id, 1)));
            }
            (asked, lost)
        });
        for round in 2..8 {
            observer.connect();
            let before = observer.id;
            tracker.write_config(&config_of(round));
            tracker.log.clear();
            tracker.signal("HUP");
            tracker.wait_for("reloaded");
            wait_until("an id of the new key", WAIT_TIMEOUT, || {
                observer.connect();
                observer.id != before
            });
        }
        drop(end);
        load.join().unwrap()
    });
    println!("{asked} announces");
    assert!(asked > 1_000 && lost == 0, "{asked} announces, {lost} lost");
}

#[test]
#[ignore = "needs root: tests/run"]
fn addresses_and_interfaces_come_and_go() {
    let lab = Lab::routed();
    // The thread of XDP attaches the program again after the process has become another user.
    let mut tracker = start(&lab, &config("", "user: nobody\n"));
    check_capabilities(tracker.id(), CapabilitySet::empty());
    let to = SocketAddr::from(([10, 99, 0, 9], 6969));
    let seeder = lab.inside(Host::Seeder, || Client::new(&Host::Seeder.address(false), to));
    assert!(!is_answered(&seeder, &connect_request()), "the host does not have the address");
    ip(&lab, "address add 10.99.0.9/32 dev lo");
    // The wildcard socket answers until XDP knows the address.
    wait_until("the new address is served by XDP", WAIT_TIMEOUT, || {
        let _ = is_answered(&seeder, &connect_request());
        counted(&lab, "ipv4", "connected") > 0
    });
    ip(&lab, "address del 10.99.0.9/32 dev lo");
    wait_until("the old address is not served", WAIT_TIMEOUT, || {
        !is_answered(&seeder, &connect_request())
    });
    ip(&lab, "link set port3 down");
    ip(&lab, "link set port3 up");
    ip(&lab, "link set dev port3 address 02:00:00:00:00:99");
    let before = counted(&lab, "ipv4", "connected");
    let leecher = client(&lab, Host::Leecher, false);
    wait_until("the new hardware address is served by XDP", WAIT_TIMEOUT, || {
        let _ = is_answered(&leecher, &connect_request());
        counted(&lab, "ipv4", "connected") > before
    });
    tracker.log.clear();
    ip(&lab, "link del port3");
    tracker.wait_for("port3 has gone");
    ip(&lab, "link add port3 type veth peer name other");
    tracker.wait_within(
        Duration::from_secs(20),
        "port3 (driver unknown) answers connects in native mode",
    );
    tracker.wait_for("AF_XDP sockets in copy mode for");
    assert!(has_program(&lab, "port3"));
}

#[test]
#[ignore = "needs root: tests/run"]
fn the_program_ends_with_the_process() {
    let lab = Lab::routed();
    // The sockets of a process that was killed stay bound for a moment.
    let config = config_with(", announces: af_xdp", "", "");
    let mut tracker = start(&lab, &config);
    assert!(INTERFACES.iter().all(|name| has_program(&lab, name)));
    tracker.signal("KILL");
    tracker.wait();
    for name in INTERFACES {
        wait_until("the kernel detaches the program", WAIT_TIMEOUT, || !has_program(&lab, name));
    }
    start(&lab, &config).stop();
    assert!(!INTERFACES.iter().any(|name| has_program(&lab, name)));
}

/// Checks the permitted capabilities of each thread: those of XDP for the XDP thread and the thread that starts
/// programs, `of_all` for all others. In effect, no thread has more than `of_all`.
fn check_capabilities(process: u32, of_all: CapabilitySet) {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut names = Vec::new();
    for thread in threads {
        let path = thread.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap();
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let set = |mark: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(mark)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        // CAP_IPC_LOCK: the memory of the sockets may exceed the limit on locked memory.
        let for_sockets = CapabilitySet::NET_RAW | CapabilitySet::IPC_LOCK;
        let wanted = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | for_sockets;
        let keeps = ["xdp", "starter"].contains(&name.trim());
        let permitted = if keeps { wanted } else { of_all };
        let effective = set("CapEff:") & !of_all.bits();
        assert_eq!((set("CapPrm:"), effective), (permitted.bits(), 0), "{name}");
        names.push(name);
    }
    assert!(names.iter().any(|name| name.trim() == "xdp"), "{names:?}");
}

/// Starts a tracker with a command that `prepare` wraps, and checks that it refuses to start with these texts.
fn check_refusal(
    lab: &Lab,
    what: &str,
    config: &str,
    prepare: fn(Command) -> Command,
    texts: &[&str],
) {
    let mut tracker =
        Tracker::spawn(config, |command| lab.command(Host::Tracker, &prepare(command)));
    assert_eq!(tracker.wait().code(), Some(2), "{what}: {}", tracker.log.join("\n"));
    let all = tracker.log.join("\n");
    texts.iter().for_each(|text| assert!(all.contains(text), "{what}: {text} is not in {all}"));
}

/// Does what [`check_refusal`] does, and checks that a tracker whose config does not demand XDP logs the same as a
/// warning and answers.
fn check_obstacle(
    lab: &Lab,
    what: &str,
    config: &str,
    prepare: fn(Command) -> Command,
    texts: &[&str],
) {
    check_refusal(lab, what, config, prepare, texts);
    let config = config.replace("mode: native", "mode: auto");
    let config = config.replace("announces: af_xdp", "announces: auto");
    let on_host = |command: Command| lab.command(Host::Tracker, &prepare(command));
    let mut tracker = Tracker::start_with_command(&config, on_host);
    texts.iter().for_each(|text| _ = tracker.wait_for(text));
    client(lab, Host::Seeder, false).connect();
}

/// Returns a command that runs another one with fewer capabilities, such as `-net_raw`.
fn without(capabilities: &str, command: &Command) -> Command {
    let mut inside = Command::new("setpriv");
    inside.args(["--bounding-set", capabilities, "--inh-caps=-all"]);
    inside.arg(command.get_program()).args(command.get_args());
    inside
}

/// An obstacle to XDP ends the start with `mode: native`, and is logged as a warning with `mode: auto`.
#[test]
#[ignore = "needs root: tests/run"]
fn obstacles_are_named_with_their_cure() {
    let lab = Lab::routed();
    let unknown = config("", "").replace("port2", "eth9");
    let no_change = |command: Command| command;
    check_obstacle(&lab, "interface", &unknown, no_change, &["eth9", "ip link"]);
    let attached = lab.inside(Host::Tracker, || {
        let index = nix::net::if_::if_nametoindex("port2").unwrap();
        let mut filter = Filter::load(1).unwrap();
        let attached = filter.attach(("port2", index), (0, [0; 6]), XdpMode::Native).unwrap();
        (filter, attached)
    });
    check_obstacle(
        &lab,
        "attached",
        &config("", ""),
        no_change,
        &["another XDP program", "xdp off"],
    );
    drop(attached);
    let unprivileged = |command| without("-net_admin,-bpf,-sys_admin", &command);
    check_obstacle(
        &lab,
        "capabilities",
        &config("", ""),
        unprivileged,
        &["CAP_BPF", "CAP_NET_ADMIN"],
    );
    let probe = || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, &unknown).unwrap();
        tsubame().args(["check", "--probe", "--config"]).arg(&path).output().unwrap()
    };
    let output = lab.inside(Host::Tracker, probe);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("eth9 is not a network interface"), "{text}");
    let works =
        "port3: driver unknown, 1 receive queue; native mode works; AF_XDP works without zero copy";
    assert!(text.contains(works), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

/// An obstacle to AF_XDP ends the start only if AF_XDP is demanded.
#[test]
#[ignore = "needs root: tests/run"]
fn obstacles_to_af_xdp_are_named_with_their_cure() {
    let lab = Lab::routed();
    let af_xdp = config_with(", announces: af_xdp", "", "");
    let check = |what: &str, config: &str, prepare: fn(Command) -> Command, texts: &[&str]| {
        check_obstacle(&lab, what, config, prepare, texts);
    };
    let no_change = |command: Command| command;
    let no_raw = |command| without("-net_raw", &command);
    check("capability", &af_xdp, no_raw, &["receive queue 0 of port2", "CAP_NET_RAW"]);
    let low_limit = |command| {
        let mut inside = Command::new("prlimit");
        let command = without("-ipc_lock", &command);
        inside.arg("--memlock=4194304").arg(command.get_program()).args(command.get_args());
        inside
    };
    check("memory", &af_xdp, low_limit, &["locked memory (now 4096 KiB)", "LimitMEMLOCK"]);
    let no_copies = config_with(", zero_copy: on", "", "");
    for (mode, text) in
        [("native", "does not support zero copy"), ("generic", "impossible in generic mode")]
    {
        let config = no_copies.replace("native", mode);
        check_refusal(&lab, mode, &config, no_change, &[text, "zero_copy to auto"]);
    }
    let socket = lab.inside(Host::Tracker, || {
        let index = nix::net::if_::if_nametoindex("port3").unwrap();
        FrameSocket::open(index, 0, None).unwrap()
    });
    check("other socket", &af_xdp, no_change, &["another program has an AF_XDP socket"]);
    drop(socket);
    ip(&lab, "link add wide numrxqueues 2 numtxqueues 1 type veth peer name other");
    ip(&lab, "link set wide up");
    let wide = af_xdp.replace("[port2, port3]", "[wide]");
    check("queues", &wide, no_change, &["receive queue 1 of wide", "fewer transmit queues"]);
}

/// Attaches and detaches a thousand times under load: every request is answered, by XDP or over the socket, but for
/// those in flight.
#[test]
#[ignore = "needs root: tests/run"]
fn a_thousand_attaches_lose_only_requests_in_flight() {
    const ATTACHES: usize = 1_000;
    let lab = Lab::routed();
    let mac = [2, 0, 0, 0, 0, 0x99];
    ip(&lab, "link set dev port2 address 02:00:00:00:00:99");
    let config = config("", "").replace("[port2, port3]", "[port3]");
    let tracker = start(&lab, &config);
    let (has_ended, seeder) = (AtomicBool::new(false), client(&lab, Host::Seeder, false));
    let (asked, lost) = std::thread::scope(|scope| {
        let end = SetOnDrop(&has_ended);
        let load = scope.spawn(|| {
            let (mut asked, mut lost) = (0, 0);
            while !has_ended.load(Ordering::Relaxed) {
                asked += 1;
                lost += usize::from(!is_answered(&seeder, &connect_request()));
            }
            (asked, lost)
        });
        let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let attach_all = || {
            let index = nix::net::if_::if_nametoindex("port2").unwrap();
            let mut filter = Filter::load(1).unwrap();
            let address = SocketAddr::new(TRACKER_V4.parse().unwrap(), 6969);
            filter.set_addresses(&[address].into(), &BTreeSet::new()).unwrap();
            let ids = ConnectionIds::new(ConnectionIdKey([7; 16]), &[], 120);
            let settings = FilterSettings { ids, passes_wrong_ids: false };
            assert!(filter.apply(&settings, 0, Duration::ZERO).unwrap());
            let before = files();
            for _ in 0..ATTACHES {
                loop {
                    match filter.attach(("port2", index), (0, mac), XdpMode::Native) {
                        // The kernel ends an attachment a moment after it was dropped.
                        Err(XdpError::Attached(_)) => {}
                        attached => break drop(attached?),
                    }
                }
            }
            let connects = filter.counts().requests[FilterOutcome::Connected as usize][0];
            Ok::<_, XdpError>((connects, files().saturating_sub(before)))
        };
        let result = lab.inside(Host::Tracker, attach_all);
        drop(end);
        let (connects, more_files) = result.unwrap();
        assert!(connects > 0, "the program answers while it is attached");
        // Other tests of this process open files, too.
        assert!(more_files < ATTACHES / 10, "files leak");
        load.join().unwrap()
    });
    println!("{asked} requests, {lost} lost");
    assert!(asked > ATTACHES && lost < ATTACHES / 10, "{asked} requests, {lost} lost");
    tracker.stop();
}
