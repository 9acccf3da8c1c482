//! Ids of operations, packed into the 64 bits that the kernel returns with a completion.

/// Id of an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperationId {
    /// Multishot receive on a socket.
    Receive { socket: u16 },
    /// Reply to the datagram in a receive buffer.
    Reply { buffer: u16 },
    /// Reply to a datagram that another shard received.
    Forward { slot: u16 },
    /// Cancellation of a receive or a poll.
    Cancel,
    /// Poll of a watched descriptor.
    Watch { number: u16 },
}

/// Number of bits below the kind of an operation in a packed id.
const KIND_SHIFT: u32 = 32;

impl OperationId {
    /// Packs an id into 64 bits.
    pub(super) fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Receive { socket } => (1, socket),
            Self::Reply { buffer } => (2, buffer),
            Self::Forward { slot } => (3, slot),
            Self::Cancel => (4, 0),
            Self::Watch { number } => (5, number),
        };
        kind << KIND_SHIFT | u64::from(index)
    }

    /// Returns the id that was packed; `None` if there is none.
    pub(super) fn unpack(packed: u64) -> Option<Self> {
        let index = packed as u16;
        match packed >> KIND_SHIFT {
            1 => Some(Self::Receive { socket: index }),
            2 => Some(Self::Reply { buffer: index }),
            3 => Some(Self::Forward { slot: index }),
            4 => Some(Self::Cancel),
            5 => Some(Self::Watch { number: index }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_ids_are_unpacked() {
        for operation_id in [
            OperationId::Receive { socket: 3 },
            OperationId::Reply { buffer: u16::MAX },
            OperationId::Forward { slot: 0 },
            OperationId::Cancel,
            OperationId::Watch { number: 1 },
        ] {
            assert_eq!(OperationId::unpack(operation_id.pack()), Some(operation_id));
        }
        assert_eq!(OperationId::unpack(0), None);
    }
}
