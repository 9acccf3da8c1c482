//! The list of all torrents: `/scrape` without an info hash, for permitted networks.
//!
//! The list is made page by page while it is sent. No shard stalls, and at most one page of each shard is in memory,
//! however slowly the client reads. Helper threads compress the list.

use super::full_scrape_limit::FullScrapePermit;
use super::service::HttpService;
use crate::shard::message::PageReply;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write};
use std::time::Duration;
use tokio::runtime::Handle;
use tsubame_http::head::AcceptedEncodings;
use tsubame_http::reply;
use tsubame_storage::InfoHash;

/// Maximum time that the shards may take for a page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time to send a list: a client that reads slowly keeps other clients from getting one.
pub(super) const LIST_TIMEOUT: Duration = Duration::from_secs(600);

/// Delay before pages are requested again after the queue to a shard was full.
const RETRY: Duration = Duration::from_millis(5);

/// Compression level of zstd: speed matters more than size, as operators fetch the list often and over fast links.
const ZSTD_LEVEL: i32 = 1;

/// Compression of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentCoding {
    /// No compression.
    Identity,
    /// Compression with gzip.
    Gzip,
    /// Compression with zstd.
    Zstd,
}

impl ContentCoding {
    /// Returns the best compression that the client accepts.
    pub(super) fn choose(accepts: AcceptedEncodings) -> Self {
        match accepts {
            AcceptedEncodings { zstd: true, .. } => Self::Zstd,
            AcceptedEncodings { gzip: true, .. } => Self::Gzip,
            AcceptedEncodings { .. } => Self::Identity,
        }
    }

    /// Returns the value of the `Content-Encoding` header; `None` without compression.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// State of the compression between two parts of a list.
enum ListEncoder {
    Identity,
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl ListEncoder {
    fn new(coding: ContentCoding) -> io::Result<Self> {
        Ok(match coding {
            ContentCoding::Identity => Self::Identity,
            ContentCoding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::fast())),
            ContentCoding::Zstd => {
                Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?)
            }
        })
    }

    /// Compresses a part of the list. The result may be empty, as encoders buffer.
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

    /// Returns the last bytes of the compressed list.
    fn end(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity => Ok(Vec::new()),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// Progress of making a list of all torrents.
pub(super) struct TorrentListing {
    encoder: Option<ListEncoder>,
    helpers: Handle,
    /// Last info hash of the previous part; `None` at the start.
    after: Option<InfoHash>,
    /// Whether the first part was made.
    has_begun: bool,
    /// Permit of the list; `None` after the last part was made or a part has failed.
    permit: Option<FullScrapePermit>,
}

/// The list cannot be continued: a shard did not reply in time, or a helper thread failed.
#[derive(Debug)]
pub(super) struct ListingInterrupted;

impl TorrentListing {
    pub(super) fn new(
        permit: FullScrapePermit,
        coding: ContentCoding,
        helpers: Handle,
    ) -> Result<Self, ListingInterrupted> {
        let encoder = Some(ListEncoder::new(coding).map_err(|_| ListingInterrupted)?);
        Ok(Self { encoder, helpers, after: None, has_begun: false, permit: Some(permit) })
    }

    /// Returns the next part, which is not empty; `None` after the last one.
    pub(super) async fn next(
        &mut self,
        service: &HttpService,
    ) -> Result<Option<Vec<u8>>, ListingInterrupted> {
        while self.permit.is_some() {
            let part = self.part(service).await;
            if part.is_err()
                && let Some(permit) = self.permit.take()
            {
                permit.allow_retry();
            }
            let part = part?;
            if !part.is_empty() {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// Requests a page from each shard, and has a helper thread make a part of the list from the pages.
    async fn part(&mut self, service: &HttpService) -> Result<Vec<u8>, ListingInterrupted> {
        let pages = pages(service, self.after).await.ok_or(ListingInterrupted)?;
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let min_interval = service.node().min_interval_secs();
        let mut encoder = self.encoder.take().ok_or(ListingInterrupted)?;
        let work = self.helpers.spawn_blocking(move || -> io::Result<_> {
            let mut text = Vec::new();
            if is_first {
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
            work.await.ok().and_then(Result::ok).ok_or(ListingInterrupted)?;
        if self.after.is_none() {
            // Released before the client sees the end: its next request may reach another shard at once.
            self.permit = None;
        }
        Ok(part)
    }
}

/// Merges pages of several shards and writes the torrents up to the first info hash at which a page was cut off.
///
/// Returns that info hash, after which the next pages begin; `None` if there are no more torrents.
fn write_rows(pages: Vec<PageReply>, text: &mut Vec<u8>) -> Option<InfoHash> {
    let pages: Vec<_> = pages.into_iter().map(|listed| listed.page.sorted()).collect();
    // The shard of a full page may have more torrents after the last one of the page.
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

/// Returns a page of each shard; `None` if a shard does not reply in time.
async fn pages(service: &HttpService, after: Option<InfoHash>) -> Option<Vec<PageReply>> {
    let mut request_ids = Vec::new();
    let all = async {
        let requested = loop {
            let requested = service.node().request_pages(after);
            match requested {
                Some(requested) => break requested,
                None => tokio::time::sleep(RETRY).await,
            }
        };
        let answers: Vec<_>;
        (request_ids, answers) = requested.into_iter().unzip();
        let mut pages = Vec::new();
        for answer in answers {
            pages.push(*answer.await.ok()?);
        }
        Some(pages)
    };
    let pages = tokio::time::timeout(PAGE_TIMEOUT, all).await.ok().flatten();
    if pages.is_none() {
        let mut node = service.node();
        request_ids.iter().for_each(|request_id| node.cancel(*request_id));
    }
    pages
}
