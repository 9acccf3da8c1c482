//! `passkey`: permits announces whose URL contains a known passkey.
//!
//! Over HTTP the passkey is the `{key}` of the path, over UDP a segment of the path in the URL data (BEP 41); over both
//! it may be the parameter `passkey` instead. Passkeys are secrets: no message, metric or log contains one.

use crate::lines::{self, Mistakes};
use std::collections::HashSet;
use std::path::Path;

/// Maximum length of a passkey in bytes.
const KEY_LEN_MAX: usize = 64;

/// The set of valid passkeys.
///
/// The hash of the set is keyed, so that the time of a failed lookup reveals nothing about the passkeys.
pub struct Passkeys(HashSet<Box<str>>);

/// Hides the passkeys from logs.
impl std::fmt::Debug for Passkeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passkeys").field("len", &self.0.len()).finish_non_exhaustive()
    }
}

impl Passkeys {
    /// Reads a file with a passkey on each line and comments after `#`.
    pub fn load(path: &Path) -> Result<Self, Mistakes> {
        let (mut keys, mut mistakes) = (HashSet::new(), Mistakes::default());
        lines::read_entries(path, &mut mistakes, |key| {
            let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            if key.len() > KEY_LEN_MAX || !key.bytes().all(is_fit) {
                let cure = "write up to 64 letters, digits, dashes and underscores per line";
                return Err(format!("is not a passkey; {cure}"));
            }
            keys.insert(key.into());
            Ok(())
        });
        mistakes.into_result(Self(keys))
    }

    /// Returns the number of passkeys.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no passkeys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether a passkey is valid.
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
        assert!(error.contains("keys:2: is not a passkey") && !error.contains("secret"), "{error}");
        assert!(Passkeys::load(&directory.path().join("absent")).is_err());
    }
}
