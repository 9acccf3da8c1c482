//! The HTTP server of the control plane: health, metrics, and changes by the operator.
//!
//! One thread serves it over TCP and a unix socket. What a client can make it hold is bounded: connections, the size of
//! a request head, the time of the head and of the whole exchange. Each connection is for one request.

use super::metrics;
use super::monitored::Monitored;
use crate::config::ControlConfig;
use crate::hex::parse_info_hash;
use crate::process::reload::{ReloadCommand, ReloadJob};
use axum::Router;
use axum::extract::{Extension, Path as UrlPath, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};

/// Maximum number of connections over TCP; others wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// Maximum number of connections over the unix socket.
const LOCAL_CONNECTIONS_MAX: usize = 16;

/// How long a client may take to send its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a whole exchange may take: a reload may read large lists.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum bytes of a request head.
const HEAD_LEN_MAX: usize = 16 << 10;

/// Why the control plane cannot be opened.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another process uses the address.
    #[error(
        "control.listen: {0} is taken by another process; choose another, or \"\" to switch it off"
    )]
    Taken(SocketAddr),
    /// The address cannot be bound for another reason.
    #[error("control.listen: cannot bind {0}: {1}; choose another, or \"\" to switch it off")]
    Failed(SocketAddr, #[source] io::Error),
    /// Another process listens on the socket.
    #[error("control.socket: another process listens on {0}; stop that, or choose another path")]
    SocketTaken(PathBuf),
    /// The socket cannot be opened for another reason.
    #[error("control.socket: cannot listen on {0}: {1}; choose a path that this user may write")]
    SocketFailed(PathBuf, #[source] io::Error),
}

/// The listening sockets of the control plane.
#[derive(Debug, Default)]
pub struct ControlListeners {
    /// The TCP socket.
    pub tcp: Option<TcpListener>,
    /// The unix socket and its path.
    pub unix: Option<(UnixListener, PathBuf)>,
}

impl ControlListeners {
    /// Binds the configured sockets.
    pub fn bind(control: &ControlConfig) -> Result<Self, ControlError> {
        let tcp = control.listen.map(bind_tcp).transpose()?;
        let unix = control.socket.as_deref().map(bind_unix).transpose()?;
        Ok(Self { tcp, unix: unix.zip(control.socket.clone()) })
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ControlError> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ControlError::Taken(address),
        _ => ControlError::Failed(address, error),
    })?;
    listener.set_nonblocking(true).map_err(|error| ControlError::Failed(address, error))?;
    Ok(listener)
}

fn bind_unix(path: &Path) -> Result<UnixListener, ControlError> {
    let failed = |error| ControlError::SocketFailed(path.to_owned(), error);
    // A process that was killed leaves its socket behind.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            return Err(ControlError::SocketTaken(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // For the user and the group only: a client that connects can change what is served.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
enum RequestOrigin {
    Address(IpAddr),
    UnixSocket,
}

#[derive(Clone)]
struct ControlState {
    monitored: Monitored,
    commands: UnboundedSender<ReloadCommand>,
    /// Names of this host.
    hosts: Arc<[String]>,
}

/// Serves requests until it is dropped; changes are sent to `commands`.
pub async fn serve(
    listeners: ControlListeners,
    hosts: Vec<String>,
    monitored: Monitored,
    commands: UnboundedSender<ReloadCommand>,
) -> io::Result<()> {
    let state = ControlState { monitored, commands, hosts: hosts.into() };
    let changes = Router::new()
        .route("/v1/reload", post(reload))
        .route("/v1/evict", post(evict))
        .route("/v1/access_list/{info_hash}", put(list).delete(unlist))
        .layer(from_fn_with_state(state.clone(), permit_changes));
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .merge(changes)
        .layer(from_fn_with_state(state.clone(), check_origin))
        .with_state(state);
    let tcp = listeners.tcp.map(tokio::net::TcpListener::from_std).transpose()?;
    let unix = listeners.unix.map(|(it, _)| tokio::net::UnixListener::from_std(it)).transpose()?;
    let serve_tcp = async {
        let Some(listener) = tcp else { return };
        let accept = |context: &mut Context<'_>| {
            let peer = |address: SocketAddr| RequestOrigin::Address(address.ip().to_canonical());
            listener.poll_accept(context).map_ok(|(stream, address)| (stream, peer(address)))
        };
        serve_each(CONNECTIONS_MAX, accept, router.clone()).await;
    };
    let serve_unix = async {
        let Some(listener) = unix else { return };
        let accept = |context: &mut Context<'_>| {
            listener.poll_accept(context).map_ok(|(stream, _)| (stream, RequestOrigin::UnixSocket))
        };
        serve_each(LOCAL_CONNECTIONS_MAX, accept, router.clone()).await;
    };
    tokio::join!(serve_tcp, serve_unix);
    Ok(())
}

/// Serves connections as they are accepted, a limited number at a time.
async fn serve_each<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    connections_max: usize,
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<(S, RequestOrigin)>>,
    router: Router,
) {
    let connections = Arc::new(Semaphore::new(connections_max));
    while let Ok(permit) = connections.clone().acquire_owned().await {
        match poll_fn(&mut accept).await {
            Ok((stream, peer)) => {
                let exchange = exchange(stream, peer, router.clone());
                tokio::spawn(async move {
                    exchange.await;
                    drop(permit);
                });
            }
            Err(_) => pause_after_failed_accept().await,
        }
    }
}

/// Waits before the next accept: what made the last one fail, as a lack of descriptors, takes a moment to end.
async fn pause_after_failed_accept() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Serves one request.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: RequestOrigin,
    router: Router,
) {
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LEN_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // However it ends, there is nothing to do.
    let _ = tokio::time::timeout(EXCHANGE_TIMEOUT, connection).await;
}

/// Refuses requests of web pages in a browser on this machine: they have an Origin header, or use a host name of their
/// own (DNS rebinding).
async fn check_origin(State(state): State<ControlState>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "not for web pages\n").into_response();
    }
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    match host.or(request.uri().host()) {
        Some(host) if !is_own_host(host, &state.hosts) => {
            let text = format!(
                "{host:?} is not a name of this host; use its address, or add the name to control.hosts\n"
            );
            (StatusCode::FORBIDDEN, text).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Returns whether a Host header names this host: by an address, as `localhost`, or by a configured name.
fn is_own_host(host: &str, names: &[String]) -> bool {
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = without_port.trim_start_matches('[').trim_end_matches(']');
    let is_name = |name: &str| without_port.eq_ignore_ascii_case(name);
    bare.parse::<IpAddr>().is_ok() || is_name("localhost") || names.iter().any(|it| is_name(it))
}

/// Permits changes from this machine only.
async fn permit_changes(
    Extension(peer): Extension<RequestOrigin>,
    request: Request,
    next: Next,
) -> Response {
    match peer {
        RequestOrigin::Address(address) if !address.is_loopback() => {
            (StatusCode::FORBIDDEN, "changes are made from this machine alone\n").into_response()
        }
        RequestOrigin::Address(_) | RequestOrigin::UnixSocket => next.run(request).await,
    }
}

/// `POST /v1/reload`: 200 and what was read, or 422 and why nothing has changed.
async fn reload(State(state): State<ControlState>) -> (StatusCode, String) {
    run_job(&state.commands, ReloadJob::Config).await
}

/// `POST /v1/evict`: removes all torrents without peers.
async fn evict(State(state): State<ControlState>) -> (StatusCode, String) {
    let shared_stats = state.monitored.shared_stats.iter();
    let count: usize =
        shared_stats.map(|shared_stats| shared_stats.read().table.empty_torrents).sum();
    run_job(&state.commands, ReloadJob::Evict(count)).await
}

/// `PUT /v1/access_list/HASH`: adds a torrent to the access list, persistently.
async fn list(
    State(state): State<ControlState>,
    UrlPath(info_hash): UrlPath<String>,
) -> (StatusCode, String) {
    change(&state.commands, &info_hash, true).await
}

/// `DELETE /v1/access_list/HASH`: removes a torrent from the access list, persistently.
async fn unlist(
    State(state): State<ControlState>,
    UrlPath(info_hash): UrlPath<String>,
) -> (StatusCode, String) {
    change(&state.commands, &info_hash, false).await
}

async fn change(
    commands: &UnboundedSender<ReloadCommand>,
    info_hash: &str,
    on: bool,
) -> (StatusCode, String) {
    match parse_info_hash(info_hash) {
        Some(info_hash) => run_job(commands, ReloadJob::Change(info_hash, on)).await,
        None => {
            let text =
                format!("{info_hash:?} is not an info hash; give 40 or 64 hexadecimal digits\n");
            (StatusCode::BAD_REQUEST, text)
        }
    }
}

async fn run_job(
    commands: &UnboundedSender<ReloadCommand>,
    job: ReloadJob,
) -> (StatusCode, String) {
    let (reply, done) = oneshot::channel();
    // Fails only when the tracker stops.
    let _ = commands.send((job, Some(reply)));
    match done.await {
        Ok(Ok(message)) => (StatusCode::OK, format!("{message}\n")),
        Ok(Err(error)) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the tracker stops\n".to_owned()),
    }
}

/// `GET /healthz`: 200 `ok`, or 503 and the shards that are stuck; both name reads of files that take too long.
async fn health(State(state): State<ControlState>) -> (StatusCode, String) {
    let stuck = state.monitored.stuck_shards();
    let reads = state.monitored.slow_reads.stuck();
    let reads: String = reads
        .iter()
        .map(|(name, since)| format!("stuck for {} s: reading {name}\n", since.as_secs()))
        .collect();
    if stuck.is_empty() {
        return (StatusCode::OK, format!("ok\n{reads}"));
    }
    let numbers: Vec<_> = stuck.iter().map(usize::to_string).collect();
    let text = format!("stuck shards: {}\n{reads}", numbers.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

/// `GET /metrics`: all metrics, in the text format of Prometheus or, if it is accepted, as OpenMetrics.
async fn metrics(State(state): State<ControlState>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|it| it.to_str().ok());
    let format = metrics::Format::accepted(accepted);
    ([(header::CONTENT_TYPE, format.content_type())], metrics::text(&state.monitored, format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_localhost_and_configured_names() {
        let names = ["tracker.example".to_owned()];
        for host in [
            "127.0.0.1",
            "127.0.0.1:6880",
            "[::1]:6880",
            "::1",
            "localhost:6880",
            "LOCALHOST",
            "192.0.2.1:1",
            "Tracker.Example:80",
        ] {
            assert!(is_own_host(host, &names), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:6880", "", "x:y"]
        {
            assert!(!is_own_host(host, &names), "{host}");
        }
    }
}
