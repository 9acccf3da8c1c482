//! A shard: one thread, its ring, its swarms. This is where ring and tracker meet.
//!
//! It takes turns: take what arrived, admit all, look at the table for all, answer all, submit all; then the
//! mesh, then a bit of the sweep. Nothing on this thread waits for anything but the next turn.

mod for_http;
mod listings;
mod scrapes;
mod token_queue;

use crate::clock::{Clock, Now};
use crate::datapath::Datapath;
use crate::http::{self, Desk};
use crate::mesh::{Message, Port};
use crate::outcome::{Outcome, Verdict};
use crate::settings::{ShardSettings, ShardUpdate};
use crate::stats::{Board, Figures, Protocol};
use crate::tracker::{Admitted, Announce, Tracker};
pub use for_http::Asked;
use listings::Listings;
use scrapes::{PendingScrapes, Questions};
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use token_queue::TokenQueue;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;
use tsubame_storage::{Family, InfoHash, Prefetch, SwarmStats, source_counts_bytes};
use tsubame_udp::ring::{ReturnPath, Ring};
use tsubame_udp::steering::SteeringKeys;
use tsubame_udp::wire::TransactionId;

/// Memory that a shard has from the start: buffers, queues, and counts of its swarm table
pub const FIXED_BYTES: usize =
    Ring::memory_bytes() + PendingScrapes::bytes() + source_counts_bytes();

// What the sockets of a shard may keep comes on top of that.
const _: () = assert!(FIXED_BYTES <= 8 << 20);

/// Datagrams after which other tasks of this thread get their turn
const DATAGRAMS_PER_YIELD: usize = 256;

/// Datagrams that are answered together. More would keep their answers back for longer: with clients that wait for
/// answers before they ask again, tracker and clients would take turns working
const BATCH_MAX: usize = 64;

/// Turns after which they do, if each finds little
const TURNS_PER_YIELD: usize = 16;

/// Steps of a busy shard after which the runtime's ring is looked after though nobody is connected: what is left there
/// are accepts and closes
const STEPS_PER_FLUSH: u32 = 64;

/// Datagrams since the last wait or sleep that are company
const COMPANY: usize = 4;

/// How long the next ones are waited for, at most once before other tasks get their turn. This is the most that a
/// reply is late for it, and that HTTP and the mesh have to wait
const PATIENCE: Duration = Duration::from_micros(100);

/// How long operations may take to end when the shard stops
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Whom a shard answers for and with
pub struct Shard<D: Datapath = Ring> {
    number: u16,
    shards: u16,
    keys: SteeringKeys,
    ring: D,
    tracker: Tracker,
    port: Port,
    arrived: Vec<D::Received>,
    /// Where there are lists of torrents, what the table has of those
    known: Vec<Option<Prefetch>>,
    batch: Vec<Item<D::Received>>,
    inbox: Vec<(usize, Message)>,
    prefetches: Vec<Option<Prefetch>>,
    questions: Questions,
    scrapes: PendingScrapes,
    desk: Desk,
    listings: Listings,
    /// How HTTP is to be served from now on, until the connections' side takes it
    new_http_terms: Option<Arc<http::Terms>>,
    /// Requests over HTTP that wait until a token may be checked
    token_queue: TokenQueue,
    /// Takes policies that are no longer used
    retired: UnboundedSender<Box<ShardUpdate>>,
    figures: Figures,
    board: Arc<Board>,
    clock: Clock,
    /// Datagrams since the last wait or sleep
    company: usize,
    stopping: bool,
}

/// What a shard is given
#[derive(Debug)]
pub struct Parts<D = Ring> {
    /// Its number: also the number of its sockets in their groups
    pub number: u16,
    /// How many shards there are
    pub shards: u16,
    /// Decides who owns an info hash
    pub keys: SteeringKeys,
    /// Moves its datagrams
    pub ring: D,
    /// Answers them
    pub tracker: Tracker,
    /// Reaches the other shards
    pub port: Port,
    /// Takes policies that are no longer used, and frees them: their lists may be large
    pub retired: UnboundedSender<Box<ShardUpdate>>,
    /// Where it publishes its figures
    pub board: Arc<Board>,
    /// Tells the time
    pub clock: Clock,
}

/// What comes after a step
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call [`Shard::step`] again after other tasks of the thread had their turn
    Again,
    /// The shard sleeps until the ring's event, the port's bell or the next second; then call [`Shard::wake_up`]
    Sleep,
    /// The shard was told to stop
    Stop,
}

/// An admitted request on its way through a batch
#[derive(Debug)]
struct Item<R> {
    received: R,
    family: Family,
    admitted: Admitted,
    prefetch: Prefetch,
}

impl Shard {
    /// Serves until the control plane says stop
    pub async fn run(self, http: http::Parts) -> io::Result<()> {
        let event = awaitable(self.ring.event().try_clone_to_owned()?)?;
        let bell = self.port.bell();
        let shard = Rc::new(RefCell::new(self));
        let service = http::serve(http, &shard)?;
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        let mut steps: u32 = 0;
        loop {
            let step = shard.borrow_mut().step()?;
            match step {
                Step::Again => {
                    steps = steps.wrapping_add(1);
                    if service.is_active() || steps.is_multiple_of(STEPS_PER_FLUSH) {
                        // The runtime hands its ring's operations to the kernel only before it waits, which a task
                        // that yields keeps it from: one that waits for nothing has it do so.
                        tokio_uring::no_op().await?;
                    } else {
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                Step::Stop => break,
                Step::Sleep => {}
            }
            tokio::select! {
                biased;
                ready = event.readable() => {
                    drain(event.get_ref());
                    ready?.clear_ready();
                }
                () = bell.rung() => {}
                _ = seconds.tick() => {}
            }
            let mut shard = shard.borrow_mut();
            shard.wake_up();
        }
        service.stop().await;
        shard.borrow_mut().end();
        // The process is about to end: taking gigabytes apart would only keep it.
        std::mem::forget(shard);
        Ok(())
    }
}

impl<D: Datapath> Shard<D> {
    /// A shard of these parts
    pub fn new(parts: Parts<D>) -> Self {
        let Parts { number, shards, keys, ring, tracker, port, retired, board, clock } = parts;
        let inbox = Port::messages_per_turn();
        Self {
            number,
            shards,
            keys,
            ring,
            tracker,
            port,
            arrived: Vec::with_capacity(BATCH_MAX),
            known: Vec::with_capacity(BATCH_MAX),
            batch: Vec::with_capacity(BATCH_MAX),
            inbox: Vec::with_capacity(inbox),
            prefetches: Vec::with_capacity(inbox),
            questions: Questions::new(usize::from(shards)),
            scrapes: PendingScrapes::new(),
            desk: Desk::default(),
            listings: Listings::default(),
            new_http_terms: None,
            token_queue: TokenQueue::default(),
            retired,
            figures: Figures::default(),
            board,
            clock,
            company: 0,
            stopping: false,
        }
    }

    /// What there is to do until other tasks of this thread get their turn
    ///
    /// Those tasks serve HTTP and use this shard, too; so it is borrowed for a step, never over an await.
    pub fn step(&mut self) -> io::Result<Step> {
        if self.stopping {
            return Ok(Step::Stop);
        }
        let resting = self.take_turns()?;
        let now = self.clock.now();
        let sweeping = self.tracker.swarms_mut().sweep(now.monotonic);
        let purging = self.tracker.purge(now);
        self.publish(now);
        if !self.listings.is_empty() {
            self.list_some();
            return Ok(Step::Again);
        }
        if !resting || sweeping || purging || self.stopping || !self.token_queue.is_empty() {
            return Ok(Step::Again);
        }
        // In this order: what happens after the event is asked for either is found by the turn or makes
        // it readable.
        self.ring.ask_for_event(true);
        if self.turn(None)? == (0, 0) && self.port.go_to_sleep() {
            return Ok(Step::Sleep);
        }
        self.ring.ask_for_event(false);
        Ok(Step::Again)
    }

    /// Ends a sleep
    pub fn wake_up(&mut self) {
        self.port.wake_up();
        self.ring.ask_for_event(false);
    }

    fn end(&mut self) {
        self.publish(self.clock.now());
        self.ring.stop(STOP_PATIENCE);
    }

    fn publish(&mut self, now: Now) {
        if now.monotonic != self.board.written() {
            self.ring.count_drops();
            self.figures.busy_us = self.clock.thread_busy().as_micros() as u64;
        }
        self.figures.ring = self.ring.counts();
        self.figures.table = self.tracker.swarms().stats();
        self.board.publish(&self.figures, now.monotonic);
    }

    /// Takes turns until other tasks of this thread are due; true if there is nothing more to do
    ///
    /// Where datagrams come in company, it waits a little for the next ones in the kernel instead of going to
    /// sleep: to be woken for each of a hundred thousand a second costs more than to answer them. It waits
    /// only where a turn has found nothing, so that clients who wait for their answers before they ask again
    /// are not held up.
    fn take_turns(&mut self) -> io::Result<bool> {
        let (mut done, mut waited, mut patience) = (0, false, None);
        for _ in 0..TURNS_PER_YIELD {
            let (arrived, taken) = self.turn(patience)?;
            done += arrived + taken;
            // What the mesh brings is no sign that datagrams will come.
            self.company += arrived;
            patience = None;
            if arrived + taken == 0 {
                if self.company < COMPANY {
                    self.company = 0;
                    return Ok(true);
                }
                if waited {
                    break;
                }
                (self.company, waited, patience) = (0, true, Some(PATIENCE));
            }
            if done >= DATAGRAMS_PER_YIELD {
                break;
            }
        }
        Ok(false)
    }

    /// One turn; returns how many datagrams and messages there were
    fn turn(&mut self, patience: Option<Duration>) -> io::Result<(usize, usize)> {
        let arrived = self.ring.turn(patience)?;
        self.tracker.begin_turn();
        self.token_queue.permit_one();
        let now = self.clock.now();
        let arrived = arrived.min(BATCH_MAX);
        if arrived > 0 {
            self.figures.count_batch(arrived);
            self.admit(now, arrived)?;
            self.answer_all(now)?;
        }
        let taken = self.take_messages(now)?;
        self.give_up_late_scrapes(now.monotonic);
        self.port.ring();
        Ok((arrived, taken))
    }

    /// Admits so many of the datagrams that have arrived; what is not admitted is answered or dropped here
    fn admit(&mut self, now: Now, count: usize) -> io::Result<()> {
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.extend((0..count).map_while(|_| self.ring.take()));
        if self.tracker.policy().has_lists() {
            self.look_at_table(&arrived);
        }
        for (at, received) in arrived.drain(..).enumerate() {
            let Some((datagram, reply)) = self.ring.open(&received) else {
                self.count(Family::V4, Outcome::Unreadable);
                self.ring.release(received);
                continue;
            };
            let family = Family::of(datagram.source.ip());
            let known = self.known.get(at).and_then(Option::as_ref);
            let (source, payload) = (datagram.source, datagram.payload);
            match self.tracker.admit_prefetched(now, source, payload, reply, known) {
                Ok(admitted) => {
                    let prefetch = known.copied();
                    let prefetch =
                        prefetch.unwrap_or_else(|| self.tracker.prefetch_index(&admitted));
                    self.batch.push(Item { received, family, admitted, prefetch });
                }
                Err(verdict) => self.conclude(received, family, verdict)?,
            }
        }
        self.arrived = arrived;
        self.known.clear();
        Ok(())
    }

    /// Reads what the table has of all torrents of a batch before policy looks at them: those that are there are on no
    /// list that forbids them
    fn look_at_table(&mut self, arrived: &[D::Received]) {
        for received in arrived {
            let opened = self.ring.open(received);
            let payload = opened.as_ref().map_or(&[][..], |(datagram, _)| datagram.payload);
            self.known.push(self.tracker.prefetch_listed(payload));
        }
        let prefetched =
            self.known.iter().flatten().map(|prefetch| self.tracker.prefetch_entry(prefetch));
        std::hint::black_box(prefetched.fold(0, u8::wrapping_add));
    }

    /// Answers what was admitted, or passes it on to its owner
    fn answer_all(&mut self, now: Now) -> io::Result<()> {
        // All entries are read before any is needed, so that memory works on many at once.
        let prefetched = |tracker: &Tracker, batch: &[Item<D::Received>]| {
            batch
                .iter()
                .fold(0, |sum: u8, item| sum.wrapping_add(tracker.prefetch_entry(&item.prefetch)))
        };
        std::hint::black_box(prefetched(&self.tracker, &self.batch));
        let mut batch = std::mem::take(&mut self.batch);
        for item in batch.drain(..) {
            self.answer(now, item)?;
        }
        self.batch = batch;
        Ok(())
    }

    fn answer(&mut self, now: Now, item: Item<D::Received>) -> io::Result<()> {
        let Item { received, family, admitted, prefetch } = item;
        let owned = self.owns(&admitted.info_hash());
        match &admitted {
            Admitted::Announce(announce, transaction_id) if !owned => {
                self.forward(received, family, announce, *transaction_id);
                return Ok(());
            }
            Admitted::Scrape(scrape) if !owned || scrape.rows > 1 && self.shards > 1 => {
                return self.scrape_everywhere(now, received, family, scrape);
            }
            Admitted::Announce(..) | Admitted::Scrape(_) => {}
        }
        let verdict = match self.ring.open(&received) {
            Some((datagram, reply)) => {
                self.tracker.answer(now, prefetch, &admitted, datagram.payload, reply)
            }
            None => Verdict::silence(Outcome::Unreadable),
        };
        self.conclude(received, family, verdict)
    }

    fn owner(&self, info_hash: &InfoHash) -> u16 {
        self.keys.owner(info_hash, self.shards)
    }

    fn owns(&self, info_hash: &InfoHash) -> bool {
        self.owner(info_hash) == self.number
    }

    /// Counts a datagram and sends its reply, if there is one
    fn conclude(
        &mut self,
        received: D::Received,
        family: Family,
        verdict: Verdict,
    ) -> io::Result<()> {
        self.count(family, verdict.outcome);
        match verdict.reply_len {
            0 => self.ring.release(received),
            len => self.ring.send(received, len)?,
        }
        Ok(())
    }

    fn count(&mut self, family: Family, outcome: Outcome) {
        self.figures.count(Protocol::Udp, family, outcome);
    }

    /// Has the owner answer an announce, from its own socket
    fn forward(
        &mut self,
        received: D::Received,
        family: Family,
        announce: &Announce,
        transaction_id: TransactionId,
    ) {
        let owner = self.owner(&announce.info_hash);
        let sent = self.ring.return_path(&received).is_some_and(|path| {
            let message = Message::Announce(*announce, transaction_id, path);
            self.port.send(usize::from(owner), message)
        });
        let outcome = if sent { Outcome::Forwarded } else { Outcome::ShedMesh };
        self.count(family, outcome);
        self.ring.release(received);
    }

    /// Takes what other shards have sent
    fn take_messages(&mut self, now: Now) -> io::Result<usize> {
        let mut inbox = std::mem::take(&mut self.inbox);
        let taken = self.port.receive(|from, message| inbox.push((from, message)));
        let prefetch = |message: &(usize, Message)| match message {
            (_, Message::Announce(announce, ..) | Message::Ask(announce, _)) => {
                Some(self.tracker.swarms().prefetch_index(&announce.info_hash))
            }
            _ => None,
        };
        self.prefetches.extend(inbox.iter().map(prefetch));
        let prefetched =
            self.prefetches.iter().flatten().map(|prefetch| self.tracker.prefetch_entry(prefetch));
        std::hint::black_box(prefetched.fold(0, u8::wrapping_add));
        let mut prefetches = std::mem::take(&mut self.prefetches);
        for ((from, message), prefetch) in inbox.drain(..).zip(prefetches.drain(..)) {
            match (message, prefetch) {
                (Message::Announce(announce, transaction_id, path), Some(prefetch)) => {
                    self.answer_forwarded(now, (&announce, transaction_id), &path, prefetch)?;
                }
                (Message::Announce(..), None) => {}
                (Message::Question(rows), _) => {
                    let answer =
                        rows.map(SwarmStats::default(), |hash| self.tracker.swarm_stats(&hash));
                    // A full ring loses the answer; the scrape then ends late and unanswered.
                    self.port.send(from, Message::Answer(answer));
                }
                (Message::Answer(rows), _) => self.take_answer(&rows)?,
                (Message::Ask(announce, mut list), prefetch) => {
                    list.fill(&mut self.tracker, now, &announce, prefetch);
                    self.port.send(from, Message::Told(list));
                }
                (Message::Told(list), _) => self.desk.told(list),
                (Message::List(request), _) => self.listings.add(from, request),
                (Message::Listed(listed), _) => self.desk.listed(listed),
                (Message::Update(update), _) => self.update(now, update),
                (Message::Stop, _) => self.stopping = true,
            }
        }
        (self.inbox, self.prefetches) = (inbox, prefetches);
        Ok(taken)
    }

    /// Uses the policy and settings that the control plane has sent; those it replaces are sent back to be freed
    fn update(&mut self, now: Now, mut update: Box<ShardUpdate>) {
        if let Some(policy) = &mut update.policy {
            self.tracker.exchange_policy(now, policy);
        }
        if let Some(settings) = update.settings.take() {
            let ShardSettings { ids, terms, swarms, http } = settings;
            self.tracker.reconfigure(ids, terms, swarms);
            self.new_http_terms = Some(http);
        }
        if update.evict_empty_torrents {
            self.tracker.swarms_mut().evict_empty_torrents();
        }
        // The process is about to end if nobody takes it.
        let _ = self.retired.send(update);
    }

    /// A slot for a reply to another shard's datagram, if one is free or can be made free
    fn forward_slot(&mut self) -> io::Result<Option<D::Slot>> {
        if let Some(slot) = self.ring.forward_slot() {
            return Ok(Some(slot));
        }
        // Those on their way are free once the kernel has them.
        self.ring.turn(None)?;
        Ok(self.ring.forward_slot())
    }

    fn answer_forwarded(
        &mut self,
        now: Now,
        (announce, transaction_id): (&Announce, TransactionId),
        path: &ReturnPath,
        prefetch: Prefetch,
    ) -> io::Result<()> {
        let Some(slot) = self.forward_slot()? else {
            self.count(announce.family, Outcome::ShedSlots);
            return Ok(());
        };
        let reply = self.ring.forward_reply(&slot);
        let verdict = self.tracker.answer_announce(now, prefetch, announce, transaction_id, reply);
        self.count(announce.family, verdict.outcome);
        match verdict.reply_len {
            0 => self.ring.release_forward(slot),
            len => self.ring.send_forward(slot, path, len)?,
        }
        Ok(())
    }
}

#[expect(deprecated, reason = "unsafe for what can change its descriptor, which an OwnedFd cannot")]
fn awaitable(event: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(event, Interest::READABLE)
}

fn drain(event: &OwnedFd) {
    // Non-blocking: empty is what it should become.
    let _ = rustix::io::read(event, &mut [0; 8]);
}
