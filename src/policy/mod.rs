//! Policy: the hooks that decide which requests are permitted, in the configured order.
//!
//! The same hooks check announces over UDP and HTTP before the swarm is used; some check scrapes as well. Over UDP,
//! `networks` is applied before the source address is proven, the others after it.
//! Each may refuse a request or change the intervals of the reply. No hook blocks: a request that depends on data that
//! is not available yet is refused or paused. A helper thread makes a [`CompiledPolicy`] with the lists, which all
//! shards share; from it each shard makes its own [`Policy`], which has the counters.
//!
//! To add a hook: a file in this directory, a variant of [`HookConfig`], of `CompiledHook` and of `Hook`, its options
//! in `src/config/hooks.rs` and in `deploy/hooks.yaml`. A program that uses this crate as a library can add hooks
//! without changing it, see [`custom`].

pub mod access_list;
mod access_rule;
mod chain;
pub mod clients;
mod compiled;
pub mod custom;
pub mod hash_list;
mod hook;
mod hook_config;
pub mod interval;
pub mod jwt;
pub mod limits;
pub mod networks;
pub mod overrides;
mod parameters;
pub mod passkeys;
mod refusal;
mod request;
pub mod seeds;
pub mod torrent;

pub use chain::Policy;
pub use compiled::{CompiledPolicy, ListSize, LoadedPolicy, NetworkRules, PolicyError, ReadMode};
pub use hook_config::HookConfig;
pub use parameters::Parameters;
pub use refusal::{PausedRequest, PolicyStop, Refusal, RefusalReply};
pub use request::{AnnounceContext, Intervals, ParameterSource};
