//! Starts the tracker, says what it serves, and ends it.

use crate::clock::Clock;
use crate::config::Config;
use crate::control::{self, ControlError, Watched};
use crate::cpus::{self, CpuError};
use crate::http::{self, Certificate, FullScrapes, Tls, TlsError};
use crate::identity::Identity;
use crate::listen::{Key, ListenError, Listeners};
use crate::mesh::{Message, Port, mesh};
use crate::policy::seeds::Seeds;
use crate::policy::{Plan, PlanError, Policy};
use crate::reload::{self, Command, Job, Reloads};
use crate::shard::{Parts, Shard};
use crate::stats::{Board, Figures};
use crate::supervisor::{Ended, ShardError, Supervisor};
use crate::tracker::{Terms, Tracker};
use crate::{memory, report};
use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tsubame_storage::{Settings, Swarms};
use tsubame_udp::connection_id::ConnectionIds;
use tsubame_udp::ring::Ring;

/// Entries of each shard's tokio-uring ring, which carries HTTP: what is asked of the kernel in one call
const RUNTIME_RING_ENTRIES: u32 = 256;

/// How long shards may take to stop
const STOP_PATIENCE: Duration = Duration::from_millis(900);

/// How often the control plane looks at the figures
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// How often files are looked at that may have changed
const LOOK_AT_FILES_EVERY: Duration = Duration::from_secs(1);

/// Why the tracker did not start or did not go on
#[derive(Debug, Error)]
pub enum RunError {
    /// No cores
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// No sockets
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No control plane
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No certificate
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No policy
    #[error(transparent)]
    Policy(#[from] PlanError),
    /// No shards
    #[error(transparent)]
    Shards(ShardError),
    /// No keys
    #[error("cannot draw keys from the kernel: {0}; getrandom(2) must be permitted")]
    Randomness(getrandom::Error),
    /// No signals, or no thread for them
    #[error("cannot start the control plane: {0}; raise the limit on files (ulimit -n)")]
    Runtime(#[source] io::Error),
    /// A shard ended by itself
    #[error("shard {0} has died: {1}")]
    ShardDied(u16, String),
}

/// Permits this process as many files as it may have at all
///
/// Each shard has a socket for each local address: the usual soft limit of 1,024 is soon reached.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where that is refused, a message names the limit if it is ever reached.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// A tracker that is up, with all that watches over it
struct Running {
    supervisor: Supervisor,
    control: Port,
    watched: Watched,
    steered: bool,
    reloads: Reloads,
    /// Policies that no shard goes by any more
    to_free: UnboundedReceiver<Box<Policy>>,
}

/// Runs the tracker until it is told to stop by SIGINT or SIGTERM
///
/// `path` is where the config was read from, to be read again when it changes.
pub fn run(config: &Config, path: Option<&Path>) -> Result<(), RunError> {
    let clock = Clock::new();
    raise_file_limit();
    let cores = cpus::choose(&config.cpus)?;
    let shards = cores.len() as u16;
    let identity = Identity::draw(shards).map_err(RunError::Randomness)?;
    let stamps = reload::stamps(config);
    let mut seeds = Seeds::new(identity.policy_key());
    let plan = Plan::load(&config.hooks, &Plan::default(), seeds.draw())?;
    let mut listeners = Listeners::bind(&config.udp, &identity.steering_keys(), shards, &clock)?;
    let mut http = http::bind(Key::Http, &config.http.listen, shards, &clock)?;
    let mut https = http::bind(Key::Https, &config.http.tls.listen, shards, &clock)?;
    let http_terms =
        http_terms(config, [&listeners.addresses, &http.addresses, &https.addresses], shards);
    let runtime = control_runtime(shards)?;
    let certificate = match &config.http.tls {
        tls if tls.listen.is_empty() => None,
        tls => Some(Arc::new(Certificate::load(&tls.certificate, &tls.key)?)),
    };
    let tls = certificate.clone().map(|it| Tls::new(it, runtime.handle().clone())).transpose()?;
    let control = config.control.listen.map(control::bind).transpose()?;
    let ceiling = memory::ceiling(config.storage.memory);
    let full_scrapes: Arc<FullScrapes> = Arc::default();
    let (retired, to_free) = unbounded_channel();
    let mut ports = mesh(shards);
    let control_port = ports.pop().expect("a mesh has a port for the control plane");
    let boards: Arc<[Arc<Board>]> = (0..shards).map(|_| Arc::default()).collect();
    let sockets = std::mem::take(&mut listeners.shards);
    let connections = std::mem::take(&mut http.shards).into_iter();
    let connections = connections.zip(std::mem::take(&mut https.shards));
    let sockets = sockets.into_iter().zip(connections);
    let bodies = sockets.zip(ports).enumerate().map(|(number, ((sockets, listeners), port))| {
        let number = number as u16;
        let (board, keys) = (boards[usize::from(number)].clone(), identity.steering_keys());
        let mut tracker = tracker(config, &identity, number, ceiling / usize::from(shards));
        tracker.exchange_policy(clock.now(), &mut plan.policy(shards, seeds.draw()));
        let retired = retired.clone();
        let (plain, encrypted) = listeners;
        let http = http::Parts {
            plain,
            encrypted,
            terms: http_terms.clone(),
            tls: tls.clone(),
            full_scrapes: full_scrapes.clone(),
            helpers: runtime.handle().clone(),
        };
        let body = move |ready: &dyn Fn()| {
            let ring = Ring::new(sockets)?;
            let parts = Parts { number, shards, keys, ring, tracker, port, retired, board, clock };
            serve_shard(parts, http, ready)
        };
        (cores[usize::from(number)], body)
    });
    let supervisor = Supervisor::start(bodies.collect()).map_err(RunError::Shards)?;
    let watched = Watched { boards, clock };
    let steered = listeners.is_steered();
    let path = path.map(Path::to_owned);
    let listed = plan.listed();
    let drawn = (shards, seeds, clock);
    let reloads = Reloads::new(path, (config.clone(), stamps), plan, certificate, drawn);
    let running = Running { supervisor, control: control_port, watched, steered, reloads, to_free };
    let ended = control_plane(&runtime, running, control, |control| {
        report::started(config, (&listeners, &http, &https), &cores, (ceiling, listed), control);
    });
    // A helper may be waiting for a server that does not answer.
    runtime.shutdown_background();
    ended
}

/// The runtime of the control plane, whose helper threads do what would hold up a shard
fn control_runtime(shards: u16) -> Result<Runtime, RunError> {
    let everywhere = cpus::affinity();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Two may be held up for long, by a list that is read and a key server that does not answer.
        .max_blocking_threads(usize::from(shards) + 2)
        // A shard that asks for one starts it on its own core, where it must not stay.
        .on_thread_start(move || {
            cpus::spread(&everywhere);
            cpus::step_back();
        })
        .build()
        .map_err(RunError::Runtime)
}

fn http_terms(config: &Config, addresses: [&[SocketAddr]; 3], shards: u16) -> Arc<http::Terms> {
    let limits = config.http.limits;
    Arc::new(http::Terms {
        paths: config.http.paths.clone(),
        trusted_proxies: config.http.trusted_proxies.clone(),
        proxy_header: config.http.proxy_header,
        connections: (limits.connections as usize).div_ceil(usize::from(shards)),
        requests: limits.requests,
        idle_secs: limits.idle.as_secs(),
        head_secs: limits.head.as_secs(),
        full_scrape_networks: config.http.full_scrape_networks.clone(),
        full_scrape_interval_secs: config.http.full_scrape_interval.as_secs(),
        urls: announce_urls(config, addresses),
    })
}

/// Where clients announce over UDP, HTTP and HTTPS, without the host: each port and path once
fn announce_urls(
    config: &Config,
    [udp, http, https]: [&[SocketAddr]; 3],
) -> Vec<(&'static str, String)> {
    let over_udp = udp.iter().map(|address| ("udp", format!(":{}/announce", address.port())));
    let mut urls: Vec<_> = over_udp.collect();
    for (scheme, addresses) in [("http", http), ("https", https)] {
        for address in addresses {
            let paths = config.http.paths.announce.iter();
            urls.extend(paths.map(|path| (scheme, format!(":{}{path}", address.port()))));
        }
    }
    // Both families have mostly the same port.
    let mut seen = BTreeSet::new();
    urls.retain(|url| seen.insert(url.clone()));
    urls
}

fn tracker(config: &Config, identity: &Identity, shard: u16, memory_bytes: usize) -> Tracker {
    let (udp, announce) = (&config.udp, &config.announce);
    let drawn = identity.connection_id_key();
    let (first, others) = udp.connection_id_keys.split_first().unwrap_or((&drawn, &[]));
    let ids = ConnectionIds::new(*first, others, udp.connection_id_lifetime.as_secs());
    let terms = Terms {
        interval_secs: announce.interval.as_secs() as u32,
        min_interval_secs: announce.min_interval.as_secs() as u32,
        numwant_default: announce.numwant_default,
        numwant_max: announce.numwant_max,
        reply_len_max: udp.reply_size,
        trust_client_ip: announce.trust_client_ip.clone(),
        explain_wrong_connection_id: udp.explain_wrong_connection_id,
    };
    let swarms = Swarms::new(Settings {
        peer_lifetime_secs: announce.peer_lifetime.as_secs() as u32,
        keep_completed_secs: config.storage.keep_completed.as_secs() as u32,
        memory_bytes,
        source_share_per_10_000: 200,
        caps: config.storage.caps,
        allow_private: announce.allow_private,
        hash_key: identity.table_hash_key(),
        seed: identity.seed(shard),
    });
    Tracker::new(ids, terms, swarms)
}

/// The body of a shard's thread
fn serve_shard(parts: Parts, http: http::Parts, ready: &dyn Fn()) -> Result<(), ShardError> {
    let mut builder = tokio_uring::builder();
    builder.entries(RUNTIME_RING_ENTRIES);
    let runtime = tokio_uring::Runtime::new(&builder).map_err(ShardError::Start)?;
    ready();
    let ended = runtime.block_on(Shard::new(parts).run(http)).map_err(ShardError::Ring);
    // It would wait for connections whose clients have not noticed the end.
    std::mem::forget(runtime);
    ended
}

/// Signals, health and warnings, on this thread, until the end; `started` is called once signals are heard
fn control_plane(
    runtime: &Runtime,
    running: Running,
    control: Option<TcpListener>,
    started: impl FnOnce(Option<&TcpListener>),
) -> Result<(), RunError> {
    cpus::step_back();
    runtime.block_on(async {
        let signals = Signals::new().map_err(RunError::Runtime)?;
        started(control.as_ref());
        let (ask, commands) = unbounded_channel();
        if let Some(listener) = control {
            tokio::spawn(control::serve(listener, running.watched.clone(), ask));
        }
        watch(running, signals, commands).await
    })
}

/// The signals that mean something
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

async fn watch(
    mut running: Running,
    signals: Signals,
    mut commands: UnboundedReceiver<Command>,
) -> Result<(), RunError> {
    let Signals { mut interrupt, mut terminate, mut hangup } = signals;
    let mut look = tokio::time::interval(WATCH_EVERY);
    let mut look_at_files = tokio::time::interval(LOOK_AT_FILES_EVERY);
    let mut seen = Figures::default();
    let signal = loop {
        tokio::select! {
            _ = interrupt.recv() => break "SIGINT",
            _ = terminate.recv() => break "SIGTERM",
            _ = hangup.recv() => running.reloads.ask((Job::Config, None)),
            Some(command) = commands.recv() => running.reloads.ask(command),
            _ = look_at_files.tick() => running.reloads.look(),
            policies = running.reloads.done() => send(&mut running.control, policies).await,
            Some(retired) = running.to_free.recv() => free(retired),
            _ = look.tick() => {
                let figures = sum(&running.watched.boards);
                report::watched(&seen, &figures, running.steered);
                seen = figures;
            }
            ended = running.supervisor.ended.recv() => return Err(died(ended)),
        }
    };
    tracing::info!("{signal}: stopping");
    for shard in 0..running.watched.boards.len() {
        running.control.send(shard, Message::Stop);
    }
    running.control.ring();
    let ended = running.supervisor.all_ended(STOP_PATIENCE).await;
    report::stopped(&sum(&running.watched.boards), running.watched.clock.elapsed(), ended);
    Ok(())
}

/// Sends each shard its policy, waiting for room if need be
async fn send(control: &mut Port, policies: Vec<Policy>) {
    for (shard, policy) in policies.into_iter().enumerate() {
        // A shard that is stuck for so long ends the process soon, or is ended by who watches.
        for _ in 0..1_000 {
            if control.has_room(shard) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !control.send(shard, Message::Policy(Box::new(policy))) {
            tracing::error!(
                "shard {shard} takes no messages and goes by the hooks before; restart the tracker"
            );
        }
    }
    control.ring();
}

/// Takes a policy apart where nobody waits
fn free(policy: Box<Policy>) {
    tokio::task::spawn_blocking(move || drop(policy));
}

fn died(ended: Option<Ended>) -> RunError {
    match ended {
        Some(Ended { number, result: Err(error) }) => {
            RunError::ShardDied(number, error.to_string())
        }
        Some(Ended { number, result: Ok(()) }) => {
            RunError::ShardDied(number, "it ended without being told to".to_owned())
        }
        None => RunError::ShardDied(0, "all shards have ended".to_owned()),
    }
}

fn sum(boards: &[Arc<Board>]) -> Figures {
    let mut sum = Figures::default();
    boards.iter().for_each(|board| sum.add(&board.read()));
    sum
}
