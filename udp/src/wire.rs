//! UDP tracker datagrams: requests as views over received bytes, replies written into a slice.
//!
//! The contract: [`Request::parse`] and every accessor of what it returns are defined for any bytes of
//! any length and never panic. Writers never panic either: what does not fit is not written, and they
//! return the length of what was. All numbers are big-endian (BEP 15).
//!
//! This module does not know where datagrams come from, whether a source is genuine, or what is answered.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod layout;
mod options;
mod reply;
mod request;

pub use layout::{
    ACTION_ANNOUNCE, ACTION_ANNOUNCE_V6, ACTION_CONNECT, ACTION_ERROR, ACTION_SCRAPE, ANNOUNCE_LEN,
    ANNOUNCE_REPLY_LEN, ANNOUNCE_V6_LEN, CONNECT_LEN, CONNECT_REPLY_LEN, ERROR_REPLY_LEN,
    INFO_HASH_OFFSET, PROTOCOL_MAGIC, REQUEST_LEN_MAX, SCRAPE_HASHES_MAX, SCRAPE_LEN_MIN,
    SCRAPE_REPLY_LEN, SCRAPE_ROW_LEN, announce, connect, header, scrape,
};
pub use options::{UrlData, url_data};
pub use reply::{AnnounceReply, write_connect, write_error, write_scrape_header, write_scrape_row};
pub use request::{Announce, Connect, Malformed, Request, Scrape, TransactionId};
