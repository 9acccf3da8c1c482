//! One connection: requests in, replies out, until one side has enough.

use super::answer::{Rest, answer, refuse};
use super::full_scrape::{Coding, Interrupted, LIST_PATIENCE, Listing, Permit};
use super::roster::Doing;
use super::tls::{BadTls, Session, Tls};
use super::{Handshake, Seat};
use crate::outcome::Outcome;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;
use tsubame_http::head::{self, BadHead, HEAD_LEN_MAX};
use tsubame_http::proxy::{self, Proxied};
use tsubame_storage::Family;

/// Bytes that an idle connection has for its next request: announces are of some 400
const INPUT_LEN: usize = 1 << 10;

/// Bytes of replies to requests that came together, before they are written
pub(super) const OUTPUT_LEN: usize = 16 << 10;

/// Bytes of the list of all torrents that are written at once
const PIECE_LEN: usize = 32 << 10;

/// Bytes of a body that are thrown away before the connection is closed: were they left in the kernel, the end of
/// the connection would overtake the reply
const BODY_LEN_MAX: usize = 64 << 10;

/// Serves a connection until it ends
pub(super) async fn serve(seat: Seat, stream: Rc<TcpStream>, peer: SocketAddr, encrypted: bool) {
    let mut connection =
        Connection { seat, stream, input: Vec::new(), session: None, answered: false };
    // However it ends: there is nobody to tell, and what was served is counted.
    let _ = connection.run(peer.ip(), encrypted).await;
}

struct Connection {
    seat: Seat,
    stream: Rc<TcpStream>,
    /// What has arrived and is not yet used
    input: Vec<u8>,
    session: Option<Session>,
    /// Whether a request has been answered
    answered: bool,
}

fn write_piece(output: &mut Vec<u8>, piece: &[u8], chunked: bool) {
    if chunked {
        output.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
    }
    output.extend_from_slice(piece);
    if chunked {
        output.extend_from_slice(b"\r\n");
    }
}

/// Why a connection ends
enum End {
    /// The client, or whoever watches over connections, has closed it
    Closed,
    /// No further request is wanted
    Done,
    /// The same, and a body may be on its way
    Unread,
}

impl Connection {
    async fn run(&mut self, peer: IpAddr, encrypted: bool) -> Result<(), End> {
        let peer = self.proxied(peer).await?;
        if encrypted {
            // What follows the PROXY header is the client's, and encrypted.
            self.session = self.seat.service.tls.as_ref().and_then(Tls::session);
            let early = std::mem::take(&mut self.input);
            self.decrypt(early).await?;
        }
        let ended = self.requests(peer).await;
        if let Err(End::Done | End::Unread) = ended {
            if let Some(session) = &mut self.session {
                let mut last = Vec::new();
                session.close(&mut last);
                self.write_plain(last).await?;
            }
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if let Err(End::Unread) = ended {
            let mut unread = BODY_LEN_MAX;
            while unread > 0 {
                self.input.clear();
                self.read().await?;
                unread = unread.saturating_sub(self.input.len());
            }
        }
        ended
    }

    async fn requests(&mut self, peer: IpAddr) -> Result<(), End> {
        let mut requests = 0;
        let mut output = Vec::new();
        loop {
            let ended = self.answer_some(peer, &mut requests, &mut output).await;
            if !output.is_empty() {
                output = self.write(output).await?;
            }
            ended?;
            // Nothing is kept for a connection that is quiet.
            let spare = std::mem::take(&mut output);
            self.seat.service.give_back(spare);
            self.read().await?;
            output = self.seat.service.buffer();
        }
    }

    /// The address the client has, if a proxy in front of it tells
    async fn proxied(&mut self, peer: IpAddr) -> Result<IpAddr, End> {
        loop {
            match proxy::parse(&self.input) {
                Proxied::No => return Ok(peer),
                Proxied::Partial => self.read().await?,
                Proxied::Broken => {
                    let family = Family::of(peer);
                    let mut shard = self.seat.service.shard.borrow_mut();
                    shard.count_request(family, Outcome::BrokenProxyHeader);
                    return Err(End::Closed);
                }
                Proxied::Yes { len, client } => {
                    self.input.drain(..len);
                    let believed = self.seat.service.terms().trusts(peer.to_canonical());
                    return Ok(client.filter(|_| believed).unwrap_or(peer));
                }
            }
        }
    }

    /// Answers what has arrived whole, as far as the output has room
    async fn answer_some(
        &mut self,
        peer: IpAddr,
        requests: &mut u32,
        output: &mut Vec<u8>,
    ) -> Result<(), End> {
        let service = self.seat.service.clone();
        let mut used = 0;
        let ended = loop {
            let rest = self.input.get(used..).unwrap_or_default();
            let (head, len) = match head::parse(rest) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => break Ok(()),
                Err(bad) => {
                    let outcome = match bad {
                        BadHead::Malformed => Outcome::BadRequest,
                        BadHead::TooLong => Outcome::HeadTooLong,
                    };
                    service.shard.borrow_mut().count_request(Family::of(peer), outcome);
                    refuse(output, bad);
                    break Err(End::Unread);
                }
            };
            self.seat.turn_to(Doing::Working);
            self.answered = true;
            *requests += 1;
            let requests_max = service.terms().requests;
            let last = *requests >= requests_max || head.has_body || !head.keep_alive;
            let Some(source) = service.source(peer, &head) else { break Err(End::Closed) };
            let (chunked, has_body) = (head.takes_chunks, head.has_body);
            used += len;
            let rest = answer(&service, source, &head, !last, output).await;
            if let Rest::List(coding, permit) = rest {
                let begun = std::mem::take(output);
                match self.send_list(source, (coding, permit), begun, chunked).await {
                    // Cut off, so that nobody takes a part for the whole.
                    Err(end) => break Err(end),
                    Ok(()) if !chunked => break Err(End::Done),
                    Ok(()) => {}
                }
            }
            if last {
                let more = has_body || *requests >= requests_max;
                break Err(if more { End::Unread } else { End::Done });
            }
            // Before the next request is looked at: whoever takes no replies gets no more of them made.
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
            // Requests that are not answered any more are as unread as a body.
            Err(End::Done) if !self.input.is_empty() => Err(End::Unread),
            ended => ended,
        }
    }

    /// Sends the list of all torrents behind its head, and counts what came of it
    async fn send_list(
        &mut self,
        source: IpAddr,
        (coding, permit): (Coding, Permit),
        head: Vec<u8>,
        chunked: bool,
    ) -> Result<(), End> {
        let service = self.seat.service.clone();
        let listed = async {
            let listing = Listing::new(permit, coding, service.helpers.clone());
            self.list(listing.map_err(|Interrupted| End::Closed)?, head, chunked).await
        };
        let listed = tokio::time::timeout(LIST_PATIENCE, listed).await;
        let listed = listed.unwrap_or(Err(End::Closed));
        let outcome = match listed {
            Ok(()) => Outcome::FullScrape,
            Err(_) => Outcome::FullScrapeBroken,
        };
        service.shard.borrow_mut().count_request(Family::of(source), outcome);
        listed
    }

    /// Sends the list of all torrents behind its head, part by part
    async fn list(
        &mut self,
        mut listing: Listing,
        head: Vec<u8>,
        chunked: bool,
    ) -> Result<(), End> {
        let service = self.seat.service.clone();
        let mut output = self.write(head).await?;
        loop {
            self.seat.turn_to(Doing::Working);
            let part = listing.next(&service).await.map_err(|Interrupted| End::Closed)?;
            // In pieces, between which others get their turn: to copy or encrypt a part takes a while.
            for piece in part.as_deref().unwrap_or_default().chunks(PIECE_LEN) {
                write_piece(&mut output, piece, chunked);
                output = self.write(output).await?;
            }
            if part.is_none() {
                if chunked {
                    output.extend_from_slice(b"0\r\n\r\n");
                    output = self.write(output).await?;
                }
                service.give_back(output);
                return Ok(());
            }
        }
    }

    /// Adds what arrives next to the input
    async fn read(&mut self) -> Result<(), End> {
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
                return Err(End::Closed);
            }
            let sealed = self.receive(Vec::new()).await?;
            self.decrypt(sealed).await?;
        }
        Ok(())
    }

    /// Takes what arrived encrypted; answers what is between this side and the client alone
    async fn decrypt(&mut self, sealed: Vec<u8>) -> Result<(), End> {
        let Some(session) = &mut self.session else { return Err(End::Closed) };
        let mut output = Vec::new();
        // As many wait for the helpers as those can do in a moment: a flood is to be refused, not queued.
        let handshake = match session.is_handshaking() {
            true => Some(Handshake::begin(&self.seat.service).ok_or_else(|| {
                self.seat.service.shard.borrow_mut().connections().evicted += 1;
                End::Closed
            })?),
            false => None,
        };
        let taken = session.take(&sealed, &mut self.input, &mut output).await;
        drop(handshake);
        if !output.is_empty() {
            self.write_plain(output).await?;
        }
        taken.map_err(|BadTls| {
            self.seat.service.shard.borrow_mut().connections().tls_failed += 1;
            End::Closed
        })
    }

    /// Adds what arrives next to a buffer
    async fn receive(&self, mut input: Vec<u8>) -> Result<Vec<u8>, End> {
        let len = input.len();
        // The first request is waited for less long than further ones.
        let quiet = len == 0 && self.input.is_empty() && self.answered;
        self.seat.turn_to(if quiet { Doing::Idling } else { Doing::Reading });
        if len == input.capacity() || input.capacity() < INPUT_LEN {
            let wanted = (len * 2).clamp(INPUT_LEN, HEAD_LEN_MAX);
            input.reserve_exact(wanted.saturating_sub(len));
        } else if len == 0 && input.capacity() > INPUT_LEN {
            input = Vec::with_capacity(INPUT_LEN);
        }
        let (result, input) = self.stream.read(input.slice(len..)).await;
        match result {
            Ok(1..) => Ok(input.into_inner()),
            Ok(0) | Err(_) => Err(End::Closed),
        }
    }

    /// Writes all of the output; returns a buffer for more
    async fn write(&mut self, mut output: Vec<u8>) -> Result<Vec<u8>, End> {
        let Some(session) = &mut self.session else { return self.write_plain(output).await };
        let mut sealed = self.seat.service.buffer();
        session.seal(&output, &mut sealed).map_err(|_| End::Closed)?;
        let sealed = self.write_plain(sealed).await?;
        self.seat.service.give_back(sealed);
        output.clear();
        Ok(output)
    }

    async fn write_plain(&self, output: Vec<u8>) -> Result<Vec<u8>, End> {
        self.seat.turn_to(Doing::Writing);
        let (result, mut output) = self.stream.write_all(output).await;
        output.clear();
        result.map(|()| output).map_err(|_| End::Closed)
    }
}
