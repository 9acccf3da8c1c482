//! Reads files with an entry on each line and comments after `#`.
//!
//! Only regular files are read: a read from a FIFO or a device could block forever.

use rustix::fs::OFlags;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Maximum bytes of a line; longer lines are split. A file that was configured by mistake may have no line ends.
const LINE_LEN_MAX: u64 = 4096;

/// Maximum number of mistakes that are reported for a file. A file of another kind has many.
const MISTAKES_MAX: usize = 10;

/// The mistakes in the files of a hook, each with its place and the cure.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl std::fmt::Display for Mistakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

impl Mistakes {
    /// Returns a value if there are no mistakes.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Adds a mistake: a file cannot be read.
    pub fn unreadable(&mut self, path: &Path, error: &std::io::Error) {
        let path = path.display();
        self.0.push(format!("cannot read {path}: {error}; check the path and its permissions"));
    }
}

/// Opens a regular file. Fails for a directory, a FIFO or a device.
pub fn open(path: &Path) -> std::io::Result<File> {
    // The kind is checked first, because opening a device can have effects, and again when the file is open: it may
    // have been replaced. With the first flag, opening a FIFO does not wait for a writer.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut kind = std::fs::metadata(path)?.file_type();
    if kind.is_file() {
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        kind = file.metadata()?.file_type();
        if kind.is_file() {
            return Ok(file);
        }
    }
    let kind = if kind.is_dir() { "a directory" } else { "not a regular file" };
    Err(std::io::Error::other(format!("it is {kind}")))
}

/// Reads a whole regular file. Fails if it has more than `len_max` bytes.
pub fn read(path: &Path, len_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(len_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len_max {
        return Err(std::io::Error::other(format!("it is longer than {len_max} bytes")));
    }
    Ok(bytes)
}

/// Passes each entry of a file to `take`, whose error says what is wrong with the entry. Errors are added to
/// `mistakes`.
pub fn read_entries(
    path: &Path,
    mistakes: &mut Mistakes,
    take: impl FnMut(&str) -> Result<(), String>,
) {
    match open(path) {
        Ok(file) => {
            read_entries_from(path, BufReader::with_capacity(1 << 20, file), mistakes, take)
        }
        Err(error) => mistakes.unreadable(path, &error),
    }
}

/// Does the same as [`read_entries`] with an open file, which mistakes name as `path`.
pub fn read_entries_from(
    path: &Path,
    mut file: impl BufRead,
    mistakes: &mut Mistakes,
    mut take: impl FnMut(&str) -> Result<(), String>,
) {
    let mut line = Vec::new();
    let mut left = MISTAKES_MAX;
    for number in 1.. {
        line.clear();
        match (&mut file).take(LINE_LEN_MAX).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return mistakes.unreadable(path, &error),
        }
        let text = String::from_utf8_lossy(&line);
        // Some editors write a byte order mark at the beginning.
        let bom = if number == 1 { "\u{feff}" } else { "" };
        let text = text.strip_prefix(bom).unwrap_or(&text);
        let entry = text.split_once('#').map_or(text, |(entry, _)| entry).trim();
        if entry.is_empty() {
            continue;
        }
        if let Err(mistake) = take(entry) {
            mistakes.0.push(format!("{}:{number}: {mistake}", path.display()));
            left -= 1;
            if left == 0 {
                mistakes
                    .0
                    .push(format!("{}: stopped after {MISTAKES_MAX} mistakes", path.display()));
                return;
            }
        }
    }
}

/// Returns the first 80 characters of a text in quotes, for messages.
pub fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_mistakes_are_limited() {
        let mut mistakes = Mistakes::default();
        let mut entries = Vec::new();
        let text = "\u{feff}one\r\n\n  two # with a comment\n#\nbad\nthree";
        read_entries_from(Path::new("f"), text.as_bytes(), &mut mistakes, |entry| {
            if entry == "bad" {
                return Err("is bad".to_owned());
            }
            entries.push(entry.to_owned());
            Ok(())
        });
        assert_eq!(entries, ["one", "two", "three"]);
        assert_eq!(mistakes.0, ["f:5: is bad"]);
        let many = "x\n".repeat(1_000);
        read_entries_from(Path::new("g"), many.as_bytes(), &mut mistakes, |_| Err("x".to_owned()));
        assert_eq!(mistakes.0.len(), 1 + MISTAKES_MAX + 1);
    }

    #[test]
    fn only_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        for (path, why) in [(fifo.as_path(), "not a regular file"), (directory.path(), "directory")]
        {
            let mut mistakes = Mistakes::default();
            read_entries(path, &mut mistakes, |_| Ok(()));
            assert!(mistakes.to_string().contains(why), "{mistakes}");
        }
    }
}
