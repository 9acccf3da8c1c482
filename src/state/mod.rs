//! The contents of swarm tables as bytes: a stream of blocks, which a snapshot keeps in a file.
//!
//! ```text
//! stream:  header, blocks, and a last block with the number of torrents and peers
//! header:  magic "TSUBAME\n" 8, version 4, zero 4, time of writing 8, zero 4, checksum 4
//! block:   magic "BLCK" 4, kind 1, zero 3, length of the payload 4, time 8, checksum of the payload 4,
//!          checksum of the 24 bytes before it 4, payload
//! payload: records
//! torrent: 0, info hash 20, completed downloads, age, number of peers, and for each of them:
//! peer:    flags 1, age, address 4 or 16, port 2
//! change:  1 joined, 2 announced again, 3 completed or 4 stopped, info hash 20, peer
//! ```
//!
//! Fixed integers are little-endian, but for ports, which are in network order. Completed downloads, ages and numbers
//! of peers are variable (LEB128). The time of a header or block is in seconds since 1970. An age is in seconds before
//! the time of its block. So a reader needs neither the clock nor the settings of the writer. The checksums are CRC-32.
//!
//! The module does no I/O: the reader reads from any [`std::io::Read`], the writer appends to a vector.

mod encoding;
mod format;
mod reader;
mod writer;

pub use encoding::{decode_records, encode_records};
pub use format::{BLOCK_RECORDS_MAX, VERSION};
pub use reader::{BlockReader, HeaderError, ReadCounts, StateBlock};
pub use writer::{StreamTotals, write_block, write_end, write_header};

#[cfg(test)]
mod tests;
