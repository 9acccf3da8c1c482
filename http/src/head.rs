//! The head of a request: its first line and the few headers that matter.

use std::net::IpAddr;
use thiserror::Error;

/// Bytes of a head, at most: a scrape of 100 info hashes with every byte escaped, and what browsers add
pub const HEAD_LEN_MAX: usize = 8 << 10;

/// Headers of a request, at most: browsers behind two proxies send some 40
const HEADERS_MAX: usize = 64;

/// Lines of X-Forwarded-For that are read: proxies mostly extend one
const FORWARDED_LINES_MAX: usize = 4;

/// What is asked for and how
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// What is to be done
    pub method: Method,
    /// The path, as it was sent
    pub path: &'a str,
    /// What stands behind the question mark, as it was sent
    pub query: &'a str,
    /// Whether another request may follow on the connection
    pub keep_alive: bool,
    /// Whether a body follows
    pub has_body: bool,
    /// Whether a reply may come in chunks: not before HTTP/1.1
    pub takes_chunks: bool,
    /// Compressions that the client can undo
    pub accepts: Accepts,
    /// The host the client knows this tracker by, without its port; `None` if it could be anything but a name
    pub host: Option<&'a str>,
    closes: bool,
    forwarded: Forwarded<'a>,
}

/// The methods that are told apart
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`: the same without the body
    Head,
    /// Any other
    Other,
}

/// Compressions that a client can undo
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// `gzip`
    pub gzip: bool,
    /// `zstd`
    pub zstd: bool,
}

/// Why the bytes are no request
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadHead {
    /// They never will be
    #[error("malformed request")]
    Malformed,
    /// A request whose head is longer than [`HEAD_LEN_MAX`]
    #[error("request head longer than 8 KiB")]
    TooLong,
}

/// Where a proxy says whom it speaks for
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// In X-Forwarded-For if that is there, else in X-Real-IP. A proxy that sets the one must then not let the other
    /// through from its clients
    Either,
    /// In X-Forwarded-For alone
    ForwardedFor,
    /// In X-Real-IP alone
    RealIp,
}

/// What proxies said of whom they speak for
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Forwarded<'a> {
    lines: [&'a [u8]; FORWARDED_LINES_MAX],
    real_ip: Option<&'a [u8]>,
}

/// Reads a head; with it comes its length, and `None` means that it is not all there yet
pub fn parse(bytes: &[u8]) -> Result<Option<(Head<'_>, usize)>, BadHead> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_LEN_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_LEN_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(BadHead::TooLong),
        Err(_) => return Err(BadHead::Malformed),
    };
    let target = request.path.ok_or(BadHead::Malformed)?;
    let (path, query) = path_and_query(target);
    let mut head = Head {
        method: match request.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            _ => Method::Other,
        },
        path,
        query,
        // HTTP/1.1 keeps a connection unless told otherwise, 1.0 closes it (RFC 9112, 9.3).
        keep_alive: request.version == Some(1),
        has_body: false,
        takes_chunks: request.version == Some(1),
        accepts: Accepts::default(),
        host: None,
        closes: false,
        forwarded: Forwarded::default(),
    };
    for header in request.headers {
        head.take(header.name, header.value)?;
    }
    Ok(Some((head, len)))
}

/// Splits a target; one in absolute form, as proxies are sent them, loses scheme and host
fn path_and_query(target: &str) -> (&str, &str) {
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
        }
        _ => target,
    };
    path.split_once('?').unwrap_or((path, ""))
}

impl<'a> Head<'a> {
    fn take(&mut self, name: &str, value: &'a [u8]) -> Result<(), BadHead> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("connection") {
            for option in list(value) {
                self.closes |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
            // Who says both means the end (RFC 9112, 9.3).
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
            // Who sends more lines is no proxy that anybody trusts.
            let free = self.forwarded.lines.iter_mut().find(|line| line.is_empty());
            *free.ok_or(BadHead::TooLong)? = value;
        } else if is("x-real-ip") {
            self.forwarded.real_ip = Some(value);
        }
        Ok(())
    }

    /// The address of the client that a request comes from, if it came in from `peer`
    ///
    /// Believed is only who is `trusted`: from the right, each entry of X-Forwarded-For was written by the proxy to its
    /// right, so the first that is not a trusted proxy's is the client's. What stands to the left of it anybody may
    /// have written, to be somebody else.
    pub fn client(
        &self,
        peer: IpAddr,
        header: ProxyHeader,
        trusted: impl Fn(IpAddr) -> bool,
    ) -> IpAddr {
        let mut client = peer.to_canonical();
        if !trusted(client) {
            return client;
        }
        let real_ip = self.forwarded.real_ip.filter(|_| header != ProxyHeader::ForwardedFor);
        let real_ip = real_ip.and_then(address);
        if header == ProxyHeader::RealIp {
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

/// The entries of a header that is a list
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// A name or an address, without the port; it is shown in a page, so nothing else will do
fn host_name(host: &str) -> Option<&str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_fit)).then_some(name)
}

fn split_at(bytes: &[u8], separator: u8) -> (&[u8], &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == separator);
    (parts.next().unwrap_or_default().trim_ascii(), parts.next().unwrap_or_default())
}

/// An address as proxies write it: `1.2.3.4`, `1.2.3.4:56`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:56`
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

    fn parsed(text: &str) -> Head<'_> {
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
    fn a_head_comes_in_any_parts() {
        let text = b"GET /announce?info_hash=%12 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]), Ok(None), "{end}");
        }
        assert!(parse(text).unwrap().is_some());
    }

    #[test]
    fn what_never_will_be_a_request_is_told_at_once() {
        assert_eq!(parse(b"\x16\x03\x01\x02"), Err(BadHead::Malformed));
        assert_eq!(parse(b"GET /\x80 HTTP/1.1\r\n\r\n"), Err(BadHead::Malformed));
        assert_eq!(parse(b"GET / HTTP/2.0\r\n\r\n"), Err(BadHead::Malformed));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_LEN_MAX));
        assert_eq!(parse(long.as_bytes()), Err(BadHead::TooLong));
        assert_eq!(parse(&long.as_bytes()[..HEAD_LEN_MAX]), Err(BadHead::TooLong));
        assert_eq!(parse(&long.as_bytes()[..HEAD_LEN_MAX - 1]), Ok(None));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(parse(many.as_bytes()), Err(BadHead::TooLong));
    }

    #[test]
    fn headers_decide_about_connection_body_and_compression() {
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
        let both = Accepts { gzip: true, zstd: true };
        assert_eq!(parsed(&head("accept-encoding: br, GZIP;q=0.5 , zstd")).accepts, both);
        let none = Accepts::default();
        assert_eq!(parsed(&head("accept-encoding: gzip;q=0, zstd; q=0.000")).accepts, none);
    }

    #[test]
    fn a_host_is_a_name() {
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
    fn the_right_most_untrusted_address_is_the_client() {
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
            // Nobody known: what the last good proxy saw.
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
            assert_eq!(of(proxy, ProxyHeader::Either), client, "{headers}");
            let stranger = "9.9.9.9".parse().unwrap();
            assert_eq!(of(stranger, ProxyHeader::Either), stranger, "{headers}");
        }
        let both = "GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 1.2.3.4\r\n\r\n";
        let of = |header| parsed(both).client(proxy, header, trusted).to_string();
        assert_eq!(of(ProxyHeader::RealIp), "1.2.3.4");
        assert_eq!(of(ProxyHeader::ForwardedFor), "6.6.6.6");
    }
}
