//! Changes at run time: the config, the hooks with their lists, and the certificate.
//!
//! A helper thread reads files and compiles the policy, one job at a time. Then each shard is sent its policy and
//! settings, which it applies between two batches. If a file has an error, nothing changes. If reading a list takes too
//! long, the data read before is used and the rest changes.

use crate::clock::Clock;
use crate::config::Config;
use crate::control::monitored::{Monitored, ServedConfig};
use crate::control::token::ControlToken;
use crate::http::Certificate;
use crate::policy::jwt::{KeySet, KeySource, KeysError};
use crate::policy::overrides::{self, ListChange, Override};
use crate::policy::seeds::SeedSequence;
use crate::policy::{CompiledPolicy, HookConfig, LoadedPolicy, ReadMode};
use crate::process::file_stamps::{FileStamp, file_stamps};
use crate::process::log;
use crate::process::settings::StartupState;
use crate::process::xdp::XdpSettings;
use crate::shard::update::ShardUpdate;
use crate::slow_reads::SlowReads;
use crate::text::plural;
use std::collections::VecDeque;
use std::future::pending;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tsubame_storage::InfoHash;
use tsubame_udp::connection_id::ConnectionIdKey;

/// Time after which fetching a key set is retried.
const KEYS_RETRY: Duration = Duration::from_secs(10);

/// Pause between two checks of the files, as a multiple of the duration of a check: a directory may have a hundred
/// thousand torrents.
const CHECK_PAUSE_FACTOR: u32 = 10;

/// Number of consecutive checks with different results after which lists are read although files are still changing:
/// some process may write to them all the time.
const CHANGING_CHECKS_MAX: u32 = 5;

/// Maximum number of jobs that wait while another runs.
const QUEUED_JOBS_MAX: usize = 64;

/// A job of the helper thread.
#[derive(Debug)]
pub enum ReloadJob {
    /// Reads the config, its lists and the certificate again.
    Config,
    /// Reads the lists of the configured hooks again.
    Lists,
    /// Adds torrents to the access list (true), or removes them.
    ChangeList(Vec<(InfoHash, bool)>),
    /// Makes changes of the access list that another node has made.
    ApplyRemoteListChanges(Vec<ListChange>),
    /// Removes all torrents without peers. The number of them is for the reply.
    Evict(usize),
    /// Checks whether files have changed.
    CheckFiles,
    /// Replaces key sets by those that were fetched.
    Keys(Vec<FetchedKeys>),
}

/// A key source and the result of fetching its key set.
pub type FetchedKeys = (KeySource, Result<KeySet, KeysError>);

/// Maximum time by which the wall clock of another node may be ahead of that of this node when it changes the access
/// list: see [`Override::bounded`].
const CLOCK_DIFFERENCE_MAX_MS: u64 = 24 * 60 * 60 * 1_000;

/// Channel for the result of a job: a summary, or an error text.
pub type JobReply = oneshot::Sender<Result<String, String>>;

/// A job, and the channel for its result if somebody waits for it.
pub type ReloadCommand = (ReloadJob, Option<JobReply>);

/// A command of the operator.
#[derive(Debug)]
pub enum ControlCommand {
    /// Runs a job.
    Job(ReloadCommand),
    /// Replaces the process by a new one.
    Upgrade(JobReply),
    /// Stops the tracker.
    Stop(JobReply),
}

/// The state that is served now and can change at run time.
#[derive(Clone, Debug)]
struct ServedState {
    path: Option<PathBuf>,
    config: Arc<Config>,
    policy: CompiledPolicy,
    certificate: Option<Arc<Certificate>>,
    control_token: Option<ControlToken>,
    startup: Arc<StartupState>,
    slow_reads: SlowReads,
    clock: Clock,
    /// Seeds of the keys of lists, and of the random numbers of policies.
    seeds: SeedSequence,
    /// Stamps of the files that the policy was read from.
    file_stamps: Vec<FileStamp>,
    /// Stamps at the last check, of files that may still be being written.
    last_seen: Vec<FileStamp>,
    /// Number of consecutive checks that found different stamps.
    changing_checks: u32,
    /// Time of the next check.
    check_due: Duration,
    /// Time at which key sets are fetched next, if there are any.
    keys_due: Option<Duration>,
    /// The last reason that was logged why changes of other nodes are not made.
    reported_list_problem: String,
}

/// The parts of a shard that a job changes.
#[derive(Clone, Copy, Debug, Default)]
struct ShardChanges {
    policy: bool,
    settings: bool,
    evict: bool,
}

impl ShardChanges {
    fn any(self) -> bool {
        self.policy || self.settings || self.evict
    }
}

/// Result of a job.
#[derive(Debug)]
struct JobResult {
    current: ServedState,
    message: Result<String, String>,
    /// Update of each shard; empty if nothing changes.
    updates: Vec<ShardUpdate>,
    /// Job that must follow.
    next: Option<ReloadJob>,
    /// Whether the job read the config or lists.
    is_reload: bool,
    /// Changes of the access list of which other nodes are to hear.
    list_changes: Vec<ListChange>,
}

/// Runs jobs one after the other, and keeps the state that they change.
#[derive(Debug)]
pub struct Reloader {
    current: ServedState,
    queued: VecDeque<ReloadCommand>,
    running: Option<(JoinHandle<JobResult>, Option<JobReply>)>,
    /// Fetches key sets beside the jobs, so that a server that does not answer delays no job.
    fetching: Option<JoinHandle<Vec<FetchedKeys>>>,
    /// Changes of the access list of which other nodes are to hear.
    list_changes: Vec<ListChange>,
    monitored: Monitored,
}

impl Reloader {
    /// Creates a reloader with the state at start.
    pub fn new(
        path: Option<PathBuf>,
        (startup, file_stamps): (Arc<StartupState>, Vec<FileStamp>),
        policy: CompiledPolicy,
        (certificate, control_token): (Option<Arc<Certificate>>, Option<ControlToken>),
        (seeds, monitored): (SeedSequence, Monitored),
    ) -> Self {
        let (slow_reads, clock) = (monitored.slow_reads.clone(), monitored.clock);
        let keys_due = policy.key_servers().next().map(|_| clock.elapsed());
        let current = ServedState {
            path,
            config: startup.config.clone(),
            keys_due,
            policy,
            certificate,
            control_token,
            startup,
            slow_reads,
            clock,
            seeds,
            last_seen: file_stamps.clone(),
            file_stamps,
            changing_checks: 0,
            check_due: Duration::ZERO,
            reported_list_problem: String::new(),
        };
        let process = &monitored.process;
        process.last_reload_unix_secs.store(clock.now().unix_secs, Ordering::Relaxed);
        let reloader = Self {
            current,
            queued: VecDeque::new(),
            running: None,
            fetching: None,
            list_changes: Vec::new(),
            monitored,
        };
        reloader.report_current();
        reloader
    }

    /// Reports the config, the hooks, their lists and the certificate that are served now.
    fn report_current(&self) {
        let ServedState { config, policy, certificate, control_token, startup, .. } = &self.current;
        self.monitored.set_served(ServedConfig {
            hooks: config.hooks.iter().map(HookConfig::name).collect(),
            list_sizes: policy.list_sizes(),
            access_list: policy.only_access_list().cloned(),
            control_token: control_token.clone(),
            values: startup.values_in_force(config).into(),
        });
        let process = &self.monitored.process;
        let expiry = certificate.as_ref().and_then(|certificate| certificate.expiry_unix_secs());
        process.certificate_expiry_unix_secs.store(expiry.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns the UDP ports that are served.
    pub fn udp_ports(&self) -> Vec<u16> {
        self.current.startup.addresses[0].iter().map(SocketAddr::port).collect()
    }

    /// Returns the settings of XDP.
    pub(crate) fn xdp_settings(&self) -> XdpSettings {
        let udp = &self.current.config.udp;
        XdpSettings {
            ids: self.current.startup.connection_ids(udp),
            explain_wrong_connection_id: udp.explain_wrong_connection_id,
            networks: self.current.policy.networks().to_vec(),
        }
    }

    /// Returns the changes of the access list over the API since the last call.
    pub(crate) fn take_list_changes(&mut self) -> Vec<ListChange> {
        std::mem::take(&mut self.list_changes)
    }

    /// Returns the key with which connection ids are issued.
    pub(crate) fn connection_id_key(&self) -> ConnectionIdKey {
        self.current.startup.connection_id_key(&self.current.config.udp)
    }

    /// Returns the current config.
    pub fn config(&self) -> &Config {
        &self.current.config
    }

    /// Adds a job to the queue. If the queue is full, an error is sent as its result.
    pub fn enqueue(&mut self, (job, reply): ReloadCommand) {
        if self.queued.len() >= QUEUED_JOBS_MAX {
            let text = format!("{QUEUED_JOBS_MAX} changes are queued already; try again later");
            // The receiver may have gone.
            let _ = reply.map(|reply| reply.send(Err(text)));
            return;
        }
        self.queued.push_back((job, reply));
        self.start_next();
    }

    /// Has the lists read again, however many jobs wait.
    pub fn reload_lists(&mut self) {
        self.queued.push_back((ReloadJob::Lists, None));
        self.start_next();
    }

    /// Starts a check of the files if one is due and no job runs, and fetches key sets that are due.
    pub fn check_files(&mut self) {
        let now = self.current.clock.elapsed();
        if self.running.is_none() && self.current.check_due <= now {
            // A read that took too long may have ended since: its result is applied now.
            let late = self.current.slow_reads.has_new_results();
            self.enqueue((if late { ReloadJob::Lists } else { ReloadJob::CheckFiles }, None));
        }
        if self.fetching.is_none() && self.current.keys_due.is_some_and(|due| due <= now) {
            // No second fetch starts before this one has ended.
            self.current.keys_due = None;
            let servers = self.current.policy.key_servers().map(|(source, _)| source.clone());
            let servers: Vec<_> = servers.collect();
            let fetch = |source: KeySource| (source.clone(), KeySet::load(&source));
            let fetch = move || servers.into_iter().map(fetch).collect();
            self.fetching = Some(tokio::task::spawn_blocking(fetch));
        }
    }

    fn start_next(&mut self) {
        if self.running.is_none()
            && let Some((job, reply)) = self.queued.pop_front()
        {
            let current = self.current.clone();
            let job = tokio::task::spawn_blocking(move || current.run(job));
            self.running = Some((job, reply));
        }
    }

    /// Waits for the end of the running job. Returns the update of each shard, or nothing if the job changes nothing.
    pub async fn next_update(&mut self) -> Vec<ShardUpdate> {
        let (running, fetching) = (&mut self.running, &mut self.fetching);
        let result = tokio::select! {
            result = finished(running.as_mut().map(|(job, _)| job)) => result,
            fetched = finished(fetching.as_mut()) => {
                *fetching = None;
                // If the helper thread failed, there are no keys to apply.
                let fetched = fetched.unwrap_or_default();
                self.queued.push_back((ReloadJob::Keys(fetched), None));
                self.start_next();
                return Vec::new();
            }
        };
        let reply = self.running.take().and_then(|(_, reply)| reply);
        let (message, updates) = match result {
            Ok(JobResult { current, message, updates, next, is_reload, list_changes }) => {
                self.current = current;
                self.list_changes.extend(list_changes);
                let process = &self.monitored.process;
                if is_reload {
                    process.last_reload_failed.store(message.is_err(), Ordering::Relaxed);
                    let count =
                        if message.is_ok() { &process.reloads } else { &process.failed_reloads };
                    count.fetch_add(1, Ordering::Relaxed);
                    if message.is_ok() {
                        let now = self.current.clock.now().unix_secs;
                        process.last_reload_unix_secs.store(now, Ordering::Relaxed);
                    }
                }
                self.report_current();
                self.queued.extend(next.map(|job| (job, None)));
                match &message {
                    Ok(message) if message.is_empty() => {}
                    Ok(message) => tracing::info!("{message}"),
                    Err(error) if is_reload => tracing::error!("{error}; nothing was changed"),
                    // Whoever sent the request gets the error.
                    Err(error) => tracing::info!("control: {error}; nothing was changed"),
                }
                (message, updates)
            }
            Err(error) => {
                let message = format!("a helper thread failed: {error}; try again");
                tracing::error!("{message}");
                (Err(message), Vec::new())
            }
        };
        if let Some(reply) = reply {
            // The receiver may have gone.
            let _ = reply.send(message);
        }
        self.start_next();
        updates
    }
}

/// Waits for the end of a task, forever if there is none.
async fn finished<T>(task: Option<&mut JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => pending().await,
    }
}

impl ServedState {
    /// Runs a job. It blocks for as long as its reads take.
    fn run(mut self, job: ReloadJob) -> JobResult {
        let (mut next, mut changes) =
            (None, ShardChanges { policy: true, ..ShardChanges::default() });
        let is_reload = matches!(job, ReloadJob::Config | ReloadJob::Lists);
        let mut list_changes = Vec::new();
        let message = match job {
            ReloadJob::Config => {
                changes.settings = true;
                // Results of slow reads that started earlier are outdated.
                self.slow_reads.forget_results();
                self.read_config()
            }
            ReloadJob::Lists => {
                self.file_stamps = file_stamps(&self.config, Some(&self.slow_reads));
                self.read_lists("the lists were read again")
            }
            ReloadJob::Evict(torrents) => {
                changes = ShardChanges { evict: true, ..ShardChanges::default() };
                Ok(format!("{torrents} torrents without peers are being removed"))
            }
            ReloadJob::ChangeList(changes) => {
                let changes = self.dated(&changes);
                let changed = self.change_list(&changes);
                if changed.is_ok() {
                    list_changes = changes;
                }
                changed
            }
            ReloadJob::ApplyRemoteListChanges(remote) => {
                let message = self.apply_remote_list_changes(&remote);
                changes.policy = message.as_ref().is_ok_and(|message| !message.is_empty());
                message
            }
            ReloadJob::CheckFiles => {
                changes = ShardChanges::default();
                let began = self.clock.elapsed();
                let found = file_stamps(&self.config, Some(&self.slow_reads));
                let ended = self.clock.elapsed();
                self.check_due = ended + (ended - began) * CHECK_PAUSE_FACTOR;
                // Equal stamps at two checks: nothing is being written any more.
                self.changing_checks =
                    if found == self.last_seen { 0 } else { self.changing_checks + 1 };
                let is_due =
                    self.changing_checks == 0 || self.changing_checks >= CHANGING_CHECKS_MAX;
                if found != self.file_stamps && is_due {
                    self.changing_checks = 0;
                    next = Some(ReloadJob::Lists);
                }
                self.last_seen = found;
                Ok(String::new())
            }
            ReloadJob::Keys(fetched) => {
                changes.policy = self.apply_keys(fetched);
                Ok(String::new())
            }
        };
        let shards =
            if message.is_ok() && changes.any() { self.startup.identity.shards } else { 0 };
        let updates = (0..shards).map(|shard| self.update(shard, changes)).collect();
        JobResult { current: self, message, updates, next, is_reload, list_changes }
    }

    /// Returns the update of a shard.
    fn update(&mut self, shard: u16, changes: ShardChanges) -> ShardUpdate {
        let shards = self.startup.identity.shards;
        ShardUpdate {
            policy: changes.policy.then(|| self.policy.policy(shards, self.seeds.draw())),
            settings: changes.settings.then(|| self.startup.shard_settings(&self.config, shard)),
            evict_empty_torrents: changes.evict,
        }
    }

    fn read_config(&mut self) -> Result<String, String> {
        let (path, slow_reads) = (self.path.clone(), self.slow_reads.clone());
        let name = format!("config {}", path.as_deref().unwrap_or(Path::new("")).display());
        let new = slow_reads
            .run(&name, move || Config::load(path.as_deref()).map_err(|error| error.to_string()))
            .unwrap_or_else(|| {
                Err(format!("reading {name} takes too long; check its file system"))
            })?;
        let restart = self.startup.keys_that_need_restart(&new);
        let file_stamps = file_stamps(&new, Some(&self.slow_reads));
        let old_config = std::mem::replace(&mut self.config, Arc::new(new));
        let old_policy = self.policy.clone();
        let read = self.read_lists("reloaded").and_then(|message| {
            let token = ControlToken::load(&self.config.control)?;
            // The certificate comes last: it is in force at once.
            let tls = &self.config.http.tls;
            let certificate = match &self.certificate {
                Some(certificate) if !tls.listen.is_empty() => {
                    let renewed = certificate.reload(&tls.certificate, &tls.key);
                    renewed.map_err(|error| error.to_string())?;
                    ", the certificate"
                }
                _ => "",
            };
            self.control_token = token;
            Ok(message + certificate)
        });
        let message = match read {
            Ok(message) => message,
            Err(error) => {
                (self.config, self.policy) = (old_config, old_policy);
                return Err(error);
            }
        };
        self.file_stamps = file_stamps;
        log::set_level(self.config.log.level);
        match restart.is_empty() {
            true => Ok(message),
            false => Ok(format!("{message}; restart the tracker to apply: {}", restart.join(", "))),
        }
    }

    fn read_lists(&mut self, why: &str) -> Result<String, String> {
        let reading = ReadMode::AtRunTime(&self.slow_reads);
        let LoadedPolicy { policy, warnings } =
            CompiledPolicy::load(&self.config.hooks, &self.policy, self.seeds.draw(), reading)
                .map_err(|error| error.to_string())?;
        self.policy = policy;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        if self.policy.key_servers().next().is_some() {
            // There may be new key servers.
            self.keys_due = Some(self.clock.elapsed());
        }
        Ok(format!("{why}: {}", self.policy.summary(self.config.hooks.len())))
    }

    /// Applies fetched key sets and schedules the next fetch. A source that failed keeps its keys and is retried soon.
    /// Returns whether any key set has changed.
    fn apply_keys(&mut self, mut fetched: Vec<FetchedKeys>) -> bool {
        let servers = self.policy.key_servers().map(|(source, every)| (source.clone(), every));
        let (mut changed, mut retry) = (false, None);
        for (source, every) in servers.collect::<Vec<_>>() {
            let found = fetched.iter().position(|(of, _)| *of == source);
            let after = match found.map(|at| fetched.swap_remove(at).1) {
                Some(Ok(keys)) => {
                    let keys = Arc::new(keys);
                    if self.policy.set_keys(&source, &keys) {
                        changed = true;
                        tracing::info!("hooks: jwt: loaded a new key set of {} keys", keys.len());
                    }
                    every
                }
                Some(Err(error)) => {
                    tracing::error!("hooks: jwt: {error}; the previous keys stay in use");
                    every.min(KEYS_RETRY)
                }
                // The source is new since the fetch started, or the helper thread failed.
                None => Duration::ZERO,
            };
            retry = Some(retry.map_or(after, |other: Duration| other.min(after)));
        }
        self.keys_due = retry.map(|after| self.clock.elapsed() + after);
        changed
    }

    /// Returns changes of the access list with their times.
    fn dated(&self, changes: &[(InfoHash, bool)]) -> Vec<ListChange> {
        let now_ms = self.clock.unix_millis();
        let dated = |(info_hash, on): &(InfoHash, bool)| {
            (*info_hash, Override::after(self.last_list_change(info_hash, now_ms), *on, now_ms))
        };
        changes.iter().map(dated).collect()
    }

    /// Returns the last change of a torrent of the access list.
    fn last_list_change(&self, info_hash: &InfoHash, now_ms: u64) -> Option<Override> {
        let last = self.policy.only_access_list()?.last_change(info_hash);
        last.map(|last| last.bounded(now_ms.saturating_add(CLOCK_DIFFERENCE_MAX_MS)))
    }

    /// Makes those changes of another node that are later than the own ones.
    fn apply_remote_list_changes(&mut self, changes: &[ListChange]) -> Result<String, String> {
        let now_ms = self.clock.unix_millis();
        let bounded = |(info_hash, change): &ListChange| {
            (*info_hash, change.bounded(now_ms.saturating_add(CLOCK_DIFFERENCE_MAX_MS)))
        };
        let is_later = |(info_hash, change): &ListChange| {
            let own = self.last_list_change(info_hash, now_ms);
            own.is_none_or(|own| change.is_later_than(&own))
        };
        let changes: Vec<ListChange> = changes.iter().map(bounded).filter(is_later).collect();
        let Some((first, _)) = changes.first() else { return Ok(String::new()) };
        let changed = self.change_list(&changes);
        let Err(error) = changed else {
            self.reported_list_problem.clear();
            return changed;
        };
        if self.reported_list_problem != error {
            tracing::warn!(
                "cluster: this node cannot make {} of the access list by another node (first: {first}): {error}",
                plural(changes.len() as u64, "change"),
            );
            self.reported_list_problem.clone_from(&error);
        }
        match self.changeable_list() {
            // The file may be written later.
            Ok(_) => Err(error),
            Err(_) => Ok(String::new()),
        }
    }

    /// Returns the file to which changes of the access list are written, or why it cannot be changed.
    fn changeable_list(&self) -> Result<&Path, String> {
        if self.policy.only_access_list().is_none() {
            return Err("the config must have exactly one access_list hook".to_owned());
        }
        let file = self.config.hooks.iter().find_map(HookConfig::overrides_file);
        file.ok_or_else(|| {
            let cure = "set overrides_file in the options of access_list";
            format!("the change would be lost at a restart; {cure}")
        })
    }

    fn change_list(&mut self, changes: &[ListChange]) -> Result<String, String> {
        let file = self.changeable_list()?;
        overrides::append(file, changes).map_err(|error| {
            format!("cannot write {}: {error}; permit this user to write it", file.display())
        })?;
        // A slow read that has not ended may return the file without this change.
        self.slow_reads.make_stale();
        self.policy.change_list(changes, self.seeds.draw());
        let place = |on: bool| if on { "on" } else { "off" };
        Ok(match changes {
            [(hash, change)] => format!("{hash} is {} the access list", place(change.on)),
            _ => format!("changed {} entries of the access list", changes.len()),
        })
    }
}
