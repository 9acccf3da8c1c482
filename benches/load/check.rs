//! Checks of the content of replies.

use crate::in_flight::{RequestKind, SentRequest};
use crate::population::{PeerGroup, Population};
use crate::protocol::TrackerReply;

/// Checks the content of the reply to the request with this number in the order of sending.
///
/// Counts above the peers that the population has of the torrent are wrong, and so are counts below the number of peers
/// listed. Other low counts are not: requests may be unanswered or lost. With `is_exclusive`, only this generator uses
/// the tracker; otherwise it may return peers of others.
///
/// # Errors
///
/// Returns the problem of a wrong reply.
pub(crate) fn check(
    population: &Population,
    request: &SentRequest,
    number: u64,
    reply: &TrackerReply<'_>,
    is_exclusive: bool,
) -> Result<(), &'static str> {
    match (request.kind, reply) {
        (RequestKind::Connect, TrackerReply::Connect { .. }) => Ok(()),
        (
            RequestKind::Announce { stopped },
            TrackerReply::Announce { interval, leechers, seeders, peers, other_family },
        ) => {
            if !(1..=86_400).contains(interval) {
                return Err("interval");
            }
            if stopped && !(peers.is_empty() && other_family.is_empty()) {
                // Peers in a reply to a stopped event are useless, but not wrong.
                return Ok(());
            }
            let peer_list = PeerListCheck { population, request, number, is_exclusive };
            let counted = u64::from(*leechers) + u64::from(*seeders);
            peer_list.check(peers, other_family, counted)
        }
        (RequestKind::Scrape, TrackerReply::Scrape { rows }) => {
            if rows.len() != usize::from(request.wanted) {
                return Err("scrape rows");
            }
            for (torrent, row) in (request.subject..).zip(*rows) {
                let [seeders, _, leechers] = row_counts(row);
                let torrent = torrent % population.torrents();
                let peers_max = population.peers_in(torrent);
                if is_exclusive && seeders.saturating_add(leechers) > peers_max {
                    return Err("scrape counts");
                }
            }
            Ok(())
        }
        (_, TrackerReply::Error) => Err("error"),
        (_, TrackerReply::Unreadable) => Ok(()),
        _ => Err("action"),
    }
}

/// The peers of a reply to an announce, and what they are compared with.
struct PeerListCheck<'a> {
    population: &'a Population,
    request: &'a SentRequest,
    number: u64,
    is_exclusive: bool,
}

impl PeerListCheck<'_> {
    fn check(&self, peers: &[u8], other_family: &[u8], counted: u64) -> Result<(), &'static str> {
        let own_group = usize::from(self.request.group);
        let group = &self.population.groups[own_group];
        let own_len = group.compact_len();
        let other_len = if own_len == 6 { 18 } else { 6 };
        if !(peers.len().is_multiple_of(own_len) && other_family.len().is_multiple_of(other_len)) {
            return Err("family");
        }
        let count = peers.len() / own_len + other_family.len() / other_len;
        if count > usize::from(self.request.wanted) {
            return Err("more peers than wanted");
        }
        if counted < count as u64 {
            return Err("counts below peers listed");
        }
        let subject = self.request.subject;
        let torrent = group.torrent_of(subject);
        if self.is_exclusive && counted > u64::from(self.population.peers_in(torrent)) {
            return Err("counts above population");
        }
        self.check_peers(group, torrent, peers, Some(subject))?;
        match self.population.groups.get(1 - own_group) {
            Some(group) => self.check_peers(group, torrent, other_family, None),
            None if self.is_exclusive && !other_family.is_empty() => {
                Err("peer that does not exist")
            }
            None => Ok(()),
        }
    }

    /// Checks the peers of one address family, which must not include the requester.
    fn check_peers(
        &self,
        group: &PeerGroup,
        torrent: u32,
        peers: &[u8],
        requester: Option<u32>,
    ) -> Result<(), &'static str> {
        let mut seen = [u32::MAX; 256];
        for (peer, seen_at) in peers.chunks_exact(group.compact_len()).zip(0..) {
            match group.find(peer) {
                Some(peer) if requester == Some(peer) => return Err("own address"),
                Some(peer) if group.torrent_of(peer) != torrent => {
                    return Err("peer of another torrent");
                }
                Some(peer) if group.had_stopped(peer, self.number) => {
                    return Err("peer that has left");
                }
                Some(peer) if seen[..seen_at.min(256)].contains(&peer) => return Err("peer twice"),
                Some(peer) => {
                    if let Some(seen) = seen.get_mut(seen_at) {
                        *seen = peer;
                    }
                }
                None if self.is_exclusive => return Err("peer that does not exist"),
                None => {}
            }
        }
        Ok(())
    }
}

/// Returns the seeders, completed downloads and leechers of a row.
fn row_counts(row: &[u8; 12]) -> [u32; 3] {
    let (fields, _) = row.as_chunks();
    std::array::from_fn(|at| u32::from_be_bytes(fields[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::population::{Shape, SourceAddresses};
    use crate::protocol::LoadEvent;
    use fastrand::Rng;
    use std::net::IpAddr;

    /// Returns 10 peers of one torrent at 127.1.0.1 to 127.1.0.10, port 1024, and 10 peers of another at the next
    /// addresses.
    fn population() -> Population {
        let sources = SourceAddresses {
            first: IpAddr::from([127, 1, 0, 1]),
            count: 20,
            sets_source_address: true,
        };
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
        other_family: &[u8],
    ) -> Result<(), &'static str> {
        let kind = RequestKind::Announce { stopped: false };
        let request = SentRequest { kind, wanted: 3, subject: 0, ..SentRequest::default() };
        let reply = TrackerReply::Announce {
            interval: 60,
            leechers: counted,
            seeders: 0,
            peers,
            other_family,
        };
        check(population, &request, 5, &reply, true)
    }

    #[test]
    fn each_problem_of_an_announce_reply_is_found() {
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
        let other_family =
            |other_family| announce_of_both(&population, 10, &list(&[1, 2]), other_family);
        assert_eq!(other_family(&[7; 18]), Err("peer that does not exist"));
        assert_eq!(other_family(&[7; 17]), Err("family"));
        assert_eq!(other_family(&[7; 36]), Err("more peers than wanted"));
        let mut rng = Rng::with_seed(1);
        while population.advance_peer(&mut rng, 0, 1).event != LoadEvent::Stopped {}
        population.record_confirmed_stop(0, 1, 4);
        assert_eq!(announce(&population, 10, &list(&[1])), Err("peer that has left"));
    }

    #[test]
    fn scrape_replies_and_actions_are_checked() {
        let population = population();
        let scrape = SentRequest {
            kind: RequestKind::Scrape,
            wanted: 2,
            subject: 1,
            ..SentRequest::default()
        };
        let row = |seeders: u8| [0, 0, 0, seeders, 0, 0, 0, 9, 0, 0, 0, 2];
        let of = |rows: &[[u8; 12]]| {
            check(&population, &scrape, 0, &TrackerReply::Scrape { rows }, true)
        };
        assert_eq!(of(&[row(8), row(0)]), Ok(()));
        assert_eq!(of(&[row(8)]), Err("scrape rows"));
        assert_eq!(of(&[row(8), row(9)]), Err("scrape counts"));
        assert_eq!(check(&population, &scrape, 0, &TrackerReply::Error, true), Err("error"));
        let connect = TrackerReply::Connect { connection_id: 1 };
        assert_eq!(check(&population, &scrape, 0, &connect, true), Err("action"));
    }
}
