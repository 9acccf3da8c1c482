//! The API of the operator under `/v1`: JSON over HTTP, described by `openapi.json`.

use super::monitored::ServedValue;
use super::state::ControlState;
use super::status::Status;
use super::stream::{self, ShardTimeout};
use super::torrents::LARGEST_MAX;
use crate::config::LogLevel;
use crate::hex::parse_info_hash;
use crate::process::log;
use crate::process::reload::{ControlCommand, JobReply, ReloadJob};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;
use tsubame_storage::{InfoHash, Role, SwarmStats};

/// Description of the API.
const OPENAPI: &str = include_str!("openapi.json");

/// Maximum number of peers of a torrent in a reply.
const PEERS_MAX: usize = 200;

/// Number of peers of a torrent in a reply, unless the request has another.
const PEERS_DEFAULT: usize = 20;

/// Number of torrents in a list, unless the request has another.
const TORRENTS_DEFAULT: usize = 10;

/// Maximum number of changes of the access list in a request.
const CHANGES_MAX: usize = 10_000;

/// Number of info hashes that are written at once when the access list is exported.
const EXPORTED_AT_ONCE: usize = 1_000;

/// Parameters in the query of a URL; of a repeated one the last value counts.
type QueryParameters = HashMap<String, String>;

/// Returns the routes of the API.
pub(super) fn routes() -> Router<ControlState> {
    Router::new()
        .route("/openapi.json", get(async || json_text(StatusCode::OK, OPENAPI.to_owned())))
        .route("/status", get(status))
        .route("/config", get(config))
        .route("/torrents", get(list_torrents))
        .route("/torrents/{info_hash}", get(show_torrent).delete(remove_torrent))
        .route("/access_list", get(export_list).post(change_list))
        .route("/access_list/{info_hash}", put(add_to_list).delete(remove_from_list))
        .route("/reload", post(reload))
        .route("/upgrade", post(upgrade))
        .route("/stop", post(stop))
        .route("/evict", post(evict))
        .route("/log_level", get(show_log_level).put(set_log_level))
        .route("/drain", get(show_drain).put(set_drain))
}

fn json_text(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn json(value: &impl Serialize) -> ApiResult {
    let text = serde_json::to_string(value);
    let text =
        text.map_err(|failure| error(StatusCode::INTERNAL_SERVER_ERROR, &failure.to_string()))?;
    Ok(json_text(StatusCode::OK, text + "\n"))
}

/// Status and text of the reply to a request that failed.
#[derive(Debug)]
pub(super) struct ApiError(pub(super) StatusCode, pub(super) String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct ErrorReply<'a> {
            error: &'a str,
        }
        let Self(status, text) = self;
        let text = serde_json::to_string(&ErrorReply { error: &text }).unwrap_or_default();
        json_text(status, text + "\n")
    }
}

impl From<ShardTimeout> for ApiError {
    fn from(no_answer: ShardTimeout) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, no_answer.to_string())
    }
}

/// Reply to a request.
type ApiResult = Result<Response, ApiError>;

fn error(status: StatusCode, text: &str) -> ApiError {
    ApiError(status, text.to_owned())
}

/// Parses an info hash of a path.
fn info_hash(text: &str) -> Result<InfoHash, ApiError> {
    parse_info_hash(text).ok_or_else(|| {
        let text = format!("{text:?} is not an info hash; give 40 or 64 hexadecimal digits");
        error(StatusCode::BAD_REQUEST, &text)
    })
}

/// Parses the body of a request, which must be an object: serde would take an array for one, too.
fn body<'a, T: Deserialize<'a>>(bytes: &'a Bytes) -> Result<T, ApiError> {
    let refusal = |why: &dyn std::fmt::Display| {
        let text = format!("the body is not valid: {why}; see /v1/openapi.json");
        error(StatusCode::BAD_REQUEST, &text)
    };
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(refusal(&"it is not a JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|failure| refusal(&failure))
}

/// Parses a number of the query.
fn number(
    text: Option<&String>,
    default: usize,
    max: usize,
    name: &str,
) -> Result<usize, ApiError> {
    let Some(text) = text else { return Ok(default) };
    text.parse().ok().filter(|number| *number <= max).ok_or_else(|| {
        let text = format!("{name}: {text:?} is not a number from 0 to {max}");
        error(StatusCode::BAD_REQUEST, &text)
    })
}

/// Runs a job and returns its result. `failed` is the status of a job that changes nothing.
async fn run_job(state: &ControlState, job: ReloadJob, failed: StatusCode) -> ApiResult {
    run_command(state, |reply| ControlCommand::Job((job, Some(reply))), failed).await
}

/// Executes a command and returns its result. `failed` is the status of a command that changes nothing.
async fn run_command(
    state: &ControlState,
    command: impl FnOnce(JobReply) -> ControlCommand,
    failed: StatusCode,
) -> ApiResult {
    #[derive(Serialize)]
    struct CommandReply {
        message: String,
    }
    let (reply, result) = oneshot::channel();
    // Sending fails only while the tracker is stopping.
    let _ = state.commands.send(command(reply));
    match result.await {
        Ok(Ok(message)) => json(&CommandReply { message }),
        Ok(Err(text)) => Err(error(failed, &text)),
        Err(_) => Err(error(StatusCode::SERVICE_UNAVAILABLE, "the tracker is stopping")),
    }
}

/// Handles `POST /v1/reload`: replies with a summary, or with the reason why nothing was changed.
async fn reload(State(state): State<ControlState>) -> ApiResult {
    run_job(&state, ReloadJob::Config, StatusCode::UNPROCESSABLE_ENTITY).await
}

/// Handles `POST /v1/upgrade`: replaces the process by a new one of the program that is now at its path. Replies when
/// the new one serves, or with the reason why this one serves on.
async fn upgrade(State(state): State<ControlState>) -> ApiResult {
    run_command(&state, ControlCommand::Upgrade, StatusCode::CONFLICT).await
}

/// Handles `POST /v1/stop`: stops the tracker as SIGTERM does.
async fn stop(State(state): State<ControlState>) -> ApiResult {
    run_command(&state, ControlCommand::Stop, StatusCode::CONFLICT).await
}

/// Handles `POST /v1/evict`: removes all torrents without peers.
async fn evict(State(state): State<ControlState>) -> ApiResult {
    let shared_stats = state.monitored.shared_stats.iter();
    let count: usize =
        shared_stats.map(|shared_stats| shared_stats.read().table.empty_torrents).sum();
    run_job(&state, ReloadJob::Evict(count), StatusCode::UNPROCESSABLE_ENTITY).await
}

/// Handles `GET /v1/status`.
async fn status(State(state): State<ControlState>) -> ApiResult {
    json(&Status::read(&state.monitored))
}

/// Handles `GET /v1/config`: replies with the values of all config keys that are in force.
async fn config(State(state): State<ControlState>) -> ApiResult {
    #[derive(Serialize)]
    struct ConfigReply<'a> {
        values: &'a [ServedValue],
    }
    json(&ConfigReply { values: &state.monitored.values_in_force() })
}

/// A torrent in a reply.
#[derive(Serialize)]
struct TorrentReply {
    info_hash: String,
    seeders: u32,
    leechers: u32,
    partial_seeds: u32,
    completed: u32,
}

impl TorrentReply {
    fn new(info_hash: InfoHash, stats: SwarmStats) -> Self {
        let SwarmStats { counts, partial_seeds } = stats;
        let (seeders, leechers) = (counts.seeders, counts.leechers);
        let (info_hash, completed) = (info_hash.to_string(), counts.completed);
        Self { info_hash, seeders, leechers, partial_seeds, completed }
    }
}

/// Handles `GET /v1/torrents`: replies with the torrents with the most peers, as of a scan that is at most ten seconds
/// old.
async fn list_torrents(
    State(state): State<ControlState>,
    Query(query): Query<QueryParameters>,
) -> ApiResult {
    #[derive(Serialize)]
    struct ListReply {
        age_secs: u64,
        torrents: Vec<TorrentReply>,
    }
    let limit = number(query.get("limit"), TORRENTS_DEFAULT, LARGEST_MAX, "limit")?;
    state.torrents.refresh_summary().await?;
    let now = state.monitored.clock.now().monotonic.0;
    let (at, summary) = state.monitored.summary().ok_or(ShardTimeout)?;
    let torrents = summary.largest.iter().take(limit);
    let torrents = torrents.map(|(hash, stats)| TorrentReply::new(*hash, *stats)).collect();
    json(&ListReply { age_secs: now.saturating_sub(at.0), torrents })
}

/// Handles `GET /v1/torrents/HASH`: replies with the counts of a torrent and a sample of its peers.
async fn show_torrent(
    State(state): State<ControlState>,
    Path(hash): Path<String>,
    Query(query): Query<QueryParameters>,
) -> ApiResult {
    #[derive(Serialize)]
    struct PeerReply {
        address: String,
        port: u16,
        role: &'static str,
        age_secs: u32,
        /// Whether it was learned from another node of the cluster.
        remote: bool,
    }
    #[derive(Serialize)]
    struct DetailsReply {
        #[serde(flatten)]
        torrent: TorrentReply,
        peers: Vec<PeerReply>,
    }
    let peers_max = number(query.get("peers"), PEERS_DEFAULT, PEERS_MAX, "peers")?;
    let info_hash = info_hash(&hash)?;
    let details =
        state.torrents.inspect(info_hash, peers_max).await?.ok_or_else(unknown_torrent)?;
    let peers = details.peers.iter().map(|peer| PeerReply {
        address: peer.endpoint.address().to_string(),
        port: peer.endpoint.port(),
        role: match peer.role {
            Role::Seeder => "seeder",
            Role::Leecher => "leecher",
            Role::PartialSeed => "partial_seed",
        },
        age_secs: peer.age_secs,
        remote: peer.is_remote,
    });
    let peers = peers.collect();
    json(&DetailsReply { torrent: TorrentReply::new(info_hash, details.stats), peers })
}

/// Handles `DELETE /v1/torrents/HASH`: removes a torrent and its peers. Its clients join again at their next announce.
async fn remove_torrent(State(state): State<ControlState>, Path(hash): Path<String>) -> ApiResult {
    let info_hash = info_hash(&hash)?;
    if !state.torrents.remove(info_hash).await? {
        return Err(unknown_torrent());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn unknown_torrent() -> ApiError {
    error(StatusCode::NOT_FOUND, "the torrent is not in the swarm table")
}

/// Handles `PUT /v1/access_list/HASH`: adds a torrent to the access list. The change survives a restart.
async fn add_to_list(State(state): State<ControlState>, Path(hash): Path<String>) -> ApiResult {
    change_entry(&state, &hash, true).await
}

/// Handles `DELETE /v1/access_list/HASH`: removes a torrent from the access list. The change survives a restart.
async fn remove_from_list(
    State(state): State<ControlState>,
    Path(hash): Path<String>,
) -> ApiResult {
    change_entry(&state, &hash, false).await
}

async fn change_entry(state: &ControlState, hash: &str, is_listed: bool) -> ApiResult {
    let change = ReloadJob::ChangeList(vec![(info_hash(hash)?, is_listed)]);
    run_job(state, change, StatusCode::CONFLICT).await
}

/// Handles `POST /v1/access_list`: adds and removes many torrents at once.
async fn change_list(State(state): State<ControlState>, bytes: Bytes) -> ApiResult {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ChangeRequest {
        #[serde(default)]
        add: Vec<String>,
        #[serde(default)]
        remove: Vec<String>,
    }
    let request: ChangeRequest = body(&bytes)?;
    if request.add.len() + request.remove.len() > CHANGES_MAX {
        let text = format!("the request has more than {CHANGES_MAX} changes; divide it");
        return Err(error(StatusCode::BAD_REQUEST, &text));
    }
    let mut changes = Vec::new();
    for (hashes, is_listed) in [(&request.add, true), (&request.remove, false)] {
        for hash in hashes {
            changes.push((info_hash(hash)?, is_listed));
        }
    }
    run_job(&state, ReloadJob::ChangeList(changes), StatusCode::CONFLICT).await
}

/// Handles `GET /v1/access_list`: replies with the info hashes of the access list, one on each line, in no order.
async fn export_list(State(state): State<ControlState>) -> ApiResult {
    let Some(list) = state.monitored.served_config().access_list else {
        let text = "the config must have exactly one access_list hook";
        return Err(error(StatusCode::CONFLICT, text));
    };
    let Ok(permit) = state.lists.clone().try_acquire_owned() else {
        let text = "other lists are being sent; try again later";
        return Err(error(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let (sender, body) = stream::body();
    tokio::spawn(async move {
        let mut hashes = list.iter();
        loop {
            let mut text = String::new();
            hashes.by_ref().take(EXPORTED_AT_ONCE).for_each(|hash| _ = writeln!(text, "{hash}"));
            if text.is_empty() || sender.send(Ok(text.into())).await.is_err() {
                break;
            }
        }
        drop(permit);
    });
    Ok(stream::response("text/plain; charset=utf-8", body))
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LevelBody {
    level: String,
}

fn level_reply() -> ApiResult {
    json(&LevelBody { level: log::level().name().to_owned() })
}

/// Handles `GET /v1/log_level`.
async fn show_log_level() -> ApiResult {
    level_reply()
}

/// Handles `PUT /v1/log_level`: changes the level of the log until the next reload.
async fn set_log_level(bytes: Bytes) -> ApiResult {
    let request: LevelBody = body(&bytes)?;
    let Some(level) = LogLevel::ALL.into_iter().find(|level| level.name() == request.level) else {
        let text = format!("{:?} is not a level; give error, warn, info or debug", request.level);
        return Err(error(StatusCode::BAD_REQUEST, &text));
    };
    log::set_level(level);
    level_reply()
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DrainBody {
    draining: bool,
}

/// Handles `GET /v1/drain`.
async fn show_drain(State(state): State<ControlState>) -> ApiResult {
    let draining = state.monitored.process.is_draining.load(Ordering::Relaxed);
    json(&DrainBody { draining })
}

/// Handles `PUT /v1/drain`. While the tracker drains, `/readyz` replies 503: load balancers send no new clients.
async fn set_drain(State(state): State<ControlState>, bytes: Bytes) -> ApiResult {
    let request: DrainBody = body(&bytes)?;
    state.monitored.process.is_draining.store(request.draining, Ordering::Relaxed);
    json(&request)
}
