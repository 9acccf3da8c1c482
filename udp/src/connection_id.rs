//! Connection ids: stateless proof that a client receives packets at its source address.
//!
//! An id consists of the lower 8 bits of the epoch in which it was issued and a 56-bit tag: SipHash-2-4 over the source
//! address and the epoch number, with a secret key. A sender that forges its source address never receives the id,
//! and guesses it with a probability of 2^-56. The port is not included, as clients share an id between sockets.
//!
//! An epoch is 64 seconds of the wall clock, so trackers that share a key accept each other's ids. This module reads no
//! clock and generates no key.

#![forbid(unsafe_code)]

use siphasher::sip::SipHasher24;
use std::fmt;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv6Addr};
use subtle::{Choice, ConstantTimeEq};

/// Length of an epoch in seconds.
const EPOCH_SECS: u64 = 64;

/// Bits of the tag of an id.
const TAG_BITS: u32 = 56;

/// Maximum age of an id in epochs: the 8 bits in an id distinguish 256, of which one is ahead of now.
const EPOCHS_MAX: u64 = 254;

/// Maximum lifetime of an id in seconds.
pub const LIFETIME_SECS_MAX: u64 = EPOCHS_MAX * EPOCH_SECS;

/// A secret key of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ConnectionIdKey(pub [u8; 16]);

/// Hides the key, so that logs cannot contain it.
impl fmt::Debug for ConnectionIdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Issues and checks connection ids.
#[derive(Clone, Debug)]
pub struct ConnectionIds {
    hashers: Vec<SipHasher24>,
    lifetime_epochs: u8,
}

impl ConnectionIds {
    /// Creates an issuer that uses the first key and accepts the ids of all keys, so that keys can be rotated without
    /// refusing valid ids.
    ///
    /// The lifetime is rounded up to whole epochs, and limited to [`LIFETIME_SECS_MAX`]. An id that is issued at the
    /// end of an epoch must live as long as one issued at its beginning, so one epoch is added.
    pub fn new(first: ConnectionIdKey, others: &[ConnectionIdKey], lifetime_secs: u64) -> Self {
        let epochs = lifetime_secs.div_ceil(EPOCH_SECS).clamp(1, EPOCHS_MAX);
        Self {
            hashers: std::iter::once(&first)
                .chain(others)
                .map(|key| SipHasher24::new_with_key(&key.0))
                .collect(),
            lifetime_epochs: u8::try_from(epochs).unwrap_or(u8::MAX - 1),
        }
    }

    /// Returns whether ids that are issued at two times are the same.
    pub fn is_same_epoch(unix_secs: u64, other_unix_secs: u64) -> bool {
        Self::epoch(unix_secs) == Self::epoch(other_unix_secs)
    }

    /// Returns the number of the epoch of a time.
    pub(crate) fn epoch(unix_secs: u64) -> u64 {
        unix_secs / EPOCH_SECS
    }

    /// Returns the keys as pairs of words, the one that issues ids first.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (u64, u64)> {
        self.hashers.iter().map(SipHasher24::keys)
    }

    /// Returns for how many epochs after its own an id is accepted.
    pub(crate) fn lifetime_epochs(&self) -> u8 {
        self.lifetime_epochs
    }

    /// Returns an id for a source; never 0, which some clients treat as "not connected".
    pub fn issue(&self, unix_secs: u64, source: IpAddr) -> u64 {
        let epoch = Self::epoch(unix_secs);
        self.hashers.first().map_or(1, |hasher| id_of(hasher, epoch, source))
    }

    /// Returns whether an id was issued to this source with any of the keys and has not expired.
    ///
    /// An id of the next epoch is accepted, as the clock of another tracker may be ahead. The time of the comparison
    /// does not depend on the tag.
    pub fn accepts(&self, unix_secs: u64, source: IpAddr, id: u64) -> bool {
        let now = Self::epoch(unix_secs);
        // The epoch in the id is public; only the tag is secret.
        let ahead_of_id = (now as u8).wrapping_sub((id >> TAG_BITS) as u8);
        let epoch = match ahead_of_id {
            u8::MAX => now.wrapping_add(1),
            age if age <= self.lifetime_epochs => now.wrapping_sub(u64::from(age)),
            _ => return false,
        };
        let matches = |hasher| id_of(hasher, epoch, source).ct_eq(&id);
        self.hashers.iter().map(matches).fold(Choice::from(0), |any, one| any | one).into()
    }
}

/// Returns the id of a source in an epoch.
#[inline(never)]
fn id_of(hasher: &SipHasher24, epoch: u64, source: IpAddr) -> u64 {
    let hash = match source.to_canonical() {
        // 32 bits of the epoch suffice for 8,000 years.
        IpAddr::V4(source) => {
            let message = u64::from(source.to_bits()) << 32 | epoch & 0xffff_ffff;
            let (first, second) = hasher.keys();
            let mut hasher = SipHasher24::new_with_keys(first, second);
            hasher.write_u64(message.swap_bytes());
            hasher.finish()
        }
        IpAddr::V6(source) => hash_of_v6(hasher, epoch, source),
    };
    let tag = hash >> (u64::BITS - TAG_BITS);
    let id = epoch << TAG_BITS | tag;
    if id == 0 { 1 } else { id }
}

/// Returns the hash of an IPv6 address and an epoch. Its message is longer than that of an IPv4 address.
#[inline(never)]
fn hash_of_v6(hasher: &SipHasher24, epoch: u64, source: Ipv6Addr) -> u64 {
    let mut message = [0; 24];
    message[..16].copy_from_slice(&source.octets());
    message[16..].copy_from_slice(&epoch.to_be_bytes());
    hasher.hash(&message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SOURCE: &str = "203.0.113.7";

    fn source() -> IpAddr {
        SOURCE.parse().unwrap()
    }

    fn ids(keys: &[u8], lifetime: u64) -> ConnectionIds {
        let keys: Vec<ConnectionIdKey> =
            keys.iter().map(|byte| ConnectionIdKey([*byte; 16])).collect();
        ConnectionIds::new(keys[0], &keys[1..], lifetime)
    }

    #[test]
    fn an_id_is_valid_for_its_lifetime_and_less_than_two_epochs_more() {
        for lifetime in [1, 64, 120, 3_600, LIFETIME_SECS_MAX] {
            let ids = ids(&[1], lifetime);
            for issued in 1_000_000..1_000_064 {
                let id = ids.issue(issued, source());
                assert!(ids.accepts(issued + lifetime, source(), id));
                assert!(!ids.accepts(issued + lifetime + 2 * EPOCH_SECS, source(), id));
            }
        }
    }

    #[test]
    fn an_id_of_a_clock_one_epoch_ahead_is_accepted() {
        let ids = ids(&[1], 120);
        let id = ids.issue(1_000_064, source());
        assert!(ids.accepts(1_000_000, source(), id));
        assert!(!ids.accepts(1_000_000 - EPOCH_SECS, source(), id));
    }

    #[test]
    fn an_epoch_with_the_same_low_bits_is_refused() {
        // After 256 epochs the 8 bits repeat, but the tag differs.
        let ids = ids(&[1], 120);
        let id = ids.issue(1_000_000, source());
        assert!(!ids.accepts(1_000_000 + 256 * EPOCH_SECS, source(), id));
    }

    #[test]
    fn keys_are_rotated_without_refusing_valid_ids() {
        let (old, both, new) = (ids(&[1], 120), ids(&[2, 1], 120), ids(&[2], 120));
        let id = old.issue(5_000, source());
        assert!(both.accepts(5_000, source(), id));
        assert!(!new.accepts(5_000, source(), id));
        assert!(new.accepts(5_000, source(), both.issue(5_000, source())));
    }

    #[test]
    fn ipv4_mapped_sources_count_as_ipv4() {
        let mapped = format!("::ffff:{SOURCE}").parse().unwrap();
        let ids = ids(&[9], 120);
        assert_eq!(ids.issue(77, source()), ids.issue(77, mapped));
    }

    #[test]
    fn ids_are_reproducible_across_versions() {
        // Trackers of different versions share keys: these values must never change.
        let v6 = "2001:db8::7".parse().unwrap();
        assert_eq!(ids(&[7], 120).issue(1_700_000_000, v6), 0xc400_a86e_5814_cf7a);
        assert_eq!(ids(&[7], 120).issue(1_700_000_000, source()), 0xc458_2dd4_82cf_c89a);
    }

    proptest! {
        #[test]
        fn forged_ids_are_refused(now: u64, id: u64, flip in 0..64, address: [u8; 16]) {
            let now = now >> 20;
            let ids = ids(&[3, 4], 120);
            let source = IpAddr::from(address);
            let issued = ids.issue(now, source);
            prop_assert_ne!(issued, 0);
            prop_assert!(ids.accepts(now, source, issued));
            prop_assert!(!ids.accepts(now, source, issued ^ (1_u64 << flip)));
            prop_assert!(id == issued || !ids.accepts(now, source, id));
            let mut other = address;
            other[15] ^= 1;
            prop_assert!(!ids.accepts(now, IpAddr::from(other), issued));
        }
    }
}
