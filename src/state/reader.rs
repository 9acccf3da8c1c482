//! Reads a stream block by block. What is damaged is passed over.

use super::encoding::{Input, decode_records};
use super::format::{
    BLOCK_HEADER_BYTES, BLOCK_MAGIC, HEADER_BYTES, MAGIC, PAYLOAD_BYTES_MAX, VERSION, kind,
};
use super::writer::StreamTotals;
use std::io::{self, Read};
use thiserror::Error;
use tsubame_storage::StateRecord;

/// Number of bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// Reason why a stream cannot be read at all.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It does not begin with a valid header.
    #[error("it is not a snapshot of Tsubame, or its first {HEADER_BYTES} bytes are damaged")]
    NotAStream,
    /// Its version is not supported.
    #[error("it has version {0} of the format; this version of Tsubame reads version {VERSION}")]
    Version(u32),
}

/// A block of records.
#[derive(Debug)]
pub struct StateBlock {
    /// The time from which the ages of the records are counted, in seconds since 1970.
    pub unix_secs: u64,
    payload: Vec<u8>,
}

impl StateBlock {
    /// Appends the records of the block. `now` is the time of the block on the clock of the records. Returns false if
    /// the block has invalid records; those before the first invalid one were appended.
    pub fn records(&self, now: i64, records: &mut Vec<StateRecord>) -> bool {
        decode_records(&self.payload, now, records)
    }
}

/// What was found in a stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Blocks that were returned.
    pub blocks: u64,
    /// Blocks whose payload was damaged, and which were passed over.
    pub damaged_blocks: u64,
    /// Bytes that belong to no block, and were passed over.
    pub skipped_bytes: u64,
    /// The contents of the last block; `None` while it was not found.
    pub totals: Option<StreamTotals>,
}

impl ReadCounts {
    /// Returns whether nothing is damaged or missing.
    pub fn is_intact(&self) -> bool {
        self.damaged_blocks == 0 && self.skipped_bytes == 0 && self.totals.is_some()
    }
}

/// Reads a stream. Holds little more than the largest block, and no more than the stream has.
#[derive(Debug)]
pub struct BlockReader<R> {
    source: R,
    /// Bytes that were read; those before `position` were used.
    buffer: Vec<u8>,
    position: usize,
    written_at: u64,
    counts: ReadCounts,
}

impl<R: Read> BlockReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// Returns an error if the stream cannot be read, or is none that this version can read.
    pub fn new(source: R) -> Result<Self, HeaderError> {
        let mut reader = Self {
            source,
            buffer: Vec::new(),
            position: 0,
            written_at: 0,
            counts: ReadCounts::default(),
        };
        let header = reader.peek(HEADER_BYTES)?.first_chunk::<HEADER_BYTES>();
        let header = header.copied().ok_or(HeaderError::NotAStream)?;
        if header[..8] != MAGIC || crc32fast::hash(&header[..28]) != u32_at(&header, 28) {
            return Err(HeaderError::NotAStream);
        }
        match u32_at(&header, 8) {
            VERSION => {}
            version => return Err(HeaderError::Version(version)),
        }
        reader.written_at = u64_at(&header, 16);
        reader.position = HEADER_BYTES;
        Ok(reader)
    }

    /// Returns the time at which the stream was begun, in seconds since 1970.
    pub fn written_at(&self) -> u64 {
        self.written_at
    }

    /// Returns what was found so far.
    pub fn counts(&self) -> ReadCounts {
        self.counts
    }

    /// Returns the next block of records, or `None` at the end.
    ///
    /// # Errors
    ///
    /// Returns an error if the source cannot be read.
    pub fn next_block(&mut self) -> io::Result<Option<StateBlock>> {
        loop {
            let header = self.peek(BLOCK_HEADER_BYTES)?;
            let Some(header) = header.first_chunk::<BLOCK_HEADER_BYTES>().copied() else {
                let rest = header.len();
                self.skip(rest);
                return Ok(None);
            };
            let Some((kind, len, unix_secs)) = parse_header(&header) else {
                self.find_block()?;
                continue;
            };
            let block = self.peek(BLOCK_HEADER_BYTES + len)?;
            let payload = block.get(BLOCK_HEADER_BYTES..).unwrap_or_default();
            if payload.len() < len {
                // The end is missing.
                let rest = block.len();
                self.counts.damaged_blocks += 1;
                self.position += rest;
                return Ok(None);
            }
            let is_intact = crc32fast::hash(payload) == u32_at(&header, 20);
            let payload = payload.to_vec();
            self.position += BLOCK_HEADER_BYTES + len;
            match kind {
                _ if !is_intact => self.counts.damaged_blocks += 1,
                kind::RECORDS => {
                    self.counts.blocks += 1;
                    return Ok(Some(StateBlock { unix_secs, payload }));
                }
                kind::END => match parse_totals(&payload) {
                    Some(totals) => self.counts.totals = Some(totals),
                    None => self.counts.damaged_blocks += 1,
                },
                _ => self.counts.damaged_blocks += 1,
            }
        }
    }

    /// Passes over bytes up to the next magic number of a block.
    fn find_block(&mut self) -> io::Result<()> {
        // The magic number at the present position belongs to a damaged header, or is none.
        self.skip(1);
        loop {
            let bytes = self.peek(READ_BYTES)?;
            let len = bytes.len();
            let found = bytes.windows(BLOCK_MAGIC.len()).position(|bytes| bytes == BLOCK_MAGIC);
            match found {
                Some(at) => {
                    self.skip(at);
                    return Ok(());
                }
                None if len < READ_BYTES => {
                    self.skip(len);
                    return Ok(());
                }
                // It may begin within the last bytes.
                None => self.skip(len - (BLOCK_MAGIC.len() - 1)),
            }
        }
    }

    fn skip(&mut self, count: usize) {
        self.position += count;
        self.counts.skipped_bytes += count as u64;
    }

    /// Returns `len` bytes from the present position, or fewer at the end. Reads them if necessary.
    fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.position < len {
            self.buffer.drain(..self.position);
            self.position = 0;
            while self.buffer.len() < len {
                // Memory is allocated as the bytes arrive: a damaged length must not allocate any.
                let wanted = READ_BYTES as u64;
                if self.source.by_ref().take(wanted).read_to_end(&mut self.buffer)? == 0 {
                    break;
                }
            }
        }
        let bytes = &self.buffer[self.position..];
        Ok(&bytes[..len.min(bytes.len())])
    }
}

/// Returns the kind of a block, the length of its payload and its time; `None` if the header is damaged.
fn parse_header(header: &[u8; BLOCK_HEADER_BYTES]) -> Option<(u8, usize, u64)> {
    let is_intact =
        header[..4] == BLOCK_MAGIC && crc32fast::hash(&header[..24]) == u32_at(header, 24);
    let len = u32_at(header, 8) as usize;
    (is_intact && len <= PAYLOAD_BYTES_MAX).then(|| (header[4], len, u64_at(header, 12)))
}

fn parse_totals(payload: &[u8]) -> Option<StreamTotals> {
    let mut input = Input(payload);
    let (torrents, peers, changes) = (input.number()?, input.number()?, input.number()?);
    input.0.is_empty().then_some(StreamTotals { torrents, peers, changes })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..].first_chunk().copied().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..].first_chunk().copied().unwrap_or_default())
}
