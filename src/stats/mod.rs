//! Statistics: how requests ended, what each shard counts, and how other threads read it.

pub mod outcome;
pub mod shard_stats;
pub mod shared_stats;
