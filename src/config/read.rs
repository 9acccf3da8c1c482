//! Reads a YAML document key by key and collects all errors with their line numbers.

use serde_yaml::{Mapping, Value};
use std::fmt;

/// Maximum number of errors that are reported.
const MISTAKES_MAX: usize = 100;

/// An error in a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    file: String,
    line: Option<usize>,
    key: String,
    message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Keys of a document that are valid, with their values, in the order of reading.
pub(super) type ReadValues = Vec<(String, Value)>;

/// A YAML document, with the errors found in it so far.
pub(super) struct Reader {
    file: String,
    source: String,
    root: Mapping,
    mistakes: Vec<Mistake>,
    /// Every key that has been read.
    known: Vec<String>,
    /// The keys that are in the document and valid, with their values.
    values: ReadValues,
}

/// A mapping of a YAML document.
pub(super) struct Section<'r> {
    reader: &'r mut Reader,
    path: String,
    keys: Mapping,
    known: Vec<&'static str>,
}

impl Reader {
    pub(super) fn new(file: &str, source: &str) -> Result<Self, Vec<Mistake>> {
        let whole = |line, message| {
            let (file, key) = (file.to_owned(), String::new());
            vec![Mistake { file, line, key, message }]
        };
        if let Err((line, message)) = check_bounds(source) {
            return Err(whole(line, message));
        }
        let root = match serde_yaml::from_str(source) {
            Ok(Value::Mapping(root)) => root,
            Ok(Value::Null) => Mapping::new(),
            Ok(_) => {
                let message = "must be a mapping of keys to values, such as udp: {}".to_owned();
                return Err(whole(Some(1), message));
            }
            Err(error) => {
                let line = error.location().map(|location| location.line());
                return Err(match tab_before(source, line) {
                    Some(tab) => {
                        let text = "is indented with a tab, which YAML does not permit; use spaces";
                        whole(Some(tab), text.to_owned())
                    }
                    None => whole(line, format!("is not YAML: {error}")),
                });
            }
        };
        let (file, source) = (file.to_owned(), source.to_owned());
        let (mistakes, known, values) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { file, source, root, mistakes, known, values })
    }

    pub(super) fn root(&mut self) -> Section<'_> {
        let keys = std::mem::take(&mut self.root);
        Section { reader: self, path: String::new(), keys, known: Vec::new() }
    }

    /// Records an error about a key, which may be absent from the document.
    pub(super) fn mistake(&mut self, key: &str, message: String) {
        self.mistake_at(key, key, message);
    }

    /// Records an error about a key, with the line number of another.
    fn mistake_at(&mut self, key: &str, place: &str, message: String) {
        // Finding the line of each error searches the whole text.
        if self.mistakes.len() >= MISTAKES_MAX {
            return;
        }
        // For an absent key, the line of the section that it belongs to.
        let ends = place.match_indices('.').map(|(at, _)| at).chain([place.len()]);
        let line = ends.rev().find_map(|end| line_of(&self.source, &place[..end]));
        self.mistakes.push(Mistake { file: self.file.clone(), line, key: key.to_owned(), message });
    }

    /// Returns the keys that were read but are absent from the document.
    #[cfg(test)]
    pub(super) fn absent(&self) -> Vec<&str> {
        let absent = |key: &&String| line_of(&self.source, key).is_none();
        self.known.iter().filter(absent).map(String::as_str).collect()
    }

    /// Returns the valid keys with their values, and the errors.
    pub(super) fn into_values_and_mistakes(self) -> (ReadValues, Vec<Mistake>) {
        (self.values, self.mistakes)
    }
}

impl Section<'_> {
    /// Returns the value of a key, or its default if the key is absent or its value invalid.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> T {
        self.register(key);
        match self.keys.remove(key) {
            None | Some(Value::Null) => default,
            Some(value) => match read(&value) {
                Ok(read) => {
                    self.reader.values.push((self.path_of(key), value));
                    read
                }
                Err(message) => {
                    self.reader.mistake(&self.path_of(key), message);
                    default
                }
            },
        }
    }

    /// Returns the mapping that is the value of a key.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'_> {
        self.register(key);
        let path = self.path_of(key);
        let keys = match self.keys.remove(key) {
            Some(Value::Mapping(keys)) => keys,
            None | Some(Value::Null) => Mapping::new(),
            Some(_) => {
                self.reader.mistake(&path, "must contain keys".to_owned());
                Mapping::new()
            }
        };
        Section { reader: &mut *self.reader, path, keys, known: Vec::new() }
    }

    /// Calls `read` for each mapping of a list, in order.
    pub(super) fn each(&mut self, key: &'static str, mut read: impl FnMut(Section<'_>)) {
        self.register(key);
        let path = self.path_of(key);
        let items = match self.keys.remove(key) {
            Some(Value::Sequence(items)) => items,
            None | Some(Value::Null) => Vec::new(),
            Some(_) => {
                let message = "must be a list of items that begin with a dash; [] is an empty list"
                    .to_owned();
                return self.reader.mistake(&path, message);
            }
        };
        for (number, item) in items.into_iter().enumerate() {
            let path = format!("{path}.{number}");
            let keys = match item {
                Value::Mapping(keys) => keys,
                _ => {
                    let message = "must contain keys, such as name: and options:".to_owned();
                    self.reader.mistake(&path, message);
                    continue;
                }
            };
            read(Section { reader: &mut *self.reader, path, keys, known: Vec::new() });
        }
    }

    /// Returns whether a key is present.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Records an error about a key of this section.
    pub(super) fn mistake(&mut self, key: &str, message: String) {
        let path = self.path_of(key);
        self.reader.mistake(&path, message);
    }

    /// Records that a key is missing; `cure` says what to add.
    pub(super) fn missing(&mut self, key: &str, cure: &str) {
        self.reader.mistake_at(&self.path_of(key), &self.path, format!("is missing; {cure}"));
    }

    /// Records an error for each key that has not been read.
    pub(super) fn end(self) {
        for key in self.keys.keys() {
            let name = match key {
                Value::String(name) => name.clone(),
                other => format!("{other:?}"),
            };
            let message = match nearest(&name, &self.known) {
                Some(known) => format!("is not a key; did you mean {known}?"),
                None => format!("is not a key; the keys here are {}", self.known.join(", ")),
            };
            let path = self.path_of(&name);
            self.reader.mistake(&path, message);
        }
    }

    fn register(&mut self, key: &'static str) {
        self.known.push(key);
        let path = self.path_of(key);
        self.reader.known.push(path);
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// Returns the known name that is most similar to a misspelt one; `None` if none is similar.
pub(super) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let distances = known.iter().map(|known| (strsim::damerau_levenshtein(known, name), *known));
    let (distance, nearest) = distances.min()?;
    (distance <= name.len().div_ceil(3).max(1)).then_some(nearest)
}

/// Maximum size of a config in bytes.
const SOURCE_LEN_MAX: usize = 16 << 20;
const NESTING_MAX: usize = 64;

/// Returns an error, with its line number if there is one, for text that is too long or too deeply nested.
pub(super) fn check_bounds(source: &str) -> Result<(), (Option<usize>, String)> {
    if source.len() > SOURCE_LEN_MAX {
        let (len, max) = (source.len(), SOURCE_LEN_MAX);
        return Err((
            None,
            format!("has {len} bytes, the maximum is {max}; move long lists to separate files"),
        ));
    }
    let mut depth = 0_usize;
    for (line, number) in source.lines().zip(1..) {
        let code = line.split(" #").next().unwrap_or_default();
        let code = if code.trim_start().starts_with('#') { "" } else { code };
        // Dashes of nested lists can be on one line.
        let dashes = code.trim_start().split(' ').take_while(|it| *it == "-").count();
        for byte in code.bytes() {
            match byte {
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth + dashes > NESTING_MAX {
                let text = format!("is nested more than {NESTING_MAX} levels deep");
                return Err((Some(number), text));
            }
        }
    }
    Ok(())
}

/// Returns the number of the last line that is indented with a tab, at or before the line of an error.
fn tab_before(source: &str, line: Option<usize>) -> Option<usize> {
    let lines = source.lines().zip(1..).take_while(|(_, number)| *number <= line.unwrap_or(0));
    let is_tab = |text: &str| text[..text.len() - text.trim_start().len()].contains('\t');
    lines.filter(|(text, _)| is_tab(text)).map(|(_, number)| number).last()
}

/// Splits a line into its first list dash and the rest, each with its indentation.
fn keys_and_dashes((number, line): (usize, &str)) -> impl Iterator<Item = (usize, usize, &str)> {
    let text = line.trim_start();
    let indent = line.len() - text.len();
    let text = if text.starts_with('#') { "" } else { text };
    let (dash, rest) = match text.strip_prefix("- ") {
        // A dash may have the same indentation as the key of its list.
        Some(rest) => (Some((number, indent + 1, "-")), rest),
        None => (None, text),
    };
    let key = (number, line.len() - rest.len() + usize::from(dash.is_some()), rest);
    dash.into_iter().chain((!rest.is_empty()).then_some(key))
}

/// Returns the line number of a key, given its path; the YAML library does not keep those of values.
///
/// Follows indentation. For a key within `{...}`, returns the line of the opening brace. Returns `None` for a key
/// that is absent.
pub(super) fn line_of(source: &str, path: &str) -> Option<usize> {
    let mut parts = path.split('.').peekable();
    let mut outer_indent = None;
    let mut level_indent = None;
    let mut items = 0;
    for (number, indent, text) in source.lines().enumerate().flat_map(keys_and_dashes) {
        if outer_indent.is_some_and(|outer| indent <= outer) {
            return None;
        }
        if indent > *level_indent.get_or_insert(indent) {
            continue;
        }
        let item = parts.peek().and_then(|part| part.parse::<usize>().ok());
        if text == "-" && item.is_some() {
            items += 1;
            if item == Some(items - 1) {
                parts.next();
                (outer_indent, level_indent, items) = (Some(indent), None, 0);
                if parts.peek().is_none() {
                    return Some(number + 1);
                }
            }
            continue;
        }
        let here = parts.peek().and_then(|part| text.strip_prefix(part)?.strip_prefix(':'));
        if let Some(rest) = here {
            parts.next();
            (outer_indent, level_indent) = (Some(indent), None);
            if parts.peek().is_none() || rest.trim_start().starts_with('{') {
                return Some(number + 1);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_indentation() {
        let source = "# a\na:\n  b:\n    c: 1\n  d: 2\nb:\n  c: {d: 3}\ne:\n- a: 1\n  b: 2\n- a: 1\n  \
                      # x\n  b:\n    c: 2\nf:\n  - {a: 1}\n  - a: 2\n    b: 3\n";
        for (path, line) in [
            ("a", Some(2)),
            ("a.b", Some(3)),
            ("a.b.c", Some(4)),
            ("a.d", Some(5)),
            ("b", Some(6)),
            ("b.c", Some(7)),
            ("b.c.d", Some(7)),
            ("e.0.a", Some(9)),
            ("e.0.b", Some(10)),
            ("e.1.b", Some(13)),
            ("e.1.b.c", Some(14)),
            ("e.1", Some(11)),
            ("e.2.a", None),
            ("f.0", Some(16)),
            ("f.1.b", Some(18)),
            ("a.c", None),
            ("x", None),
        ] {
            assert_eq!(line_of(source, path), line, "{path}");
        }
    }
}
