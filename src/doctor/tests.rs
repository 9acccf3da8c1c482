//! Tests of the checks: hosts with and without each problem.

use super::*;
use std::collections::BTreeMap;

/// A host with given files, and given answers of tools.
#[derive(Default)]
struct FakeHost {
    files: BTreeMap<String, String>,
    tools: BTreeMap<String, String>,
}

impl FakeHost {
    fn with(mut self, files: &[(&str, &str)]) -> Self {
        self.files
            .extend(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())));
        self
    }

    fn with_tools(mut self, tools: &[(&str, &str)]) -> Self {
        self.tools
            .extend(tools.iter().map(|(call, text)| ((*call).to_owned(), (*text).to_owned())));
        self
    }
}

impl Host for FakeHost {
    fn read(&self, path: &str) -> Option<String> {
        self.files.get(path).cloned()
    }

    fn list(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        let below = self.files.keys().filter_map(|file| file.strip_prefix(&prefix));
        let mut names: Vec<String> =
            below.filter_map(|rest| rest.split('/').next()).map(str::to_owned).collect();
        names.dedup();
        names
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> Result<String, String> {
        let call = format!("{tool} {}", arguments.join(" "));
        self.tools.get(&call).cloned().ok_or_else(|| format!("{tool} is not installed"))
    }
}

const CLOCK: &str = "timedatectl show --property=NTPSynchronized --value";

/// A host with a card of two queues whose interrupts arrive on two cores.
fn tuned_host() -> FakeHost {
    FakeHost::default()
        .with(&[
            ("/proc/sys/kernel/osrelease", "6.12.0-1-amd64"),
            ("/proc/sys/net/core/rmem_max", "8388608"),
            ("/proc/sys/net/core/netdev_max_backlog", "65536"),
            ("/proc/net/snmp", "Udp: InDatagrams RcvbufErrors\nUdp: 1000000 3"),
            ("/proc/net/if_inet6", "20010db8000000000000000000000001 02 40 00 80 eth0"),
            (
                "/proc/net/ipv6_route",
                "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe80 00000400 0 0 0 eth0",
            ),
            ("/sys/class/net/eth0/operstate", "up"),
            ("/sys/class/net/eth0/device/msi_irqs/40", ""),
            ("/sys/class/net/eth0/device/msi_irqs/41", ""),
            ("/sys/class/net/eth0/queues/rx-0/rps_cpus", "00"),
            ("/sys/class/net/eth0/queues/rx-1/rps_cpus", "00"),
            ("/sys/class/net/lo/operstate", "unknown"),
            ("/proc/interrupts", "  CPU0 CPU1\n 40: 7 0 PCI eth0-rx-0\n 41: 0 9 PCI eth0-rx-1"),
            ("/proc/irq/40/effective_affinity_list", "0"),
            ("/proc/irq/41/effective_affinity_list", "1"),
            ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance"),
            ("/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance"),
        ])
        .with_tools(&[
            (CLOCK, "yes\n"),
            ("ethtool -n eth0 rx-flow-hash udp4", "IP SA\nIP DA\nL4 bytes 0 & 1 [TCP/UDP src port]\n"),
            ("ethtool -n eth0 rx-flow-hash udp6", "IP SA\nIP DA\nL4 bytes 0 & 1 [TCP/UDP src port]\n"),
        ])
}

/// Returns the findings that depend on the fake host, for two shards.
fn host_findings(host: &FakeHost) -> Vec<Finding> {
    let config = Config::load(None).unwrap();
    let subject = Subject { host, config: &config, path: None, cores: vec![0, 1] };
    let mut findings = machine::findings(&subject);
    findings.extend(network::findings(&subject));
    let of_process = ["open_files", "locked_memory", "memory", "io_uring"];
    findings.retain(|finding| !of_process.contains(&finding.check));
    findings
}

#[test]
fn a_tuned_host_needs_no_change() {
    let findings = host_findings(&tuned_host());
    let others: Vec<_> = findings.iter().filter(|it| it.level != FindingLevel::Ok).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(findings.len(), 12);
}

#[test]
fn each_cause_is_found_with_the_command_that_cures_it() {
    type Change = fn(FakeHost) -> FakeHost;
    let cases: [(&str, FindingLevel, &str, Change); 15] = [
        ("kernel", FindingLevel::Problem, "newer kernel", |it| {
            it.with(&[("/proc/sys/kernel/osrelease", "5.15.0-91-generic")])
        }),
        ("clock", FindingLevel::Warning, "timedatectl set-ntp true", |it| {
            it.with_tools(&[(CLOCK, "no\n")])
        }),
        ("cpu_governor", FindingLevel::Warning, "cpupower frequency-set -g performance", |it| {
            it.with(&[("/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave")])
        }),
        ("receive_buffer", FindingLevel::Warning, "net.core.rmem_max=8388608", |it| {
            it.with(&[("/proc/sys/net/core/rmem_max", "212992")])
        }),
        ("dropped_datagrams", FindingLevel::Warning, "udp.receive_buffer", |it| {
            it.with(&[("/proc/net/snmp", "Udp: InDatagrams RcvbufErrors\nUdp: 1000000 3000")])
        }),
        ("backlog", FindingLevel::Warning, "netdev_max_backlog=65536", |it| {
            it.with(&[("/proc/sys/net/core/netdev_max_backlog", "1000")])
        }),
        ("queues", FindingLevel::Warning, "ethtool -L eth0 combined 2", |mut it| {
            it.files.remove("/sys/class/net/eth0/queues/rx-1/rps_cpus");
            it
        }),
        ("hash_fields", FindingLevel::Warning, "ethtool -N eth0 rx-flow-hash udp6 sdfn", |it| {
            it.with_tools(&[("ethtool -n eth0 rx-flow-hash udp6", "IP SA\nIP DA\n")])
        }),
        ("hash_fields", FindingLevel::Unknown, "apt install ethtool", |mut it| {
            it.tools.remove("ethtool -n eth0 rx-flow-hash udp4");
            it
        }),
        ("interrupts", FindingLevel::Warning, "echo 1 > /proc/irq/41/smp_affinity_list", |it| {
            it.with(&[("/proc/irq/41/effective_affinity_list", "0")])
        }),
        ("irqbalance", FindingLevel::Warning, "systemctl disable --now irqbalance", |it| {
            it.with(&[("/proc/77/comm", "irqbalance")])
        }),
        ("connection_tracking", FindingLevel::Warning, "udp dport 6969 notrack", |it| {
            it.with(&[("/proc/sys/net/netfilter/nf_conntrack_count", "5")])
        }),
        ("connection_tracking", FindingLevel::Warning, "udp sport 6969 notrack", |it| {
            it.with(&[("/proc/sys/net/netfilter/nf_conntrack_count", "5")]).with_tools(&[(
                "nft list ruleset",
                "ct state established accept\nudp dport 16969 notrack",
            )])
        }),
        ("ipv6", FindingLevel::Warning, "remove the IPv6 addresses", |it| {
            it.with(&[("/proc/net/ipv6_route", "")])
        }),
        ("connection_tracking", FindingLevel::Ok, "", |it| {
            it.with(&[("/proc/sys/net/netfilter/nf_conntrack_count", "5")])
                .with_tools(&[("nft list ruleset", "udp dport 6969 notrack")])
        }),
    ];
    for (check, level, cure, change) in cases {
        let findings = host_findings(&change(tuned_host()));
        let finding = findings.iter().find(|it| it.check == check).unwrap();
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.cure.as_deref().unwrap_or_default().contains(cure), "{finding:?}");
        let others = findings.iter().filter(|it| it.check != check && it.level != FindingLevel::Ok);
        assert_eq!(others.count(), 0, "{check}: {findings:?}");
    }
}

#[test]
fn files_and_networks_of_the_config_are_checked() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let source = format!(
        "control: {{listen: \"0.0.0.0:6880\", token_file: {}}}\n\
         announce: {{trust_client_ip: [0.0.0.0/0], interval: 10s}}\n\
         storage: {{memory: 64TiB}}\nhooks: [{{name: access_list, options: {{mode: allow, files: [{}/none]}}}}]\n",
        token.display(),
        directory.path().display()
    );
    let config = Config::parse("t", &source).unwrap();
    let host = FakeHost::default();
    let mut levels = BTreeMap::new();
    for mode in [0o644, 0o600] {
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).unwrap();
        let diagnosis = diagnose(&host, &config, None);
        assert!(diagnosis.needs_change());
        for finding in diagnosis.findings {
            levels.entry((mode, finding.check)).or_insert(finding.level);
        }
    }
    for (check, level) in [
        ("config", FindingLevel::Problem),
        ("memory", FindingLevel::Warning),
        ("trusted_networks", FindingLevel::Warning),
        ("control_plane", FindingLevel::Warning),
        ("secrets", FindingLevel::Warning),
    ] {
        assert_eq!(levels[&(0o644, check)], level, "{check}");
    }
    assert_eq!(levels[&(0o600, "secrets")], FindingLevel::Ok);
}
