//! The directory of the state that outlives the process: the snapshot, and the key of connection ids.

use crate::hex;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Name of the snapshot.
pub(super) const SNAPSHOT_FILE: &str = "swarms.tsubame";

/// Name of a snapshot that is being written.
const TEMPORARY_FILE: &str = "swarms.tsubame.new";

/// Name of the file with the key of connection ids.
const IDENTITY_FILE: &str = "identity";

/// Maximum bytes that are read of the file with the key.
const KEY_FILE_LEN_MAX: u64 = 64;

/// Permissions of all files: for the user of the tracker only.
const MODE: u32 = 0o600;

/// Reason why the directory cannot be used.
#[derive(Debug, Error)]
pub(super) enum DirectoryError {
    /// It cannot be opened.
    #[error("{} cannot be opened: {}; create it, with access for the user of the tracker", .0.display(), .1)]
    Open(PathBuf, #[source] io::Error),
    /// Another process has locked it.
    #[error("{} is used by another process; give each tracker a directory of its own", .0.display())]
    InUse(PathBuf),
}

/// A directory that this process has locked.
#[derive(Debug)]
pub(super) struct StateDirectory {
    path: PathBuf,
    /// Keeps the lock.
    _lock: File,
}

impl StateDirectory {
    /// Opens and locks a directory, and removes what was left of an incomplete snapshot.
    pub(super) fn open(path: &Path) -> Result<Self, DirectoryError> {
        let lock = File::open(path).map_err(|error| DirectoryError::Open(path.into(), error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DirectoryError::InUse(path.into())),
            Err(error) => return Err(DirectoryError::Open(path.into(), error.into())),
        }
        let directory = Self { path: path.to_owned(), _lock: lock };
        let _ = fs::remove_file(directory.file(TEMPORARY_FILE));
        Ok(directory)
    }

    /// Returns the path of a file in the directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Creates the file of a new snapshot.
    pub(super) fn create_snapshot(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(MODE);
        // The directory belongs to the tracker; a symbolic link in it may not lead the write elsewhere.
        options.custom_flags(libc::O_NOFOLLOW);
        options.open(self.file(TEMPORARY_FILE))
    }

    /// Replaces the snapshot by the new one, which is on the disk when this returns.
    pub(super) fn publish_snapshot(&self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        fs::rename(self.file(TEMPORARY_FILE), self.file(SNAPSHOT_FILE))?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes a snapshot that could not be completed.
    pub(super) fn discard_snapshot(&self) {
        let _ = fs::remove_file(self.file(TEMPORARY_FILE));
    }
}

/// Returns the key of connection ids that a directory has, or writes `new_key` to it and returns that.
///
/// # Errors
///
/// Returns a text that names the file and the cure.
pub(crate) fn connection_id_key(directory: &Path, new_key: [u8; 16]) -> Result<[u8; 16], String> {
    let path = directory.join(IDENTITY_FILE);
    match read_key(&path) {
        Ok(text) => {
            return hex::decode(text.trim()).ok_or_else(|| {
                format!(
                    "{} does not have a key of 32 hexadecimal digits; remove it, and it is written again",
                    path.display()
                )
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(format!(
                "{} cannot be read: {error}; make it readable for the user of the tracker",
                path.display()
            ));
        }
    }
    let written = write_key(directory, &path, new_key).map(|()| new_key);
    written.map_err(|error| {
        format!(
            "{} cannot be written: {error}; make the directory writable for the user of the tracker",
            path.display()
        )
    })
}

/// Writes a key to a file that appears with its whole contents or not at all.
fn write_key(directory: &Path, path: &Path, key: [u8; 16]) -> io::Result<()> {
    let temporary = directory.join(format!("{IDENTITY_FILE}.new"));
    let _ = fs::remove_file(&temporary);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).open(&temporary)?;
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(file, "{digits}")?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

/// Reads the file of a key, which must be a regular one.
fn read_key(path: &Path) -> io::Result<String> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    io::read_to_string(file.take(KEY_FILE_LEN_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_written_once_and_read_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(connection_id_key(directory.path(), [7; 16]), Ok([7; 16]));
        assert_eq!(connection_id_key(directory.path(), [8; 16]), Ok([7; 16]));
        let path = directory.path().join(IDENTITY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short").unwrap();
        let error = connection_id_key(directory.path(), [8; 16]).unwrap_err();
        assert!(error.contains("identity") && error.contains("32 hexadecimal"), "{error}");
        let missing = directory.path().join("missing");
        assert!(connection_id_key(&missing, [8; 16]).is_err());
    }

    #[test]
    fn a_directory_has_one_user_and_only_complete_snapshots() {
        let directory = tempfile::tempdir().unwrap();
        let opened = StateDirectory::open(directory.path()).unwrap();
        assert!(matches!(StateDirectory::open(directory.path()), Err(DirectoryError::InUse(_))));
        let mut file = opened.create_snapshot().unwrap();
        file.write_all(b"first").unwrap();
        opened.publish_snapshot(&file).unwrap();
        opened.create_snapshot().unwrap().write_all(b"incomplete").unwrap();
        drop(opened);
        let opened = StateDirectory::open(directory.path()).unwrap();
        assert_eq!(fs::read(opened.file(SNAPSHOT_FILE)).unwrap(), b"first");
        assert!(!opened.file(TEMPORARY_FILE).exists());
        let missing = StateDirectory::open(&directory.path().join("missing"));
        assert!(missing.unwrap_err().to_string().contains("create it"));
    }
}
