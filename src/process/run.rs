//! Starts the tracker: binds the sockets, starts the shards, and runs the control plane until the end.

use crate::clock::Clock;
use crate::config::Config;
use crate::control::monitored::{Monitored, ProcessStats};
use crate::control::opentracker_stats;
use crate::control::token::ControlToken;
use crate::http::{Certificate, FullScrapes, HttpResources, StatsPages, Tls, TlsError};
use crate::policy::seeds::SeedSequence;
use crate::policy::{CompiledPolicy, LoadedPolicy, PolicyError, ReadMode};
use crate::process::cluster::ClusterLinks;
use crate::process::cpus;
use crate::process::error::RunError;
use crate::process::event_loop::control_plane;
use crate::process::file_stamps::{FileStamp, file_stamps};
use crate::process::listen::Listeners;
use crate::process::origin::Origin;
use crate::process::reload::Reloader;
use crate::process::running::{RunningTracker, UpgradeState};
use crate::process::settings::{StartupState, files_for_connections};
use crate::process::signals::Signals;
use crate::process::snapshot::SnapshotSettings;
use crate::process::steering::Steering;
use crate::process::supervisor::{ShardError, Supervisor};
use crate::process::upgrade::program::ProgramStarter;
use crate::process::xdp::XdpThread;
use crate::process::{privileges, report};
use crate::shard::datapath::RingDatapath;
use crate::shard::mesh::{MeshEndpoint, memory_bytes as mesh_memory_bytes, mesh};
use crate::shard::node::NodeResources;
use crate::shard::publication::{PublicationSender, begin_publication, publication};
use crate::shard::update::{ShardSettings, ShardUpdate};
use crate::shard::xdp_datapath::{QueueChange, XdpDatapath};
use crate::shard::{Shard, ShardResources};
use crate::slow_reads::SlowReads;
use crate::stats::client_samples::{ClientSamples, SampleReader};
use crate::stats::shared_stats::SharedStats;
use crate::tracker::Tracker;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tsubame_storage::Swarms;
use tsubame_udp::ring::{Ring, UdpSocket};
use tsubame_udp::steering::SteeringKeys;

/// Number of submission entries of the tokio-uring ring of each shard, which serves HTTP.
const RUNTIME_RING_ENTRIES: u32 = 256;

/// Maximum time for a read of a file while the tracker runs. After that, the data of the previous read stays in use.
const SLOW_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Raises the soft limit on open files of this process to the hard limit.
///
/// Each shard has a socket for each local address, for which the usual soft limit of 1,024 may be too low.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // If the kernel refuses, an error message names the limit when it is reached.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Runs the tracker until it is stopped (SIGINT, SIGTERM, `POST /v1/stop`), or another process has taken over.
///
/// `path` is the file of the config, which a reload reads again.
///
/// # Errors
///
/// Returns an error if the tracker cannot start, if a shard dies, or if a process that takes over dies.
pub fn run(config: &Config, path: Option<&Path>) -> Result<(), RunError> {
    raise_file_limit();
    let cores = cpus::choose(&config.cpus)?;
    let shards = cores.len() as u16;
    let (runtime, signals) = control_runtime(shards)?;
    let mut origin = Origin::new(shards)?;
    let (clock, mut seeds) = (origin.clock, SeedSequence::new(origin.identity.policy_key()));
    let (stamps, LoadedPolicy { policy, warnings }) = load_policy(config, seeds.draw(), &origin)?;
    let (keys, distinct_key) = (origin.identity.steering_keys(), origin.identity.distinct_key());
    let (mut listeners, copies) = origin.listeners(config, shards)?;
    let (certificate, tls) = tls(config, &runtime)?.unzip();
    let control_token = ControlToken::load(&config.control).map_err(RunError::ControlToken)?;
    let (xdp, queue_changes) = start_xdp(config, (&listeners, shards), &mut origin)?;
    // The files have been read.
    let starter = give_up_privileges(config, &listeners, xdp.is_some())?;
    let startup = startup_state(config, &mut origin, &listeners);
    let (retired_updates, to_free) = unbounded_channel();
    let ShardConnections { links, control, sample_readers, cluster } =
        connect_shards(shards, config.cluster.is_enabled())?;
    let monitored = monitored(clock, shards, (xdp.as_ref(), cluster.is_some()));
    let template = ShardTemplate {
        config,
        startup: &startup,
        policy: &policy,
        keys,
        clock,
        tls,
        full_scrapes: Arc::default(),
        helpers: runtime.handle().clone(),
        retired_updates,
        shared_stats: &monitored.shared_stats,
        stats_pages: stats_pages(&monitored),
        kept_sockets: (kept_addresses(&listeners), origin.has_predecessor()),
    };
    let sockets = shard_sockets(&mut listeners, queue_changes);
    let (trackers, take_over) = origin.import(template.trackers(&mut seeds))?;
    let supervisor = template.start(&cores, sockets.zip(links).zip(trackers))?;
    let (summary, files) = (policy.summary(config.hooks.len()), startup.files_for_connections);
    let reloader = Reloader::new(
        path.map(Path::to_owned),
        (startup, stamps),
        policy,
        (certificate, control_token),
        (seeds, monitored.clone()),
    );
    // If this process takes over, the program of the other one answers until this one has all swarms.
    let mut attached = xdp.iter().filter(|_| take_over.is_none());
    attached.try_for_each(|xdp| xdp.attach(reloader.xdp_settings()))?;
    let running = RunningTracker {
        supervisor,
        control,
        snapshots: SnapshotSettings::new(config, (clock, shards, keys), &monitored.process),
        monitored,
        steering: Steering::new(std::mem::take(&mut listeners.udp.steered_groups), keys, shards),
        reloader,
        to_free,
        keys: (keys, distinct_key),
        sample_readers,
        xdp,
        upgrade: UpgradeState::new(starter, origin.identity, copies, take_over),
        cluster,
    };
    let control = std::mem::take(&mut listeners.control);
    let ended = control_plane(&runtime, (running, signals), control, |control| {
        let (cores, policy) = ((&*cores, files), (&*summary, &*warnings));
        report::started((config, path), &listeners, cores, policy, control);
    });
    // A helper thread may wait for a server or a file system that does not answer.
    runtime.shutdown_background();
    ended
}

/// Gives up the privileges that only the start needs; returns the thread that starts programs. That and the thread of
/// XDP keep the capabilities of XDP, if `has_xdp`.
fn give_up_privileges(
    config: &Config,
    listeners: &Listeners,
    has_xdp: bool,
) -> Result<ProgramStarter, RunError> {
    let starter = ProgramStarter::new(has_xdp).map_err(RunError::Runtime)?;
    privileges::give_up(config, listeners.control.socket_to_remove.as_deref())?;
    starter.limit_privileges();
    Ok(starter)
}

/// Returns the addresses of HTTP whose sockets another process keeps.
fn kept_addresses(listeners: &Listeners) -> Vec<SocketAddr> {
    [&*listeners.http.inherited, &listeners.https.inherited].concat()
}

/// What connects the shards with each other and with other threads.
struct ShardConnections {
    /// Those of each shard.
    links: Vec<ShardLinks>,
    /// The endpoint of the control plane.
    control: MeshEndpoint,
    sample_readers: Vec<SampleReader>,
    /// What the thread of the cluster gets, if there is to be one.
    cluster: Option<ClusterLinks>,
}

fn connect_shards(shards: u16, has_cluster: bool) -> Result<ShardConnections, RunError> {
    let mut endpoints = mesh(shards, 1 + usize::from(has_cluster)).map_err(RunError::Runtime)?;
    let cluster_endpoint = if has_cluster { endpoints.pop() } else { None };
    let control = endpoints.pop().expect("a mesh has an endpoint for the control plane");
    let (mut links, mut sample_readers, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for endpoint in endpoints {
        let (samples, reader) = ClientSamples::new();
        let (sender, receiver) = has_cluster.then(publication).unzip();
        links.push((endpoint, samples, sender));
        sample_readers.push(reader);
        changes.extend(receiver);
    }
    let cluster = cluster_endpoint.map(|endpoint| ClusterLinks { endpoint, changes });
    Ok(ShardConnections { links, control, sample_readers, cluster })
}

fn startup_state(config: &Config, origin: &mut Origin, listeners: &Listeners) -> Arc<StartupState> {
    origin.keep_connection_id_key(config);
    let identity = origin.identity.clone();
    let files_for_connections = files_for_connections(identity.shards);
    Arc::new(StartupState {
        config: Arc::new(config.clone()),
        identity,
        addresses: listeners.addresses(),
        files_for_connections,
    })
}

/// Starts the thread that controls XDP if it is configured. Returns it, and for each shard the receiver of changes of
/// the receive queues that it serves, if there can be some.
fn start_xdp(
    config: &Config,
    (listeners, shards): (&Listeners, u16),
    origin: &mut Origin,
) -> Result<
    (Option<XdpThread>, impl Iterator<Item = Option<Receiver<QueueChange>>> + use<>),
    RunError,
> {
    let (senders, receivers) = queue_channels(config, shards);
    let queues = (listeners.udp.addresses.clone(), senders);
    let inherited = origin.take_interfaces();
    let xdp = XdpThread::start(&config.udp.xdp, queues, (origin.clock, inherited))?;
    let has_xdp = xdp.is_some();
    Ok((xdp, receivers.map(move |receiver| receiver.filter(|_| has_xdp))))
}

/// Returns the senders and, for each shard, the receiver of changes of the receive queues that it serves. There are
/// none without AF_XDP sockets.
fn queue_channels(
    config: &Config,
    shards: u16,
) -> (Vec<Sender<QueueChange>>, impl Iterator<Item = Option<Receiver<QueueChange>>> + use<>) {
    let has_sockets = config.udp.xdp.has_sockets();
    let channels = (0..shards).filter(|_| has_sockets).map(|_| channel());
    let (senders, receivers): (Vec<_>, Vec<_>) = channels.unzip();
    (senders, receivers.into_iter().map(Some).chain(std::iter::repeat_with(|| None)))
}

/// Returns the function that makes the pages of statistics of the HTTP listener.
fn stats_pages(monitored: &Monitored) -> StatsPages {
    let monitored = monitored.clone();
    let page = move |query: &str| {
        let (content_type, text) = opentracker_stats::page(query, &monitored)?;
        Ok((content_type == opentracker_stats::XML, text))
    };
    StatsPages(Arc::new(page))
}

/// Loads the hooks with their lists, and returns the stamps of the files before that.
fn load_policy(
    config: &Config,
    seed: u64,
    origin: &Origin,
) -> Result<(Vec<FileStamp>, LoadedPolicy), PolicyError> {
    let stamps = file_stamps(config, None);
    // Root must not write files that another user can replace by symbolic links, and that this user rewrites later. The
    // process that this one replaces appends to them meanwhile.
    let read_mode = match origin.has_predecessor() || privileges::will_change_user(config) {
        true => ReadMode::Check,
        false => ReadMode::AtStart,
    };
    let policy = CompiledPolicy::load(&config.hooks, &CompiledPolicy::default(), seed, read_mode)?;
    Ok((stamps, policy))
}

/// Moves the sockets of each shard out of the listeners, and adds changes of its receive queues if there can be some.
fn shard_sockets(
    listeners: &mut Listeners,
    queue_changes: impl Iterator<Item = Option<Receiver<QueueChange>>>,
) -> impl Iterator<Item = ShardDatapath> {
    let plain = std::mem::take(&mut listeners.http.shards).into_iter();
    let encrypted = std::mem::take(&mut listeners.https.shards);
    let sockets = std::mem::take(&mut listeners.udp.shards).into_iter().zip(plain.zip(encrypted));
    sockets.zip(queue_changes)
}

/// Resources that all shards share at start.
struct ShardTemplate<'a> {
    config: &'a Config,
    startup: &'a StartupState,
    policy: &'a CompiledPolicy,
    keys: SteeringKeys,
    clock: Clock,
    tls: Option<Tls>,
    full_scrapes: Arc<FullScrapes>,
    helpers: Handle,
    /// Sends updates that were applied to the control plane, which frees what they replaced.
    retired_updates: UnboundedSender<Box<ShardUpdate>>,
    shared_stats: &'a [Arc<SharedStats>],
    stats_pages: StatsPages,
    /// Addresses of HTTP whose sockets another process keeps, and whether this process takes over from that one.
    kept_sockets: (Vec<SocketAddr>, bool),
}

/// UDP sockets of a shard, and its listening sockets for HTTP and for HTTPS.
type ShardSockets = (Vec<UdpSocket>, (Vec<TcpListener>, Vec<TcpListener>));

/// Sockets of a shard, and changes of the receive queues that it serves, if there can be some.
type ShardDatapath = (ShardSockets, Option<Receiver<QueueChange>>);

/// Connections of a shard to other threads: its endpoint of the mesh, its queue of client samples, and that of the
/// changes for the cluster.
type ShardLinks = (MeshEndpoint, ClientSamples, Option<PublicationSender>);

impl ShardTemplate<'_> {
    /// Returns the trackers of all shards.
    fn trackers(&self, seeds: &mut SeedSequence) -> Vec<Tracker> {
        let shards = self.startup.identity.shards;
        let tracker = |number| {
            let ShardSettings { ids, announce, table, .. } =
                self.startup.shard_settings(self.config, number);
            let mut tracker = Tracker::new(ids, announce, Swarms::new(table));
            let mut policy = self.policy.policy(shards, seeds.draw());
            tracker.exchange_policy(self.clock.now(), &mut policy);
            if self.config.cluster.is_enabled() {
                begin_publication(&mut tracker);
            }
            if self.config.storage.directory.is_some() || self.kept_sockets.1 {
                // Before the first request: a peer that stops must not be restored.
                tracker.swarms_mut().begin_import();
            }
            tracker
        };
        (0..shards).map(tracker).collect()
    }

    /// Starts the threads of all shards.
    fn start(
        &self,
        cores: &[usize],
        shards: impl Iterator<Item = ((ShardDatapath, ShardLinks), Tracker)>,
    ) -> Result<Supervisor, RunError> {
        let bodies = shards.zip(0_u16..).map(|(((datapath, links), tracker), number)| {
            (cores[usize::from(number)], self.body(number, tracker, datapath, links))
        });
        Supervisor::start(bodies.collect()).map_err(RunError::Shards)
    }

    /// Returns the function that the thread of a shard runs.
    fn body(
        &self,
        number: u16,
        tracker: Tracker,
        ((sockets, (plain, encrypted)), queue_changes): ShardDatapath,
        (endpoint, client_samples, publication): ShardLinks,
    ) -> impl FnOnce(&dyn Fn()) -> Result<(), ShardError> + Send + use<> {
        let shards = self.startup.identity.shards;
        let ShardSettings { gather, http, .. } = self.startup.shard_settings(self.config, number);
        let http = HttpResources {
            plain,
            encrypted,
            inherited: self.kept_sockets.0.clone(),
            has_predecessor: self.kept_sockets.1,
            settings: http,
            tls: self.tls.clone(),
            full_scrapes: self.full_scrapes.clone(),
            helpers: self.helpers.clone(),
            stats_pages: self.stats_pages.clone(),
        };
        let node = NodeResources {
            number,
            shards,
            keys: self.keys,
            tracker,
            endpoint,
            retired: self.retired_updates.clone(),
            shared_stats: self.shared_stats[usize::from(number)].clone(),
            client_samples,
            clock: self.clock,
            gather,
            publication,
        };
        move |ready: &dyn Fn()| {
            let addresses = sockets.iter().map(UdpSocket::address).collect();
            let ring = Ring::new(sockets)?;
            match queue_changes {
                None => serve_shard(ShardResources { node, datapath: ring }, http, ready),
                Some(changes) => {
                    let datapath = XdpDatapath::new(ring, addresses, changes);
                    serve_shard(ShardResources { node, datapath }, http, ready)
                }
            }
        }
    }
}

/// Loads the certificate and creates the TLS settings if HTTPS is configured.
fn tls(config: &Config, runtime: &Runtime) -> Result<Option<(Arc<Certificate>, Tls)>, TlsError> {
    let paths = &config.http.tls;
    if paths.listen.is_empty() {
        return Ok(None);
    }
    let certificate = Arc::new(Certificate::load(&paths.certificate, &paths.key)?);
    let tls = Tls::new(certificate.clone(), runtime.handle().clone())?;
    Ok(Some((certificate, tls)))
}

/// Returns the state that the control plane reports.
fn monitored(
    clock: Clock,
    shards: u16,
    (xdp, has_cluster): (Option<&XdpThread>, bool),
) -> Monitored {
    let shared_stats = (0..shards).map(|_| Arc::default()).collect();
    let mesh_bytes = mesh_memory_bytes(shards) as u64;
    let process = Arc::new(ProcessStats::new(clock.now().unix_secs, clock.elapsed(), mesh_bytes));
    let slow_reads = SlowReads::new(clock, SLOW_READ_TIMEOUT);
    let (xdp, cluster) = (xdp.map(|xdp| xdp.status.clone()), has_cluster.then(Arc::default));
    Monitored { shared_stats, clock, slow_reads, process, xdp, cluster }
}

/// Creates the runtime of the control plane. Its helper threads run tasks that would block a shard.
///
/// From then on, SIGHUP and other signals that must not end the process are handled; see [`Signals`].
fn control_runtime(shards: u16) -> Result<(Runtime, Signals), RunError> {
    let all_cores = cpus::affinity();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Two may be blocked for long: by a file system and by a key server that do not answer.
        .max_blocking_threads(usize::from(shards) + 2)
        // A helper thread that a shard starts inherits the affinity of the shard: it must not run on that core only.
        .on_thread_start(move || {
            cpus::allow_cores(&all_cores);
            cpus::lower_priority();
        })
        .build()
        .map_err(RunError::Runtime)?;
    let guard = runtime.enter();
    let signals = Signals::new().map_err(RunError::Runtime)?;
    drop(guard);
    Ok((runtime, signals))
}

/// Runs a shard in the calling thread.
fn serve_shard<D: RingDatapath>(
    resources: ShardResources<D>,
    http: HttpResources,
    ready: &dyn Fn(),
) -> Result<(), ShardError> {
    let mut builder = tokio_uring::builder();
    builder.entries(RUNTIME_RING_ENTRIES);
    let runtime = tokio_uring::Runtime::new(&builder).map_err(ShardError::Start)?;
    cpus::minimize_timer_slack();
    ready();
    let ended = runtime.block_on(Shard::new(resources).run(http)).map_err(ShardError::Ring);
    // Dropping it would wait until the clients have closed their connections.
    std::mem::forget(runtime);
    ended
}
