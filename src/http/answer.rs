//! Answers HTTP requests: has policy check them, forwards them to the shard that owns the torrent, and writes the
//! response.

use super::full_scrape::ContentCoding;
use super::full_scrape_limit::FullScrapePermit;
use super::paths::Route;
use super::service::HttpService;
use crate::policy::{Intervals, Parameters, PausedRequest, PolicyStop, Refusal, RefusalReply};
use crate::shard::node::NodeReply;
use crate::stats::outcome::Outcome;
use crate::tracker::peer_list::PeerList;
use std::net::IpAddr;
use std::time::Duration;
use tsubame_http::head::{HeadError, Method, RequestHead};
use tsubame_http::query::{self, QueryError};
use tsubame_http::reply::{
    self, AnnounceResponse, BodyLength, ContentType, ResponseHead, RetryIn, StatusCode,
};
use tsubame_storage::{Family, InfoHash, SwarmStats};

/// Maximum time that another shard may take to reply.
const MESH_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of torrents of a scrape; others are ignored. A byte can number them in messages between shards, and
/// hardly more fit into a request head.
const SCRAPE_ROWS_MAX: usize = 250;

/// Maximum time that a request waits until its token may be checked.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Warning for a client whose peer was not stored.
const NOT_STORED: &str =
    "the tracker is low on memory and did not store this peer; announce again later";

/// Failure reason if another shard is overloaded, or if a scrape is refused with [`RefusalReply::Empty`].
const BUSY: &str = "the tracker is busy; try again";

/// Status, content type and outcome of a reply, whose body is in a buffer.
struct HttpReply {
    status: StatusCode,
    content: ContentType,
    outcome: Outcome,
}

impl HttpReply {
    fn plain(outcome: Outcome) -> Self {
        Self { status: StatusCode::Ok, content: ContentType::Plain, outcome }
    }
}

/// Next step after a request was answered.
pub(super) enum AfterAnswer {
    /// Nothing is left to do: the reply was written.
    Nothing,
    /// The list of all torrents must be sent; the head of its response was written.
    List(ContentCoding, FullScrapePermit),
}

/// Answers a request: appends the response to `out`, and returns what the connection must do next.
pub(super) async fn answer(
    service: &HttpService,
    source: IpAddr,
    head: &RequestHead<'_>,
    keep_alive: bool,
    out: &mut Vec<u8>,
) -> AfterAnswer {
    let (mut body, settings) = (service.buffer(), service.settings());
    let reply = match (head.method, settings.paths.route(head.path)) {
        (Method::Other, _) => HttpReply {
            status: StatusCode::MethodNotAllowed,
            ..text_reply(&mut body, "only GET and HEAD are allowed", Outcome::MethodNotAllowed)
        },
        (_, Some(Route::Announce { key })) => {
            let parameters = Parameters { key, query: head.query };
            announce(service, source, parameters, &mut body).await
        }
        (_, Some(Route::Scrape { key })) if requests_full_scrape(service, head.query) => {
            let parameters = Parameters { key, query: head.query };
            match full_scrape(service, source, &parameters, head.method, &mut body).await {
                Ok(permit) => {
                    service.recycle(body);
                    return begin_list(head, permit, keep_alive, out);
                }
                Err(answer) => answer,
            }
        }
        (_, Some(Route::Scrape { key })) => {
            scrape(service, source, Parameters { key, query: head.query }, &mut body).await
        }
        (_, Some(Route::Page)) => page(service, head.host, &mut body),
        (_, Some(Route::Stats)) if settings.permits_stats(source) => {
            stats(service, head.query, &mut body)
        }
        (_, None | Some(Route::Stats)) => HttpReply {
            status: StatusCode::NotFound,
            ..text_reply(&mut body, "not found; see / for the announce URLs", Outcome::NotFound)
        },
    };
    service.node().count_request(Family::of(source), reply.outcome);
    let HttpReply { status, content, .. } = reply;
    let length = BodyLength::Bytes(body.len());
    ResponseHead { status, content, encoding: None, length, keep_alive }.write(out);
    if head.method != Method::Head {
        out.extend_from_slice(&body);
    }
    service.recycle(body);
    AfterAnswer::Nothing
}

/// Returns whether a scrape requests the list of all torrents and the settings permit it.
fn requests_full_scrape(service: &HttpService, query: &str) -> bool {
    !service.settings().full_scrape_networks.is_empty()
        && query::info_hashes(query).next().is_none()
}

/// Returns a permit to send the list of all torrents, or the reply to send instead.
async fn full_scrape(
    service: &HttpService,
    source: IpAddr,
    parameters: &Parameters<'_>,
    method: Method,
    body: &mut Vec<u8>,
) -> Result<FullScrapePermit, HttpReply> {
    let settings = service.settings();
    let admitted = admitted_scrape(service, source, &[], parameters).await;
    admitted.map_err(|refusal| refused_scrape(body, refusal))?;
    if !settings.full_scrape_networks.iter().any(|network| network.contains(&source)) {
        let text = "the list of all torrents is not available to this network";
        let text_reply = text_reply(body, text, Outcome::FullScrapeForbidden);
        return Err(HttpReply { status: StatusCode::Forbidden, ..text_reply });
    }
    if method == Method::Head {
        // The length is unknown until the list is made, and making it for a HEAD request would be expensive.
        return Err(HttpReply::plain(Outcome::FullScrape));
    }
    let now = service.node().now();
    let permit = service.full_scrapes.begin(source, now, settings.full_scrape_interval_secs);
    permit.ok_or_else(|| {
        let text =
            "the list of all torrents was requested too soon or is being sent to another client; retry later";
        let text_reply = text_reply(body, text, Outcome::FullScrapeTooSoon);
        HttpReply { status: StatusCode::TooManyRequests, ..text_reply }
    })
}

/// Writes the head of the response that contains the list of all torrents.
fn begin_list(
    head: &RequestHead<'_>,
    permit: FullScrapePermit,
    keep_alive: bool,
    out: &mut Vec<u8>,
) -> AfterAnswer {
    let coding = ContentCoding::choose(head.accepts);
    let (encoding, content) = (coding.name(), ContentType::Plain);
    let length = if head.accepts_chunked { BodyLength::Chunked } else { BodyLength::UntilClose };
    let keep_alive = keep_alive && head.accepts_chunked;
    ResponseHead { status: StatusCode::Ok, content, encoding, length, keep_alive }.write(out);
    AfterAnswer::List(coding, permit)
}

/// Appends the reply to bytes that are not a request; the caller then closes the connection.
pub(super) fn refuse(out: &mut Vec<u8>, error: HeadError) {
    let status = match error {
        HeadError::Malformed => StatusCode::BadRequest,
        HeadError::TooLong => StatusCode::HeadTooLong,
    };
    let text = format!("{error}\n");
    let (content, length) = (ContentType::Plain, BodyLength::Bytes(text.len()));
    ResponseHead { status, content, encoding: None, length, keep_alive: false }.write(out);
    out.extend_from_slice(text.as_bytes());
}

fn text_reply(body: &mut Vec<u8>, text: &str, outcome: Outcome) -> HttpReply {
    body.extend_from_slice(text.as_bytes());
    body.push(b'\n');
    HttpReply::plain(outcome)
}

fn failure(body: &mut Vec<u8>, reason: &str, retry: RetryIn, outcome: Outcome) -> HttpReply {
    reply::write_failure(body, reason, retry);
    HttpReply::plain(outcome)
}

fn query_error(body: &mut Vec<u8>, error: QueryError) -> HttpReply {
    failure(body, &error.to_string(), RetryIn::Unspecified, Outcome::BadQuery)
}

async fn announce(
    service: &HttpService,
    source: IpAddr,
    parameters: Parameters<'_>,
    body: &mut Vec<u8>,
) -> HttpReply {
    let query = match query::AnnounceQuery::parse(parameters.query) {
        Ok(query) => query,
        Err(error) => return query_error(body, error),
    };
    let admitted = admitted_by_policy(service, source, |paused| {
        service.node().admit_announce(source, &query, parameters, paused)
    });
    let admitted = admitted.await;
    let external_ip = source.to_canonical();
    let compact = query.compact;
    let announce = match admitted {
        Ok(announce) => announce,
        Err(refusal) => return refused_announce(body, refusal, external_ip, compact),
    };
    let Intervals { interval_secs, min_interval_secs: min_interval } = announce.intervals;
    let reply = service.node().announce(&announce, service.peer_list());
    let list = match wait_for(service, reply).await {
        Ok(list) => list,
        Err(outcome) => return failure(body, BUSY, RetryIn::Minutes(1), outcome),
    };
    let PeerList { outcome, counts, ref v4, ref v6, .. } = *list;
    let empty = AnnounceResponse::empty(external_ip, interval_secs, compact);
    let warning = matches!(
        outcome,
        Outcome::RefusedMemory | Outcome::RefusedNewTorrent | Outcome::RefusedSource
    )
    .then_some(NOT_STORED);
    AnnounceResponse { counts, min_interval, v4, v6, warning, ..empty }.write(body);
    let peers = v4.len() / Family::V4.compact_len() + v6.len() / Family::V6.compact_len();
    service.node().count_announce(announce.event, query.peer_id.as_ref(), peers);
    service.recycle_peer_list(list);
    HttpReply::plain(outcome)
}

/// Has policy check a request. If the signature of its token may not be checked now, the request waits in a queue.
///
/// Over UDP there is no such queue, as clients repeat a request that is not answered.
async fn admitted_by_policy<T>(
    service: &HttpService,
    source: IpAddr,
    mut admit: impl FnMut(Option<PausedRequest>) -> Result<T, PolicyStop>,
) -> Result<T, Refusal> {
    let mut paused = None;
    loop {
        let stop = match admit(paused) {
            Ok(admitted) => return Ok(admitted),
            Err(stop) => stop,
        };
        let PolicyStop::Paused(at) = stop else { return Err(stop.refusal()) };
        // Each hook that checks tokens may pause the request only once.
        if paused == Some(at) {
            return Err(stop.refusal());
        }
        let permit = service.node().queue_for_token_check(source);
        let Some(permit) = permit else { return Err(stop.refusal()) };
        if !matches!(tokio::time::timeout(TOKEN_TIMEOUT, permit).await, Ok(Ok(()))) {
            return Err(stop.refusal());
        }
        paused = Some(at);
    }
}

async fn admitted_scrape(
    service: &HttpService,
    source: IpAddr,
    info_hashes: &[InfoHash],
    parameters: &Parameters<'_>,
) -> Result<(), Refusal> {
    let admit = |paused| service.node().admit_scrape(source, info_hashes, parameters, paused);
    admitted_by_policy(service, source, admit).await
}

/// Writes the reply to an announce that policy refuses.
fn refused_announce(
    body: &mut Vec<u8>,
    Refusal { outcome, reply }: Refusal,
    external_ip: IpAddr,
    compact: bool,
) -> HttpReply {
    match reply {
        RefusalReply::Error(text) | RefusalReply::Silence(text) => {
            failure(body, text, RetryIn::Unspecified, outcome)
        }
        RefusalReply::Gone(text) => {
            HttpReply { status: StatusCode::Gone, ..failure(body, text, RetryIn::Never, outcome) }
        }
        RefusalReply::Empty(secs) => {
            AnnounceResponse::empty(external_ip, secs, compact).write(body);
            HttpReply::plain(outcome)
        }
    }
}

fn refused_scrape(body: &mut Vec<u8>, Refusal { outcome, reply }: Refusal) -> HttpReply {
    failure(body, reply.text().unwrap_or(BUSY), RetryIn::Unspecified, outcome)
}

async fn scrape(
    service: &HttpService,
    source: IpAddr,
    parameters: Parameters<'_>,
    body: &mut Vec<u8>,
) -> HttpReply {
    let mut info_hashes = Vec::new();
    for info_hash in query::info_hashes(parameters.query).take(SCRAPE_ROWS_MAX) {
        match info_hash {
            Ok(info_hash) => info_hashes.push(info_hash),
            Err(error) => return query_error(body, error),
        }
    }
    if info_hashes.is_empty() {
        return query_error(body, QueryError::NoInfoHash);
    }
    // Keys of a bencoded dictionary must be sorted and unique.
    info_hashes.sort_unstable();
    info_hashes.dedup();
    let admitted = admitted_scrape(service, source, &info_hashes, &parameters).await;
    if let Err(refusal) = admitted {
        return refused_scrape(body, refusal);
    }
    let reply = service.node().scrape(&info_hashes);
    let counts = match wait_for(service, reply).await {
        Ok(counts) => counts,
        Err(outcome) => return failure(body, BUSY, RetryIn::Minutes(1), outcome),
    };
    write_scrape(service, &info_hashes, &counts, body);
    HttpReply::plain(Outcome::Scraped)
}

fn write_scrape(
    service: &HttpService,
    info_hashes: &[InfoHash],
    counts: &[SwarmStats],
    body: &mut Vec<u8>,
) {
    reply::begin_scrape(body);
    for (info_hash, swarm_stats) in info_hashes.iter().zip(counts) {
        reply::write_row(body, info_hash, *swarm_stats);
    }
    reply::end_scrape(body, service.node().min_interval_secs());
}

/// Waits for the reply of other shards if it is pending; returns the outcome to count if there is no reply.
async fn wait_for<T>(service: &HttpService, reply: NodeReply<T>) -> Result<T, Outcome> {
    match reply {
        NodeReply::Ready(answer) => Ok(answer),
        NodeReply::QueueFull => Err(Outcome::ShedMesh),
        NodeReply::Pending(request_id, answer) => {
            match tokio::time::timeout(MESH_TIMEOUT, answer).await {
                Ok(Ok(answer)) => Ok(answer),
                _ => {
                    service.node().cancel(request_id);
                    Err(Outcome::ShedLate)
                }
            }
        }
    }
}

/// Writes a page of statistics.
fn stats(service: &HttpService, query: &str, body: &mut Vec<u8>) -> HttpReply {
    match (service.stats_pages.0)(query) {
        Ok((is_xml, text)) => {
            body.extend_from_slice(text.as_bytes());
            let content = if is_xml { ContentType::Xml } else { ContentType::Plain };
            HttpReply { status: StatusCode::Ok, content, outcome: Outcome::PageShown }
        }
        Err(text) => {
            body.extend_from_slice(text.as_bytes());
            HttpReply { status: StatusCode::NotFound, ..HttpReply::plain(Outcome::NotFound) }
        }
    }
}

/// Writes the page with the announce URLs.
fn page(service: &HttpService, host: Option<&str>, body: &mut Vec<u8>) -> HttpReply {
    let host = host.unwrap_or("this-host");
    let line = |(scheme, rest): &(&str, String)| format!("{scheme}://{host}{rest}\n");
    let urls: String = service.settings().urls.iter().map(line).collect();
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>BitTorrent tracker</title>\n\
         <h1>BitTorrent tracker</h1>\n<p>Add these URLs to a torrent:</p>\n<pre>\n{urls}</pre>\n</html>\n"
    );
    body.extend_from_slice(page.as_bytes());
    HttpReply { status: StatusCode::Ok, content: ContentType::Html, outcome: Outcome::PageShown }
}
