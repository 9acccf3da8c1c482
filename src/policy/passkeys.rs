//! `passkey`: who may announce, by a key that is part of the announce URL.
//!
//! Over HTTP it is the `{key}` of the path, over UDP a segment of the URL data's path (BEP 41); or over either the
//! parameter `passkey`. Keys are secrets: no text, metric or log shows one.

use crate::lines::{self, Mistakes};
use std::collections::HashSet;
use std::path::Path;

/// The longest key
const KEY_LEN_MAX: usize = 64;

/// The keys that are good
///
/// The set's own hash is keyed, so that nobody can look for a key by the time its absence takes.
pub struct Passkeys(HashSet<Box<str>>);

/// Keys do not show in logs
impl std::fmt::Debug for Passkeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passkeys").field("len", &self.0.len()).finish_non_exhaustive()
    }
}

impl Passkeys {
    /// Reads a file with a key a line; what stands behind # is a comment
    pub fn load(path: &Path) -> Result<Self, Mistakes> {
        let (mut keys, mut mistakes) = (HashSet::new(), Mistakes::default());
        lines::read_entries(path, &mut mistakes, |key| {
            let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            if key.len() > KEY_LEN_MAX || !key.bytes().all(is_fit) {
                let cure = "write up to 64 letters, digits, dashes and underscores a line";
                return Err(format!("is no passkey; {cure}"));
            }
            keys.insert(key.into());
            Ok(())
        });
        mistakes.or(Self(keys))
    }

    /// Number of keys
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a key is good
    pub fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn keys_are_read_and_errors_do_not_show_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        fs::write(&path, "# two\r\nabc-_9\r\n\nsecond # of somebody\n").unwrap();
        let keys = Passkeys::load(&path).unwrap();
        assert!(keys.has("abc-_9") && keys.has("second") && !keys.has("") && !keys.has("ABC-_9"));
        assert!(!format!("{keys:?}").contains("second"));
        fs::write(&path, "fine\nsecret/word\n").unwrap();
        let error = Passkeys::load(&path).unwrap_err().to_string();
        assert!(error.contains("keys:2: is no passkey") && !error.contains("secret"), "{error}");
        assert!(Passkeys::load(&directory.path().join("absent")).is_err());
    }
}
