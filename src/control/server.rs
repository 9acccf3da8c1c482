//! The HTTP server of the control plane: health, metrics, and changes by the operator.
//!
//! It runs on one thread, over TCP and a unix socket. The resources of clients are bounded: the number of connections,
//! the size of a request head, and the time for a head and for a whole exchange. Each connection serves one request.

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

/// Maximum number of connections over TCP that are served at a time. Further connections wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// Maximum number of connections over the unix socket that are served at a time.
const LOCAL_CONNECTIONS_MAX: usize = 16;

/// Time that a client may take to send a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole exchange. A reload may read large lists.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum bytes of a request head.
const HEAD_LEN_MAX: usize = 16 << 10;

/// Reason why the control plane could not listen.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another process uses the address.
    #[error(
        "control.listen: {0} is taken by another process; choose another address, or \"\" to disable it"
    )]
    Taken(SocketAddr),
    /// The address could not be bound for another reason.
    #[error("control.listen: cannot bind {0}: {1}; choose another address, or \"\" to disable it")]
    Failed(SocketAddr, #[source] io::Error),
    /// Another process listens on the unix socket.
    #[error("control.socket: another process listens on {0}; stop it, or choose another path")]
    SocketTaken(PathBuf),
    /// The unix socket could not be created for another reason.
    #[error(
        "control.socket: cannot listen on {0}: {1}; choose a directory that this user may write to"
    )]
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
    ///
    /// # Errors
    ///
    /// Returns an error if one of them cannot be bound, for example because another process uses it.
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
    // For the user and the group only: every client of the socket may change what is served.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
enum ClientAddress {
    Ip(IpAddr),
    UnixSocket,
}

#[derive(Clone)]
struct ControlState {
    monitored: Monitored,
    commands: UnboundedSender<ReloadCommand>,
    /// Configured names of this host.
    hosts: Arc<[String]>,
}

/// Serves requests until the future is dropped. Changes are sent to `commands`.
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
        .route("/v1/access_list/{info_hash}", put(add_to_list).delete(remove_from_list))
        .layer(from_fn_with_state(state.clone(), permit_changes));
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .merge(changes)
        .layer(from_fn_with_state(state.clone(), refuse_web_pages))
        .with_state(state);
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
    let service = TowerToHyperService::new(router.layer(Extension(client)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LEN_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // An error concerns only the client, which is disconnected.
    let _ = tokio::time::timeout(EXCHANGE_TIMEOUT, connection).await;
}

/// Refuses requests of web pages in a browser on this machine: they have an `Origin` header, or another host name that
/// resolves to this machine (DNS rebinding).
async fn refuse_web_pages(
    State(state): State<ControlState>,
    request: Request,
    next: Next,
) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "requests of web pages are refused\n").into_response();
    }
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    match host.or(request.uri().host()) {
        Some(host) if !is_this_host(host, &state.hosts) => {
            let text = format!(
                "{host:?} is not a name of this host; use its address, or add the name to control.hosts\n"
            );
            (StatusCode::FORBIDDEN, text).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Returns whether a `Host` header names this host: by any address, as `localhost`, or by a configured name.
fn is_this_host(host: &str, names: &[String]) -> bool {
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
    Extension(client): Extension<ClientAddress>,
    request: Request,
    next: Next,
) -> Response {
    match client {
        ClientAddress::Ip(address) if !address.is_loopback() => {
            (StatusCode::FORBIDDEN, "changes are permitted from this machine only\n")
                .into_response()
        }
        ClientAddress::Ip(_) | ClientAddress::UnixSocket => next.run(request).await,
    }
}

/// Handles `POST /v1/reload`: replies 200 with a summary, or 422 with the reason why nothing was changed.
async fn reload(State(state): State<ControlState>) -> (StatusCode, String) {
    run_job(&state.commands, ReloadJob::Config).await
}

/// Handles `POST /v1/evict`: removes all torrents without peers.
async fn evict(State(state): State<ControlState>) -> (StatusCode, String) {
    let shared_stats = state.monitored.shared_stats.iter();
    let count: usize =
        shared_stats.map(|shared_stats| shared_stats.read().table.empty_torrents).sum();
    run_job(&state.commands, ReloadJob::Evict(count)).await
}

/// Handles `PUT /v1/access_list/HASH`: adds a torrent to the access list. The change survives a restart.
async fn add_to_list(
    State(state): State<ControlState>,
    UrlPath(info_hash): UrlPath<String>,
) -> (StatusCode, String) {
    change_list(&state.commands, &info_hash, true).await
}

/// Handles `DELETE /v1/access_list/HASH`: removes a torrent from the access list. The change survives a restart.
async fn remove_from_list(
    State(state): State<ControlState>,
    UrlPath(info_hash): UrlPath<String>,
) -> (StatusCode, String) {
    change_list(&state.commands, &info_hash, false).await
}

async fn change_list(
    commands: &UnboundedSender<ReloadCommand>,
    info_hash: &str,
    is_listed: bool,
) -> (StatusCode, String) {
    match parse_info_hash(info_hash) {
        Some(info_hash) => run_job(commands, ReloadJob::ChangeList(info_hash, is_listed)).await,
        None => {
            let text =
                format!("{info_hash:?} is not an info hash; give 40 or 64 hexadecimal digits\n");
            (StatusCode::BAD_REQUEST, text)
        }
    }
}

/// Runs a job and returns its result.
async fn run_job(
    commands: &UnboundedSender<ReloadCommand>,
    job: ReloadJob,
) -> (StatusCode, String) {
    let (reply, result) = oneshot::channel();
    // Sending fails only while the tracker is stopping.
    let _ = commands.send((job, Some(reply)));
    match result.await {
        Ok(Ok(message)) => (StatusCode::OK, format!("{message}\n")),
        Ok(Err(error)) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the tracker is stopping\n".to_owned()),
    }
}

/// Handles `GET /healthz`: replies 200 with `ok`, or 503 with the numbers of the stuck shards. Either reply also lists
/// the files whose reads take too long.
async fn health(State(state): State<ControlState>) -> (StatusCode, String) {
    let stuck = state.monitored.stuck_shards();
    let reads = state.monitored.slow_reads.stuck();
    let reads: String = reads
        .iter()
        .map(|(name, since)| {
            format!("reading {name} takes too long: {} s so far\n", since.as_secs())
        })
        .collect();
    if stuck.is_empty() {
        return (StatusCode::OK, format!("ok\n{reads}"));
    }
    let numbers: Vec<_> = stuck.iter().map(usize::to_string).collect();
    let text = format!("stuck shards: {}\n{reads}", numbers.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

/// Handles `GET /metrics`: replies with all metrics, in the text format of Prometheus, or in that of OpenMetrics if the
/// client accepts it.
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
            assert!(is_this_host(host, &names), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:6880", "", "x:y"]
        {
            assert!(!is_this_host(host, &names), "{host}");
        }
    }
}
