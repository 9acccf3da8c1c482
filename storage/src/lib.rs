//! The domain types of a tracker and its swarm table, in memory.
//!
//! The types ([`InfoHash`], [`Endpoint`], [`Event`], [`Counts`], ...) are those of every other crate. [`Swarms`] stores
//! the peers of every torrent and answers announces and scrapes.
//!
//! Nothing here touches a disk, a socket or a clock: time is an argument, randomness a seed, keys are
//! handed in. Nothing here returns a `Vec`: peers are written into the caller's slice, in the compact
//! form that BEP 15, BEP 7 and BEP 23 share.

#![deny(unsafe_code)]

mod announced;
mod blocks;
mod chunks;
mod effort;
mod entry;
mod eviction;
mod index;
mod many;
mod neighbours;
mod part;
mod pass;
mod room;
mod select;
mod settings;
mod sources;
mod space;
mod subnets;
mod swarms;
mod sweep;
mod time;
mod types;

pub use announced::{Announced, Change, Refusal};
pub use eviction::EvictionCounts;
pub use pass::{Page, Pass};
pub use settings::{Caps, Settings, Totals};
pub use sources::{Source, SourceCount, TOP_SOURCES};
pub use space::PeerSpace;
pub use subnets::{LENGTHS_MAX, Lengths, Subnets};
pub use swarms::{Ahead, Announce, Swarms, source_counts_bytes};
pub use sweep::TableCursor;
pub use time::{Seconds, longest_lifetime_secs};
pub use types::{Census, Counts, Endpoint, Event, Family, InfoHash, PeerId, Role, Scope};
