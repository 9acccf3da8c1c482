//! HTTP tracker requests and bencoded replies (BEP 3, 7, 23, 48) as bytes.
//!
//! The room is kept for them: this version of the tracker serves UDP only, so the crate holds no type
//! yet. What comes here turns bytes into a request and a reply into bytes. It opens no socket, reads
//! no clock, and knows `tsubame-storage` alone of the other crates.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]
