//! Hooks with their lists: made by a helper thread, the same for all shards.

use super::access_list::{AccessList, LoadedList, Mode};
use super::clients::Clients;
use super::interval::{ByLoad, Load, Variation};
use super::jwt::{Jwt, JwtTerms, KeySet, KeySource};
use super::limits::{LimitTerms, Limits};
use super::networks::Networks;
use super::own::OwnHook;
use super::passkeys::Passkeys;
use super::seeds::Seeds;
use super::{Answer, Hook, HookConfig, Policy, Scrapes};
use crate::slow_reads::SlowReads;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::{InfoHash, SubnetPreference};
use tsubame_udp::wire::REQUEST_LEN_MAX;

/// Why hooks cannot be used: everything that is wrong with their files.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct PlanError(Vec<String>);

/// What was read for a hook that has files
#[derive(Clone, Debug)]
enum HookData {
    AccessList(AccessList),
    Networks(Arc<Networks>),
    Passkeys(Arc<Passkeys>),
    Keys(Arc<KeySet>),
}

/// A plan, and what is to be logged about it.
#[derive(Debug)]
pub struct LoadedPlan {
    /// The plan
    pub plan: Plan,
    /// What is to be logged
    pub warnings: Vec<String>,
}

/// How the files of hooks are read
#[derive(Clone, Copy, Debug)]
pub enum Reading<'a> {
    /// Waits for each file however long it takes, and writes none
    Check,
    /// Waits for each file however long it takes
    AtStart,
    /// Waits a limited time for each file; what was read before takes the place of what takes longer
    AtRunTime(&'a SlowReads),
}

/// A hook with its lists
#[derive(Clone, Debug)]
enum HookPlan {
    AccessList(Torrents),
    Clients(Arc<Clients>),
    Passkey(Arc<Passkeys>, Scrapes),
    Jwt(Arc<JwtTerms>, Arc<KeySet>),
    Limits(LimitTerms),
    IntervalVariation(Variation),
    IntervalLoad(ByLoad),
    Own(Arc<dyn OwnHook>),
}

/// All hooks with their lists: the same for all shards
#[derive(Clone, Debug, Default)]
pub struct Plan {
    networks: Vec<Arc<Networks>>,
    subnets: SubnetPreference,
    hooks: Vec<HookPlan>,
    /// What was read for each hook that has files
    read: Vec<(HookConfig, HookData)>,
}

impl Plan {
    /// Reads what the hooks need; `seed` draws the keys of lists
    ///
    /// Key sets that come from a server are those of the plan `before`, if it has them, and fetched apart from this.
    pub fn load(
        hooks: &[HookConfig],
        before: &Self,
        seed: u64,
        reading: Reading<'_>,
    ) -> Result<LoadedPlan, PlanError> {
        let (mut plan, mut warnings, mut mistakes) = (Self::default(), Vec::new(), Vec::new());
        for hook in hooks.iter().filter(|hook| !hook.files().is_empty() || hook.has_list()) {
            let name = hook.name();
            let named = |text: &str| format!("hooks: {name}: {text}");
            match before.read_hook(hook, seed, reading) {
                Ok((data, said)) => {
                    warnings.extend(said.iter().map(|text| named(text)));
                    plan.read.push((hook.clone(), data));
                }
                Err(error) => mistakes.extend(error.lines().map(named)),
            }
        }
        if !mistakes.is_empty() {
            return Err(PlanError(mistakes));
        }
        hooks.iter().for_each(|hook| plan.add(hook, before));
        Ok(LoadedPlan { plan, warnings })
    }

    /// Reads the files of a hook; with that comes what is to be logged, and errors are a line each
    fn read_hook(
        &self,
        hook: &HookConfig,
        seed: u64,
        reading: Reading<'_>,
    ) -> Result<(HookData, Vec<String>), String> {
        let Reading::AtRunTime(slow) = reading else {
            return read_hook(hook, seed, matches!(reading, Reading::Check));
        };
        let files: Vec<_> = hook.files().iter().map(|it| it.display().to_string()).collect();
        let (name, files) = (hook.name(), files.join(", "));
        let own = hook.clone();
        // With other options the same files are another list.
        let mut hasher = DefaultHasher::new();
        format!("{hook:?}").hash(&mut hasher);
        let key = format!("{name}: {files}\0{}", hasher.finish());
        if let Some(read) = slow.run(&key, move || read_hook(&own, seed, false)) {
            return read;
        }
        let text = format!("reading takes too long: {files}");
        match self.data_of(hook) {
            Some(data) => Ok((data.clone(), vec![format!("{text}; what was read before is used")])),
            None => Err(format!("{text}; see that the file system answers")),
        }
    }

    fn data_of(&self, hook: &HookConfig) -> Option<&HookData> {
        self.read.iter().find(|(read, _)| read == hook).map(|(_, data)| data)
    }

    fn add(&mut self, hook: &HookConfig, before: &Self) {
        let planned = match (hook, self.data_of(hook)) {
            (HookConfig::AccessList { mode, answer, .. }, Some(HookData::AccessList(list))) => {
                let list = list.clone();
                HookPlan::AccessList(Torrents { list, mode: *mode, answer: *answer })
            }
            (HookConfig::Networks { .. }, Some(HookData::Networks(networks))) => {
                return self.networks.push(networks.clone());
            }
            (HookConfig::SubnetPreference(subnets), _) => return self.subnets = *subnets,
            (HookConfig::Clients(clients), _) => HookPlan::Clients(Arc::new(clients.clone())),
            (HookConfig::Passkey { scrapes, .. }, Some(HookData::Passkeys(keys))) => {
                HookPlan::Passkey(keys.clone(), *scrapes)
            }
            (HookConfig::Jwt(terms), Some(HookData::Keys(keys))) => {
                HookPlan::Jwt(terms.clone(), keys.clone())
            }
            (HookConfig::Jwt(terms), _) => {
                HookPlan::Jwt(terms.clone(), before.keys_of(&terms.keys).unwrap_or_default())
            }
            (HookConfig::Limits(terms), _) => HookPlan::Limits(terms.clone()),
            (HookConfig::IntervalVariation(it), _) => HookPlan::IntervalVariation(it.clone()),
            (HookConfig::IntervalLoad(by_load), _) => HookPlan::IntervalLoad(by_load.clone()),
            (HookConfig::Own(own), _) => HookPlan::Own(own.hook.clone()),
            // What has files was read.
            (_, _) => return,
        };
        self.hooks.push(planned);
    }

    fn keys_of(&self, source: &KeySource) -> Option<Arc<KeySet>> {
        self.hooks.iter().find_map(|hook| match hook {
            HookPlan::Jwt(terms, keys) if terms.keys == *source => Some(keys.clone()),
            _ => None,
        })
    }

    /// Servers that key sets are fetched from, and how often
    pub fn key_servers(&self) -> impl Iterator<Item = (&KeySource, Duration)> {
        self.hooks.iter().filter_map(|hook| match hook {
            HookPlan::Jwt(terms, _) if matches!(terms.keys, KeySource::Url(_)) => {
                Some((&terms.keys, terms.update_interval))
            }
            _ => None,
        })
    }

    /// Goes by these keys from now on; false if they are those it has
    pub fn set_keys(&mut self, source: &KeySource, fetched: &Arc<KeySet>) -> bool {
        let mut changed = false;
        for hook in &mut self.hooks {
            if let HookPlan::Jwt(terms, keys) = hook
                && terms.keys == *source
                && keys != fetched
            {
                *keys = fetched.clone();
                changed = true;
            }
        }
        changed
    }

    /// Describes what the hooks have read, as `1 hook, 5 info hashes listed`.
    pub fn summary(&self, hooks: usize) -> String {
        let mut parts =
            vec![counted(hooks, "hook"), format!("{} listed", counted(self.listed(), "info hash"))];
        for (_, data) in &self.read {
            parts.extend(match data {
                HookData::AccessList(_) => None,
                HookData::Networks(networks) => Some(counted(networks.len(), "network")),
                HookData::Passkeys(keys) => Some(counted(keys.len(), "passkey")),
                HookData::Keys(keys) => Some(counted(keys.len(), "token key")),
            });
        }
        parts.join(", ")
    }

    /// Info hashes on the lists, all together
    pub fn listed(&self) -> usize {
        let of = |hook: &HookPlan| match hook {
            HookPlan::AccessList(torrents) => torrents.list.len(),
            _ => 0,
        };
        self.hooks.iter().map(of).sum()
    }

    /// The lists that decide which torrents are served
    fn lists(&mut self) -> impl Iterator<Item = &mut Torrents> {
        self.hooks.iter_mut().filter_map(|hook| match hook {
            HookPlan::AccessList(torrents) => Some(torrents),
            _ => None,
        })
    }

    /// Puts a torrent on the only list there is, or takes it off; false unless there is exactly one
    pub fn change_list(&mut self, hash: InfoHash, on: bool, seed: u64) -> bool {
        if self.lists().count() != 1 {
            return false;
        }
        self.lists().for_each(|torrents| torrents.list = torrents.list.with(hash, on, seed));
        for (_, data) in &mut self.read {
            if let HookData::AccessList(list) = data {
                *list = list.with(hash, on, seed);
            }
        }
        true
    }

    /// The policy of one of so many shards; `seed` draws what is drawn
    pub fn policy(&self, shards: u16, seed: u64) -> Policy {
        let mut seeds = Seeds::new((seed, 0));
        let hook = |plan: &HookPlan| match plan {
            HookPlan::AccessList(torrents) => Hook::AccessList(torrents.clone()),
            HookPlan::Clients(clients) => Hook::Clients(clients.clone()),
            HookPlan::Passkey(keys, scrapes) => Hook::Passkey(keys.clone(), *scrapes),
            HookPlan::Jwt(terms, keys) => {
                Hook::Jwt(Box::new(Jwt::new(terms.clone(), keys.clone(), seeds.draw())))
            }
            HookPlan::Limits(terms) => {
                Hook::Limits(Limits::new(terms.clone(), shards, seeds.draw()))
            }
            HookPlan::IntervalVariation(variation) => Hook::IntervalVariation(variation.clone()),
            HookPlan::IntervalLoad(by_load) => Hook::IntervalLoad(by_load.clone(), Load::default()),
            HookPlan::Own(hook) => Hook::Own(hook.clone()),
        };
        let hooks: Vec<_> = self.hooks.iter().map(hook).collect();
        Policy {
            networks: self.networks.clone(),
            subnets: self.subnets,
            reads_parameters: hooks
                .iter()
                .any(|hook| matches!(hook, Hook::Passkey(..) | Hook::Jwt(_) | Hook::Own(_))),
            covers_scrapes: hooks.iter().any(Hook::covers_scrapes),
            has_lists: hooks.iter().any(|hook| matches!(hook, Hook::AccessList(_))),
            lists_alone: hooks.iter().all(|hook| matches!(hook, Hook::AccessList(_))),
            hooks,
            generation: 0,
            rng: fastrand::Rng::with_seed(seeds.draw()),
            // Enough for any: a packet allocates nothing.
            scratch: Vec::with_capacity(REQUEST_LEN_MAX),
        }
    }
}

/// Reads the files of a hook; with that comes what is to be logged, and errors are a line each
fn read_hook(hook: &HookConfig, seed: u64, check: bool) -> Result<(HookData, Vec<String>), String> {
    let (data, warnings) = match hook {
        HookConfig::AccessList { sources, .. } => {
            let LoadedList { list, warnings } =
                AccessList::load(sources, seed, check).map_err(|it| it.to_string())?;
            (HookData::AccessList(list), warnings)
        }
        HookConfig::Networks { mode, networks, files } => {
            let read = Networks::load(*mode, networks, files).map_err(|it| it.to_string())?;
            (HookData::Networks(Arc::new(read)), Vec::new())
        }
        HookConfig::Passkey { file, .. } => {
            let read = Passkeys::load(file).map_err(|it| it.to_string())?;
            (HookData::Passkeys(Arc::new(read)), Vec::new())
        }
        HookConfig::Jwt(terms) => {
            let read = KeySet::load(&terms.keys).map_err(|it| it.to_string())?;
            (HookData::Keys(Arc::new(read)), Vec::new())
        }
        _ => return Err("has no files".to_owned()),
    };
    Ok((data, warnings))
}

fn counted(count: usize, noun: &str) -> String {
    match (count, noun.ends_with("sh")) {
        (1, _) => format!("1 {noun}"),
        (_, true) => format!("{count} {noun}es"),
        (_, false) => format!("{count} {noun}s"),
    }
}

/// A list of torrents, and what it is good for
#[derive(Clone, Debug)]
pub(super) struct Torrents {
    pub(super) list: AccessList,
    pub(super) mode: Mode,
    pub(super) answer: Answer,
}

impl Torrents {
    /// The same for what is read once and goes by several names
    pub(super) fn identity(&self) -> (Mode, [*const (); 2]) {
        (self.mode, self.list.identity())
    }

    pub(super) fn permits(&self, hash: &InfoHash) -> bool {
        self.list.contains(hash) == (self.mode == Mode::Allow)
    }
}
