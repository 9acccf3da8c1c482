//! HTTP tracker requests and bencoded replies as bytes (BEP 3, 7, 21, 23, 24, 31, 48).
//!
//! It turns bytes into a request and an answer into bytes. It opens no socket, reads no clock, and knows
//! `tsubame-storage` alone of the other crates.
//!
//! ```text
//!  bytes -> head::parse -> Head { method, path, query, ... } -> query::Announce or query::info_hashes
//!  an answer -> reply::Announce, reply::write_failure, reply::write_row -> body, reply::ReplyHead before it
//!  bytes before a request, from a proxy -> proxy::parse -> the address it speaks for
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

pub mod bencode;
pub mod head;
pub mod proxy;
pub mod query;
pub mod reply;
