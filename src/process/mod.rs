//! The process: starts the shards and the control plane, supervises, reloads and stops them.

pub mod check;
pub mod cpus;
mod deadline;
pub mod error;
mod event_loop;
pub mod identity;
mod interfaces;
pub mod listen;
pub mod log;
pub mod memory;
mod monitor;
mod origin;
pub mod privileges;
pub mod recent_events;
pub mod reload;
pub mod report;
pub mod run;
mod running;
mod service;
pub mod settings;
mod shard_export;
mod signals;
mod snapshot;
pub mod steering;
pub mod supervisor;
pub mod upgrade;
pub mod xdp;
