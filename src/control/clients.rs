//! Shares of client programs among the announces, from samples.

use crate::stats::client_samples::ClientPrefix;
use std::collections::HashMap;
use std::fmt::Write;

/// Number of programs that are counted separately. A new one replaces that with the lowest count.
const PROGRAMS_MAX: usize = 512;

/// Number of programs that are reported by name.
pub const REPORTED_MAX: usize = 50;

/// Name under which all programs but the reported ones are summed up.
const OTHER: &str = "other";

/// A client program, and its number of sampled announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientShare {
    /// Start of its peer ids, such as `-qB4650-`.
    pub name: String,
    /// Number of sampled announces.
    pub announces: u64,
}

/// Number of sampled announces by client program, in fixed memory: the Space-Saving algorithm (Metwally et al., 2005).
///
/// A program with more than one announce in 512 is never missing. Its count is exact or too large, by at most the
/// lowest count.
#[derive(Clone, Debug, Default)]
pub struct ClientCounts {
    counts: HashMap<ClientPrefix, u64>,
    total: u64,
}

impl ClientCounts {
    /// Counts a sampled announce.
    pub fn add(&mut self, prefix: ClientPrefix) {
        self.total += 1;
        if let Some(count) = self.counts.get_mut(&prefix) {
            *count += 1;
            return;
        }
        let mut count = 1;
        if self.counts.len() >= PROGRAMS_MAX {
            let least = self.counts.iter().min_by_key(|(_, count)| **count);
            if let Some((least, least_count)) = least.map(|(prefix, count)| (*prefix, *count)) {
                self.counts.remove(&least);
                count += least_count;
            }
        }
        self.counts.insert(prefix, count);
    }

    /// Returns the [`REPORTED_MAX`] most frequent programs, most frequent first, then all others together.
    pub fn shares(&self) -> Vec<ClientShare> {
        let mut counts: Vec<_> = self.counts.iter().collect();
        counts.sort_unstable_by_key(|(prefix, count)| (std::cmp::Reverse(**count), **prefix));
        let mut shares: Vec<ClientShare> = Vec::new();
        for (prefix, announces) in counts.into_iter().take(REPORTED_MAX) {
            let name = name_of(*prefix);
            // Two prefixes may have the same name.
            match shares.iter_mut().find(|share| share.name == name) {
                Some(share) => share.announces += announces,
                None => shares.push(ClientShare { name, announces: *announces }),
            }
        }
        let reported: u64 = shares.iter().map(|share| share.announces).sum();
        let announces = self.total.saturating_sub(reported);
        shares.push(ClientShare { name: OTHER.to_owned(), announces });
        shares
    }
}

/// Returns the printable start of a peer id: `-` and its two letters and version in the style of Azureus, otherwise the
/// letters and digits before the random part. Other bytes are written in hexadecimal.
fn name_of(prefix: ClientPrefix) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let len = match prefix {
        [b'-', .., b'-'] => 8,
        // Shad0w's style: a letter, then up to five characters of the version, then dashes.
        [first, ..] if first.is_ascii_alphabetic() && prefix[4..].contains(&b'-') => 4,
        _ => 3,
    };
    let mut name = String::new();
    for byte in prefix.get(..len).unwrap_or_default() {
        if is_plain(byte) {
            name.push(char::from(*byte));
        } else {
            _ = write!(name, "%{byte:02x}");
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_printable() {
        for (peer_id, name) in [
            (b"-qB4650-", "-qB4650-"),
            (b"S58B----", "S58B"),
            (b"M7-9-2--", "M7-9"),
            (b"exbc\x01\x02ab", "exb"),
            (b"\0\"\n\0\0\0\0\0", "%00%22%0a"),
        ] {
            assert_eq!(name_of(*peer_id), name);
        }
    }

    #[test]
    fn frequent_programs_are_counted_among_any_number_of_rare_ones() {
        let mut counts = ClientCounts::default();
        for number in 0_u64..200_000 {
            counts.add(match number % 10 {
                0..3 => *b"-qB4650-",
                3 => *b"-TR4050-",
                _ => (number | 1 << 63).to_be_bytes(),
            });
        }
        assert_eq!(counts.counts.len(), PROGRAMS_MAX);
        let shares = counts.shares();
        assert_eq!((shares[0].name.as_str(), shares[1].name.as_str()), ("-qB4650-", "-TR4050-"));
        assert!((60_000..60_500).contains(&shares[0].announces), "{:?}", shares[0]);
        assert!(shares.len() <= REPORTED_MAX + 1);
        assert_eq!(shares.iter().map(|share| share.announces).sum::<u64>(), 200_000);
    }
}
