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

/// Number of samples after which all counts are halved, so that shares are those of the recent past.
const SAMPLES_MAX: u64 = 200_000;

/// A program is reported by name only if at least one in this number of samples is of it.
const REPORTED_MIN_SHARE_DIVISOR: u64 = 1_000;

/// Number of sampled announces by client program, in fixed memory: the Space-Saving algorithm (Metwally et al., 2005).
///
/// A program with more than one sample in 512 always has a counter. Only the certain part of a count is reported, so
/// that random peer ids are not.
#[derive(Clone, Debug, Default)]
pub struct ClientCounts {
    counts: HashMap<ClientPrefix, ProgramCount>,
    total: u64,
}

/// Count of a program, and by how much it may be too large: the count of the program that it replaced.
#[derive(Clone, Copy, Debug, Default)]
struct ProgramCount {
    count: u64,
    error: u64,
}

impl ClientCounts {
    /// Counts a sampled announce.
    pub fn add(&mut self, prefix: ClientPrefix) {
        self.total += 1;
        if self.total > SAMPLES_MAX {
            self.total /= 2;
            self.counts.values_mut().for_each(|it| {
                (it.count, it.error) = (it.count / 2, it.error / 2);
            });
        }
        let prefix = program_of(prefix);
        if let Some(known) = self.counts.get_mut(&prefix) {
            known.count += 1;
            return;
        }
        let mut error = 0;
        if self.counts.len() >= PROGRAMS_MAX {
            let least = self.counts.iter().min_by_key(|(_, it)| it.count);
            if let Some((least, least_count)) = least.map(|(prefix, it)| (*prefix, it.count)) {
                self.counts.remove(&least);
                error = least_count;
            }
        }
        self.counts.insert(prefix, ProgramCount { count: error + 1, error });
    }

    /// Returns the [`REPORTED_MAX`] most frequent programs, most frequent first, then all others together.
    pub fn shares(&self) -> Vec<ClientShare> {
        let certain = |it: &ProgramCount| it.count - it.error;
        let min = (self.total / REPORTED_MIN_SHARE_DIVISOR).max(2);
        let mut counts: Vec<_> =
            self.counts.iter().map(|(prefix, it)| (prefix, certain(it))).collect();
        counts.retain(|(_, count)| *count >= min);
        counts.sort_unstable_by_key(|(prefix, count)| (std::cmp::Reverse(*count), **prefix));
        counts.truncate(REPORTED_MAX);
        let share = |(prefix, announces): (&ClientPrefix, u64)| ClientShare {
            name: name_of(*prefix),
            announces,
        };
        let mut shares: Vec<ClientShare> = counts.into_iter().map(share).collect();
        let reported: u64 = shares.iter().map(|share| share.announces).sum();
        let announces = self.total.saturating_sub(reported);
        shares.push(ClientShare { name: OTHER.to_owned(), announces });
        shares
    }
}

/// Returns the part of a peer id that identifies the program, filled up with zeros: in the style of Azureus `-`, two
/// letters and the version; in that of Shad0w a letter and three digits; otherwise three bytes.
fn program_of(mut prefix: ClientPrefix) -> ClientPrefix {
    let len = match prefix {
        [b'-', .., b'-'] => 8,
        [first, ..] if first.is_ascii_alphabetic() && prefix[4..].contains(&b'-') => 4,
        _ => 3,
    };
    prefix[len..].fill(0);
    prefix
}

/// Returns a program as text. Bytes that are not letters, digits or `-._` are written in hexadecimal.
fn name_of(program: ClientPrefix) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let mut name = String::new();
    for byte in program.iter().take_while(|byte| **byte != 0) {
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
            (b"\x01\"\n\0\0\0\0\0", "%01%22%0a"),
        ] {
            assert_eq!(name_of(program_of(*peer_id)), name);
        }
    }

    #[test]
    fn frequent_programs_are_counted_among_any_number_of_rare_ones() {
        let mut counts = ClientCounts::default();
        let mut rng = fastrand::Rng::with_seed(3);
        for number in 0_u64..300_000 {
            counts.add(match number % 10 {
                0..3 => *b"-qB4650-",
                3 => *b"-TR4050-",
                _ => rng.u64(..).to_be_bytes(),
            });
        }
        assert!(counts.counts.len() <= PROGRAMS_MAX);
        let shares = counts.shares();
        let names: Vec<&str> = shares.iter().map(|share| share.name.as_str()).collect();
        assert_eq!(names, ["-qB4650-", "-TR4050-", "other"], "random peer ids are not reported");
        let total: u64 = shares.iter().map(|share| share.announces).sum();
        let share = shares[0].announces as f64 / total as f64;
        assert!((0.29..0.31).contains(&share), "{share}");
    }
}
