//! Seeds of the random numbers and hash keys of hooks.

use siphasher::sip::SipHasher13;

/// A sequence of seeds that are independent for an observer: no seed can be derived from another.
///
/// Clients observe the results of some seeds: the variation of intervals reveals the state of its generator, which must
/// not reveal the key of the hash table that counts the sources.
#[derive(Clone)]
pub struct SeedSequence {
    hasher: SipHasher13,
    drawn: u64,
}

/// Hides the key from logs.
impl std::fmt::Debug for SeedSequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeedSequence").field("drawn", &self.drawn).finish_non_exhaustive()
    }
}

impl SeedSequence {
    /// Creates the sequence of a key.
    pub fn new((first, second): (u64, u64)) -> Self {
        Self { hasher: SipHasher13::new_with_keys(first, second), drawn: 0 }
    }

    /// Returns the next seed.
    pub fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.hasher.hash(&self.drawn.to_le_bytes())
    }
}
