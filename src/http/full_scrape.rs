//! The list of all torrents: `/scrape` without an info hash, for networks that may have it.
//!
//! It is made page by page while it is sent, so that no shard stalls and no more than a page of each shard is in
//! memory, however slowly it is taken. Compression is work of the helper threads.

use super::{Service, source_key};
use crate::mesh::Listed;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tsubame_http::head::Accepts;
use tsubame_http::reply;
use tsubame_storage::{InfoHash, Seconds};

/// How long shards may take for a page
const PAGE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a list may take in all: a client that takes it slowly keeps others from having one
pub(super) const LIST_PATIENCE: Duration = Duration::from_secs(600);

/// Between two looks for room on the ways to other shards
const RETRY: Duration = Duration::from_millis(5);

/// Addresses that are remembered; beyond, the one that has had a list first is forgotten
const REMEMBERED: usize = 4_096;

/// Speed over size: operators fetch it often, from near
const ZSTD_LEVEL: i32 = 1;

/// Who has had the list when: one for the whole process
#[derive(Debug, Default)]
pub struct FullScrapes(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    running: bool,
    last: HashMap<IpAddr, Seconds>,
}

impl FullScrapes {
    /// Permits one to an address that has not had any for so long, if nobody is having one
    pub(super) fn begin(
        self: &Arc<Self>,
        address: IpAddr,
        now: Seconds,
        interval_secs: u64,
    ) -> Option<Permit> {
        let address = source_key(address);
        let mut recent = self.recent();
        let too_soon = |last: &Seconds| last.0 + interval_secs > now.0;
        if recent.running || recent.last.get(&address).is_some_and(too_soon) {
            return None;
        }
        recent.last.retain(|_, last| too_soon(last));
        if recent.last.len() >= REMEMBERED {
            let first = recent.last.iter().min_by_key(|(_, last)| last.0);
            if let Some(first) = first.map(|(address, _)| *address) {
                recent.last.remove(&first);
            }
        }
        recent.last.insert(address, now);
        recent.running = true;
        Some(Permit { scrapes: self.clone(), address })
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to be sent a list; others may have one when it is dropped
#[derive(Debug)]
pub(super) struct Permit {
    scrapes: Arc<FullScrapes>,
    address: IpAddr,
}

impl Permit {
    /// The list could not be made: who asked for it may ask again
    fn forgive(&self) {
        self.scrapes.recent().last.remove(&self.address);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.scrapes.recent().running = false;
    }
}

/// How a list is compressed
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Zstd,
}

impl Coding {
    pub(super) fn choose(accepts: Accepts) -> Self {
        match accepts {
            Accepts { zstd: true, .. } => Self::Zstd,
            Accepts { gzip: true, .. } => Self::Gzip,
            Accepts { .. } => Self::Identity,
        }
    }

    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// What compresses, between two parts
enum Encoder {
    Identity,
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Identity => Self::Identity,
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::fast())),
            Coding::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
        })
    }

    /// Compresses a part; what comes of it may be nothing yet
    fn part(&mut self, text: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity => Ok(text),
            Self::Gzip(encoder) => {
                encoder.write_all(&text)?;
                Ok(std::mem::take(encoder.get_mut()))
            }
            Self::Zstd(encoder) => {
                encoder.write_all(&text)?;
                Ok(std::mem::take(encoder.get_mut()))
            }
        }
    }

    fn end(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity => Ok(Vec::new()),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// A list on its way
pub(super) struct Listing {
    encoder: Option<Encoder>,
    helpers: Handle,
    after: Option<InfoHash>,
    begun: bool,
    /// Until the last page is made
    permit: Option<Permit>,
}

/// It cannot go on: a shard is late, or the helpers are gone
#[derive(Debug)]
pub(super) struct Interrupted;

impl Listing {
    pub(super) fn new(
        permit: Permit,
        coding: Coding,
        helpers: Handle,
    ) -> Result<Self, Interrupted> {
        let encoder = Some(Encoder::new(coding).map_err(|_| Interrupted)?);
        Ok(Self { encoder, helpers, after: None, begun: false, permit: Some(permit) })
    }

    /// The next part, which is not empty; `None` after the last
    pub(super) async fn next(&mut self, service: &Service) -> Result<Option<Vec<u8>>, Interrupted> {
        while self.permit.is_some() {
            let part = self.part(service).await;
            if part.is_err()
                && let Some(permit) = self.permit.take()
            {
                permit.forgive();
            }
            let part = part?;
            if !part.is_empty() {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// Asks for a page of each shard, and has helpers make a part of the list of them
    async fn part(&mut self, service: &Service) -> Result<Vec<u8>, Interrupted> {
        let pages = pages(service, self.after).await.ok_or(Interrupted)?;
        let begins = !std::mem::replace(&mut self.begun, true);
        let min_interval = service.shard.borrow().min_interval_secs();
        let mut encoder = self.encoder.take().ok_or(Interrupted)?;
        let work = self.helpers.spawn_blocking(move || -> io::Result<_> {
            let mut text = Vec::new();
            if begins {
                reply::begin_scrape(&mut text);
            }
            let after = write_rows(pages, &mut text);
            if after.is_none() {
                reply::end_scrape(&mut text, min_interval);
            }
            let mut part = encoder.part(text)?;
            if after.is_none() {
                part.extend(encoder.end()?);
                return Ok((part, after, None));
            }
            Ok((part, after, Some(encoder)))
        });
        let part;
        (part, self.after, self.encoder) =
            work.await.ok().and_then(Result::ok).ok_or(Interrupted)?;
        if self.after.is_none() {
            // Before the client sees the end: it may ask somebody else's shard for another.
            self.permit = None;
        }
        Ok(part)
    }
}

/// Writes what several shards have found, as far as all of them have looked; the last torrent, unless there are no more
fn write_rows(pages: Vec<Listed>, text: &mut Vec<u8>) -> Option<InfoHash> {
    let pages: Vec<_> = pages.into_iter().map(|listed| listed.page.sorted()).collect();
    // Behind the last torrent of a page that is full there may be more of that shard.
    let full = pages.iter().filter(|(_, more)| *more);
    let cut = full.filter_map(|(rows, _)| rows.last().map(|(info_hash, _)| *info_hash)).min();
    let mut rows: Vec<_> = pages.into_iter().flat_map(|(rows, _)| rows).collect();
    rows.retain(|(info_hash, _)| cut.is_none_or(|cut| *info_hash <= cut));
    rows.sort_unstable_by_key(|(info_hash, _)| *info_hash);
    for (info_hash, swarm_stats) in &rows {
        reply::write_row(text, info_hash, *swarm_stats);
    }
    cut
}

/// A page of each shard
async fn pages(service: &Service, after: Option<InfoHash>) -> Option<Vec<Listed>> {
    let mut tickets = Vec::new();
    let all = async {
        let asked = loop {
            let asked = service.shard.borrow_mut().ask_for_pages(after);
            match asked {
                Some(asked) => break asked,
                None => tokio::time::sleep(RETRY).await,
            }
        };
        let answers: Vec<_>;
        (tickets, answers) = asked.into_iter().unzip();
        let mut pages = Vec::new();
        for answer in answers {
            pages.push(*answer.await.ok()?);
        }
        Some(pages)
    };
    let pages = tokio::time::timeout(PAGE_PATIENCE, all).await.ok().flatten();
    if pages.is_none() {
        let mut shard = service.shard.borrow_mut();
        tickets.iter().for_each(|ticket| shard.forget(*ticket));
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_each_address_now_and_then() {
        let scrapes = Arc::new(FullScrapes::default());
        let [a, b] = ["1.1.1.1", "2a00::1"].map(|address| address.parse::<IpAddr>().unwrap());
        let begin = |address, now| scrapes.begin(address, Seconds(now), 60);
        let running = begin(a, 100).unwrap();
        assert!(begin(b, 101).is_none(), "one is running");
        drop(running);
        assert!(begin(a, 159).is_none());
        drop(begin(b, 159).unwrap());
        assert!(begin("2a00::2".parse().unwrap(), 160).is_none(), "of the same /64");
        let broken = begin(a, 160).unwrap();
        broken.forgive();
        drop(broken);
        drop(begin(a, 161).unwrap());
        // However many ask, the memory of who has had one is bounded, and new ones are served.
        for number in 0..REMEMBERED as u32 + 10 {
            drop(begin(IpAddr::from(number.to_be_bytes()), 161).unwrap());
        }
        assert_eq!(scrapes.recent().last.len(), REMEMBERED);
    }
}
