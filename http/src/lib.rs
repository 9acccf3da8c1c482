//! HTTP tracker requests and bencoded replies as bytes (BEP 3, 7, 21, 23, 24, 31, 48).
//!
//! The crate parses bytes into requests and writes replies as bytes. It opens no socket, reads no clock, and of the
//! other crates uses only `tsubame-storage`.
//!
//! ```text
//! bytes -> head::parse -> RequestHead -> AnnounceQuery::parse or query::info_hashes
//! AnnounceResponse, write_failure or write_row -> body, after a ResponseHead -> bytes
//! first bytes of a connection from a proxy -> proxy::parse -> address of the client
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

pub mod bencode;
pub mod head;
pub mod proxy;
pub mod query;
pub mod reply;
