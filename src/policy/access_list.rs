//! `access_list`: the torrents that are permitted, or those that are forbidden.
//!
//! A helper thread reads a list once for all shards. The new list replaces the previous one only if all of its sources
//! could be read. Torrents that are added or removed while the tracker runs are overrides: they are kept in a map and
//! in a file of their own, so that they survive a restart.

use super::hash_list::HashList;
use super::overrides::{self, ListChange, Override, Overrides};
use super::torrent;
use crate::hex::parse_info_hash;
use crate::lines::{self, Mistakes};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tsubame_storage::InfoHash;

/// Maximum bytes of a `.torrent` file.
const TORRENT_LEN_MAX: u64 = 32 << 20;

/// Maximum number of overrides that each request looks up; if there are more, the list is rebuilt with them.
const OVERRIDES_MAX: usize = 4096;

/// Sources of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListSources {
    /// Files with an info hash on each line.
    pub files: Vec<PathBuf>,
    /// Info hashes listed in the config.
    pub info_hashes: Vec<InfoHash>,
    /// Directories of `.torrent` files.
    pub torrent_directories: Vec<PathBuf>,
    /// File of the overrides.
    pub overrides: Option<PathBuf>,
}

/// Whether the entries of a list are permitted or forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListMode {
    /// Only the entries of the list are permitted.
    Allow,
    /// All but the entries of the list are permitted.
    Deny,
}

/// A list of torrents, with the overrides that were made while the tracker ran.
#[derive(Clone, Debug)]
pub struct AccessList {
    base: Arc<HashList>,
    /// Whether a torrent is on the list, regardless of the base.
    overrides: Arc<HashMap<InfoHash, bool>>,
    /// The last change of each torrent while the tracker ran, also if the base agrees with it. All lists that were made
    /// from one share them.
    changes: Arc<Mutex<HashMap<InfoHash, Override>>>,
}

/// A list that was read, and warnings about its files.
#[derive(Debug)]
pub struct LoadedList {
    /// The list.
    pub list: AccessList,
    /// Warnings to be logged.
    pub warnings: Vec<String>,
}

impl AccessList {
    /// Reads a list. If the file of overrides has lines that are not needed, it is rewritten without them, unless
    /// `check` is set. `now_ms` is the time in milliseconds since 1970.
    pub fn load(
        sources: &ListSources,
        seed: u64,
        now_ms: u64,
        check: bool,
    ) -> Result<LoadedList, Mistakes> {
        let (mut hashes, mut mistakes) = (sources.info_hashes.clone(), Mistakes::default());
        for path in &sources.files {
            lines::read_entries(path, &mut mistakes, |entry| parse_entry(entry, &mut hashes));
        }
        for directory in &sources.torrent_directories {
            read_torrents(directory, &mut hashes, &mut mistakes);
        }
        let _lock = overrides::lock();
        let read = sources.overrides.as_deref().map_or(Ok(Overrides::default()), Overrides::read);
        let mut overrides = read.unwrap_or_else(|mistake| {
            mistakes.0.push(mistake);
            Overrides::default()
        });
        mistakes.into_result(())?;
        let base = HashList::new(hashes, seed);
        if let Some(path) = &sources.overrides {
            overrides.mark_listed(path, now_ms, |hash| base.contains(hash));
            if let Some(Err(error)) = (!check).then(|| overrides.compact(path)) {
                let text =
                    format!("cannot rewrite {}: {error}; check its permissions", path.display());
                overrides.warnings.push(text);
            }
        }
        let in_force = overrides.in_force().map(|(hash, change)| (*hash, change.on)).collect();
        let Overrides { torrents, warnings, .. } = overrides;
        let list = Self {
            base: Arc::new(base),
            overrides: Arc::new(in_force),
            changes: Arc::new(Mutex::new(torrents.into_iter().collect())),
        };
        Ok(LoadedList { list: list.compacted_if_large(seed), warnings })
    }

    /// Merges the overrides into the base if there are too many.
    fn compacted_if_large(self, seed: u64) -> Self {
        if self.overrides.len() > OVERRIDES_MAX { self.compacted(seed) } else { self }
    }

    /// Returns the list with its overrides merged into the base.
    fn compacted(&self, seed: u64) -> Self {
        let kept = self.base.iter().filter(|hash| !self.overrides.contains_key(*hash));
        let added = self.overrides.iter().filter(|(_, on)| **on).map(|(hash, _)| hash);
        let hashes = kept.chain(added).copied().collect();
        let base = Arc::new(HashList::new(hashes, seed));
        Self { base, overrides: Arc::default(), changes: self.changes.clone() }
    }

    /// Returns the last change of a torrent while the tracker ran.
    pub fn last_change(&self, info_hash: &InfoHash) -> Option<Override> {
        self.all_changes().get(info_hash).copied()
    }

    /// Returns the last change of each torrent that was added or removed while the tracker ran, without those that the
    /// files have replaced since.
    pub fn changes(&self) -> Vec<ListChange> {
        let changes = self.all_changes();
        let changes = changes.iter().map(|(info_hash, change)| (*info_hash, *change));
        changes.filter(|(info_hash, change)| self.contains(info_hash) == change.on).collect()
    }

    fn all_changes(&self) -> MutexGuard<'_, HashMap<InfoHash, Override>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the list with some torrents added or removed; `seed` determines the hash keys if the list is rebuilt.
    pub fn with(&self, changes: &[ListChange], seed: u64) -> Self {
        let mut overrides = HashMap::clone(&self.overrides);
        overrides.extend(changes.iter().map(|(info_hash, change)| (*info_hash, change.on)));
        self.all_changes().extend(changes.iter().copied());
        let (base, changes) = (self.base.clone(), self.changes.clone());
        Self { base, overrides: Arc::new(overrides), changes }.compacted_if_large(seed)
    }

    /// Returns all torrents of the list, in unspecified order.
    pub fn iter(&self) -> impl Iterator<Item = &InfoHash> {
        let is_kept = |hash: &&InfoHash| self.overrides.get(*hash).copied().unwrap_or(true);
        let is_added = |hash: &InfoHash, on: bool| on && !self.base.contains(hash);
        let added = self.overrides.iter().filter(move |(hash, on)| is_added(hash, **on));
        self.base.iter().filter(is_kept).chain(added.map(|(hash, _)| hash))
    }

    /// Returns the identity of the list, by its pointers. It is equal for all clones of a list, and differs between
    /// lists that exist at the same time.
    pub fn identity(&self) -> [*const (); 2] {
        [Arc::as_ptr(&self.base).cast(), Arc::as_ptr(&self.overrides).cast()]
    }

    /// Returns whether a torrent is on the list.
    pub fn contains(&self, hash: &InfoHash) -> bool {
        if self.overrides.is_empty() {
            return self.base.contains(hash);
        }
        self.overrides.get(hash).copied().unwrap_or_else(|| self.base.contains(hash))
    }

    /// Returns the number of torrents on the list.
    pub fn len(&self) -> usize {
        let changed = |on| self.overrides.iter().filter(move |change| *change.1 == on);
        let added = changed(true).filter(|(hash, _)| !self.base.contains(hash)).count();
        let removed = changed(false).filter(|(hash, _)| self.base.contains(hash)).count();
        self.base.len() + added - removed
    }

    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Parses an entry of a list and adds it to `hashes`.
pub fn parse_entry(entry: &str, hashes: &mut Vec<InfoHash>) -> Result<(), String> {
    let hash = parse_info_hash(entry).ok_or_else(|| {
        format!(
            "{} is not an info hash; write 40 or 64 hexadecimal digits per line, comments after #",
            lines::quoted(entry)
        )
    })?;
    hashes.push(hash);
    Ok(())
}

/// Returns whether a file has the extension of torrent files; other files of a directory are ignored.
pub fn is_torrent_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "torrent")
}

/// Adds the info hashes of all `.torrent` files of a directory to `hashes`.
fn read_torrents(directory: &Path, hashes: &mut Vec<InfoHash>, mistakes: &mut Mistakes) {
    let files = match fs::read_dir(directory) {
        Ok(files) => files,
        Err(error) => return mistakes.unreadable(directory, &error),
    };
    for file in files {
        let path = match file {
            Ok(file) => file.path(),
            Err(error) => return mistakes.unreadable(directory, &error),
        };
        if !is_torrent_file(&path) {
            continue;
        }
        let bytes = match lines::read(&path, TORRENT_LEN_MAX) {
            Ok(bytes) => bytes,
            // It was deleted after the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                mistakes.unreadable(&path, &error);
                continue;
            }
        };
        match torrent::info_hashes(&bytes) {
            Ok(found) => hashes.extend(found),
            Err(why) => mistakes.0.push(format!(
                "{}: is not a torrent file: {why}; remove it or change its extension",
                path.display()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::overrides::append;

    fn hash(byte: u8) -> InfoHash {
        InfoHash([byte; 20])
    }

    fn change(byte: u8, on: bool) -> ListChange {
        (hash(byte), Override { on, changed_at_ms: 1 })
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(20)
    }

    #[test]
    fn lists_are_read_from_files_directories_and_overrides() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("list");
        let v2 = "AB".repeat(32);
        let text =
            format!("\u{feff}# comment\r\n{}\r\n\n  {}  # two\n{v2}\n{}", hex(1), hex(2), hex(2));
        fs::write(&file, text).unwrap();
        let torrents = directory.path().join("torrents");
        fs::create_dir(&torrents).unwrap();
        fs::write(torrents.join("a.torrent"), b"d4:infod6:lengthi1eee").unwrap();
        fs::write(torrents.join("notes.txt"), b"none").unwrap();
        let overrides = directory.path().join("overrides");
        let mut sources = ListSources {
            files: vec![file.clone()],
            info_hashes: vec![hash(9)],
            torrent_directories: vec![torrents.clone()],
            overrides: Some(overrides.clone()),
        };
        let load = |sources: &ListSources| AccessList::load(sources, 1, 5, false);
        let list = load(&sources).unwrap().list;
        assert_eq!(list.len(), 5);
        assert!([1, 2, 0xab, 9].iter().all(|byte| list.contains(&hash(*byte))));
        assert!(!list.contains(&hash(3)));
        for (byte, on) in [(3, true), (2, false), (4, true), (4, false)] {
            append(&overrides, &[change(byte, on)]).unwrap();
        }
        let LoadedList { list, warnings } = load(&sources).unwrap();
        assert_eq!((list.len(), warnings.len()), (5, 1), "one added and one removed: {warnings:?}");
        assert_eq!([1, 2, 3, 4].map(|byte| list.contains(&hash(byte))), [true, false, true, false]);
        for list in
            [list.with(&[change(1, false)], 5).with(&[change(4, true)], 5), list.compacted(5)]
        {
            assert!(list.contains(&hash(3)) && !list.contains(&hash(2)));
            // 4 agrees with the files.
            assert!([2, 3, 4].iter().all(|byte| list.last_change(&hash(*byte)).is_some()));
            assert_eq!(list.iter().count(), list.len());
            let fewer = list.with(&[change(0xab, false)], 5);
            assert_eq!((fewer.len(), fewer.compacted(6).len()), (4, 4));
        }
        fs::write(torrents.join("b.torrent"), b"d4:spami1ee").unwrap();
        fs::write(torrents.join("c.torrent"), b"").unwrap();
        let error = load(&sources).unwrap_err().to_string();
        assert!(
            error.contains("b.torrent: is not a torrent file") && error.contains("c.torrent"),
            "{error}"
        );
        sources.torrent_directories.clear();
        for (bad, words) in [
            ("zz", "list:2: \"zz\" is not an info hash"),
            (&hex(1)[1..], "is not an info hash"),
            (&"x".repeat(10_000), "is not an info hash"),
        ] {
            fs::write(&file, format!("{}\n{bad}\n", hex(1))).unwrap();
            let error = load(&sources).unwrap_err().to_string();
            assert!(error.contains(words) && error.len() < 700, "{error}");
        }
        sources.files = vec![directory.path().join("absent")];
        let error = load(&sources).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("absent"), "{error}");
    }
}
