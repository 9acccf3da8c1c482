//! The file of overrides: torrents that were added to an access list or removed from it while the tracker ran.
//!
//! Each line is `+` or `-`, an info hash, a space, and the time of the change in milliseconds since 1970; earlier
//! versions wrote no time. The last line about a torrent counts.
//!
//! An override with which the lists agree, or have agreed, is marked by ` listed` at the end of its line. It is no
//! longer in force, so that a later change of the lists takes effect, and is dropped after a week. Until then it
//! supersedes earlier changes that other nodes of a cluster send.

use crate::hex::parse_info_hash;
use crate::lines;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tsubame_storage::InfoHash;

/// Maximum bytes of the file, enough for a million overrides.
const LEN_MAX: u64 = 64 << 20;

/// The end of the line of an override with which the lists agree, or have agreed.
const LISTED: &str = " listed";

/// Length of a sign and an info hash in characters.
const SIGN_AND_HASH_LEN: usize = 41;

/// How long a marked override is kept: other nodes may have been away when it was made.
const LISTED_KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// Maximum number of torrents that a warning names.
const SHOWN_MAX: usize = 5;

/// Whether a torrent is on the list, regardless of the files of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// Whether it is on the list.
    pub on: bool,
    /// Time of the change in milliseconds since 1970; zero if it is not known.
    pub changed_at_ms: u64,
}

/// A torrent that was added to the list or removed from it.
pub type ListChange = (InfoHash, Override);

impl Override {
    /// Returns the override that a change to `on` makes now, which is later than `previous` whatever the clock says.
    pub fn after(previous: Option<Self>, on: bool, now_ms: u64) -> Self {
        let earliest = previous.map_or(0, |previous| previous.changed_at_ms.saturating_add(1));
        Self { on, changed_at_ms: now_ms.max(earliest) }
    }

    /// Returns the override as one that is earlier than all others with a time if its own is after `latest_ms`: the
    /// clock that it was made by was wrong, and it must not replace later changes forever.
    pub fn bounded(self, latest_ms: u64) -> Self {
        let changed_at_ms = if self.changed_at_ms > latest_ms { 1 } else { self.changed_at_ms };
        Self { changed_at_ms, ..self }
    }

    /// Returns whether this is a later change than another one of the same torrent. Of two different changes at the
    /// same time, the removal is the later one.
    pub fn is_later_than(&self, other: &Self) -> bool {
        (self.changed_at_ms, !self.on) > (other.changed_at_ms, !other.on)
    }
}

/// The overrides of a file, and warnings about it.
#[derive(Debug, Default)]
pub struct Overrides {
    /// The last override of each torrent.
    pub torrents: BTreeMap<InfoHash, Override>,
    /// The torrents with overrides with which the lists agree, or have agreed.
    listed: BTreeSet<InfoHash>,
    /// Number of lines that are not needed: blank, superseded by a later line about the same torrent, or cut off.
    surplus: usize,
    /// Warnings to be logged.
    pub warnings: Vec<String>,
}

impl Overrides {
    /// Reads a file; a file that does not exist has no overrides.
    ///
    /// Lines that a crash of the machine cut off or filled with zeros are dropped: the tracker had not confirmed them.
    /// Any other line that is not an override is an error, as the file must be of another kind.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut overrides = Self::default();
        let bytes = match lines::read(path, LEN_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(overrides),
            Err(error) => {
                let cure = "check the path and its permissions";
                return Err(format!("cannot read {}: {error}; {cure}", path.display()));
            }
        };
        let mut torn = 0;
        let (mut lines, mut number) = (bytes.split(|byte| *byte == b'\n').peekable(), 0);
        while let Some(line) = lines.next() {
            number += 1;
            let (line, is_last) = (line.trim_ascii(), lines.peek().is_none());
            match parse(line) {
                // The time may be cut off.
                Some(_) if is_last && line.contains(&b' ') => torn += 1,
                Some((hash, change, is_listed)) => {
                    let is_repeated = overrides.torrents.insert(hash, change).is_some();
                    overrides.surplus += usize::from(is_repeated);
                    match is_listed {
                        true => overrides.listed.insert(hash),
                        false => overrides.listed.remove(&hash),
                    };
                }
                None if line.is_empty() => overrides.surplus += usize::from(number > 1),
                None if is_torn(line) => torn += 1,
                None => {
                    let shown = lines::quoted(&String::from_utf8_lossy(line));
                    return Err(format!(
                        "{}:{number}: {shown} is not an override; use a file written by Tsubame",
                        path.display()
                    ));
                }
            }
        }
        // The text after the last line end is not a line.
        overrides.surplus =
            overrides.surplus.saturating_sub(usize::from(bytes.ends_with(b"\n"))) + torn;
        if torn > 0 {
            let path = path.display();
            let text = format!("{path}: dropped {torn} lines cut off or filled with zeros");
            overrides.warnings.push(text);
        }
        Ok(overrides)
    }

    /// Marks the overrides with which the lists agree, removes marked ones that are older than a week, and adds a
    /// warning about torrents that are on the lists but removed.
    pub fn mark_listed(&mut self, path: &Path, now_ms: u64, is_listed: impl Fn(&InfoHash) -> bool) {
        let Self { torrents, listed, surplus, .. } = self;
        torrents.retain(|hash, change| {
            if is_listed(hash) == change.on {
                *surplus += usize::from(listed.insert(*hash));
            }
            let is_old = now_ms.saturating_sub(change.changed_at_ms) >= LISTED_KEPT_MS;
            let is_dropped = is_old && listed.remove(hash);
            *surplus += usize::from(is_dropped);
            !is_dropped
        });
        let is_removed = |(hash, change): &(&InfoHash, &Override)| !change.on && is_listed(hash);
        let removed: Vec<_> = self.in_force().filter(is_removed).map(|(hash, _)| hash).collect();
        if removed.is_empty() {
            return;
        }
        let shown: Vec<_> = removed.iter().take(SHOWN_MAX).map(|hash| hash.to_string()).collect();
        let more = if removed.len() > SHOWN_MAX { ", ..." } else { "" };
        self.warnings.push(format!(
            "{} torrents of the lists were removed by DELETE and stay removed: {}{more}; \
             add them by PUT, or remove them from {}",
            removed.len(),
            shown.join(", "),
            path.display()
        ));
    }

    /// Returns the overrides in force: those that are not marked.
    pub fn in_force(&self) -> impl Iterator<Item = (&InfoHash, &Override)> {
        self.torrents.iter().filter(|(hash, _)| !self.listed.contains(*hash))
    }

    /// Rewrites the file if it has lines that are not needed: writes a new file and renames it.
    pub fn compact(&self, path: &Path) -> io::Result<()> {
        if self.surplus == 0 {
            return Ok(());
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        let mut file = File::create(&new)?;
        let line =
            |(hash, change): (&InfoHash, &Override)| line(hash, change, self.listed.contains(hash));
        let text: String = self.torrents.iter().map(line).collect();
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_directory(path)
    }
}

/// Lock held while overrides are read and rewritten: an override that is appended in between would be lost.
static LOCK: Mutex<()> = Mutex::new(());

/// Waits until no other thread reads or writes overrides, and locks them.
pub fn lock() -> MutexGuard<'static, ()> {
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Appends overrides to the file and syncs it to disk.
pub fn append(path: &Path, changes: &[ListChange]) -> io::Result<()> {
    let _lock = lock();
    let is_new = !path.exists();
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    // If the last line was cut off, the overrides begin a new one.
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    let begin = if last == [b'\n'] { "" } else { "\n" };
    let lines: String = changes.iter().map(|(hash, change)| line(hash, change, false)).collect();
    if file.metadata()?.len() + lines.len() as u64 >= LEN_MAX {
        // A longer file could not be read again.
        return Err(io::Error::other(
            "it would be longer than 64 MiB; move its torrents to a list",
        ));
    }
    file.write_all(format!("{begin}{lines}").as_bytes())?;
    file.sync_data()?;
    if is_new { sync_directory(path) } else { Ok(()) }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Returns the line of an override.
fn line(hash: &InfoHash, change: &Override, is_listed: bool) -> String {
    let (sign, end) = (if change.on { '+' } else { '-' }, if is_listed { LISTED } else { "" });
    format!("{sign}{hash} {}{end}\n", change.changed_at_ms)
}

/// Returns the torrent of a line, its override, and whether it is marked as listed.
fn parse(line: &[u8]) -> Option<(InfoHash, Override, bool)> {
    let line = str::from_utf8(line).ok()?;
    let rest = line.strip_prefix(['+', '-'])?;
    let (rest, is_listed) = rest.strip_suffix(LISTED).map_or((rest, false), |rest| (rest, true));
    let (hash, time) = rest.split_once(' ').unwrap_or((rest, "0"));
    let change = Override { on: line.starts_with('+'), changed_at_ms: time.parse().ok()? };
    Some((parse_info_hash(hash)?, change, is_listed))
}

/// Returns whether a line is the beginning of an override, or was filled with zeros.
fn is_torn(line: &[u8]) -> bool {
    let rest = line.trim_ascii_end();
    let text: Vec<u8> = rest.iter().copied().filter(|byte| *byte != 0).collect();
    let has_zeros = text.len() < rest.len();
    let begins = match text.split_first() {
        Some((b'+' | b'-', rest)) => rest.iter().all(|it| it.is_ascii_hexdigit() || *it == b' '),
        Some(_) => false,
        None => true,
    };
    begins && (has_zeros || text.len() < SIGN_AND_HASH_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(byte: u8) -> InfoHash {
        InfoHash([byte; 20])
    }

    fn change(byte: u8, on: bool, changed_at_ms: u64) -> ListChange {
        (hash(byte), Override { on, changed_at_ms })
    }

    #[test]
    fn overrides_survive_torn_writes_and_the_file_is_compacted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("overrides");
        assert!(Overrides::read(&path).unwrap().torrents.is_empty());
        for (byte, on) in [(1, true), (2, false), (1, false), (3, true), (4, true)] {
            append(&path, &[change(byte, on, 1)]).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 5, "no blank lines");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"+0707").unwrap();
        append(&path, &[change(5, true, LISTED_KEPT_MS)]).unwrap();
        // A line of an earlier version, and one that was filled with zeros.
        file.write_all(format!("+{}\n-{} 17\0\0\n", hash(6), hash(6)).as_bytes()).unwrap();
        file.write_all(&[0; 500]).unwrap();
        let mut overrides = Overrides::read(&path).unwrap();
        assert_eq!(overrides.warnings.len(), 1, "{:?}", overrides.warnings);
        let expected = [(1, false, 1), (2, false, 1), (3, true, 1), (4, true, 1)];
        let expected = [&expected[..], &[(5, true, LISTED_KEPT_MS), (6, true, 0)]].concat();
        let expected = expected.into_iter().map(|(byte, on, at)| change(byte, on, at)).collect();
        assert_eq!(overrides.torrents, expected);
        // The lists contain 2, which was removed, and 3 and 5, which were added.
        let is_listed = |it: &InfoHash| [hash(2), hash(3), hash(5)].contains(it);
        overrides.mark_listed(&path, LISTED_KEPT_MS + 1, is_listed);
        assert!(overrides.warnings[1].contains(&hash(2).to_string()), "{:?}", overrides.warnings);
        overrides.compact(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let [two, four, five, six] = [2, 4, 5, 6].map(hash);
        // 5 is kept for a week, although it agrees with the lists.
        let kept = LISTED_KEPT_MS;
        assert_eq!(text, format!("-{two} 1\n+{four} 1\n+{five} {kept} listed\n+{six} 0\n"));
        let mut again = Overrides::read(&path).unwrap();
        assert_eq!((again.surplus, again.torrents.len(), again.warnings.len()), (0, 4, 0));
        // It is not in force after a change of the lists, but stays for its week.
        again.mark_listed(&path, LISTED_KEPT_MS + 1, |_| false);
        assert!(!again.in_force().any(|(hash, _)| *hash == five));
        assert!(again.in_force().any(|(hash, _)| *hash == four));
        assert_eq!(again.torrents[&five].changed_at_ms, kept);
        again.mark_listed(&path, 2 * LISTED_KEPT_MS, |_| false);
        assert!(!again.torrents.contains_key(&five) && again.torrents.contains_key(&four));
        // A file of another kind is refused.
        fs::write(&path, format!("{}\n", hash(1))).unwrap();
        let mistake = Overrides::read(&path).unwrap_err();
        assert!(
            mistake.contains("overrides:1:") && mistake.contains("is not an override"),
            "{mistake}"
        );
    }

    #[test]
    fn the_later_change_counts() {
        let put = Override::after(None, true, 50);
        assert_eq!(put.changed_at_ms, 50);
        // The clock of this node is behind that of the node with the previous change.
        let deleted = Override::after(Some(put), false, 20);
        assert!(deleted.is_later_than(&put) && !put.is_later_than(&deleted));
        let at_the_same_time = Override { on: false, ..put };
        assert!(at_the_same_time.is_later_than(&put) && !put.is_later_than(&at_the_same_time));
        assert!(!put.is_later_than(&put));
        // The clock was wrong by more than the caller permits.
        assert!(deleted.is_later_than(&Override { changed_at_ms: u64::MAX, ..put }.bounded(1_000)));
        assert_eq!(put.bounded(50), put);
    }
}
