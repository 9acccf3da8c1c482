//! What a request is answered with.

use super::Service;
use super::full_scrape::{Coding, Permit};
use super::paths::Route;
use crate::outcome::Outcome;
use crate::peer_list::PeerList;
use crate::policy::{Answer as Instead, Interrupted, Parameters, Paused, Refusal, Told};
use crate::shard::Asked;
use std::net::IpAddr;
use std::time::Duration;
use tsubame_http::head::{BadHead, Head, Method};
use tsubame_http::query::{self, BadQuery};
use tsubame_http::reply::{self, Content, Length, ReplyHead, Retry, Status};
use tsubame_storage::{Family, InfoHash, SwarmCounts, SwarmStats};

/// How long another shard may take to answer
const MESH_PATIENCE: Duration = Duration::from_secs(1);

/// Torrents of a scrape, at most: what fits a head, and a byte that counts them
const SCRAPE_ROWS_MAX: usize = 250;

/// How long a request waits until the signature of its token may be checked
const TOKEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells a client that it is not handed out to others
const NOT_STORED: &str =
    "the tracker is short of memory: other peers are not told of you; announce again later";

const BUSY: &str = "the tracker is busy; try again";

/// An answer but for its body
struct Answer {
    status: Status,
    content: Content,
    outcome: Outcome,
}

impl Answer {
    fn plain(outcome: Outcome) -> Self {
        Self { status: Status::Ok, content: Content::Plain, outcome }
    }
}

/// What is left to do after a request was looked at
pub(super) enum Rest {
    /// Nothing: it is answered
    Nothing,
    /// The list of all torrents is to be sent; its head is written
    List(Coding, Permit),
}

/// Appends the reply to a request
pub(super) async fn answer(
    service: &Service,
    source: IpAddr,
    head: &Head<'_>,
    keep_alive: bool,
    out: &mut Vec<u8>,
) -> Rest {
    let (mut body, terms) = (service.buffer(), service.terms());
    let answer = match (head.method, terms.paths.route(head.path)) {
        (Method::Other, _) => Answer {
            status: Status::MethodNotAllowed,
            ..said(&mut body, "only GET and HEAD are served", Outcome::MethodNotAllowed)
        },
        (_, Some(Route::Announce { key })) => {
            let parameters = Parameters { key, query: head.query };
            announce(service, source, parameters, &mut body).await
        }
        (_, Some(Route::Scrape { key })) if asks_for_all(service, head.query) => {
            let parameters = Parameters { key, query: head.query };
            match full_scrape(service, source, &parameters, head.method, &mut body).await {
                Ok(permit) => {
                    service.give_back(body);
                    return begin_list(head, permit, keep_alive, out);
                }
                Err(answer) => answer,
            }
        }
        (_, Some(Route::Scrape { key })) => {
            scrape(service, source, Parameters { key, query: head.query }, &mut body).await
        }
        (_, Some(Route::Page)) => page(service, head.host, &mut body),
        (_, None) => Answer {
            status: Status::NotFound,
            ..said(&mut body, "nothing is here; / tells where to announce", Outcome::NotFound)
        },
    };
    service.shard.borrow_mut().count_request(Family::of(source), answer.outcome);
    let Answer { status, content, .. } = answer;
    let length = Length::Bytes(body.len());
    ReplyHead { status, content, encoding: None, length, keep_alive }.write(out);
    if head.method != Method::Head {
        out.extend_from_slice(&body);
    }
    service.give_back(body);
    Rest::Nothing
}

/// Whether a scrape is for all torrents, and that is served
fn asks_for_all(service: &Service, query: &str) -> bool {
    !service.terms().full_scrape_networks.is_empty() && query::info_hashes(query).next().is_none()
}

/// The right to be sent the list of all torrents, or what is answered instead
async fn full_scrape(
    service: &Service,
    source: IpAddr,
    parameters: &Parameters<'_>,
    method: Method,
    body: &mut Vec<u8>,
) -> Result<Permit, Answer> {
    let terms = service.terms();
    let admitted = admitted_scrape(service, source, &[], parameters).await;
    admitted.map_err(|refusal| refused_scrape(body, refusal))?;
    if !terms.full_scrape_networks.iter().any(|network| network.contains(&source)) {
        let text = "the list of all torrents is not for this network";
        let said = said(body, text, Outcome::FullScrapeForbidden);
        return Err(Answer { status: Status::Forbidden, ..said });
    }
    if method == Method::Head {
        // How long it would be nobody knows, and to make it for that would be dear.
        return Err(Answer::plain(Outcome::FullScrape));
    }
    let now = service.shard.borrow().now();
    let permit = service.full_scrapes.begin(source, now, terms.full_scrape_interval_secs);
    permit.ok_or_else(|| {
        let text =
            "the list of all torrents was asked for too soon, or somebody else is being sent it";
        let said = said(body, text, Outcome::FullScrapeTooSoon);
        Answer { status: Status::TooManyRequests, ..said }
    })
}

fn begin_list(head: &Head<'_>, permit: Permit, keep_alive: bool, out: &mut Vec<u8>) -> Rest {
    let coding = Coding::choose(head.accepts);
    let (encoding, content) = (coding.name(), Content::Plain);
    let length = if head.takes_chunks { Length::Chunked } else { Length::UntilClose };
    let keep_alive = keep_alive && head.takes_chunks;
    ReplyHead { status: Status::Ok, content, encoding, length, keep_alive }.write(out);
    Rest::List(coding, permit)
}

/// Appends the reply to what is no request; the connection ends with it
pub(super) fn refuse(out: &mut Vec<u8>, bad: BadHead) {
    let status = match bad {
        BadHead::Malformed => Status::BadRequest,
        BadHead::TooLong => Status::HeadTooLong,
    };
    let text = format!("{bad}\n");
    let (content, length) = (Content::Plain, Length::Bytes(text.len()));
    ReplyHead { status, content, encoding: None, length, keep_alive: false }.write(out);
    out.extend_from_slice(text.as_bytes());
}

fn said(body: &mut Vec<u8>, text: &str, outcome: Outcome) -> Answer {
    body.extend_from_slice(text.as_bytes());
    body.push(b'\n');
    Answer::plain(outcome)
}

fn failed(body: &mut Vec<u8>, reason: &str, retry: Retry, outcome: Outcome) -> Answer {
    reply::write_failure(body, reason, retry);
    Answer::plain(outcome)
}

fn mistaken(body: &mut Vec<u8>, bad: BadQuery) -> Answer {
    failed(body, &bad.to_string(), Retry::Unsaid, Outcome::BadQuery)
}

async fn announce(
    service: &Service,
    source: IpAddr,
    parameters: Parameters<'_>,
    body: &mut Vec<u8>,
) -> Answer {
    let query = match query::Announce::parse(parameters.query) {
        Ok(query) => query,
        Err(bad) => return mistaken(body, bad),
    };
    let admitted = judged(service, source, |paused| {
        service.shard.borrow_mut().admit_query(source, &query, parameters, paused)
    });
    let admitted = admitted.await;
    let external_ip = source.to_canonical();
    let compact = query.compact;
    let announce = match admitted {
        Ok(announce) => announce,
        Err(refusal) => return refused(body, refusal, external_ip, compact),
    };
    let Told { interval_secs: interval, min_interval_secs: min_interval } = announce.told;
    let asked = service.shard.borrow_mut().enter(&announce, service.list());
    let list = match answered(service, asked).await {
        Ok(list) => list,
        Err(shed) => return failed(body, BUSY, Retry::Minutes(1), shed),
    };
    let PeerList { outcome, counts, ref v4, ref v6, .. } = *list;
    let warning = matches!(
        outcome,
        Outcome::RefusedMemory | Outcome::RefusedNewTorrent | Outcome::RefusedSource
    )
    .then_some(NOT_STORED);
    reply::Announce { counts, interval, min_interval, external_ip, v4, v6, compact, warning }
        .write(body);
    service.give_list_back(list);
    Answer::plain(outcome)
}

/// Has policy judge a request, which waits in a queue where a token's signature may not be checked at once
///
/// Over UDP the client would send its request again; here it waits.
async fn judged<T>(
    service: &Service,
    source: IpAddr,
    mut judge: impl FnMut(Option<Paused>) -> Result<T, Interrupted>,
) -> Result<T, Refusal> {
    let mut paused = None;
    loop {
        let interrupted = match judge(paused) {
            Ok(admitted) => return Ok(admitted),
            Err(interrupted) => interrupted,
        };
        let Interrupted::Paused(at) = interrupted else { return Err(interrupted.refusal()) };
        // Once for each hook that checks tokens.
        if paused == Some(at) {
            return Err(interrupted.refusal());
        }
        let permit = service.shard.borrow_mut().wait_for_token_check(source);
        let Some(permit) = permit else { return Err(interrupted.refusal()) };
        if !matches!(tokio::time::timeout(TOKEN_TIMEOUT, permit).await, Ok(Ok(()))) {
            return Err(interrupted.refusal());
        }
        paused = Some(at);
    }
}

async fn admitted_scrape(
    service: &Service,
    source: IpAddr,
    info_hashes: &[InfoHash],
    parameters: &Parameters<'_>,
) -> Result<(), Refusal> {
    let judge =
        |paused| service.shard.borrow_mut().admit_scrape(source, info_hashes, parameters, paused);
    judged(service, source, judge).await
}

/// What an announce is answered that policy refuses
fn refused(
    body: &mut Vec<u8>,
    Refusal { outcome, answer }: Refusal,
    external_ip: IpAddr,
    compact: bool,
) -> Answer {
    match answer {
        Instead::Error(text) | Instead::Silence(text) => failed(body, text, Retry::Unsaid, outcome),
        Instead::Gone(text) => {
            Answer { status: Status::Gone, ..failed(body, text, Retry::Never, outcome) }
        }
        Instead::Empty(secs) => {
            let (counts, interval, min_interval) = (SwarmCounts::default(), secs, secs);
            let (v4, v6, warning) = (&[], &[], None);
            reply::Announce {
                counts,
                interval,
                min_interval,
                external_ip,
                v4,
                v6,
                compact,
                warning,
            }
            .write(body);
            Answer::plain(outcome)
        }
    }
}

fn refused_scrape(body: &mut Vec<u8>, Refusal { outcome, answer }: Refusal) -> Answer {
    failed(body, answer.text().unwrap_or(BUSY), Retry::Unsaid, outcome)
}

async fn scrape(
    service: &Service,
    source: IpAddr,
    parameters: Parameters<'_>,
    body: &mut Vec<u8>,
) -> Answer {
    let mut info_hashes = Vec::new();
    for info_hash in query::info_hashes(parameters.query).take(SCRAPE_ROWS_MAX) {
        match info_hash {
            Ok(info_hash) => info_hashes.push(info_hash),
            Err(bad) => return mistaken(body, bad),
        }
    }
    if info_hashes.is_empty() {
        return mistaken(body, BadQuery::NoInfoHash);
    }
    // Keys of a dictionary: sorted, and each once.
    info_hashes.sort_unstable();
    info_hashes.dedup();
    let admitted = admitted_scrape(service, source, &info_hashes, &parameters).await;
    if let Err(refusal) = admitted {
        return refused_scrape(body, refusal);
    }
    let asked = service.shard.borrow_mut().scrape(&info_hashes);
    let counts = match answered(service, asked).await {
        Ok(counts) => counts,
        Err(shed) => return failed(body, BUSY, Retry::Minutes(1), shed),
    };
    write_scrape(service, &info_hashes, &counts, body);
    Answer::plain(Outcome::Scraped)
}

fn write_scrape(
    service: &Service,
    info_hashes: &[InfoHash],
    counts: &[SwarmStats],
    body: &mut Vec<u8>,
) {
    reply::begin_scrape(body);
    for (info_hash, swarm_stats) in info_hashes.iter().zip(counts) {
        reply::write_row(body, info_hash, *swarm_stats);
    }
    reply::end_scrape(body, service.shard.borrow().min_interval_secs());
}

/// Waits for other shards, if they are to answer; else why there is no answer
async fn answered<T>(service: &Service, asked: Asked<T>) -> Result<T, Outcome> {
    match asked {
        Asked::Answered(answer) => Ok(answer),
        Asked::Shed => Err(Outcome::ShedMesh),
        Asked::Waits(ticket, answer) => match tokio::time::timeout(MESH_PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => {
                service.shard.borrow_mut().forget(ticket);
                Err(Outcome::ShedLate)
            }
        },
    }
}

/// A page for who opens the tracker in a browser
fn page(service: &Service, host: Option<&str>, body: &mut Vec<u8>) -> Answer {
    let host = host.unwrap_or("this-host");
    let line = |(scheme, rest): &(&str, String)| format!("{scheme}://{host}{rest}\n");
    let urls: String = service.terms().urls.iter().map(line).collect();
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>BitTorrent tracker</title>\n\
         <h1>BitTorrent tracker</h1>\n<p>To use it, add to a torrent:</p>\n<pre>\n{urls}</pre>\n</html>\n"
    );
    body.extend_from_slice(page.as_bytes());
    Answer { status: Status::Ok, content: Content::Html, outcome: Outcome::PageShown }
}
