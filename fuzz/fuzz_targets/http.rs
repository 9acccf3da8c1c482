//! Bytes of an HTTP connection in parts of any size: the requests that are parsed do not depend on the parts.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;
use tsubame_http::bencode::Value;
use tsubame_http::head::{self, HeadError};
use tsubame_http::{proxy, query};

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let _ = Value::parse(bytes);
    let proxied = proxy::parse(bytes);
    let known = |end: &usize| proxy::parse(&bytes[..*end]) != proxy::ProxyProtocol::Partial;
    if let Some(end) = (0..bytes.len()).find(known) {
        assert_eq!(proxy::parse(&bytes[..end]), proxied, "more bytes change the result");
    }
    let bytes = match proxied {
        proxy::ProxyProtocol::Header { len, .. } => &bytes[len..],
        _ => bytes,
    };
    let whole = requests(bytes, bytes.len());
    let parts = requests(bytes, usize::from(cut) + 1);
    // In parts, a head may exceed the limit before it is found malformed. The requests before it are the same.
    let both = whole.0.len().min(parts.0.len());
    assert_eq!(whole.0[..both], parts.0[..both]);
    if whole.1 == parts.1 {
        assert_eq!(whole.0.len(), parts.0.len());
    }
});

/// Returns the requests that are parsed if the bytes arrive in parts of `step` bytes, and the error that ends the
/// connection.
fn requests(bytes: &[u8], step: usize) -> (Vec<String>, Option<HeadError>) {
    let (mut input, mut seen) = (Vec::new(), Vec::new());
    for part in bytes.chunks(step.max(1)) {
        input.extend_from_slice(part);
        loop {
            match head::parse(&input) {
                Ok(None) => break,
                Err(bad) => return (seen, Some(bad)),
                Ok(Some((head, len))) => {
                    let peer = IpAddr::from([10, 0, 0, 1]);
                    let trusted = |address: IpAddr| address.is_loopback() || address == peer;
                    let client = head.client(peer, head::ClientAddressHeader::Either, trusted);
                    let announce = query::AnnounceQuery::parse(head.query);
                    let scrape: Vec<_> = query::info_hashes(head.query).collect();
                    seen.push(format!("{head:?} {client} {announce:?} {scrape:?}"));
                    input.drain(..len);
                }
            }
        }
    }
    (seen, None)
}
