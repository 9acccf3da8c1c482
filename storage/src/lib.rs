//! The domain types of a tracker, and the swarm table: which peers each torrent has.
//!
//! The types ([`InfoHash`], [`Endpoint`], [`AnnounceEvent`], [`SwarmCounts`], ...) are used by all other crates.
//! [`Swarms`] stores the peers of every torrent of a shard and answers announces and scrapes.
//!
//! This crate uses no disk, no socket and no clock. Time is an argument, and random numbers come from a seed. Peers are
//! written to a slice of the caller, in the compact form of BEP 15, BEP 7 and BEP 23.

#![deny(unsafe_code)]

mod announce;
mod blocks;
mod change_queue;
mod chunks;
mod entry;
mod eviction;
mod export;
mod family_peers;
mod import;
mod index;
mod inspect;
mod join;
mod large_swarm;
mod moved_records;
mod page_scan;
mod peer_output;
mod placement;
mod record;
mod removal;
mod select;
mod settings;
mod sources;
mod state_record;
mod stats;
mod stopped_peers;
mod subnet;
mod subnet_index;
mod summary;
mod swarms;
mod sweep;
mod table;
mod time;
mod transfer;
mod types;
mod work_counter;

pub use announce::{AnnounceOutcome, JoinRefusal, SwarmAnnounce, SwarmChange};
pub use export::ExportProgress;
pub use import::{ImportCounts, ImportCursor};
pub use inspect::{PeerDetails, TorrentDetails, TorrentRemoval};
pub use page_scan::{PageScan, TorrentPage};
pub use peer_output::PeerOutput;
pub use removal::TableCursor;
pub use settings::{Caps, TableSettings};
pub use sources::{SourceCount, SourceNetwork, TOP_SOURCES};
pub use state_record::{ChangeKind, PeerRecord, StateRecord, TorrentRecord};
pub use stats::{EvictionCounts, TableStats};
pub use subnet::{PREFIX_LENGTHS_MAX, PrefixLengths, SubnetPreference};
pub use summary::{DistinctCounter, SWARM_SIZE_CLASSES, SummaryScan, SwarmSummary, swarm_size_max};
pub use swarms::{Swarms, source_counts_bytes};
pub use table::Prefetch;
pub use time::{Seconds, longest_lifetime_secs};
pub use types::{
    AnnounceEvent, Endpoint, Family, InfoHash, PeerId, Role, Scope, SwarmCounts, SwarmStats,
};
