//! Requests to the shards about torrents, and the summary of all swarms that is made at intervals.

use super::monitored::Monitored;
use super::stream::{PartSender, ShardTimeout};
use crate::shard::admin::AdminRequest;
use crate::shard::message::Message;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Mutex, oneshot};
use tsubame_storage::{InfoHash, SwarmStats, SwarmSummary, TorrentDetails};
use tsubame_udp::steering::SteeringKeys;

/// Time that a shard may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a shard may take to scan its swarms, in small steps between batches of datagrams.
const SCAN_TIMEOUT: Duration = Duration::from_secs(120);

/// Number of torrents with the most peers that a summary lists.
pub const LARGEST_MAX: usize = 100;

/// Minimum age at which a summary is replaced when it is requested.
const SUMMARY_AGE_MIN_SECS: u64 = 10;

/// Pause between two summaries, as a multiple of the time that the last one took: scans take at most half a percent of
/// the time of the shards.
const PAUSE_FACTOR: u32 = 200;

/// Minimum pause between two summaries that are made without a request.
const PAUSE_MIN: Duration = Duration::from_secs(30);

/// Delay of the first summary after the start.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A message, and the number of the shard that it is for. The control plane passes it on.
pub type ShardRequest = (usize, Message);

/// Sends requests about torrents to the shards that own them.
#[derive(Debug)]
pub struct Torrents {
    requests: UnboundedSender<ShardRequest>,
    keys: SteeringKeys,
    distinct_key: (u64, u64),
    monitored: Monitored,
    /// Held while a summary is being made, so that several requests wait for one scan.
    scanning: Mutex<()>,
}

impl Torrents {
    /// Creates a sender. `distinct_key` is the secret key of the hash by which distinct peers are counted.
    pub fn new(
        requests: UnboundedSender<ShardRequest>,
        keys: SteeringKeys,
        distinct_key: (u64, u64),
        monitored: Monitored,
    ) -> Self {
        Self { requests, keys, distinct_key, monitored, scanning: Mutex::new(()) }
    }

    fn shards(&self) -> usize {
        self.monitored.shared_stats.len()
    }

    fn owner(&self, info_hash: &InfoHash) -> usize {
        // There are at most as many shards as fit 16 bits.
        self.keys.owner(info_hash, self.shards() as u16).into()
    }

    async fn request<T>(
        &self,
        shard: usize,
        request: impl FnOnce(oneshot::Sender<T>) -> AdminRequest,
    ) -> Result<T, ShardTimeout> {
        self.request_within(TIMEOUT, shard, request).await
    }

    async fn request_within<T>(
        &self,
        timeout: Duration,
        shard: usize,
        request: impl FnOnce(oneshot::Sender<T>) -> AdminRequest,
    ) -> Result<T, ShardTimeout> {
        let (reply, answer) = oneshot::channel();
        let request = Message::Admin(Box::new(request(reply)));
        self.requests.send((shard, request)).map_err(|_| ShardTimeout)?;
        let answer = tokio::time::timeout(timeout, answer).await;
        answer.map_err(|_| ShardTimeout)?.map_err(|_| ShardTimeout)
    }

    /// Returns a torrent with up to `peers_max` of its peers; `None` if it is unknown.
    pub async fn inspect(
        &self,
        info_hash: InfoHash,
        peers_max: usize,
    ) -> Result<Option<TorrentDetails>, ShardTimeout> {
        let request = |reply| AdminRequest::Inspect { info_hash, peers_max, reply };
        self.request(self.owner(&info_hash), request).await
    }

    /// Removes a torrent and its peers; returns whether it was known.
    pub async fn remove(&self, info_hash: InfoHash) -> Result<bool, ShardTimeout> {
        self.request(self.owner(&info_hash), |reply| AdminRequest::Remove { info_hash, reply })
            .await
    }

    /// Sends all torrents as text, page by page, shard by shard. A line is that of `line`.
    pub(super) async fn list(
        &self,
        sender: PartSender,
        line: impl Fn(&mut String, &InfoHash, &SwarmStats),
    ) {
        for shard in 0..self.shards() {
            let mut after = None;
            loop {
                let page =
                    self.request(shard, |reply| AdminRequest::ListPage { after, reply }).await;
                let (rows, more) = match page {
                    Ok(page) => page.sorted(),
                    Err(no_answer) => {
                        // The client may have gone, too.
                        let _ = sender.send(Err(no_answer)).await;
                        return;
                    }
                };
                let mut text = String::new();
                rows.iter().for_each(|(info_hash, stats)| line(&mut text, info_hash, stats));
                after = rows.last().map(|(info_hash, _)| *info_hash);
                if sender.send(Ok(text.into())).await.is_err() {
                    return;
                }
                if !more {
                    break;
                }
            }
        }
    }

    /// Makes a new summary of all swarms if the last one is older than 10 seconds. It does not count distinct peers, so
    /// that the last count stays.
    pub async fn refresh_summary(&self) -> Result<(), ShardTimeout> {
        let _scanning = self.scanning.lock().await;
        let now = self.monitored.clock.now().monotonic.0;
        let age = self.monitored.summary().map(|(at, _)| now.saturating_sub(at.0));
        match age {
            Some(age) if age < SUMMARY_AGE_MIN_SECS => Ok(()),
            _ => self.summarize(None).await,
        }
    }

    async fn summarize(&self, distinct_key: Option<(u64, u64)>) -> Result<(), ShardTimeout> {
        let mut sum = SwarmSummary::default();
        for shard in 0..self.shards() {
            let request =
                |reply| AdminRequest::Summarize { largest_count: LARGEST_MAX, distinct_key, reply };
            let summary = self.request_within(SCAN_TIMEOUT, shard, request).await?;
            sum.add(summary, LARGEST_MAX);
        }
        if sum.distinct.is_none()
            && let Some((_, last)) = self.monitored.summary()
        {
            sum.distinct.clone_from(&last.distinct);
        }
        self.monitored.set_summary(self.monitored.clock.now().monotonic, sum);
        Ok(())
    }

    /// Makes summaries at intervals, forever.
    pub async fn summarize_at_intervals(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            let _scanning = self.scanning.lock().await;
            let start = self.monitored.clock.elapsed();
            pause = match self.summarize(Some(self.distinct_key)).await {
                Ok(()) => {
                    let duration = self.monitored.clock.elapsed().saturating_sub(start);
                    (duration * PAUSE_FACTOR).max(PAUSE_MIN)
                }
                Err(error) => {
                    tracing::warn!("control: the swarms cannot be scanned: {error}");
                    PAUSE_MIN
                }
            };
        }
    }
}
