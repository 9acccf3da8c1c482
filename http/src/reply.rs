//! Replies: bencoded bodies, and the response head before them.
//!
//! Failures have the status 200, as clients ignore the bodies of other responses. Only 410 has a meaning for them: the
//! torrent will never be served.

use crate::bencode;
use std::io::Write;
use std::net::IpAddr;
use tsubame_storage::{Endpoint, InfoHash, SwarmCounts, SwarmStats};

/// The body of the reply to an announce.
#[derive(Clone, Copy, Debug)]
pub struct AnnounceResponse<'a> {
    /// Counts of the swarm.
    pub counts: SwarmCounts,
    /// Seconds until the next regular announce.
    pub interval: u32,
    /// Minimum seconds between two announces of a client.
    pub min_interval: u32,
    /// Source address of the announce: the public address of the client (BEP 24).
    pub external_ip: IpAddr,
    /// IPv4 peers, 6 bytes each.
    pub v4: &'a [u8],
    /// IPv6 peers, 18 bytes each (BEP 7).
    pub v6: &'a [u8],
    /// Whether peers are written in compact form (BEP 23) instead of as dictionaries.
    pub compact: bool,
    /// `warning message`: a text that the client shows to its user although the announce succeeded.
    pub warning: Option<&'a str>,
}

impl AnnounceResponse<'_> {
    /// Creates the response for an empty swarm; both of its intervals are `interval`.
    pub fn empty(external_ip: IpAddr, interval: u32, compact: bool) -> Self {
        Self {
            counts: SwarmCounts::default(),
            interval,
            min_interval: interval,
            external_ip,
            v4: &[],
            v6: &[],
            compact,
            warning: None,
        }
    }

    /// Appends the body.
    ///
    /// `peers` is written even if it is empty: some clients treat a missing one as an error.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'd');
        bencode::write_entry(out, "complete", self.counts.seeders.into());
        bencode::write_entry(out, "downloaded", self.counts.completed.into());
        bencode::write_bytes(out, b"external ip");
        match self.external_ip {
            IpAddr::V4(address) => bencode::write_bytes(out, &address.octets()),
            IpAddr::V6(address) => bencode::write_bytes(out, &address.octets()),
        }
        bencode::write_entry(out, "incomplete", self.counts.leechers.into());
        bencode::write_entry(out, "interval", self.interval.into());
        bencode::write_entry(out, "min interval", self.min_interval.into());
        bencode::write_bytes(out, b"peers");
        if self.compact {
            bencode::write_bytes(out, self.v4);
            if !self.v6.is_empty() {
                bencode::write_bytes(out, b"peers6");
                bencode::write_bytes(out, self.v6);
            }
        } else {
            out.push(b'l');
            for peer in self.v4.chunks(6).chain(self.v6.chunks(18)) {
                write_dictionary(out, peer);
            }
            out.push(b'e');
        }
        if let Some(warning) = self.warning {
            bencode::write_bytes(out, b"warning message");
            bencode::write_bytes(out, warning.as_bytes());
        }
        out.push(b'e');
    }
}

/// Appends a peer as a dictionary without `peer id`, which the tracker does not store.
fn write_dictionary(out: &mut Vec<u8>, compact: &[u8]) {
    let Some(peer) = Endpoint::from_compact(compact) else { return };
    // The longest text of an IPv6 address has 45 bytes.
    let mut text = [0; 45];
    let mut rest: &mut [u8] = &mut text;
    // Cannot fail: every address fits.
    let _ = write!(rest, "{}", peer.address());
    let unused = rest.len();
    let (address, _) = text.split_at(text.len() - unused);
    out.extend_from_slice(b"d2:ip");
    bencode::write_bytes(out, address);
    bencode::write_entry(out, "port", peer.port().into());
    out.push(b'e');
}

/// Time until a client that was refused may try again (BEP 31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryIn {
    /// The reply does not state it.
    Unspecified,
    /// Number of minutes.
    Minutes(u32),
    /// The client must not try again.
    Never,
}

/// Appends a failure.
pub fn write_failure(out: &mut Vec<u8>, reason: &str, retry: RetryIn) {
    out.push(b'd');
    bencode::write_bytes(out, b"failure reason");
    bencode::write_bytes(out, reason.as_bytes());
    match retry {
        RetryIn::Unspecified => {}
        RetryIn::Minutes(minutes) => {
            // For clients that do not support BEP 31.
            bencode::write_entry(out, "interval", u64::from(minutes) * 60);
            bencode::write_entry(out, "min interval", u64::from(minutes) * 60);
            bencode::write_bytes(out, b"retry in");
            bencode::write_bytes(out, minutes.to_string().as_bytes());
        }
        RetryIn::Never => {
            bencode::write_bytes(out, b"retry in");
            bencode::write_bytes(out, b"never");
        }
    }
    out.push(b'e');
}

/// Appends the beginning of a scrape reply, up to its torrents (BEP 48).
pub fn begin_scrape(out: &mut Vec<u8>) {
    out.extend_from_slice(b"d5:filesd");
}

/// Appends a torrent to a scrape reply. Info hashes must be written in ascending order and only once.
///
/// `downloaders` are the leechers without partial seeds (BEP 21).
pub fn write_row(out: &mut Vec<u8>, info_hash: &InfoHash, swarm_stats: SwarmStats) {
    let SwarmStats { counts, partial_seeds } = swarm_stats;
    bencode::write_bytes(out, &info_hash.0);
    out.push(b'd');
    bencode::write_entry(out, "complete", counts.seeders.into());
    bencode::write_entry(out, "downloaded", counts.completed.into());
    bencode::write_entry(out, "downloaders", counts.leechers.saturating_sub(partial_seeds).into());
    bencode::write_entry(out, "incomplete", counts.leechers.into());
    out.push(b'e');
}

/// Appends the end of a scrape reply.
pub fn end_scrape(out: &mut Vec<u8>, min_request_interval: u32) {
    out.extend_from_slice(b"e5:flagsd");
    bencode::write_entry(out, "min_request_interval", min_request_interval.into());
    out.extend_from_slice(b"ee");
}

/// Status of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusCode {
    /// 200: success, also used for bencoded failures.
    Ok,
    /// 400: the bytes are not a request.
    BadRequest,
    /// 403: the client may not get this resource.
    Forbidden,
    /// 404: the path is unknown.
    NotFound,
    /// 405: the method is neither `GET` nor `HEAD`.
    MethodNotAllowed,
    /// 410: the torrent will never be served.
    Gone,
    /// 429: the request was repeated too soon.
    TooManyRequests,
    /// 431: the request head is too long.
    HeadTooLong,
}

impl StatusCode {
    /// Returns the code and its reason phrase, with headers that the status requires.
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed\r\nAllow: GET, HEAD",
            Self::Gone => "410 Gone",
            Self::TooManyRequests => "429 Too Many Requests",
            Self::HeadTooLong => "431 Request Header Fields Too Large",
        }
    }
}

/// Type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// Bencode or a line of text.
    Plain,
    /// An HTML page.
    Html,
    /// An XML document.
    Xml,
}

/// Framing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// Length in bytes.
    Bytes(usize),
    /// The chunked transfer coding.
    Chunked,
    /// The body ends with the connection.
    UntilClose,
}

/// The head of a response: its status line and headers.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead {
    /// Status.
    pub status: StatusCode,
    /// Type of the body.
    pub content: ContentType,
    /// Compression of the body: the value of `Content-Encoding`.
    pub encoding: Option<&'static str>,
    /// Framing of the body.
    pub length: BodyLength,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
}

impl ResponseHead {
    /// Appends the head.
    pub fn write(&self, out: &mut Vec<u8>) {
        let content = match self.content {
            ContentType::Plain => "text/plain",
            ContentType::Html => "text/html; charset=utf-8",
            ContentType::Xml => "text/xml; charset=utf-8",
        };
        let parts = ["HTTP/1.1 ", self.status.line(), "\r\nContent-Type: ", content];
        parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        if let Some(encoding) = self.encoding {
            out.extend_from_slice(b"\r\nContent-Encoding: ");
            out.extend_from_slice(encoding.as_bytes());
        }
        match self.length {
            BodyLength::Bytes(len) => {
                out.extend_from_slice(b"\r\nContent-Length: ");
                bencode::decimal(out, len as u64);
            }
            BodyLength::Chunked => out.extend_from_slice(b"\r\nTransfer-Encoding: chunked"),
            BodyLength::UntilClose => {}
        }
        // Always sent: the default depends on the HTTP version, and old clients use the wrong one.
        out.extend_from_slice(match self.keep_alive {
            true => b"\r\nConnection: keep-alive\r\n\r\n",
            false => b"\r\nConnection: close\r\n\r\n",
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        out.escape_ascii().to_string()
    }

    const ANNOUNCE: AnnounceResponse<'static> = AnnounceResponse {
        counts: SwarmCounts { seeders: 1, completed: 2, leechers: 3 },
        interval: 1800,
        min_interval: 900,
        external_ip: IpAddr::V4(std::net::Ipv4Addr::new(b'1', b'2', b'3', b'4')),
        v4: b"abcdef",
        v6: b"",
        compact: true,
        warning: None,
    };

    #[test]
    fn announces_in_compact_form() {
        assert_eq!(
            text(|out| ANNOUNCE.write(out)),
            "d8:completei1e10:downloadedi2e11:external ip4:123410:incompletei3e8:intervali1800e\
             12:min intervali900e5:peers6:abcdefe"
        );
        let external_ip = "2a00::1".parse().unwrap();
        let both = AnnounceResponse { external_ip, v6: b"abcdefghijklmnopqr", ..ANNOUNCE };
        let body = text(|out| both.write(out));
        assert!(body.contains("11:external ip16:*\\x00"), "{body}");
        assert!(body.ends_with("5:peers6:abcdef6:peers618:abcdefghijklmnopqre"), "{body}");
        let warned = AnnounceResponse { v4: b"", warning: Some("later"), ..ANNOUNCE };
        assert!(text(|out| warned.write(out)).ends_with("5:peers0:15:warning message5:latere"));
        let without_peers = AnnounceResponse { v4: b"", ..ANNOUNCE };
        assert!(text(|out| without_peers.write(out)).ends_with("5:peers0:e"));
    }

    #[test]
    fn announces_as_dictionaries() {
        let v6: Vec<u8> = [0x2a; 16].into_iter().chain([0x1a, 0xe1]).collect();
        let both =
            AnnounceResponse { v4: &[1, 2, 3, 4, 0, 80], v6: &v6, compact: false, ..ANNOUNCE };
        let body = text(|out| both.write(out));
        let peers = "5:peersld2:ip7:1.2.3.44:porti80eed2:ip39:2a2a:2a2a:2a2a:2a2a:2a2a:2a2a:2a2a:2a2a4:porti6881eeee";
        assert!(body.ends_with(peers), "{body}");
    }

    #[test]
    fn failures_state_when_to_retry() {
        let failure = |retry| text(|out| write_failure(out, "no", retry));
        assert_eq!(failure(RetryIn::Unspecified), "d14:failure reason2:noe");
        assert_eq!(failure(RetryIn::Never), "d14:failure reason2:no8:retry in5:nevere");
        assert_eq!(
            failure(RetryIn::Minutes(90)),
            "d14:failure reason2:no8:intervali5400e12:min intervali5400e8:retry in2:90e"
        );
    }

    #[test]
    fn downloaders_of_a_scrape_exclude_partial_seeds() {
        let body = text(|out| {
            begin_scrape(out);
            let swarm_stats = SwarmStats { counts: ANNOUNCE.counts, partial_seeds: 1 };
            write_row(out, &InfoHash([b'a'; 20]), swarm_stats);
            end_scrape(out, 900);
        });
        assert_eq!(
            body,
            "d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei1e10:downloadedi2e11:downloadersi2e\
             10:incompletei3eee5:flagsd20:min_request_intervali900eee"
        );
    }

    #[test]
    fn response_heads() {
        let plain = ResponseHead {
            status: StatusCode::Ok,
            content: ContentType::Plain,
            encoding: None,
            length: BodyLength::Bytes(120),
            keep_alive: true,
        };
        assert_eq!(
            text(|out| plain.write(out)),
            "HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 120\
             \\r\\nConnection: keep-alive\\r\\n\\r\\n"
        );
        let refused = ResponseHead {
            status: StatusCode::MethodNotAllowed,
            content: ContentType::Html,
            encoding: Some("gzip"),
            length: BodyLength::Chunked,
            keep_alive: false,
        };
        assert_eq!(
            text(|out| refused.write(out)),
            "HTTP/1.1 405 Method Not Allowed\\r\\nAllow: GET, HEAD\\r\\nContent-Type: text/html; \
             charset=utf-8\\r\\nContent-Encoding: gzip\\r\\nTransfer-Encoding: chunked\\r\\n\
             Connection: close\\r\\n\\r\\n"
        );
    }
}
