//! Who announces what: torrents by popularity, peers with addresses of their own, and what each is up to.

use fastrand::Rng;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tsubame_bench::{info_hash_of, peers_of};

use crate::protocol::Event;

/// Ports a client may listen on
const PORT_FIRST: u16 = 1_024;
const PORTS: u32 = u16::MAX as u32 - PORT_FIRST as u32 + 1;

/// Bytes a leecher lacks
const LEFT: u64 = 700 << 20;

/// How peers spread over torrents
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// The share of the torrent of rank r falls with r to this power
    Zipf(f64),
    /// A public tracker's: 60 % of torrents with 1 peer, 20 % 2, 10 % 3, 5 % 5, 4 % 10, 1 % 50
    Public,
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is neither \"public\" nor \"zipf:EXPONENT\" (0 to 3), as zipf:0.8")
        };
        if text == "public" {
            return Ok(Self::Public);
        }
        let exponent: f64 =
            text.strip_prefix("zipf:").and_then(|e| e.parse().ok()).ok_or_else(wrong)?;
        if (0.0..=3.0).contains(&exponent) { Ok(Self::Zipf(exponent)) } else { Err(wrong()) }
    }
}

/// Addresses that clients have, one behind the other
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sources {
    pub(crate) first: IpAddr,
    pub(crate) count: u32,
    /// Whether the socket must be told which one a request leaves from
    pub(crate) many: bool,
}

impl Sources {
    pub(crate) fn address(&self, index: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(index)).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) + u128::from(index)).into(),
        }
    }

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

/// What a peer is up to
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Leecher,
    Seeder,
}

/// The peers of one address family
pub(crate) struct Group {
    pub(crate) sources: Sources,
    torrent_of: Vec<u32>,
    states: Vec<State>,
    /// By peer: how many requests had left when the tracker confirmed that it is gone; 0 while it is there
    gone: Vec<u32>,
}

/// All peers, and how many a torrent can have
pub(crate) struct Population {
    pub(crate) groups: Vec<Group>,
    peers_in: Vec<u32>,
    churn: f64,
}

/// What the next announce of a peer says
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) event: Event,
    pub(crate) left: u64,
}

impl Population {
    /// Torrents of this shape with so many peers for each group; `churn` is the share of announces by which
    /// a peer completes or leaves
    pub(crate) fn new(
        torrents: u32,
        shape: Shape,
        groups: &[(Sources, u32)],
        churn: f64,
    ) -> Result<Self, String> {
        let mut peers_in = vec![0; torrents as usize];
        let shares = shares(torrents, shape);
        let mut built = Vec::new();
        for (sources, peers) in groups {
            let room = u64::from(sources.count) * u64::from(PORTS);
            if u64::from(*peers) > room {
                return Err(format!(
                    "{peers} peers need more than {} addresses ({room} peers at most); give more with \
                     --sources, or fewer peers",
                    sources.count
                ));
            }
            let torrent_of = spread(&shares, *peers);
            torrent_of.iter().for_each(|torrent| peers_in[*torrent as usize] += 1);
            let (states, gone) = (vec![State::Absent; torrent_of.len()], vec![0; torrent_of.len()]);
            built.push(Group { sources: *sources, torrent_of, states, gone });
        }
        Ok(Self { groups: built, peers_in, churn })
    }

    pub(crate) fn torrents(&self) -> u32 {
        self.peers_in.len() as u32
    }

    pub(crate) fn peers(&self) -> u32 {
        self.groups.iter().map(Group::peers).sum()
    }

    /// Peers that a torrent can have, of both families
    pub(crate) fn peers_in(&self, torrent: u32) -> u32 {
        self.peers_in.get(torrent as usize).copied().unwrap_or(0)
    }

    /// Lets a peer take its next step
    pub(crate) fn step(&mut self, rng: &mut Rng, group: usize, peer: u32) -> Step {
        let churn = self.churn;
        let group = &mut self.groups[group];
        let state = &mut group.states[peer as usize];
        let draw = rng.f64();
        let event = match *state {
            State::Absent => Event::Started,
            State::Leecher if draw < churn / 2.0 => Event::Completed,
            _ if draw < churn => Event::Stopped,
            _ => Event::None,
        };
        *state = match (event, *state) {
            (Event::Started, _) if is_seeder(peer) => State::Seeder,
            (Event::Started, _) => State::Leecher,
            (Event::Completed, _) => State::Seeder,
            (Event::Stopped, _) => State::Absent,
            (Event::None, state) => state,
        };
        if event == Event::Started {
            group.gone[peer as usize] = 0;
        }
        // Who stops does not say any more what it was.
        let left = if *state == State::Seeder { 0 } else { LEFT };
        Step { event, left }
    }

    /// Lets a peer begin, whatever it was up to
    pub(crate) fn enter(&mut self, group: usize, peer: u32) -> Step {
        let group = &mut self.groups[group];
        group.gone[peer as usize] = 0;
        let seeds = is_seeder(peer);
        group.states[peer as usize] = if seeds { State::Seeder } else { State::Leecher };
        Step { event: Event::Started, left: if seeds { 0 } else { LEFT } }
    }

    /// Notes that the tracker has confirmed that a peer is gone, when so many requests had left
    pub(crate) fn confirm_gone(&mut self, group: usize, peer: u32, departed: u64) {
        let group = &mut self.groups[group];
        if group.states[peer as usize] == State::Absent {
            group.gone[peer as usize] = departed as u32;
        }
    }
}

impl Group {
    pub(crate) fn peers(&self) -> u32 {
        self.torrent_of.len() as u32
    }

    /// Addresses that have a peer: a small population does not need all
    pub(crate) fn sources_in_use(&self) -> u32 {
        self.sources.count.min(self.peers())
    }

    /// Bytes of a peer in a reply
    pub(crate) fn compact_len(&self) -> usize {
        if self.sources.first.is_ipv4() { 6 } else { 18 }
    }

    pub(crate) fn torrent_of(&self, peer: u32) -> u32 {
        self.torrent_of[peer as usize]
    }

    pub(crate) fn source_of(&self, peer: u32) -> u32 {
        peer % self.sources.count
    }

    pub(crate) fn port_of(&self, peer: u32) -> u16 {
        PORT_FIRST + (peer / self.sources.count) as u16
    }

    /// A random peer of a source that is in use
    pub(crate) fn draw_of_source(&self, rng: &mut Rng, source: u32) -> u32 {
        let peers = (self.peers() - source).div_ceil(self.sources.count);
        source + self.sources.count * rng.u32(..peers)
    }

    /// The peer with this endpoint in compact form, if the population has it
    pub(crate) fn find(&self, compact: &[u8]) -> Option<u32> {
        let (address, port) = compact.split_last_chunk::<2>()?;
        let offset = u16::from_be_bytes(*port).checked_sub(PORT_FIRST)?;
        let source = self.sources.index(address)?;
        let peer = u64::from(offset) * u64::from(self.sources.count) + u64::from(source);
        u32::try_from(peer).ok().filter(|peer| *peer < self.peers())
    }

    /// Whether the tracker knew that a peer is gone before the request with this number left
    pub(crate) fn was_gone(&self, peer: u32, number: u64) -> bool {
        let gone = self.gone[peer as usize];
        gone != 0 && gone <= number as u32
    }
}

/// The info hash of a torrent
pub(crate) fn info_hash(torrent: u32) -> [u8; 20] {
    info_hash_of(torrent).0
}

/// One in four comes with the whole torrent
fn is_seeder(peer: u32) -> bool {
    peer.wrapping_mul(0x9e37_79b9) >> 30 == 0
}

/// What part of all peers each torrent has
fn shares(torrents: u32, shape: Shape) -> Vec<f64> {
    let weight = |torrent: u32| match shape {
        Shape::Zipf(exponent) => f64::from(torrent + 1).powf(-exponent),
        Shape::Public => f64::from(peers_of(torrent)),
    };
    let weights: Vec<f64> = (0..torrents).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Peers in the order of their torrents: as many for each as its share is, what is less than one carried on
fn spread(shares: &[f64], peers: u32) -> Vec<u32> {
    let mut torrent_of = Vec::with_capacity(peers as usize);
    let mut due = 0.0;
    for (torrent, share) in shares.iter().enumerate() {
        due += share * f64::from(peers);
        // A hair more, for shares that add up to just below a whole number.
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
        let sources = Sources { first: IpAddr::from([127, 1, 0, 1]), count: 100, many: true };
        Population::new(torrents, shape, &[(sources, peers)], 0.1).unwrap()
    }

    #[test]
    fn popularity_has_the_shape_asked_for() {
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
    fn endpoints_name_their_peers() {
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
        let sources = Sources { count: 1, ..group.sources };
        assert!(Population::new(1, Shape::Public, &[(sources, 70_000)], 0.0).is_err());
    }

    #[test]
    fn peers_come_complete_and_go() {
        let mut population = population(1, Shape::Public, 4);
        let (mut rng, mut seen) = (Rng::with_seed(7), [0; 4]);
        let mut there = false;
        for number in 1..10_000 {
            let step = population.step(&mut rng, 0, 1);
            seen[step.event as usize] += 1;
            assert_eq!(step.event == Event::Started, !there, "started, and only then");
            there = step.event != Event::Stopped;
            if !there {
                population.confirm_gone(0, 1, number);
            }
            assert_eq!(population.groups[0].was_gone(1, number), !there);
        }
        assert!(seen.iter().all(|seen| *seen > 100), "{seen:?}");
    }
}
