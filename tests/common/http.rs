//! A client that writes and parses HTTP itself.

use super::{WAIT_TIMEOUT, uninterrupted};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use tsubame_http::bencode::Value;

/// A connection. Bytes that were read beyond a reply are kept for the next one.
pub(crate) struct Connection<S = TcpStream> {
    pub(crate) stream: S,
    read: Vec<u8>,
}

/// A reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    pub(crate) fn to(tracker: SocketAddr) -> Self {
        let stream = TcpStream::connect(tracker).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        Self::over(stream)
    }
}

impl<S: Read + Write> Connection<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn get(&mut self, target: &str) -> Reply {
        self.get_with(target, "")
    }

    /// Sends a GET request with additional headers, each with its line end, and returns the reply.
    pub(crate) fn get_with(&mut self, target: &str, headers: &str) -> Reply {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: t.example\r\n{headers}\r\n").as_bytes());
        self.reply().expect("no reply")
    }

    /// Returns the next reply to a GET request, or `None` if the connection was closed.
    pub(crate) fn reply(&mut self) -> Option<Reply> {
        self.reply_to("GET")
    }

    pub(crate) fn reply_to(&mut self, method: &str) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more() {
                assert!(self.read.is_empty(), "an incomplete reply: {}", self.read.escape_ascii());
                return None;
            }
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = header(&head, "content-length").map(|length| length.parse().unwrap());
        let body = match length {
            _ if method == "HEAD" => Vec::new(),
            Some(length) => self.take(length),
            None if header(&head, "transfer-encoding").is_some() => self.chunks(),
            None => {
                while self.read_more() {}
                std::mem::take(&mut self.read)
            }
        };
        Some(Reply { status, head, body })
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(self.read_more(), "the body is incomplete");
        }
        self.read.drain(..length).collect()
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                match self.read.windows(2).position(|two| two == b"\r\n") {
                    Some(end) => break end,
                    None => assert!(self.read_more(), "the chunked body is incomplete"),
                }
            };
            let length = self.take(end + 2);
            let length = str::from_utf8(&length).unwrap().trim();
            let length = usize::from_str_radix(length, 16).unwrap();
            body.extend(self.take(length));
            assert_eq!(self.take(2), b"\r\n");
            if length == 0 {
                return body;
            }
        }
    }

    fn read_more(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        match uninterrupted(|| self.stream.read(&mut bytes)) {
            Ok(len) => {
                self.read.extend_from_slice(&bytes[..len]);
                len > 0
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns whether the tracker closed the connection without another reply.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.reply().is_none()
    }

    pub(crate) fn announce(&mut self, announce: &HttpAnnounce) -> HttpAnnounceReply {
        HttpAnnounceReply::of(&self.get(&announce.target()).body)
    }

    /// Returns the rows of a scrape, sorted by info hash: seeders, completed, leechers, downloaders.
    pub(crate) fn scrape(&mut self, info_hashes: &[[u8; 20]]) -> Vec<([u8; 20], [i64; 4])> {
        let query: Vec<_> =
            info_hashes.iter().map(|hash| format!("info_hash={}", escaped(hash))).collect();
        let body = self.get(&format!("/scrape?{}", query.join("&"))).body;
        rows_of(&body)
    }
}

/// Parses the rows of a scrape: seeders, completed, leechers, downloaders.
pub(crate) fn rows_of(body: &[u8]) -> Vec<([u8; 20], [i64; 4])> {
    let value =
        Value::parse(body).unwrap_or_else(|error| panic!("{error}: {}", body.escape_ascii()));
    let Some(Value::Dictionary(rows)) = value.get("files") else { panic!("no files: {value:?}") };
    let number = |row: &Value<'_>, key| row.get(key).and_then(Value::integer).unwrap();
    let read =
        |row| ["complete", "downloaded", "incomplete", "downloaders"].map(|key| number(row, key));
    rows.iter().map(|(hash, row)| ((*hash).try_into().unwrap(), read(row))).collect()
}

pub(crate) fn header(head: &str, name: &str) -> Option<String> {
    head.split("\r\n").find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

pub(crate) fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02x}")).collect()
}

/// An announce request.
#[derive(Clone, Debug)]
pub(crate) struct HttpAnnounce {
    pub(crate) info_hash: [u8; 20],
    pub(crate) port: u16,
    pub(crate) left: u64,
    /// Additional parameters, each with an ampersand before it.
    pub(crate) more: String,
}

impl HttpAnnounce {
    pub(crate) fn of(torrent: u32, port: u16, left: u64) -> Self {
        Self { info_hash: super::info_hash_of(torrent), port, left, more: String::new() }
    }

    pub(crate) fn with(&self, more: &str) -> Self {
        Self { more: format!("{}&{more}", self.more), ..self.clone() }
    }

    pub(crate) fn target(&self) -> String {
        let Self { info_hash, port, left, more } = self;
        format!(
            "/announce?info_hash={}&peer_id=-TT0001-abcdefghijkl&port={port}&uploaded=0&downloaded=0\
             &left={left}{more}",
            escaped(info_hash)
        )
    }
}

/// An announce reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HttpAnnounceReply {
    pub(crate) interval: i64,
    pub(crate) min_interval: i64,
    pub(crate) seeders: i64,
    pub(crate) completed: i64,
    pub(crate) leechers: i64,
    pub(crate) external_ip: Vec<u8>,
    pub(crate) peers: BTreeSet<(IpAddr, u16)>,
}

impl HttpAnnounceReply {
    /// Parses a body as strictly as any client does.
    pub(crate) fn of(body: &[u8]) -> Self {
        let value =
            Value::parse(body).unwrap_or_else(|error| panic!("{error}: {}", body.escape_ascii()));
        let number = |key| {
            value.get(key).and_then(Value::integer).unwrap_or_else(|| panic!("{key} in {value:?}"))
        };
        let mut all = Vec::new();
        match value.get("peers").expect("the key peers is required, even if it is empty") {
            Value::Bytes(compact) => {
                assert_eq!(compact.len() % 6, 0);
                all.extend(compact.chunks(6).map(super::peer_of));
            }
            Value::List(peers) => all.extend(peers.iter().map(|peer| {
                let ip = str::from_utf8(peer.get("ip").and_then(Value::bytes).unwrap()).unwrap();
                let port = peer.get("port").and_then(Value::integer).unwrap();
                (ip.parse().unwrap(), port.try_into().unwrap())
            })),
            other => panic!("peers are {other:?}"),
        }
        if let Some(compact) = value.get("peers6").and_then(Value::bytes) {
            assert_eq!(compact.len() % 18, 0);
            all.extend(compact.chunks(18).map(super::peer_of));
        }
        let peers: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(peers.len(), all.len(), "a peer was returned twice");
        Self {
            interval: number("interval"),
            min_interval: number("min interval"),
            seeders: number("complete"),
            completed: number("downloaded"),
            leechers: number("incomplete"),
            external_ip: value.get("external ip").and_then(Value::bytes).unwrap().to_vec(),
            peers,
        }
    }
}

/// Returns the failure reason of a reply.
pub(crate) fn failure(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "clients read the failure reason only with status 200");
    let value = Value::parse(&reply.body).unwrap();
    let reason = value.get("failure reason").and_then(Value::bytes).expect("a failure");
    String::from_utf8(reason.to_vec()).unwrap()
}
