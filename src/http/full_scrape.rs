//! The list of all torrents: `/scrape` without an info hash, for networks that may have it.
//!
//! It is made page by page while it is sent, so that no shard stalls and no more than a page of each shard is in
//! memory, however slowly it is taken. Compression is work of the helper threads.

use super::Service;
use crate::shard::Page;
use flate2::Compression;
use flate2::write::GzEncoder;
use rustc_hash::FxHashMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tsubame_http::head::Accepts;
use tsubame_http::reply;
use tsubame_storage::{InfoHash, Seconds};

/// Torrents of a page over all shards, at most
const PAGE: usize = 8_192;

/// Torrents of a shard's page, at least: each page is a pass over its table
const SHARD_PAGE_MIN: usize = 512;

/// How long a shard may take for a page
const PAGE_PATIENCE: Duration = Duration::from_secs(30);

/// Addresses that are remembered; beyond, who asks must wait until one is forgotten
const REMEMBERED: usize = 4_096;

/// Speed over size: operators fetch it often, from near
const ZSTD_LEVEL: i32 = 1;

/// Who has had the list when: one for the whole process
#[derive(Debug, Default)]
pub struct FullScrapes(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    running: bool,
    last: FxHashMap<IpAddr, Seconds>,
}

impl FullScrapes {
    /// Permits one to an address that has not had any for so long, if nobody is having one
    pub(super) fn begin(&self, address: IpAddr, now: Seconds, interval_secs: u64) -> bool {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.last.retain(|_, last| last.0 + interval_secs > now.0);
        if recent.running || recent.last.contains_key(&address) || recent.last.len() >= REMEMBERED {
            return false;
        }
        recent.last.insert(address, now);
        recent.running = true;
        true
    }

    pub(super) fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).running = false;
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
    ended: bool,
}

/// It cannot go on: a shard is late, or the helpers are gone
pub(super) struct Interrupted;

impl Listing {
    pub(super) fn new(coding: Coding, helpers: Handle) -> Result<Self, Interrupted> {
        let encoder = Some(Encoder::new(coding).map_err(|_| Interrupted)?);
        Ok(Self { encoder, helpers, after: None, begun: false, ended: false })
    }

    /// The next part, which is not empty; `None` after the last
    pub(super) async fn next(&mut self, service: &Service) -> Result<Option<Vec<u8>>, Interrupted> {
        while !self.ended {
            let mut text = Vec::new();
            if !std::mem::replace(&mut self.begun, true) {
                reply::begin_scrape(&mut text);
            }
            let pages = pages(service, self.after).await.ok_or(Interrupted)?;
            // Behind the last torrent of a page that is cut there may be more of that shard.
            let cut = pages.iter().filter(|page| page.more);
            let cut =
                cut.filter_map(|page| page.rows.last().map(|(info_hash, _)| *info_hash)).min();
            let mut rows: Vec<_> =
                pages.iter().flat_map(|page| page.rows.iter().copied()).collect();
            rows.retain(|(info_hash, _)| cut.is_none_or(|cut| *info_hash <= cut));
            rows.sort_unstable_by_key(|(info_hash, _)| *info_hash);
            for (info_hash, census) in &rows {
                reply::write_row(&mut text, info_hash, *census);
            }
            self.after = cut;
            self.ended = cut.is_none();
            if self.ended {
                let (_, min_interval) = service.shard.borrow().intervals();
                reply::end_scrape(&mut text, min_interval);
            }
            let part = self.encode(text).await?;
            if !part.is_empty() {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    async fn encode(&mut self, text: Vec<u8>) -> Result<Vec<u8>, Interrupted> {
        let mut encoder = self.encoder.take().ok_or(Interrupted)?;
        let last = self.ended;
        let work = self.helpers.spawn_blocking(move || -> io::Result<_> {
            let mut part = encoder.part(text)?;
            if last {
                part.extend(encoder.end()?);
                return Ok((part, None));
            }
            Ok((part, Some(encoder)))
        });
        let part;
        (part, self.encoder) = work.await.map_err(|_| Interrupted)?.map_err(|_| Interrupted)?;
        Ok(part)
    }
}

/// A page of each shard
async fn pages(service: &Service, after: Option<InfoHash>) -> Option<Vec<Box<Page>>> {
    let asked = service.shard.borrow_mut().ask_for_pages(after, PAGE, SHARD_PAGE_MIN);
    let (tickets, answers): (Vec<u32>, Vec<_>) = asked?.into_iter().unzip();
    let all = async {
        let mut pages = Vec::new();
        for answer in answers {
            pages.push(answer.await.ok()?);
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
        let scrapes = FullScrapes::default();
        let [a, b]: [IpAddr; 2] = [[1, 1, 1, 1].into(), [2, 2, 2, 2].into()];
        assert!(scrapes.begin(a, Seconds(100), 60));
        assert!(!scrapes.begin(b, Seconds(101), 60), "one is running");
        scrapes.end();
        assert!(!scrapes.begin(a, Seconds(159), 60));
        assert!(scrapes.begin(b, Seconds(159), 60));
        scrapes.end();
        assert!(scrapes.begin(a, Seconds(160), 60));
    }
}
