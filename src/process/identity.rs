//! Random keys and seeds of the process, in one value.
//!
//! In an upgrade, the new process gets it from the old one.

use serde::{Deserialize, Serialize};
use tsubame_udp::connection_id::ConnectionIdKey;
use tsubame_udp::steering::{KEY_WORDS, SteeringKeys};

/// Random keys and seeds of this process.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    connection_id_key: [u8; 16],
    steering_words: [u32; KEY_WORDS],
    table_hash_key: (u64, u64),
    seed: u64,
    policy_key: (u64, u64),
    distinct_key: (u64, u64),
    /// Number of shards among which the info hashes are divided.
    pub shards: u16,
}

/// Omits the keys, so that they do not appear in logs.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("shards", &self.shards).finish_non_exhaustive()
    }
}

impl Identity {
    /// Creates an identity with random numbers from the kernel.
    ///
    /// # Errors
    ///
    /// Returns an error if getrandom(2) fails.
    pub fn random(shards: u16) -> Result<Self, getrandom::Error> {
        let mut connection_id_key = [0; 16];
        getrandom::fill(&mut connection_id_key)?;
        let mut steering_words = [0; KEY_WORDS];
        for word in &mut steering_words {
            *word = getrandom::u32()?;
        }
        let table_hash_key = (getrandom::u64()?, getrandom::u64()?);
        let seed = getrandom::u64()?;
        let policy_key = (getrandom::u64()?, getrandom::u64()?);
        let distinct_key = (getrandom::u64()?, getrandom::u64()?);
        Ok(Self {
            connection_id_key,
            steering_words,
            table_hash_key,
            seed,
            policy_key,
            distinct_key,
            shards,
        })
    }

    /// Returns the key of connection ids, for use if none is configured.
    pub fn connection_id_key(&self) -> ConnectionIdKey {
        ConnectionIdKey(self.connection_id_key)
    }

    /// Replaces the key of connection ids by that of an earlier process.
    pub fn set_connection_id_key(&mut self, key: [u8; 16]) {
        self.connection_id_key = key;
    }

    /// Returns the keys of the function that assigns info hashes to shards.
    pub fn steering_keys(&self) -> SteeringKeys {
        SteeringKeys::new(self.steering_words)
    }

    /// Returns the key of the hash by which distinct peers are counted.
    pub fn distinct_key(&self) -> (u64, u64) {
        self.distinct_key
    }

    /// Returns the key of the hash tables.
    pub fn table_hash_key(&self) -> (u64, u64) {
        self.table_hash_key
    }

    /// Returns the key from which the seeds of the policy are derived.
    pub fn policy_key(&self) -> (u64, u64) {
        self.policy_key
    }

    /// Returns the seed of the random generator with which a shard selects peers.
    pub fn seed(&self, shard: u16) -> u64 {
        self.seed.wrapping_add(u64::from(shard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_serialization() {
        let identity = Identity::random(3).unwrap();
        let written = serde_json::to_string(&identity).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&written).unwrap(), identity);
        assert_ne!(Identity::random(3).unwrap(), identity);
    }
}
