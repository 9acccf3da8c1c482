//! Scrapes that wait for other shards' figures, each with its datagram and a reply half written.

use crate::mesh::{HTTP_TICKET, Message, Port, Rows};
use crate::tracker::Scrape;
use tsubame_storage::{Family, InfoHash, Seconds};
use tsubame_udp::ring::Received;

/// Scrapes that may wait at once: each holds a receive buffer, and most buffers must stay free
const WAITING_MAX: usize = 64;

/// After so many seconds the client has given up, or will ask again
const PATIENCE_SECS: u64 = 2;

/// Bits of a ticket that name the place; the rest tell its uses apart
const PLACE_BITS: u32 = 8;

const _: () = assert!(WAITING_MAX <= 1 << PLACE_BITS);

/// A scrape that waits
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) received: Received,
    pub(super) family: Family,
    pub(super) scrape: Scrape,
    /// Rows not yet answered
    pub(super) missing: u8,
    pub(super) reply_len: usize,
}

/// All that wait
#[derive(Debug)]
pub(super) struct Scrapes {
    places: Vec<Option<(u32, Seconds, Pending)>>,
    uses: u32,
    waiting: usize,
}

impl Scrapes {
    pub(super) fn new() -> Self {
        Self { places: (0..WAITING_MAX).map(|_| None).collect(), uses: 0, waiting: 0 }
    }

    /// A ticket for a scrape that is about to wait; `None` if too many do
    pub(super) fn ticket(&mut self) -> Option<u32> {
        let place = self.places.iter().position(Option::is_none)?;
        // A late answer to an earlier scrape in this place must not be taken for one to this.
        self.uses = self.uses.wrapping_add(1);
        Some((self.uses << PLACE_BITS | place as u32) & !HTTP_TICKET)
    }

    pub(super) fn wait(&mut self, ticket: u32, now: Seconds, pending: Pending) {
        let deadline = Seconds(now.0 + PATIENCE_SECS);
        self.places[place_of(ticket)] = Some((ticket, deadline, pending));
        self.waiting += 1;
    }

    pub(super) fn waiting(&mut self, ticket: u32) -> Option<&mut Pending> {
        let place = self.places.get_mut(place_of(ticket))?.as_mut();
        place.filter(|(held, ..)| *held == ticket).map(|(.., pending)| pending)
    }

    pub(super) fn end(&mut self, ticket: u32) -> Option<Pending> {
        self.waiting(ticket)?;
        self.waiting -= 1;
        self.places[place_of(ticket)].take().map(|(.., pending)| pending)
    }

    /// Takes out one that has waited for too long
    pub(super) fn next_late(&mut self, now: Seconds) -> Option<Pending> {
        if self.waiting == 0 {
            return None;
        }
        let late = |place: &&Option<(u32, Seconds, Pending)>| {
            place.as_ref().is_some_and(|(_, deadline, _)| *deadline < now)
        };
        let ticket = self.places.iter().find(late)?.as_ref()?.0;
        self.end(ticket)
    }
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

fn place_of(ticket: u32) -> usize {
    (ticket & ((1 << PLACE_BITS) - 1)) as usize
}
