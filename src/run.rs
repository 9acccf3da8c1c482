//! Starts the tracker, says what it serves, and ends it.

use crate::clock::Clock;
use crate::config::Config;
use crate::control::{ControlError, ControlListeners, ProcessStats, Watched};
use crate::cpus::{self, CpuError};
use crate::http::{self, Certificate, FullScrapes, Tls, TlsError};
use crate::identity::Identity;
use crate::listen::{Key, ListenError, Listeners};
use crate::mesh::{memory_bytes as mesh_memory_bytes, mesh};
use crate::policy::seeds::Seeds;
use crate::policy::{LoadedPlan, Plan, PlanError, Reading};
use crate::reload::{self, Reloads};
use crate::settings::{ShardSettings, Startup, files_for_connections};
use crate::shard::{Parts, Shard};
use crate::slow_reads::SlowReads;
use crate::stats::Board;
use crate::steering::Steering;
use crate::supervisor::{ShardError, Supervisor};
use crate::tracker::Tracker;
use crate::watch::{self, Running, Signals};
use crate::{memory, report};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::unbounded_channel;
use tsubame_storage::Swarms;
use tsubame_udp::ring::Ring;

/// Entries of each shard's tokio-uring ring, which carries HTTP: what is asked of the kernel in one call
const RUNTIME_RING_ENTRIES: u32 = 256;

/// How long reads of files at run time are waited for, before what was read last is used
const SLOW_READ_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Runs the tracker until it is told to stop by SIGINT or SIGTERM
///
/// `path` is where the config was read from, to be read again when it changes.
pub fn run(config: &Config, path: Option<&Path>) -> Result<(), RunError> {
    let clock = Clock::new();
    raise_file_limit();
    let cores = cpus::choose(&config.cpus)?;
    let shards = cores.len() as u16;
    let (runtime, signals) = control_runtime(shards)?;
    let identity = Identity::draw(shards).map_err(RunError::Randomness)?;
    let stamps = reload::stamps(config, None);
    let mut seeds = Seeds::new(identity.policy_key());
    let LoadedPlan { plan, warnings } =
        Plan::load(&config.hooks, &Plan::default(), seeds.draw(), Reading::AtStart)?;
    let keys = identity.steering_keys();
    let mut listeners = Listeners::bind(&config.udp, &keys, shards, &clock)?;
    let mut http = http::bind(Key::Http, &config.http.listen, shards, &clock)?;
    let mut https = http::bind(Key::Https, &config.http.tls.listen, shards, &clock)?;
    let (certificate, tls) = tls(config, &runtime)?.unzip();
    let control = ControlListeners::bind(&config.control)?;
    let addresses = [&listeners.addresses, &http.addresses, &https.addresses].map(Vec::clone);
    let files_for_connections = files_for_connections(shards);
    let config_then = Arc::new(config.clone());
    let startup = Startup { config: config_then, identity, addresses, files_for_connections };
    let (startup, full_scrapes) = (Arc::new(startup), Arc::<FullScrapes>::default());
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
        let (board, retired) = (boards[usize::from(number)].clone(), retired.clone());
        let ShardSettings { ids, terms, swarms, http } = startup.shard_settings(config, number);
        let mut tracker = Tracker::new(ids, terms, Swarms::new(swarms));
        tracker.exchange_policy(clock.now(), &mut plan.policy(shards, seeds.draw()));
        let (plain, encrypted) = listeners;
        let http = http::Parts {
            plain,
            encrypted,
            terms: http,
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
    let watched = watched(boards, clock, shards);
    let slow_reads = watched.slow_reads.clone();
    let groups = std::mem::take(&mut listeners.steered_groups);
    let steering = Steering::new(groups, keys, shards);
    let policy = plan.summary(config.hooks.len());
    let (path, drawn) = (path.map(Path::to_owned), (seeds, slow_reads, clock));
    let reloads = Reloads::new(path, (startup, stamps), plan, certificate, drawn);
    let running =
        Running { supervisor, control: control_port, watched, steering, reloads, to_free };
    let ceiling = memory::ceiling(config.storage.memory);
    let ended = watch::control_plane(&runtime, (running, signals), control, |control| {
        report::started(config, (&listeners, &http, &https), &cores, (&ceiling, &policy), control);
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    });
    // A helper may be waiting for a server or a file system that does not answer.
    runtime.shutdown_background();
    ended
}

/// The certificate and how TLS is served with it, if it is
fn tls(config: &Config, runtime: &Runtime) -> Result<Option<(Arc<Certificate>, Tls)>, TlsError> {
    let paths = &config.http.tls;
    if paths.listen.is_empty() {
        return Ok(None);
    }
    let certificate = Arc::new(Certificate::load(&paths.certificate, &paths.key)?);
    let tls = Tls::new(certificate.clone(), runtime.handle().clone())?;
    Ok(Some((certificate, tls)))
}

fn watched(boards: Arc<[Arc<Board>]>, clock: Clock, shards: u16) -> Watched {
    let mesh_bytes = mesh_memory_bytes(shards) as u64;
    let process = Arc::new(ProcessStats { mesh_bytes, ..ProcessStats::default() });
    Watched { boards, clock, slow_reads: SlowReads::new(clock, SLOW_READ_TIMEOUT), process }
}

/// The runtime of the control plane, whose helper threads do what would hold up a shard
///
/// Signals that would end the process are handled from then on.
fn control_runtime(shards: u16) -> Result<(Runtime, Signals), RunError> {
    let everywhere = cpus::affinity();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Two may be held up for long, by a list that is read and a key server that does not answer.
        .max_blocking_threads(usize::from(shards) + 2)
        // A shard that asks for one starts it on its own core, where it must not stay.
        .on_thread_start(move || {
            cpus::spread(&everywhere);
            cpus::step_back();
        })
        .build()
        .map_err(RunError::Runtime)?;
    let entered = runtime.enter();
    let signals = Signals::new().map_err(RunError::Runtime)?;
    drop(entered);
    Ok((runtime, signals))
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
