//! HTTP and HTTPS test client (BEP 3, 7, 23, 48): one connection per request, as most clients do.

use super::client::{
    AnnounceResult, E2eError, E2eEvent, REPLY_TIMEOUT, ScrapeResult, TestClient, expect, info_hash,
};
use crate::http::paths::PathPattern;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use tsubame_http::bencode::Value;
use tsubame_storage::Endpoint;

/// Maximum size in bytes of a response: 200 peers of each family together take about 5 KiB.
const REPLY_LEN_MAX: u64 = 1 << 20;

pub(super) struct HttpTestClient {
    tracker: SocketAddr,
    authority: String,
    announce_path: String,
    info_hash: [u8; 20],
    /// Name in the certificate, and the TLS settings.
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
}

impl HttpTestClient {
    /// Creates a client for a tracker at a path; an empty path is `/announce`.
    pub(super) fn new(
        tracker: SocketAddr,
        scheme: &str,
        (authority, path): (&str, &str),
        entropy: u64,
    ) -> Result<Self, E2eError> {
        let path = match path {
            "" => "/announce".to_owned(),
            query if query.starts_with('?') => format!("/announce{query}"),
            path => path.to_owned(),
        };
        let tls = match scheme {
            "https" => Some(tls(authority).map_err(|error| E2eError::Tls(tracker, error))?),
            _ => None,
        };
        Ok(Self {
            tracker,
            authority: authority.to_owned(),
            announce_path: path,
            info_hash: info_hash(entropy),
            tls,
        })
    }

    /// Sends a request and returns the body of the response.
    fn get(&self, target: &str, what: &'static str) -> Result<Vec<u8>, E2eError> {
        let request = format!(
            "GET {target} HTTP/1.0\r\nHost: {}\r\nUser-Agent: tsubame-e2e\r\n\r\n",
            self.authority
        );
        let send_request = || {
            let stream = TcpStream::connect_timeout(&self.tracker, REPLY_TIMEOUT)?;
            stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
            match &self.tls {
                None => exchange(stream, request.as_bytes()),
                Some((name, config)) => {
                    let session = ClientConnection::new(config.clone(), name.clone());
                    let session = session.map_err(io::Error::other)?;
                    exchange(StreamOwned::new(session, stream), request.as_bytes())
                }
            }
        };
        let reply = send_request().map_err(|error: io::Error| match error.kind() {
            // The TLS library reports protocol errors of the server as this kind.
            io::ErrorKind::InvalidData => E2eError::Tls(self.tracker, error.to_string()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                E2eError::NoReply(self.tracker, what)
            }
            _ => E2eError::Socket(self.tracker, error),
        })?;
        self.body_of(reply, what)
    }

    fn body_of(&self, reply: Vec<u8>, what: &'static str) -> Result<Vec<u8>, E2eError> {
        let wrong = |why: String| E2eError::InvalidReply(self.tracker, what, why);
        let end = reply.windows(4).position(|four| four == b"\r\n\r\n");
        let end =
            end.ok_or_else(|| wrong(format!("{} bytes without the end of the head", reply.len())))?;
        let head = String::from_utf8_lossy(&reply[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(wrong(format!(
                "{status:?}, but clients read the body only with status 200"
            )));
        }
        let body = reply[end + 4..].to_vec();
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().to_owned())
        });
        // A proxy may omit the length and close the connection instead.
        if length.is_some() && length.as_deref() != Some(body.len().to_string().as_str()) {
            return Err(wrong(format!(
                "the body has {} bytes, but Content-Length is {length:?}",
                body.len()
            )));
        }
        Ok(body)
    }

    /// Parses a body as a dictionary without `failure reason`.
    fn read<'a>(&self, body: &'a [u8], what: &'static str) -> Result<Value<'a>, E2eError> {
        let shown = || body.escape_ascii().to_string();
        let value = Value::parse(body).map_err(|error| {
            E2eError::InvalidReply(self.tracker, what, format!("the bencode {error}: {}", shown()))
        })?;
        match value.get("failure reason").and_then(Value::bytes) {
            Some(reason) => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                Err(E2eError::Refused(self.tracker, what, reason))
            }
            None => Ok(value),
        }
    }

    /// Returns the value of a mandatory integer key.
    fn number(&self, value: &Value<'_>, key: &str, what: &'static str) -> Result<u32, E2eError> {
        let number = value.get(key).and_then(Value::integer);
        number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
            E2eError::InvalidReply(self.tracker, what, format!("no number for {key:?}"))
        })
    }

    fn escaped_info_hash(&self) -> String {
        self.info_hash.iter().map(|byte| format!("%{byte:02X}")).collect()
    }
}

/// Sends a request and reads until the connection is closed.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    let mut reply = Vec::new();
    stream.take(REPLY_LEN_MAX).read_to_end(&mut reply)?;
    Ok(reply)
}

/// Returns TLS settings for a host, with the root certificates of this machine.
fn tls(authority: &str) -> Result<(ServerName<'static>, Arc<ClientConfig>), String> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((name, Arc::new(config)))
}

/// Adds a parameter to a request target.
fn with(target: &str, parameters: &str) -> String {
    let separator = if target.contains('?') { '&' } else { '?' };
    format!("{target}{separator}{parameters}")
}

impl TestClient for HttpTestClient {
    fn tracker(&self) -> SocketAddr {
        self.tracker
    }

    fn prepare(&mut self) -> Result<Option<String>, E2eError> {
        Ok(None)
    }

    fn announce(
        &mut self,
        port: u16,
        event: E2eEvent,
        left: u64,
    ) -> Result<AnnounceResult, E2eError> {
        let event = match event {
            E2eEvent::Started => "started",
            E2eEvent::Stopped => "stopped",
        };
        let parameters = format!(
            "info_hash={}&peer_id=-TS0001-e2e-{port:08}&port={port}&uploaded=0&downloaded=0&left={left}\
             &event={event}&compact=1&numwant=50",
            self.escaped_info_hash()
        );
        let body = self.get(&with(&self.announce_path, &parameters), "announce")?;
        let reply = self.read(&body, "announce")?;
        let compact = |key: &str, len: usize| -> Result<Vec<Endpoint>, E2eError> {
            let bytes = reply.get(key).and_then(Value::bytes);
            let bytes = bytes.or((key == "peers6").then_some(&[])).ok_or_else(|| {
                E2eError::InvalidReply(self.tracker, "announce", format!("no compact {key}"))
            })?;
            expect(self.tracker, bytes.len() % len == 0, "announce", || {
                format!("{} bytes of {key}, which is not a multiple of {len}", bytes.len())
            })?;
            Ok(bytes.chunks(len).filter_map(Endpoint::from_compact).collect())
        };
        let mut peers = compact("peers", 6)?;
        peers.extend(compact("peers6", 18)?);
        let number = |key| self.number(&reply, key, "announce");
        Ok(AnnounceResult {
            interval: number("interval")?,
            leechers: number("incomplete")?,
            seeders: number("complete")?,
            peers,
        })
    }

    fn scrape(&mut self) -> Result<ScrapeResult, E2eError> {
        let (path, query) = self.announce_path.split_once('?').unwrap_or((&self.announce_path, ""));
        let path =
            PathPattern::parse(path).ok().and_then(|path| path.scrape()).ok_or_else(|| {
                let why = format!(
                    "{path:?} has no scrape path: its last segment is not announce (BEP 48)"
                );
                E2eError::InvalidReply(self.tracker, "scrape", why)
            })?;
        let target = if query.is_empty() { path.to_string() } else { format!("{path}?{query}") };
        let info_hash = format!("info_hash={}", self.escaped_info_hash());
        let body = self.get(&with(&target, &info_hash), "scrape")?;
        let reply = self.read(&body, "scrape")?;
        let files = reply.get("files");
        let rows = match files {
            Some(Value::Dictionary(rows)) => rows.as_slice(),
            _ => &[],
        };
        let row = rows.iter().find(|(name, _)| *name == self.info_hash).map(|(_, row)| row);
        let row = row.ok_or_else(|| {
            E2eError::InvalidReply(self.tracker, "scrape", "the torrent is missing".to_owned())
        })?;
        let number = |key| self.number(row, key, "scrape");
        Ok(ScrapeResult {
            seeders: number("complete")?,
            completed: number("downloaded")?,
            leechers: number("incomplete")?,
        })
    }
}
