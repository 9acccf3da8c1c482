//! `clients`: permits or refuses client programs by their peer id (BEP 20).
//!
//! A client can send any peer id: the filter keeps out broken or unwanted programs, not attackers.

use super::access_list::ListMode;
use tsubame_storage::PeerId;

/// Maximum length of a prefix in bytes: that of a peer id.
const PREFIX_LEN_MAX: usize = 20;

/// A filter of clients by the prefix of their peer id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFilter {
    /// Whether the listed clients are permitted, or all others.
    pub mode: ListMode,
    /// Prefixes of peer ids. The leading dash of the Azureus style may be omitted: `qB4` matches `-qB4500-...` as well.
    pub prefixes: Vec<Box<[u8]>>,
}

/// Parses a prefix from the config. Returns `None` unless it has 1 to 20 printable ASCII characters without spaces.
pub fn parse_prefix(text: &str) -> Option<Box<[u8]>> {
    let fits =
        (1..=PREFIX_LEN_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.as_bytes().into())
}

impl ClientFilter {
    /// Returns whether a client is permitted.
    pub fn permits(&self, PeerId(id): &PeerId) -> bool {
        let without_dash = id.strip_prefix(b"-").unwrap_or(id);
        let matches = |prefix: &[u8]| id.starts_with(prefix) || without_dash.starts_with(prefix);
        let listed = self.prefixes.iter().any(|prefix| matches(prefix));
        listed == (self.mode == ListMode::Allow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_matched_by_the_prefix_of_their_peer_id() {
        let prefixes = ["-TR", "qB45", "M7-2-2", "S58B"].map(|text| parse_prefix(text).unwrap());
        let mut clients = ClientFilter { mode: ListMode::Allow, prefixes: prefixes.to_vec() };
        for (id, listed) in [
            (b"-TR4050-abcdefghijkl", true),
            (b"-qB4500-abcdefghijkl", true),
            (b"-qB4400-abcdefghijkl", false),
            (b"M7-2-2--abcdefghijkl", true),
            (b"S58B-----abcdefghijk", true),
            (b"TR4050--abcdefghijkl", false),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", false),
        ] {
            clients.mode = ListMode::Allow;
            assert_eq!(clients.permits(&PeerId(*id)), listed, "{}", id.escape_ascii());
            clients.mode = ListMode::Deny;
            assert_eq!(clients.permits(&PeerId(*id)), !listed, "{}", id.escape_ascii());
        }
        assert!(parse_prefix("").is_none() && parse_prefix("a b").is_none());
        assert!(parse_prefix(&"x".repeat(21)).is_none());
    }
}
