//! The Debian packages in a system with systemd and without network: installation, upgrade, removal and purge.
//!
//! `deploy/package` builds them; needs root and the packages of `tests/run`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::container::Container;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Version of the packages of the upgrade.
const NEW_VERSION: &str = "99.0.0-1";

/// Returns the paths of the packages tsubame and tsubame-load, which are built once.
fn packages() -> &'static [PathBuf; 2] {
    static PACKAGES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = Command::new(root.join("deploy/package")).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let architecture = Command::new("dpkg").arg("--print-architecture").output().unwrap();
        let architecture = String::from_utf8(architecture.stdout).unwrap();
        let suffix = format!("{}-1_{}.deb", env!("CARGO_PKG_VERSION"), architecture.trim());
        ["tsubame", "tsubame-load"].map(|name| root.join(format!("target/debian/{name}_{suffix}")))
    })
}

/// Copies files into the folder /packages of a container.
fn copy_in(container: &Container, files: &[PathBuf]) {
    container.succeed("mkdir -p /packages");
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        std::fs::copy(file, container.path(&format!("/packages/{name}"))).unwrap();
    }
}

#[test]
#[ignore = "needs root, systemd-container and cargo-deb; run by tests/run"]
fn packages_are_installed_upgraded_and_purged() {
    let container = Container::start();
    copy_in(&container, packages());
    container.succeed("dpkg --install /packages/*.deb");
    // It runs under its own user, enabled for the next boot, and answers.
    container.succeed("systemctl is-active tsubame && systemctl is-enabled tsubame");
    assert_eq!(container.succeed("ps -o user= -C tsubame").trim(), "tsubame");
    container.succeed("tsubame e2e udp://127.0.0.1:6969 http://127.0.0.1:6969/announce");
    let config = container.succeed("stat --format '%U:%G %a' /etc/tsubame.yaml");
    assert_eq!(config.trim(), "root:tsubame 640");
    container
        .succeed("journalctl --unit tsubame | grep 'control plane on /run/tsubame/control.sock'");
    for file in [
        "/usr/lib/sysctl.d/50-tsubame.conf",
        "/usr/share/man/man1/tsubame.1.gz",
        "/usr/share/man/man1/tsubame-doctor.1.gz",
        "/usr/share/man/man1/tsubame-load.1.gz",
        "/usr/share/bash-completion/completions/tsubame",
        "/usr/share/doc/tsubame/copyright",
        "/usr/share/doc/tsubame/examples/tsubame.socket",
        "/usr/share/doc/tsubame/examples/tsubame-xdp.conf",
    ] {
        container.succeed(&format!("test -s {file}"));
    }
    container.succeed("bash -n /usr/share/bash-completion/completions/tsubame-load");
    container.succeed(
        "tsubame-load udp://127.0.0.1:6969 --torrents 100 --rate 1000 --duration 1s --warmup 0s --quiet",
    );

    // A restart keeps the swarms.
    container
        .succeed("test \"$(stat --format '%U %a' /var/lib/tsubame/identity)\" = 'tsubame 600'");
    container.succeed("systemctl restart tsubame");
    container
        .wait_for("journalctl --unit tsubame | grep 'restored from a snapshot of .* torrents'");

    // An upgrade keeps the changed config.
    container.succeed("sed -i 's/^  interval: 30m/  interval: 25m/' /etc/tsubame.yaml");
    container.succeed("systemctl reload tsubame");
    container.succeed(&format!(
        "cd /packages && for deb in *.deb; do dpkg-deb --raw-extract $deb new && \
         sed -i 's/^Version: .*/Version: {NEW_VERSION}/' new/DEBIAN/control && \
         echo '# A new default.' >>new/etc/tsubame.yaml 2>/dev/null; \
         (cd new && find * -type f -not -path 'DEBIAN/*' -exec md5sum {{}} + >DEBIAN/md5sums) && \
         dpkg-deb --build new new_$deb && rm -r new $deb; done"
    ));
    let before = container.succeed("systemctl show --value --property MainPID tsubame");
    container.succeed("dpkg --install --force-confold /packages/*.deb");
    container.wait_for("systemctl is-active tsubame");
    let after = container.succeed("systemctl show --value --property MainPID tsubame");
    assert_ne!(before, after, "the service was not replaced");
    // The new version has taken over from the running tracker, with the swarms of the load generator.
    container.succeed("journalctl --unit tsubame | grep 'took over from process .* torrents'");
    container.succeed("grep 'interval: 25m' /etc/tsubame.yaml");
    container.succeed("tsubame e2e udp://127.0.0.1:6969");

    // Removal stops the service and keeps the config; a purge leaves nothing.
    container.succeed("dpkg --remove tsubame tsubame-load");
    assert_ne!(container.run("systemctl is-active tsubame").code, Some(0));
    assert_ne!(container.run("pgrep -x tsubame").code, Some(0));
    container.succeed("test -f /etc/tsubame.yaml");
    container.succeed("dpkg --purge tsubame tsubame-load");
    for path in
        ["/etc/tsubame.yaml", "/var/lib/tsubame", "/var/lib/private/tsubame", "/usr/bin/tsubame"]
    {
        container.succeed(&format!("test ! -e {path}"));
    }
    assert_ne!(container.run("getent passwd tsubame").code, Some(0));
}

/// The unit does not permit XDP, but starts with it in the config; its drop-in permits it.
#[test]
#[ignore = "needs root, systemd-container and cargo-deb; run by tests/run"]
fn the_drop_in_of_the_unit_permits_xdp() {
    let container = Container::start();
    copy_in(&container, &packages()[..1]);
    container.succeed("dpkg --install /packages/*.deb");
    container.succeed("ip link add xdp0 type veth peer name xdp1");
    container.succeed("ip link set xdp0 up && ip link set xdp1 up");
    container
        .succeed("sed -i 's/^    interfaces: \\[\\]/    interfaces: [xdp0]/' /etc/tsubame.yaml");
    container.succeed("grep 'interfaces: .xdp0' /etc/tsubame.yaml");
    container.succeed("systemctl restart tsubame");
    container.wait_for("journalctl --unit tsubame | grep 'no permission to load an XDP program'");
    container.succeed("tsubame e2e udp://127.0.0.1:6969");
    let drop_in = "/etc/systemd/system/tsubame.service.d/xdp.conf";
    container.succeed(&format!(
        "install -D -m 644 /usr/share/doc/tsubame/examples/tsubame-xdp.conf {drop_in}"
    ));
    container.succeed("systemctl daemon-reload && systemctl restart tsubame");
    container
        .wait_for("journalctl --unit tsubame | grep 'xdp0 .* answers connects in native mode'");
    // Where the machine's limit on locked memory is lower than that of the unit, the message names it.
    container.wait_for(
        "journalctl --unit tsubame | grep -E 'AF_XDP sockets in copy mode|the kernel refuses 8 MiB of memory'",
    );
    // The new process of an upgrade gets the capabilities, too.
    container.succeed("tsubame upgrade && tsubame upgrade");
    container.wait_for(
        "test $(journalctl --unit tsubame | grep --count 'xdp0 .* answers connects in native mode') = 3",
    );
    container.succeed("journalctl --unit tsubame | grep 'left to the new process'");
    container.succeed("ip link show dev xdp0 | grep prog/xdp");
    container.succeed("tsubame e2e udp://127.0.0.1:6969 && systemctl is-active tsubame");
    container.succeed("systemctl stop tsubame");
    assert_ne!(container.run("ip link show dev xdp0 | grep prog/xdp").code, Some(0));
}

/// A config that is being written does not keep the tracker down, and the sockets of systemd keep what arrives
/// meanwhile.
#[test]
#[ignore = "needs root, systemd-container and cargo-deb; run by tests/run"]
fn the_service_recovers_from_a_torn_config_and_keeps_its_sockets() {
    let container = Container::start();
    copy_in(&container, &packages()[..1]);
    container.succeed("dpkg --install /packages/*.deb");
    container.succeed("cp /etc/tsubame.yaml /root/whole.yaml");
    container.succeed("printf 'udp: {listen: [' >/etc/tsubame.yaml");
    assert_ne!(container.run("systemctl restart tsubame").code, Some(0));
    container.wait_for("journalctl --unit tsubame | grep 'tsubame.yaml.*is not YAML'");
    // Two shards, as in the example of the sockets.
    container.succeed("sed 's/^cpus: auto/cpus: \"0,0\"/' /root/whole.yaml >/etc/tsubame.yaml");
    container.wait_for("systemctl is-active tsubame");
    container.succeed("systemctl stop tsubame");
    container.succeed("cp /usr/share/doc/tsubame/examples/tsubame.socket /etc/systemd/system/");
    container.succeed("systemctl daemon-reload && systemctl start tsubame.socket");
    assert_ne!(container.run("systemctl is-active tsubame").code, Some(0));
    // The first datagram starts the service, which answers it.
    container.succeed("tsubame e2e udp://127.0.0.1:6969 http://127.0.0.1:6969/announce");
    container.succeed("systemctl is-active tsubame");
    // While the config has an error, requests start the service again and again, and the sockets stay.
    container.succeed("cp /etc/tsubame.yaml /root/two-shards.yaml");
    container.succeed("printf 'udp: {listen: [' >/etc/tsubame.yaml");
    assert_ne!(container.run("systemctl restart tsubame").code, Some(0));
    for _ in 0..30 {
        container.succeed("echo x >/dev/udp/127.0.0.1/6969");
    }
    container.wait_for("test $(journalctl --unit tsubame | grep --count 'is not YAML') -gt 3");
    container.succeed("systemctl is-active tsubame.socket");
    container.succeed("cp /root/two-shards.yaml /etc/tsubame.yaml");
    container.wait_for("systemctl is-active tsubame && tsubame e2e udp://127.0.0.1:6969");
    // A request that arrives while no tracker runs is answered by the next one.
    container.succeed("systemctl stop tsubame.service");
    container.succeed("tsubame e2e udp://127.0.0.1:6969");
}
