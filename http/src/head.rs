//! The head of an HTTP request: its request line and the headers that a tracker needs.

use std::net::IpAddr;
use thiserror::Error;

/// Maximum bytes of a head: a scrape of 100 info hashes with every byte escaped, and the headers of a browser.
pub const HEAD_LEN_MAX: usize = 8 << 10;

/// Maximum number of headers of a request; a browser behind two proxies sends about 40.
const HEADERS_MAX: usize = 64;

/// Maximum number of X-Forwarded-For headers; most proxies extend the existing one.
const FORWARDED_LINES_MAX: usize = 4;

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: Method,
    /// The path as sent, not decoded.
    pub path: &'a str,
    /// The text after the question mark as sent, not decoded.
    pub query: &'a str,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    /// Whether a body follows.
    pub has_body: bool,
    /// Whether the client accepts the chunked transfer coding: from HTTP/1.1 on.
    pub accepts_chunked: bool,
    /// Compressions that the client accepts.
    pub accepts: AcceptedEncodings,
    /// Name or address of the tracker in the Host header, without the port; `None` if it is missing or invalid.
    pub host: Option<&'a str>,
    /// Whether the client requests that the connection is closed.
    closes: bool,
    forwarded: ForwardedHeaders<'a>,
}

/// Method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`.
    Get,
    /// `HEAD`: the reply has no body.
    Head,
    /// Any other method.
    Other,
}

/// Compressions that a client accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptedEncodings {
    /// `gzip`.
    pub gzip: bool,
    /// `zstd`.
    pub zstd: bool,
}

/// Reason for which bytes are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// The bytes are not HTTP.
    #[error("malformed request")]
    Malformed,
    /// The head is longer than [`HEAD_LEN_MAX`] or has too many headers.
    #[error("the request head is longer than 8 KiB or has too many headers")]
    TooLong,
}

/// Header in which a proxy sends the address of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddressHeader {
    /// X-Forwarded-For if the request has one, else X-Real-IP.
    ///
    /// A proxy that sets one of them must remove the other from the requests of its clients.
    Either,
    /// Only X-Forwarded-For.
    ForwardedFor,
    /// Only X-Real-IP.
    RealIp,
}

/// Headers in which proxies send the address of their client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ForwardedHeaders<'a> {
    lines: [&'a [u8]; FORWARDED_LINES_MAX],
    real_ip: Option<&'a [u8]>,
}

/// Parses a head; returns it with its length in bytes, or `None` if it is incomplete.
///
/// # Errors
///
/// If the bytes can never become a request that is accepted.
pub fn parse(bytes: &[u8]) -> Result<Option<(RequestHead<'_>, usize)>, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_LEN_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_LEN_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLong),
        Err(_) => return Err(HeadError::Malformed),
    };
    let target = request.path.ok_or(HeadError::Malformed)?;
    let (path, query) = path_and_query(target);
    let mut head = RequestHead {
        method: match request.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            _ => Method::Other,
        },
        path,
        query,
        // By default HTTP/1.1 keeps a connection open and HTTP/1.0 closes it (RFC 9112, section 9.3).
        keep_alive: request.version == Some(1),
        has_body: false,
        accepts_chunked: request.version == Some(1),
        accepts: AcceptedEncodings::default(),
        host: None,
        closes: false,
        forwarded: ForwardedHeaders::default(),
    };
    for header in request.headers {
        head.apply_header(header.name, header.value)?;
    }
    Ok(Some((head, len)))
}

/// Splits a request target into path and query. The absolute form, which proxies receive, loses scheme and host.
fn path_and_query(target: &str) -> (&str, &str) {
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
        }
        _ => target,
    };
    path.split_once('?').unwrap_or((path, ""))
}

impl<'a> RequestHead<'a> {
    /// Applies a header.
    fn apply_header(&mut self, name: &str, value: &'a [u8]) -> Result<(), HeadError> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("connection") {
            for option in list(value) {
                self.closes |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
            // With both options the connection is closed (RFC 9112, section 9.3).
            self.keep_alive &= !self.closes;
        } else if is("content-length") {
            self.has_body |= value != b"0";
        } else if is("transfer-encoding") {
            self.has_body = true;
        } else if is("accept-encoding") {
            for coding in list(value) {
                let (name, quality) = split_at(coding, b';');
                let quality = quality.trim_ascii().strip_prefix(b"q=");
                let zero = |digits: &[u8]| digits.iter().all(|digit| b"0.".contains(digit));
                let refused = quality.is_some_and(zero);
                self.accepts.gzip |= name.eq_ignore_ascii_case(b"gzip") && !refused;
                self.accepts.zstd |= name.eq_ignore_ascii_case(b"zstd") && !refused;
            }
        } else if is("host") {
            self.host = str::from_utf8(value).ok().and_then(host_name);
        } else if is("x-forwarded-for") {
            // A trustworthy proxy does not send more than [`FORWARDED_LINES_MAX`] of these headers.
            let free = self.forwarded.lines.iter_mut().find(|line| line.is_empty());
            *free.ok_or(HeadError::TooLong)? = value;
        } else if is("x-real-ip") {
            self.forwarded.real_ip = Some(value);
        }
        Ok(())
    }

    /// Returns the address of the client that sent the request, which arrived from the address `peer`.
    ///
    /// A header is used only if the address that sent it is trusted. Each entry of X-Forwarded-For was written by the
    /// proxy to its right, so the first entry from the right that is not a trusted proxy is the client. The entries to
    /// the left of it may be forged.
    pub fn client(
        &self,
        peer: IpAddr,
        header: ClientAddressHeader,
        trusted: impl Fn(IpAddr) -> bool,
    ) -> IpAddr {
        let mut client = peer.to_canonical();
        if !trusted(client) {
            return client;
        }
        let real_ip =
            self.forwarded.real_ip.filter(|_| header != ClientAddressHeader::ForwardedFor);
        let real_ip = real_ip.and_then(address);
        if header == ClientAddressHeader::RealIp {
            return real_ip.unwrap_or(client);
        }
        let mut entries = self.forwarded.lines.iter().rev().flat_map(|line| {
            line.rsplit(|byte| *byte == b',').filter(|entry| !entry.trim_ascii().is_empty())
        });
        let Some(last) = entries.next() else {
            return real_ip.unwrap_or(client);
        };
        for entry in std::iter::once(last).chain(entries) {
            let Some(address) = address(entry) else { break };
            client = address;
            if !trusted(client) {
                break;
            }
        }
        client
    }
}

/// Returns the entries of a header that is a comma-separated list.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Returns the name or address in a Host header without the port. The tracker's page shows it, so `None` is returned if
/// it has characters that are not valid in a host name.
fn host_name(host: &str) -> Option<&str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_fit)).then_some(name)
}

/// Splits bytes at the first separator; the second part is empty if there is none.
fn split_at(bytes: &[u8], separator: u8) -> (&[u8], &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == separator);
    (parts.next().unwrap_or_default().trim_ascii(), parts.next().unwrap_or_default())
}

/// Parses an address as proxies write it: `1.2.3.4`, `1.2.3.4:56`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:56`.
pub(crate) fn address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?.trim();
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => match text.split_once(':') {
            Some((address, port)) if !port.contains(':') => address,
            _ => text,
        },
    };
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> RequestHead<'_> {
        parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn request_lines_are_read() {
        let expected = [
            ("GET /announce?a=b HTTP/1.1", Method::Get, "/announce", "a=b", true),
            ("GET /announce HTTP/1.0", Method::Get, "/announce", "", false),
            ("HEAD / HTTP/1.1", Method::Head, "/", "", true),
            ("GET http://t.example/scrape?x HTTP/1.1", Method::Get, "/scrape", "x", true),
            ("GET http://t.example HTTP/1.1", Method::Get, "/", "", true),
            ("GET /a?url=http://b/c#d HTTP/1.1", Method::Get, "/a", "url=http://b/c#d", true),
            ("BREW /pot?\"<>{}|^`[] HTTP/1.1", Method::Other, "/pot", "\"<>{}|^`[]", true),
        ];
        for (line, method, path, query, keep_alive) in expected {
            let text = format!("{line}\r\nhost: x\r\n\r\nmore");
            let (head, len) = parse(text.as_bytes()).unwrap().unwrap();
            assert_eq!(len, text.len() - 4);
            assert_eq!((head.method, head.path, head.query), (method, path, query), "{line}");
            assert_eq!(head.keep_alive, keep_alive, "{line}");
        }
    }

    #[test]
    fn an_incomplete_head_is_not_an_error() {
        let text = b"GET /announce?info_hash=%12 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]), Ok(None), "{end}");
        }
        assert!(parse(text).unwrap().is_some());
    }

    #[test]
    fn malformed_and_long_heads_are_refused_at_once() {
        assert_eq!(parse(b"\x16\x03\x01\x02"), Err(HeadError::Malformed));
        assert_eq!(parse(b"GET /\x80 HTTP/1.1\r\n\r\n"), Err(HeadError::Malformed));
        assert_eq!(parse(b"GET / HTTP/2.0\r\n\r\n"), Err(HeadError::Malformed));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_LEN_MAX));
        assert_eq!(parse(long.as_bytes()), Err(HeadError::TooLong));
        assert_eq!(parse(&long.as_bytes()[..HEAD_LEN_MAX]), Err(HeadError::TooLong));
        assert_eq!(parse(&long.as_bytes()[..HEAD_LEN_MAX - 1]), Ok(None));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(parse(many.as_bytes()), Err(HeadError::TooLong));
    }

    #[test]
    fn headers_set_connection_body_and_compression() {
        let head = |headers: &str| format!("GET / HTTP/1.1\r\n{headers}\r\n\r\n");
        let text = head("cOnnection: Upgrade, CLOSE");
        assert!(!parsed(&text).keep_alive);
        assert!(!parsed(&head("connection: close, keep-alive")).keep_alive);
        assert!(!parsed(&head("connection: close\r\nconnection: keep-alive")).keep_alive);
        let old = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
        assert!(parsed(old).keep_alive);
        assert!(!parsed(&head("content-length: 0")).has_body);
        assert!(parsed(&head("content-length: 1")).has_body);
        assert!(parsed(&head("transfer-encoding: chunked")).has_body);
        let both = AcceptedEncodings { gzip: true, zstd: true };
        assert_eq!(parsed(&head("accept-encoding: br, GZIP;q=0.5 , zstd")).accepts, both);
        let none = AcceptedEncodings::default();
        assert_eq!(parsed(&head("accept-encoding: gzip;q=0, zstd; q=0.000")).accepts, none);
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        let expected = [
            ("tracker.example:6969", Some("tracker.example")),
            ("tracker.example", Some("tracker.example")),
            ("[2a00::1]:80", Some("[2a00::1]")),
            ("[2a00::1]", Some("[2a00::1]")),
            ("<script>", None),
            ("", None),
        ];
        for (value, host) in expected {
            let text = format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n");
            assert_eq!(parsed(&text).host, host, "{value}");
        }
    }

    #[test]
    fn the_rightmost_untrusted_address_is_the_client() {
        let (proxy, inner): (IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let trusted = |address: IpAddr| address == proxy || address == inner;
        let expected = [
            ("x-forwarded-for: 1.2.3.4", "1.2.3.4"),
            ("x-forwarded-for: 6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("x-forwarded-for: 6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
            ("x-forwarded-for: 6.6.6.6\r\nx-forwarded-for: 1.2.3.4:567", "1.2.3.4"),
            ("x-forwarded-for: [2a00::1]:567", "2a00::1"),
            ("x-forwarded-for: ::ffff:1.2.3.4", "1.2.3.4"),
            ("x-forwarded-for: 10.0.0.2", "10.0.0.2"),
            // An entry that is not an address: the client is the trusted proxy that was read before it.
            ("x-forwarded-for: 1.2.3.4, unknown", "10.0.0.1"),
            ("x-forwarded-for: 1.2.3.4, unknown, 10.0.0.2", "10.0.0.2"),
            ("x-real-ip: 1.2.3.4", "1.2.3.4"),
            ("x-real-ip: 6.6.6.6\r\nx-forwarded-for: 1.2.3.4", "1.2.3.4"),
            ("x-real-ip: junk", "10.0.0.1"),
            ("x-forwarded-for: ,", "10.0.0.1"),
        ];
        for (headers, client) in expected {
            let text = format!("GET / HTTP/1.1\r\n{headers}\r\n\r\n");
            let client: IpAddr = client.parse().unwrap();
            let of = |peer, header| parsed(&text).client(peer, header, trusted);
            assert_eq!(of(proxy, ClientAddressHeader::Either), client, "{headers}");
            let stranger = "9.9.9.9".parse().unwrap();
            assert_eq!(of(stranger, ClientAddressHeader::Either), stranger, "{headers}");
        }
        let both = "GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 1.2.3.4\r\n\r\n";
        let of = |header| parsed(both).client(proxy, header, trusted).to_string();
        assert_eq!(of(ClientAddressHeader::RealIp), "1.2.3.4");
        assert_eq!(of(ClientAddressHeader::ForwardedFor), "6.6.6.6");
    }
}
