//! Stamps of the files of hooks, which tell whether a file has changed.

use crate::config::Config;
use crate::policy::HookConfig;
use crate::policy::access_list::is_torrent_file;
use crate::slow_reads::SlowReads;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

/// Modification time, length and inode number of a file, or `None` if they cannot be read, for example because the
/// file does not exist. For a directory, a digest of its torrents replaces the length.
pub(crate) type FileStamp = Option<(SystemTime, u64, u64)>;

/// Returns the stamps of all files of the hooks, except the overrides file, which the tracker itself writes. They must
/// be taken before the files are read.
///
/// With `slow_reads`, a file whose metadata takes too long to read has no stamp.
pub(crate) fn file_stamps(config: &Config, slow_reads: Option<&SlowReads>) -> Vec<FileStamp> {
    let files = config.hooks.iter().flat_map(HookConfig::files);
    let stamp = |path: &Path| match slow_reads {
        None => stamp(path),
        Some(slow_reads) => {
            let (name, path) = (format!("metadata of {}", path.display()), path.to_owned());
            slow_reads.run(&name, move || stamp(&path)).flatten()
        }
    };
    files.map(stamp).collect()
}

fn stamp(path: &Path) -> FileStamp {
    let data = fs::metadata(path).ok()?;
    let length = if data.is_dir() { directory_digest(path)? } else { data.len() };
    Some((data.modified().ok()?, length, data.ino()))
}

/// Returns a digest of the names and metadata of the torrents in a directory. The metadata of the directory itself does
/// not change when a file in it is written.
fn directory_digest(directory: &Path) -> Option<u64> {
    let mut sum = 0_u64;
    for file in fs::read_dir(directory).ok()?.map_while(Result::ok) {
        // A file that has been removed meanwhile is omitted.
        let path = file.path();
        let Some(data) = is_torrent_file(&path).then(|| fs::metadata(&path).ok()).flatten() else {
            continue;
        };
        let mut hasher = DefaultHasher::new();
        (file.file_name(), data.modified().ok(), data.len(), data.ino()).hash(&mut hasher);
        // The sum does not depend on the order of the files.
        sum = sum.wrapping_add(hasher.finish());
    }
    Some(sum)
}
