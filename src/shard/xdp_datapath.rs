//! A datapath with AF_XDP sockets beside the sockets of a ring.
//!
//! The XDP program redirects requests to the AF_XDP socket of their receive queue. Everything that it passes
//! (fragments, IP options, and all requests while a queue has no socket) arrives at the sockets of the ring.

use super::datapath::{Datapath, ReplyPath, RingDatapath};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tsubame_udp::ring::{
    DATAGRAM_LEN_MAX, Datagram, ForwardSlot, REPLY_LEN_MAX, ReceivedDatagram, Ring, RingCounts,
    UdpReplyPath, UnreadableDatagram, Wait, WatchMode, WatchNumber,
};
use tsubame_udp::xdp::frame::{FrameHeaders, FrameReplyPath};
use tsubame_udp::xdp::{FrameCounts, FrameSocket, ReceivedFrame};

/// A change of the receive queues that a shard serves, sent by the thread that controls XDP.
#[derive(Debug)]
pub enum QueueChange {
    /// A queue is to be served.
    Add(Box<OfferedQueue>),
    /// The queues of the interface with this number are not to be served any more.
    Remove(u16),
}

/// A receive queue that a shard is to serve.
#[derive(Debug)]
pub struct OfferedQueue {
    /// Number of its interface in the config.
    pub interface: u16,
    /// Its socket.
    pub socket: FrameSocket,
    /// Another descriptor of the socket, which the ring watches.
    pub watched: OwnedFd,
    /// State that the shard and the thread that controls XDP share.
    pub shared: Arc<SharedQueue>,
}

/// State of a receive queue that its shard and the thread that controls XDP share.
#[derive(Debug, Default)]
pub struct SharedQueue {
    /// Set by the shard when it serves the queue: from then on frames may be redirected.
    pub is_served: AtomicBool,
    /// Maximum number of bytes of an IP packet on the interface.
    pub mtu: AtomicUsize,
}

/// Time after which replies that the kernel could not take are tried again.
const RETRY_TIME: Duration = Duration::from_millis(1);

/// Size in bytes of an IPv6 packet that every link carries (RFC 8200, section 5). The kernel learns of smaller links on
/// the way than the interface and fragments packets
/// that its sockets send; AF_XDP does not.
const IPV6_MTU_MIN: usize = 1_280;

impl SharedQueue {
    /// Returns whether a reply can be sent in a frame: longer ones need fragments.
    fn fits(&self, request: &FrameHeaders, reply_len: usize) -> bool {
        let mtu = self.mtu.load(Ordering::Relaxed);
        let mtu = if request.source.is_ipv6() { mtu.min(IPV6_MTU_MIN) } else { mtu };
        request.packet_len(reply_len) <= mtu
    }
}

/// A ring, and the receive queues that the shard serves.
#[derive(Debug)]
pub struct XdpDatapath {
    ring: Ring,
    /// Addresses of the sockets of the ring.
    addresses: Vec<SocketAddr>,
    queues: Vec<ServedQueue>,
    changes: Receiver<QueueChange>,
    /// Slot for the reply to a frame; used by one frame at a time.
    reply: Box<[u8; REPLY_LEN_MAX]>,
    /// Whether the shard is about to wait outside of the ring.
    is_event_enabled: bool,
    /// Number of frames that the sockets had received when they were looked at last.
    received: usize,
    /// Rotates the order in which the ring and the queues are served.
    cursor: usize,
    /// Counts of queues that are not served any more.
    closed_counts: FrameCounts,
    /// Number of replies that could not be sent.
    send_failed: u64,
}

#[derive(Debug)]
struct ServedQueue {
    interface: u16,
    socket: FrameSocket,
    shared: Arc<SharedQueue>,
    watch: WatchNumber,
}

/// A request that was received and has not been answered.
#[derive(Debug)]
pub enum ReceivedRequest {
    /// By a socket of the ring.
    Datagram(ReceivedDatagram),
    /// By the AF_XDP socket of the queue with a number.
    Frame(usize, ReceivedFrame, FrameHeaders),
}

impl XdpDatapath {
    /// Creates a datapath without queues. `addresses` are those of the sockets of the ring.
    pub fn new(ring: Ring, addresses: Vec<SocketAddr>, changes: Receiver<QueueChange>) -> Self {
        Self {
            ring,
            addresses,
            queues: Vec::new(),
            changes,
            reply: Box::new([0; REPLY_LEN_MAX]),
            is_event_enabled: false,
            received: 0,
            cursor: 0,
            closed_counts: FrameCounts::default(),
            send_failed: 0,
        }
    }

    /// Has the AF_XDP sockets send and receive; returns the number of received frames.
    fn transfer(&mut self) -> usize {
        self.received = self.queues.iter_mut().map(|queue| queue.socket.transfer()).sum();
        self.received
    }

    /// Returns whether the kernel could not take all replies: a driver was busy.
    fn has_unsent(&mut self) -> bool {
        self.queues.iter_mut().any(|queue| queue.socket.has_unsent())
    }

    /// Takes the next frame of a queue.
    fn take_frame(&mut self, number: usize) -> Option<Result<ReceivedRequest, UnreadableDatagram>> {
        let socket = &mut self.queues[number].socket;
        let frame = socket.take()?;
        let bytes = socket.bytes(&frame);
        // The program has parsed the headers, but cannot sum up a payload.
        let headers = FrameHeaders::parse(bytes).filter(|it| it.has_valid_checksum(bytes));
        Some(match headers {
            Some(headers) => Ok(ReceivedRequest::Frame(number, frame, headers)),
            None => {
                socket.release(frame);
                Err(UnreadableDatagram)
            }
        })
    }

    /// Returns the path of the reply to a request in a frame from a socket of the ring.
    fn udp_reply_path(&self, request: &FrameHeaders) -> Option<UdpReplyPath> {
        let to = request.destination;
        let is_wildcard = |bound: &SocketAddr| {
            bound.ip().is_unspecified()
                && bound.is_ipv4() == to.is_ipv4()
                && bound.port() == to.port()
        };
        let number = self.addresses.iter().position(|bound| *bound == to);
        let number = number.or_else(|| self.addresses.iter().position(is_wildcard))?;
        Some(UdpReplyPath::new(number as u16, request.source, Some((to.ip(), 0))))
    }

    /// Sends a reply in a slot of the ring from a UDP socket: the kernel fragments it if necessary.
    fn send_from_socket(
        &mut self,
        slot: ForwardSlot,
        request: &FrameHeaders,
        len: usize,
    ) -> io::Result<()> {
        match self.udp_reply_path(request) {
            Some(path) => self.ring.send_forwarded_reply(slot, &path, len),
            None => {
                self.ring.release_forward_slot(slot);
                self.send_failed += 1;
                Ok(())
            }
        }
    }

    /// Starts or ends serving receive queues.
    fn apply_changes(&mut self) {
        while let Ok(change) = self.changes.try_recv() {
            match change {
                QueueChange::Add(offered) => {
                    let OfferedQueue { interface, socket, watched, shared } = *offered;
                    let watch = self.ring.add_watch(watched, WatchMode::Once);
                    shared.is_served.store(true, Ordering::Release);
                    self.queues.push(ServedQueue { interface, socket, shared, watch });
                }
                QueueChange::Remove(interface) => {
                    let is_removed = |queue: &mut ServedQueue| queue.interface == interface;
                    for queue in self.queues.extract_if(.., is_removed) {
                        // An error of the ring is one of the next turn, too.
                        let _ = self.ring.remove_watch(queue.watch);
                        self.closed_counts += queue.socket.counts();
                    }
                }
            }
        }
    }
}

/// Returns a wait after which replies that could not be sent are tried again.
fn shortened(wait: Wait) -> Wait {
    match wait {
        Wait::Event { gather, timeout } => Wait::Event { gather, timeout: timeout.min(RETRY_TIME) },
        wait => wait,
    }
}

impl RingDatapath for XdpDatapath {
    fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }
}

impl Datapath for XdpDatapath {
    type Received = ReceivedRequest;
    type Slot = ForwardSlot;

    fn turn(&mut self, wait: Wait) -> io::Result<usize> {
        self.cursor = self.cursor.wrapping_add(1);
        let mut frames = self.transfer();
        if frames > 0 {
            return Ok(frames + self.ring.turn(Wait::No)?);
        }
        if self.is_event_enabled || matches!(wait, Wait::Event { .. }) {
            for queue in &self.queues {
                self.ring.set_watch_enabled(queue.watch, true)?;
            }
        }
        let wait = if self.has_unsent() { shortened(wait) } else { wait };
        let datagrams = self.ring.turn(wait)?;
        if wait != Wait::No || self.is_event_enabled {
            frames = self.transfer();
        }
        Ok(frames + datagrams)
    }

    fn take(&mut self) -> Option<Result<ReceivedRequest, UnreadableDatagram>> {
        // Each takes its turn, so that a flood at one of them does not delay the others.
        let sources = self.queues.len() + 1;
        for _ in 0..sources {
            self.cursor = self.cursor.wrapping_add(1);
            let taken = match self.cursor % sources {
                0 => self.ring.take().map(|taken| taken.map(ReceivedRequest::Datagram)),
                number => self.take_frame(number - 1),
            };
            if taken.is_some() {
                return taken;
            }
        }
        None
    }

    fn datagram_and_slot<'a>(
        &'a mut self,
        received: &ReceivedRequest,
    ) -> (Datagram<'a>, &'a mut [u8]) {
        match received {
            ReceivedRequest::Datagram(received) => self.ring.datagram_and_slot(received),
            ReceivedRequest::Frame(queue, frame, headers) => {
                let bytes = self.queues[*queue].socket.bytes(frame);
                let payload = bytes.get(headers.payload_offset()..).unwrap_or_default();
                let len = headers.payload_len().min(DATAGRAM_LEN_MAX);
                let payload = payload.get(..len).unwrap_or_default();
                let truncated = len < headers.payload_len();
                let datagram = Datagram { source: headers.source, payload, truncated };
                (datagram, &mut self.reply[..])
            }
        }
    }

    fn send(&mut self, received: ReceivedRequest, len: usize) -> io::Result<()> {
        let (queue, frame, headers) = match received {
            ReceivedRequest::Datagram(received) => return self.ring.send(received, len),
            ReceivedRequest::Frame(queue, frame, headers) => (queue, frame, headers),
        };
        let ServedQueue { socket, shared, .. } = &mut self.queues[queue];
        if shared.fits(&headers, len) {
            let reply = &self.reply[..len];
            socket.send(frame, |frame| headers.write_payload(frame, reply));
            return Ok(());
        }
        socket.release(frame);
        let Some(slot) = self.ring.forward_slot() else {
            self.send_failed += 1;
            return Ok(());
        };
        self.ring.forward_slot_bytes(&slot)[..len].copy_from_slice(&self.reply[..len]);
        self.send_from_socket(slot, &headers, len)
    }

    fn release(&mut self, received: ReceivedRequest) {
        match received {
            ReceivedRequest::Datagram(received) => self.ring.release(received),
            ReceivedRequest::Frame(queue, frame, _) => self.queues[queue].socket.release(frame),
        }
    }

    fn reply_path(&mut self, received: &ReceivedRequest) -> ReplyPath {
        match received {
            ReceivedRequest::Datagram(received) => {
                ReplyPath::Socket(self.ring.reply_path(received))
            }
            ReceivedRequest::Frame(queue, frame, headers) => {
                let ServedQueue { interface, socket, .. } = &self.queues[*queue];
                ReplyPath::Frame(FrameReplyPath::new(socket.bytes(frame), headers, *interface))
            }
        }
    }

    fn forward_slot(&mut self) -> Option<ForwardSlot> {
        self.ring.forward_slot()
    }

    fn forward_slot_bytes(&mut self, slot: &ForwardSlot) -> &mut [u8] {
        self.ring.forward_slot_bytes(slot)
    }

    fn send_forwarded_reply(
        &mut self,
        slot: ForwardSlot,
        path: &ReplyPath,
        len: usize,
    ) -> io::Result<()> {
        let path = match path {
            ReplyPath::Socket(path) => return self.ring.send_forwarded_reply(slot, path, len),
            ReplyPath::Frame(path) => path,
        };
        let headers = path.headers();
        let fits = |queue: &&mut ServedQueue| {
            queue.interface == path.interface() && queue.shared.fits(&headers, len)
        };
        if let Some(queue) = self.queues.iter_mut().find(fits) {
            let reply = &self.ring.forward_slot_bytes(&slot)[..len];
            if queue.socket.send_new(|frame| path.write_reply(frame, reply)) {
                self.ring.release_forward_slot(slot);
                return Ok(());
            }
        }
        // There are fewer queues than shards, or the reply needs fragments.
        self.send_from_socket(slot, &headers, len)
    }

    fn release_forward_slot(&mut self, slot: ForwardSlot) {
        self.ring.release_forward_slot(slot);
    }

    fn set_event_enabled(&mut self, is_enabled: bool) {
        self.is_event_enabled = is_enabled;
        self.ring.set_event_enabled(is_enabled);
    }

    fn maintain(&mut self) {
        self.ring.count_drops();
        self.queues.iter_mut().for_each(|queue| queue.socket.count_drops());
        self.apply_changes();
    }

    fn counts(&self) -> RingCounts {
        let mut frames = self.closed_counts;
        self.queues.iter().for_each(|queue| frames += queue.socket.counts());
        let counts = self.ring.counts();
        RingCounts {
            enters: counts.enters + frames.enters,
            sent: counts.sent + frames.sent,
            send_failed: counts.send_failed + frames.send_failed + self.send_failed,
            dropped_by_kernel: counts.dropped_by_kernel + frames.dropped_by_kernel,
            ..counts
        }
    }

    fn stop_receiving(&mut self) -> io::Result<()> {
        self.ring.stop_receiving()
    }

    fn has_drained(&self) -> bool {
        let is_sending = |queue: &ServedQueue| queue.socket.is_sending();
        self.ring.has_drained() && self.received == 0 && !self.queues.iter().any(is_sending)
    }

    fn stop(&mut self, timeout: Duration) -> bool {
        self.transfer();
        for queue in self.queues.drain(..) {
            // Otherwise the poll of the watch would keep the socket open until the kernel has destroyed the ring.
            let _ = self.ring.remove_watch(queue.watch);
        }
        self.ring.stop(timeout)
    }
}
