//! Hooks with their lists: made by a helper thread, the same for all shards.

use super::access_list::{AccessList, ListError, Mode};
use super::clients::Clients;
use super::interval::{ByLoad, Load, Variation};
use super::jwt::{self, Jwt, JwtTerms, KeySet, KeySource};
use super::limits::{LimitTerms, Limits};
use super::networks::{Networks, NetworksError};
use super::own::OwnHook;
use super::passkeys::{KeysError, Passkeys};
use super::seeds::Seeds;
use super::{Answer, Hook, HookConfig, Policy, Scrapes};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::{InfoHash, Subnets};
use tsubame_udp::wire::REQUEST_LEN_MAX;

/// Why there is no plan
#[derive(Debug, Error)]
pub enum PlanError {
    /// A list
    #[error("hooks: access_list: {0}")]
    AccessList(#[from] ListError),
    /// Networks
    #[error("hooks: networks: {0}")]
    Networks(#[from] NetworksError),
    /// Passkeys
    #[error("hooks: passkey: {0}")]
    Passkeys(#[from] KeysError),
    /// Keys of tokens
    #[error("hooks: jwt: {0}")]
    Jwt(#[from] jwt::KeysError),
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
    subnets: Subnets,
    hooks: Vec<HookPlan>,
}

impl Plan {
    /// Reads what the hooks need; `seed` draws the keys of lists
    ///
    /// Key sets that come from a server are those of the plan `before`, if it has them, and fetched apart from this.
    pub fn load(hooks: &[HookConfig], before: &Self, seed: u64) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        for hook in hooks {
            plan.hooks.push(match hook {
                HookConfig::AccessList { mode, sources, answer } => {
                    let list = AccessList::load(sources, seed)?;
                    HookPlan::AccessList(Torrents { list, mode: *mode, answer: *answer })
                }
                HookConfig::Networks { mode, networks, files } => {
                    plan.networks.push(Arc::new(Networks::load(*mode, networks, files)?));
                    continue;
                }
                HookConfig::SubnetPreference(subnets) => {
                    plan.subnets = *subnets;
                    continue;
                }
                HookConfig::Clients(clients) => HookPlan::Clients(Arc::new(clients.clone())),
                HookConfig::Passkey { file, scrapes } => {
                    HookPlan::Passkey(Arc::new(Passkeys::load(file)?), *scrapes)
                }
                HookConfig::Jwt(terms) => {
                    let keys = match &terms.keys {
                        file @ KeySource::File(_) => Arc::new(KeySet::load(file)?),
                        url => before.keys_of(url).unwrap_or_default(),
                    };
                    HookPlan::Jwt(terms.clone(), keys)
                }
                HookConfig::Limits(terms) => HookPlan::Limits(terms.clone()),
                HookConfig::IntervalVariation(variation) => {
                    HookPlan::IntervalVariation(variation.clone())
                }
                HookConfig::IntervalLoad(by_load) => HookPlan::IntervalLoad(by_load.clone()),
                HookConfig::Own(own) => HookPlan::Own(own.hook.clone()),
            });
        }
        Ok(plan)
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
            rng: fastrand::Rng::with_seed(seeds.draw()),
            // Enough for any: a packet allocates nothing.
            scratch: Vec::with_capacity(REQUEST_LEN_MAX),
        }
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
