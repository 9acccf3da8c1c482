//! The control plane over HTTP: health, metrics, and changes by the operator.

pub mod metrics;
pub mod monitored;
pub mod server;
