//! The client side of the HTTP tracker protocol (BEP 3, 7, 23, 48).

use crate::protocol::{LoadAnnounce, LoadEvent, TrackerReply};
use std::borrow::Cow;
use std::fmt::Write;
use tsubame_http::bencode::{self, BencodeError, Value};

/// Maximum bytes of the head of a reply.
const HEAD_LEN_MAX: usize = 8 << 10;

/// Maximum bytes of the body of a reply.
const BODY_LEN_MAX: usize = 16 << 20;

/// Maximum bytes of a reply, with the framing of chunks.
pub(crate) const REPLY_LEN_MAX: usize = HEAD_LEN_MAX + 2 * BODY_LEN_MAX;

/// Paths of the announces and scrapes of a tracker.
#[derive(Clone, Debug)]
pub(crate) struct HttpPaths {
    host: String,
    /// Path and query of the announce URL, with the `?` or `&` to which the parameters of a request are appended.
    announce: String,
    /// The same for scrapes; `None` if the announce path has no counterpart (BEP 48).
    scrape: Option<String>,
}

impl HttpPaths {
    /// Derives the paths from the authority and the path of a URL; an empty path is `/announce`.
    pub(crate) fn new(authority: &str, path: &str) -> Self {
        let path = if path.is_empty() || path == "/" { "/announce" } else { path };
        let with_separator =
            |path: &str| format!("{path}{}", if path.contains('?') { '&' } else { '?' });
        let (before, last) = path
            .split_once('?')
            .map_or(path, |(path, _)| path)
            .rsplit_once('/')
            .unwrap_or_default();
        let scrape = last.strip_prefix("announce");
        let query = path.find('?').map_or("", |at| &path[at..]);
        Self {
            host: authority.to_owned(),
            announce: with_separator(path),
            scrape: scrape.map(|rest| with_separator(&format!("{before}/scrape{rest}{query}"))),
        }
    }

    /// Returns whether the tracker has a scrape path.
    pub(crate) fn has_scrape(&self) -> bool {
        self.scrape.is_some()
    }

    /// Writes an announce; with `closes`, it asks the server to close the connection.
    pub(crate) fn write_announce(&self, out: &mut String, announce: &LoadAnnounce, closes: bool) {
        out.push_str("GET ");
        out.push_str(&self.announce);
        out.push_str("info_hash=");
        escape(out, &announce.info_hash);
        out.push_str("&peer_id=");
        escape(out, &announce.peer_id());
        let LoadAnnounce { port, left, num_want, peer, .. } = announce;
        _ = write!(
            out,
            "&port={port}&uploaded=0&downloaded=0&left={left}&compact=1&numwant={num_want}&key={peer:08x}"
        );
        out.push_str(match announce.event {
            LoadEvent::None => "",
            LoadEvent::Completed => "&event=completed",
            LoadEvent::Started => "&event=started",
            LoadEvent::Stopped => "&event=stopped",
        });
        self.write_headers(out, closes);
    }

    /// Writes a scrape; with `closes`, it asks the server to close the connection.
    pub(crate) fn write_scrape(
        &self,
        out: &mut String,
        info_hashes: impl Iterator<Item = [u8; 20]>,
        closes: bool,
    ) {
        out.push_str("GET ");
        out.push_str(self.scrape.as_deref().unwrap_or_default());
        for (info_hash, at) in info_hashes.zip(0..) {
            out.push_str(if at == 0 { "info_hash=" } else { "&info_hash=" });
            escape(out, &info_hash);
        }
        self.write_headers(out, closes);
    }

    /// Writes the rest of a request after its target.
    fn write_headers(&self, out: &mut String, closes: bool) {
        out.push_str(" HTTP/1.1\r\nHost: ");
        out.push_str(&self.host);
        out.push_str("\r\nUser-Agent: tsubame-load\r\n");
        out.push_str(if closes { "Connection: close\r\n\r\n" } else { "\r\n" });
    }
}

/// Writes bytes with the percent-encoding of URLs.
fn escape(out: &mut String, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push((*byte).into());
        } else {
            let digit = |four: u8| char::from(HEX[usize::from(four)]);
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

/// A reply that was received completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompleteReply<'a> {
    pub(crate) status: u16,
    pub(crate) body: Cow<'a, [u8]>,
    /// Bytes of the head and the body.
    pub(crate) len: usize,
    /// Whether the server closes the connection.
    pub(crate) closes: bool,
}

/// Parses a reply if it is complete. With `ended`, no more bytes will arrive.
///
/// # Errors
///
/// Returns the problem of a reply that is malformed or too large.
pub(crate) fn read_whole<'a>(
    bytes: &'a [u8],
    ended: bool,
) -> Result<Option<CompleteReply<'a>>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let at = match head.parse(bytes).map_err(|_| "malformed head")? {
        httparse::Status::Complete(at) => at,
        httparse::Status::Partial if bytes.len() > HEAD_LEN_MAX => return Err("malformed head"),
        httparse::Status::Partial => return Ok(None),
    };
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| str::from_utf8(header.value).ok()).map(str::trim_end)
    };
    if header("content-encoding").is_some() {
        return Err("content-encoding not requested");
    }
    let is_http_1_0 = head.version == Some(0);
    let has_close =
        |connection: &str| connection.split(',').any(|it| it.trim().eq_ignore_ascii_case("close"));
    let closes = header("connection").map_or(is_http_1_0, has_close);
    let status = head.code.unwrap_or_default();
    // Some trackers end the body with a line break, which clients tolerate.
    let whole = |body: &'a [u8], len| {
        let body = Cow::Borrowed(body.trim_ascii_end());
        Ok(Some(CompleteReply { status, body, len: at + len, closes }))
    };
    let rest = &bytes[at..];
    if header("transfer-encoding").is_some_and(|it| it.eq_ignore_ascii_case("chunked")) {
        let unchunked = unchunk(rest)?.map(|(body, len)| {
            let body = Cow::Owned(body.trim_ascii_end().to_vec());
            CompleteReply { status, body, len: at + len, closes }
        });
        return Ok(unchunked);
    }
    match header("content-length") {
        Some(len) => match len.parse::<usize>() {
            Ok(len) if len <= BODY_LEN_MAX => {
                rest.get(..len).map_or(Ok(None), |body| whole(body, len))
            }
            _ => Err("invalid content-length"),
        },
        // The body ends with the connection (RFC 9112, 6.3).
        None if ended => whole(rest, rest.len()),
        None => Ok(None),
    }
}

/// Joins the chunks of a body if the last has arrived; returns the body and its number of encoded bytes.
fn unchunk(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let size = httparse::parse_chunk_size(&bytes[at..]).map_err(|_| "malformed chunk")?;
        let httparse::Status::Complete((head, len)) = size else { return Ok(None) };
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= BODY_LEN_MAX)
            .ok_or("malformed chunk")?;
        let Some(chunk) = bytes.get(at + head..at + head + len + 2) else { return Ok(None) };
        at += head + len + 2;
        if len == 0 {
            return Ok(Some((body, at)));
        }
        body.extend_from_slice(&chunk[..len]);
        if !chunk.ends_with(b"\r\n") || body.len() > BODY_LEN_MAX {
            return Err("malformed chunk");
        }
    }
}

/// Parses the reply to an announce of a client of one address family.
///
/// It is as tolerant as clients are: keys may have any order, and those with a default may be missing.
pub(crate) fn read_announce(body: &[u8], is_ipv4: bool) -> Result<TrackerReply<'_>, &'static str> {
    if bencode::raw_value(body, b"failure reason").is_some() {
        return Ok(TrackerReply::Error);
    }
    let list = |key: &[u8]| match bencode::raw_value(body, key) {
        Some(raw) => bytes_of(raw).ok_or("peers that are not compact"),
        None => Ok(&[][..]),
    };
    let (v4, v6) = (list(b"peers")?, list(b"peers6")?);
    let (peers, other_family) = if is_ipv4 { (v4, v6) } else { (v6, v4) };
    Ok(TrackerReply::Announce {
        interval: number(body, b"interval").ok_or("reply without an interval")?,
        leechers: number(body, b"incomplete").unwrap_or(0),
        seeders: number(body, b"complete").unwrap_or(0),
        peers,
        other_family,
    })
}

/// Parses the reply to a scrape into rows in the order of the request, with zeros for missing torrents; `None` if it is
/// a failure.
pub(crate) fn read_scrape(
    body: &[u8],
    requested: impl Iterator<Item = [u8; 20]>,
) -> Result<Option<Vec<[u8; 12]>>, &'static str> {
    if bencode::raw_value(body, b"failure reason").is_some() {
        return Ok(None);
    }
    let files = bencode::raw_value(body, b"files").ok_or("scrape without files")?;
    let row = |info_hash: [u8; 20]| {
        let mut row = [0; 12];
        let file = bencode::raw_value(files, &info_hash).unwrap_or_default();
        let keys = [&b"complete"[..], b"downloaded", b"incomplete"];
        for (field, key) in row.chunks_exact_mut(4).zip(keys) {
            field.copy_from_slice(&number(file, key).unwrap_or(0).to_be_bytes());
        }
        row
    };
    Ok(Some(requested.map(row).collect()))
}

/// Checks that a body is canonical bencode, which clients do not require.
pub(crate) fn check_form(body: &[u8]) -> Result<(), &'static str> {
    match Value::parse(body) {
        Ok(_) => Ok(()),
        Err(BencodeError::Unsorted) => Err("keys that are not sorted"),
        Err(_) => Err("not canonical bencode"),
    }
}

/// Returns the content of a bencoded string.
fn bytes_of(raw: &[u8]) -> Option<&[u8]> {
    let digits = raw.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then(|| raw.get(digits + 1..))?
}

/// Returns an integer of a bencoded dictionary.
fn number(dictionary: &[u8], key: &[u8]) -> Option<u32> {
    let raw = bencode::raw_value(dictionary, key)?.strip_prefix(b"i")?.strip_suffix(b"e")?;
    str::from_utf8(raw).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsubame_http::head;
    use tsubame_http::query;
    use tsubame_storage::{AnnounceEvent, InfoHash, PeerId};

    fn announce() -> LoadAnnounce {
        let info_hash = *b"\0\x01 az09-._~%&+#/?\x7f\x80\xff";
        LoadAnnounce {
            info_hash,
            peer: 4,
            left: 5,
            event: LoadEvent::Stopped,
            num_want: 7,
            port: 6,
        }
    }

    #[test]
    fn written_requests_are_parsed_by_the_tracker() {
        let paths = HttpPaths::new("t.example:80", "/k/announce?a=b");
        let mut text = String::new();
        paths.write_announce(&mut text, &announce(), true);
        let (head, len) = head::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((len, head.path, head.keep_alive), (text.len(), "/k/announce", false));
        let read = query::AnnounceQuery::parse(head.query).unwrap();
        assert_eq!((read.info_hash, read.port), (InfoHash(announce().info_hash), 6));
        assert_eq!((read.left, read.event, read.numwant), (5, AnnounceEvent::Stopped, Some(7)));
        assert_eq!((read.peer_id, read.compact), (Some(PeerId(announce().peer_id())), true));
        text.clear();
        paths.write_scrape(&mut text, [[8; 20], [9; 20]].into_iter(), false);
        let (head, _) = head::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((head.path, head.keep_alive), ("/k/scrape", true));
        let read: Vec<_> = query::info_hashes(head.query).map(Result::unwrap).collect();
        assert_eq!(read, [InfoHash([8; 20]), InfoHash([9; 20])]);
        assert!(!HttpPaths::new("t", "/a").has_scrape() && HttpPaths::new("t", "").has_scrape());
        assert!(HttpPaths::new("t", "/announce?k=a/b").has_scrape());
    }

    #[test]
    fn only_complete_replies_are_parsed() {
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 5  \r\n\r\nabc\r\nHTTP";
        assert!((0..reply.len() - 4).all(|len| read_whole(&reply[..len], false) == Ok(None)));
        let body = Cow::Borrowed(&b"abc"[..]);
        let whole =
            CompleteReply { status: 200, body: body.clone(), len: reply.len() - 4, closes: false };
        assert_eq!(read_whole(reply, false), Ok(Some(whole)));
        let old = b"HTTP/1.0 200 OK\r\n\r\nabc";
        assert_eq!(read_whole(old, false), Ok(None));
        let whole = CompleteReply { status: 200, body: body.clone(), len: old.len(), closes: true };
        assert_eq!(read_whole(old, true), Ok(Some(whole)));
        let chunked =
            b"HTTP/1.1 200 OK\r\nConnection: x, close\r\nTransfer-Encoding: chunked\r\n\r\n\
            2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert!((0..chunked.len()).all(|len| read_whole(&chunked[..len], false) == Ok(None)));
        let whole = CompleteReply { status: 200, body, len: chunked.len(), closes: true };
        assert_eq!(read_whole(chunked, false), Ok(Some(whole)));
        for (reply, what) in [
            (&b"nothing\r\n\r\n"[..], "malformed head"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "invalid content-length"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
                "content-encoding not requested",
            ),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "malformed chunk"),
        ] {
            assert_eq!(read_whole(reply, false), Err(what), "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn bodies_are_parsed() {
        let body = b"d8:completei1e10:incompletei2e8:intervali60e5:peers6:peer-16:peers60:e";
        let (peers, other_family) = (&b"peer-1"[..], &[][..]);
        let expected =
            TrackerReply::Announce { interval: 60, leechers: 2, seeders: 1, peers, other_family };
        assert_eq!(read_announce(body, true), Ok(expected));
        let (peers, other_family) = (other_family, peers);
        let expected =
            TrackerReply::Announce { interval: 60, leechers: 2, seeders: 1, peers, other_family };
        assert_eq!(read_announce(body, false), Ok(expected));
        assert_eq!(read_announce(b"d14:failure reason2:noe", true), Ok(TrackerReply::Error));
        assert_eq!(read_announce(b"d5:peersl", true), Err("reply without an interval"));
        let (peers, other_family) = (&[][..], &[][..]);
        let expected =
            TrackerReply::Announce { interval: 60, leechers: 0, seeders: 0, peers, other_family };
        assert_eq!(read_announce(b"d8:intervali60ee", true), Ok(expected), "as Chihaya replies");
        assert_eq!(check_form(b"d1:bi1e1:ai1ee"), Err("keys that are not sorted"));
        assert_eq!(
            (check_form(b"d1:b"), check_form(b"de")),
            (Err("not canonical bencode"), Ok(()))
        );
        let list = read_announce(b"d8:intervali60e5:peerslee", true);
        assert_eq!(list, Err("peers that are not compact"));
        let requested = || [[b'a'; 20], [b'b'; 20]].into_iter();
        let files =
            b"d5:filesd20:bbbbbbbbbbbbbbbbbbbbd8:completei1e10:downloadedi2e10:incompletei3eeee";
        let rows = vec![[0; 12], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]];
        assert_eq!(read_scrape(files, requested()), Ok(Some(rows)));
        assert_eq!(read_scrape(b"d14:failure reason2:noe", requested()), Ok(None));
        assert_eq!(read_scrape(b"de", requested()), Err("scrape without files"));
    }
}
