//! `access_list`: which torrents are served.
//!
//! A list is read once for all shards, by a helper thread, and swapped in whole or not at all. What is added or removed
//! while the tracker runs lies beside it, and in a file of its own, so that it outlasts a restart.

use super::hash_list::HashList;
use super::torrent;
use crate::hex;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tsubame_storage::InfoHash;

/// The largest `.torrent` file that is read
const TORRENT_LEN_MAX: u64 = 32 << 20;

/// Single changes that are looked up beside a list; with more it is built anew
const CHANGES_MAX: usize = 4096;

/// Characters of a change: a sign and an info hash
const CHANGE_LEN: usize = 41;

/// Where a list comes from
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Files with an info hash a line
    pub files: Vec<PathBuf>,
    /// Info hashes of the config itself
    pub info_hashes: Vec<InfoHash>,
    /// Directories of `.torrent` files
    pub torrents: Vec<PathBuf>,
    /// Where single changes are kept
    pub changes: Option<PathBuf>,
}

/// Whether those on the list are served, or all others
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Those on the list alone
    Allow,
    /// All but those
    Deny,
}

/// Why there is no list
#[derive(Debug, Error)]
pub enum ListError {
    /// A file cannot be read
    #[error("cannot read {0}: {1}; give a file that this user may read")]
    Unreadable(PathBuf, #[source] io::Error),
    /// A line that is no info hash
    #[error(
        "{0}:{1}: {2:?} is no info hash; write 40 or 64 hexadecimal digits a line, comments behind #"
    )]
    BadLine(PathBuf, usize, String),
    /// A file that is no torrent
    #[error("{0}: is no torrent: {1}; take it out of the directory, or give it another ending")]
    BadTorrent(PathBuf, &'static str),
}

/// A list with the changes made to it while the tracker runs
#[derive(Clone, Debug)]
pub struct AccessList {
    base: Arc<HashList>,
    /// Whether a hash is on the list, whatever the base says
    changes: Arc<HashMap<InfoHash, bool>>,
}

impl AccessList {
    /// Reads a list
    pub fn load(sources: &Sources, seed: u64) -> Result<Self, ListError> {
        let mut hashes = sources.info_hashes.clone();
        for path in &sources.files {
            read_hashes(path, open(path)?, &mut hashes)?;
        }
        for directory in &sources.torrents {
            read_torrents(directory, &mut hashes)?;
        }
        let changes = sources.changes.as_deref().map_or(Ok(BTreeMap::new()), read_changes)?;
        let changes = changes.into_iter().collect();
        let list = Self { base: Arc::new(HashList::new(hashes, seed)), changes: Arc::new(changes) };
        Ok(if list.changes.len() > CHANGES_MAX { list.compacted(seed) } else { list })
    }

    /// One list without changes beside it
    fn compacted(&self, seed: u64) -> Self {
        let kept = self.base.iter().filter(|hash| !self.changes.contains_key(*hash));
        let added = self.changes.iter().filter(|(_, on)| **on).map(|(hash, _)| hash);
        let hashes = kept.chain(added).copied().collect();
        Self { base: Arc::new(HashList::new(hashes, seed)), changes: Arc::default() }
    }

    /// The same list with one hash put on or taken off; `seed` draws the keys if it is built anew
    pub fn with(&self, hash: InfoHash, on: bool, seed: u64) -> Self {
        let mut changes = HashMap::clone(&self.changes);
        changes.insert(hash, on);
        let list = Self { base: self.base.clone(), changes: Arc::new(changes) };
        if list.changes.len() > CHANGES_MAX { list.compacted(seed) } else { list }
    }

    /// The same for all clones of a list, and for none of another while both are there
    pub fn identity(&self) -> [*const (); 2] {
        [Arc::as_ptr(&self.base).cast(), Arc::as_ptr(&self.changes).cast()]
    }

    /// Whether a hash is on the list
    pub fn contains(&self, hash: &InfoHash) -> bool {
        if self.changes.is_empty() {
            return self.base.contains(hash);
        }
        self.changes.get(hash).copied().unwrap_or_else(|| self.base.contains(hash))
    }

    /// How many are on it
    pub fn len(&self) -> usize {
        let changed = |on| self.changes.iter().filter(move |change| *change.1 == on);
        let added = changed(true).filter(|(hash, _)| !self.base.contains(hash)).count();
        let removed = changed(false).filter(|(hash, _)| self.base.contains(hash)).count();
        self.base.len() + added - removed
    }

    /// Whether nothing is on it
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads an info hash: of version 1, or of version 2, of which the first 20 bytes go over the wire (BEP 52)
pub fn parse_hash(text: &str) -> Option<InfoHash> {
    let v2 = || hex::decode::<32>(text)?.first_chunk().copied();
    hex::decode(text).or_else(v2).map(InfoHash)
}

fn open(path: &Path) -> Result<BufReader<fs::File>, ListError> {
    let file = fs::File::open(path);
    let file = file.map_err(|error| ListError::Unreadable(path.to_owned(), error))?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

/// Reads info hashes, one a line; `path` is what mistakes name
pub fn read_hashes(
    path: &Path,
    file: impl BufRead,
    hashes: &mut Vec<InfoHash>,
) -> Result<(), ListError> {
    let mut take = |line: &str| match line.split_once('#').map_or(line, |(it, _)| it) {
        blank if blank.trim().is_empty() => Some(()),
        text => parse_hash(text.trim()).map(|hash| hashes.push(hash)),
    };
    read_lines(path, file, &mut take)
}

/// Reads a file line by line; a line that is not taken is an error
fn read_lines(
    path: &Path,
    mut file: impl BufRead,
    take: &mut dyn FnMut(&str) -> Option<()>,
) -> Result<(), ListError> {
    let unreadable = |error| ListError::Unreadable(path.to_owned(), error);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        // Somebody may have given a file of another kind, which need not have lines.
        let taken = (&mut file).take(4096).read_until(b'\n', &mut line).map_err(unreadable)?;
        if taken == 0 {
            break;
        }
        // What editors of another system put first.
        let bom = if number == 1 { "\u{feff}" } else { "" };
        let text = str::from_utf8(&line).ok().map(|it| it.strip_prefix(bom).unwrap_or(it));
        if text.and_then(|line| take(line.trim_end())).is_none() {
            let shown: String =
                String::from_utf8_lossy(&line).trim_end().chars().take(80).collect();
            return Err(ListError::BadLine(path.to_owned(), number, shown));
        }
    }
    Ok(())
}

/// Whether a file of a directory is read
pub fn is_torrent(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "torrent")
}

/// The info hashes of all torrents of a directory
fn read_torrents(directory: &Path, hashes: &mut Vec<InfoHash>) -> Result<(), ListError> {
    let unreadable = |error| ListError::Unreadable(directory.to_owned(), error);
    for file in fs::read_dir(directory).map_err(unreadable)? {
        let path = file.map_err(unreadable)?.path();
        if !is_torrent(&path) {
            continue;
        }
        let mut bytes = Vec::new();
        let read = fs::File::open(&path)
            .and_then(|file| file.take(TORRENT_LEN_MAX + 1).read_to_end(&mut bytes));
        match read {
            Ok(len) if len as u64 <= TORRENT_LEN_MAX => {}
            Ok(_) => return Err(ListError::BadTorrent(path, "it is longer than 32 MiB")),
            // It has been taken away since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ListError::Unreadable(path, error)),
        }
        let found = torrent::info_hashes(&bytes);
        hashes.extend(found.map_err(|why| ListError::BadTorrent(path, why))?);
    }
    Ok(())
}

/// Reads single changes: a line each, of which the last about a hash counts
fn read_changes(path: &Path) -> Result<BTreeMap<InfoHash, bool>, ListError> {
    let mut changes = BTreeMap::new();
    let mut take = |line: &str| {
        let on = line.starts_with('+');
        match line.strip_prefix(['+', '-']).map(parse_hash) {
            Some(Some(hash)) => _ = changes.insert(hash, on),
            // A line that was cut off when the disk was full or the machine went down: it was not answered as done.
            Some(None) if line.len() < CHANGE_LEN => {}
            None if line.is_empty() => {}
            _ => return None,
        }
        Some(())
    };
    match open(path) {
        Err(ListError::Unreadable(_, error)) if error.kind() == io::ErrorKind::NotFound => {}
        file => read_lines(path, file?, &mut take)?,
    }
    Ok(changes)
}

/// Writes a single change behind those that were made before
pub fn append_change(path: &Path, hash: &InfoHash, on: bool) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    // On a line of its own, whatever became of the last.
    file.write_all(format!("\n{}{hash}\n", if on { '+' } else { '-' }).as_bytes())?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(byte: u8) -> InfoHash {
        InfoHash([byte; 20])
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(20)
    }

    #[test]
    fn lists_are_read_as_operators_write_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("list");
        let v2 = "AB".repeat(32);
        let text =
            format!("\u{feff}# of ours\r\n{}\r\n\n  {}  # two\n{v2}\n{}", hex(1), hex(2), hex(2));
        fs::write(&file, text).unwrap();
        let torrents = directory.path().join("torrents");
        fs::create_dir(&torrents).unwrap();
        fs::write(torrents.join("a.torrent"), b"d4:infod6:lengthi1eee").unwrap();
        fs::write(torrents.join("notes.txt"), b"none").unwrap();
        let changes = directory.path().join("changes");
        let mut sources = Sources {
            files: vec![file.clone()],
            info_hashes: vec![hash(9)],
            torrents: vec![torrents.clone()],
            changes: Some(changes.clone()),
        };
        let list = AccessList::load(&sources, 1).unwrap();
        assert_eq!(list.len(), 5);
        assert!([1, 2, 0xab, 9].iter().all(|byte| list.contains(&hash(*byte))));
        assert!(!list.contains(&hash(3)));
        append_change(&changes, &hash(3), true).unwrap();
        append_change(&changes, &hash(2), false).unwrap();
        append_change(&changes, &hash(4), true).unwrap();
        append_change(&changes, &hash(4), false).unwrap();
        let mut torn = fs::OpenOptions::new().append(true).open(&changes).unwrap();
        io::Write::write_all(&mut torn, b"+0707").unwrap();
        append_change(&changes, &hash(4), false).unwrap();
        let list = AccessList::load(&sources, 1).unwrap();
        assert_eq!(list.len(), 5, "one more and one less");
        assert_eq!([1, 2, 3, 4].map(|byte| list.contains(&hash(byte))), [true, false, true, false]);
        for list in [list.with(hash(1), false, 5).with(hash(4), true, 5), list.compacted(5)] {
            assert!(list.contains(&hash(3)) && !list.contains(&hash(2)));
            let fewer = list.with(hash(0xab), false, 5);
            assert_eq!((fewer.len(), fewer.compacted(6).len()), (4, 4));
        }
        fs::write(torrents.join("b.torrent"), b"d4:spami1ee").unwrap();
        let error = AccessList::load(&sources, 1).unwrap_err().to_string();
        assert!(error.contains("b.torrent: is no torrent"), "{error}");
        sources.torrents.clear();
        for (bad, words) in [
            ("zz", "list:2: \"zz\" is no info hash"),
            (&hex(1)[1..], "is no info hash"),
            (&"x".repeat(10_000), "is no info hash"),
        ] {
            fs::write(&file, format!("{}\n{bad}\n", hex(1))).unwrap();
            let error = AccessList::load(&sources, 1).unwrap_err().to_string();
            assert!(error.contains(words) && error.len() < 400, "{error}");
        }
        sources.files = vec![directory.path().join("absent")];
        let error = AccessList::load(&sources, 1).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("absent"), "{error}");
    }
}
