//! The process: starts the shards and the control plane, supervises, reloads and stops them.

pub mod check;
pub mod cpus;
pub mod error;
pub mod identity;
mod interfaces;
pub mod listen;
pub mod log;
pub mod memory;
pub mod monitor;
pub mod privileges;
pub mod recent_events;
pub mod reload;
pub mod report;
pub mod run;
mod service;
pub mod settings;
pub mod steering;
pub mod supervisor;
pub mod xdp;
