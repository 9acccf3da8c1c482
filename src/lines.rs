//! Reads files that have an entry a line, with comments behind `#`.
//!
//! Only regular files are read: a FIFO or a device would be waited for without end.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Bytes of a line that are looked at: somebody may give a file of another kind, which need not have lines
const LINE_LEN_MAX: u64 = 4096;

/// Mistakes of a file that are reported; there are more where somebody gives the wrong file
const MISTAKES_MAX: usize = 10;

/// What is wrong with the files of a hook, each with its place and the cure.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl std::fmt::Display for Mistakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

impl Mistakes {
    /// Returns a value if nothing is wrong.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Adds that a file cannot be read.
    pub fn unreadable(&mut self, path: &Path, error: &std::io::Error) {
        let path = path.display();
        self.0.push(format!("cannot read {path}: {error}; give a file that this user may read"));
    }
}

/// Opens a regular file.
pub fn open(path: &Path) -> std::io::Result<File> {
    // Looked at first: to open a FIFO waits until somebody writes.
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_file() {
        return File::open(path);
    }
    let kind = if kind.is_dir() { "a directory" } else { "not a regular file" };
    Err(std::io::Error::other(format!("it is {kind}")))
}

/// Reads a whole regular file of at most so many bytes.
pub fn read(path: &Path, len_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(len_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len_max {
        return Err(std::io::Error::other(format!("it is longer than {len_max} bytes")));
    }
    Ok(bytes)
}

/// Reads the entries of a file; `take` says what is wrong with one.
pub fn read_entries(
    path: &Path,
    mistakes: &mut Mistakes,
    take: impl FnMut(&str) -> Result<(), String>,
) {
    match open(path) {
        Ok(file) => read_entries_of(path, BufReader::with_capacity(1 << 20, file), mistakes, take),
        Err(error) => mistakes.unreadable(path, &error),
    }
}

/// Reads the entries of what `path` names in mistakes.
pub fn read_entries_of(
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
        // What editors of another system put first.
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
                mistakes.0.push(format!("{}: is not read any further", path.display()));
                return;
            }
        }
    }
}

/// Returns the beginning of a text, in quotes, as mistakes show it.
pub fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_mistakes_are_counted() {
        let mut mistakes = Mistakes::default();
        let mut entries = Vec::new();
        let text = "\u{feff}one\r\n\n  two # with a comment\n#\nbad\nthree";
        read_entries_of(Path::new("f"), text.as_bytes(), &mut mistakes, |entry| {
            if entry == "bad" {
                return Err("is bad".to_owned());
            }
            entries.push(entry.to_owned());
            Ok(())
        });
        assert_eq!(entries, ["one", "two", "three"]);
        assert_eq!(mistakes.0, ["f:5: is bad"]);
        let many = "x\n".repeat(1_000);
        read_entries_of(Path::new("g"), many.as_bytes(), &mut mistakes, |_| Err("x".to_owned()));
        assert_eq!(mistakes.0.len(), 1 + MISTAKES_MAX + 1);
    }

    #[test]
    fn what_is_no_regular_file_is_not_waited_for() {
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
