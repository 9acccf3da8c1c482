//! A shard: one pinned thread with its sockets, its swarms and its HTTP connections.
//!
//! A step of a shard is up to 16 turns, in which it answers a batch of datagrams and handles messages of other shards,
//! and then a bounded part of the maintenance of its table.

pub mod admin;
pub mod datapath;
pub mod mesh;
pub mod message;
pub mod node;
mod page_scans;
mod pending_replies;
mod pending_scrapes;
mod phase_timer;
mod scrape_requests;
mod token_queue;
mod udp;
pub mod update;

use crate::clock::Now;
use crate::http::{self, HttpResources};
use datapath::Datapath;
use mesh::MeshEndpoint;
use message::{HTTP_REQUEST, Message};
use node::{Node, NodeResources};
use std::cell::{Ref, RefCell, RefMut};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tsubame_storage::{Prefetch, source_counts_bytes};
use tsubame_udp::ring::Ring;
use udp::UdpRequests;

/// Bytes that a shard allocates at start: buffers, queues, and the counts by source of its swarm table.
pub const FIXED_BYTES: usize =
    Ring::memory_bytes() + UdpRequests::<Ring>::bytes() + source_counts_bytes();

// The receive buffers of sockets come in addition.
const _: () = assert!(FIXED_BYTES <= 8 << 20);

/// Number of datagrams and messages after which a step yields to the other tasks of the thread.
const WORK_PER_STEP: usize = 256;

/// Number of nearly empty turns after which a step yields to the other tasks of the thread.
const TURNS_PER_STEP: usize = 16;

/// Steps of a busy shard without connections after which accepts and closes of HTTP are submitted to the kernel.
const STEPS_PER_SUBMIT: u32 = 64;

/// Number of datagrams since the last wait from which the shard waits for more instead of sleeping.
const BUSY_THRESHOLD: usize = 4;

/// How long a busy shard waits for more datagrams, at most once in a step. Replies, HTTP and messages are delayed by at
/// most this.
const GATHER_TIMEOUT: Duration = Duration::from_micros(100);

/// How long the operations of the datapath may take to end when the shard stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// How often messages are handled while connections end when the shard stops.
const STOP_INTERVAL: Duration = Duration::from_millis(2);

/// A shard.
pub struct Shard<D: Datapath = Ring> {
    node: Rc<RefCell<Node>>,
    udp: UdpRequests<D>,
    inbox: Vec<(usize, Message)>,
    prefetches: Vec<Option<Prefetch>>,
    /// Number of datagrams since the last wait or sleep.
    datagrams_since_wait: usize,
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

impl Shard {
    /// Serves until the control plane stops the shard.
    pub async fn run(mut self, http: HttpResources) -> io::Result<()> {
        let event = awaitable(self.udp.datapath.event().try_clone_to_owned()?)?;
        let waker = self.node().endpoint.wakeup_receiver();
        let http = http::serve(http, &self.node)?;
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        let mut steps: u32 = 0;
        loop {
            match self.step()? {
                NextStep::Continue => {
                    steps = steps.wrapping_add(1);
                    if http.has_connections() || steps.is_multiple_of(STEPS_PER_SUBMIT) {
                        // tokio-uring submits its operations only before it waits, and a task that yields keeps it
                        // from waiting: awaiting an operation makes it submit.
                        tokio_uring::no_op().await?;
                    } else {
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                NextStep::Stop => break,
                NextStep::Sleep => {}
            }
            tokio::select! {
                biased;
                ready = event.readable() => {
                    drain(event.get_ref());
                    ready?.clear_ready();
                }
                () = waker.notified() => {}
                _ = seconds.tick() => {}
            }
            self.wake_up();
        }
        http.stop();
        while !http.has_stopped() {
            // Other shards may wait for replies from this one, and this one for theirs.
            let now = self.node().clock.now();
            self.handle_messages(now)?;
            self.node.borrow_mut().scan();
            self.node.borrow_mut().endpoint.notify();
            tokio::time::sleep(STOP_INTERVAL).await;
        }
        self.publish();
        self.udp.datapath.stop(STOP_TIMEOUT);
        // The process is about to end: freeing gigabytes would only delay that.
        std::mem::forget(self);
        Ok(())
    }
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
            datagrams_since_wait: 0,
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
        let is_idle = self.take_turns()?;
        let now = self.node().clock.now();
        let has_work = self.node_mut().maintain(now);
        self.publish();
        let has_scanned = self.node_mut().scan();
        if has_scanned || !is_idle || has_work {
            return Ok(NextStep::Continue);
        }
        // The event is enabled before the turn. The waker is armed after it, and then the queues are checked once more.
        // So whatever arrives is found by the turn or that check, or triggers the event or the waker.
        self.udp.datapath.set_event_enabled(true);
        if self.turn(None)? == (0, 0) && self.node().endpoint.prepare_sleep() {
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

    /// Takes turns until other tasks of the thread should run; returns whether there is nothing more to do.
    ///
    /// A busy shard that finds no datagrams waits for a short time in the kernel instead of sleeping: waking up for
    /// each of a hundred thousand datagrams a second costs more than answering them. It waits only after an empty turn,
    /// so that clients that wait for a reply before their next request are not delayed.
    fn take_turns(&mut self) -> io::Result<bool> {
        let (mut work, mut has_waited, mut timeout) = (0, false, None);
        for _ in 0..TURNS_PER_STEP {
            let (datagrams, messages) = self.turn(timeout.take())?;
            work += datagrams + messages;
            // Messages do not tell whether datagrams will arrive.
            self.datagrams_since_wait += datagrams;
            if datagrams + messages == 0 {
                if self.datagrams_since_wait < BUSY_THRESHOLD {
                    self.datagrams_since_wait = 0;
                    return Ok(true);
                }
                if has_waited {
                    break;
                }
                self.datagrams_since_wait = 0;
                (has_waited, timeout) = (true, Some(GATHER_TIMEOUT));
            }
            if work >= WORK_PER_STEP {
                break;
            }
        }
        Ok(false)
    }

    /// Takes one turn; returns the number of datagrams and of messages.
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<(usize, usize)> {
        let (now, datagrams) = self.udp.turn(&mut self.node.borrow_mut(), timeout)?;
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
            udp.datapath.count_drops();
            node.stats.busy_us = node.clock.thread_busy().as_micros() as u64;
        }
        node.stats.ring = udp.datapath.counts();
        node.publish(now);
    }
}

#[expect(
    deprecated,
    reason = "deprecated because types that can change their descriptor are unsound here; an OwnedFd cannot"
)]
fn awaitable(event: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(event, Interest::READABLE)
}

/// Resets an eventfd, which does not block.
fn drain(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0; 8]);
}
