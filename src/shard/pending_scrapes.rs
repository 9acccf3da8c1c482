//! Scrapes over UDP that wait for rows of other shards.

use super::datapath::ReplyPath;
use super::message::{HTTP_REQUEST, ScrapeRows};
use crate::sizes::SCRAPE_REPLY_LEN_MAX;
use crate::tracker::AdmittedScrape;
use std::collections::VecDeque;
use tsubame_storage::{Family, Seconds, SwarmStats};

/// Maximum number of scrapes that wait. None of them holds a receive buffer.
const PENDING_MAX: usize = 1 << SLOT_BITS;

/// Seconds after which a scrape is dropped: the client will send it again.
const TIMEOUT_SECS: u64 = 2;

/// Bits of a request id that are the number of a slot; the others differ between uses of the slot.
const SLOT_BITS: u32 = 10;

/// A scrape that waits, with the part of its reply that is known.
#[derive(Debug)]
pub(super) struct PendingScrape {
    pub(super) path: ReplyPath,
    pub(super) family: Family,
    pub(super) scrape: AdmittedScrape,
    /// Number of rows that have not arrived.
    pub(super) missing: u8,
    pub(super) reply_len: usize,
    pub(super) reply: [u8; SCRAPE_REPLY_LEN_MAX],
}

/// All scrapes that wait, by request id.
#[derive(Debug)]
pub(super) struct PendingScrapes {
    slots: Vec<Option<(u32, PendingScrape)>>,
    free: Vec<u32>,
    /// Request ids in the order of their deadlines, including some of scrapes that were completed.
    deadlines: VecDeque<(Seconds, u32)>,
    /// Number of request ids that were issued.
    issued: u32,
}

impl PendingScrapes {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..PENDING_MAX).map(|_| None).collect(),
            free: (0..PENDING_MAX as u32).rev().collect(),
            deadlines: VecDeque::with_capacity(2 * PENDING_MAX),
            issued: 0,
        }
    }

    /// Returns the memory that is allocated at start.
    pub(super) const fn bytes() -> usize {
        let slot = size_of::<Option<(u32, PendingScrape)>>();
        PENDING_MAX * (slot + 4 + 2 * size_of::<(Seconds, u32)>())
    }

    /// Returns whether no scrape waits.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == PENDING_MAX
    }

    /// Returns a request id for a scrape that will be added, or `None` if too many wait.
    pub(super) fn next_id(&mut self) -> Option<u32> {
        // Deadlines of completed scrapes stay until they have passed or space is needed.
        if self.deadlines.len() == self.deadlines.capacity() {
            let slots = &self.slots;
            self.deadlines.retain(|(_, id)| is_pending(slots, *id));
        }
        let slot = *self.free.last()?;
        // A late reply to an earlier scrape in this slot must not be taken for one to this scrape.
        self.issued = self.issued.wrapping_add(1);
        Some((self.issued << SLOT_BITS | slot) & !HTTP_REQUEST)
    }

    /// Adds a scrape with the request id that [`Self::next_id`] has just returned.
    pub(super) fn add(&mut self, id: u32, now: Seconds, scrape: PendingScrape) {
        self.free.pop();
        self.slots[slot_of(id)] = Some((id, scrape));
        self.deadlines.push_back((Seconds(now.0 + TIMEOUT_SECS), id));
    }

    /// Writes rows to the reply of a scrape. Returns the scrape if no row is missing any more.
    pub(super) fn add_rows(&mut self, rows: &ScrapeRows<SwarmStats>) -> Option<PendingScrape> {
        let pending = self.get_mut(rows.request_id)?;
        for (number, stats) in rows.iter() {
            pending.scrape.write_row(&mut pending.reply, usize::from(number), stats.counts);
            pending.missing = pending.missing.saturating_sub(1);
        }
        if pending.missing > 0 { None } else { self.remove(rows.request_id) }
    }

    /// Removes a scrape whose deadline has passed.
    pub(super) fn remove_late(&mut self, now: Seconds) -> Option<PendingScrape> {
        while let Some((_, id)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline < now) {
            let late = self.remove(id);
            if late.is_some() {
                return late;
            }
        }
        None
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut PendingScrape> {
        let slot = self.slots.get_mut(slot_of(id))?.as_mut();
        slot.filter(|(pending, _)| *pending == id).map(|(_, scrape)| scrape)
    }

    fn remove(&mut self, id: u32) -> Option<PendingScrape> {
        self.get_mut(id)?;
        self.free.push(slot_of(id) as u32);
        self.slots[slot_of(id)].take().map(|(_, scrape)| scrape)
    }
}

fn is_pending(slots: &[Option<(u32, PendingScrape)>], id: u32) -> bool {
    slots[slot_of(id)].as_ref().is_some_and(|(pending, _)| *pending == id)
}

fn slot_of(id: u32) -> usize {
    id as usize % PENDING_MAX
}
