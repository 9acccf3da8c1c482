//! The control plane: health, metrics and changes by the operator, over HTTP.

pub mod metrics;
pub mod monitored;
pub mod server;
