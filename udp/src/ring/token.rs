//! What a completion belongs to, packed into the 64 bits the kernel hands back.

/// An operation in flight
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Multishot receive on a socket
    Receive { socket: u16 },
    /// Reply to the datagram in a receive buffer
    Reply { buffer: u16 },
    /// Reply to a datagram another shard received
    Forward { slot: u16 },
    /// Cancellation of a receive
    Cancel,
}

const KIND_SHIFT: u32 = 32;

impl Token {
    pub(super) fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Receive { socket } => (1, socket),
            Self::Reply { buffer } => (2, buffer),
            Self::Forward { slot } => (3, slot),
            Self::Cancel => (4, 0),
        };
        kind << KIND_SHIFT | u64::from(index)
    }

    pub(super) fn unpack(packed: u64) -> Option<Self> {
        let index = packed as u16;
        match packed >> KIND_SHIFT {
            1 => Some(Self::Receive { socket: index }),
            2 => Some(Self::Reply { buffer: index }),
            3 => Some(Self::Forward { slot: index }),
            4 => Some(Self::Cancel),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back() {
        for token in [
            Token::Receive { socket: 3 },
            Token::Reply { buffer: u16::MAX },
            Token::Forward { slot: 0 },
            Token::Cancel,
        ] {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(0), None);
    }
}
