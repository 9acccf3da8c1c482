//! UDP trackers in bytes, and a ring to move them. Neither knows the other.
//!
//! * [`wire`]: the datagrams of BEP 15 and the options of BEP 41
//! * [`connection_id`]: proof that a source address is not forged
//! * [`ring`]: receives and sends datagrams over io_uring
//! * [`steering`]: has the kernel hand announces to the shard that owns the info hash
//!
//! Nothing here decides what to answer, and nothing reads a clock. `unsafe` is confined to `ring` and
//! `steering`; the feature `ring` leaves both out, so that the rest can run under Miri.

#![deny(unsafe_code)]

pub mod connection_id;
#[cfg(feature = "ring")]
pub mod ring;
pub mod steering;
pub mod wire;
