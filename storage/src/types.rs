//! The domain types of a tracker, independent of the swarm table, and of wire formats but the compact form of peers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Identifies a torrent: the SHA-1 of its info dictionary, or the first 20 bytes of the SHA-256 (BEP 3, BEP 52).
///
/// Clients choose it, and so can attackers: nothing may depend on its bytes being evenly distributed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash(pub [u8; 20]);

/// Identifier that a client chooses for itself (BEP 20). Only policy and the statistics of client programs read
/// it; the swarm table does not store it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId(pub [u8; 20]);

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InfoHash({self})")
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.0.escape_ascii())
    }
}

/// Address families of peers; a swarm has peers of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4: 6 bytes per peer in compact form (BEP 23).
    V4,
    /// IPv6: 18 bytes per peer in compact form (BEP 7).
    V6,
}

impl Family {
    /// Both families, in the order of their indices.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address. IPv4-mapped IPv6 addresses are IPv4.
    #[inline]
    pub fn of(address: IpAddr) -> Self {
        if address.to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns the number of bytes of a peer in compact form.
    pub const fn compact_len(self) -> usize {
        match self {
            Self::V4 => 6,
            Self::V6 => 18,
        }
    }
}

/// Address and port that a peer can be connected to; identifies the peer within a swarm.
///
/// The peer id does not: with the peer id of another client, an attacker could replace its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    address: IpAddr,
    port: u16,
}

impl Endpoint {
    /// Creates an endpoint. IPv4-mapped IPv6 addresses become IPv4.
    #[inline]
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self { address: address.to_canonical(), port }
    }

    /// Returns the address, which is never IPv4-mapped.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Returns the port.
    pub fn port(self) -> u16 {
        self.port
    }

    /// Returns the address family.
    pub fn family(self) -> Family {
        Family::of(self.address)
    }

    /// Returns whether peers can connect to the endpoint. Port 0 cannot be connected to, and libtorrent sends port 1
    /// when it does not listen.
    pub fn is_listening(self) -> bool {
        self.port > 1
    }

    /// Reads an endpoint from its compact form of 6 or 18 bytes.
    pub fn from_compact(bytes: &[u8]) -> Option<Self> {
        let (address, port) = bytes.split_last_chunk::<2>()?;
        let address = match address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
            _ => return None,
        };
        Some(Self::new(address, u16::from_be_bytes(*port)))
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip(), address.port())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Event of an announce (BEP 3, BEP 15, BEP 21).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AnnounceEvent {
    /// A regular announce. Also stands for every value that no BEP defines.
    #[default]
    None,
    /// The download was just completed.
    Completed,
    /// The first announce.
    Started,
    /// The last announce.
    Stopped,
    /// The peer is a partial seed: it has all files it wants, but not the whole torrent (BEP 21).
    Paused,
}

/// Role of a peer in its swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Has the whole torrent.
    Seeder,
    /// Is downloading.
    Leecher,
    /// Does not have the whole torrent and does not download any more (BEP 21). It is counted as a leecher and returned
    /// to leechers only.
    PartialSeed,
}

/// Scope of an address, which decides to whom its peer is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Routed on the internet; returned to everybody.
    Global,
    /// Private or otherwise not routed; returned to requesters of the same scope only.
    Private,
    /// Valid on one link; returned to requesters of the same scope only.
    LinkLocal,
    /// Valid on one host; returned to requesters of the same scope only.
    Loopback,
}

impl Scope {
    /// All scopes, each at the index that is its number.
    pub(crate) const ALL: [Self; 4] =
        [Self::Global, Self::Private, Self::LinkLocal, Self::Loopback];

    /// Returns the scope of an address.
    ///
    /// Of IPv6 only 2000::/3 is global, except documentation (2001:db8::/32) and 6to4 (2002::/16): floods of fake
    /// peers have used other parts of the address space.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, ..] = address.octets();
        match (a, b) {
            (127, _) => Self::Loopback,
            (169, 254) => Self::LinkLocal,
            // 0/8, multicast and class E are not addresses of hosts; 100.64/10 is for carrier-grade NAT (RFC 6598).
            (0 | 10, _) | (100, 64..=127) | (172, 16..=31) | (192, 168) | (224.., _) => {
                Self::Private
            }
            _ => Self::Global,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0x2001, 0x0db8, ..] | [0x2002, ..] => Self::Private,
            [0x2000..=0x3fff, ..] => Self::Global,
            _ => Self::Private,
        }
    }

    /// Returns whether a peer of this scope is returned to a requester of the scope `requester`.
    pub const fn reaches(self, requester: Self) -> bool {
        matches!(self, Self::Global) || self as u8 == requester as u8
    }
}

/// Number of peers and completed downloads of a swarm, over both address families, as a scrape reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmCounts {
    /// Peers that have the whole torrent.
    pub seeders: u32,
    /// Downloads that were completed while this tracker had the torrent.
    pub completed: u32,
    /// Peers that do not have the whole torrent, including partial seeds.
    pub leechers: u32,
}

impl SwarmCounts {
    /// Counts one more peer.
    pub(crate) fn include(&mut self, role: Role) {
        match role {
            Role::Seeder => self.seeders += 1,
            Role::Leecher | Role::PartialSeed => self.leechers += 1,
        }
    }
}

/// Counts of a swarm as HTTP reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmStats {
    /// Counts that all protocols report.
    pub counts: SwarmCounts,
    /// Leechers that do not download any more (BEP 21).
    pub partial_seeds: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_of_special_addresses() {
        let expected = [
            ("8.8.8.8", Scope::Global),
            ("100.63.255.255", Scope::Global),
            ("100.64.0.1", Scope::Private),
            ("172.15.0.1", Scope::Global),
            ("172.31.0.1", Scope::Private),
            ("192.168.3.4", Scope::Private),
            ("0.1.2.3", Scope::Private),
            ("240.0.0.1", Scope::Private),
            ("127.9.9.9", Scope::Loopback),
            ("169.254.1.1", Scope::LinkLocal),
            ("::1", Scope::Loopback),
            ("::ffff:127.0.0.1", Scope::Loopback),
            ("fe80::1", Scope::LinkLocal),
            ("fd00::1", Scope::Private),
            ("2001:db8::1", Scope::Private),
            ("2002:808:808::1", Scope::Private),
            ("2a00:1450::1", Scope::Global),
            ("4000::1", Scope::Private),
        ];
        for (address, scope) in expected {
            assert_eq!(Scope::of(address.parse().unwrap()), scope, "{address}");
        }
    }

    #[test]
    fn compact_form_is_read_back() {
        let v4 = Endpoint::from_compact(&[1, 2, 3, 4, 0x1a, 0xe1]).unwrap();
        assert_eq!(v4, Endpoint::new("1.2.3.4".parse().unwrap(), 6881));
        assert_eq!(Endpoint::from_compact(&[0; 18]).unwrap().family(), Family::V6);
        assert_eq!(Endpoint::from_compact(&[0; 7]), None);
        assert_eq!(Endpoint::from_compact(&[]), None);
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped = Endpoint::new("::ffff:9.8.7.6".parse().unwrap(), 5);
        assert_eq!(mapped, Endpoint::new("9.8.7.6".parse().unwrap(), 5));
        assert_eq!(mapped.family(), Family::V4);
    }
}
