//! Binds the listening sockets of all shards.

pub mod http;
pub mod udp;
