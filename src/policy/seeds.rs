//! Seeds of what policy draws.

use siphasher::sip::SipHasher13;

/// Seeds, of which nobody can tell one from another
///
/// Clients see some of what is drawn: how an interval varies tells something of its generator, and that must not tell
/// them the key of the table which counts them.
#[derive(Clone)]
pub struct Seeds {
    hasher: SipHasher13,
    drawn: u64,
}

/// Keys do not show in logs
impl std::fmt::Debug for Seeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seeds").field("drawn", &self.drawn).finish_non_exhaustive()
    }
}

impl Seeds {
    /// Those of a key
    pub fn new((first, second): (u64, u64)) -> Self {
        Self { hasher: SipHasher13::new_with_keys(first, second), drawn: 0 }
    }

    /// The next one
    pub fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.hasher.hash(&self.drawn.to_le_bytes())
    }
}
