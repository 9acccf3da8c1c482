//! A datapath with AF_XDP sockets beside the sockets of a ring.
//!
//! The XDP program redirects requests to the AF_XDP socket of their receive queue. Everything that it passes
//! (fragments, IP options, and all requests while a queue has no socket) arrives at the sockets of the ring.

use super::datapath::{Datapath, ReplyPath, RingDatapath};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tsubame_udp::ring::{
    Datagram, ForwardSlot, REPLY_LEN_MAX, ReceivedDatagram, ReturnPath, Ring, RingCounts,
    UnreadableDatagram, Wait, WatchMode, WatchNumber,
};
use tsubame_udp::xdp::frame::{FrameHeaders, FramePath};
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
    /// Maximum number of bytes of an IP packet on the interface.
    pub mtu: usize,
    /// Its socket.
    pub socket: FrameSocket,
    /// Set by the shard when it serves the queue: from then on frames may be redirected.
    pub is_served: Arc<AtomicBool>,
}

/// A ring, and the receive queues that the shard serves.
#[derive(Debug)]
pub struct XdpDatapath {
    ring: Ring,
    /// Addresses of the sockets of the ring.
    addresses: Vec<SocketAddr>,
    queues: Vec<ServedQueue>,
    changes: Receiver<QueueChange>,
    /// Reply to the frame that was opened last.
    reply: Box<[u8; REPLY_LEN_MAX]>,
    /// Whether the shard is about to wait outside of the ring.
    is_event_enabled: bool,
    /// Rotates the order in which the ring and the queues are served.
    next: usize,
    /// Counts of queues that are not served any more, and of replies that could not be sent.
    former: FrameCounts,
}

#[derive(Debug)]
struct ServedQueue {
    interface: u16,
    mtu: usize,
    socket: FrameSocket,
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
            next: 0,
            former: FrameCounts::default(),
        }
    }

    /// Has the AF_XDP sockets send and receive; returns the number of received frames.
    fn transfer(&mut self) -> usize {
        self.queues.iter_mut().map(|queue| queue.socket.transfer()).sum()
    }

    /// Takes the next frame of a queue.
    fn take_frame(&mut self, number: usize) -> Option<Result<ReceivedRequest, UnreadableDatagram>> {
        let socket = &mut self.queues[number].socket;
        let frame = socket.take()?;
        Some(match FrameHeaders::parse(socket.bytes(&frame)) {
            Some(headers) => Ok(ReceivedRequest::Frame(number, frame, headers)),
            // The program redirects only what it has parsed.
            None => {
                socket.release(frame);
                Err(UnreadableDatagram)
            }
        })
    }

    /// Returns the path of the reply to a request in a frame from a socket of the ring.
    fn socket_path(&self, request: &FrameHeaders) -> Option<ReturnPath> {
        let to = request.destination;
        let is_wildcard = |bound: &SocketAddr| {
            bound.ip().is_unspecified()
                && bound.is_ipv4() == to.is_ipv4()
                && bound.port() == to.port()
        };
        let number = self.addresses.iter().position(|bound| *bound == to);
        let number = number.or_else(|| self.addresses.iter().position(is_wildcard))?;
        Some(ReturnPath::new(number as u16, request.source, Some((to.ip(), 0))))
    }

    /// Sends a reply in a slot of the ring from a UDP socket: the kernel fragments it if necessary.
    fn send_from_socket(
        &mut self,
        slot: ForwardSlot,
        request: &FrameHeaders,
        len: usize,
    ) -> io::Result<()> {
        match self.socket_path(request) {
            Some(path) => self.ring.send_forwarded_reply(slot, &path, len),
            None => {
                self.ring.release_forward_slot(slot);
                self.former.send_failed += 1;
                Ok(())
            }
        }
    }

    /// Starts or ends serving receive queues.
    fn apply_changes(&mut self) {
        while let Ok(change) = self.changes.try_recv() {
            match change {
                QueueChange::Add(offered) => {
                    let OfferedQueue { interface, mtu, socket, is_served } = *offered;
                    // Without a file for the watch, the queue remains one of the sockets of the ring.
                    let Ok(descriptor) = socket.as_fd().try_clone_to_owned() else { continue };
                    let watch = self.ring.add_watch(descriptor, WatchMode::Once);
                    self.queues.push(ServedQueue { interface, mtu, socket, watch });
                    is_served.store(true, Ordering::Release);
                }
                QueueChange::Remove(interface) => {
                    let is_removed = |queue: &mut ServedQueue| queue.interface == interface;
                    for queue in self.queues.extract_if(.., is_removed) {
                        // An error of the ring is one of the next turn, too.
                        let _ = self.ring.remove_watch(queue.watch);
                        self.former += queue.socket.counts();
                    }
                }
            }
        }
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
        self.next = self.next.wrapping_add(1);
        let mut frames = self.transfer();
        if frames > 0 {
            return Ok(frames + self.ring.turn(Wait::No)?);
        }
        if self.is_event_enabled || matches!(wait, Wait::Event { .. }) {
            for queue in &self.queues {
                self.ring.set_watch_enabled(queue.watch, true)?;
            }
        }
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
            self.next = self.next.wrapping_add(1);
            let taken = match self.next % sources {
                0 => self.ring.take().map(|taken| taken.map(ReceivedRequest::Datagram)),
                number => self.take_frame(number - 1),
            };
            if taken.is_some() {
                return taken;
            }
        }
        None
    }

    fn open<'a>(&'a mut self, received: &ReceivedRequest) -> (Datagram<'a>, &'a mut [u8]) {
        match received {
            ReceivedRequest::Datagram(received) => self.ring.open(received),
            ReceivedRequest::Frame(queue, frame, headers) => {
                let bytes = self.queues[*queue].socket.bytes(frame);
                let payload = bytes.get(headers.payload_offset()..).unwrap_or_default();
                let payload = payload.get(..headers.payload_len()).unwrap_or_default();
                let datagram = Datagram { source: headers.source, payload, truncated: false };
                (datagram, &mut self.reply[..])
            }
        }
    }

    fn send(&mut self, received: ReceivedRequest, len: usize) -> io::Result<()> {
        let (queue, frame, headers) = match received {
            ReceivedRequest::Datagram(received) => return self.ring.send(received, len),
            ReceivedRequest::Frame(queue, frame, headers) => (queue, frame, headers),
        };
        let ServedQueue { mtu, socket, .. } = &mut self.queues[queue];
        if headers.packet_len(len) <= *mtu {
            let reply = &self.reply[..len];
            socket.send(frame, |frame| headers.write_payload(frame, reply));
            return Ok(());
        }
        socket.release(frame);
        let Some(slot) = self.ring.forward_slot() else {
            self.former.send_failed += 1;
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
                ReplyPath::Socket(self.ring.return_path(received))
            }
            ReceivedRequest::Frame(queue, frame, headers) => {
                let ServedQueue { interface, socket, .. } = &self.queues[*queue];
                ReplyPath::Frame(FramePath::new(socket.bytes(frame), headers, *interface))
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
            queue.interface == path.interface() && headers.packet_len(len) <= queue.mtu
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

    fn refresh(&mut self) {
        self.ring.count_drops();
        self.queues.iter_mut().for_each(|queue| queue.socket.count_drops());
        self.apply_changes();
    }

    fn counts(&self) -> RingCounts {
        let mut frames = self.former;
        self.queues.iter().for_each(|queue| frames += queue.socket.counts());
        let counts = self.ring.counts();
        RingCounts {
            enters: counts.enters + frames.enters,
            sent: counts.sent + frames.sent,
            send_failed: counts.send_failed + frames.send_failed,
            dropped_by_kernel: counts.dropped_by_kernel + frames.dropped_by_kernel,
            ..counts
        }
    }

    fn stop(&mut self, timeout: Duration) -> bool {
        self.transfer();
        self.queues.clear();
        self.ring.stop(timeout)
    }
}
