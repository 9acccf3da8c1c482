//! The mesh: a lock-free queue from each shard to each other shard, and from some other threads to each shard.
//!
//! The members of the mesh are the shards, and then the other threads: the control plane, and the thread of the
//! cluster if there is one. Nothing blocks and nothing grows: a full queue refuses a message, and the sender counts
//! it. A member says where it sleeps before it does, and then checks its queues again; a sender wakes it only if it
//! sleeps, once for a batch.

use super::message::Message;
use rtrb::{Consumer, Producer, RingBuffer};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use tokio::sync::Notify;

/// Maximum memory of all queues between shards in bytes, for up to 181 shards; with more, queues have [`MESSAGES_MIN`].
const MEMORY_BYTES: usize = 64 << 20;

/// Minimum number of messages of a queue between shards.
const MESSAGES_MIN: usize = 16;
/// Maximum number of messages of a queue between shards. A longer queue would only be a longer delay.
const MESSAGES_MAX: usize = 1024;

/// Number of messages of the queue from a thread that is not a shard to a shard.
const THREAD_MESSAGES: usize = 64;

/// Maximum number of threads that are not shards.
const OTHER_THREADS_MAX: usize = 2;

/// Maximum number of messages that are received in a turn: fewer than the slots for replies to forwarded requests, and
/// about as much work as a batch of datagrams.
const MESSAGES_PER_TURN: usize = 128;

/// Wakes a member.
#[derive(Debug)]
#[repr(align(128))]
struct MemberWakeup {
    /// A bit for each member that has sent a message.
    ready: Box<[ReadyBits]>,
    /// A [`SleepPlace`] as a number, or [`AWAKE`].
    sleep: AtomicU8,
    /// An eventfd, which wakes a member that sleeps in its ring.
    event: OwnedFd,
    /// Wakes a member that sleeps in its runtime.
    notify: Notify,
}

/// Where a member sleeps, and so how it is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum SleepPlace {
    /// In its ring, which watches its eventfd.
    InRing = 1,
    /// In the runtime of its thread. The ring could not pass a wake-up by eventfd on at once: the kernel delays an
    /// eventfd that is signalled by another one.
    InRuntime = 2,
}

/// State of a member that does not sleep.
const AWAKE: u8 = 0;

/// Bits of 64 members, on cache lines of their own because one member reads them and others write them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ReadyBits(AtomicU64);

/// The endpoint of a member: its queues to and from other members.
#[derive(Debug)]
pub struct MeshEndpoint {
    member: usize,
    receivers: Vec<Option<Consumer<Message>>>,
    senders: Vec<Option<Producer<Message>>>,
    /// Members to which messages were sent since the last [`MeshEndpoint::notify`].
    to_notify: Vec<bool>,
    wakeups: Arc<[MemberWakeup]>,
    /// Rotates the order in which members are served.
    next: u32,
    /// Number of messages that were queued.
    sent: u64,
    /// Number of messages that were dropped because a queue was full.
    dropped: u64,
}

/// Returns the number of messages of each queue between shards.
fn messages_per_queue(shards: u16) -> usize {
    let members = usize::from(shards) + 1;
    (MEMORY_BYTES / (members * members) / size_of::<Message>()).clamp(MESSAGES_MIN, MESSAGES_MAX)
}

/// Returns the maximum memory of all queues in bytes.
pub fn memory_bytes(shards: u16) -> usize {
    let shards_len = usize::from(shards);
    let between = shards_len * shards_len.saturating_sub(1) * messages_per_queue(shards);
    (between + shards_len * OTHER_THREADS_MAX * THREAD_MESSAGES) * size_of::<Message>()
}

/// Creates the endpoints of `shards` shards, and then those of up to two other threads.
///
/// Other threads send and do not receive: they have queues in one direction only.
///
/// # Errors
///
/// If the kernel refuses an eventfd, because too many files are open.
pub fn mesh(shards: u16, other_threads: usize) -> io::Result<Vec<MeshEndpoint>> {
    let shards_len = usize::from(shards);
    let members = shards_len + other_threads.min(OTHER_THREADS_MAX);
    let words = members.div_ceil(64);
    let wakeup = |_| {
        Ok(MemberWakeup {
            ready: (0..words).map(|_| ReadyBits::default()).collect(),
            sleep: AtomicU8::new(AWAKE),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            notify: Notify::default(),
        })
    };
    let wakeups = (0..members).map(wakeup).collect::<io::Result<Arc<[MemberWakeup]>>>()?;
    let mut endpoints: Vec<MeshEndpoint> = (0..members)
        .map(|member| MeshEndpoint {
            member,
            receivers: (0..members).map(|_| None).collect(),
            senders: (0..members).map(|_| None).collect(),
            to_notify: vec![false; members],
            wakeups: wakeups.clone(),
            next: 0,
            sent: 0,
            dropped: 0,
        })
        .collect();
    let messages = messages_per_queue(shards);
    for from in 0..members {
        for to in (0..shards_len).filter(|to| *to != from) {
            let messages = if from < shards_len { messages } else { THREAD_MESSAGES };
            let (producer, consumer) = RingBuffer::new(messages);
            endpoints[from].senders[to] = Some(producer);
            endpoints[to].receivers[from] = Some(consumer);
        }
    }
    Ok(endpoints)
}

impl MeshEndpoint {
    /// Returns the number of this member.
    pub(super) fn member(&self) -> usize {
        self.member
    }

    /// Adds a message to the queue of another member; returns false if it is full.
    ///
    /// The other member is woken by the next [`Self::notify`].
    pub fn send(&mut self, to: usize, message: Message) -> bool {
        let Some(sender) = &mut self.senders[to] else { return false };
        let sent = sender.push(message).is_ok();
        self.sent += u64::from(sent);
        self.dropped += u64::from(!sent);
        // Also if the queue is full: its member may not know yet that it has messages.
        self.to_notify[to] = true;
        sent
    }

    /// Returns the number of messages that were queued, and of those that were dropped because a queue was full.
    pub fn message_counts(&self) -> (u64, u64) {
        (self.sent, self.dropped)
    }

    /// Returns whether the queue of another member can take a message: it exists and is not full.
    pub fn can_send(&self, to: usize) -> bool {
        self.senders[to].as_ref().is_some_and(|sender| !sender.is_full())
    }

    /// Wakes the members that messages were sent to.
    pub fn notify(&mut self) {
        for (to, to_notify) in
            self.to_notify.iter_mut().enumerate().filter(|(_, to_notify)| **to_notify)
        {
            *to_notify = false;
            let wakeup = &self.wakeups[to];
            wakeup.ready[self.member / 64].0.fetch_or(1 << (self.member % 64), Ordering::SeqCst);
            let sleep = wakeup.sleep.swap(AWAKE, Ordering::SeqCst);
            if sleep == SleepPlace::InRuntime as u8 {
                wakeup.notify.notify_one();
            } else if sleep == SleepPlace::InRing as u8 {
                // It fails only after 2^64 wake-ups.
                let _ = rustix::io::write(&wakeup.event, &1_u64.to_ne_bytes());
            }
        }
    }

    /// Wakes this member: another task of its thread has work for it.
    pub fn notify_self(&self) {
        self.wakeups[self.member].notify.notify_one();
    }

    /// Receives a bounded number of messages; returns how many.
    pub fn receive(&mut self, mut take: impl FnMut(usize, Message)) -> usize {
        let Self { wakeups, receivers, member, next, .. } = self;
        let mut left = MESSAGES_PER_TURN;
        for (word, ready) in wakeups[*member].ready.iter().enumerate() {
            if ready.0.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let bits = ready.0.swap(0, Ordering::SeqCst);
            // Each turn starts with another member, so that none is always served last.
            let turn = *next % 64;
            let in_turn = (turn..64).chain(0..turn).filter(|bit| bits >> bit & 1 == 1);
            for bit in in_turn {
                let Some(receiver) = &mut receivers[word * 64 + bit as usize] else { continue };
                for _ in 0..left.min(receiver.slots()) {
                    let Ok(message) = receiver.pop() else { break };
                    left -= 1;
                    take(word * 64 + bit as usize, message);
                }
                if !receiver.is_empty() {
                    ready.0.fetch_or(1 << bit, Ordering::SeqCst);
                }
            }
        }
        *next = next.wrapping_add(1);
        MESSAGES_PER_TURN - left
    }

    /// Returns the maximum number of messages that [`Self::receive`] returns.
    pub const fn messages_per_turn() -> usize {
        MESSAGES_PER_TURN
    }

    /// Marks this member as sleeping; returns false if it has messages and must not sleep.
    pub(super) fn prepare_sleep(&self, place: SleepPlace) -> bool {
        let wakeup = &self.wakeups[self.member];
        wakeup.sleep.store(place as u8, Ordering::SeqCst);
        let quiet = wakeup.ready.iter().all(|ready| ready.0.load(Ordering::SeqCst) == 0);
        if !quiet {
            self.end_sleep();
        }
        quiet
    }

    /// Marks this member as awake.
    pub fn end_sleep(&self) {
        self.wakeups[self.member].sleep.store(AWAKE, Ordering::SeqCst);
    }

    /// Returns a handle to wait on until this member is woken.
    pub fn wakeup_receiver(&self) -> WakeupReceiver {
        WakeupReceiver { wakeups: self.wakeups.clone(), member: self.member }
    }
}

/// Waits until a member is woken.
#[derive(Debug)]
pub struct WakeupReceiver {
    wakeups: Arc<[MemberWakeup]>,
    member: usize,
}

impl WakeupReceiver {
    /// Returns the eventfd that wakes the member when it sleeps in its ring.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.wakeups[self.member].event.as_fd()
    }

    /// Waits until the member is woken while it sleeps in its runtime, or by [`MeshEndpoint::notify_self`].
    pub async fn notified(&self) {
        self.wakeups[self.member].notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::message::ScrapeRows;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use tsubame_storage::InfoHash;

    fn message(request_id: u32) -> Message {
        Message::ScrapeRequest(ScrapeRows::new(request_id, InfoHash([0; 20])))
    }

    #[test]
    fn messages_arrive_in_order_and_a_full_queue_refuses() {
        let mut endpoints = mesh(2, 1).unwrap();
        let sent =
            (0..5_000).take_while(|request_id| endpoints[0].send(1, message(*request_id))).count();
        assert_eq!(sent, MESSAGES_MAX);
        let mut seen = Vec::new();
        let mut take = |endpoint: &mut MeshEndpoint| {
            endpoint.receive(|from, message| {
                assert_eq!(from, 0);
                if let Message::ScrapeRequest(rows) = message {
                    seen.push(rows.request_id);
                }
            })
        };
        assert_eq!(take(&mut endpoints[1]), 0, "no notification yet");
        endpoints[0].notify();
        while take(&mut endpoints[1]) > 0 {}
        assert_eq!(seen, (0..sent as u32).collect::<Vec<_>>());
    }

    #[test]
    fn memory_is_bounded_and_known() {
        for shards in [1, 2, 16, 128] {
            assert!(memory_bytes(shards) <= MEMORY_BYTES + (2 << 20), "{shards}");
        }
        let mut endpoints = mesh(3, 2).unwrap();
        let fill = |endpoint: &mut MeshEndpoint, to| {
            (0..5_000).take_while(|it| endpoint.send(to, message(*it))).count()
        };
        let all: usize = (0..5)
            .flat_map(|from| (0..3).map(move |to| (from, to)))
            .map(|(from, to)| fill(&mut endpoints[from], to))
            .sum();
        assert_eq!(all * size_of::<Message>(), memory_bytes(3));
    }

    #[test]
    fn a_node_with_messages_does_not_sleep() {
        let mut endpoints = mesh(1, 1).unwrap();
        assert!(endpoints[0].prepare_sleep(SleepPlace::InRing));
        endpoints[0].end_sleep();
        endpoints[1].send(0, Message::Stop { keeps_listeners: false });
        endpoints[1].notify();
        assert!(!endpoints[0].prepare_sleep(SleepPlace::InRing));
        assert_eq!(endpoints[0].receive(|from, _| assert_eq!(from, 1)), 1);
        assert!(endpoints[0].prepare_sleep(SleepPlace::InRing));
    }

    /// Sends messages to a member that sleeps whenever it has none; `wait` returns once it is woken.
    fn send_to_a_sleeper(sleep: SleepPlace, wait: impl Fn(&WakeupReceiver)) {
        const MESSAGES: u32 = if cfg!(miri) { 20 } else { 20_000 };
        let mut endpoints = mesh(2, 1).unwrap();
        endpoints.pop();
        let (mut receiver, mut sender) = (endpoints.pop().unwrap(), endpoints.pop().unwrap());
        let waker = receiver.wakeup_receiver();
        let thread = std::thread::spawn(move || {
            for request_id in 0..MESSAGES {
                while !sender.send(1, message(request_id)) {
                    sender.notify();
                    std::thread::yield_now();
                }
                if request_id % 7 == 0 {
                    sender.notify();
                }
            }
            sender.notify();
        });
        let mut seen = 0;
        while seen < MESSAGES {
            let taken = receiver.receive(|_, _| seen += 1);
            if taken == 0 && receiver.prepare_sleep(sleep) {
                wait(&waker);
                receiver.end_sleep();
            }
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_member_that_sleeps_in_its_runtime_misses_no_message() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        send_to_a_sleeper(SleepPlace::InRuntime, |waker| {
            let timeout = std::time::Duration::from_secs(10);
            let woken = async { tokio::time::timeout(timeout, waker.notified()).await };
            runtime.block_on(woken).expect("missed");
        });
    }

    #[test]
    fn a_member_that_sleeps_in_its_ring_misses_no_message() {
        send_to_a_sleeper(SleepPlace::InRing, |waker| {
            let mut polled = [PollFd::from_borrowed_fd(waker.event(), PollFlags::IN)];
            let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
            assert_eq!(poll(&mut polled, Some(&timeout)).unwrap(), 1, "missed");
            rustix::io::read(waker.event(), &mut [0; 8]).unwrap();
        });
    }
}
