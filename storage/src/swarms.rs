//! The swarm table of one shard.

use crate::announce::{AnnounceOutcome, SwarmAnnounce};
use crate::change_queue::ChangeQueue;
use crate::eviction::Eviction;
use crate::export::{Export, ExportProgress};
use crate::import::ImportCursor;
use crate::peer_output::PeerOutput;
use crate::removal::{Removal, TableCursor, WORK_PER_CALL};
use crate::settings::TableSettings;
use crate::sources::SourceCounts;
use crate::state_record::StateRecord;
use crate::stats::TableStats;
use crate::stopped_peers::StoppedPeers;
use crate::subnet::SubnetPreference;
use crate::sweep::SweepCursor;
use crate::table::{Prefetch, Table};
use crate::time::Seconds;
use crate::transfer::Transfer;
use crate::types::{InfoHash, SwarmCounts, SwarmStats};

/// The peers of all torrents of a shard.
///
/// No call moves more than 64 KiB of records or visits more than 4,096 index slots, whatever the size of the table;
/// with a subnet preference, as many slots again for each prefix length. The only exception is the first call after
/// the process was stopped for so long that the age of every peer must be checked.
#[derive(Debug)]
pub struct Swarms {
    pub(crate) table: Table,
    sweep: SweepCursor,
    eviction: Eviction,
    /// `None` if neither an export nor an import nor a publication is in progress.
    transfer: Option<Box<Transfer>>,
}

/// Returns the bytes that every table takes for its counts by source, which its own accounting does not include.
pub const fn source_counts_bytes() -> usize {
    SourceCounts::bytes()
}

impl Swarms {
    /// Creates an empty table.
    pub fn new(settings: TableSettings) -> Self {
        let (sweep, eviction) = (SweepCursor::default(), Eviction::default());
        Self { table: Table::new(settings), sweep, eviction, transfer: None }
    }

    /// Sets the subnets whose peers are returned first.
    ///
    /// In a swarm that is large already, at first only 65 peers are found as subnet peers, and others after they have
    /// announced again.
    pub fn set_subnet_preference(&mut self, subnets: SubnetPreference) {
        self.table.subnets = subnets;
    }

    /// Replaces the settings; keys and seed stay as they were.
    ///
    /// A lifetime is at most [`crate::longest_lifetime_secs`] of that with which the table was created. A new cap per
    /// address is not enforced in swarms that are large already (more than 64 peers of a family). After a cap was
    /// removed, large swarms that were created under it store at most 256 peers of an address.
    pub fn reconfigure(&mut self, settings: TableSettings) {
        self.table.reconfigure(settings);
    }

    /// Returns the statistics of the table.
    pub fn stats(&self) -> TableStats {
        let (evicted, top_sources) = (self.eviction.counts(), self.eviction.top_sources());
        TableStats { evicted, top_sources, ..self.table.stats() }
    }

    /// Reads the index slot of a torrent, as the first of two prefetch passes over a batch.
    ///
    /// A table of millions of torrents does not fit the processor's caches. Reading the slots of a whole batch, then
    /// the entries of the whole batch, lets these cache misses overlap.
    pub fn prefetch_index(&self, info_hash: &InfoHash) -> Prefetch {
        self.table.prefetch_index(info_hash)
    }

    /// Reads the entry of a torrent, as the second prefetch pass. The returned value has no meaning; it keeps the
    /// compiler from removing the read.
    pub fn prefetch_entry(&self, prefetch: &Prefetch) -> u8 {
        self.table.prefetch_entry(prefetch)
    }

    /// Returns whether the table has a torrent.
    pub fn contains(&self, prefetch: &Prefetch, info_hash: &InfoHash) -> bool {
        self.table.find(prefetch, info_hash).is_some()
    }

    /// Applies an announce to its swarm and writes peers for the reply to `peers`.
    pub fn announce(
        &mut self,
        now: Seconds,
        prefetch: Prefetch,
        announce: &SwarmAnnounce,
        peers: PeerOutput<'_>,
    ) -> AnnounceOutcome {
        self.advance(now);
        match &mut self.transfer {
            None => self.table.announce(prefetch, announce, peers),
            Some(transfer) => transfer.announce(&mut self.table, prefetch, announce, peers),
        }
    }

    /// Returns the counts of a swarm, which are zero if the torrent is unknown.
    pub fn scrape(&self, prefetch: &Prefetch, info_hash: &InfoHash) -> SwarmCounts {
        match self.table.find(prefetch, info_hash) {
            Some(position) => self.table.counts_at(position),
            None => SwarmCounts::default(),
        }
    }

    /// Returns the counts of a swarm and its partial seeds, as HTTP reports them.
    pub fn swarm_stats(&self, prefetch: &Prefetch, info_hash: &InfoHash) -> SwarmStats {
        match self.table.find(prefetch, info_hash) {
            Some(position) => self.table.stats_at(position),
            None => SwarmStats::default(),
        }
    }

    /// Removes peers that have expired, and evicts while memory is short, in a bounded step. Returns whether more work
    /// is due.
    ///
    /// It must be called at least once a second, and after each batch.
    pub fn sweep(&mut self, now: Seconds) -> bool {
        self.advance(now);
        let is_behind = self.sweep.run(&mut self.table, now);
        let is_evicting = self.eviction.run(&mut self.table);
        is_evicting || is_behind
    }

    /// Removes torrents for which `serves` returns false, in a bounded step. Returns whether torrents are left to be
    /// checked.
    pub fn purge(&mut self, cursor: &mut TableCursor, serves: impl Fn(&InfoHash) -> bool) -> bool {
        self.table.walk(cursor, &mut WORK_PER_CALL.clone(), |table, position| {
            let is_served = serves(&table.store.entry(position).info_hash());
            (!is_served).then_some(Removal::All)
        })
    }

    /// Has the following calls of [`Self::sweep`] remove all torrents without peers; returns their number.
    pub fn evict_empty_torrents(&mut self) -> usize {
        self.eviction.request_empty_torrents();
        self.table.empty_torrents()
    }

    #[inline] // A part of every announce, which mostly finds nothing to do.
    fn advance(&mut self, now: Seconds) {
        if now > self.table.now {
            self.advance_to(now);
        }
    }

    #[cold]
    fn advance_to(&mut self, now: Seconds) {
        if self.sweep.is_overdue(&self.table, now) {
            self.sweep.catch_up(&mut self.table, now);
        }
        self.table.set_time(now);
    }
}

/// Export and import.
impl Swarms {
    /// Starts an export of all torrents; one that is in progress ends.
    ///
    /// If `changes_max` is not zero, the changes that announces make from now on are exported, too. Up to that number
    /// are kept between two steps, and further ones are lost.
    pub fn begin_export(&mut self, changes_max: usize) {
        self.end_export();
        let export = Export::begin(&self.table, changes_max);
        self.transfer.get_or_insert_default().export = Some(export);
    }

    /// Appends records to `records`, in a bounded step. Changes and torrents are in the order in which they were read
    /// from the table, so of two records of a peer the later one is newer.
    pub fn export(&mut self, records: &mut Vec<StateRecord>) -> ExportProgress {
        match self.transfer.as_mut().and_then(|transfer| transfer.export.as_mut()) {
            Some(export) => export.step(&mut self.table, records),
            None => ExportProgress::Complete,
        }
    }

    /// Returns whether an export is in progress.
    pub fn is_exporting(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| transfer.export.is_some())
    }

    /// Returns the number of changes that were lost since the export began.
    pub fn lost_changes(&self) -> u64 {
        let export = self.transfer.as_ref().and_then(|transfer| transfer.export.as_ref());
        export.map_or(0, Export::lost_changes)
    }

    /// Ends an export.
    pub fn end_export(&mut self) {
        let Some(transfer) = &mut self.transfer else { return };
        if let Some(export) = transfer.export.take() {
            export.end(&mut self.table);
        }
        self.transfer.take_if(|transfer| transfer.is_idle());
    }

    /// Starts an import. A peer that stops from now on is not added again by an older record.
    pub fn begin_import(&mut self) {
        self.stopped_peers().is_importing = true;
    }

    /// Returns the peers that have stopped; they are remembered from now on.
    fn stopped_peers(&mut self) -> &mut StoppedPeers {
        let (hasher, now) = (self.table.context.hasher, self.table.now.signed());
        let transfer = self.transfer.get_or_insert_default();
        transfer.stopped.get_or_insert_with(|| StoppedPeers::new(hasher, now))
    }

    /// Imports records in a bounded step, without torrents for which `serves` returns false. Returns whether records
    /// are left. An import or a publication must have been started.
    pub fn import(
        &mut self,
        now: Seconds,
        cursor: &mut ImportCursor,
        records: &[StateRecord],
        serves: impl Fn(&InfoHash) -> bool,
    ) -> bool {
        self.advance(now);
        match self.transfer.as_mut().and_then(|transfer| transfer.stopped.as_mut()) {
            Some(stopped) => cursor.step((&mut self.table, stopped), records, serves),
            None => false,
        }
    }

    /// Ends an import.
    pub fn end_import(&mut self) {
        let Some(transfer) = &mut self.transfer else { return };
        let has_publication = transfer.publication.is_some();
        if let Some(stopped) = &mut transfer.stopped {
            stopped.is_importing = false;
        }
        transfer.stopped.take_if(|_| !has_publication);
        self.transfer.take_if(|transfer| transfer.is_idle());
    }
}

/// Publication: the changes that are published to the other nodes of a cluster.
impl Swarms {
    /// Starts a publication, which does not end: announces by which peers join, stop, complete their download or
    /// change their role, and the first announce of each peer in a third of its lifetime, are kept until they are
    /// taken. Up to `changes_max` are kept, and further ones are lost.
    ///
    /// From now on, too, the changes of other nodes can be imported in any order. To be called before swarms are
    /// imported, because the records of peers say when they were published.
    pub fn begin_publication(&mut self, changes_max: usize) {
        debug_assert_eq!(self.table.stats().torrents, 0, "the table must be empty");
        self.table.begin_publication();
        self.stopped_peers();
        let transfer = self.transfer.get_or_insert_default();
        transfer.publication = Some(ChangeQueue::new(changes_max));
    }

    /// Removes changes from the publication, up to a number. Their times are not rounded.
    pub fn take_published(&mut self, count: usize) -> impl Iterator<Item = StateRecord> {
        let publication = self.transfer.as_mut().and_then(|transfer| transfer.publication.as_mut());
        publication.map(|changes| changes.take(count)).into_iter().flatten()
    }

    /// Returns the number of changes that were lost since the publication began.
    pub fn lost_published(&self) -> u64 {
        let publication = self.transfer.as_ref().and_then(|it| it.publication.as_ref());
        publication.map_or(0, ChangeQueue::lost)
    }
}
