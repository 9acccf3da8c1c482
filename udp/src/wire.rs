//! UDP tracker datagrams: requests are views of received bytes, replies are written into a slice.
//!
//! [`UdpRequest::parse`] and all accessors of its result are defined for any bytes of any length and never panic.
//! Writers never panic either: they omit what does not fit, and return the number of bytes written. All numbers are
//! big-endian (BEP 15).
//!
//! This module does not know the source of a datagram, whether it is genuine, or what is answered.

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
pub use request::{
    AnnounceRequest, ConnectRequest, RequestError, ScrapeRequest, TransactionId, UdpRequest,
};
