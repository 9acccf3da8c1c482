//! Tsubame, a BitTorrent tracker.
//!
//! ```text
//!  ring (a batch of datagrams, each with a reply slot)
//!    -> Tracker::admit: parse, connection id, policy          any shard
//!    -> owner of the info hash, over the mesh if it is another
//!    -> Tracker::answer: swarm, reply written into the slot   the owner
//!    -> ring submits the batch
//! ```
//!
//! This crate decides and drives: it holds config, shards, policy, mesh and control plane. It has no unsafe
//! code; what is shared with the kernel is `tsubame_udp::ring`, and what is kept is `tsubame_storage`.

#![forbid(unsafe_code)]

pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod cpus;
pub mod datapath;
pub mod e2e;
pub mod hex;
pub mod http;
pub mod identity;
pub mod limits;
pub mod lines;
pub mod listen;
pub mod log;
pub mod memory;
pub mod mesh;
pub mod metrics;
pub mod outcome;
pub mod peer_list;
pub mod policy;
pub mod reload;
pub mod report;
pub mod run;
pub mod settings;
pub mod shard;
pub mod slow_reads;
pub mod stats;
pub mod steering;
pub mod supervisor;
pub mod tracker;
pub mod watch;
