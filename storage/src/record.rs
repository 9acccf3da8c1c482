//! Records: how one stored peer is laid out in memory.
//!
//! A record is the compact endpoint (6 or 18 bytes), a byte of flags and the tick of the last announce. Whether the
//! peer is a seeder is not in the record: it follows from the record's position (see [`crate::family_peers`]).

use crate::time::Ticks;
use crate::types::{Family, Role, Scope};
use siphasher::sip::SipHasher13;
use std::net::IpAddr;

/// Bytes of an IPv4 record.
pub(crate) const V4: usize = Family::V4.compact_len() + 2;

/// Bytes of an IPv6 record.
pub(crate) const V6: usize = Family::V6.compact_len() + 2;

/// Bits of the flags byte.
pub(crate) mod flags {
    /// The peer is a partial seed, which is not returned to seeders and partial seeds (BEP 21).
    pub(crate) const PARTIAL_SEED: u8 = 1;
    /// The completed download of the peer has been counted.
    pub(crate) const COMPLETED: u8 = 2;
    /// Mask of the scope of the address.
    pub(crate) const SCOPE: u8 = 0b1100;
    /// The peer was learned from another node of the cluster, and has not announced to this one since.
    pub(crate) const REMOTE: u8 = 0b1_0000;
    /// Mask of the publication period, modulo 8, in which the peer was last published to the other nodes of the
    /// cluster. At least four periods must differ: a peer that has expired may be stored for another period, and then
    /// announce again.
    pub(crate) const PUBLICATION_PERIOD: u8 = 0b1110_0000;
}

/// Returns the flags of a publication period: see [`crate::time::Ticks::publication_period_at`].
pub(crate) const fn period_flags(period: i64) -> u8 {
    ((period & 0b111) as u8) << 5
}

/// Returns the flags that stand for a scope.
pub(crate) fn scope_flags(scope: Scope) -> u8 {
    match scope {
        Scope::Global => 0,
        Scope::Private => 0b0100,
        Scope::LinkLocal => 0b1000,
        Scope::Loopback => 0b1100,
    }
}

/// Returns the scope in the flags of a record.
pub(crate) const fn scope_of(flags: u8) -> Scope {
    match flags & flags::SCOPE {
        0 => Scope::Global,
        0b0100 => Scope::Private,
        0b1000 => Scope::LinkLocal,
        _ => Scope::Loopback,
    }
}

/// Returns 1 if the record is that of a partial seed, else 0.
pub(crate) fn partial_seed<const N: usize>(record: &[u8; N]) -> u32 {
    u32::from(record[N - 2] & flags::PARTIAL_SEED)
}

/// Returns the role of a peer from its record, and from whether that is among those of seeders.
pub(crate) fn role_of<const N: usize>(record: &[u8; N], is_seeder: bool) -> Role {
    if is_seeder {
        Role::Seeder
    } else if record[N - 2] & flags::PARTIAL_SEED != 0 {
        Role::PartialSeed
    } else {
        Role::Leecher
    }
}

/// Returns the endpoint of a record in compact form.
pub(crate) fn compact<const N: usize>(record: &[u8; N]) -> &[u8] {
    &record[..N - 2]
}

/// Returns the bytes of the address of a record.
pub(crate) fn address<const N: usize>(record: &[u8; N]) -> &[u8] {
    &record[..N - 4]
}

/// Makes a record; returns `None` if the address is not of the record's family.
pub(crate) fn record_of<const N: usize>(
    ip: IpAddr,
    port: u16,
    flags: u8,
    tick: u8,
) -> Option<[u8; N]> {
    let mut record = [0; N];
    match ip {
        IpAddr::V4(ip) if N == V4 => record[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) if N == V6 => record[..16].copy_from_slice(&ip.octets()),
        _ => return None,
    }
    record[N - 4..N - 2].copy_from_slice(&port.to_be_bytes());
    record[N - 2] = flags;
    record[N - 1] = tick;
    Some(record)
}

/// Returns the part of the address to which the cap on peers per address applies: an IPv4 address, or the /64 of an
/// IPv6 address.
pub(crate) fn cap_prefix<const N: usize>(record: &[u8; N]) -> &[u8] {
    if N == V6 { &record[..8] } else { address(record) }
}

/// Hash function of the endpoint index of a large swarm.
///
/// With a cap on peers per address the port (and the lower half of an IPv6 address) is left out. Peers that share a
/// cap then have the same hash, so a search for one of them passes all others and can count them. A large swarm keeps
/// the variant it was created with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointHasher<'a> {
    pub(crate) hasher: &'a SipHasher13,
    pub(crate) hashes_without_port: bool,
}

impl EndpointHasher<'_> {
    pub(crate) fn hash<const N: usize>(self, record: &[u8; N]) -> u64 {
        self.hasher.hash(if self.hashes_without_port {
            cap_prefix(record)
        } else {
            compact(record)
        })
    }
}

/// The hash function with which records are found, and the time by which they expire.
#[derive(Clone, Debug)]
pub(crate) struct RecordContext {
    pub(crate) hasher: SipHasher13,
    pub(crate) ticks: Ticks,
    /// The current tick.
    pub(crate) tick: u8,
    /// Flags of the current publication period; 0 if the table has no publication.
    pub(crate) period_flags: u8,
}

impl RecordContext {
    pub(crate) fn is_expired<const N: usize>(&self, record: &[u8; N]) -> bool {
        self.ticks.is_expired(self.tick, record[N - 1])
    }
}

/// Number of seeders and leechers of one family in a swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoleCounts {
    pub(crate) seeders: u32,
    pub(crate) leechers: u32,
}

impl RoleCounts {
    pub(crate) fn len(self) -> usize {
        (self.seeders + self.leechers) as usize
    }
}
