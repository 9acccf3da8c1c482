//! The simulated population: torrents by popularity, peers with their own addresses and ports, and the state of each
//! peer.

use fastrand::Rng;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tsubame_bench::{info_hash_of, peers_of};

use crate::protocol::LoadEvent;

/// First port of the peers.
const PORT_FIRST: u16 = 1_024;
/// Number of ports of the peers.
const PORTS: u32 = u16::MAX as u32 - PORT_FIRST as u32 + 1;

/// Bytes that a leecher has left to download.
const LEFT: u64 = 700 << 20;

/// Distribution of peers over torrents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// The share of the torrent of rank r is proportional to `r^-s`, where s is this exponent.
    Zipf(f64),
    /// The shares of a public tracker. With 2.45 peers per torrent, 60 % of torrents have 1 peer, 20 % have 2, 10 %
    /// have 3, 5 % have 5, 4 % have 10, and 1 % have 50.
    Public,
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is neither \"public\" nor \"zipf:EXPONENT\" (0 to 3), for example zipf:0.8"
            )
        };
        if text == "public" {
            return Ok(Self::Public);
        }
        let exponent: f64 =
            text.strip_prefix("zipf:").and_then(|e| e.parse().ok()).ok_or_else(wrong)?;
        if (0.0..=3.0).contains(&exponent) { Ok(Self::Zipf(exponent)) } else { Err(wrong()) }
    }
}

/// Consecutive addresses of the clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceAddresses {
    pub(crate) first: IpAddr,
    pub(crate) count: u32,
    /// Whether the source address of each request must be set.
    pub(crate) sets_source_address: bool,
}

impl SourceAddresses {
    /// Returns the address with this number.
    pub(crate) fn address(&self, index: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(index)).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) + u128::from(index)).into(),
        }
    }

    /// Returns the index of an address.
    fn index(&self, address: &[u8]) -> Option<u32> {
        let offset = match (self.first, address.len()) {
            (IpAddr::V4(first), 4) => {
                let address: [u8; 4] = address.try_into().ok()?;
                u32::from_be_bytes(address).checked_sub(first.into())?.into()
            }
            (IpAddr::V6(first), 16) => {
                let address: [u8; 16] = address.try_into().ok()?;
                u128::from_be_bytes(address).checked_sub(first.into())?
            }
            _ => return None,
        };
        u32::try_from(offset).ok().filter(|offset| *offset < self.count)
    }
}

/// State of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerState {
    Absent,
    Leecher,
    Seeder,
}

/// The peers of one address family.
pub(crate) struct PeerGroup {
    pub(crate) sources: SourceAddresses,
    torrent_of: Vec<u32>,
    states: Vec<PeerState>,
    /// By peer: number of the first request whose reply must not contain the peer, because the tracker has confirmed
    /// its stop; 0 if it has confirmed none.
    stopped_before_request: Vec<u32>,
}

/// All peers, and the number of peers of each torrent.
pub(crate) struct Population {
    pub(crate) groups: Vec<PeerGroup>,
    peers_in: Vec<u32>,
    churn: f64,
}

/// Parameters of the next announce of a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnnounceParameters {
    pub(crate) event: LoadEvent,
    pub(crate) left: u64,
}

impl Population {
    /// Creates a population with a number of peers for each group. `churn` is the share of announces with which a peer
    /// completes or stops.
    pub(crate) fn new(
        torrents: u32,
        shape: Shape,
        groups: &[(SourceAddresses, u32)],
        churn: f64,
    ) -> Result<Self, String> {
        let mut peers_in = vec![0; torrents as usize];
        let shares = shares(torrents, shape);
        let mut built = Vec::new();
        for (sources, peers) in groups {
            let peers_max = u64::from(sources.count) * u64::from(PORTS);
            if u64::from(*peers) > peers_max {
                return Err(format!(
                    "{peers} peers need more than {} addresses (at most {peers_max} peers); increase --sources or \
                     reduce --peers",
                    sources.count
                ));
            }
            let torrent_of = assign_torrents(&shares, *peers);
            torrent_of.iter().for_each(|torrent| peers_in[*torrent as usize] += 1);
            let (states, stopped_before_request) =
                (vec![PeerState::Absent; torrent_of.len()], vec![0; torrent_of.len()]);
            built.push(PeerGroup { sources: *sources, torrent_of, states, stopped_before_request });
        }
        Ok(Self { groups: built, peers_in, churn })
    }

    /// Returns the number of torrents.
    pub(crate) fn torrents(&self) -> u32 {
        self.peers_in.len() as u32
    }

    /// Returns the number of peers of all groups.
    pub(crate) fn peers(&self) -> u32 {
        self.groups.iter().map(PeerGroup::peers).sum()
    }

    /// Returns the maximum number of peers of a torrent, of both address families.
    pub(crate) fn peers_in(&self, torrent: u32) -> u32 {
        self.peers_in.get(torrent as usize).copied().unwrap_or(0)
    }

    /// Advances the state of a peer; returns its next announce.
    pub(crate) fn advance_peer(
        &mut self,
        rng: &mut Rng,
        group: usize,
        peer: u32,
    ) -> AnnounceParameters {
        let churn = self.churn;
        let group = &mut self.groups[group];
        let state = &mut group.states[peer as usize];
        let draw = rng.f64();
        let event = match *state {
            PeerState::Absent => LoadEvent::Started,
            PeerState::Leecher if draw < churn / 2.0 => LoadEvent::Completed,
            _ if draw < churn => LoadEvent::Stopped,
            _ => LoadEvent::None,
        };
        *state = match (event, *state) {
            (LoadEvent::Started, _) if starts_as_seeder(peer) => PeerState::Seeder,
            (LoadEvent::Started, _) => PeerState::Leecher,
            (LoadEvent::Completed, _) => PeerState::Seeder,
            (LoadEvent::Stopped, _) => PeerState::Absent,
            (LoadEvent::None, state) => state,
        };
        if event == LoadEvent::Started {
            group.stopped_before_request[peer as usize] = 0;
        }
        // A stopped peer announces itself as a leecher, whatever it was.
        let left = if *state == PeerState::Seeder { 0 } else { LEFT };
        AnnounceParameters { event, left }
    }

    /// Starts a peer whatever its state is; returns its announce.
    pub(crate) fn start_peer(&mut self, group: usize, peer: u32) -> AnnounceParameters {
        let group = &mut self.groups[group];
        group.stopped_before_request[peer as usize] = 0;
        let seeds = starts_as_seeder(peer);
        group.states[peer as usize] = if seeds { PeerState::Seeder } else { PeerState::Leecher };
        AnnounceParameters { event: LoadEvent::Started, left: if seeds { 0 } else { LEFT } }
    }

    /// Notes that the tracker has confirmed that a peer stopped, after `sent` requests were sent.
    pub(crate) fn record_confirmed_stop(&mut self, group: usize, peer: u32, sent: u64) {
        let group = &mut self.groups[group];
        if group.states[peer as usize] == PeerState::Absent {
            group.stopped_before_request[peer as usize] = sent as u32;
        }
    }
}

impl PeerGroup {
    pub(crate) fn peers(&self) -> u32 {
        self.torrent_of.len() as u32
    }

    /// Returns the number of addresses with a peer: a small population does not use all of them.
    pub(crate) fn sources_in_use(&self) -> u32 {
        self.sources.count.min(self.peers())
    }

    /// Returns the bytes of a peer in a reply.
    pub(crate) fn compact_len(&self) -> usize {
        if self.sources.first.is_ipv4() { 6 } else { 18 }
    }

    /// Returns the torrent of a peer.
    pub(crate) fn torrent_of(&self, peer: u32) -> u32 {
        self.torrent_of[peer as usize]
    }

    /// Returns the index of the address of a peer.
    pub(crate) fn source_of(&self, peer: u32) -> u32 {
        peer % self.sources.count
    }

    /// Returns the port of a peer.
    pub(crate) fn port_of(&self, peer: u32) -> u16 {
        PORT_FIRST + (peer / self.sources.count) as u16
    }

    /// Returns a random peer of an address that is in use.
    pub(crate) fn draw_of_source(&self, rng: &mut Rng, source: u32) -> u32 {
        let peers = (self.peers() - source).div_ceil(self.sources.count);
        source + self.sources.count * rng.u32(..peers)
    }

    /// Returns the peer with this endpoint in compact form, if it is in the population.
    pub(crate) fn find(&self, compact: &[u8]) -> Option<u32> {
        let (address, port) = compact.split_last_chunk::<2>()?;
        let offset = u16::from_be_bytes(*port).checked_sub(PORT_FIRST)?;
        let source = self.sources.index(address)?;
        let peer = u64::from(offset) * u64::from(self.sources.count) + u64::from(source);
        u32::try_from(peer).ok().filter(|peer| *peer < self.peers())
    }

    /// Returns whether the tracker had confirmed the stop of a peer before the request with this number was sent.
    pub(crate) fn had_stopped(&self, peer: u32, number: u64) -> bool {
        let stopped_before_request = self.stopped_before_request[peer as usize];
        stopped_before_request != 0 && stopped_before_request <= number as u32
    }
}

/// Returns the info hash of a torrent.
pub(crate) fn info_hash(torrent: u32) -> [u8; 20] {
    info_hash_of(torrent).0
}

/// Returns whether a peer starts as a seeder; one in four does.
fn starts_as_seeder(peer: u32) -> bool {
    peer.wrapping_mul(0x9e37_79b9) >> 30 == 0
}

/// Returns the share of all peers that each torrent has.
fn shares(torrents: u32, shape: Shape) -> Vec<f64> {
    let weight = |torrent: u32| match shape {
        Shape::Zipf(exponent) => f64::from(torrent + 1).powf(-exponent),
        Shape::Public => f64::from(peers_of(torrent)),
    };
    let weights: Vec<f64> = (0..torrents).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Returns the torrent of each peer, in the order of the torrents. Fractions of peers carry over to the next torrent.
fn assign_torrents(shares: &[f64], peers: u32) -> Vec<u32> {
    let mut torrent_of = Vec::with_capacity(peers as usize);
    let mut due = 0.0;
    for (torrent, share) in shares.iter().enumerate() {
        due += share * f64::from(peers);
        // Corrects for sums of shares that rounding leaves just below a whole number.
        let whole = ((due + 1e-6) as usize).min(peers as usize);
        torrent_of.resize(whole.max(torrent_of.len()), torrent as u32);
    }
    torrent_of.resize(peers as usize, 0);
    torrent_of
}

#[cfg(test)]
mod tests {
    use super::*;

    fn population(torrents: u32, shape: Shape, peers: u32) -> Population {
        let sources = SourceAddresses {
            first: IpAddr::from([127, 1, 0, 1]),
            count: 100,
            sets_source_address: true,
        };
        Population::new(torrents, shape, &[(sources, peers)], 0.1).unwrap()
    }

    #[test]
    fn popularity_has_the_requested_shape() {
        let zipf = population(1_000, Shape::Zipf(1.0), 100_000);
        assert_eq!(zipf.peers_in.iter().sum::<u32>(), 100_000);
        // The harmonic number of 1,000 is 7.485.
        assert!((13_300..13_400).contains(&zipf.peers_in(0)), "{}", zipf.peers_in(0));
        assert!((130..137).contains(&zipf.peers_in(99)), "{}", zipf.peers_in(99));
        let public = population(10_000, Shape::Public, 24_500);
        let expected: u32 = (0..10_000).map(peers_of).sum();
        assert!(expected.abs_diff(24_500) < 100);
        let close = |torrent| public.peers_in(torrent).abs_diff(peers_of(torrent)) <= 1;
        assert!((0..10_000).all(close));
    }

    #[test]
    fn peers_are_found_by_their_endpoint() {
        let population = population(50, Shape::Zipf(0.8), 100_000);
        let group = &population.groups[0];
        let mut rng = Rng::with_seed(1);
        for peer in (0..100_000).step_by(77) {
            let IpAddr::V4(address) = group.sources.address(group.source_of(peer)) else {
                panic!()
            };
            let mut compact = address.octets().to_vec();
            compact.extend(group.port_of(peer).to_be_bytes());
            assert_eq!(group.find(&compact), Some(peer));
            let other = group.draw_of_source(&mut rng, group.source_of(peer));
            assert_eq!(group.source_of(other), group.source_of(peer));
        }
        assert_eq!(group.find(&[127, 1, 0, 0, 4, 0]), None);
        assert_eq!(group.find(&[127, 1, 0, 101, 4, 0]), None);
        assert_eq!(group.find(&[127, 1, 0, 1, 255, 255]), None);
        let sources = SourceAddresses { count: 1, ..group.sources };
        assert!(Population::new(1, Shape::Public, &[(sources, 70_000)], 0.0).is_err());
    }

    #[test]
    fn peers_start_then_complete_and_stop() {
        let mut population = population(1, Shape::Public, 4);
        let (mut rng, mut seen) = (Rng::with_seed(7), [0; 4]);
        let mut is_present = false;
        for number in 1..10_000 {
            let step = population.advance_peer(&mut rng, 0, 1);
            seen[step.event as usize] += 1;
            assert_eq!(
                step.event == LoadEvent::Started,
                !is_present,
                "an absent peer starts, and no other"
            );
            is_present = step.event != LoadEvent::Stopped;
            if !is_present {
                population.record_confirmed_stop(0, 1, number);
            }
            assert_eq!(population.groups[0].had_stopped(1, number), !is_present);
        }
        assert!(seen.iter().all(|seen| *seen > 100), "{seen:?}");
    }
}
