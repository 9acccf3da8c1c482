//! The HTTP server of the control plane: health, metrics, statistics, and the API of the operator.
//!
//! It runs on one thread, over TCP and a unix socket. The resources of clients are bounded: the number of connections,
//! the size of a request head and body, the rate of requests to the API, and the time for a head and for a whole
//! exchange. Each connection serves one request.

use super::access::{AccessError, ClientAddress, refuse_requests_from_web_pages};
use super::api::{self, ApiError};
use super::listeners::ControlListeners;
use super::metrics::{self, MetricsFormat};
use super::monitored::Monitored;
use super::opentracker_stats;
use super::page::{self, PageContent};
use super::state::ControlState;
use super::status::Status;
use super::stream::{self, StreamedBody};
use super::torrents::Torrents;
use crate::process::recent_events;
use crate::process::reload::ControlCommand;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, Semaphore};

/// Maximum number of connections over TCP that are served at a time. Further connections wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// Maximum number of connections over the unix socket that are served at a time.
const LOCAL_CONNECTIONS_MAX: usize = 16;

/// Time that a client may take to send a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole exchange. A reload may read large lists, and an upgrade waits for another process.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(200);

/// Time in which a client must read a reply. A reply that is made while it is sent is limited by
/// [`EXCHANGE_TIMEOUT`] only.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two sets of figures of the status page.
const FIGURES_INTERVAL: Duration = Duration::from_secs(2);

/// Maximum bytes of a request head.
const HEAD_LEN_MAX: usize = 16 << 10;

/// Maximum bytes of a request body.
const BODY_LEN_MAX: usize = 1 << 20;

/// Serves requests until the future is dropped. Changes are sent to `commands`.
pub async fn serve(
    listeners: ControlListeners,
    hosts: Vec<String>,
    monitored: Monitored,
    torrents: Arc<Torrents>,
    commands: UnboundedSender<ControlCommand>,
) -> io::Result<()> {
    let router = router(ControlState::new(hosts, monitored, torrents, commands));
    let tcp = listeners.tcp.map(tokio::net::TcpListener::from_std).transpose()?;
    let unix = listeners.unix.map(|(it, _)| tokio::net::UnixListener::from_std(it)).transpose()?;
    let serve_tcp = async {
        let Some(listener) = tcp else { return };
        let accept = |context: &mut Context<'_>| {
            let client = |address: SocketAddr| ClientAddress::Ip(address.ip().to_canonical());
            listener.poll_accept(context).map_ok(|(stream, address)| (stream, client(address)))
        };
        serve_each(CONNECTIONS_MAX, accept, router.clone()).await;
    };
    let serve_unix = async {
        let Some(listener) = unix else { return };
        let accept = |context: &mut Context<'_>| {
            listener.poll_accept(context).map_ok(|(stream, _)| (stream, ClientAddress::UnixSocket))
        };
        serve_each(LOCAL_CONNECTIONS_MAX, accept, router.clone()).await;
    };
    tokio::join!(serve_tcp, serve_unix);
    Ok(())
}

fn router(state: ControlState) -> Router {
    let api = api::routes()
        .fallback(async || {
            ApiError(
                StatusCode::NOT_FOUND,
                "there is no such path; see /v1/openapi.json".to_owned(),
            )
        })
        .method_not_allowed_fallback(async || {
            ApiError(
                StatusCode::METHOD_NOT_ALLOWED,
                "the path has other methods; see /v1/openapi.json".to_owned(),
            )
        })
        .layer(from_fn_with_state(state.clone(), permit_api));
    let page = Router::new()
        .route("/", get(page))
        .route("/events", get(events))
        .layer(from_fn_with_state(state.clone(), permit_page));
    Router::new()
        .merge(page)
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .route("/stats", get(stats))
        .nest("/v1", api)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .layer(from_fn_with_state(state.clone(), protect))
        .with_state(state)
}

/// Serves connections as they are accepted, at most `connections_max` at a time.
async fn serve_each<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    connections_max: usize,
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<(S, ClientAddress)>>,
    router: Router,
) {
    let connections = Arc::new(Semaphore::new(connections_max));
    while let Ok(permit) = connections.clone().acquire_owned().await {
        match poll_fn(&mut accept).await {
            Ok((stream, client)) => {
                let exchange = exchange(stream, client, router.clone());
                tokio::spawn(async move {
                    exchange.await;
                    drop(permit);
                });
            }
            Err(_) => pause_after_failed_accept().await,
        }
    }
}

/// Waits before the next accept, as the cause of a failed one, such as too many open files, persists for a moment.
async fn pause_after_failed_accept() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Serves one request.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client: ClientAddress,
    router: Router,
) {
    let replied = ReplyNotice::default();
    let router = router.layer(Extension(client)).layer(Extension(replied.clone()));
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LEN_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let read_timeout = async {
        replied.0.notified().await;
        tokio::time::sleep(READ_TIMEOUT).await;
    };
    // An error or a timeout concerns only the client, which is disconnected.
    tokio::select! {
        _ = tokio::time::timeout(EXCHANGE_TIMEOUT, connection) => {}
        () = read_timeout => {}
    }
}

/// Tells the task of a connection that the reply is made.
#[derive(Clone, Debug, Default)]
struct ReplyNotice(Arc<Notify>);

/// Refuses requests that web pages of other sites make in a browser, and sets headers by which a browser neither stores
/// nor interprets a reply.
async fn protect(
    State(state): State<ControlState>,
    Extension(replied): Extension<ReplyNotice>,
    request: Request,
    next: Next,
) -> Response {
    let is_api = request.uri().path().starts_with("/v1");
    let mut response =
        match refuse_requests_from_web_pages(request.uri(), request.headers(), &state.hosts) {
            Ok(()) => next.run(request).await,
            Err((status, text)) if is_api => ApiError(status, text).into_response(),
            Err((status, text)) => (status, format!("{text}\n")).into_response(),
        };
    if response.extensions().get::<StreamedBody>().is_none() {
        replied.0.notify_one();
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests to the API without permission, and those above the permitted rate.
async fn permit_api(
    State(state): State<ControlState>,
    Extension(client): Extension<ClientAddress>,
    request: Request,
    next: Next,
) -> Response {
    // Requests that are refused do not count, so that other hosts cannot use up the rate.
    let permitted = state.authorize(client, request.headers());
    let admitted: Result<(), AccessError> = permitted.and_then(|()| match client {
        ClientAddress::UnixSocket => Ok(()),
        ClientAddress::Ip(_) => state.rate_limit.admit(),
    });
    match admitted {
        Ok(()) => {
            // The router has removed /v1 from the path.
            let change = (request.method() != Method::GET)
                .then(|| format!("{} /v1{}", request.method(), request.uri().path()));
            let response = as_json(next.run(request).await);
            if let Some(change) = change {
                tracing::info!("control: {change} by {client}: {}", response.status().as_u16());
            }
            response
        }
        Err((status, text)) => {
            let mut response = ApiError(status, text).into_response();
            if status == StatusCode::UNAUTHORIZED {
                let scheme = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            response
        }
    }
}

/// Refuses the page to other hosts without the token, which a browser cannot send.
async fn permit_page(
    State(state): State<ControlState>,
    Extension(client): Extension<ClientAddress>,
    request: Request,
    next: Next,
) -> Response {
    match state.authorize(client, request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, _)) => {
            let text = "this page is for the machine of the tracker; from elsewhere, forward the port: ssh -L \
                        6880:127.0.0.1:6880 HOST\n";
            (status, text).into_response()
        }
    }
}

/// Calls a function with the current content of the page.
fn with_content(monitored: &Monitored, make: impl FnOnce(&PageContent<'_>) -> String) -> String {
    let (status, history) = (Status::read(monitored), monitored.history());
    let (summary, events) = (monitored.summary(), recent_events::recent());
    let largest = summary.as_ref().map_or(&[][..], |(_, summary)| &summary.largest);
    let values = &monitored.values_in_force();
    make(&PageContent { status: &status, history: &history, largest, events: &events, values })
}

/// Handles `GET /`: replies with the status page.
async fn page(State(state): State<ControlState>) -> impl IntoResponse {
    let page = with_content(&state.monitored, |content| content.page());
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, page::SECURITY_POLICY),
    ];
    (headers, page)
}

/// Handles `GET /events`: sends new figures of the page at intervals, until the exchange times out; a browser then
/// connects again.
async fn events(State(state): State<ControlState>) -> Response {
    let Ok(permit) = state.event_streams.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    let (sender, body) = stream::body();
    tokio::spawn(async move {
        loop {
            let content = with_content(&state.monitored, |page| page.content());
            if sender.send(Ok(page::message(&content).into())).await.is_err() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(FIGURES_INTERVAL) => {}
                () = sender.closed() => break,
            }
        }
        drop(permit);
    });
    stream::response("text/event-stream", body)
}

/// Converts an error of the HTTP library, which is text, to the JSON of the API; returns any other reply unchanged.
fn as_json(response: Response) -> Response {
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let is_json = content_type.is_some_and(|it| it.as_bytes().starts_with(b"application/json"));
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let text = match status {
        StatusCode::PAYLOAD_TOO_LARGE => format!("the body is longer than {BODY_LEN_MAX} bytes"),
        _ => status.canonical_reason().unwrap_or("the request is not valid").to_owned(),
    };
    ApiError(status, text).into_response()
}

/// Handles `GET /healthz`: replies 200 with `ok`, or 503 with the numbers of the stuck shards. Either reply also lists
/// the files whose reads take too long, and has a line about the cluster if the tracker is a node of one.
async fn health(State(state): State<ControlState>) -> (StatusCode, String) {
    let stuck = state.monitored.stuck_shards();
    let reads = state.monitored.slow_reads.stuck();
    let reads: String = reads
        .iter()
        .map(|(name, since)| {
            format!("reading {name} takes too long: {} s so far\n", since.as_secs())
        })
        .collect();
    let cluster = state.monitored.cluster.as_ref().map(|cluster| cluster.read());
    let cluster =
        cluster.map(|status| format!("cluster: node {}: {}\n", status.node, status.state()));
    let reads = reads + &cluster.unwrap_or_default();
    if stuck.is_empty() {
        return (StatusCode::OK, format!("ok\n{reads}"));
    }
    let numbers: Vec<_> = stuck.iter().map(usize::to_string).collect();
    let text = format!("stuck shards: {}\n{reads}", numbers.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

/// Handles `GET /readyz`: replies 200 with `ready` if clients may be sent here, else 503 with the reason.
async fn readiness(State(state): State<ControlState>) -> (StatusCode, &'static str) {
    if state.monitored.process.is_draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if !state.monitored.stuck_shards().is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "a shard is stuck; see /healthz\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

/// Handles `GET /metrics`: replies with all metrics, in the text format of Prometheus, or in that of OpenMetrics if the
/// client accepts it.
async fn metrics(State(state): State<ControlState>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|it| it.to_str().ok());
    let format = MetricsFormat::accepted(accepted);
    ([(header::CONTENT_TYPE, format.content_type())], metrics::text(&state.monitored, format))
}

/// Handles `GET /stats`: replies with statistics in the formats of opentracker.
async fn stats(
    State(state): State<ControlState>,
    Extension(client): Extension<ClientAddress>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    if let Some(line) = opentracker_stats::list_line(&query) {
        // The list of all torrents is for those who may use the API.
        if let Err((status, text)) = state.authorize(client, &headers) {
            return (status, format!("{text}\n")).into_response();
        }
        let Ok(permit) = state.lists.clone().try_acquire_owned() else {
            let text = "other lists are being sent; try again later\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        };
        let (sender, body) = stream::body();
        let torrents = state.torrents.clone();
        tokio::spawn(async move {
            torrents.list(sender, line).await;
            drop(permit);
        });
        return stream::response(opentracker_stats::TEXT, body);
    }
    if opentracker_stats::needs_swarm_scan(&query)
        && let Err(no_answer) = state.torrents.refresh_summary().await
    {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{no_answer}\n")).into_response();
    }
    match opentracker_stats::page(&query, &state.monitored) {
        Ok((content_type, text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(text) => (StatusCode::NOT_FOUND, text).into_response(),
    }
}
