//! The control plane's HTTP server: health and metrics, for those who watch.

use crate::clock::Clock;
use crate::metrics;
use crate::stats::Board;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use thiserror::Error;

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

/// Serves until it is dropped
pub async fn serve(listener: TcpListener, watched: Watched) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .with_state(watched);
    axum::serve(listener, router).await
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
