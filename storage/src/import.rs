//! Import: records of another table, or of an earlier process, in bounded steps, while announces change this one.
//!
//! The younger information about a peer is kept; of equally old ones, that which arrived last. A peer that has stopped
//! since the import began is not added by an older record.

use crate::announce::{SwarmAnnounce, SwarmChange};
use crate::placement::{PeerStores, RecordWidth};
use crate::record::{V4, V6, flags, record_of, scope_flags};
use crate::state_record::{ChangeKind, PeerRecord, StateRecord, TorrentRecord};
use crate::stopped_peers::StoppedPeers;
use crate::table::Table;
use crate::types::{AnnounceEvent, Family, InfoHash, Role};

/// Number of records that a step may visit.
const RECORDS_PER_STEP: usize = 256;

/// Position in a list of records that is imported, and what was done with those before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportCursor {
    next: usize,
    /// The torrent that the next peers belong to; `None` if they are not imported.
    torrent: Option<TorrentKey>,
    counts: ImportCounts,
}

/// A torrent with its hash in the index.
#[derive(Clone, Copy, Debug)]
struct TorrentKey {
    info_hash: InfoHash,
    hash: u64,
}

/// What was done with imported records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportCounts {
    /// Torrents that were added.
    pub torrents: u64,
    /// Peers that were added, updated or removed, and those that have stopped without being stored.
    pub peers: u64,
    /// Peers that have expired, have stopped since, or about which the table had younger information.
    pub outdated: u64,
    /// Torrents and peers that were not added because memory is short, or because of the limits on a swarm.
    pub refused: u64,
    /// Torrents and changes of torrents that policy forbids.
    pub forbidden: u64,
}

impl ImportCounts {
    /// Adds other counts.
    pub fn add(&mut self, other: &Self) {
        self.torrents += other.torrents;
        self.peers += other.peers;
        self.outdated += other.outdated;
        self.refused += other.refused;
        self.forbidden += other.forbidden;
    }
}

impl ImportCursor {
    /// Returns what was done with the records so far.
    pub fn counts(&self) -> ImportCounts {
        self.counts
    }

    /// Imports records in a bounded step, without torrents for which `serves` returns false. Returns whether records
    /// are left.
    pub(crate) fn step(
        &mut self,
        (table, stopped): (&mut Table, &mut StoppedPeers),
        records: &[StateRecord],
        serves: impl Fn(&InfoHash) -> bool,
    ) -> bool {
        let end = records.len().min(self.next + RECORDS_PER_STEP);
        let part = &records[self.next.min(end)..end];
        let hashes = prefetch(table, part);
        stopped.free_discarded();
        let mut step = ImportStep {
            has_memory: table.has_memory_for_import(),
            table,
            stopped,
            found: None,
            counts: &mut self.counts,
        };
        for (record, hash) in part.iter().zip(hashes) {
            match record {
                StateRecord::Torrent(torrent) => {
                    let is_served = serves(&torrent.info_hash);
                    step.counts.forbidden += u64::from(!is_served);
                    let key = TorrentKey { info_hash: torrent.info_hash, hash };
                    self.torrent = is_served.then_some(key);
                    if is_served {
                        step.import_torrent(key, torrent);
                    }
                }
                StateRecord::Peer(peer) => {
                    if let Some(key) = self.torrent {
                        step.import_change((key, ChangeKind::Refreshed), peer);
                    }
                }
                StateRecord::Change(info_hash, kind, peer) => {
                    self.torrent = None;
                    if serves(info_hash) {
                        let key = TorrentKey { info_hash: *info_hash, hash };
                        let has_memory = std::mem::replace(&mut step.has_memory, true);
                        step.import_change((key, *kind), peer);
                        step.has_memory = has_memory;
                    } else {
                        step.counts.forbidden += 1;
                    }
                }
            }
        }
        self.next = end;
        end < records.len()
    }
}

/// Returns the hash of the torrent of each record that has one, and reads the slots of the index that a search for it
/// starts at, so that the following searches find them in the cache of the processor.
fn prefetch(table: &Table, records: &[StateRecord]) -> [u64; RECORDS_PER_STEP] {
    let mut hashes = [0; RECORDS_PER_STEP];
    for (record, hash) in records.iter().zip(&mut hashes) {
        *hash = match record {
            StateRecord::Torrent(TorrentRecord { info_hash, .. })
            | StateRecord::Change(info_hash, ..) => table.hash(info_hash),
            StateRecord::Peer(_) => continue,
        };
        std::hint::black_box(table.read_index_slot(*hash));
    }
    hashes
}

/// A step of an import. It removes no torrents, so that their positions stay the same.
struct ImportStep<'a> {
    table: &'a mut Table,
    stopped: &'a mut StoppedPeers,
    /// Whether enough memory was free at the start of the step for the torrents and peers of an export to be added. A
    /// change of another node needs no more memory than an announce.
    has_memory: bool,
    /// The torrent that was found last, and its position.
    found: Option<(InfoHash, u32)>,
    counts: &'a mut ImportCounts,
}

impl ImportStep<'_> {
    /// Imports the completed downloads of a torrent. A torrent without them is added with its first peer.
    fn import_torrent(&mut self, key: TorrentKey, torrent: &TorrentRecord) {
        let TorrentRecord { completed, used_at, .. } = *torrent;
        let now = self.table.now.signed();
        let Some(tick) = self.table.idle_tick_at(used_at.min(now)) else { return };
        if completed == 0 {
            return;
        }
        let added_before = self.counts.torrents;
        let Some(position) = self.find_or_add(key) else { return };
        let is_known = self.counts.torrents == added_before;
        let is_younger = used_at > self.table.emptied_at(position);
        let entry = self.table.store.entry_mut(position);
        if !is_known || is_younger {
            // Not read while the torrent has peers.
            entry.set_tick(tick);
        }
        entry.set_completed(entry.completed().max(completed));
    }

    /// Returns the position of a torrent, which mostly is the one that was found last.
    fn find(&mut self, key: TorrentKey) -> Option<u32> {
        if self.found.is_none_or(|(found, _)| found != key.info_hash) {
            let position = self.table.find_hashed(key.hash, &key.info_hash)?;
            self.found = Some((key.info_hash, position));
        }
        self.found.map(|(_, position)| position)
    }

    fn find_or_add(&mut self, key: TorrentKey) -> Option<u32> {
        let found = self.find(key);
        if found.is_some() {
            return found;
        }
        let added = self.has_memory.then(|| self.table.push_torrent(key.hash, &key.info_hash).ok());
        let added = added.flatten();
        match added {
            Some(position) => {
                self.found = Some((key.info_hash, position));
                self.counts.torrents += 1;
            }
            None => self.counts.refused += 1,
        }
        added
    }

    /// Imports a peer, or a change of one.
    fn import_change(&mut self, (key, kind): (TorrentKey, ChangeKind), peer: &PeerRecord) {
        let info_hash = key.info_hash;
        let now = self.table.now.signed();
        let peer = PeerRecord { announced_at: peer.announced_at.min(now), ..*peer };
        let is_outdated = self.table.context.ticks.is_expired_at(now, peer.announced_at)
            || self.stopped.has_stopped_since(&info_hash, peer.endpoint, peer.announced_at);
        if is_outdated || !peer.endpoint.is_listening() {
            self.counts.outdated += 1;
            return;
        }
        if kind == ChangeKind::Stopped && peer.is_remote {
            // The records of other nodes arrive in any order. A peer may stop and join again within a second.
            self.stopped.add(&info_hash, peer.endpoint, peer.announced_at - 1, now);
        }
        let position = match kind {
            ChangeKind::Stopped => self.find(key),
            ChangeKind::Joined | ChangeKind::Refreshed | ChangeKind::Completed => {
                self.find_or_add(key)
            }
        };
        let Some(position) = position else { return };
        let imported = match peer.endpoint.family() {
            Family::V4 => self.import_peer::<V4>(position, &info_hash, kind, &peer),
            Family::V6 => self.import_peer::<V6>(position, &info_hash, kind, &peer),
        };
        match imported {
            ImportedPeer::Applied => self.counts.peers += 1,
            ImportedPeer::Outdated => self.counts.outdated += 1,
            ImportedPeer::Refused => self.counts.refused += 1,
        }
    }

    /// Applies a change of a peer to the torrent at a position.
    fn import_peer<const N: usize>(
        &mut self,
        position: u32,
        info_hash: &InfoHash,
        kind: ChangeKind,
        peer: &PeerRecord,
    ) -> ImportedPeer
    where
        PeerStores: RecordWidth<N>,
    {
        let PeerRecord { endpoint, role, is_counted, is_remote, announced_at } = *peer;
        let partial = if role == Role::PartialSeed { flags::PARTIAL_SEED } else { 0 };
        let counted = if is_counted { flags::COMPLETED } else { 0 };
        let published = match is_remote {
            true => flags::REMOTE | self.table.period_flags(announced_at),
            false => self.table.previous_period_flags(),
        };
        let flags = scope_flags(self.table.scope(endpoint)) | partial | counted | published;
        let tick = self.table.context.ticks.at_signed(announced_at);
        let Some(record) = record_of::<N>(endpoint.address(), endpoint.port(), flags, tick) else {
            return ImportedPeer::Refused;
        };
        let table = &mut *self.table;
        let (now_tick, context) = (table.context.tick, &table.context);
        let (is_known, was_counted, is_older) = table.store.change(position, |peers| {
            let Some(own) = peers.find(&record, context).position else {
                return (false, false, false);
            };
            let mut stored = *peers.at(own);
            let was_counted = stored[N - 2] & flags::COMPLETED != 0;
            let is_older = now_tick.wrapping_sub(tick) > now_tick.wrapping_sub(stored[N - 1]);
            if is_older && is_counted && !was_counted {
                stored[N - 2] |= flags::COMPLETED;
                peers.replace(own, stored);
            } else if !is_older && was_counted && kind == ChangeKind::Joined {
                // In the other table the peer has stopped and joined again: its next completed download counts.
                stored[N - 2] &= !flags::COMPLETED;
                peers.replace(own, stored);
            }
            (true, was_counted, is_older)
        });
        if kind == ChangeKind::Completed && !was_counted {
            table.store.entry_mut(position).add_completed();
        }
        let event = match kind {
            ChangeKind::Stopped => AnnounceEvent::Stopped,
            ChangeKind::Joined | ChangeKind::Refreshed | ChangeKind::Completed => {
                AnnounceEvent::None
            }
        };
        if is_older {
            return ImportedPeer::Outdated;
        }
        if !is_known && event != AnnounceEvent::Stopped && !self.has_memory {
            return ImportedPeer::Refused;
        }
        let announce = SwarmAnnounce { info_hash: *info_hash, endpoint, role, event };
        match table.apply_record(position, &announce, record).change {
            SwarmChange::Refused(_) => ImportedPeer::Refused,
            _ => ImportedPeer::Applied,
        }
    }
}

/// What was done with an imported peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImportedPeer {
    Applied,
    Outdated,
    Refused,
}
