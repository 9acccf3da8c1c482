//! A shard: one pinned thread with its sockets, its swarms and its HTTP connections.
//!
//! A step of a shard is up to 16 turns, in which it answers a batch of datagrams and handles messages of other shards,
//! and then a bounded part of the maintenance of its table. Between steps it waits, in its ring or in its runtime.

pub mod admin;
pub mod datapath;
mod gather;
pub mod mesh;
pub mod message;
pub mod node;
mod page_scans;
mod pending_replies;
mod pending_scrapes;
mod phase_timer;
pub mod publication;
mod run;
mod runtime_watch;
mod scrape_requests;
mod token_queue;
pub mod transfer;
mod udp;
pub mod update;
pub mod xdp_datapath;

use crate::clock::Now;
use datapath::Datapath;
use mesh::{MeshEndpoint, SleepPlace};
use message::{HTTP_REQUEST, Message};
use node::{Node, NodeResources};
use std::cell::{Ref, RefCell, RefMut};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tsubame_storage::{Prefetch, source_counts_bytes};
use tsubame_udp::ring::{Ring, Wait};
use udp::{BATCH_MAX, UdpRequests};

/// Bytes that a shard allocates at start: buffers, queues, and the counts by source of its swarm table.
pub const FIXED_BYTES: usize =
    Ring::memory_bytes() + UdpRequests::<Ring>::bytes() + source_counts_bytes();

// The receive buffers of sockets come in addition.
const _: () = assert!(FIXED_BYTES <= 8 << 20);

/// Number of datagrams and messages after which a step yields to the other tasks of the thread.
const WORK_PER_STEP: usize = 256;

/// Number of nearly empty turns after which a step yields to the other tasks of the thread.
const TURNS_PER_STEP: usize = 16;

/// How often a shard that waits in its ring publishes its statistics; one that waits in its runtime does in each step.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);

/// A shard.
pub struct Shard<D: Datapath = Ring> {
    node: Rc<RefCell<Node>>,
    udp: UdpRequests<D>,
    inbox: Vec<(usize, Message)>,
    prefetches: Vec<Option<Prefetch>>,
    /// Number of datagrams since the end of the last step.
    datagrams: usize,
    /// Whether the last step was one with a wait, and left nothing to do.
    is_idle: bool,
    /// Time at which the statistics were published.
    published_at: Duration,
}

/// What a shard is made of.
#[derive(Debug)]
pub struct ShardResources<D = Ring> {
    /// All but the datapath.
    pub node: NodeResources,
    /// The datapath.
    pub datapath: D,
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Call [`Shard::step`] again after other tasks of the thread have run.
    Continue,
    /// Wait for the event of the datapath, the waker of the mesh endpoint or the next second; then call
    /// [`Shard::wake_up`].
    Sleep,
    /// Serve no more: the shard has received a stop message.
    Stop,
}

impl<D: Datapath> Shard<D> {
    /// Creates a shard.
    pub fn new(resources: ShardResources<D>) -> Self {
        let messages = MeshEndpoint::messages_per_turn();
        Self {
            node: Rc::new(RefCell::new(Node::new(resources.node))),
            udp: UdpRequests::new(resources.datapath),
            inbox: Vec::with_capacity(messages),
            prefetches: Vec::with_capacity(messages),
            datagrams: 0,
            is_idle: false,
            published_at: Duration::ZERO,
        }
    }

    /// Borrows the node of the shard.
    pub fn node(&self) -> Ref<'_, Node> {
        self.node.borrow()
    }

    /// Borrows the node of the shard mutably.
    pub fn node_mut(&self) -> RefMut<'_, Node> {
        self.node.borrow_mut()
    }

    /// Works until other tasks of the thread should run.
    pub fn step(&mut self) -> io::Result<NextStep> {
        if self.node().is_stopping {
            return Ok(NextStep::Stop);
        }
        self.is_idle = false;
        let is_idle = self.take_turns()?;
        let has_work = self.end_turns(Duration::ZERO);
        if has_work || !is_idle {
            return Ok(NextStep::Continue);
        }
        // The event is enabled before the turn. The waker is armed after it, and then the queues are checked again.
        // So whatever arrives is found by the turn or that check, or triggers the event or the waker.
        self.udp.datapath.set_event_enabled(true);
        if self.turn(Wait::No)? == (0, 0)
            && self.node().endpoint.prepare_sleep(SleepPlace::InRuntime)
        {
            return Ok(NextStep::Sleep);
        }
        self.udp.datapath.set_event_enabled(false);
        Ok(NextStep::Continue)
    }

    /// Ends a sleep.
    pub fn wake_up(&mut self) {
        self.node().endpoint.end_sleep();
        self.udp.datapath.set_event_enabled(false);
    }

    /// Works like [`Self::step`], but never returns [`NextStep::Sleep`]. If the last step left nothing to do, it first
    /// waits in the datapath until there is something, at most for `timeout`. Unless datagrams are gathered, one system
    /// call submits the replies of the last step and waits.
    pub fn step_with_wait(&mut self, timeout: Duration) -> io::Result<NextStep> {
        if self.node().is_stopping {
            return Ok(NextStep::Stop);
        }
        let gather = self.node().gather.time();
        let waits = self.is_idle && self.node().endpoint.prepare_sleep(SleepPlace::InRing);
        let mut wait = if waits { Wait::Event { gather, timeout } } else { Wait::No };
        self.is_idle = false;
        let mut work = 0;
        for _ in 0..TURNS_PER_STEP {
            let (datagrams, messages) = self.turn(std::mem::replace(&mut wait, Wait::No))?;
            // After a turn that took everything, the shard is idle. If it gathers, it is idle only after an empty turn:
            // a wait would delay what has arrived meanwhile by the time of gathering.
            self.is_idle = if gather.is_zero() {
                datagrams < BATCH_MAX && messages < MeshEndpoint::messages_per_turn()
            } else {
                datagrams + messages == 0
            };
            work += datagrams + messages;
            if self.is_idle || work >= WORK_PER_STEP {
                break;
            }
        }
        let has_work = self.end_turns(PUBLISH_INTERVAL);
        self.is_idle &= !has_work;
        Ok(NextStep::Continue)
    }

    /// Takes turns until other tasks of the thread should run; returns whether there is nothing more to do.
    ///
    /// A busy shard that finds no datagrams may wait for a short time in the kernel instead of sleeping ([`gather`]).
    /// It waits only after an empty turn, and once.
    fn take_turns(&mut self) -> io::Result<bool> {
        let gather = self.node().gather.time();
        let (mut work, mut wait, mut has_waited) = (0, Wait::No, false);
        let mut has_datagrams = false;
        for _ in 0..TURNS_PER_STEP {
            let (datagrams, messages) = self.turn(std::mem::replace(&mut wait, Wait::No))?;
            work += datagrams + messages;
            has_datagrams |= datagrams > 0;
            if datagrams + messages == 0 {
                // Messages do not tell whether datagrams will arrive.
                if has_waited || gather.is_zero() || !has_datagrams {
                    return Ok(true);
                }
                (has_waited, wait) = (true, Wait::Gather(gather));
            }
            if work >= WORK_PER_STEP {
                break;
            }
        }
        Ok(false)
    }

    /// Ends the turns of a step: does a bounded part of the maintenance, and publishes the statistics if they were
    /// published `interval` ago or earlier. Returns whether more is to be done.
    fn end_turns(&mut self, interval: Duration) -> bool {
        let clock = self.node().clock;
        let (elapsed, datagrams) = (clock.elapsed(), std::mem::take(&mut self.datagrams));
        self.node_mut().gather.record(datagrams, elapsed, || clock.thread_busy());
        let now = clock.now();
        let has_work = self.node_mut().maintain(now);
        if elapsed.saturating_sub(self.published_at) >= interval {
            self.published_at = elapsed;
            self.publish();
        }
        let has_scanned = self.node_mut().scan(now);
        self.node_mut().send_published();
        let is_draining = self.drain();
        has_work || has_scanned || is_draining
    }

    /// If the control plane has asked for it, receives no more datagrams, and says when those that were received have
    /// been answered. Returns whether some have not been.
    fn drain(&mut self) -> bool {
        let Some(drained) = self.node_mut().drained.take() else { return false };
        // If the kernel refuses to cancel a receive, the shard reports nothing, and the control plane goes on after its
        // timeout.
        if self.udp.datapath.stop_receiving().is_ok() && self.udp.has_drained() {
            // The control plane reads the number of open connections next.
            self.publish();
            // Fails if the control plane has stopped waiting.
            let _ = drained.send(());
            return false;
        }
        self.node_mut().drained = Some(drained);
        true
    }

    /// Takes one turn; returns the number of datagrams and of messages.
    fn turn(&mut self, wait: Wait) -> io::Result<(usize, usize)> {
        let (now, datagrams) = self.udp.turn(&mut self.node.borrow_mut(), wait)?;
        self.datagrams += datagrams;
        let messages = self.handle_messages(now)?;
        let mut node = self.node.borrow_mut();
        self.udp.end_turn(&mut node, datagrams);
        self.udp.drop_late_scrapes(&mut node, now.monotonic);
        node.endpoint.notify();
        Ok((datagrams, messages))
    }

    /// Handles messages of other nodes; returns their number.
    fn handle_messages(&mut self, now: Now) -> io::Result<usize> {
        let Self { node, udp, inbox, prefetches, .. } = self;
        let node = &mut *node.borrow_mut();
        let count = node.endpoint.receive(|from, message| inbox.push((from, message)));
        let prefetch = |(_, message): &(usize, Message)| match message {
            Message::Announce(announce, ..) | Message::HttpAnnounce(announce, _) => {
                Some(node.tracker.prefetch_index(&announce.info_hash))
            }
            _ => None,
        };
        prefetches.extend(inbox.iter().map(prefetch));
        let entries = prefetches.iter().flatten().map(|it| node.tracker.prefetch_entry(it));
        std::hint::black_box(entries.fold(0, u8::wrapping_add));
        for ((from, message), prefetch) in inbox.drain(..).zip(prefetches.drain(..)) {
            match (message, prefetch) {
                (Message::Announce(announce, transaction_id, path), Some(prefetch)) => {
                    let request = (&announce, transaction_id);
                    udp.answer_forwarded(node, now, request, &path, prefetch)?;
                }
                (Message::ScrapeReply(rows), _) if rows.request_id & HTTP_REQUEST == 0 => {
                    udp.add_rows(node, &rows)?;
                }
                (message, prefetch) => node.handle(now, from, message, prefetch),
            }
        }
        Ok(count)
    }

    /// Publishes the statistics.
    fn publish(&mut self) {
        let Self { node, udp, .. } = self;
        let node = &mut *node.borrow_mut();
        let now = node.clock.now();
        if now.monotonic != node.shared_stats.last_update() {
            udp.datapath.maintain();
            node.stats.busy_us = node.clock.thread_busy().as_micros() as u64;
        }
        node.stats.ring = udp.datapath.counts();
        node.stats.gather_us = node.gather.time().as_micros() as u64;
        node.publish(now);
    }
}
