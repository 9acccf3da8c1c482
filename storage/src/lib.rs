//! The tracker's words and its swarm table, in memory.
//!
//! [`words`](InfoHash) name what every other crate speaks of: info hashes, endpoints, events, counts.
//! [`Swarms`] keeps who is in which swarm and answers announces and scrapes from it.
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
mod index;
mod many;
mod neighbours;
mod part;
mod pass;
mod room;
mod select;
mod space;
mod subnets;
mod swarms;
mod sweep;
mod time;
mod words;

pub use announced::{Announced, Change, Refusal};
pub use pass::{Page, Pass};
pub use space::PeerSpace;
pub use subnets::{LENGTHS_MAX, Lengths, Subnets};
pub use swarms::{Ahead, Announce, Caps, Settings, Swarms, Totals};
pub use sweep::Purge;
pub use time::Seconds;
pub use words::{Census, Counts, Endpoint, Event, Family, InfoHash, PeerId, Role, Scope};
