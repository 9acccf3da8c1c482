//! The PROXY protocol, versions 1 and 2: a header that a load balancer sends before the bytes of the client.
//!
//! Any client can send such a header, so the caller must decide whether to trust it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Result of parsing the first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// There is no PROXY header: the bytes come from the client.
    Absent,
    /// The bytes may be the beginning of a PROXY header.
    Partial,
    /// There is a complete PROXY header.
    Header {
        /// Length of the header in bytes.
        len: usize,
        /// Address of the client; `None` if the header has none, as when the balancer checks the health of the tracker.
        client: Option<IpAddr>,
    },
    /// The PROXY header is malformed.
    Malformed,
}

/// First bytes of version 2; no HTTP request and no TLS record begins with them.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// First bytes of version 1.
const PREFIX: &[u8] = b"PROXY ";

/// Maximum bytes of the line of version 1, including its line end.
const LINE_LEN_MAX: usize = 107;

/// Maximum bytes of version 2 after its fixed part: two addresses and extensions, which may contain certificates.
const LEN_MAX: usize = 4 << 10;

/// Parses the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> ProxyProtocol {
    let begins = |mark: &[u8]| {
        let len = mark.len().min(bytes.len());
        mark.get(..len) == bytes.get(..len)
    };
    if bytes.is_empty() {
        ProxyProtocol::Partial
    } else if begins(SIGNATURE) {
        parse_binary(bytes)
    } else if begins(PREFIX) {
        parse_line(bytes)
    } else {
        ProxyProtocol::Absent
    }
}

/// Parses a header of version 1: `PROXY TCP4 1.2.3.4 5.6.7.8 1234 80`.
fn parse_line(bytes: &[u8]) -> ProxyProtocol {
    let head = bytes.get(..LINE_LEN_MAX).unwrap_or(bytes);
    let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LINE_LEN_MAX {
            ProxyProtocol::Partial
        } else {
            ProxyProtocol::Malformed
        };
    };
    let line = head.get(PREFIX.len()..end).and_then(|line| str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let family = words.next();
    let client = words.next().and_then(|source| source.parse::<IpAddr>().ok());
    let rest = words.count();
    match (family, client) {
        (Some("UNKNOWN"), _) => ProxyProtocol::Header { len: end + 2, client: None },
        (Some("TCP4"), Some(IpAddr::V4(_))) | (Some("TCP6"), Some(IpAddr::V6(_))) if rest == 3 => {
            ProxyProtocol::Header {
                len: end + 2,
                client: client.map(|client| client.to_canonical()),
            }
        }
        _ => ProxyProtocol::Malformed,
    }
}

/// Parses a header of version 2: signature, version and command, family, length, addresses, extensions.
fn parse_binary(bytes: &[u8]) -> ProxyProtocol {
    let Some((head, rest)) = bytes.split_first_chunk::<16>() else { return ProxyProtocol::Partial };
    let [.., version, family, high, low] = *head;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > LEN_MAX {
        return ProxyProtocol::Malformed;
    }
    let Some(body) = rest.get(..len) else { return ProxyProtocol::Partial };
    let client = match (version, family) {
        // The command LOCAL: the balancer connects on its own behalf.
        (0x20, _) => None,
        (0x21, 0x11) => match body.first_chunk::<4>() {
            Some(source) if len >= 12 => Some(IpAddr::V4(Ipv4Addr::from(*source))),
            _ => return ProxyProtocol::Malformed,
        },
        (0x21, 0x21) => match body.first_chunk::<16>() {
            Some(source) if len >= 36 => Some(IpAddr::V6(Ipv6Addr::from(*source))),
            _ => return ProxyProtocol::Malformed,
        },
        // Unspecified families, datagrams and Unix sockets have no usable address.
        (0x21, _) => None,
        _ => return ProxyProtocol::Malformed,
    };
    ProxyProtocol::Header { len: 16 + len, client: client.map(|client| client.to_canonical()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(version: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([version, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn yes(len: usize, client: Option<&str>) -> ProxyProtocol {
        ProxyProtocol::Header { len, client: client.map(|client| client.parse().unwrap()) }
    }

    #[test]
    fn headers_of_version_1() {
        let expected = [
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1234 80\r\nGET", yes(36, Some("1.2.3.4"))),
            ("PROXY TCP6 2a00::1 ::1 1234 80\r\n", yes(32, Some("2a00::1"))),
            ("PROXY UNKNOWN\r\n", yes(15, None)),
            ("PROXY UNKNOWN a b c d\r\n", yes(23, None)),
            ("PROXY TCP4 2a00::1 ::1 1234 80\r\n", ProxyProtocol::Malformed),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1234\r\n", ProxyProtocol::Malformed),
            ("PROXY TCP4 1.2.3.400 5.6.7.8 1234 80\r\n", ProxyProtocol::Malformed),
            ("PROXY \r\n", ProxyProtocol::Malformed),
            ("PROPFIND / HTTP/1.1\r\n", ProxyProtocol::Absent),
            ("GET /announce HTTP/1.1\r\n\r\n", ProxyProtocol::Absent),
            ("\x16\x03\x01", ProxyProtocol::Absent),
        ];
        for (text, proxied) in expected {
            assert_eq!(parse(text.as_bytes()), proxied, "{text}");
        }
        assert_eq!(
            parse(format!("PROXY {}", "a".repeat(200)).as_bytes()),
            ProxyProtocol::Malformed
        );
    }

    #[test]
    fn headers_of_version_2() {
        let v4 = [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2];
        assert_eq!(parse(&binary(0x21, 0x11, &v4)), yes(28, Some("1.2.3.4")));
        let mut more = v4.to_vec();
        more.extend([0x04, 0, 1, 9]);
        assert_eq!(parse(&binary(0x21, 0x11, &more)), yes(32, Some("1.2.3.4")));
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15]) = (0x2a, 0, 1);
        assert_eq!(parse(&binary(0x21, 0x21, &v6)), yes(52, Some("2a00::1")));
        assert_eq!(parse(&binary(0x20, 0, &[])), yes(16, None));
        assert_eq!(parse(&binary(0x21, 0x31, &[0; 216])), yes(232, None));
        assert_eq!(parse(&binary(0x21, 0x11, &v4[..11])), ProxyProtocol::Malformed);
        assert_eq!(parse(&binary(0x31, 0x11, &v4)), ProxyProtocol::Malformed);
        assert_eq!(parse(&binary(0x21, 0x11, &[0; LEN_MAX + 1])), ProxyProtocol::Malformed);
    }

    #[test]
    fn an_incomplete_header_is_partial() {
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 1234 80\r\n".to_vec();
        let binary = binary(0x21, 0x11, &[1; 12]);
        for whole in [line, binary] {
            for end in 0..whole.len() {
                assert_eq!(parse(&whole[..end]), ProxyProtocol::Partial, "{end}");
            }
        }
    }
}
