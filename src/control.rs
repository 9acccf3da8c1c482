//! The control plane's HTTP server: health and metrics for those who watch, changes for those who run the tracker.

use crate::clock::Clock;
use crate::metrics;
use crate::policy::access_list::parse_hash;
use crate::reload::{Command, Job};
use crate::stats::Board;
use axum::Router;
use axum::extract::{ConnectInfo, Path as UrlPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// A shard publishes each second; one that has not for so long is stuck
const STUCK_SECS: u64 = 5;

/// Why the control plane could not be opened
#[derive(Debug, Error)]
pub enum ControlError {
    /// Somebody has the address
    #[error(
        "control.listen: {0} is taken by another process; choose another, or \"\" to switch the control \
         plane off"
    )]
    Taken(SocketAddr),
    /// Anything else
    #[error("control.listen: cannot bind {0}: {1}; choose another, or \"\" to switch it off")]
    Failed(SocketAddr, #[source] io::Error),
}

/// What the control plane watches
#[derive(Clone, Debug)]
pub struct Watched {
    /// A board for each shard
    pub boards: Arc<[Arc<Board>]>,
    /// Tells how old they are
    pub clock: Clock,
}

impl Watched {
    fn stuck(&self) -> Vec<usize> {
        let now = self.clock.now().monotonic.0;
        let is_stuck = |board: &Board| now.saturating_sub(board.written().0) > STUCK_SECS;
        let shards = self.boards.iter().enumerate();
        shards.filter(|(_, board)| is_stuck(board)).map(|(shard, _)| shard).collect()
    }
}

/// Binds the control plane's address
pub fn bind(address: SocketAddr) -> Result<TcpListener, ControlError> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ControlError::Taken(address),
        _ => ControlError::Failed(address, error),
    })?;
    listener.set_nonblocking(true).map_err(|error| ControlError::Failed(address, error))?;
    Ok(listener)
}

/// Serves until it is dropped; what is to change is asked of whoever receives `ask`
pub async fn serve(
    listener: TcpListener,
    watched: Watched,
    ask: UnboundedSender<Command>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let changes = Router::new()
        .route("/v1/reload", post(reload))
        .route("/v1/access_list/{info_hash}", put(list).delete(unlist))
        .layer(from_fn(refuse_strangers))
        .with_state(ask);
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .with_state(watched)
        .merge(changes);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

/// Whoever is on this machine may change things: neither those who may read figures from elsewhere, nor web pages that
/// are open in a browser here
async fn refuse_strangers(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "changes are made from this machine alone\n")
            .into_response();
    }
    if request.headers().contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "not for web pages\n").into_response();
    }
    next.run(request).await
}

/// `POST /v1/reload`: 200 and what was read, or 422 and why nothing has changed
async fn reload(State(ask): State<UnboundedSender<Command>>) -> (StatusCode, String) {
    have_done(&ask, Job::Config).await
}

/// `PUT /v1/access_list/HASH`: puts a torrent on the access list, over a restart
async fn list(
    State(ask): State<UnboundedSender<Command>>,
    UrlPath(info_hash): UrlPath<String>,
) -> (StatusCode, String) {
    change(&ask, &info_hash, true).await
}

/// `DELETE /v1/access_list/HASH`: takes a torrent off the access list, over a restart
async fn unlist(
    State(ask): State<UnboundedSender<Command>>,
    UrlPath(info_hash): UrlPath<String>,
) -> (StatusCode, String) {
    change(&ask, &info_hash, false).await
}

async fn change(ask: &UnboundedSender<Command>, info_hash: &str, on: bool) -> (StatusCode, String) {
    match parse_hash(info_hash) {
        Some(info_hash) => have_done(ask, Job::Change(info_hash, on)).await,
        None => {
            let text = format!("{info_hash:?} is no info hash; give 40 or 64 hexadecimal digits\n");
            (StatusCode::BAD_REQUEST, text)
        }
    }
}

async fn have_done(ask: &UnboundedSender<Command>, job: Job) -> (StatusCode, String) {
    let (reply, done) = oneshot::channel();
    // Fails only when the tracker stops.
    let _ = ask.send((job, Some(reply)));
    match done.await {
        Ok(Ok(said)) => (StatusCode::OK, format!("{said}\n")),
        Ok(Err(error)) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the tracker stops\n".to_owned()),
    }
}

/// `GET /healthz`: 200 `ok`, or 503 and the shards that are stuck
async fn health(State(watched): State<Watched>) -> (StatusCode, String) {
    let stuck = watched.stuck();
    if stuck.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let numbers: Vec<_> = stuck.iter().map(usize::to_string).collect();
    (StatusCode::SERVICE_UNAVAILABLE, format!("stuck shards: {}\n", numbers.join(", ")))
}

/// `GET /metrics`: all figures of all shards, as OpenMetrics text
async fn metrics(State(watched): State<Watched>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::text(&watched))
}
