//! Changes at run time: the config, hooks with their lists, and the certificate.
//!
//! Files are read and lists built by a helper thread, one job at a time; then every shard is sent its policy and its
//! settings, which take the place of those it has between two batches. What cannot be read changes nothing.

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

/// When a key set is fetched again that could not be
const KEYS_AGAIN: Duration = Duration::from_secs(10);

/// Looks take up to one part in so many of a helper's time: a directory may hold a hundred thousand torrents
const LOOKS_SHARE: u32 = 10;

/// Looks that find something else each time, until lists are read all the same: somebody adds to them all the time
const RESTLESS_LOOKS: u32 = 5;

/// Jobs that may wait while another is done
const JOBS_WAITING_MAX: usize = 64;

/// What is to change
#[derive(Debug)]
pub enum ReloadJob {
    /// All that can: the config, its lists, the certificate
    Config,
    /// The lists of the hooks there are
    Lists,
    /// A torrent is put on the access list, or taken off
    Change(InfoHash, bool),
    /// Torrents without peers are removed, of which there are so many
    Evict(usize),
    /// Nothing: a look at whether files have changed
    Look,
    /// Key sets that were fetched take the place of those before
    Keys(Vec<FetchedKeys>),
}

/// What came of fetching a key set
pub type FetchedKeys = (KeySource, Result<KeySet, KeysError>);

/// Who asked for a job, and wants to know what came of it
pub type JobReply = oneshot::Sender<Result<String, String>>;

/// A job and who waits for it
pub type ReloadCommand = (ReloadJob, Option<JobReply>);

/// When a file was written, its length and its number, or of a directory what stands for those of all in it; none if it
/// is not there
pub type FileStamp = Option<(SystemTime, u64, u64)>;

/// What is served now, as far as it can change
#[derive(Clone, Debug)]
struct ServedState {
    path: Option<PathBuf>,
    config: Arc<Config>,
    policy: CompiledPolicy,
    certificate: Option<Arc<Certificate>>,
    startup: Arc<StartupState>,
    slow_reads: SlowReads,
    clock: Clock,
    /// Of the keys of lists, and of what policies draw
    seeds: SeedSequence,
    /// Of the files that the plan was made from
    stamps: Vec<FileStamp>,
    /// What a look has found since, which may still be being written
    seen: Vec<FileStamp>,
    /// How many looks in a row have found something else
    restless: u32,
    /// When to look again
    look_due: Duration,
    /// When key sets are to be fetched
    keys_due: Option<Duration>,
}

/// What a job changes for the shards
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

/// A job that is done
#[derive(Debug)]
struct JobResult {
    current: ServedState,
    said: Result<String, String>,
    /// For each shard, unless nothing changes for them
    updates: Vec<ShardUpdate>,
    /// What is to be done next
    next: Option<ReloadJob>,
}

/// Changes, one after the other
#[derive(Debug)]
pub struct Reloader {
    current: ServedState,
    waiting: VecDeque<ReloadCommand>,
    running: Option<(JoinHandle<JobResult>, Option<JobReply>)>,
    /// Beside the others, which a server that does not answer is not to hold up
    fetching: Option<JoinHandle<Vec<FetchedKeys>>>,
}

impl Reloader {
    /// Nothing has changed yet since the start
    pub fn new(
        path: Option<PathBuf>,
        (startup, stamps): (Arc<StartupState>, Vec<FileStamp>),
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
            seen: stamps.clone(),
            stamps,
            restless: 0,
            look_due: Duration::ZERO,
        };
        Self { current, waiting: VecDeque::new(), running: None, fetching: None }
    }

    /// The ports that are served over UDP
    pub fn udp_ports(&self) -> Vec<u16> {
        self.current.startup.addresses[0].iter().map(SocketAddr::port).collect()
    }

    /// The config that is in use now
    pub fn config(&self) -> &Config {
        &self.current.config
    }

    /// Adds a job to the queue; if the queue is full, answers with an error instead
    pub fn ask(&mut self, (job, reply): ReloadCommand) {
        if self.waiting.len() >= JOBS_WAITING_MAX {
            let text = format!("{JOBS_WAITING_MAX} changes wait already; try again later");
            // Whoever asked may have gone.
            let _ = reply.map(|reply| reply.send(Err(text)));
            return;
        }
        self.waiting.push_back((job, reply));
        self.begin();
    }

    /// Has somebody look whether files have changed, unless they are busy, and fetch key sets that are due
    pub fn look(&mut self) {
        let now = self.current.clock.elapsed();
        if self.running.is_none() && self.current.look_due <= now {
            // What took too long to read and has been read since is taken.
            let late = self.current.slow_reads.has_new_results();
            self.ask((if late { ReloadJob::Lists } else { ReloadJob::Look }, None));
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

    fn begin(&mut self) {
        if self.running.is_none()
            && let Some((job, reply)) = self.waiting.pop_front()
        {
            let current = self.current.clone();
            let job = tokio::task::spawn_blocking(move || current.work(job));
            self.running = Some((job, reply));
        }
    }

    /// Waits for the job that is being done; returns what changes for each shard, nothing if all stays as it is
    pub async fn done(&mut self) -> Vec<ShardUpdate> {
        let (running, fetching) = (&mut self.running, &mut self.fetching);
        let done = tokio::select! {
            done = ended(running.as_mut().map(|(job, _)| job)) => done,
            fetched = ended(fetching.as_mut()) => {
                *fetching = None;
                // Without a helper's answer there is nothing to take over.
                let fetched = fetched.unwrap_or_default();
                self.waiting.push_back((ReloadJob::Keys(fetched), None));
                self.begin();
                return Vec::new();
            }
        };
        let reply = self.running.take().and_then(|(_, reply)| reply);
        let (said, updates) = match done {
            Ok(JobResult { current, said, updates, next }) => {
                self.current = current;
                self.waiting.extend(next.map(|job| (job, None)));
                match &said {
                    Ok(said) if said.is_empty() => {}
                    Ok(said) => tracing::info!("{said}"),
                    Err(error) => tracing::error!("{error}; everything stays as it was"),
                }
                (said, updates)
            }
            Err(error) => {
                let said = format!("a helper thread has ended: {error}; ask again");
                tracing::error!("{said}");
                (Err(said), Vec::new())
            }
        };
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(said);
        }
        self.begin();
        updates
    }
}

/// Waits for the end of a task, for ever if there is none
async fn ended<T>(task: Option<&mut JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => pending().await,
    }
}

impl ServedState {
    /// Does a job; this takes as long as the disk does
    fn work(mut self, job: ReloadJob) -> JobResult {
        let (mut next, mut changes) =
            (None, ShardChanges { policy: true, ..ShardChanges::default() });
        let said = match job {
            ReloadJob::Config => {
                changes.settings = true;
                // What was read too slowly before is older than this.
                self.slow_reads.forget_results();
                self.read_config()
            }
            ReloadJob::Lists => {
                self.stamps = stamps(&self.config, Some(&self.slow_reads));
                self.read_lists("a list has changed")
            }
            ReloadJob::Evict(torrents) => {
                changes = ShardChanges { evict: true, ..ShardChanges::default() };
                Ok(format!("{torrents} torrents without peers are being removed"))
            }
            ReloadJob::Change(hash, on) => self.change(hash, on),
            ReloadJob::Look => {
                changes = ShardChanges::default();
                let began = self.clock.elapsed();
                let found = stamps(&self.config, Some(&self.slow_reads));
                let ended = self.clock.elapsed();
                self.look_due = ended + (ended - began) * LOOKS_SHARE;
                // Twice the same: nobody is writing it any more.
                self.restless = if found == self.seen { 0 } else { self.restless + 1 };
                let is_time = self.restless == 0 || self.restless >= RESTLESS_LOOKS;
                if found != self.stamps && is_time {
                    self.restless = 0;
                    next = Some(ReloadJob::Lists);
                }
                self.seen = found;
                Ok(String::new())
            }
            ReloadJob::Keys(fetched) => {
                changes.policy = self.take_keys(fetched);
                Ok(String::new())
            }
        };
        let shards = if said.is_ok() && changes.any() { self.startup.identity.shards } else { 0 };
        let updates = (0..shards).map(|shard| self.update(shard, changes)).collect();
        JobResult { current: self, said, updates, next }
    }

    /// What a shard is sent
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
        let stamps = stamps(&new, Some(&self.slow_reads));
        let before = std::mem::replace(&mut self.config, Arc::new(new));
        let before_plan = self.policy.clone();
        let read = self.read_lists("read again").and_then(|said| {
            let tls = &self.config.http.tls;
            let renewed = match &self.certificate {
                Some(certificate) if !tls.listen.is_empty() => {
                    certificate.reload(&tls.certificate, &tls.key)
                }
                _ => Ok(()),
            };
            renewed.map(|()| said).map_err(|error| error.to_string())
        });
        let said = match read {
            Ok(said) => said,
            Err(error) => {
                (self.config, self.policy) = (before, before_plan);
                return Err(error);
            }
        };
        self.stamps = stamps;
        log::set_level(self.config.log.level);
        match restart.is_empty() {
            true => Ok(said),
            false => Ok(format!("{said}; restart the tracker for: {}", restart.join(", "))),
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

    /// Goes by key sets that were fetched; what could not be fetched keeps its keys and is tried again soon. True if
    /// there are others now
    fn take_keys(&mut self, mut fetched: Vec<FetchedKeys>) -> bool {
        let servers = self.policy.key_servers().map(|(source, every)| (source.clone(), every));
        let (mut changed, mut again) = (false, None);
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
                    every.min(KEYS_AGAIN)
                }
                // It is of a config that was read meanwhile, or the helper has ended.
                None => Duration::ZERO,
            };
            again = Some(again.map_or(after, |other: Duration| other.min(after)));
        }
        self.keys_due = again.map(|after| self.clock.elapsed() + after);
        changed
    }

    fn change(&mut self, hash: InfoHash, on: bool) -> Result<String, String> {
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

/// Where overrides of the access list are kept
fn overrides_file(config: &Config) -> Option<&Path> {
    config.hooks.iter().find_map(|hook| match hook {
        HookConfig::AccessList { sources, .. } => sources.overrides.as_deref(),
        _ => None,
    })
}

/// Stamps of all files that the hooks are read from: to be taken before those are read
///
/// With `slow_reads`, a file that takes too long to look at has no stamp.
pub fn stamps(config: &Config, slow_reads: Option<&SlowReads>) -> Vec<FileStamp> {
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

/// What changes when a file of a directory comes, goes or is written: the directory itself does not when a file that is
/// there already gets its end
fn contents(directory: &Path) -> Option<u64> {
    let mut sum = 0_u64;
    for file in fs::read_dir(directory).ok()?.map_while(Result::ok) {
        // As they are read; one that has gone since is not there.
        let path = file.path();
        let Some(data) = is_torrent_file(&path).then(|| fs::metadata(&path).ok()).flatten() else {
            continue;
        };
        let mut hasher = DefaultHasher::new();
        (file.file_name(), data.modified().ok(), data.len(), data.ino()).hash(&mut hasher);
        // In whatever order they come.
        sum = sum.wrapping_add(hasher.finish());
    }
    Some(sum)
}
