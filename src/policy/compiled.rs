//! The compiled policy: hooks with their lists, made at start or by a helper thread, and shared by all shards.

use super::access_list::{AccessList, LoadedList};
use super::access_rule::AccessRule;
use super::chain::Policy;
use super::clients::ClientFilter;
use super::custom::CustomHook;
use super::hook::{CoversScrapes, Hook};
use super::hook_config::HookConfig;
use super::interval::{IntervalVariation, LoadBasedInterval, LoadMeter};
use super::jwt::{Jwt, JwtSettings, KeySet, KeySource};
use super::limits::{LimitSettings, Limits};
use super::networks::NetworkFilter;
use super::overrides::ListChange;
use super::passkeys::Passkeys;
use super::seeds::SeedSequence;
use crate::clock::Clock;
use crate::slow_reads::SlowReads;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::SubnetPreference;

/// Mistakes in the files of hooks, because of which the policy cannot be used.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct PolicyError(Vec<String>);

/// Data read from the files of a hook.
#[derive(Clone, Debug)]
enum HookData {
    AccessList(AccessList),
    Networks(Arc<NetworkFilter>),
    Passkeys(Arc<Passkeys>),
    Keys(Arc<KeySet>),
}

/// A compiled policy, and warnings about its files.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// The policy.
    pub policy: CompiledPolicy,
    /// Warnings to be logged.
    pub warnings: Vec<String>,
}

/// How the files of hooks are read.
#[derive(Clone, Copy, Debug)]
pub enum ReadMode<'a> {
    /// Waits for each file as long as it takes, and writes none.
    Check,
    /// Waits for each file as long as it takes.
    AtStart,
    /// Waits for each file up to a timeout, after which the data read before is used.
    AtRunTime(&'a SlowReads),
}

/// A hook with its lists.
#[derive(Clone, Debug)]
enum CompiledHook {
    AccessList(AccessRule),
    Clients(Arc<ClientFilter>),
    Passkey(Arc<Passkeys>, CoversScrapes),
    Jwt(Arc<JwtSettings>, Arc<KeySet>),
    Limits(LimitSettings),
    IntervalVariation(IntervalVariation),
    IntervalLoad(LoadBasedInterval),
    Custom(Arc<dyn CustomHook>),
}

/// The `networks` hooks as one list: requests from an address are refused if its smallest network says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkRules {
    /// Each network, and whether requests from it are refused.
    pub networks: BTreeMap<IpNet, bool>,
    /// Whether requests from other addresses are refused.
    pub refuses_others: bool,
}

impl NetworkRules {
    /// Combines the filters of all `networks` hooks.
    pub fn of(filters: &[Arc<NetworkFilter>]) -> Self {
        let networks = filters.iter().flat_map(|filter| filter.networks());
        // An address is in no smaller network of any hook than in the smallest of all.
        let rule = |network: IpNet| (network, filters.iter().any(|it| it.refuses(&network)));
        Self {
            networks: networks.map(rule).collect(),
            refuses_others: filters.iter().any(|filter| filter.refuses_others()),
        }
    }
}

/// Number of entries of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListSize {
    /// Name of the hook.
    pub hook: &'static str,
    /// What the entries are, in the plural.
    pub entries: &'static str,
    /// Number of entries.
    pub len: usize,
}

/// All hooks with their lists, shared by all shards.
#[derive(Clone, Debug, Default)]
pub struct CompiledPolicy {
    networks: Vec<Arc<NetworkFilter>>,
    subnets: SubnetPreference,
    hooks: Vec<CompiledHook>,
    /// Data read from files, with the hook that it was read for.
    read: Vec<(HookConfig, HookData)>,
}

impl CompiledPolicy {
    /// Reads the files of the hooks; `seed` determines the hash keys of the lists.
    ///
    /// Key sets of servers are not fetched here but taken from the previous policy, `before`.
    pub fn load(
        hooks: &[HookConfig],
        before: &Self,
        seed: u64,
        read_mode: ReadMode<'_>,
    ) -> Result<LoadedPolicy, PolicyError> {
        let (mut policy, mut warnings, mut mistakes) = (Self::default(), Vec::new(), Vec::new());
        for hook in
            hooks.iter().filter(|hook| !hook.files().is_empty() || hook.may_have_inline_entries())
        {
            let name = hook.name();
            let named = |text: &str| format!("hooks: {name}: {text}");
            match before.read_hook(hook, seed, read_mode) {
                Ok((data, texts)) => {
                    warnings.extend(texts.iter().map(|text| named(text)));
                    policy.read.push((hook.clone(), data));
                }
                Err(error) => mistakes.extend(error.lines().map(named)),
            }
        }
        if !mistakes.is_empty() {
            return Err(PolicyError(mistakes));
        }
        hooks.iter().for_each(|hook| policy.add(hook, before));
        Ok(LoadedPolicy { policy, warnings })
    }

    /// Reads the files of a hook for the policy that follows this one. If that takes too long, returns the data of this
    /// policy with a warning. Errors have one mistake on each line.
    fn read_hook(
        &self,
        hook: &HookConfig,
        seed: u64,
        read_mode: ReadMode<'_>,
    ) -> Result<(HookData, Vec<String>), String> {
        let ReadMode::AtRunTime(slow) = read_mode else {
            return read_hook(hook, seed, matches!(read_mode, ReadMode::Check));
        };
        let files: Vec<_> = hook.files().iter().map(|it| it.display().to_string()).collect();
        let (name, files) = (hook.name(), files.join(", "));
        let owned = hook.clone();
        // The same files with other options are read separately.
        let mut hasher = DefaultHasher::new();
        format!("{hook:?}").hash(&mut hasher);
        let key = format!("{name}: {files}\0{}", hasher.finish());
        if let Some(read) = slow.run(&key, move || read_hook(&owned, seed, false)) {
            return read;
        }
        let text = format!("reading takes too long: {files}");
        match self.data_of(hook) {
            Some(data) => Ok((data.clone(), vec![format!("{text}; the data read before is used")])),
            None => Err(format!("{text}; check that the file system responds")),
        }
    }

    fn data_of(&self, hook: &HookConfig) -> Option<&HookData> {
        self.read.iter().find(|(read, _)| read == hook).map(|(_, data)| data)
    }

    fn add(&mut self, hook: &HookConfig, before: &Self) {
        let compiled = match (hook, self.data_of(hook)) {
            (HookConfig::AccessList { mode, reply, .. }, Some(HookData::AccessList(list))) => {
                let list = list.clone();
                CompiledHook::AccessList(AccessRule { list, mode: *mode, reply: *reply })
            }
            (HookConfig::Networks { .. }, Some(HookData::Networks(networks))) => {
                return self.networks.push(networks.clone());
            }
            (HookConfig::SubnetPreference(subnets), _) => return self.subnets = *subnets,
            (HookConfig::Clients(clients), _) => CompiledHook::Clients(Arc::new(clients.clone())),
            (HookConfig::Passkey { scrapes, .. }, Some(HookData::Passkeys(keys))) => {
                CompiledHook::Passkey(keys.clone(), *scrapes)
            }
            (HookConfig::Jwt(settings), Some(HookData::Keys(keys))) => {
                CompiledHook::Jwt(settings.clone(), keys.clone())
            }
            (HookConfig::Jwt(settings), _) => CompiledHook::Jwt(
                settings.clone(),
                before.keys_of(&settings.keys).unwrap_or_default(),
            ),
            (HookConfig::Limits(settings), _) => CompiledHook::Limits(settings.clone()),
            (HookConfig::IntervalVariation(it), _) => CompiledHook::IntervalVariation(it.clone()),
            (HookConfig::IntervalLoad(by_load), _) => CompiledHook::IntervalLoad(by_load.clone()),
            (HookConfig::Custom(custom), _) => CompiledHook::Custom(custom.hook.clone()),
            // Not reached: the data of hooks with files was read.
            (_, _) => return,
        };
        self.hooks.push(compiled);
    }

    fn keys_of(&self, source: &KeySource) -> Option<Arc<KeySet>> {
        self.hooks.iter().find_map(|hook| match hook {
            CompiledHook::Jwt(settings, keys) if settings.keys == *source => Some(keys.clone()),
            _ => None,
        })
    }

    /// Returns the URLs of key sets and the interval at which each is fetched.
    pub fn key_servers(&self) -> impl Iterator<Item = (&KeySource, Duration)> {
        self.hooks.iter().filter_map(|hook| match hook {
            CompiledHook::Jwt(settings, _) if matches!(settings.keys, KeySource::Url(_)) => {
                Some((&settings.keys, settings.update_interval))
            }
            _ => None,
        })
    }

    /// Replaces the key set of a server; returns whether it has changed.
    pub fn set_keys(&mut self, source: &KeySource, fetched: &Arc<KeySet>) -> bool {
        let mut changed = false;
        for hook in &mut self.hooks {
            if let CompiledHook::Jwt(settings, keys) = hook
                && settings.keys == *source
                && keys != fetched
            {
                *keys = fetched.clone();
                changed = true;
            }
        }
        changed
    }

    /// Returns a summary of what the hooks have read, such as `1 hook, 5 info hashes listed`.
    pub fn summary(&self, hooks: usize) -> String {
        let mut parts = vec![
            counted(hooks, "hook"),
            format!("{} listed", counted(self.info_hash_count(), "info hash")),
        ];
        let others = self.list_sizes().into_iter().filter(|size| size.hook != "access_list");
        parts.extend(others.map(|size| counted(size.len, size.entries.trim_end_matches('s'))));
        parts.join(", ")
    }

    /// Returns the sizes of the lists of the hooks.
    pub fn list_sizes(&self) -> Vec<ListSize> {
        let size = |(hook, data): &(HookConfig, HookData)| {
            let (entries, len) = match data {
                HookData::AccessList(list) => ("info hashes", list.len()),
                HookData::Networks(networks) => ("networks", networks.len()),
                HookData::Passkeys(keys) => ("passkeys", keys.len()),
                HookData::Keys(keys) => ("token keys", keys.len()),
            };
            ListSize { hook: hook.name(), entries, len }
        };
        self.read.iter().map(size).collect()
    }

    /// Returns the filters of the `networks` hooks.
    pub fn networks(&self) -> &[Arc<NetworkFilter>] {
        &self.networks
    }

    /// Returns the number of info hashes on all lists.
    pub fn info_hash_count(&self) -> usize {
        let of = |hook: &CompiledHook| match hook {
            CompiledHook::AccessList(torrents) => torrents.list.len(),
            _ => 0,
        };
        self.hooks.iter().map(of).sum()
    }

    /// Returns the lists that decide which torrents are served.
    fn lists(&mut self) -> impl Iterator<Item = &mut AccessRule> {
        self.hooks.iter_mut().filter_map(|hook| match hook {
            CompiledHook::AccessList(torrents) => Some(torrents),
            _ => None,
        })
    }

    /// Returns the access list, if there is exactly one.
    pub fn only_access_list(&self) -> Option<&AccessList> {
        let mut lists = self.hooks.iter().filter_map(|hook| match hook {
            CompiledHook::AccessList(torrents) => Some(&torrents.list),
            _ => None,
        });
        lists.next().filter(|_| lists.next().is_none())
    }

    /// Adds torrents to the only list, or removes them; returns false unless there is exactly one list.
    pub fn change_list(&mut self, changes: &[ListChange], seed: u64) -> bool {
        if self.lists().count() != 1 {
            return false;
        }
        let changed = self.lists().next().map(|torrents| {
            torrents.list = torrents.list.with(changes, seed);
            torrents.list.clone()
        });
        // Both share one list, which may have millions of torrents.
        for (_, data) in &mut self.read {
            if let (HookData::AccessList(list), Some(changed)) = (data, &changed) {
                *list = changed.clone();
            }
        }
        true
    }

    /// Creates the policy of one of `shards` shards; `seed` determines its random numbers.
    pub fn policy(&self, shards: u16, seed: u64) -> Policy {
        let mut seeds = SeedSequence::new((seed, 0));
        let hook = |compiled: &CompiledHook| match compiled {
            CompiledHook::AccessList(torrents) => Hook::AccessList(torrents.clone()),
            CompiledHook::Clients(clients) => Hook::Clients(clients.clone()),
            CompiledHook::Passkey(keys, scrapes) => Hook::Passkey(keys.clone(), *scrapes),
            CompiledHook::Jwt(settings, keys) => {
                Hook::Jwt(Box::new(Jwt::new(settings.clone(), keys.clone(), seeds.draw())))
            }
            CompiledHook::Limits(settings) => {
                Hook::Limits(Limits::new(settings.clone(), shards, seeds.draw()))
            }
            CompiledHook::IntervalVariation(variation) => {
                Hook::IntervalVariation(variation.clone())
            }
            CompiledHook::IntervalLoad(by_load) => {
                Hook::IntervalLoad(by_load.clone(), LoadMeter::default())
            }
            CompiledHook::Custom(hook) => Hook::Custom(hook.clone()),
        };
        let hooks: Vec<_> = self.hooks.iter().map(hook).collect();
        Policy::new(self.networks.clone(), self.subnets, hooks, seeds.draw())
    }
}

/// Reads the files of a hook; returns its data and warnings. Errors have one mistake on each line.
fn read_hook(hook: &HookConfig, seed: u64, check: bool) -> Result<(HookData, Vec<String>), String> {
    let (data, warnings) = match hook {
        HookConfig::AccessList { sources, .. } => {
            let LoadedList { list, warnings } =
                AccessList::load(sources, seed, Clock::new().unix_millis(), check)
                    .map_err(|it| it.to_string())?;
            (HookData::AccessList(list), warnings)
        }
        HookConfig::Networks { mode, networks, files } => {
            let read = NetworkFilter::load(*mode, networks, files).map_err(|it| it.to_string())?;
            (HookData::Networks(Arc::new(read)), Vec::new())
        }
        HookConfig::Passkey { file, .. } => {
            let read = Passkeys::load(file).map_err(|it| it.to_string())?;
            (HookData::Passkeys(Arc::new(read)), Vec::new())
        }
        HookConfig::Jwt(settings) => {
            let read = KeySet::load(&settings.keys).map_err(|it| it.to_string())?;
            (HookData::Keys(Arc::new(read)), Vec::new())
        }
        _ => return Err("has no files".to_owned()),
    };
    Ok((data, warnings))
}

/// Returns a count with its noun in the singular or plural.
fn counted(count: usize, noun: &str) -> String {
    match (count, noun.ends_with("sh")) {
        (1, _) => format!("1 {noun}"),
        (_, true) => format!("{count} {noun}es"),
        (_, false) => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::access_list::ListMode;
    use ipnet::{Ipv4Net, Ipv6Net};
    use std::net::IpAddr;

    /// The list of all `networks` hooks decides like the hooks themselves.
    #[test]
    fn network_rules_decide_like_the_hooks() {
        let seed = 12;
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..50 {
            let network = |rng: &mut fastrand::Rng| match rng.bool() {
                true => {
                    let address = [1, rng.u8(..4), rng.u8(..4), 0].into();
                    IpNet::V4(Ipv4Net::new(address, rng.u8(8..=24)).unwrap())
                }
                false => {
                    let address = [0x2a00, rng.u16(..4), rng.u16(..4), 0, 0, 0, 0, 0].into();
                    IpNet::V6(Ipv6Net::new(address, rng.u8(16..=48)).unwrap())
                }
            };
            let hook = |rng: &mut fastrand::Rng| HookConfig::Networks {
                mode: *rng.choice(&[ListMode::Allow, ListMode::Deny]).unwrap(),
                networks: (0..rng.usize(..6)).map(|_| network(rng)).collect(),
                files: Vec::new(),
            };
            let hooks: Vec<_> = (0..rng.usize(..4)).map(|_| hook(&mut rng)).collect();
            let before = CompiledPolicy::default();
            let policy = CompiledPolicy::load(&hooks, &before, 1, ReadMode::Check).unwrap().policy;
            let rules = NetworkRules::of(policy.networks());
            let decider = policy.policy(1, 1);
            for _ in 0..300 {
                let address: IpAddr = match rng.bool() {
                    true => [1, rng.u8(..5), rng.u8(..5), rng.u8(..)].into(),
                    false => [0x2a00, rng.u16(..5), rng.u16(..5), 0, 0, 0, 0, 1].into(),
                };
                let covering = rules.networks.iter().filter(|(net, _)| net.contains(&address));
                let smallest = covering.max_by_key(|(network, _)| network.prefix_len());
                let refuses = smallest.map_or(rules.refuses_others, |(_, refuses)| *refuses);
                let expected = !decider.permits_source(address);
                assert_eq!(refuses, expected, "seed {seed}, round {round}: {address}");
            }
        }
    }
}
