//! Statistics: outcomes of requests, counters of each shard, and how other threads read them.

pub mod client_samples;
pub mod cluster_status;
pub mod http_stats;
pub mod outcome;
pub mod shard_stats;
pub mod shared_stats;
pub mod snapshot_status;
pub mod xdp_status;
