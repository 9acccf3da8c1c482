//! Hooks of one's own: what a program brings along that is built on this library.
//!
//! `examples/own_hook.rs` is one. Hooks of this crate are a closed enum and cost nothing where they are not configured;
//! one of these costs a call.

use super::{Answer, Asked, Parameters, Told};
use serde_json::Value;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

/// Judges announces, over both protocols
pub trait OwnHook: Debug + Send + Sync {
    /// Permits an announce, or says what is answered instead; may change what the client is told
    ///
    /// Asked by all shards at once, for each announce that the hooks before it permit: it should neither wait,
    /// allocate nor log. What it counts, it keeps in atomics. An interval may grow to two thirds of
    /// `announce.peer_lifetime`: who comes later has expired.
    fn judge(
        &self,
        asked: &Asked<'_>,
        parameters: &Parameters<'_>,
        told: &mut Told,
    ) -> Result<(), Answer>;
}

/// A kind of hooks that a config may have
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What the config calls it: a name that no hook of this crate has
    pub name: &'static str,
    /// Makes one of its `options`, each time a config is read; says what is wrong with them and the cure
    pub make: fn(&Value) -> Result<Arc<dyn OwnHook>, String>,
}

/// A hook of one's own, as a config has it
#[derive(Clone, Debug)]
pub struct Own {
    /// Its kind and options, by which it is told from another
    pub(crate) given: (&'static str, Value),
    pub(crate) hook: Arc<dyn OwnHook>,
}

impl PartialEq for Own {
    fn eq(&self, other: &Self) -> bool {
        self.given == other.given
    }
}

/// What the program was built with: the same from its first line on
static KINDS: OnceLock<&'static [Kind]> = OnceLock::new();

/// Lets configs have these hooks; to be called once, before any config is read
pub fn install(kinds: &'static [Kind]) {
    // Once more changes nothing.
    let _ = KINDS.set(kinds);
}

/// All kinds there are
pub(crate) fn kinds() -> &'static [Kind] {
    KINDS.get().copied().unwrap_or_default()
}
