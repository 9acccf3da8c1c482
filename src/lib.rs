//! Tsubame, a BitTorrent tracker.
//!
//! ```text
//!  datapath: a batch of datagrams, each with a slot for its reply
//!    -> tracker: parse, check the connection id, apply policy    on the shard that received it
//!    -> mesh, if another shard owns the info hash
//!    -> tracker: update the swarm, write the reply               on the shard that owns the torrent
//!    -> datapath: submit the batch
//! ```
//!
//! This crate has configuration, policy, shards, HTTP and the control plane. It has no unsafe code: memory that is
//! shared with the kernel is in `tsubame_udp::ring` and `tsubame_udp::xdp`, and the swarm table in `tsubame_storage`.

#![forbid(unsafe_code)]

pub mod address;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod control;
pub mod doctor;
pub mod hex;
pub mod http;
pub mod lines;
pub mod policy;
pub mod process;
pub mod shard;
pub mod sizes;
pub mod slow_reads;
pub mod state;
pub mod stats;
pub mod text;
pub mod tracker;
