//! A Debian system with systemd as its first process, without network, on a copy-on-write view of this machine.
//!
//! Needs root, Debian's systemd-container, and a kernel with overlayfs. Nothing that is changed in it remains.

use super::now;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Folder of the source in a container, a copy-on-write view.
pub(crate) const SOURCE: &str = "/source";

/// Time in which systemd must have started all units.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// Time in which a condition in the container must become true.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(30);

/// A running container, which is removed when it is dropped.
pub(crate) struct Container {
    directory: tempfile::TempDir,
    nspawn: Child,
    /// Process id of systemd in the container.
    leader: u32,
}

/// Exit code and output of a command.
#[derive(Debug)]
pub(crate) struct CommandResult {
    pub(crate) code: Option<i32>,
    /// Standard output, then standard error.
    pub(crate) text: String,
}

fn run_here(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(
        status.is_ok_and(|it| it.success()),
        "{program} {arguments:?} failed: root is required"
    );
}

impl Container {
    /// Starts a container and waits until its system is up.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        // The upper directory must not be on an overlay itself, as /tmp is in some containers.
        run_here("mount", &["-t", "tmpfs", "tmpfs", &directory.path().to_string_lossy()]);
        for name in ["changes", "work", "root", "source"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let options = format!("lowerdir=/,upperdir={},workdir={}", path("changes"), path("work"));
        run_here("mount", &["-t", "overlay", "overlay", "-o", &options, &path("root")]);
        let nspawn = Command::new("systemd-nspawn")
            .arg("--directory")
            .arg(directory.path().join("root"))
            // The folder of the source may be on a file system that the container replaces, such as /tmp.
            .arg(format!("--overlay={}:{}:{SOURCE}", env!("CARGO_MANIFEST_DIR"), path("source")))
            .args(["--private-network", "--register=no", "--keep-unit", "--console=pipe"])
            // For XDP.
            .arg("--capability=CAP_BPF")
            .args(["--link-journal=no", "--machine=tsubame-test", "--hostname=tsubame-test"])
            // The default filter refuses io_uring, which is what a container of operators must permit.
            .env("SYSTEMD_SECCOMP", "0")
            .arg("--uuid=74737562616d6574657374636f6e7461")
            // Without the services that are installed on this machine.
            .args(["/lib/systemd/systemd", "systemd.unit=basic.target"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut container = Self { directory, nspawn, leader: 0 };
        let deadline = now() + BOOT_TIMEOUT;
        while !container.is_up() {
            assert!(now() < deadline, "systemd has not started in the container");
            std::thread::yield_now();
        }
        // Images of containers have this file, which keeps packages from starting their services.
        container.succeed("rm --force /usr/sbin/policy-rc.d");
        container
    }

    /// Returns whether all units have been started; some may have failed that a container cannot have.
    fn is_up(&mut self) -> bool {
        let children = format!("/proc/{0}/task/{0}/children", self.nspawn.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let Some(leader) = children.split_whitespace().next().and_then(|it| it.parse().ok()) else {
            return false;
        };
        self.leader = leader;
        let state = self.run("systemctl is-system-running --wait").text;
        ["running", "degraded"].contains(&state.trim())
    }

    /// Returns the path on this machine of a path in the container.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path.trim_start_matches('/'))
    }

    /// Runs a command of the shell as root in the container.
    pub(crate) fn run(&self, command: &str) -> CommandResult {
        let output = Command::new("nsenter")
            .args(["--target", &self.leader.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"])
            .args(["bash", "-c", command])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        CommandResult {
            code: output.status.code(),
            text: String::from_utf8_lossy(&text).into_owned(),
        }
    }

    /// Runs a command that must succeed, and returns its output.
    pub(crate) fn succeed(&self, command: &str) -> String {
        let CommandResult { code, text } = self.run(command);
        assert_eq!(code, Some(0), "{command}:\n{text}");
        text
    }

    /// Waits until a command succeeds.
    pub(crate) fn wait_for(&self, command: &str) {
        let deadline = now() + CONDITION_TIMEOUT;
        while self.run(command).code != Some(0) {
            let journal = || self.run("journalctl --no-pager --lines=30").text;
            assert!(now() < deadline, "{command} did not succeed:\n{}", journal());
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.leader != 0 {
            // The kernel ends all processes of the container with its first one.
            let _ = Command::new("kill").args(["-KILL", &self.leader.to_string()]).status();
        }
        let _ = self.nspawn.wait();
        for path in [self.directory.path().join("root"), self.directory.path().to_owned()] {
            let _ = Command::new("umount").arg("--lazy").arg(path).status();
        }
    }
}
