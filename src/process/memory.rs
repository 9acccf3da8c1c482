//! Memory of the machine and of the process: RAM, control group limits, and resident memory.

use crate::text::iec;
use std::fs;
use std::path::Path;

/// Percentage of the available memory that `storage.memory: auto` permits. The rest is for socket buffers, the page
/// cache and other processes.
const SHARE_PERCENT: usize = 70;

/// Available memory that is assumed if the kernel does not report it.
const UNKNOWN_BYTES: usize = 1 << 30;

/// The memory that the tracker may use, and the origin of this limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Maximum bytes of all swarm tables and of the queues between shards.
    pub bytes: usize,
    /// Text that says what the limit was derived from, for example `70 % of RAM (24.0 GiB)`.
    pub origin: String,
}

/// Returns the configured limit, or 70 % of the available memory: RAM or the limit of the control group, whichever is
/// smaller.
pub fn limit(configured: Option<usize>) -> MemoryLimit {
    if let Some(bytes) = configured {
        return MemoryLimit { bytes, origin: "storage.memory".to_owned() };
    }
    let (limit, name) =
        available().unwrap_or((UNKNOWN_BYTES, "an unknown amount of RAM".to_owned()));
    let shown = iec(limit as u64);
    let bytes = limit / 100 * SHARE_PERCENT;
    MemoryLimit { bytes, origin: format!("{SHARE_PERCENT} % of {name} ({shown})") }
}

/// Returns the bytes of RAM or of the limit of the control group, whichever is smaller, and the name of that limit.
pub fn available() -> Option<(usize, String)> {
    let ram = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_ram(&text));
    let ram = ram.map(|bytes| (bytes, "RAM".to_owned()));
    let cgroup_list = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let cgroup = cgroup_limit(&cgroup_list, Path::new("/sys/fs/cgroup"));
    [ram, cgroup].into_iter().flatten().min_by_key(|(bytes, _)| *bytes)
}

/// Returns the bytes that are free: the memory of the machine that is available without swapping, or what is left of
/// the limit of the control group, whichever is smaller.
pub fn free() -> Option<usize> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let machine = kibibytes_of(&meminfo, "MemAvailable:");
    let cgroup_list = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let limit = cgroup_limit(&cgroup_list, root).map(|(limit, _)| limit);
    let left = limit.map(|limit| limit.saturating_sub(resident_bytes().unwrap_or(0)));
    machine.into_iter().chain(left).min()
}

/// Returns the resident memory of this process in bytes.
pub fn resident_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
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

/// Returns the smallest memory limit of the control groups of this process and their ancestors, and the file it was
/// read from. It supports versions 1 and 2.
fn cgroup_limit(cgroup_list: &str, root: &Path) -> Option<(usize, String)> {
    let groups = cgroup_list.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        match rest.split_once(":/")? {
            ("", path) => Some((root.to_owned(), path, "memory.max")),
            (controllers, path) if controllers.split(',').any(|it| it == "memory") => {
                Some((root.join("memory"), path, "memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    let limits = groups.flat_map(|(root, path, file)| limits_of(&root, path, file));
    limits.min_by_key(|(bytes, _)| *bytes)
}

/// Returns the memory limits of a control group and its ancestors, without those that are not set.
fn limits_of(root: &Path, path: &str, file: &str) -> Vec<(usize, String)> {
    let group = root.join(path);
    let files = group.ancestors().take_while(|group| group.starts_with(root));
    let limit = |group: &Path| {
        let file = group.join(file);
        let bytes: usize = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        // Version 1 represents "no limit" by the largest multiple of a page.
        (bytes < 1 << 62).then(|| (bytes, format!("the limit in {}", file.display())))
    };
    files.filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_control_group_limit_is_returned() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("system.slice/tsubame.service");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.max"), "max\n").unwrap();
        let cgroup_list = "0::/system.slice/tsubame.service\n";
        let limit =
            |cgroup_list: &str| cgroup_limit(cgroup_list, root.path()).map(|(bytes, _)| bytes);
        assert_eq!(limit(cgroup_list), None);
        fs::write(root.path().join("system.slice/memory.max"), "1000000\n").unwrap();
        assert_eq!(limit(cgroup_list), Some(1_000_000));
        fs::write(group.join("memory.max"), "500\n").unwrap();
        let (_, name) = cgroup_limit(cgroup_list, root.path()).unwrap();
        assert!(name.ends_with("tsubame.service/memory.max"), "{name}");
        assert_eq!(limit("1:cpu:/x\n"), None);
        // In version 1 each controller has its own hierarchy, and a container may not see its path in it.
        let memory = root.path().join("memory");
        fs::create_dir_all(memory.join("docker/abc")).unwrap();
        fs::write(memory.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        let cgroup_list = "9:cpu,memory:/docker/abc\n1:name=systemd:/x\n";
        assert_eq!(limit(cgroup_list), None);
        fs::write(memory.join("docker/abc/memory.limit_in_bytes"), "700000\n").unwrap();
        assert_eq!(limit(cgroup_list), Some(700_000));
        fs::write(memory.join("memory.limit_in_bytes"), "600000\n").unwrap();
        assert_eq!(limit("9:memory:/not/seen\n"), Some(600_000));
    }

    #[test]
    fn a_configured_limit_takes_precedence() {
        assert_eq!(limit(Some(5)).bytes, 5);
        assert_eq!(total_ram("MemTotal:       24684096 kB\nMemFree: 1 kB"), Some(24_684_096 << 10));
        let automatic = limit(None);
        assert!(automatic.bytes > 0 && automatic.origin.starts_with("70 % of "), "{automatic:?}");
        assert!(resident_bytes().unwrap() > 0);
    }
}
