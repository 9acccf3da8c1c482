//! UDP test client (BEP 15).

use super::client::{
    ATTEMPTS, AnnounceResult, E2eError, E2eEvent, REPLY_TIMEOUT, ScrapeResult, TestClient, expect,
    info_hash,
};
use std::net::{SocketAddr, UdpSocket};
use tsubame_storage::{Endpoint, Family};
use tsubame_udp::wire::{
    ACTION_ANNOUNCE, ACTION_CONNECT, ACTION_ERROR, ACTION_SCRAPE, ANNOUNCE_REPLY_LEN,
    CONNECT_REPLY_LEN, PROTOCOL_MAGIC, SCRAPE_REPLY_LEN, SCRAPE_ROW_LEN,
};

pub(super) struct UdpTestClient {
    tracker: SocketAddr,
    socket: UdpSocket,
    info_hash: [u8; 20],
    transactions: u32,
    connection_id: u64,
}

impl UdpTestClient {
    pub(super) fn new(tracker: SocketAddr, entropy: u64) -> Result<Self, E2eError> {
        let any: SocketAddr = match tracker {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
        };
        let open = || {
            let socket = UdpSocket::bind(any)?;
            // A connected socket drops replies from other addresses, as clients do.
            socket.connect(tracker)?;
            socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
            Ok(socket)
        };
        let socket = open().map_err(|error| E2eError::Socket(tracker, error))?;
        let info_hash = info_hash(entropy);
        Ok(Self { tracker, socket, info_hash, transactions: entropy as u32, connection_id: 0 })
    }

    /// Sends a request up to [`ATTEMPTS`] times, until its reply arrives; returns the reply.
    fn exchange(
        &mut self,
        id: u64,
        action: u32,
        body: &[u8],
        what: &'static str,
    ) -> Result<Vec<u8>, E2eError> {
        self.transactions = self.transactions.wrapping_add(1);
        let transaction = self.transactions;
        let mut request = id.to_be_bytes().to_vec();
        request.extend([action, transaction].map(u32::to_be_bytes).as_flattened());
        request.extend(body);
        let mut reply = vec![0; 65_536];
        for _ in 0..ATTEMPTS {
            self.socket.send(&request).map_err(|error| E2eError::Socket(self.tracker, error))?;
            while let Ok(len) = self.socket.recv(&mut reply) {
                if len < 8 || word_at(&reply, 1) != transaction {
                    continue;
                }
                reply.truncate(len);
                return match word_at(&reply, 0) {
                    ACTION_ERROR => {
                        let text = String::from_utf8_lossy(&reply[8..]).into_owned();
                        Err(E2eError::Refused(self.tracker, what, text))
                    }
                    received if received == action => Ok(reply),
                    other => Err(E2eError::InvalidReply(
                        self.tracker,
                        what,
                        format!("unexpected action {other}"),
                    )),
                };
            }
        }
        Err(E2eError::NoReply(self.tracker, what))
    }
}

impl TestClient for UdpTestClient {
    fn tracker(&self) -> SocketAddr {
        self.tracker
    }

    fn prepare(&mut self) -> Result<Option<String>, E2eError> {
        let reply = self.exchange(PROTOCOL_MAGIC, ACTION_CONNECT, &[], "connect")?;
        expect(self.tracker, reply.len() == CONNECT_REPLY_LEN, "connect", || {
            format!("{} bytes instead of 16", reply.len())
        })?;
        let id = reply.last_chunk().copied().map(u64::from_be_bytes).unwrap_or_default();
        expect(self.tracker, id != 0, "connect", || "connection id 0".to_owned())?;
        self.connection_id = id;
        Ok(Some(format!("connect   connection id {id:016x}")))
    }

    fn announce(
        &mut self,
        port: u16,
        event: E2eEvent,
        left: u64,
    ) -> Result<AnnounceResult, E2eError> {
        let event: u32 = match event {
            E2eEvent::Started => 2,
            E2eEvent::Stopped => 3,
        };
        let mut body = self.info_hash.to_vec();
        body.extend(*b"-TS0001-");
        body.extend([port.to_be_bytes(); 6].as_flattened());
        body.extend([0, left, 0].map(u64::to_be_bytes).as_flattened());
        body.extend([event, 0, u32::from(port), u32::MAX].map(u32::to_be_bytes).as_flattened());
        body.extend(port.to_be_bytes());
        let reply = self.exchange(self.connection_id, ACTION_ANNOUNCE, &body, "announce")?;
        let family = Family::of(self.tracker.ip());
        let peers = reply.get(ANNOUNCE_REPLY_LEN..).ok_or_else(|| {
            E2eError::InvalidReply(self.tracker, "announce", format!("only {} bytes", reply.len()))
        })?;
        let compact_len = family.compact_len();
        expect(self.tracker, peers.len() % compact_len == 0, "announce", || {
            format!("{} bytes of peers, which is not a multiple of {compact_len}", peers.len())
        })?;
        let word = |index| word_at(&reply, index);
        Ok(AnnounceResult {
            interval: word(2),
            leechers: word(3),
            seeders: word(4),
            peers: peers.chunks(compact_len).filter_map(Endpoint::from_compact).collect(),
        })
    }

    fn scrape(&mut self) -> Result<ScrapeResult, E2eError> {
        let body = self.info_hash;
        let reply = self.exchange(self.connection_id, ACTION_SCRAPE, &body, "scrape")?;
        expect(self.tracker, reply.len() == SCRAPE_REPLY_LEN + SCRAPE_ROW_LEN, "scrape", || {
            format!("{} bytes instead of 20", reply.len())
        })?;
        let word = |index| word_at(&reply, index);
        Ok(ScrapeResult { seeders: word(2), completed: word(3), leechers: word(4) })
    }
}

fn word_at(bytes: &[u8], index: usize) -> u32 {
    bytes.as_chunks::<4>().0.get(index).copied().map(u32::from_be_bytes).unwrap_or_default()
}
