//! The AF_XDP sockets of the receive queues of an interface, which shards serve.

use super::privileged::Deadline;
use crate::shard::xdp_datapath::{OfferedQueue, QueueChange};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use tsubame_udp::xdp::{Filter, FrameSocket, QueueProblem, XdpError};

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
    is_served: Arc<AtomicBool>,
    /// The socket, until the program redirects to it.
    descriptor: Option<OwnedFd>,
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

    /// Returns whether the driver shares its buffers with all sockets.
    pub(super) fn is_zero_copy(&self) -> bool {
        self.is_zero_copy && !self.queues.is_empty()
    }

    /// Creates a socket for each of `queues` receive queues that has none, and offers each to a shard: queues are
    /// distributed over the shards in turn. `mtu` is that of the interface.
    ///
    /// # Errors
    ///
    /// Returns an error, and creates none, if one of the queues cannot have a socket.
    pub(super) fn open(
        &mut self,
        (name, index): (&str, u32),
        (queues, mtu): (usize, usize),
        zero_copy: Option<bool>,
        (shards, deadline): (&[Sender<QueueChange>], Deadline),
    ) -> Result<(), XdpError> {
        if queues > tsubame_udp::xdp::QUEUES {
            return Err(XdpError::TooManyQueues(queues));
        }
        let sockets = (self.queues.len()..queues).map(|queue| {
            let socket = open_socket(index, queue as u32, zero_copy, deadline);
            let descriptor = socket.and_then(|socket| {
                let copy = socket.as_fd().try_clone_to_owned();
                let copy = copy.map_err(|error| QueueProblem::Failed("copy its socket", error))?;
                Ok((socket, copy))
            });
            let (interface, queue) = (name.to_owned(), queue as u32);
            descriptor.map_err(|problem| XdpError::Queue { interface, queue, problem })
        });
        for (socket, descriptor) in sockets.collect::<Result<Vec<_>, _>>()? {
            let (interface, is_served) = (self.number, Arc::<AtomicBool>::default());
            self.is_zero_copy &= socket.is_zero_copy();
            let shard = (usize::from(interface) + self.queues.len()) % shards.len();
            let descriptor = Some(descriptor);
            self.queues.push(QueueSocket { is_served: is_served.clone(), descriptor });
            let offered = OfferedQueue { interface, mtu, socket, is_served };
            // A shard ends only with the process.
            let _ = shards[shard].send(QueueChange::Add(Box::new(offered)));
        }
        Ok(())
    }

    /// Has the program redirect to the sockets that shards serve since the last call.
    pub(super) fn redirect(&mut self, filter: &mut Filter) -> Result<(), XdpError> {
        for (queue, socket) in self.queues.iter_mut().enumerate() {
            if socket.is_served.load(Ordering::Acquire)
                && let Some(descriptor) = socket.descriptor.take()
            {
                filter.set_socket(self.number, queue as u32, descriptor.as_fd())?;
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

/// Creates a socket. Until `deadline` it waits for the end of another one: the kernel frees the queue of a process a
/// moment after its end.
pub(super) fn open_socket(
    interface: u32,
    queue: u32,
    zero_copy: Option<bool>,
    deadline: Deadline,
) -> Result<FrameSocket, QueueProblem> {
    loop {
        match FrameSocket::open(interface, queue, zero_copy) {
            Err(QueueProblem::Busy) if !deadline.has_passed() => deadline.pause(),
            result => return result,
        }
    }
}
