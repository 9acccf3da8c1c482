//! One HTTP connection: reads requests and writes replies until the client, a limit or a timeout ends it.

use super::answer::{AfterAnswer, answer, refuse};
use super::connection_table::ConnectionState;
use super::full_scrape::{ContentCoding, LIST_TIMEOUT, ListingInterrupted, TorrentListing};
use super::full_scrape_limit::FullScrapePermit;
use super::service::{ConnectionGuard, HandshakePermit};
use super::tls::{Tls, TlsSession, TlsStreamError};

use crate::stats::outcome::Outcome;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;
use tsubame_http::head::{self, HEAD_LEN_MAX, HeadError};
use tsubame_http::proxy::{self, ProxyProtocol};
use tsubame_storage::Family;

/// Bytes of the input buffer of an idle connection. An announce has about 400 bytes.
const INPUT_LEN: usize = 1 << 10;

/// Maximum bytes of the list of all torrents that are written at once.
const PIECE_LEN: usize = 32 << 10;

/// Maximum bytes of a request body that are read and dropped before the connection is closed.
///
/// If the kernel closes a socket with unread bytes, it resets the connection, and the client may lose the reply.
const BODY_LEN_MAX: usize = 64 << 10;

/// Serves a connection until it ends.
pub(super) async fn serve(
    guard: ConnectionGuard,
    stream: Rc<TcpStream>,
    peer: SocketAddr,
    encrypted: bool,
) {
    let mut connection =
        Connection { guard, stream, input: Vec::new(), session: None, has_read_request: false };
    // The reason is not needed: requests and errors have been counted already.
    let _ = connection.run(peer.ip(), encrypted).await;
}

/// State of a connection.
struct Connection {
    guard: ConnectionGuard,
    stream: Rc<TcpStream>,
    /// Received bytes, decrypted, that have not been parsed yet.
    input: Vec<u8>,
    session: Option<TlsSession>,
    /// Whether the head of at least one request was read.
    has_read_request: bool,
}

/// Appends a piece of a body, as a chunk if the body has the chunked transfer coding.
fn write_piece(output: &mut Vec<u8>, piece: &[u8], chunked: bool) {
    if chunked {
        output.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
    }
    output.extend_from_slice(piece);
    if chunked {
        output.extend_from_slice(b"\r\n");
    }
}

/// Reason for which a connection ends.
enum ConnectionEnd {
    /// The client, a timeout or an error closed the connection.
    Closed,
    /// No further request is accepted, and all received bytes were read.
    Done,
    /// No further request is accepted, and unread bytes may follow, such as a request body.
    Unread,
}

impl Connection {
    async fn run(&mut self, peer: IpAddr, encrypted: bool) -> Result<(), ConnectionEnd> {
        let peer = self.client_address(peer).await?;
        if encrypted {
            // The bytes after the PROXY header come from the client and are encrypted.
            self.session = self.guard.service.tls.as_ref().and_then(Tls::session);
            let early = std::mem::take(&mut self.input);
            self.decrypt(early).await?;
        }
        let ended = self.answer_requests(peer).await;
        if let Err(ConnectionEnd::Done | ConnectionEnd::Unread) = ended {
            if let Some(session) = &mut self.session {
                let mut last = Vec::new();
                session.close(&mut last);
                self.write_plain(last).await?;
            }
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if let Err(ConnectionEnd::Unread) = ended {
            let mut unread = BODY_LEN_MAX;
            while unread > 0 {
                self.input.clear();
                self.read().await?;
                unread = unread.saturating_sub(self.input.len());
            }
        }
        ended
    }

    /// Answers requests until the connection ends.
    async fn answer_requests(&mut self, peer: IpAddr) -> Result<(), ConnectionEnd> {
        let mut requests = 0;
        let mut output = Vec::new();
        loop {
            let ended = self.answer_received(peer, &mut requests, &mut output).await;
            if !output.is_empty() {
                output = self.write(output).await?;
            }
            ended?;
            // An idle connection keeps no output buffer.
            let spare = std::mem::take(&mut output);
            self.guard.service.recycle(spare);
            self.read().await?;
            output = self.guard.service.buffer();
        }
    }

    /// Reads the PROXY header, if there is one; returns the address of the client if the peer is a trusted proxy.
    async fn client_address(&mut self, peer: IpAddr) -> Result<IpAddr, ConnectionEnd> {
        loop {
            match proxy::parse(&self.input) {
                ProxyProtocol::Absent => return Ok(peer),
                ProxyProtocol::Partial => self.read().await?,
                ProxyProtocol::Malformed => {
                    let family = Family::of(peer);
                    let mut node = self.guard.service.node();
                    node.count_request(family, Outcome::BrokenProxyHeader);
                    return Err(ConnectionEnd::Closed);
                }
                ProxyProtocol::Header { len, client } => {
                    self.input.drain(..len);
                    let is_trusted = self.guard.service.settings().trusts(peer.to_canonical());
                    return Ok(client.filter(|_| is_trusted).unwrap_or(peer));
                }
            }
        }
    }

    /// Answers all requests whose head has been received completely.
    async fn answer_received(
        &mut self,
        peer: IpAddr,
        requests: &mut u32,
        output: &mut Vec<u8>,
    ) -> Result<(), ConnectionEnd> {
        let service = self.guard.service.clone();
        let mut used = 0;
        let ended = loop {
            let rest = self.input.get(used..).unwrap_or_default();
            let (head, len) = match head::parse(rest) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => break Ok(()),
                Err(error) => {
                    let outcome = match error {
                        HeadError::Malformed => Outcome::BadRequest,
                        HeadError::TooLong => Outcome::HeadTooLong,
                    };
                    service.node().count_request(Family::of(peer), outcome);
                    refuse(output, error);
                    break Err(ConnectionEnd::Unread);
                }
            };
            self.guard.set_state(ConnectionState::Answering);
            self.has_read_request = true;
            *requests += 1;
            let requests_max = service.settings().requests_max;
            let last = *requests >= requests_max
                || head.has_body
                || !head.keep_alive
                || service.ends_connections();
            let Some(source) = service.source(peer, &head) else {
                break Err(ConnectionEnd::Closed);
            };
            let (chunked, has_body) = (head.accepts_chunked, head.has_body);
            used += len;
            let next = answer(&service, source, &head, !last, output).await;
            if let AfterAnswer::List(coding, permit) = next {
                let response_head = std::mem::take(output);
                match self.send_list(source, (coding, permit), response_head, chunked).await {
                    // Closed without an end marker, so that no client takes an incomplete list for a complete one.
                    Err(end) => break Err(end),
                    Ok(()) if !chunked => break Err(ConnectionEnd::Done),
                    Ok(()) => {}
                }
            }
            if last {
                let more = has_body || *requests >= requests_max;
                break Err(if more { ConnectionEnd::Unread } else { ConnectionEnd::Done });
            }
            // Written before the next request is parsed: a client that reads no replies cannot make the tracker write
            // more of them.
            if !output.is_empty() {
                let filled = std::mem::replace(output, service.buffer());
                *output = match self.write(filled).await {
                    Ok(emptied) => emptied,
                    Err(end) => break Err(end),
                };
            }
        };
        self.input.drain(..used);
        match ended {
            // Pipelined requests that are not answered count as unread bytes.
            Err(ConnectionEnd::Done) if !self.input.is_empty() => Err(ConnectionEnd::Unread),
            ended => ended,
        }
    }

    /// Sends a response head and the list of all torrents, within [`LIST_TIMEOUT`], and counts the outcome.
    async fn send_list(
        &mut self,
        source: IpAddr,
        (coding, permit): (ContentCoding, FullScrapePermit),
        head: Vec<u8>,
        chunked: bool,
    ) -> Result<(), ConnectionEnd> {
        let service = self.guard.service.clone();
        let listed = async {
            let listing = TorrentListing::new(permit, coding, service.helpers.clone());
            self.send_parts(
                listing.map_err(|ListingInterrupted| ConnectionEnd::Closed)?,
                head,
                chunked,
            )
            .await
        };
        let listed = tokio::time::timeout(LIST_TIMEOUT, listed).await;
        let listed = listed.unwrap_or(Err(ConnectionEnd::Closed));
        let outcome = match listed {
            Ok(()) => Outcome::FullScrape,
            Err(_) => Outcome::FullScrapeBroken,
        };
        service.node().count_request(Family::of(source), outcome);
        listed
    }

    /// Sends a response head and the list of all torrents, part by part.
    async fn send_parts(
        &mut self,
        mut listing: TorrentListing,
        head: Vec<u8>,
        chunked: bool,
    ) -> Result<(), ConnectionEnd> {
        let service = self.guard.service.clone();
        let mut output = self.write(head).await?;
        loop {
            self.guard.set_state(ConnectionState::Answering);
            let part =
                listing.next(&service).await.map_err(|ListingInterrupted| ConnectionEnd::Closed)?;
            // In pieces, so that other tasks run in between: copying or encrypting a whole part would block them.
            for piece in part.as_deref().unwrap_or_default().chunks(PIECE_LEN) {
                write_piece(&mut output, piece, chunked);
                output = self.write(output).await?;
            }
            if part.is_none() {
                if chunked {
                    output.extend_from_slice(b"0\r\n\r\n");
                    output = self.write(output).await?;
                }
                service.recycle(output);
                return Ok(());
            }
        }
    }

    /// Receives bytes and appends them, decrypted, to the input.
    async fn read(&mut self) -> Result<(), ConnectionEnd> {
        if self.session.is_none() {
            let input = std::mem::take(&mut self.input);
            self.input = self.receive(input).await?;
            return Ok(());
        }
        if self.input.is_empty() && self.input.capacity() > INPUT_LEN {
            self.input = Vec::new();
        }
        let before = self.input.len();
        while self.input.len() == before {
            if self.session.as_ref().is_some_and(|session| session.has_ended) {
                return Err(ConnectionEnd::Closed);
            }
            let ciphertext = self.receive(Vec::new()).await?;
            self.decrypt(ciphertext).await?;
        }
        Ok(())
    }

    /// Decrypts received bytes into the input, and sends what the TLS protocol itself must reply.
    async fn decrypt(&mut self, ciphertext: Vec<u8>) -> Result<(), ConnectionEnd> {
        let Some(session) = &mut self.session else { return Err(ConnectionEnd::Closed) };
        let mut output = Vec::new();
        // The number of waiting handshakes is limited: a flood of them must be refused, not queued.
        let handshake = match session.is_handshaking() {
            true => Some(HandshakePermit::acquire(&self.guard.service).ok_or_else(|| {
                self.guard.service.node().http_stats().evicted += 1;
                ConnectionEnd::Closed
            })?),
            false => None,
        };
        let processed = session.process_input(&ciphertext, &mut self.input, &mut output).await;
        if handshake.is_some() && !session.is_handshaking() {
            session.count_version(self.guard.service.node().http_stats());
        }
        drop(handshake);
        if !output.is_empty() {
            self.write_plain(output).await?;
        }
        processed.map_err(|TlsStreamError| {
            self.guard.service.node().http_stats().tls_failed += 1;
            ConnectionEnd::Closed
        })
    }

    /// Receives bytes and appends them to a buffer. An error or the end of the stream ends the connection.
    async fn receive(&self, mut input: Vec<u8>) -> Result<Vec<u8>, ConnectionEnd> {
        let len = input.len();
        // Before the first request, the request timeout applies and not the idle timeout.
        let is_idle = len == 0 && self.input.is_empty() && self.has_read_request;
        self.guard.set_state(if is_idle {
            ConnectionState::Idle
        } else {
            ConnectionState::Reading
        });
        if len == input.capacity() || input.capacity() < INPUT_LEN {
            let wanted = (len * 2).clamp(INPUT_LEN, HEAD_LEN_MAX);
            input.reserve_exact(wanted.saturating_sub(len));
        } else if len == 0 && input.capacity() > INPUT_LEN {
            input = Vec::with_capacity(INPUT_LEN);
        }
        let (result, input) = self.stream.read(input.slice(len..)).await;
        match result {
            Ok(received @ 1..) => {
                self.guard.service.node().http_stats().received_bytes += received as u64;
                Ok(input.into_inner())
            }
            Ok(0) | Err(_) => Err(ConnectionEnd::Closed),
        }
    }

    /// Writes all of the output, encrypted if the connection uses TLS; returns an empty buffer.
    async fn write(&mut self, mut output: Vec<u8>) -> Result<Vec<u8>, ConnectionEnd> {
        let Some(session) = &mut self.session else { return self.write_plain(output).await };
        let mut ciphertext = self.guard.service.buffer();
        session.encrypt(&output, &mut ciphertext).map_err(|_| ConnectionEnd::Closed)?;
        let ciphertext = self.write_plain(ciphertext).await?;
        self.guard.service.recycle(ciphertext);
        output.clear();
        Ok(output)
    }

    /// Writes bytes without encrypting them; returns the buffer, emptied.
    async fn write_plain(&self, output: Vec<u8>) -> Result<Vec<u8>, ConnectionEnd> {
        self.guard.set_state(ConnectionState::Writing);
        self.guard.service.node().http_stats().sent_bytes += output.len() as u64;
        let (result, mut output) = self.stream.write_all(output).await;
        output.clear();
        result.map(|()| output).map_err(|_| ConnectionEnd::Closed)
    }
}
