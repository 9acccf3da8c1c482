//! The query of announces and scrapes (BEP 3, 7, 21, 23, 48).

use crate::head::address;
use std::net::IpAddr;
use thiserror::Error;
use tsubame_storage::{AnnounceEvent, InfoHash, PeerId};

/// Parameters of an announce as the client sent them.
///
/// Only the info hash and the port are required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceQuery {
    /// `info_hash`: the torrent.
    pub info_hash: InfoHash,
    /// `peer_id`: the id that the client chose; `None` if it is missing.
    pub peer_id: Option<PeerId>,
    /// `port`: the port on which the client listens.
    pub port: u16,
    /// `uploaded`: bytes, as reported by the client.
    pub uploaded: u64,
    /// `downloaded`: bytes, as reported by the client.
    pub downloaded: u64,
    /// `left`: bytes that the client lacks; [`LEFT_UNKNOWN`] if it is missing or not a number.
    pub left: u64,
    /// `event`: the reason of the announce; undefined values count as none.
    pub event: AnnounceEvent,
    /// `numwant`: the number of peers that the client wants; `None` if it is missing or negative.
    pub numwant: Option<u32>,
    /// `compact`: whether peers are returned in compact form; true unless the value is 0 (BEP 23).
    pub compact: bool,
    /// `ip`, `ipv4`, `ipv6`: the addresses that the client claims to have.
    claims: [Option<IpAddr>; 3],
}

/// Value of `left` if the client does not know it.
pub const LEFT_UNKNOWN: u64 = u64::MAX;

/// Error in a query; the text is shown to the user of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// The info hash is missing.
    #[error("info_hash is missing")]
    NoInfoHash,
    /// An announce has more than one info hash.
    #[error("info_hash is given more than once")]
    SecondInfoHash,
    /// The info hash has neither 20 bytes nor the 32 bytes of version 2.
    #[error("info_hash is not 20 bytes")]
    InfoHash,
    /// The peer id does not have 20 bytes.
    #[error("peer_id is not 20 bytes")]
    PeerId,
    /// The port is missing or not a number of 16 bits.
    #[error("port is not a number from 0 to 65535")]
    Port,
}

impl AnnounceQuery {
    /// Parses the query of an announce; of a repeated key the first value counts, but a second `info_hash`
    /// is an error.
    pub fn parse(query: &str) -> Result<Self, QueryError> {
        let (mut info_hash, mut peer_id, mut port) = (None, None, None);
        let (mut uploaded, mut downloaded, mut left) = (None, None, None);
        let (mut event, mut numwant, mut compact) = (None, None, None);
        let (mut ip, mut ipv4, mut ipv6) = (None, None, None);
        for (key, value) in pairs(query) {
            match key {
                "info_hash" if info_hash.is_some() => return Err(QueryError::SecondInfoHash),
                "info_hash" => info_hash = Some(value),
                "peer_id" => keep(&mut peer_id, value),
                "port" => keep(&mut port, value),
                "uploaded" => keep(&mut uploaded, value),
                "downloaded" => keep(&mut downloaded, value),
                "left" => keep(&mut left, value),
                "event" => keep(&mut event, value),
                "numwant" => keep(&mut numwant, value),
                "compact" => keep(&mut compact, value),
                "ip" => keep(&mut ip, value),
                "ipv4" => keep(&mut ipv4, value),
                "ipv6" => keep(&mut ipv6, value),
                _ => {}
            }
        }
        let info_hash = info_hash.ok_or(QueryError::NoInfoHash)?;
        let amount = |value: Option<&str>| value.and_then(|value| value.parse::<u64>().ok());
        Ok(Self {
            info_hash: decode_info_hash(info_hash)?,
            peer_id: match peer_id {
                Some(peer_id) => Some(PeerId(decode_all(peer_id).ok_or(QueryError::PeerId)?)),
                None => None,
            },
            port: port.and_then(|port| port.parse().ok()).ok_or(QueryError::Port)?,
            uploaded: amount(uploaded).unwrap_or(0),
            downloaded: amount(downloaded).unwrap_or(0),
            left: amount(left).unwrap_or(LEFT_UNKNOWN),
            event: match event {
                Some("started") => AnnounceEvent::Started,
                Some("completed") => AnnounceEvent::Completed,
                Some("stopped") => AnnounceEvent::Stopped,
                Some("paused") => AnnounceEvent::Paused,
                _ => AnnounceEvent::None,
            },
            numwant: numwant.and_then(number_wanted),
            compact: compact != Some("0"),
            claims: [ip, ipv4, ipv6].map(|claim| claim.and_then(claimed)),
        })
    }

    /// Returns the address that the client claims to have, if any.
    ///
    /// Clients announce over both families and claim an address of each, so an address of the family of `source` is
    /// preferred. A caller that believes untrusted clients lets them direct a swarm at any address.
    pub fn claimed_address(&self, source: IpAddr) -> Option<IpAddr> {
        let claims = || self.claims.iter().flatten().copied();
        claims().find(|claim| claim.is_ipv4() == source.is_ipv4()).or_else(|| claims().next())
    }
}

/// Returns the info hashes of a scrape in the order of the query (BEP 48).
///
/// An info hash of a wrong length is an error.
pub fn info_hashes(query: &str) -> impl Iterator<Item = Result<InfoHash, QueryError>> {
    let values = pairs(query).filter(|(key, _)| *key == "info_hash");
    values.map(|(_, value)| decode_info_hash(value))
}

/// Sets a value unless it is set already.
fn keep<'a>(place: &mut Option<&'a str>, value: &'a str) {
    place.get_or_insert(value);
}

/// Returns the keys and values of a query, not decoded.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Parses the value of `numwant`; a number that is too large counts as the maximum.
fn number_wanted(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

/// Decodes and parses a claimed address.
fn claimed(value: &str) -> Option<IpAddr> {
    // The longest value is an IPv6 address in brackets with a port.
    let mut text = [0; 64];
    let len = decode(value, &mut text)?;
    address(text.get(..len)?)
}

/// Decodes an info hash: 20 bytes, or the first 20 of the 32 bytes of version 2 (BEP 52).
fn decode_info_hash(value: &str) -> Result<InfoHash, QueryError> {
    let v2 = || decode_all::<32>(value)?.first_chunk().copied();
    decode_all(value).or_else(v2).map(InfoHash).ok_or(QueryError::InfoHash)
}

/// Decodes a value that must have exactly `N` bytes.
fn decode_all<const N: usize>(value: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (decode(value, &mut bytes)? == N).then_some(bytes)
}

/// Decodes `%xx`, and `+` as a space as in forms; returns the number of bytes.
///
/// Returns `None` if the value does not fit or an escape is invalid.
fn decode(value: &str, out: &mut [u8]) -> Option<usize> {
    let mut out_bytes = out.iter_mut();
    let mut written = 0;
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'+' => b' ',
            byte => byte,
        };
        *out_bytes.next()? = decoded;
        written += 1;
    }
    Some(written)
}

/// Returns the value of a hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));

    const VALID: &str = "info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-TS0001-bbbbbbbbbbbb&port=6881";

    #[test]
    fn an_announce_of_a_real_client_is_parsed() {
        // From libtorrent 2.0, with parameters that the tracker ignores.
        let query = "info_hash=%124Vx%9a%bc%de%f1%23%45%67%89%ab%cd%ef%124Vx%9a&peer_id=-LT2080-tKuY~dM0B!kt&\
                     port=6881&uploaded=7&downloaded=8&left=0&corrupt=0&key=5DA1F2BB&event=completed&numwant=200&\
                     compact=1&no_peer_id=1&supportcrypto=1&redundant=0";
        let announce = AnnounceQuery::parse(query).unwrap();
        assert_eq!(announce.info_hash.to_string(), "123456789abcdef123456789abcdef123456789a");
        assert_eq!(announce.peer_id, Some(PeerId(*b"-LT2080-tKuY~dM0B!kt")));
        assert_eq!((announce.port, announce.uploaded, announce.downloaded), (6881, 7, 8));
        assert_eq!((announce.left, announce.event), (0, AnnounceEvent::Completed));
        assert_eq!(
            (announce.numwant, announce.compact, announce.claimed_address(V4)),
            (Some(200), true, None)
        );
    }

    #[test]
    fn missing_and_invalid_parameters_have_defaults() {
        let announce = AnnounceQuery::parse(VALID).unwrap();
        assert_eq!(
            (announce.left, announce.event, announce.numwant),
            (LEFT_UNKNOWN, AnnounceEvent::None, None)
        );
        assert!(announce.compact);
        let with = |more: &str| AnnounceQuery::parse(&format!("{VALID}&{more}")).unwrap();
        assert_eq!(with("left=-1").left, LEFT_UNKNOWN);
        assert_eq!(with("numwant=-1").numwant, None);
        assert_eq!(with("numwant=99999999999999999999").numwant, Some(u32::MAX));
        assert_eq!(with("event=paused").event, AnnounceEvent::Paused);
        assert_eq!(with("event=empty").event, AnnounceEvent::None);
        assert!(!with("compact=0").compact);
        assert_eq!(with("left=3&left=4").left, 3);
        let claims =
            |more: &str, source| with(more).claimed_address(source).map(|ip| ip.to_string());
        let v6 = "2a00::9".parse().unwrap();
        assert_eq!(claims("ipv6=2a00%3A%3A1&ip=1.2.3.4", V4).unwrap(), "1.2.3.4");
        assert_eq!(claims("ipv6=2a00%3A%3A1&ip=1.2.3.4", v6).unwrap(), "2a00::1");
        assert_eq!(claims("ipv6=%5B2a00::1%5D:6881", V4).unwrap(), "2a00::1");
        assert_eq!(claims("ip=tracker.example&ipv4=1.2.3.4", V4).unwrap(), "1.2.3.4");
        assert_eq!(claims("ip=tracker.example", V4), None);
    }

    #[test]
    fn required_parameters_are_checked() {
        let expected = [
            ("", QueryError::NoInfoHash),
            ("info_hash&peer_id=-TS0001-bbbbbbbbbbbb&port=1", QueryError::InfoHash),
            ("info_hash=aaaaaaaaaaaaaaaaaaa&port=1", QueryError::InfoHash),
            ("info_hash=aaaaaaaaaaaaaaaaaaaaa&port=1", QueryError::InfoHash),
            ("info_hash=aaaaaaaaaaaaaaaaaaa%4&port=1", QueryError::InfoHash),
            ("info_hash=aaaaaaaaaaaaaaaaaaa%4g&port=1", QueryError::InfoHash),
            ("info_hash=aaaaaaaaaaaaaaaaaaaa&port=1&peer_id=", QueryError::PeerId),
            ("info_hash=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa&port=1", QueryError::InfoHash),
            ("info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=short&port=1", QueryError::PeerId),
            ("info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=bbbbbbbbbbbbbbbbbbbb", QueryError::Port),
        ];
        for (query, error) in expected {
            assert_eq!(AnnounceQuery::parse(query), Err(error), "{query}");
        }
        for port in ["", "-1", "65536", "http"] {
            let query = VALID.replace("6881", port);
            assert_eq!(AnnounceQuery::parse(&query), Err(QueryError::Port), "{port}");
        }
        let twice = format!("{VALID}&info_hash=aaaaaaaaaaaaaaaaaaaa");
        assert_eq!(AnnounceQuery::parse(&twice), Err(QueryError::SecondInfoHash));
    }

    #[test]
    fn a_v2_info_hash_is_truncated_and_a_peer_id_may_be_missing() {
        let v2 = "info_hash=aaaaaaaaaaaaaaaaaaaa%62bbbbbbbbbbb&port=1";
        let announce = AnnounceQuery::parse(v2).unwrap();
        assert_eq!(announce.info_hash, InfoHash([b'a'; 20]));
        assert_eq!(announce.peer_id, None);
        let scraped: Vec<_> = info_hashes(v2).collect();
        assert_eq!(scraped, [Ok(InfoHash([b'a'; 20]))]);
    }

    #[test]
    fn info_hashes_of_a_scrape_keep_their_order() {
        let query =
            "info_hash=aaaaaaaaaaaaaaaaaaaa&x=y&info_hash=a+b%20aaaaaaaaaaaaaaaa&info_hash=a";
        let hashes: Vec<_> = info_hashes(query).collect();
        let [first, second, third] = hashes.as_slice() else { panic!("{hashes:?}") };
        assert_eq!(*first, Ok(InfoHash([b'a'; 20])));
        assert_eq!(*second, Ok(InfoHash(*b"a b aaaaaaaaaaaaaaaa")));
        assert_eq!(*third, Err(QueryError::InfoHash));
        assert_eq!(info_hashes("").count(), 0);
    }

    fn escaped(bytes: &[u8], style: u8) -> String {
        let escape = |byte: &u8| match (style, *byte) {
            (_, byte) if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            (0, byte) => format!("%{byte:02X}"),
            (1, b' ') => "+".to_owned(),
            (_, byte) => format!("%{byte:02x}"),
        };
        bytes.iter().map(escape).collect()
    }

    proptest! {
        #[test]
        fn every_value_is_decoded_however_it_is_escaped(
            info_hash: [u8; 20],
            peer_id: [u8; 20],
            style in 0_u8..3,
            port: u16,
        ) {
            let (hash, id) = (escaped(&info_hash, style), escaped(&peer_id, style));
            let announce = AnnounceQuery::parse(&format!("port={port}&info_hash={hash}&peer_id={id}")).unwrap();
            prop_assert_eq!(announce.info_hash, InfoHash(info_hash));
            prop_assert_eq!(announce.peer_id, Some(PeerId(peer_id)));
            prop_assert_eq!(announce.port, port);
        }

        #[test]
        fn any_query_is_parsed_without_panic(query in "[a-z_=&%+0-9\u{80}-\u{ff}]{0,200}") {
            let _ = AnnounceQuery::parse(&query);
            let _ = info_hashes(&query).count();
        }
    }
}
