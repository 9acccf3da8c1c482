//! `clients`: which programs are served, by what they call themselves (BEP 20).
//!
//! Anybody can call themselves anything: this keeps out what is broken or unwanted, not who is hostile.

use super::access_list::Mode;
use tsubame_storage::PeerId;

/// The longest prefix that is compared
const PREFIX_LEN_MAX: usize = 20;

/// Clients by the beginning of their peer id
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    /// What those on the list are
    pub mode: Mode,
    /// Beginnings of peer ids. `qB4` is that of `-qB4500-...` too: the dash of Azureus' style may be left out
    pub prefixes: Vec<Box<[u8]>>,
}

/// Reads a prefix as a config has it
pub fn parse_prefix(text: &str) -> Option<Box<[u8]>> {
    let fits =
        (1..=PREFIX_LEN_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.as_bytes().into())
}

impl Clients {
    /// Whether a client is served
    pub fn permits(&self, PeerId(id): &PeerId) -> bool {
        let without_dash = id.strip_prefix(b"-").unwrap_or(id);
        let is_of = |prefix: &[u8]| id.starts_with(prefix) || without_dash.starts_with(prefix);
        let listed = self.prefixes.iter().any(|prefix| is_of(prefix));
        listed == (self.mode == Mode::Allow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_known_by_how_their_ids_begin() {
        let prefixes = ["-TR", "qB45", "M7-2-2", "S58B"].map(|text| parse_prefix(text).unwrap());
        let mut clients = Clients { mode: Mode::Allow, prefixes: prefixes.to_vec() };
        for (id, listed) in [
            (b"-TR4050-abcdefghijkl", true),
            (b"-qB4500-abcdefghijkl", true),
            (b"-qB4400-abcdefghijkl", false),
            (b"M7-2-2--abcdefghijkl", true),
            (b"S58B-----abcdefghijk", true),
            (b"TR4050--abcdefghijkl", false),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", false),
        ] {
            clients.mode = Mode::Allow;
            assert_eq!(clients.permits(&PeerId(*id)), listed, "{}", id.escape_ascii());
            clients.mode = Mode::Deny;
            assert_eq!(clients.permits(&PeerId(*id)), !listed, "{}", id.escape_ascii());
        }
        assert!(parse_prefix("").is_none() && parse_prefix("a b").is_none());
        assert!(parse_prefix(&"x".repeat(21)).is_none());
    }
}
