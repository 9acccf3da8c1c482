//! How shards pass on what the kernel did not bring to the owner: a lock-free ring for each ordered pair.
//!
//! Nothing blocks and nothing grows: a full ring refuses, and the sender counts what it sheds. A consumer that
//! sleeps says so first and looks once more; a producer wakes it only then, once for a batch.

use crate::peer_list::PeerList;
use crate::settings::ShardUpdate;
use crate::tracker::Announce;
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;
use tsubame_storage::{InfoHash, SwarmStats, TorrentPage};
use tsubame_udp::ring::ReturnPath;
use tsubame_udp::wire::TransactionId;

/// Memory of all rings together, with up to 148 shards
const MEMORY_BYTES: usize = 64 << 20;

/// Messages a ring between shards holds at least, and at most: beyond that a longer queue is only a longer delay
const MESSAGES_MIN: usize = 16;
const MESSAGES_MAX: usize = 1024;

/// Messages of the control plane that a shard holds
const CONTROL_MESSAGES: usize = 64;

/// Messages taken in a turn: fewer than a ring has slots for their replies, and no more work than a batch
const MESSAGES_PER_TURN: usize = 128;

/// Rows of a scrape that travel together
pub const ROWS: usize = 6;

/// Set in the tickets of what HTTP waits for
pub const HTTP_TICKET: u32 = 1 << 31;

/// What a shard says to another
#[derive(Debug)]
pub enum Message {
    /// Answer this announce in my stead
    Announce(Announce, TransactionId, ReturnPath),
    /// Enter this announce, which came over HTTP, and send the list back filled
    Ask(Announce, Box<PeerList>),
    /// The list you asked to have filled
    Told(Box<PeerList>),
    /// Which are your next torrents?
    List(PageRequest),
    /// These are my next torrents
    Listed(Box<Listed>),
    /// What are the figures of these swarms?
    Question(Rows<InfoHash>),
    /// These are the figures of your swarms
    Answer(Rows<SwarmStats>),
    /// From the control plane: use this policy and these settings from now on
    Update(Box<ShardUpdate>),
    /// From the control plane: finish
    Stop,
}

const _: () = assert!(size_of::<Message>() <= 192);

/// Some rows of a scrape that waits at the asking shard
#[derive(Clone, Copy, Debug)]
pub struct Rows<T> {
    /// Which scrape
    pub ticket: u32,
    len: u8,
    numbers: [u8; ROWS],
    values: [T; ROWS],
}

impl<T: Copy> Rows<T> {
    /// No rows yet; `filler` is never seen
    pub fn new(ticket: u32, filler: T) -> Self {
        Self { ticket, len: 0, numbers: [0; ROWS], values: [filler; ROWS] }
    }

    /// Adds a row; true if that was the last there is room for
    pub fn push(&mut self, number: u8, value: T) -> bool {
        let at = usize::from(self.len);
        self.numbers[at] = number;
        self.values[at] = value;
        self.len += 1;
        usize::from(self.len) == ROWS
    }

    /// Whether there are none
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The rows with their numbers
    pub fn iter(&self) -> impl Iterator<Item = (u8, T)> {
        let len = usize::from(self.len);
        self.numbers[..len].iter().copied().zip(self.values[..len].iter().copied())
    }

    /// The same rows with other values
    pub fn map<U: Copy>(&self, filler: U, mut value: impl FnMut(T) -> U) -> Rows<U> {
        let mut mapped = Rows::new(self.ticket, filler);
        for (number, old) in self.iter() {
            mapped.push(number, value(old));
        }
        mapped
    }
}

/// A page that somebody asks for
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Which request it is for
    pub ticket: u32,
    /// The torrents of the page come after this one
    pub after: Option<InfoHash>,
}

/// A page of the list of a shard's torrents
#[derive(Debug)]
pub struct Listed {
    /// Which request it is for
    pub ticket: u32,
    /// The torrents
    pub page: TorrentPage,
}

/// Where a node is woken
#[derive(Debug, Default)]
#[repr(align(128))]
struct Doorbell {
    /// A bit for each node that has sent something
    ready: Box<[ReadyWord]>,
    sleeping: AtomicBool,
    notify: Notify,
}

/// Alone on its cache lines: polled by one node, written by others
#[derive(Debug, Default)]
#[repr(align(128))]
struct ReadyWord(AtomicU64);

/// A node's end of all its rings
#[derive(Debug)]
pub struct Port {
    node: usize,
    inboxes: Vec<Option<Consumer<Message>>>,
    outboxes: Vec<Option<Producer<Message>>>,
    /// Nodes that were sent something since the last [`Port::ring`]
    rung: Vec<bool>,
    bells: Arc<[Doorbell]>,
    /// Whose turn it is to be served first
    next: u32,
}

/// Messages that the ring of each pair of so many shards holds
fn messages_per_ring(shards: u16) -> usize {
    let nodes = usize::from(shards) + 1;
    (MEMORY_BYTES / (nodes * nodes) / size_of::<Message>()).clamp(MESSAGES_MIN, MESSAGES_MAX)
}

/// Returns the memory of all rings between so many shards, and from the control plane to each.
pub fn memory_bytes(shards: u16) -> usize {
    let shards_len = usize::from(shards);
    let between = shards_len * shards_len.saturating_sub(1) * messages_per_ring(shards);
    (between + shards_len * CONTROL_MESSAGES) * size_of::<Message>()
}

/// Ports for so many shards, and one for the control plane, behind them
///
/// The control plane speaks and is not spoken to: it has rings in one direction.
pub fn mesh(shards: u16) -> Vec<Port> {
    let nodes = usize::from(shards) + 1;
    let control = nodes - 1;
    let words = nodes.div_ceil(64);
    let bell = |_| Doorbell {
        ready: (0..words).map(|_| ReadyWord::default()).collect(),
        ..Doorbell::default()
    };
    let bells: Arc<[Doorbell]> = (0..nodes).map(bell).collect();
    let mut ports: Vec<Port> = (0..nodes)
        .map(|node| Port {
            node,
            inboxes: (0..nodes).map(|_| None).collect(),
            outboxes: (0..nodes).map(|_| None).collect(),
            rung: vec![false; nodes],
            bells: bells.clone(),
            next: 0,
        })
        .collect();
    let messages = messages_per_ring(shards);
    for from in 0..nodes {
        for to in (0..control).filter(|to| *to != from) {
            let messages = match from == control {
                true => CONTROL_MESSAGES,
                false => messages,
            };
            let (producer, consumer) = RingBuffer::new(messages);
            ports[from].outboxes[to] = Some(producer);
            ports[to].inboxes[from] = Some(consumer);
        }
    }
    ports
}

impl Port {
    /// Puts a message into another node's ring; false if it is full
    ///
    /// The other learns of it at the next [`Self::ring`].
    pub fn send(&mut self, to: usize, message: Message) -> bool {
        let Some(outbox) = &mut self.outboxes[to] else { return false };
        let sent = outbox.push(message).is_ok();
        // Also when full: whoever lets its ring fill up should look.
        self.rung[to] = true;
        sent
    }

    /// Whether a message to another node would find room
    pub fn has_room(&self, to: usize) -> bool {
        self.outboxes[to].as_ref().is_some_and(|outbox| !outbox.is_full())
    }

    /// Tells those who were sent something, and wakes those of them that sleep
    pub fn ring(&mut self) {
        for (to, rung) in self.rung.iter_mut().enumerate().filter(|(_, rung)| **rung) {
            *rung = false;
            let bell = &self.bells[to];
            bell.ready[self.node / 64].0.fetch_or(1 << (self.node % 64), Ordering::SeqCst);
            if bell.sleeping.swap(false, Ordering::SeqCst) {
                bell.notify.notify_one();
            }
        }
    }

    /// Wakes this node's own task, for which another task of the same thread has something to do
    pub fn ring_oneself(&self) {
        self.bells[self.node].notify.notify_one();
    }

    /// Takes what others have sent, a bounded number of messages; returns how many
    pub fn receive(&mut self, mut take: impl FnMut(usize, Message)) -> usize {
        let Self { bells, inboxes, node, next, .. } = self;
        let mut left = MESSAGES_PER_TURN;
        for (word, ready) in bells[*node].ready.iter().enumerate() {
            if ready.0.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let bits = ready.0.swap(0, Ordering::SeqCst);
            // Each turn begins with another node, so that none is always served last.
            let turn = *next % 64;
            let in_turn = (turn..64).chain(0..turn).filter(|bit| bits >> bit & 1 == 1);
            for bit in in_turn {
                let Some(inbox) = &mut inboxes[word * 64 + bit as usize] else { continue };
                for _ in 0..left.min(inbox.slots()) {
                    let Ok(message) = inbox.pop() else { break };
                    left -= 1;
                    take(word * 64 + bit as usize, message);
                }
                if !inbox.is_empty() {
                    ready.0.fetch_or(1 << bit, Ordering::SeqCst);
                }
            }
        }
        *next = next.wrapping_add(1);
        MESSAGES_PER_TURN - left
    }

    /// Messages that [`Self::receive`] takes at most
    pub const fn messages_per_turn() -> usize {
        MESSAGES_PER_TURN
    }

    /// Says that this node sleeps; false if there is something to do after all
    pub fn go_to_sleep(&self) -> bool {
        let bell = &self.bells[self.node];
        bell.sleeping.store(true, Ordering::SeqCst);
        let quiet = bell.ready.iter().all(|ready| ready.0.load(Ordering::SeqCst) == 0);
        if !quiet {
            self.wake_up();
        }
        quiet
    }

    /// Says that this node is awake
    pub fn wake_up(&self) {
        self.bells[self.node].sleeping.store(false, Ordering::SeqCst);
    }

    /// Where this node is woken, to be waited at
    pub fn bell(&self) -> Bell {
        Bell { bells: self.bells.clone(), node: self.node }
    }
}

/// Where a node is woken
#[derive(Debug)]
pub struct Bell {
    bells: Arc<[Doorbell]>,
    node: usize,
}

impl Bell {
    /// Waits until another node rings
    pub async fn rung(&self) {
        self.bells[self.node].notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(ticket: u32) -> Message {
        Message::Question(Rows::new(ticket, InfoHash([0; 20])))
    }

    #[test]
    fn messages_arrive_in_order_and_a_full_ring_refuses() {
        let mut ports = mesh(2);
        let sent = (0..5_000).take_while(|ticket| ports[0].send(1, question(*ticket))).count();
        assert_eq!(sent, MESSAGES_MAX);
        let mut seen = Vec::new();
        let mut take = |port: &mut Port| {
            port.receive(|from, message| {
                assert_eq!(from, 0);
                if let Message::Question(rows) = message {
                    seen.push(rows.ticket);
                }
            })
        };
        assert_eq!(take(&mut ports[1]), 0, "nobody has rung yet");
        ports[0].ring();
        while take(&mut ports[1]) > 0 {}
        assert_eq!(seen, (0..sent as u32).collect::<Vec<_>>());
    }

    #[test]
    fn memory_is_bounded_and_known() {
        for shards in [1, 2, 16, 128] {
            assert!(memory_bytes(shards) <= MEMORY_BYTES + (2 << 20), "{shards}");
        }
        let mut ports = mesh(3);
        let room =
            |port: &mut Port, to| (0..5_000).take_while(|it| port.send(to, question(*it))).count();
        let all: usize = (0..4)
            .flat_map(|from| (0..3).map(move |to| (from, to)))
            .map(|(from, to)| room(&mut ports[from], to))
            .sum();
        assert_eq!(all * size_of::<Message>(), memory_bytes(3));
    }

    #[test]
    fn who_goes_to_sleep_looks_once_more() {
        let mut ports = mesh(1);
        assert!(ports[0].go_to_sleep());
        ports[0].wake_up();
        ports[1].send(0, Message::Stop);
        ports[1].ring();
        assert!(!ports[0].go_to_sleep());
        assert_eq!(ports[0].receive(|from, _| assert_eq!(from, 1)), 1);
        assert!(ports[0].go_to_sleep());
    }

    #[test]
    fn no_message_is_missed_by_a_sleeper() {
        const MESSAGES: u32 = if cfg!(miri) { 20 } else { 20_000 };
        let mut ports = mesh(2);
        ports.pop();
        let (mut receiver, mut sender) = (ports.pop().unwrap(), ports.pop().unwrap());
        let bell = receiver.bell();
        let thread = std::thread::spawn(move || {
            for ticket in 0..MESSAGES {
                while !sender.send(1, question(ticket)) {
                    sender.ring();
                    std::thread::yield_now();
                }
                if ticket % 7 == 0 {
                    sender.ring();
                }
            }
            sender.ring();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut seen = 0;
            while seen < MESSAGES {
                let taken = receiver.receive(|_, _| seen += 1);
                if taken == 0 && receiver.go_to_sleep() {
                    let patience = std::time::Duration::from_secs(10);
                    tokio::time::timeout(patience, bell.rung()).await.expect("missed");
                    receiver.wake_up();
                }
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn rows_keep_their_numbers() {
        let mut rows = Rows::new(9, 0_u32);
        assert!(rows.is_empty());
        let full: Vec<bool> = (10..16).map(|number| rows.push(number, number.into())).collect();
        assert_eq!(full, [false, false, false, false, false, true]);
        let doubled = rows.map(0_u64, |value| u64::from(value) * 2);
        assert_eq!(doubled.iter().nth(5), Some((15, 30)));
        assert_eq!(doubled.ticket, 9);
    }
}
