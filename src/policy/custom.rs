//! Custom hooks, which a program that is built on this library adds to those of this crate.
//!
//! `examples/custom_hook.rs` is one. Hooks of this crate are variants of a closed enum and cost nothing if they are not
//! configured; a custom hook costs a dynamic call for each announce.

use super::parameters::Parameters;
use super::refusal::RefusalReply;
use super::request::{AnnounceContext, Intervals};
use serde_json::Value;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

/// A hook that checks announces over both protocols.
pub trait CustomHook: Debug + Send + Sync {
    /// Permits an announce, or returns the reply that refuses it; may change the intervals of the reply.
    ///
    /// All shards call it concurrently, for each announce that the hooks before it permit: it should not block,
    /// allocate or log. Its counters should be atomic. An interval should not exceed two thirds of the config key
    /// `announce.peer_lifetime`, so that a peer whose announce is late does not expire.
    fn check(
        &self,
        context: &AnnounceContext<'_>,
        parameters: &Parameters<'_>,
        intervals: &mut Intervals,
    ) -> Result<(), RefusalReply>;
}

/// A kind of custom hook that configs may use.
#[derive(Clone, Copy, Debug)]
pub struct CustomHookKind {
    /// Name in the config, which must differ from the names of the hooks of this crate.
    pub name: &'static str,
    /// Creates a hook from its `options`, each time a config is read. An error says what is wrong with the options and
    /// how to correct it.
    pub make: fn(&Value) -> Result<Arc<dyn CustomHook>, String>,
}

/// A custom hook as it is configured.
#[derive(Clone, Debug)]
pub struct ConfiguredCustomHook {
    /// Name of its kind and its options, by which two hooks are compared.
    pub(crate) config: (&'static str, Value),
    pub(crate) hook: Arc<dyn CustomHook>,
}

impl PartialEq for ConfiguredCustomHook {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
    }
}

/// Kinds of custom hooks of this program.
static KINDS: OnceLock<&'static [CustomHookKind]> = OnceLock::new();

/// Makes custom hooks available to configs. It must be called once, before any config is read.
pub fn install(kinds: &'static [CustomHookKind]) {
    // Further calls have no effect.
    let _ = KINDS.set(kinds);
}

/// Returns all kinds of custom hooks.
pub(crate) fn kinds() -> &'static [CustomHookKind] {
    KINDS.get().copied().unwrap_or_default()
}
