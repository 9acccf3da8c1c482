//! What an operator sees of a running tracker, and how it is changed: metrics, health, statistics, and the API, over
//! HTTP.

mod access;
mod api;
pub mod clients;
pub mod history;
pub mod listeners;
pub mod metrics;
pub mod monitored;
pub mod opentracker_stats;
mod page;
pub mod server;
mod state;
pub mod status;
pub mod stream;
pub mod token;
pub mod torrents;
