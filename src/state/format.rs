//! Constants of the format: see [`crate::state`].

/// Version of the format.
pub const VERSION: u32 = 1;

/// Maximum number of records of a block.
pub const BLOCK_RECORDS_MAX: usize = 16_384;

pub(super) const MAGIC: [u8; 8] = *b"TSUBAME\n";
pub(super) const HEADER_BYTES: usize = 32;

pub(super) const BLOCK_MAGIC: [u8; 4] = *b"BLCK";
pub(super) const BLOCK_HEADER_BYTES: usize = 28;

/// Maximum length of a payload.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Maximum length of a record: that of a change with an IPv6 peer and the longest age.
const RECORD_BYTES_MAX: usize = 1 + 20 + 1 + 10 + 18;

const _: () = assert!(BLOCK_RECORDS_MAX * RECORD_BYTES_MAX <= PAYLOAD_BYTES_MAX);

/// Kinds of blocks.
pub(super) mod kind {
    pub(crate) const RECORDS: u8 = 1;
    pub(crate) const END: u8 = 2;
}

/// First bytes of records.
pub(super) mod tag {
    pub(crate) const TORRENT: u8 = 0;
    pub(crate) const JOINED: u8 = 1;
    pub(crate) const REFRESHED: u8 = 2;
    pub(crate) const COMPLETED: u8 = 3;
    pub(crate) const STOPPED: u8 = 4;
}

/// Bits of the flags of a peer. The others are zero.
pub(super) mod flag {
    /// Mask of the role: 0 seeder, 1 leecher, 2 partial seed.
    pub(crate) const ROLE: u8 = 0b11;
    pub(crate) const COUNTED: u8 = 0b100;
    pub(crate) const V6: u8 = 0b1000;
    pub(crate) const REMOTE: u8 = 0b1_0000;
    /// All bits that are in use.
    pub(crate) const ALL: u8 = ROLE | COUNTED | V6 | REMOTE;
}
