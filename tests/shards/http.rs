//! HTTP requests in the simulation of several shards: the calls that a connection makes to its shard.

use super::{ShardSimulation, TORRENTS, hash_of, peer_of, peers_of};
use std::net::SocketAddr;
use tokio::sync::oneshot::Receiver;
use tsubame::policy::Parameters;
use tsubame::shard::node::NodeReply;
use tsubame::tracker::peer_list::PeerList;
use tsubame_http::query;
use tsubame_storage::SwarmStats;

/// Number of seconds after which a pending request is cancelled.
const HTTP_TIMEOUT_SECS: u64 = 1;

/// A request that waits for the reply of another shard.
pub(crate) enum PendingOverHttp {
    Announce(SocketAddr, usize, Receiver<Box<PeerList>>),
    Scrape(Vec<(usize, usize)>, Receiver<Vec<SwarmStats>>),
}

impl ShardSimulation {
    pub(crate) fn request_over_http(&mut self) {
        let shard = self.rng.usize(..self.shards.len());
        // The thread of a stalled shard serves no connections.
        if self.shards[shard].stalled_until > self.ticks {
            return;
        }
        let deadline = self.now() + HTTP_TIMEOUT_SECS;
        if self.rng.bool() {
            let mut rows = self.rows(10);
            rows.sort_unstable();
            rows.dedup_by_key(|(torrent, _)| *torrent);
            let hashes: Vec<_> = rows.iter().map(|(torrent, _)| hash_of(*torrent)).collect();
            let reply = self.shards[shard].shard.node_mut().scrape(&hashes);
            match reply {
                NodeReply::Ready(counts) => self.scraped_over_http(&rows, &counts),
                NodeReply::QueueFull => self.shed_over_http += 1,
                NodeReply::Pending(request_id, receiver) => {
                    let waiting = PendingOverHttp::Scrape(rows, receiver);
                    self.over_http.insert((shard, request_id), (deadline, waiting));
                }
            }
            return;
        }
        let torrent = self.rng.usize(1..TORRENTS);
        let peer = peer_of(torrent, self.rng.usize(..peers_of(torrent)));
        let hash: String = hash_of(torrent).0.iter().map(|byte| format!("%{byte:02x}")).collect();
        let query = format!("info_hash={hash}&peer_id=-TT0001-abcdefghijkl&port={}", peer.port());
        let query = query::AnnounceQuery::parse(&format!("{query}&left=0")).unwrap();
        self.swarms[torrent].announced.insert(peer);
        let node = &self.shards[shard].shard;
        let parameters = Parameters { key: None, query: "" };
        let announce = node.node_mut().admit_announce(peer.ip(), &query, parameters, None).unwrap();
        let reply = node.node_mut().announce(&announce, Box::default());
        match reply {
            NodeReply::Ready(list) => self.announced_over_http(peer, torrent, &list),
            NodeReply::QueueFull => self.shed_over_http += 1,
            NodeReply::Pending(request_id, receiver) => {
                let waiting = PendingOverHttp::Announce(peer, torrent, receiver);
                self.over_http.insert((shard, request_id), (deadline, waiting));
            }
        }
    }

    pub(crate) fn poll_http_requests(&mut self) {
        let now = self.now();
        for ((shard, request_id), (deadline, mut waiting)) in std::mem::take(&mut self.over_http) {
            let answered = match &mut waiting {
                PendingOverHttp::Announce(peer, torrent, receiver) => receiver
                    .try_recv()
                    .map(|list| self.announced_over_http(*peer, *torrent, &list))
                    .is_ok(),
                PendingOverHttp::Scrape(rows, receiver) => receiver
                    .try_recv()
                    .map(|counts| self.scraped_over_http(&std::mem::take(rows), &counts))
                    .is_ok(),
            };
            if answered {
            } else if now > deadline && self.shards[shard].stalled_until <= self.ticks {
                self.shards[shard].shard.node_mut().cancel(request_id);
                self.late_over_http += 1;
            } else {
                self.over_http.insert((shard, request_id), (deadline, waiting));
            }
        }
    }

    fn announced_over_http(&mut self, peer: SocketAddr, torrent: usize, list: &PeerList) {
        self.answered_over_http += 1;
        self.check_count(torrent, 0, list.counts.seeders + list.counts.leechers);
        self.swarms[torrent].confirmed.insert(peer);
    }

    fn scraped_over_http(&mut self, rows: &[(usize, usize)], counts: &[SwarmStats]) {
        self.answered_over_http += 1;
        assert_eq!(rows.len(), counts.len());
        for ((torrent, at_least), SwarmStats { counts, .. }) in rows.iter().zip(counts) {
            self.check_count(*torrent, *at_least, counts.seeders + counts.leechers);
        }
    }
}
