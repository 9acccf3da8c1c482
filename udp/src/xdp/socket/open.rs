//! Creates AF_XDP sockets, and explains what is missing if that fails.

use super::mapping::Mapping;
use super::shared_ring::{Consumer, Producer};
use crate::locked_memory::locked_memory_limit;
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_send_buffer_size, set_socket_send_buffer_size_force, set_xdp_rx_ring_size,
    set_xdp_tx_ring_size, set_xdp_umem_completion_ring_size, set_xdp_umem_fill_ring_size,
    set_xdp_umem_reg, xdp_mmap_offsets, xdp_options,
};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpOptionsFlags, XdpUmemReg,
    XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use thiserror::Error;

/// Bytes of a buffer. The kernel requires 2,048 or 4,096, and leaves the first 256 free.
pub(super) const BUFFER_BYTES: usize = 2048;

/// Number of buffers of a socket.
pub(super) const BUFFERS: usize = 4096;

/// Number of places of each ring between a socket and the kernel.
pub(super) const RING_LEN: u32 = 2048;

/// Bytes of replies that may be in flight in copy mode, as the kernel counts them.
const SEND_BUFFER: usize = 8 << 20;

/// Reason for which a receive queue cannot have an AF_XDP socket.
#[derive(Debug, Error)]
pub enum QueueProblem {
    /// The process may not create AF_XDP sockets.
    #[error("no permission; grant CAP_NET_RAW (docs/xdp.md has a drop-in for the unit)")]
    Forbidden,
    /// The kernel has no such sockets, or the unit does not permit them.
    #[error(
        "AF_XDP is not supported; use a kernel with CONFIG_XDP_SOCKETS, and permit AF_XDP in RestrictAddressFamilies \
         (docs/xdp.md has a drop-in for the unit)"
    )]
    NoFamily,
    /// The limit on locked memory is too low; contains the limit.
    #[error(
        "the kernel refuses {size} MiB of memory; raise the limit on locked memory (now {0}): set \
         LimitMEMLOCK=infinity in the systemd unit, run ulimit -l unlimited, or grant CAP_IPC_LOCK",
        size = (BUFFERS * BUFFER_BYTES) >> 20
    )]
    Memory(String),
    /// Another socket is bound to the queue.
    #[error("another program has an AF_XDP socket there; stop it")]
    Busy,
    /// The driver does not support zero copy, or not with the MTU of the interface.
    #[error(
        "its driver does not support zero copy (or needs a smaller MTU for it); set udp.xdp.zero_copy to auto"
    )]
    NoZeroCopy,
    /// The interface has no such queue, or does not support AF_XDP.
    #[error("the interface has no such receive queue, or does not support AF_XDP")]
    NoQueue,
    /// Frames of the queue could not be answered: there is no transmit queue with its number.
    #[error("the interface has fewer transmit queues; give it as many (ethtool -L)")]
    NoTransmitQueue,
    /// The program runs in the network stack, where zero copy is impossible.
    #[error(
        "zero copy is impossible in generic mode; set udp.xdp.zero_copy to auto, or use a driver with native mode"
    )]
    GenericMode,
    /// Another error; contains the step that failed.
    #[error("cannot {0}: {1}")]
    Failed(&'static str, #[source] io::Error),
}

/// What a socket is made of.
pub(super) struct OpenedSocket {
    pub(super) descriptor: OwnedFd,
    pub(super) umem: Mapping,
    pub(super) rx: Consumer<XdpDesc>,
    pub(super) tx: Producer<XdpDesc>,
    pub(super) fill: Producer<u64>,
    pub(super) completion: Consumer<u64>,
    pub(super) is_zero_copy: bool,
}

/// Creates a socket for a receive queue; without a choice of `zero_copy`, the driver decides.
pub(super) fn open(
    interface: u32,
    queue: u32,
    zero_copy: Option<bool>,
) -> Result<OpenedSocket, QueueProblem> {
    let descriptor = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None);
    let descriptor = descriptor.map_err(explain("create a socket"))?;
    let socket = descriptor.as_fd();
    if set_socket_send_buffer_size_force(socket, SEND_BUFFER).is_err() {
        // The limit of the kernel is lower; so is the rate of replies.
        let _ = set_socket_send_buffer_size(socket, SEND_BUFFER);
    }
    let failed = |what| move |error: io::Error| QueueProblem::Failed(what, error);
    let umem = Mapping::anonymous(BUFFERS * BUFFER_BYTES).map_err(failed("allocate memory"))?;
    let registration = XdpUmemReg {
        addr: umem.address(),
        len: (BUFFERS * BUFFER_BYTES) as u64,
        chunk_size: BUFFER_BYTES as u32,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    set_xdp_umem_reg(socket, registration).map_err(explain("register memory"))?;
    let set_sizes = || {
        set_xdp_umem_fill_ring_size(socket, RING_LEN)?;
        set_xdp_umem_completion_ring_size(socket, RING_LEN)?;
        set_xdp_rx_ring_size(socket, RING_LEN)?;
        set_xdp_tx_ring_size(socket, RING_LEN)?;
        xdp_mmap_offsets(socket)
    };
    let offsets = set_sizes().map_err(explain("create its rings"))?;
    let map_rings = || {
        io::Result::Ok((
            Consumer::map(socket, RING_LEN, XDP_PGOFF_RX_RING, &offsets.rx)?,
            Producer::map(socket, RING_LEN, XDP_PGOFF_TX_RING, &offsets.tx)?,
            Producer::map(socket, RING_LEN, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr)?,
            Consumer::map(socket, RING_LEN, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr)?,
        ))
    };
    let (rx, tx, fill, completion) = map_rings().map_err(failed("map its rings"))?;
    let mode = match zero_copy {
        Some(true) => SocketAddrXdpFlags::XDP_ZEROCOPY,
        Some(false) => SocketAddrXdpFlags::XDP_COPY,
        None => SocketAddrXdpFlags::empty(),
    };
    let address =
        SocketAddrXdp::new(mode | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP, interface, queue);
    bind(socket, &address).map_err(|error| match error {
        Errno::OPNOTSUPP | Errno::INVAL if zero_copy == Some(true) => QueueProblem::NoZeroCopy,
        Errno::OPNOTSUPP | Errno::INVAL => QueueProblem::NoQueue,
        error => explain("bind its socket")(error),
    })?;
    let options = xdp_options(socket).map_err(explain("read its options"))?;
    let is_zero_copy = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
    Ok(OpenedSocket { umem, rx, tx, fill, completion, is_zero_copy, descriptor })
}

/// Converts an error of the kernel to its probable cause; `what` is the step that failed.
fn explain(what: &'static str) -> impl Fn(Errno) -> QueueProblem {
    move |error| match error {
        Errno::PERM | Errno::ACCESS => QueueProblem::Forbidden,
        Errno::AFNOSUPPORT => QueueProblem::NoFamily,
        Errno::NOBUFS | Errno::NOMEM => QueueProblem::Memory(locked_memory_limit()),
        Errno::BUSY => QueueProblem::Busy,
        error => QueueProblem::Failed(what, error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_cause_and_the_cure() {
        for (error, words) in [
            (Errno::PERM, ["CAP_NET_RAW", "permission"]),
            (Errno::AFNOSUPPORT, ["CONFIG_XDP_SOCKETS", "RestrictAddressFamilies"]),
            (Errno::NOBUFS, ["8 MiB", "LimitMEMLOCK"]),
            (Errno::BUSY, ["another program", "stop it"]),
            (Errno::IO, ["cannot bind", "error"]),
        ] {
            let text = explain("bind")(error).to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }
}
