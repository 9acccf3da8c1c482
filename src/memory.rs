//! How much memory there is.

use std::path::{Path, PathBuf};

/// What `storage.memory: auto` takes: the rest is for sockets' buffers, the page cache and everybody else
const SHARE_PERCENT: usize = 70;

/// What is assumed where the kernel does not say
const UNKNOWN_BYTES: usize = 1 << 30;

/// Bytes that all swarm tables may hold together
pub fn ceiling(configured: Option<usize>) -> usize {
    configured.unwrap_or_else(|| {
        let ram = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_ram(&text));
        let cgroup = std::fs::read_to_string("/proc/self/cgroup")
            .ok()
            .and_then(|text| cgroup_limit(&text, Path::new("/sys/fs/cgroup")));
        let limits = [ram, cgroup].into_iter().flatten();
        limits.min().unwrap_or(UNKNOWN_BYTES) / 100 * SHARE_PERCENT
    })
}

/// Bytes this process holds in RAM, as the kernel counts them
pub fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kibibytes_of(&status, "VmRSS:")
}

fn total_ram(meminfo: &str) -> Option<usize> {
    kibibytes_of(meminfo, "MemTotal:")
}

fn kibibytes_of(text: &str, key: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The tightest limit of this process's cgroup (version 2) and all above it
fn cgroup_limit(own: &str, root: &Path) -> Option<usize> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group: PathBuf = root.join(path);
    let groups = group.ancestors().take_while(|group| group.starts_with(root));
    let limit = |group: &Path| {
        std::fs::read_to_string(group.join("memory.max")).ok()?.trim().parse::<usize>().ok()
    };
    groups.filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("system.slice/tsubame.service");
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join("memory.max"), "max\n").unwrap();
        let own = "0::/system.slice/tsubame.service\n";
        assert_eq!(cgroup_limit(own, root.path()), None);
        std::fs::write(root.path().join("system.slice/memory.max"), "1000000\n").unwrap();
        assert_eq!(cgroup_limit(own, root.path()), Some(1_000_000));
        std::fs::write(group.join("memory.max"), "500\n").unwrap();
        assert_eq!(cgroup_limit(own, root.path()), Some(500));
        assert_eq!(cgroup_limit("1:cpu:/x\n", root.path()), None);
    }

    #[test]
    fn what_is_configured_is_taken() {
        assert_eq!(ceiling(Some(5)), 5);
        assert_eq!(total_ram("MemTotal:       24684096 kB\nMemFree: 1 kB"), Some(24_684_096 << 10));
        assert!(ceiling(None) > 0);
        assert!(resident_bytes().unwrap() > 0);
    }
}
