//! Changes at run time: the config, the hooks with their lists, and the certificate.
//!
//! A helper thread reads files and compiles the policy, one job at a time. Then each shard is sent its policy and
//! settings, which replace the old ones between two batches. A file that cannot be read changes nothing.

use crate::clock::Clock;
use crate::config::Config;
use crate::http::Certificate;
use crate::policy::access_list::is_torrent_file;
use crate::policy::jwt::{KeySet, KeySource, KeysError};
use crate::policy::seeds::SeedSequence;
use crate::policy::{CompiledPolicy, HookConfig, LoadedPolicy, ReadMode, overrides};
use crate::process::log;
use crate::process::settings::StartupState;
use crate::shard::update::ShardUpdate;
use crate::slow_reads::SlowReads;
use std::collections::VecDeque;
use std::fs;
use std::future::pending;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tsubame_storage::InfoHash;

/// Time after which a key set is fetched again that could not be fetched.
const KEYS_RETRY: Duration = Duration::from_secs(10);

/// Checks of files take at most this part of the time of a helper thread: a directory may have a hundred thousand
/// torrents.
const CHECK_TIME_DIVISOR: u32 = 10;

/// Number of checks that each find another change, after which lists are read although files are still changing.
const CHANGING_CHECKS_MAX: u32 = 5;

/// Maximum number of jobs that wait for another one.
const QUEUED_JOBS_MAX: usize = 64;

/// A change to be made.
#[derive(Debug)]
pub enum ReloadJob {
    /// Reads everything that can change again: the config, its lists and the certificate.
    Config,
    /// Reads the lists of the current hooks again.
    Lists,
    /// Adds a torrent to the access list, or removes it.
    Change(InfoHash, bool),
    /// Removes torrents without peers; this is their number.
    Evict(usize),
    /// Checks whether files have changed.
    CheckFiles,
    /// Uses key sets that were fetched.
    Keys(Vec<FetchedKeys>),
}

/// Result of fetching a key set.
pub type FetchedKeys = (KeySource, Result<KeySet, KeysError>);

/// Where the result of a job is sent.
pub type JobReply = oneshot::Sender<Result<String, String>>;

/// A job, and where its result is sent.
pub type ReloadCommand = (ReloadJob, Option<JobReply>);

/// Modification time, length and inode number of a file; for a directory, a digest of those of its files. `None` if it
/// does not exist.
pub type FileStamp = Option<(SystemTime, u64, u64)>;

/// What is served now, as far as it can change.
#[derive(Clone, Debug)]
struct ServedState {
    path: Option<PathBuf>,
    config: Arc<Config>,
    policy: CompiledPolicy,
    certificate: Option<Arc<Certificate>>,
    startup: Arc<StartupState>,
    slow_reads: SlowReads,
    clock: Clock,
    /// Seeds of the keys of lists, and of the random numbers of policies.
    seeds: SeedSequence,
    /// Stamps of the files that the policy was made from.
    file_stamps: Vec<FileStamp>,
    /// Stamps at the last check; a file that has changed since may still be being written.
    last_seen: Vec<FileStamp>,
    /// Number of checks in a row that found another change.
    changing_checks: u32,
    /// Time of the next check.
    check_due: Duration,
    /// Time at which key sets are to be fetched.
    keys_due: Option<Duration>,
}

/// What a job changes for the shards.
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
    /// An update for each shard, or none if nothing changes for them.
    updates: Vec<ShardUpdate>,
    /// Job that must follow.
    next: Option<ReloadJob>,
}

/// Makes changes, one after the other.
#[derive(Debug)]
pub struct Reloader {
    current: ServedState,
    queued: VecDeque<ReloadCommand>,
    running: Option<(JoinHandle<JobResult>, Option<JobReply>)>,
    /// Fetches key sets, independent of jobs: a server that does not answer must not block them.
    fetching: Option<JoinHandle<Vec<FetchedKeys>>>,
}

impl Reloader {
    /// Creates a reloader with the state at start.
    pub fn new(
        path: Option<PathBuf>,
        (startup, file_stamps): (Arc<StartupState>, Vec<FileStamp>),
        policy: CompiledPolicy,
        certificate: Option<Arc<Certificate>>,
        (seeds, slow_reads, clock): (SeedSequence, SlowReads, Clock),
    ) -> Self {
        let keys_due = policy.key_servers().next().map(|_| clock.elapsed());
        let current = ServedState {
            path,
            config: startup.config.clone(),
            keys_due,
            policy,
            certificate,
            startup,
            slow_reads,
            clock,
            seeds,
            last_seen: file_stamps.clone(),
            file_stamps,
            changing_checks: 0,
            check_due: Duration::ZERO,
        };
        Self { current, queued: VecDeque::new(), running: None, fetching: None }
    }

    /// Returns the UDP ports that are served.
    pub fn udp_ports(&self) -> Vec<u16> {
        self.current.startup.addresses[0].iter().map(SocketAddr::port).collect()
    }

    /// Returns the current config.
    pub fn config(&self) -> &Config {
        &self.current.config
    }

    /// Adds a job to the queue; if the queue is full, replies with an error.
    pub fn enqueue(&mut self, (job, reply): ReloadCommand) {
        if self.queued.len() >= QUEUED_JOBS_MAX {
            let text = format!("{QUEUED_JOBS_MAX} changes are queued already; try again later");
            // Whoever asked may have gone.
            let _ = reply.map(|reply| reply.send(Err(text)));
            return;
        }
        self.queued.push_back((job, reply));
        self.start_next();
    }

    /// Checks whether files have changed unless a job is running, and fetches key sets that are due.
    pub fn check_files(&mut self) {
        let now = self.current.clock.elapsed();
        if self.running.is_none() && self.current.check_due <= now {
            // What took too long to read and has been read since is taken.
            let late = self.current.slow_reads.has_new_results();
            self.enqueue((if late { ReloadJob::Lists } else { ReloadJob::CheckFiles }, None));
        }
        if self.fetching.is_none() && self.current.keys_due.is_some_and(|due| due <= now) {
            // Until it is known what came of it.
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

    /// Waits for the current job; returns an update for each shard, or none if nothing changes for them.
    pub async fn next_update(&mut self) -> Vec<ShardUpdate> {
        let (running, fetching) = (&mut self.running, &mut self.fetching);
        let next_update = tokio::select! {
            next_update = ended(running.as_mut().map(|(job, _)| job)) => next_update,
            fetched = ended(fetching.as_mut()) => {
                *fetching = None;
                // Without a helper's answer there is nothing to take over.
                let fetched = fetched.unwrap_or_default();
                self.queued.push_back((ReloadJob::Keys(fetched), None));
                self.start_next();
                return Vec::new();
            }
        };
        let reply = self.running.take().and_then(|(_, reply)| reply);
        let (message, updates) = match next_update {
            Ok(JobResult { current, message, updates, next }) => {
                self.current = current;
                self.queued.extend(next.map(|job| (job, None)));
                match &message {
                    Ok(message) if message.is_empty() => {}
                    Ok(message) => tracing::info!("{message}"),
                    Err(error) => tracing::error!("{error}; everything stays as it was"),
                }
                (message, updates)
            }
            Err(error) => {
                let message = format!("a helper thread has ended: {error}; try again");
                tracing::error!("{message}");
                (Err(message), Vec::new())
            }
        };
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(message);
        }
        self.start_next();
        updates
    }
}

/// Waits for the end of a task, forever if there is none.
async fn ended<T>(task: Option<&mut JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => pending().await,
    }
}

impl ServedState {
    /// Does a job, which takes as long as the file system does.
    fn run(mut self, job: ReloadJob) -> JobResult {
        let (mut next, mut changes) =
            (None, ShardChanges { policy: true, ..ShardChanges::default() });
        let message = match job {
            ReloadJob::Config => {
                changes.settings = true;
                // What was read too slowly before is older than this.
                self.slow_reads.forget_results();
                self.read_config()
            }
            ReloadJob::Lists => {
                self.file_stamps = file_stamps(&self.config, Some(&self.slow_reads));
                self.read_lists("a list has changed")
            }
            ReloadJob::Evict(torrents) => {
                changes = ShardChanges { evict: true, ..ShardChanges::default() };
                Ok(format!("{torrents} torrents without peers are being removed"))
            }
            ReloadJob::Change(hash, on) => self.change_list(hash, on),
            ReloadJob::CheckFiles => {
                changes = ShardChanges::default();
                let began = self.clock.elapsed();
                let found = file_stamps(&self.config, Some(&self.slow_reads));
                let ended = self.clock.elapsed();
                self.check_due = ended + (ended - began) * CHECK_TIME_DIVISOR;
                // Twice the same: nobody is writing it any more.
                self.changing_checks =
                    if found == self.last_seen { 0 } else { self.changing_checks + 1 };
                let is_time =
                    self.changing_checks == 0 || self.changing_checks >= CHANGING_CHECKS_MAX;
                if found != self.file_stamps && is_time {
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
        JobResult { current: self, message, updates, next }
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
        let name = format!("the config {}", path.as_deref().unwrap_or(Path::new("")).display());
        let new = slow_reads
            .run(&name, move || Config::load(path.as_deref()).map_err(|error| error.to_string()))
            .unwrap_or_else(|| Err(format!("reading {name} takes too long")))?;
        let restart = self.startup.needs_restart(&new);
        let file_stamps = file_stamps(&new, Some(&self.slow_reads));
        let before = std::mem::replace(&mut self.config, Arc::new(new));
        let before_plan = self.policy.clone();
        let read = self.read_lists("read again").and_then(|message| {
            let tls = &self.config.http.tls;
            let renewed = match &self.certificate {
                Some(certificate) if !tls.listen.is_empty() => {
                    certificate.reload(&tls.certificate, &tls.key)
                }
                _ => Ok(()),
            };
            renewed.map(|()| message).map_err(|error| error.to_string())
        });
        let message = match read {
            Ok(message) => message,
            Err(error) => {
                (self.config, self.policy) = (before, before_plan);
                return Err(error);
            }
        };
        self.file_stamps = file_stamps;
        log::set_level(self.config.log.level);
        match restart.is_empty() {
            true => Ok(message),
            false => Ok(format!("{message}; restart the tracker for: {}", restart.join(", "))),
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
            // New servers may be among them.
            self.keys_due = Some(self.clock.elapsed());
        }
        let policy = self.policy.summary(self.config.hooks.len());
        let certificate = if self.certificate.is_some() { ", the certificate" } else { "" };
        Ok(format!("{why}: {policy}{certificate}"))
    }

    /// Uses key sets that were fetched. One that could not be fetched stays as it was and is fetched again soon.
    /// Returns whether a key set has changed.
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
                        tracing::info!("hooks: jwt: a new key set of {} keys", keys.len());
                    }
                    every
                }
                Some(Err(error)) => {
                    tracing::error!("hooks: jwt: {error}; tokens are checked with the keys before");
                    every.min(KEYS_RETRY)
                }
                // It is of a config that was read meanwhile, or the helper has ended.
                None => Duration::ZERO,
            };
            retry = Some(retry.map_or(after, |other: Duration| other.min(after)));
        }
        self.keys_due = retry.map(|after| self.clock.elapsed() + after);
        changed
    }

    fn change_list(&mut self, hash: InfoHash, on: bool) -> Result<String, String> {
        let mut policy = self.policy.clone();
        if !policy.change_list(hash, on, self.seeds.draw()) {
            return Err("there must be exactly one access_list among the hooks".to_owned());
        }
        let Some(file) = overrides_file(&self.config) else {
            let cure = "give the access_list a file for it (options: overrides_file: FILE)";
            return Err(format!("it would not outlast a restart; {cure}"));
        };
        overrides::append(file, &hash, on)
            .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        // A read that is still going on may have seen the file as it was.
        self.slow_reads.make_stale();
        self.policy = policy;
        Ok(format!("{hash} is {} the access list", if on { "on" } else { "off" }))
    }
}

/// Returns the path of the file with the overrides of the access list.
fn overrides_file(config: &Config) -> Option<&Path> {
    config.hooks.iter().find_map(|hook| match hook {
        HookConfig::AccessList { sources, .. } => sources.overrides.as_deref(),
        _ => None,
    })
}

/// Stamps of all files that the hooks are read from: to be taken before those are read
///
/// With `slow_reads`, a file that takes too long to look at has no stamp.
pub fn file_stamps(config: &Config, slow_reads: Option<&SlowReads>) -> Vec<FileStamp> {
    let files = config.hooks.iter().flat_map(HookConfig::files);
    let stamp = |path: &Path| match slow_reads {
        None => stamp(path),
        Some(slow_reads) => {
            let (name, path) = (format!("the age of {}", path.display()), path.to_owned());
            slow_reads.run(&name, move || stamp(&path)).flatten()
        }
    };
    files.map(stamp).collect()
}

fn stamp(path: &Path) -> FileStamp {
    let data = fs::metadata(path).ok()?;
    let contents = if data.is_dir() { contents(path)? } else { data.len() };
    Some((data.modified().ok()?, contents, data.ino()))
}

/// Returns a hash of names, sizes and times of the .torrent files of a directory: the modification time of a directory
/// does not change when one of its files is written.
fn contents(directory: &Path) -> Option<u64> {
    let mut sum = 0_u64;
    for file in fs::read_dir(directory).ok()?.map_while(Result::ok) {
        // A file that has been removed meanwhile is omitted.
        let path = file.path();
        let Some(data) = is_torrent_file(&path).then(|| fs::metadata(&path).ok()).flatten() else {
            continue;
        };
        let mut hasher = DefaultHasher::new();
        (file.file_name(), data.modified().ok(), data.len(), data.ino()).hash(&mut hasher);
        // The sum does not depend on the order of the files.
        sum = sum.wrapping_add(hasher.finish());
    }
    Some(sum)
}
