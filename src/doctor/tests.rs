//! Tests of the checks: hosts with and without each problem.

use super::*;
use crate::http::Certificate;
use std::collections::BTreeMap;

/// A host with given files, and given answers of tools.
#[derive(Default)]
struct FakeHost {
    files: BTreeMap<String, String>,
    tools: BTreeMap<String, String>,
    /// Whether tools without an answer fail because the kernel does not support it, not because they are missing.
    unsupported: bool,
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
        let error =
            if self.unsupported { "failed: Operation not supported" } else { "is not installed" };
        self.tools.get(&call).cloned().ok_or_else(|| format!("{tool} {error}"))
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
    let cores = vec![0, 1];
    let subject = Subject { host, config: &config, mistakes: &[], unix_secs: 0, path: None, cores };
    let mut findings = machine::findings(&subject);
    findings.extend(network::findings(&subject));
    // These depend on the machine of the test, not on the fake host.
    let of_process = ["memory", "io_uring"];
    findings.retain(|finding| !of_process.contains(&finding.check));
    findings
}

#[test]
fn a_tuned_host_needs_no_change() {
    let findings = host_findings(&tuned_host());
    let others: Vec<_> = findings.iter().filter(|it| it.level != FindingLevel::Ok).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(findings.len(), 14);
}

/// A check, the expected result and cure, and a change of the tuned host.
type Case = (&'static str, FindingLevel, &'static str, fn(FakeHost) -> FakeHost);

/// Checks that each change causes this finding and no other.
fn assert_findings(cases: &[Case]) {
    for (check, level, cure, change) in cases {
        let findings = host_findings(&change(tuned_host()));
        let finding = findings.iter().find(|it| it.check == *check).unwrap();
        assert_eq!(finding.level, *level, "{finding:?}");
        assert!(finding.cure.as_deref().unwrap_or_default().contains(cure), "{finding:?}");
        let others =
            findings.iter().filter(|it| it.check != *check && it.level != FindingLevel::Ok);
        assert_eq!(others.count(), 0, "{check}: {findings:?}");
    }
}

#[test]
fn each_cause_in_the_machine_is_found_with_its_cure() {
    assert_findings(&[
        ("kernel", FindingLevel::Problem, "newer kernel", |it| {
            it.with(&[("/proc/sys/kernel/osrelease", "5.15.0-91-generic")])
        }),
        ("clock", FindingLevel::Warning, "timedatectl set-ntp true", |it| {
            it.with_tools(&[(CLOCK, "no\n")])
        }),
        ("cpu_governor", FindingLevel::Warning, "cpupower frequency-set -g performance", |it| {
            it.with(&[("/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave")])
        }),
        ("open_files", FindingLevel::Warning, "LimitNOFILE=20384", |it| {
            it.with(&[("/proc/self/limits", "Max open files  1024  4096  files\n")])
        }),
        ("open_files", FindingLevel::Ok, "", |it| {
            it.with(&[
                ("/proc/self/limits", "Max open files  1024  4096  files\n"),
                ("/proc/50/comm", "tsubame"),
                ("/proc/50/cmdline", "tsubame\0run"),
                ("/proc/50/limits", "Max open files  1024  1048576  files\n"),
            ])
        }),
        ("locked_memory", FindingLevel::Warning, "LimitMEMLOCK=infinity", |it| {
            it.with(&[("/proc/self/limits", "Max locked memory  65536  65536  bytes\n")])
        }),
    ]);
}

#[test]
fn each_cause_in_the_network_is_found_with_its_cure() {
    assert_findings(&[
        ("receive_buffer", FindingLevel::Warning, "net.core.rmem_max=8388608", |it| {
            it.with(&[("/proc/sys/net/core/rmem_max", "212992")])
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
        ("ipv6", FindingLevel::Warning, "remove the IPv6 addresses", |it| {
            it.with(&[("/proc/net/ipv6_route", "")])
        }),
        ("hash_fields", FindingLevel::Unknown, "rps_cpus", |mut it| {
            it.tools.remove("ethtool -n eth0 rx-flow-hash udp6");
            it.unsupported = true;
            it
        }),
    ]);
}

#[test]
fn rules_that_exempt_both_directions_are_recognized() {
    assert_findings(&[
        ("connection_tracking", FindingLevel::Warning, "udp dport 6969 notrack", |it| {
            it.with(&[("/proc/sys/net/netfilter/nf_conntrack_count", "5")])
        }),
        ("connection_tracking", FindingLevel::Warning, "udp sport 6969 notrack", |it| {
            it.with(&[("/proc/sys/net/netfilter/nf_conntrack_count", "5")]).with_tools(&[(
                "nft list ruleset",
                "ct state established accept\nudp dport 16969 notrack",
            )])
        }),
        ("connection_tracking", FindingLevel::Ok, "", |it| {
            it.with(&[("/proc/sys/net/netfilter/nf_conntrack_count", "5")]).with_tools(&[(
                "nft list ruleset",
                "udp dport { 80, 6000-7000 } notrack\nudp sport 6969 notrack",
            )])
        }),
        ("connection_tracking", FindingLevel::Warning, "udp sport 6969 notrack", |it| {
            it.with(&[("/proc/sys/net/netfilter/nf_conntrack_count", "5")]).with_tools(&[(
                "nft list ruleset",
                "udp dport 6969 notrack\ntcp sport 6969 notrack",
            )])
        }),
    ]);
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
        let diagnosis =
            diagnose(&host, (&config, &["t.yaml:1: x: is not a key; remove it".to_owned()]), None);
        let mistake =
            diagnosis.findings.iter().find(|it| it.text.contains("is not a key")).unwrap();
        assert_eq!(mistake.cure.as_deref(), Some("remove it"));
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

#[test]
fn certificates_that_end_soon_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let source = format!(
        "http: {{tls: {{listen: \"127.0.0.1:0\", certificate: {}, key: {}}}}}",
        certificate.display(),
        key.display()
    );
    let config = Config::parse("t", &source).unwrap();
    let expiry = Certificate::load(&certificate, &key).unwrap().expiry_unix_secs().unwrap();
    for (days_left, level) in
        [(40, FindingLevel::Ok), (20, FindingLevel::Warning), (0, FindingLevel::Problem)]
    {
        let unix_secs = expiry - days_left * 86_400;
        let host = tuned_host();
        let subject = Subject {
            host: &host,
            config: &config,
            mistakes: &[],
            unix_secs,
            path: None,
            cores: vec![0],
        };
        let findings = setup::findings(&subject);
        let finding = findings.iter().find(|it| it.check == "certificate").unwrap();
        assert_eq!(finding.level, level, "{finding:?}");
    }
}

#[test]
fn the_exit_code_depends_on_problems_and_warnings() {
    let level_of = |finding: Finding| {
        let (problems, warnings) = match finding.level {
            FindingLevel::Problem => (1, 0),
            FindingLevel::Warning => (0, 1),
            FindingLevel::Ok | FindingLevel::Unknown => (0, 0),
        };
        Diagnosis { findings: vec![finding], problems, warnings }.needs_change()
    };
    assert!(!level_of(Finding::ok("a", "b")) && !level_of(Finding::unknown("a", "b", "c")));
    assert!(
        level_of(Finding::warning("a", "b", None)) && level_of(Finding::problem("a", "b", None))
    );
}
