//! The operations of a ring that receive and send datagrams, and the memory that they point to.

#![expect(unsafe_code, reason = "memory handed to the kernel")]

use super::memory::{REPLY_LEN_MAX, ReplySlot};
use super::packet::{self, CONTROL_LEN, NAME_LEN_MAX};
use super::socket::UdpSocket;
use io_uring::types::Fixed;
use io_uring::{opcode, squeue};
use std::net::{IpAddr, SocketAddr};
use std::ptr::NonNull;

/// Returns the header of a multishot receive, which defines the space for the source address and control messages.
pub(super) fn receive_message(socket: &UdpSocket) -> libc::msghdr {
    // SAFETY: a message header of zeros is valid: it has null pointers with lengths of zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_namelen = NAME_LEN_MAX as u32;
    message.msg_controllen = if socket.reports_local() { CONTROL_LEN } else { 0 };
    message
}

/// Destination of a reply.
pub(super) enum ReplyDestination {
    /// The source address as the kernel wrote it for the received datagram.
    Name(NonNull<u8>),
    /// An address, which is written into the slot.
    Address(SocketAddr),
}

/// Returns the operation that sends the first `len` bytes of a slot.
///
/// The operation never waits: if the send buffer is full, the reply is lost like a packet in the network, and its slot
/// is free again.
pub(super) fn reply_entry(
    mut slot: NonNull<ReplySlot>,
    to: ReplyDestination,
    socket: u16,
    len: usize,
    local: Option<(IpAddr, u32)>,
) -> squeue::Entry {
    // SAFETY: the caller has exclusive access to the slot; the reference ends before the kernel reads it.
    let slot = unsafe { slot.as_mut() };
    let (name, name_len) = match to {
        ReplyDestination::Name(name) => (name.as_ptr(), NAME_LEN_MAX as u32),
        ReplyDestination::Address(address) => {
            let len = packet::write_name(&mut slot.name, address);
            (slot.name.as_mut_ptr(), len)
        }
    };
    let fixed = Fixed(u32::from(socket));
    let len = len.min(REPLY_LEN_MAX);
    let Some((local, interface)) = local else {
        return opcode::Send::new(fixed, slot.reply.as_ptr(), len as u32)
            .dest_addr(name.cast())
            .dest_addr_len(name_len)
            .flags(libc::MSG_DONTWAIT)
            .build();
    };
    let control_len = packet::write_control(&mut slot.control, local, interface);
    slot.vector = libc::iovec { iov_base: slot.reply.as_mut_ptr().cast(), iov_len: len };
    slot.message.msg_name = name.cast();
    slot.message.msg_namelen = name_len;
    slot.message.msg_iov = &raw mut slot.vector;
    slot.message.msg_iovlen = 1;
    slot.message.msg_control = slot.control.as_mut_ptr().cast();
    slot.message.msg_controllen = control_len;
    opcode::SendMsg::new(fixed, &raw const slot.message).flags(libc::MSG_DONTWAIT as u32).build()
}
