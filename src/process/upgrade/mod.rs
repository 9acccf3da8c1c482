//! Upgrade in place: another process of the tracker takes over its sockets and swarms, while clients are served.
//!
//! ```text
//!  old process                                     new process
//!  starts the program that is at its path  ------>
//!  Hello: keys, clock, sockets, XDP links  ------>  reads its config, checks that it fits the sockets
//!                                          <------  Ready
//!  Records: torrents, and changes since    ------>  imports them
//!  CaughtUp                                ------>  starts its shards, which receive from the same sockets
//!                                          <------  Serving
//!  redirects and receives no more, answers
//!  what it has
//!  Records: the last changes; Done         ------>  imports them
//!  ends                                    <------  Complete
//!                                                   replaces the XDP program, opens AF_XDP sockets
//! ```
//!
//! Until its shards start, the new process can fail in any way: the old one ends it and serves on.

mod channel;
pub mod error;
mod greeting;
pub(crate) mod hand_over;
pub(crate) mod program;
pub(crate) mod sockets;
pub(crate) mod take_over;
