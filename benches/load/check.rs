//! Whether an answer can be true.

use crate::flight::{Kind, Request};
use crate::population::{Group, Population};
use crate::protocol::Reply;

/// Looks at the content of a reply to a request that was the `number`th to leave; what is wrong with it
///
/// Counts are compared with the whole population, since requests may be on their way or lost: they can only
/// be too high.
pub(crate) fn check(
    population: &Population,
    request: &Request,
    number: u64,
    reply: &Reply<'_>,
    alone: bool,
) -> Result<(), &'static str> {
    match (request.kind, reply) {
        (Kind::Connect, Reply::Connect { .. }) => Ok(()),
        (
            Kind::Announce { stopped },
            Reply::Announce { interval, leechers, seeders, peers, others },
        ) => {
            if !(1..=86_400).contains(interval) {
                return Err("interval");
            }
            if stopped && !(peers.is_empty() && others.is_empty()) {
                // Harmless to clients, but a waste.
                return Ok(());
            }
            let listed = Listed { population, request, number, alone };
            let counted = u64::from(*leechers) + u64::from(*seeders);
            listed.check(peers, others, counted)
        }
        (Kind::Scrape, Reply::Scrape { rows }) => {
            if rows.len() != usize::from(request.wanted) {
                return Err("scrape rows");
            }
            for (torrent, row) in (request.subject..).zip(*rows) {
                let [seeders, _, leechers] = words(row);
                let torrent = torrent % population.torrents();
                let most = population.peers_in(torrent);
                if alone && seeders.saturating_add(leechers) > most {
                    return Err("scrape counts");
                }
            }
            Ok(())
        }
        (_, Reply::Error) => Err("error"),
        (_, Reply::Unreadable) => Ok(()),
        _ => Err("action"),
    }
}

/// A list of peers in the reply to an announce
struct Listed<'a> {
    population: &'a Population,
    request: &'a Request,
    number: u64,
    alone: bool,
}

impl Listed<'_> {
    fn check(&self, peers: &[u8], others: &[u8], counted: u64) -> Result<(), &'static str> {
        let own = usize::from(self.request.group);
        let group = &self.population.groups[own];
        let own_len = group.compact_len();
        let other_len = if own_len == 6 { 18 } else { 6 };
        if !(peers.len().is_multiple_of(own_len) && others.len().is_multiple_of(other_len)) {
            return Err("family");
        }
        let count = peers.len() / own_len + others.len() / other_len;
        if count > usize::from(self.request.wanted) {
            return Err("more peers than wanted");
        }
        if counted < count as u64 {
            return Err("counts below peers listed");
        }
        let subject = self.request.subject;
        let torrent = group.torrent_of(subject);
        if self.alone && counted > u64::from(self.population.peers_in(torrent)) {
            return Err("counts above population");
        }
        self.check_peers(group, torrent, peers, Some(subject))?;
        match self.population.groups.get(1 - own) {
            Some(group) => self.check_peers(group, torrent, others, None),
            None if self.alone && !others.is_empty() => Err("peer that does not exist"),
            None => Ok(()),
        }
    }

    /// Looks at the peers of one family, of which one may be who asks
    fn check_peers(
        &self,
        group: &Group,
        torrent: u32,
        peers: &[u8],
        asking: Option<u32>,
    ) -> Result<(), &'static str> {
        let mut seen = [u32::MAX; 256];
        for (peer, seen_at) in peers.chunks_exact(group.compact_len()).zip(0..) {
            match group.find(peer) {
                Some(peer) if asking == Some(peer) => return Err("own address"),
                Some(peer) if group.torrent_of(peer) != torrent => {
                    return Err("peer of another torrent");
                }
                Some(peer) if group.was_gone(peer, self.number) => {
                    return Err("peer that has left");
                }
                Some(peer) if seen[..seen_at.min(256)].contains(&peer) => return Err("peer twice"),
                Some(peer) => {
                    if let Some(seen) = seen.get_mut(seen_at) {
                        *seen = peer;
                    }
                }
                None if self.alone => return Err("peer that does not exist"),
                None => {}
            }
        }
        Ok(())
    }
}

fn words(row: &[u8; 12]) -> [u32; 3] {
    let (words, _) = row.as_chunks();
    std::array::from_fn(|at| u32::from_be_bytes(words[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::population::{Shape, Sources};
    use crate::protocol::Event;
    use fastrand::Rng;
    use std::net::IpAddr;

    /// 10 peers of one torrent at 127.1.0.1 to 127.1.0.10, port 1024, and 10 of another behind them
    fn population() -> Population {
        let sources = Sources { first: IpAddr::from([127, 1, 0, 1]), count: 20, many: true };
        Population::new(2, Shape::Zipf(0.0), &[(sources, 20)], 1.0).unwrap()
    }

    fn compact(peer: u8) -> [u8; 6] {
        [127, 1, 0, peer + 1, 4, 0]
    }

    fn announce(population: &Population, counted: u32, peers: &[u8]) -> Result<(), &'static str> {
        announce_of_both(population, counted, peers, &[])
    }

    fn announce_of_both(
        population: &Population,
        counted: u32,
        peers: &[u8],
        others: &[u8],
    ) -> Result<(), &'static str> {
        let kind = Kind::Announce { stopped: false };
        let request = Request { kind, wanted: 3, subject: 0, ..Request::default() };
        let reply = Reply::Announce { interval: 60, leechers: counted, seeders: 0, peers, others };
        check(population, &request, 5, &reply, true)
    }

    #[test]
    fn each_kind_of_wrong_announce_is_found() {
        let mut population = population();
        let list = |peers: &[u8]| peers.iter().flat_map(|peer| compact(*peer)).collect::<Vec<u8>>();
        assert_eq!(announce(&population, 10, &list(&[1, 2, 9])), Ok(()));
        assert_eq!(announce(&population, 10, &list(&[1])[..5]), Err("family"));
        assert_eq!(announce(&population, 10, &list(&[1, 2, 3, 4])), Err("more peers than wanted"));
        assert_eq!(announce(&population, 1, &list(&[1, 2])), Err("counts below peers listed"));
        assert_eq!(announce(&population, 11, &list(&[1])), Err("counts above population"));
        assert_eq!(announce(&population, 10, &list(&[1, 0])), Err("own address"));
        assert_eq!(announce(&population, 10, &list(&[1, 10])), Err("peer of another torrent"));
        assert_eq!(announce(&population, 10, &list(&[1, 1])), Err("peer twice"));
        assert_eq!(announce(&population, 10, &list(&[99])), Err("peer that does not exist"));
        let others = |others| announce_of_both(&population, 10, &list(&[1, 2]), others);
        assert_eq!(others(&[7; 18]), Err("peer that does not exist"));
        assert_eq!(others(&[7; 17]), Err("family"));
        assert_eq!(others(&[7; 36]), Err("more peers than wanted"));
        let mut rng = Rng::with_seed(1);
        while population.step(&mut rng, 0, 1).event != Event::Stopped {}
        population.confirm_gone(0, 1, 4);
        assert_eq!(announce(&population, 10, &list(&[1])), Err("peer that has left"));
    }

    #[test]
    fn scrapes_and_actions_are_looked_at() {
        let population = population();
        let scrape = Request { kind: Kind::Scrape, wanted: 2, subject: 1, ..Request::default() };
        let row = |seeders: u8| [0, 0, 0, seeders, 0, 0, 0, 9, 0, 0, 0, 2];
        let of = |rows: &[[u8; 12]]| check(&population, &scrape, 0, &Reply::Scrape { rows }, true);
        assert_eq!(of(&[row(8), row(0)]), Ok(()));
        assert_eq!(of(&[row(8)]), Err("scrape rows"));
        assert_eq!(of(&[row(8), row(9)]), Err("scrape counts"));
        assert_eq!(check(&population, &scrape, 0, &Reply::Error, true), Err("error"));
        let connect = Reply::Connect { connection_id: 1 };
        assert_eq!(check(&population, &scrape, 0, &connect, true), Err("action"));
    }
}
