//! The PROXY protocol, versions 1 and 2: what a load balancer sends before the client's own bytes.
//!
//! Whether it is believed is the caller's to decide: anybody can send it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the first bytes of a connection are
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// Not the PROXY protocol: they are the client's
    No,
    /// They may become it
    Partial,
    /// It, in so many bytes
    Yes {
        /// Bytes before the client's
        len: usize,
        /// Whom the connection is from; nobody where the balancer speaks for itself, as to check health
        client: Option<IpAddr>,
    },
    /// It, but broken
    Broken,
}

/// Begins version 2, and nothing else: no request and no TLS record begins so
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Begins version 1
const PREFIX: &[u8] = b"PROXY ";

/// The longest line of version 1, its end included
const LINE_LEN_MAX: usize = 107;

/// Bytes of version 2 that are read: both addresses, and what balancers add (certificates may be long)
const LEN_MAX: usize = 4 << 10;

/// Looks at the first bytes of a connection
pub fn parse(bytes: &[u8]) -> Proxied {
    let begins = |mark: &[u8]| {
        let len = mark.len().min(bytes.len());
        mark.get(..len) == bytes.get(..len)
    };
    if bytes.is_empty() {
        Proxied::Partial
    } else if begins(SIGNATURE) {
        parse_binary(bytes)
    } else if begins(PREFIX) {
        parse_line(bytes)
    } else {
        Proxied::No
    }
}

/// `PROXY TCP4 1.2.3.4 5.6.7.8 1234 80`
fn parse_line(bytes: &[u8]) -> Proxied {
    let head = bytes.get(..LINE_LEN_MAX).unwrap_or(bytes);
    let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LINE_LEN_MAX { Proxied::Partial } else { Proxied::Broken };
    };
    let line = head.get(PREFIX.len()..end).and_then(|line| str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let family = words.next();
    let client = words.next().and_then(|source| source.parse::<IpAddr>().ok());
    let rest = words.count();
    match (family, client) {
        (Some("UNKNOWN"), _) => Proxied::Yes { len: end + 2, client: None },
        (Some("TCP4"), Some(IpAddr::V4(_))) | (Some("TCP6"), Some(IpAddr::V6(_))) if rest == 3 => {
            Proxied::Yes { len: end + 2, client: client.map(|client| client.to_canonical()) }
        }
        _ => Proxied::Broken,
    }
}

/// Signature, version and command, family, length, addresses, and whatever else the balancer tells
fn parse_binary(bytes: &[u8]) -> Proxied {
    let Some((head, rest)) = bytes.split_first_chunk::<16>() else { return Proxied::Partial };
    let [.., version, family, high, low] = *head;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > LEN_MAX {
        return Proxied::Broken;
    }
    let Some(body) = rest.get(..len) else { return Proxied::Partial };
    let client = match (version, family) {
        // LOCAL: the balancer for itself.
        (0x20, _) => None,
        (0x21, 0x11) => match body.first_chunk::<4>() {
            Some(source) if len >= 12 => Some(IpAddr::V4(Ipv4Addr::from(*source))),
            _ => return Proxied::Broken,
        },
        (0x21, 0x21) => match body.first_chunk::<16>() {
            Some(source) if len >= 36 => Some(IpAddr::V6(Ipv6Addr::from(*source))),
            _ => return Proxied::Broken,
        },
        // Unspecified, datagrams, Unix sockets: no address for us.
        (0x21, _) => None,
        _ => return Proxied::Broken,
    };
    Proxied::Yes { len: 16 + len, client: client.map(|client| client.to_canonical()) }
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

    fn yes(len: usize, client: Option<&str>) -> Proxied {
        Proxied::Yes { len, client: client.map(|client| client.parse().unwrap()) }
    }

    #[test]
    fn lines_of_version_1() {
        let expected = [
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1234 80\r\nGET", yes(36, Some("1.2.3.4"))),
            ("PROXY TCP6 2a00::1 ::1 1234 80\r\n", yes(32, Some("2a00::1"))),
            ("PROXY UNKNOWN\r\n", yes(15, None)),
            ("PROXY UNKNOWN a b c d\r\n", yes(23, None)),
            ("PROXY TCP4 2a00::1 ::1 1234 80\r\n", Proxied::Broken),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1234\r\n", Proxied::Broken),
            ("PROXY TCP4 1.2.3.400 5.6.7.8 1234 80\r\n", Proxied::Broken),
            ("PROXY \r\n", Proxied::Broken),
            ("PROPFIND / HTTP/1.1\r\n", Proxied::No),
            ("GET /announce HTTP/1.1\r\n\r\n", Proxied::No),
            ("\x16\x03\x01", Proxied::No),
        ];
        for (text, proxied) in expected {
            assert_eq!(parse(text.as_bytes()), proxied, "{text}");
        }
        assert_eq!(parse(format!("PROXY {}", "a".repeat(200)).as_bytes()), Proxied::Broken);
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
        assert_eq!(parse(&binary(0x21, 0x11, &v4[..11])), Proxied::Broken);
        assert_eq!(parse(&binary(0x31, 0x11, &v4)), Proxied::Broken);
        assert_eq!(parse(&binary(0x21, 0x11, &[0; LEN_MAX + 1])), Proxied::Broken);
    }

    #[test]
    fn it_comes_in_any_parts() {
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 1234 80\r\n".to_vec();
        let binary = binary(0x21, 0x11, &[1; 12]);
        for whole in [line, binary] {
            for end in 0..whole.len() {
                assert_eq!(parse(&whole[..end]), Proxied::Partial, "{end}");
            }
        }
    }
}
