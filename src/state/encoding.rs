//! Records as bytes.

use super::format::{flag, tag};
use std::net::IpAddr;
use tsubame_storage::{
    ChangeKind, Endpoint, Family, InfoHash, PeerRecord, Role, StateRecord, TorrentRecord,
};

/// Appends records as a payload. The first one must not be a peer. Ages are counted from `now`, on the clock of the
/// records; later times have the age 0.
pub fn encode_records(records: &[StateRecord], now: i64, bytes: &mut Vec<u8>) {
    for (at, record) in records.iter().enumerate() {
        match record {
            StateRecord::Torrent(torrent) => {
                let peers = records[at + 1..].iter();
                let peers = peers.take_while(|record| matches!(record, StateRecord::Peer(_)));
                bytes.push(tag::TORRENT);
                bytes.extend_from_slice(&torrent.info_hash.0);
                encode_number(torrent.completed.into(), bytes);
                encode_number(age(now, torrent.used_at), bytes);
                encode_number(peers.count() as u64, bytes);
            }
            StateRecord::Peer(peer) => encode_peer(peer, now, bytes),
            StateRecord::Change(info_hash, kind, peer) => {
                bytes.push(match kind {
                    ChangeKind::Joined => tag::JOINED,
                    ChangeKind::Refreshed => tag::REFRESHED,
                    ChangeKind::Completed => tag::COMPLETED,
                    ChangeKind::Stopped => tag::STOPPED,
                });
                bytes.extend_from_slice(&info_hash.0);
                encode_peer(peer, now, bytes);
            }
        }
    }
}

fn age(now: i64, time: i64) -> u64 {
    u64::try_from(now.saturating_sub(time)).unwrap_or(0)
}

fn encode_peer(peer: &PeerRecord, now: i64, bytes: &mut Vec<u8>) {
    let role = match peer.role {
        Role::Seeder => 0,
        Role::Leecher => 1,
        Role::PartialSeed => 2,
    };
    let counted = if peer.is_counted { flag::COUNTED } else { 0 };
    let family = if peer.endpoint.family() == Family::V6 { flag::V6 } else { 0 };
    let remote = if peer.is_remote { flag::REMOTE } else { 0 };
    bytes.push(role | counted | family | remote);
    encode_number(age(now, peer.announced_at), bytes);
    match peer.endpoint.address() {
        IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
    }
    bytes.extend_from_slice(&peer.endpoint.port().to_be_bytes());
}

/// Appends a number in LEB128.
pub(super) fn encode_number(mut number: u64, bytes: &mut Vec<u8>) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Decodes a payload and appends its records. Times are `now` less the age. Returns false if there is an invalid
/// record; those before the first invalid one were appended.
pub fn decode_records(payload: &[u8], now: i64, records: &mut Vec<StateRecord>) -> bool {
    decode(payload, now, records).is_some()
}

fn decode(payload: &[u8], now: i64, records: &mut Vec<StateRecord>) -> Option<()> {
    let mut input = Input(payload);
    while !input.0.is_empty() {
        let tag = input.byte()?;
        let info_hash = InfoHash(input.array()?);
        let kind = match tag {
            tag::TORRENT => {
                let completed = u32::try_from(input.number()?).ok()?;
                let used_at = input.time(now)?;
                let torrent = TorrentRecord { info_hash, completed, used_at };
                records.push(StateRecord::Torrent(torrent));
                for _ in 0..input.number()? {
                    records.push(StateRecord::Peer(input.peer(now)?));
                }
                continue;
            }
            tag::JOINED => ChangeKind::Joined,
            tag::REFRESHED => ChangeKind::Refreshed,
            tag::COMPLETED => ChangeKind::Completed,
            tag::STOPPED => ChangeKind::Stopped,
            _ => return None,
        };
        records.push(StateRecord::Change(info_hash, kind, input.peer(now)?));
    }
    Some(())
}

/// Bytes that have not been decoded yet.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// Decodes a number in LEB128.
    pub(super) fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn time(&mut self, now: i64) -> Option<i64> {
        let age = i64::try_from(self.number()?).ok()?;
        Some(now.saturating_sub(age))
    }

    fn peer(&mut self, now: i64) -> Option<PeerRecord> {
        let flags = self.byte()?;
        if flags & !flag::ALL != 0 {
            return None;
        }
        let role = match flags & flag::ROLE {
            0 => Role::Seeder,
            1 => Role::Leecher,
            2 => Role::PartialSeed,
            _ => return None,
        };
        let announced_at = self.time(now)?;
        let address = match flags & flag::V6 {
            0 => IpAddr::from(self.array::<4>()?),
            _ => IpAddr::from(self.array::<16>()?),
        };
        let port = u16::from_be_bytes(self.array()?);
        let endpoint = Endpoint::new(address, port);
        let is_counted = flags & flag::COUNTED != 0;
        let is_remote = flags & flag::REMOTE != 0;
        Some(PeerRecord { endpoint, role, is_counted, is_remote, announced_at })
    }
}
