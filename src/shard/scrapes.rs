//! Scrapes over UDP that wait for other shards' counts, each with a reply half written.

use super::Shard;
use crate::clock::Now;
use crate::datapath::Datapath;
use crate::mesh::{HTTP_TICKET, Message, Port, Rows};
use crate::outcome::{Outcome, Verdict};
use crate::tracker::Scrape;
use std::collections::VecDeque;
use std::io;
use tsubame_storage::{Family, InfoHash, Seconds, SwarmStats};
use tsubame_udp::ring::ReturnPath;
use tsubame_udp::wire::{SCRAPE_HASHES_MAX, SCRAPE_REPLY_LEN, SCRAPE_ROW_LEN};

/// Scrapes that may wait at once. None holds a receive buffer
const WAITING_MAX: usize = 1 << PLACE_BITS;

/// Seconds after which the client has given up, or will ask again
const TIMEOUT_SECS: u64 = 2;

/// Bits of a request id that number the place; the rest tell its uses apart
const PLACE_BITS: u32 = 10;

const REPLY_LEN_MAX: usize = SCRAPE_REPLY_LEN + SCRAPE_HASHES_MAX * SCRAPE_ROW_LEN;

/// A scrape that waits
#[derive(Debug)]
struct Pending {
    path: ReturnPath,
    family: Family,
    scrape: Scrape,
    /// Rows not yet answered
    missing: u8,
    reply_len: usize,
    reply: [u8; REPLY_LEN_MAX],
}

/// All scrapes that wait, by request id
#[derive(Debug)]
pub(super) struct PendingScrapes {
    places: Vec<Option<(u32, Pending)>>,
    free: Vec<u32>,
    /// Request ids in the order of their deadlines; some are answered already
    deadlines: VecDeque<(Seconds, u32)>,
    uses: u32,
}

impl PendingScrapes {
    pub(super) fn new() -> Self {
        Self {
            places: (0..WAITING_MAX).map(|_| None).collect(),
            free: (0..WAITING_MAX as u32).rev().collect(),
            deadlines: VecDeque::with_capacity(2 * WAITING_MAX),
            uses: 0,
        }
    }

    /// Memory that a shard has for them from the start
    pub(super) const fn bytes() -> usize {
        WAITING_MAX * (size_of::<Option<(u32, Pending)>>() + 4 + 2 * size_of::<(Seconds, u32)>())
    }

    /// A request id for a scrape that is about to wait; `None` if too many do
    fn begin(&mut self) -> Option<u32> {
        // Deadlines of scrapes that were answered are kept until they have passed.
        if self.deadlines.len() == self.deadlines.capacity() {
            let places = &self.places;
            self.deadlines.retain(|(_, id)| is_held(places, *id));
        }
        let place = *self.free.last()?;
        // A late answer to an earlier scrape in this place must not be taken for one to this.
        self.uses = self.uses.wrapping_add(1);
        Some((self.uses << PLACE_BITS | place) & !HTTP_TICKET)
    }

    fn wait(&mut self, id: u32, now: Seconds, pending: Pending) {
        self.free.pop();
        self.places[place_of(id)] = Some((id, pending));
        self.deadlines.push_back((Seconds(now.0 + TIMEOUT_SECS), id));
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut Pending> {
        let place = self.places.get_mut(place_of(id))?.as_mut();
        place.filter(|(held, _)| *held == id).map(|(_, pending)| pending)
    }

    fn end(&mut self, id: u32) -> Option<Pending> {
        self.get_mut(id)?;
        self.free.push(place_of(id) as u32);
        self.places[place_of(id)].take().map(|(_, pending)| pending)
    }

    /// Takes out one that has waited for too long
    fn next_late(&mut self, now: Seconds) -> Option<Pending> {
        while let Some((_, id)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline < now) {
            let late = self.end(id);
            if late.is_some() {
                return late;
            }
        }
        None
    }
}

fn is_held(places: &[Option<(u32, Pending)>], id: u32) -> bool {
    places[place_of(id)].as_ref().is_some_and(|(held, _)| *held == id)
}

fn place_of(id: u32) -> usize {
    id as usize % WAITING_MAX
}

/// What other shards are asked for a scrape: rows of the same owner travel together
#[derive(Debug)]
pub(super) struct Questions {
    ticket: u32,
    /// By owner
    rows: Vec<Rows<InfoHash>>,
}

impl Questions {
    pub(super) fn new(shards: usize) -> Self {
        let none = Rows::new(0, InfoHash([0; 20]));
        Self { ticket: 0, rows: vec![none; shards] }
    }

    /// Questions about one scrape follow
    pub(super) fn begin(&mut self, ticket: u32) {
        self.ticket = ticket;
        self.rows.fill(Rows::new(ticket, InfoHash([0; 20])));
    }

    /// Asks an owner for a row; false if the way there is full
    pub(super) fn ask(
        &mut self,
        port: &mut Port,
        owner: usize,
        row: u8,
        info_hash: InfoHash,
    ) -> bool {
        if !self.rows[owner].push(row, info_hash) {
            return true;
        }
        let full = std::mem::replace(&mut self.rows[owner], Rows::new(self.ticket, info_hash));
        port.send(owner, Message::Question(full))
    }

    /// Asks for the rows that were kept back for others
    pub(super) fn end(&mut self, port: &mut Port) -> bool {
        let rest = self.rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        rest.fold(true, |all, (owner, rows)| port.send(owner, Message::Question(*rows)) && all)
    }
}

impl<D: Datapath> Shard<D> {
    /// Answers a scrape of which other shards own a part: asks them, and keeps what is known of the reply
    pub(super) fn scrape_everywhere(
        &mut self,
        now: Now,
        received: D::Received,
        family: Family,
        scrape: &Scrape,
    ) -> io::Result<()> {
        let (id, path) = (self.scrapes.begin(), self.ring.return_path(&received));
        let (Some(id), Some(path)) = (id, path) else {
            return self.conclude(received, family, Verdict::silence(Outcome::ShedScrape));
        };
        let (mut missing, mut reply_len, mut asked_all) = (0, 0, true);
        self.questions.begin(id);
        let mut known = [0; REPLY_LEN_MAX];
        if let Some((datagram, _)) = self.ring.open(&received) {
            reply_len = scrape.begin_reply(&mut known);
            for (row, info_hash) in scrape.info_hashes(datagram.payload).enumerate() {
                reply_len += SCRAPE_ROW_LEN;
                let owner = usize::from(self.keys.owner(&info_hash, self.shards));
                if owner == usize::from(self.number) {
                    scrape.write_row(&mut known, row, self.tracker.scrape(&info_hash));
                    continue;
                }
                missing += 1;
                asked_all &= self.questions.ask(&mut self.port, owner, row as u8, info_hash);
            }
        }
        asked_all &= self.questions.end(&mut self.port);
        if !asked_all {
            // A reply with false zeros would be worse than none.
            return self.conclude(received, family, Verdict::silence(Outcome::ShedMesh));
        }
        if missing == 0 {
            if let Some((_, reply)) = self.ring.open(&received) {
                reply[..reply_len].copy_from_slice(&known[..reply_len]);
            }
            return self.conclude(
                received,
                family,
                Verdict { outcome: Outcome::Scraped, reply_len },
            );
        }
        let scrape = *scrape;
        let pending = Pending { path, family, scrape, missing, reply_len, reply: known };
        self.scrapes.wait(id, now.monotonic, pending);
        self.ring.release(received);
        Ok(())
    }

    /// Takes other shards' counts for a scrape over either protocol
    pub(super) fn take_answer(&mut self, rows: &Rows<SwarmStats>) -> io::Result<()> {
        if rows.ticket & HTTP_TICKET != 0 {
            self.desk.counted(rows);
            return Ok(());
        }
        let Some(pending) = self.scrapes.get_mut(rows.ticket) else { return Ok(()) };
        for (row, swarm_stats) in rows.iter() {
            pending.scrape.write_row(&mut pending.reply, usize::from(row), swarm_stats.counts);
            pending.missing = pending.missing.saturating_sub(1);
        }
        if pending.missing > 0 {
            return Ok(());
        }
        let Some(pending) = self.scrapes.end(rows.ticket) else { return Ok(()) };
        let Some(slot) = self.forward_slot()? else {
            self.count(pending.family, Outcome::ShedSlots);
            return Ok(());
        };
        self.count(pending.family, Outcome::Scraped);
        let reply = &pending.reply[..pending.reply_len];
        self.ring.forward_reply(&slot)[..reply.len()].copy_from_slice(reply);
        self.ring.send_forward(slot, &pending.path, reply.len())
    }

    /// Gives up scrapes of which a part is late
    pub(super) fn give_up_late_scrapes(&mut self, now: Seconds) {
        while let Some(late) = self.scrapes.next_late(now) {
            self.count(late.family, Outcome::ShedScrape);
        }
    }
}
