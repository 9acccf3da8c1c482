//! Requests over HTTP in the simulation of several shards: what a connection has a shard do, without the connection.

use super::{TORRENTS, World, hash_of, peer_of, peers_of};
use std::net::SocketAddr;
use tokio::sync::oneshot::Receiver;
use tsubame::peer_list::PeerList;
use tsubame::policy::Parameters;
use tsubame::shard::Asked;
use tsubame_http::query;
use tsubame_storage::SwarmStats;

/// Seconds until a request over HTTP is given up
const HTTP_PATIENCE: u64 = 1;

/// A request that waits for another shard
pub(crate) enum OverHttp {
    Announce(SocketAddr, usize, Receiver<Box<PeerList>>),
    Scrape(Vec<(usize, usize)>, Receiver<Vec<SwarmStats>>),
}

impl World {
    pub(crate) fn ask_over_http(&mut self) {
        let shard = self.rng.usize(..self.nodes.len());
        // A thread that stalls serves nothing.
        if self.nodes[shard].stalled_until > self.ticks {
            return;
        }
        let deadline = self.now() + HTTP_PATIENCE;
        if self.rng.bool() {
            let mut rows = self.rows(10);
            rows.sort_unstable();
            rows.dedup_by_key(|(torrent, _)| *torrent);
            let hashes: Vec<_> = rows.iter().map(|(torrent, _)| hash_of(*torrent)).collect();
            match self.nodes[shard].shard.scrape(&hashes) {
                Asked::Answered(counts) => self.scraped_over_http(&rows, &counts),
                Asked::Shed => self.shed_over_http += 1,
                Asked::Waits(ticket, receiver) => {
                    let waiting = OverHttp::Scrape(rows, receiver);
                    self.over_http.insert((shard, ticket), (deadline, waiting));
                }
            }
            return;
        }
        let torrent = self.rng.usize(1..TORRENTS);
        let peer = peer_of(torrent, self.rng.usize(..peers_of(torrent)));
        let hash: String = hash_of(torrent).0.iter().map(|byte| format!("%{byte:02x}")).collect();
        let query = format!("info_hash={hash}&peer_id=-TT0001-abcdefghijkl&port={}", peer.port());
        let query = query::Announce::parse(&format!("{query}&left=0")).unwrap();
        self.swarms[torrent].asked.insert(peer);
        let shard_of = &mut self.nodes[shard].shard;
        let parameters = Parameters { key: None, query: "" };
        let announce = shard_of.admit_query(peer.ip(), &query, parameters, None).unwrap();
        match shard_of.enter(&announce, Box::default()) {
            Asked::Answered(list) => self.announced_over_http(peer, torrent, &list),
            Asked::Shed => self.shed_over_http += 1,
            Asked::Waits(ticket, receiver) => {
                let waiting = OverHttp::Announce(peer, torrent, receiver);
                self.over_http.insert((shard, ticket), (deadline, waiting));
            }
        }
    }

    pub(crate) fn look_after_http(&mut self) {
        let now = self.now();
        for ((shard, ticket), (deadline, mut waiting)) in std::mem::take(&mut self.over_http) {
            let answered = match &mut waiting {
                OverHttp::Announce(peer, torrent, receiver) => receiver
                    .try_recv()
                    .map(|list| self.announced_over_http(*peer, *torrent, &list))
                    .is_ok(),
                OverHttp::Scrape(rows, receiver) => receiver
                    .try_recv()
                    .map(|counts| self.scraped_over_http(&std::mem::take(rows), &counts))
                    .is_ok(),
            };
            if answered {
            } else if now > deadline && self.nodes[shard].stalled_until <= self.ticks {
                self.nodes[shard].shard.forget(ticket);
                self.late_over_http += 1;
            } else {
                self.over_http.insert((shard, ticket), (deadline, waiting));
            }
        }
    }

    fn announced_over_http(&mut self, peer: SocketAddr, torrent: usize, list: &PeerList) {
        self.answered_over_http += 1;
        self.check_count(torrent, 0, list.counts.seeders + list.counts.leechers);
        self.swarms[torrent].joined.insert(peer);
    }

    fn scraped_over_http(&mut self, rows: &[(usize, usize)], counts: &[SwarmStats]) {
        self.answered_over_http += 1;
        assert_eq!(rows.len(), counts.len());
        for ((torrent, at_least), SwarmStats { counts, .. }) in rows.iter().zip(counts) {
            self.check_count(*torrent, *at_least, counts.seeders + counts.leechers);
        }
    }
}
