//! Export and import of the swarms of a shard, in small steps between turns.
//!
//! Another thread asks for pages of records, or sends pages. It encodes and stores them; a shard never waits for it.

use crate::tracker::Tracker;
use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use tsubame_storage::{ExportProgress, ImportCounts, ImportCursor, Seconds, StateRecord};

/// Number of records with which a page is complete. The last step may add some thousand more.
pub const PAGE_RECORDS: usize = 4_096;

/// Maximum number of requests that wait; the reply channels of further ones are dropped.
const REQUESTS_MAX: usize = 64;

/// A request to export or import.
#[derive(Debug)]
pub enum TransferRequest {
    /// Starts an export. One that is in progress ends.
    BeginExport {
        /// Maximum number of changes by announces that are kept between two pages; 0 to export none.
        changes_max: usize,
        /// Receives the changes that are left when the shard has stopped.
        last_changes: Option<Sender<ExportedPage>>,
    },
    /// Exports the next page.
    ExportPage {
        /// An empty list for the records.
        records: Vec<StateRecord>,
        /// Receives the page.
        reply: Sender<ExportedPage>,
    },
    /// Ends an export.
    EndExport,
    /// Imports records. An import begins when the shard is created.
    ImportPage {
        /// Number that the reply has, too.
        number: u64,
        /// The records.
        records: Vec<StateRecord>,
        /// Receives the list, which is empty then.
        reply: Sender<ImportedPage>,
    },
    /// Ends an import.
    EndImport,
}

/// A page of records of a shard.
#[derive(Debug)]
pub struct ExportedPage {
    /// Number of the shard.
    pub shard: usize,
    /// The records.
    pub records: Vec<StateRecord>,
    /// What is left.
    pub progress: ExportProgress,
    /// Number of changes that were lost since the export began.
    pub lost_changes: u64,
}

/// An imported page.
#[derive(Debug)]
pub struct ImportedPage {
    /// Number of the shard.
    pub shard: usize,
    /// Number of the request.
    pub number: u64,
    /// The list of the records, which is empty.
    pub records: Vec<StateRecord>,
    /// What was done with them.
    pub counts: ImportCounts,
}

/// The export and the import of a shard; the first request is being worked on.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    shard: usize,
    requests: VecDeque<TransferRequest>,
    /// Position in the page of the first request, if it is an import.
    cursor: ImportCursor,
    last_changes: Option<Sender<ExportedPage>>,
}

impl Transfers {
    pub(super) fn new(shard: u16) -> Self {
        Self { shard: shard.into(), ..Self::default() }
    }

    /// Adds a request. The requester notices that its channel is dropped if there are too many.
    pub(super) fn add(&mut self, request: TransferRequest) {
        if self.requests.len() < REQUESTS_MAX {
            self.requests.push_back(request);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Does a bounded step of the first request.
    pub(super) fn run(&mut self, tracker: &mut Tracker, now: Seconds) {
        let Some(request) = self.requests.pop_front() else { return };
        match request {
            TransferRequest::BeginExport { changes_max, last_changes } => {
                tracker.swarms_mut().begin_export(changes_max);
                self.last_changes = last_changes;
            }
            TransferRequest::ExportPage { mut records, reply } => {
                let swarms = tracker.swarms_mut();
                if !swarms.is_exporting() {
                    // The request that begins it was lost. Without a reply, the requester does not take this for an
                    // empty shard.
                    return;
                }
                let progress = swarms.export(&mut records);
                if progress != ExportProgress::Complete && records.len() < PAGE_RECORDS {
                    self.requests.push_front(TransferRequest::ExportPage { records, reply });
                    return;
                }
                let lost_changes = swarms.lost_changes();
                let page = ExportedPage { shard: self.shard, records, progress, lost_changes };
                // The requester may have gone.
                let _ = reply.send(page);
            }
            TransferRequest::EndExport => {
                tracker.swarms_mut().end_export();
                self.last_changes = None;
            }
            TransferRequest::ImportPage { number, mut records, reply } => {
                if tracker.import(now, &mut self.cursor, &records) {
                    let rest = TransferRequest::ImportPage { number, records, reply };
                    self.requests.push_front(rest);
                    return;
                }
                records.clear();
                let counts = std::mem::take(&mut self.cursor).counts();
                let _ = reply.send(ImportedPage { shard: self.shard, number, records, counts });
            }
            TransferRequest::EndImport => tracker.swarms_mut().end_import(),
        }
    }

    /// Sends the changes that were not exported yet to whoever asked for them, when the shard has answered its last
    /// request.
    pub(super) fn finish(&mut self, tracker: &mut Tracker) {
        let Some(last_changes) = self.last_changes.take() else { return };
        let swarms = tracker.swarms_mut();
        let (mut records, mut progress) = (Vec::new(), ExportProgress::Changes);
        // Torrents are left only if nobody has waited for them.
        while progress == ExportProgress::Changes {
            progress = swarms.export(&mut records);
        }
        let lost_changes = swarms.lost_changes();
        let _ =
            last_changes.send(ExportedPage { shard: self.shard, records, progress, lost_changes });
    }
}
