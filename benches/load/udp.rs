//! The client side of the UDP tracker protocol (BEP 15).
//!
//! It does not use the tracker's own wire code, because an error of that code would then remain unnoticed.

use crate::protocol::{LoadAnnounce, TrackerReply};

const MAGIC: u64 = 0x0417_2710_1980;
const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const SCRAPE: u32 = 2;
const ERROR: u32 = 3;

/// Writes a request field by field.
struct RequestWriter<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl RequestWriter<'_> {
    fn put(&mut self, field: &[u8]) -> &mut Self {
        self.bytes[self.len..][..field.len()].copy_from_slice(field);
        self.len += field.len();
        self
    }
}

/// Writes a connect; returns its length.
pub(crate) fn write_connect(bytes: &mut [u8], transaction: u32) -> usize {
    let mut writer = RequestWriter { bytes, len: 0 };
    writer.put(&MAGIC.to_be_bytes()).put(&CONNECT.to_be_bytes()).put(&transaction.to_be_bytes());
    writer.len
}

/// Writes an announce; returns its length.
pub(crate) fn write_announce(
    bytes: &mut [u8],
    connection_id: u64,
    transaction: u32,
    announce: &LoadAnnounce,
) -> usize {
    let mut writer = RequestWriter { bytes, len: 0 };
    writer
        .put(&connection_id.to_be_bytes())
        .put(&ANNOUNCE.to_be_bytes())
        .put(&transaction.to_be_bytes())
        .put(&announce.info_hash)
        .put(&announce.peer_id())
        .put(&0_u64.to_be_bytes())
        .put(&announce.left.to_be_bytes())
        .put(&0_u64.to_be_bytes())
        .put(&(announce.event as u32).to_be_bytes())
        .put(&[0; 4])
        .put(&announce.peer.to_be_bytes())
        .put(&announce.num_want.to_be_bytes())
        .put(&announce.port.to_be_bytes());
    writer.len
}

/// Writes a scrape; returns its length.
pub(crate) fn write_scrape(
    bytes: &mut [u8],
    connection_id: u64,
    transaction: u32,
    info_hashes: impl Iterator<Item = [u8; 20]>,
) -> usize {
    let mut writer = RequestWriter { bytes, len: 0 };
    writer.put(&connection_id.to_be_bytes()).put(&SCRAPE.to_be_bytes());
    writer.put(&transaction.to_be_bytes());
    info_hashes.for_each(|info_hash| _ = writer.put(&info_hash));
    writer.len
}

/// Parses a reply; returns its transaction id and the reply.
///
/// # Errors
///
/// Returns the problem of a reply that is malformed.
pub(crate) fn parse_reply(bytes: &[u8]) -> Result<(u32, TrackerReply<'_>), &'static str> {
    let word = |at: usize| {
        let field = bytes.get(at..at + 4).and_then(|field| field.first_chunk().copied());
        field.map(u32::from_be_bytes)
    };
    let (Some(action), Some(transaction)) = (word(0), word(4)) else { return Err("too short") };
    let reply = match action {
        CONNECT => {
            let id: &[u8; 8] =
                bytes.get(8..).and_then(|id| id.try_into().ok()).ok_or("wrong length")?;
            TrackerReply::Connect { connection_id: u64::from_be_bytes(*id) }
        }
        ANNOUNCE => {
            let (Some(interval), Some(leechers), Some(seeders)) = (word(8), word(12), word(16))
            else {
                return Err("wrong length");
            };
            TrackerReply::Announce {
                interval,
                leechers,
                seeders,
                peers: &bytes[20..],
                other_family: &[],
            }
        }
        SCRAPE => match bytes[8..].as_chunks() {
            (rows, []) => TrackerReply::Scrape { rows },
            _ => return Err("wrong length"),
        },
        ERROR => TrackerReply::Error,
        _ => return Err("unknown action"),
    };
    Ok((transaction, reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::LoadEvent;
    use tsubame_storage::{AnnounceEvent, InfoHash};
    use tsubame_udp::wire::{AnnounceReply, TransactionId, UdpRequest};

    #[test]
    fn written_requests_are_parsed_by_the_tracker() {
        let mut bytes = [0; 128];
        let len = write_connect(&mut bytes, 7);
        let Ok(UdpRequest::Connect(connect)) = UdpRequest::parse(&bytes[..len]) else { panic!() };
        assert_eq!(connect.transaction_id(), TransactionId(7_u32.to_be_bytes()));
        let announce = LoadAnnounce {
            info_hash: [3; 20],
            peer: 4,
            left: 5,
            event: LoadEvent::Stopped,
            num_want: -1,
            port: 6,
        };
        let len = write_announce(&mut bytes, 1, 2, &announce);
        assert_eq!(len, 98);
        let Ok(UdpRequest::Announce(read)) = UdpRequest::parse(&bytes[..len]) else { panic!() };
        assert_eq!((read.connection_id(), read.info_hash()), (1, InfoHash([3; 20])));
        assert_eq!((read.left(), read.event(), read.port()), (5, AnnounceEvent::Stopped, 6));
        assert_eq!((read.num_want(), read.ip()), (None, None));
        let len = write_scrape(&mut bytes, 1, 2, [[8; 20], [9; 20]].into_iter());
        let Ok(UdpRequest::Scrape(read)) = UdpRequest::parse(&bytes[..len]) else { panic!() };
        assert!(read.info_hashes().eq([InfoHash([8; 20]), InfoHash([9; 20])]));
    }

    #[test]
    fn replies_of_the_tracker_are_parsed() {
        let mut bytes = [0; 64];
        let mut reply = AnnounceReply::begin(&mut bytes).unwrap();
        reply.peers()[..6].copy_from_slice(b"peer-1");
        let counts = tsubame_storage::SwarmCounts { seeders: 1, leechers: 2, completed: 3 };
        let len = reply.finish(TransactionId([0, 0, 0, 9]), 1800, counts, 6);
        let (peers, other_family) = (&b"peer-1"[..], &[][..]);
        let expected =
            TrackerReply::Announce { interval: 1800, leechers: 2, seeders: 1, peers, other_family };
        assert_eq!(parse_reply(&bytes[..len]), Ok((9, expected)));
        let id = [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5];
        assert_eq!(parse_reply(&id), Ok((9, TrackerReply::Connect { connection_id: 5 })));
        assert_eq!(parse_reply(&id[..15]), Err("wrong length"));
        assert_eq!(parse_reply(&[0, 0, 0, 2, 0, 0, 0, 9, 1]), Err("wrong length"));
        assert_eq!(parse_reply(&[0, 0, 0, 3, 0, 0, 0, 9]), Ok((9, TrackerReply::Error)));
        assert_eq!(parse_reply(&[1; 9]), Err("unknown action"));
        assert_eq!(parse_reply(&[1; 7]), Err("too short"));
    }
}
