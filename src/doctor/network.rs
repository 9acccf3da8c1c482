//! Checks of network settings: sysctls, network cards, their interrupts, the firewall, and IPv6.

use super::finding::Finding;
use super::host::Subject;
use crate::text::{grouped, iec, plural};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Lowest `net.core.netdev_max_backlog` without a warning. The default of the kernel, 1000, is 10 ms of traffic at
/// 100,000 datagrams per second.
const BACKLOG_MIN: u64 = 10_000;

/// `net.core.netdev_max_backlog` of deploy/sysctl.conf.
const BACKLOG_RECOMMENDED: u64 = 65_536;

pub(super) fn findings(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = vec![receive_buffer(subject), dropped_datagrams(subject), backlog(subject)];
    let cards = cards(subject);
    for card in &cards {
        findings.extend([
            queues(subject, card),
            hash_fields(subject, card),
            interrupts(subject, card),
        ]);
    }
    if cards.is_empty() {
        let text = "no interface with a driver was found: a container or a virtual network";
        findings.push(Finding::ok("network_card", text));
    }
    findings.extend([irqbalance(subject, &cards), firewall(subject), ipv6(subject)]);
    findings
}

fn sysctl(subject: &Subject<'_>, name: &str) -> Option<u64> {
    subject.host.read(&format!("/proc/sys/{}", name.replace('.', "/")))?.parse().ok()
}

fn receive_buffer(subject: &Subject<'_>) -> Finding {
    let wanted = subject.config.udp.receive_buffer as u64;
    match sysctl(subject, "net.core.rmem_max") {
        Some(max) if max < wanted => Finding::warning(
            "receive_buffer",
            format!(
                "net.core.rmem_max permits {} of udp.receive_buffer ({}), so that bursts of datagrams are dropped",
                iec(max),
                iec(wanted)
            ),
            format!("sysctl -w net.core.rmem_max={wanted}"),
        ),
        Some(max) => {
            Finding::ok("receive_buffer", format!("net.core.rmem_max permits {}", iec(max)))
        }
        None => Finding::unknown(
            "receive_buffer",
            "net.core.rmem_max cannot be read in this network namespace",
            "run tsubame doctor on the host",
        ),
    }
}

/// Returns the number of datagrams of an address family that the kernel has delivered since it started, and the number
/// that it has dropped because a receive buffer was full.
fn delivered_and_dropped(subject: &Subject<'_>) -> [(u64, u64); 2] {
    let v4 = subject.host.read("/proc/net/snmp").unwrap_or_default();
    let mut udp = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().unwrap_or_default(), udp.next().unwrap_or_default());
    let v4 = |name: &str| {
        let found = names.split(' ').zip(values.split(' ')).find(|(it, _)| *it == name);
        found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    let v6_counters = subject.host.read("/proc/net/snmp6").unwrap_or_default();
    let v6 = |name: &str| {
        let line = v6_counters.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    [(v4("InDatagrams"), v4("RcvbufErrors")), (v6("Udp6InDatagrams"), v6("Udp6RcvbufErrors"))]
}

/// Reports the datagrams that the kernel has dropped. It is never a warning: the drops may be as old as the last boot.
fn dropped_datagrams(subject: &Subject<'_>) -> Finding {
    let [(v4, v4_dropped), (v6, v6_dropped)] = delivered_and_dropped(subject);
    Finding::ok(
        "dropped_datagrams",
        format!(
            "since its start the kernel has dropped {} of {} IPv4 and {} of {} IPv6 datagrams of all programs because \
             a receive buffer was full; tsubame_kernel_dropped_total has those of the tracker",
            grouped(v4_dropped),
            grouped(v4 + v4_dropped),
            grouped(v6_dropped),
            grouped(v6 + v6_dropped)
        ),
    )
}

fn backlog(subject: &Subject<'_>) -> Finding {
    let stats = subject.host.read("/proc/net/softnet_stat").unwrap_or_default();
    let dropped = stats
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok());
    let dropped: u64 = dropped.sum();
    let cure = format!("sysctl -w net.core.netdev_max_backlog={BACKLOG_RECOMMENDED}");
    match sysctl(subject, "net.core.netdev_max_backlog") {
        Some(max) if max < BACKLOG_MIN => Finding::warning(
            "backlog",
            format!(
                "net.core.netdev_max_backlog is {max}: at 100,000 datagrams a second the queue of a core is full after \
                 {} ms; {} packets were dropped there",
                max / 100,
                grouped(dropped)
            ),
            cure,
        ),
        Some(max) => Finding::ok(
            "backlog",
            format!(
                "net.core.netdev_max_backlog is {max}; {} packets were dropped",
                grouped(dropped)
            ),
        ),
        None => Finding::unknown(
            "backlog",
            "net.core.netdev_max_backlog cannot be read in this network namespace",
            "run tsubame doctor on the host",
        ),
    }
}

/// Returns the interfaces that are up and have a driver.
fn cards(subject: &Subject<'_>) -> Vec<String> {
    let names = subject.host.list("/sys/class/net").into_iter();
    let is_card = |name: &String| {
        let folder = format!("/sys/class/net/{name}");
        subject.host.list(&folder).iter().any(|entry| entry == "device")
            && subject
                .host
                .read(&format!("{folder}/operstate"))
                .is_some_and(|state| state != "down")
    };
    names.filter(is_card).collect()
}

fn receive_queues(subject: &Subject<'_>, card: &str) -> usize {
    let queues = subject.host.list(&format!("/sys/class/net/{card}/queues"));
    queues.iter().filter(|name| name.starts_with("rx-")).count()
}

fn queues(subject: &Subject<'_>, card: &str) -> Finding {
    let (queues, shards) = (receive_queues(subject, card), subject.cores.len());
    let steers = |queue: usize| {
        let mask = format!("/sys/class/net/{card}/queues/rx-{queue}/rps_cpus");
        subject
            .host
            .read(&mask)
            .is_some_and(|mask| mask.contains(|it: char| ('1'..='f').contains(&it)))
    };
    let text = format!(
        "{card} has {} for {}",
        plural(queues as u64, "receive queue"),
        plural(shards as u64, "shard")
    );
    if queues < shards && !(0..queues).any(steers) {
        return Finding::warning(
            "queues",
            format!("{text}, so that only as many cores do the work of the kernel"),
            format!(
                "ethtool -L {card} combined {shards}; if the card has no more, set \
                 /sys/class/net/{card}/queues/rx-*/rps_cpus"
            ),
        );
    }
    Finding::ok("queues", text)
}

/// Many cards choose the queue of a UDP datagram by its addresses alone, so that one address uses one queue.
fn hash_fields(subject: &Subject<'_>, card: &str) -> Finding {
    if receive_queues(subject, card) < 2 {
        return Finding::ok("hash_fields", format!("{card} has one receive queue"));
    }
    let mut wrong = Vec::new();
    for protocol in ["udp4", "udp6"] {
        match subject.host.run("ethtool", &["-n", card, "rx-flow-hash", protocol]) {
            Ok(fields) if fields.contains("L4 bytes 0 & 1") => {}
            Ok(_) => wrong.push(protocol),
            Err(why) => {
                let cure = match why.contains("not supported") {
                    true => {
                        "none if the card cannot hash ports; if one core is busy, set rps_cpus of its queues"
                    }
                    false => "apt install ethtool, and run tsubame doctor as root",
                };
                let text = format!("the fields of {protocol} that {card} hashes: {why}");
                return Finding::unknown("hash_fields", text, cure);
            }
        }
    }
    if wrong.is_empty() {
        return Finding::ok(
            "hash_fields",
            format!("{card} distributes datagrams by address and port"),
        );
    }
    let cures: Vec<String> = wrong
        .iter()
        .map(|protocol| format!("ethtool -N {card} rx-flow-hash {protocol} sdfn"))
        .collect();
    Finding::warning(
        "hash_fields",
        format!("{card} distributes {} datagrams by address without the port", wrong.join(" and ")),
        cures.join("\n"),
    )
}

/// Returns the cores of the interrupts of a card.
fn interrupt_cores(subject: &Subject<'_>, card: &str) -> Vec<(String, String)> {
    let device = format!("/sys/class/net/{card}/device");
    // A virtio device is a child of the PCI device that has the interrupts.
    let folders = [format!("{device}/msi_irqs"), format!("{device}/../msi_irqs")];
    let numbers = folders.iter().map(|folder| subject.host.list(folder)).find(|it| !it.is_empty());
    let counts = subject.host.read("/proc/interrupts").unwrap_or_default();
    let is_used = |number: &String| {
        let line = counts.lines().find_map(|line| line.trim().strip_prefix(&format!("{number}:")));
        let counts = line.unwrap_or_default().split_ascii_whitespace();
        counts.map_while(|count| count.parse::<u64>().ok()).any(|count| count > 0)
    };
    let core = |number: String| {
        let read = |file: &str| subject.host.read(&format!("/proc/irq/{number}/{file}"));
        let cores = read("effective_affinity_list").or_else(|| read("smp_affinity_list"))?;
        Some((number, cores))
    };
    numbers.unwrap_or_default().into_iter().filter(is_used).filter_map(core).collect()
}

fn interrupts(subject: &Subject<'_>, card: &str) -> Finding {
    let interrupts = interrupt_cores(subject, card);
    let used: BTreeSet<&str> = interrupts.iter().map(|(_, cores)| cores.as_str()).collect();
    // A queue may have an interrupt of its own for each direction.
    let usable = interrupts.len().min(receive_queues(subject, card)).min(subject.cores.len());
    if usable > 1 && used.len() < usable {
        let targets = subject.cores.iter().cycle();
        let commands = interrupts.iter().zip(targets).map(|((number, _), core)| {
            format!("echo {core} > /proc/irq/{number}/smp_affinity_list")
        });
        return Finding::warning(
            "interrupts",
            format!(
                "{card} has {}, which arrive on {} although shards run on {}",
                plural(interrupts.len() as u64, "interrupt"),
                plural(used.len() as u64, "core"),
                plural(subject.cores.len() as u64, "core")
            ),
            commands.collect::<Vec<_>>().join("\n"),
        );
    }
    let text = match interrupts.is_empty() {
        true => format!("the kernel lists no interrupts of {card}"),
        false => format!(
            "{card} has {} on {}",
            plural(interrupts.len() as u64, "interrupt"),
            plural(used.len() as u64, "core")
        ),
    };
    Finding::ok("interrupts", text)
}

fn irqbalance(subject: &Subject<'_>, cards: &[String]) -> Finding {
    let has_queues = cards.iter().any(|card| receive_queues(subject, card) > 1);
    let is_running = || {
        subject
            .host
            .list("/proc")
            .iter()
            .filter(|name| name.bytes().all(|it| it.is_ascii_digit()))
            .any(|process| {
                subject.host.read(&format!("/proc/{process}/comm")).as_deref() == Some("irqbalance")
            })
    };
    if has_queues && is_running() {
        return Finding::warning(
            "irqbalance",
            "irqbalance runs and moves the interrupts of network cards between cores",
            "systemctl disable --now irqbalance".to_owned(),
        );
    }
    Finding::ok(
        "irqbalance",
        "irqbalance does not run, or no network card has several receive queues",
    )
}

fn ports(addresses: &[SocketAddr]) -> BTreeSet<u16> {
    addresses.iter().map(SocketAddr::port).filter(|port| *port != 0).collect()
}

/// Connection tracking drops datagrams silently when its table is full.
fn firewall(subject: &Subject<'_>) -> Finding {
    let check = "connection_tracking";
    let Some(entries) = sysctl(subject, "net.netfilter.nf_conntrack_count") else {
        return Finding::ok(check, "the kernel does not track connections");
    };
    let rules = subject.host.run("nft", &["list", "ruleset"]);
    let tracks = entries > 0 || rules.as_ref().is_ok_and(|rules| rules.contains("ct state"));
    let is_exempt = |port: &u16| {
        let rules = rules.as_deref().unwrap_or_default();
        exempts(rules, "udp dport", *port) && exempts(rules, "udp sport", *port)
    };
    let ports = ports(&subject.config.udp.listen);
    let Some(port) = ports.iter().find(|port| !is_exempt(port)) else {
        return Finding::ok(check, "the UDP ports are exempt");
    };
    if !tracks {
        return Finding::ok(check, "the kernel can track connections, but tracks none");
    }
    let max = sysctl(subject, "net.netfilter.nf_conntrack_max").unwrap_or(0);
    let rules = match &rules {
        Ok(_) => format!("nftables does not exempt UDP port {port} in both directions"),
        Err(why) => format!("it is not known whether UDP port {port} is exempt ({why})"),
    };
    Finding::warning(
        check,
        format!(
            "the kernel tracks connections ({} of {} entries), and {rules}; when the table is full, datagrams are \
             dropped silently. If the firewall filters, first permit UDP port {port} without ct state: exempt \
             datagrams have none",
            grouped(entries),
            grouped(max)
        ),
        format!(
            "nft add table inet tsubame\n\
             nft add chain inet tsubame prerouting '{{ type filter hook prerouting priority raw; }}'\n\
             nft add chain inet tsubame output '{{ type filter hook output priority raw; }}'\n\
             nft add rule inet tsubame prerouting udp dport {port} notrack\n\
             nft add rule inet tsubame output udp sport {port} notrack"
        ),
    )
}

/// Returns whether a rule exempts datagrams from connection tracking whose port, named by `field`, is this one.
fn exempts(rules: &str, field: &str, port: u16) -> bool {
    let has_port = |text: &str| {
        let ends = text.split(['{', '}', ',', ' ']).filter(|it| !it.is_empty());
        let mut ports = ends.map_while(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
        });
        ports.any(|range| range.contains(&port))
    };
    rules
        .lines()
        .filter(|line| line.contains("notrack"))
        .any(|line| line.split_once(field).is_some_and(|(_, rest)| has_port(rest)))
}

/// Checks that IPv6 is served and reachable: half of the clients of a public tracker have it, too.
fn ipv6(subject: &Subject<'_>) -> Finding {
    let listen = [&subject.config.udp.listen, &subject.config.http.listen];
    if !listen.into_iter().flatten().any(SocketAddr::is_ipv6) {
        return Finding::warning(
            "ipv6",
            "no IPv6 address is served",
            "add \"[::]:6969\" to udp.listen and http.listen".to_owned(),
        );
    }
    // The fourth field is the scope: 00 is global.
    let addresses = subject.host.read("/proc/net/if_inet6").unwrap_or_default();
    let is_global = |line: &str| line.split_ascii_whitespace().nth(3) == Some("00");
    // Destination and length of the prefix; the last field is the interface.
    let routes = subject.host.read("/proc/net/ipv6_route").unwrap_or_default();
    let is_default = |line: &str| {
        line.starts_with("00000000000000000000000000000000 00 ") && !line.ends_with(" lo")
    };
    match (addresses.lines().any(is_global), routes.lines().any(is_default)) {
        (true, true) => Finding::ok("ipv6", "there is a global address and a default route"),
        (has_address, _) => Finding::warning(
            "ipv6",
            match has_address {
                true => "there is no default route for IPv6, so that IPv6 clients get no replies",
                false => "no interface has a global IPv6 address, so that IPv6 clients cannot reach the tracker",
            },
            "ask your provider for an IPv6 prefix, or remove the IPv6 addresses from udp.listen and \
             http.listen"
                .to_owned(),
        ),
    }
}
