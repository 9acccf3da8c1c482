//! The AF_XDP sockets of the receive queues of an interface, which shards serve.

use crate::process::deadline::Deadline;
use crate::process::interfaces::{mtu, receive_queues, transmit_queues};
use crate::shard::xdp_datapath::{OfferedQueue, QueueChange, SharedQueue};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use tsubame_udp::xdp::{Filter, FrameSocket, QUEUES, QueueProblem, XdpError, XdpMode};

/// The sockets of an interface.
#[derive(Debug)]
pub(super) struct QueueSockets {
    /// Number of the interface.
    number: u16,
    queues: Vec<QueueSocket>,
    is_zero_copy: bool,
}

/// The socket of a receive queue.
#[derive(Debug)]
struct QueueSocket {
    shared: Arc<SharedQueue>,
    /// The socket, until the program redirects to it.
    descriptor: Option<OwnedFd>,
}

/// What the sockets of an interface depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueSettings {
    /// Number of receive queues.
    pub(super) receive: usize,
    /// Number of transmit queues.
    pub(super) transmit: usize,
    /// Where the program runs.
    pub(super) mode: XdpMode,
    /// The config key `udp.xdp.zero_copy`.
    pub(super) zero_copy: Option<bool>,
}

impl QueueSettings {
    /// Reads the numbers of queues of an interface.
    pub(super) fn read(name: &str, mode: XdpMode, zero_copy: Option<bool>) -> Self {
        let (receive, transmit) = (receive_queues(name), transmit_queues(name));
        Self { receive, transmit, mode, zero_copy }
    }

    /// Creates a socket for a queue. Until `deadline` it waits for the end of another one: the kernel frees the queue
    /// of a process a moment after its end.
    pub(super) fn open(
        &self,
        (name, index): (&str, u32),
        queue: usize,
        deadline: Deadline,
    ) -> Result<FrameSocket, XdpError> {
        let failed =
            |problem| XdpError::Queue { interface: name.to_owned(), queue: queue as u32, problem };
        if queue >= self.transmit {
            return Err(failed(QueueProblem::NoTransmitQueue));
        }
        let zero_copy = match (self.mode, self.zero_copy) {
            (XdpMode::Native, wanted) => wanted,
            (XdpMode::Generic, Some(true)) => return Err(failed(QueueProblem::GenericMode)),
            // Drivers accept it, and then send nothing.
            (XdpMode::Generic, _) => Some(false),
        };
        loop {
            match FrameSocket::open(index, queue as u32, zero_copy) {
                Err(QueueProblem::Busy) if !deadline.has_passed() => deadline.pause(),
                result => return result.map_err(failed),
            }
        }
    }
}

impl QueueSockets {
    /// Returns the sockets of an interface that has none.
    pub(super) fn new(number: u16) -> Self {
        Self { number, queues: Vec::new(), is_zero_copy: true }
    }

    /// Returns the number of sockets.
    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Returns whether the driver uses the buffers of all sockets.
    pub(super) fn is_zero_copy(&self) -> bool {
        self.is_zero_copy && !self.queues.is_empty()
    }

    /// Creates a socket for each receive queue that has none, and offers each to a shard: queues are distributed over
    /// the shards in turn.
    ///
    /// # Errors
    ///
    /// Returns an error, and creates none, if one of the queues cannot have a socket.
    pub(super) fn open(
        &mut self,
        (name, index): (&str, u32),
        settings: QueueSettings,
        (shards, deadline): (&[Sender<QueueChange>], Deadline),
    ) -> Result<(), XdpError> {
        if settings.receive > QUEUES {
            return Err(XdpError::TooManyQueues(name.to_owned(), settings.receive));
        }
        let sockets = (self.queues.len()..settings.receive).map(|queue| {
            let socket = settings.open((name, index), queue, deadline)?;
            let copy = || {
                let copy = socket.as_fd().try_clone_to_owned();
                copy.map_err(|error| XdpError::Queue {
                    interface: name.to_owned(),
                    queue: queue as u32,
                    problem: QueueProblem::Failed("copy its descriptor", error),
                })
            };
            let copies = (copy()?, copy()?);
            Ok((socket, copies))
        });
        for (socket, (watched, descriptor)) in sockets.collect::<Result<Vec<_>, XdpError>>()? {
            let (interface, shared) = (self.number, Arc::<SharedQueue>::default());
            shared.mtu.store(mtu(name), Ordering::Relaxed);
            self.is_zero_copy &= socket.is_zero_copy();
            let shard = (usize::from(interface) + self.queues.len()) % shards.len();
            let descriptor = Some(descriptor);
            self.queues.push(QueueSocket { shared: shared.clone(), descriptor });
            let offered = OfferedQueue { interface, socket, watched, shared };
            // A shard ends only with the process.
            let _ = shards[shard].send(QueueChange::Add(Box::new(offered)));
        }
        Ok(())
    }

    /// Tells the shards the MTU of the interface, which may have changed.
    pub(super) fn set_mtu(&self, mtu: usize) {
        self.queues.iter().for_each(|queue| queue.shared.mtu.store(mtu, Ordering::Relaxed));
    }

    /// Has the program redirect to the sockets that shards serve since the last call.
    pub(super) fn redirect(&mut self, filter: &mut Filter) -> Result<(), XdpError> {
        for (queue, socket) in self.queues.iter_mut().enumerate() {
            if socket.shared.is_served.load(Ordering::Acquire)
                && let Some(descriptor) = &socket.descriptor
            {
                filter.set_socket(self.number, queue as u32, descriptor.as_fd())?;
                socket.descriptor = None;
            }
        }
        Ok(())
    }

    /// Has the program pass all requests, and the shards close the sockets.
    pub(super) fn close(&mut self, filter: &mut Filter, shards: &[Sender<QueueChange>]) {
        if !self.queues.is_empty() {
            filter.remove_sockets(self.number);
            for shard in shards {
                let _ = shard.send(QueueChange::Remove(self.number));
            }
        }
        *self = Self::new(self.number);
    }
}
