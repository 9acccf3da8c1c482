//! The HTTP tracker protocol as a client speaks it (BEP 3, 7, 23, 48).

use crate::protocol::{Announce, Event, Reply};
use std::borrow::Cow;
use std::fmt::Write;
use tsubame_http::bencode::{self, BadBencode, Value};

/// The longest head of a reply that is read
const HEAD_LEN_MAX: usize = 8 << 10;

/// The longest body
const BODY_LEN_MAX: usize = 16 << 20;

/// The longest reply
pub(crate) const REPLY_LEN_MAX: usize = HEAD_LEN_MAX + 2 * BODY_LEN_MAX;

/// Where a tracker's announces and scrapes go
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    host: String,
    /// Up to the first parameter
    announce: String,
    /// None if the announce path has none (BEP 48)
    scrape: Option<String>,
}

impl Paths {
    /// Those of a URL's authority and the path that follows, `/announce` if that is empty
    pub(crate) fn new(authority: &str, path: &str) -> Self {
        let path = if path.is_empty() || path == "/" { "/announce" } else { path };
        let begun = |path: &str| format!("{path}{}", if path.contains('?') { '&' } else { '?' });
        let (before, last) = path
            .split_once('?')
            .map_or(path, |(path, _)| path)
            .rsplit_once('/')
            .unwrap_or_default();
        let scrape = last.strip_prefix("announce");
        let query = path.find('?').map_or("", |at| &path[at..]);
        Self {
            host: authority.to_owned(),
            announce: begun(path),
            scrape: scrape.map(|rest| begun(&format!("{before}/scrape{rest}{query}"))),
        }
    }

    pub(crate) fn has_scrape(&self) -> bool {
        self.scrape.is_some()
    }

    pub(crate) fn write_announce(&self, out: &mut String, announce: &Announce, closes: bool) {
        out.push_str("GET ");
        out.push_str(&self.announce);
        out.push_str("info_hash=");
        escape(out, &announce.info_hash);
        out.push_str("&peer_id=");
        escape(out, &announce.peer_id());
        let Announce { port, left, num_want, peer, .. } = announce;
        _ = write!(
            out,
            "&port={port}&uploaded=0&downloaded=0&left={left}&compact=1&numwant={num_want}&key={peer:08x}"
        );
        out.push_str(match announce.event {
            Event::None => "",
            Event::Completed => "&event=completed",
            Event::Started => "&event=started",
            Event::Stopped => "&event=stopped",
        });
        self.write_headers(out, closes);
    }

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

    fn write_headers(&self, out: &mut String, closes: bool) {
        out.push_str(" HTTP/1.1\r\nHost: ");
        out.push_str(&self.host);
        out.push_str("\r\nUser-Agent: tsubame-load\r\n");
        out.push_str(if closes { "Connection: close\r\n\r\n" } else { "\r\n" });
    }
}

/// Writes bytes as a URL has them
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

/// A reply that has come whole
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whole<'a> {
    pub(crate) status: u16,
    pub(crate) body: Cow<'a, [u8]>,
    /// Bytes of head and body
    pub(crate) len: usize,
    /// Whether the connection is over
    pub(crate) closes: bool,
}

/// Reads a reply if it is there as a whole; `ended` if nothing more will come
pub(crate) fn read_whole<'a>(
    bytes: &'a [u8],
    ended: bool,
) -> Result<Option<Whole<'a>>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let at = match head.parse(bytes).map_err(|_| "head of a reply")? {
        httparse::Status::Complete(at) => at,
        httparse::Status::Partial if bytes.len() > HEAD_LEN_MAX => return Err("head of a reply"),
        httparse::Status::Partial => return Ok(None),
    };
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| str::from_utf8(header.value).ok()).map(str::trim_end)
    };
    if header("content-encoding").is_some() {
        return Err("an encoding nobody asked for");
    }
    let is_old = head.version == Some(0);
    let says =
        |connection: &str| connection.split(',').any(|it| it.trim().eq_ignore_ascii_case("close"));
    let closes = header("connection").map_or(is_old, says);
    let status = head.code.unwrap_or_default();
    // Some trackers end their bodies with a line, which clients do not mind.
    let whole = |body: &'a [u8], len| {
        let body = Cow::Borrowed(body.trim_ascii_end());
        Ok(Some(Whole { status, body, len: at + len, closes }))
    };
    let rest = &bytes[at..];
    if header("transfer-encoding").is_some_and(|it| it.eq_ignore_ascii_case("chunked")) {
        let unchunked = unchunk(rest)?.map(|(body, len)| {
            let body = Cow::Owned(body.trim_ascii_end().to_vec());
            Whole { status, body, len: at + len, closes }
        });
        return Ok(unchunked);
    }
    match header("content-length") {
        Some(len) => match len.parse::<usize>() {
            Ok(len) if len <= BODY_LEN_MAX => {
                rest.get(..len).map_or(Ok(None), |body| whole(body, len))
            }
            _ => Err("content-length"),
        },
        // It goes on until the connection ends (RFC 9112, 6.3).
        None if ended => whole(rest, rest.len()),
        None => Ok(None),
    }
}

/// Puts the chunks of a body together if the last has come; returns how many bytes they took
fn unchunk(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let size = httparse::parse_chunk_size(&bytes[at..]).map_err(|_| "chunks")?;
        let httparse::Status::Complete((head, len)) = size else { return Ok(None) };
        let len = usize::try_from(len).ok().filter(|len| *len <= BODY_LEN_MAX).ok_or("chunks")?;
        let Some(chunk) = bytes.get(at + head..at + head + len + 2) else { return Ok(None) };
        at += head + len + 2;
        if len == 0 {
            return Ok(Some((body, at)));
        }
        body.extend_from_slice(&chunk[..len]);
        if !chunk.ends_with(b"\r\n") || body.len() > BODY_LEN_MAX {
            return Err("chunks");
        }
    }
}

/// Reads the reply to an announce of a client of this family
///
/// As clients do it: keys may stand in any order, and what has a default may be left out.
pub(crate) fn read_announce(body: &[u8], is_ipv4: bool) -> Result<Reply<'_>, &'static str> {
    if bencode::raw(body, b"failure reason").is_some() {
        return Ok(Reply::Error);
    }
    let list = |key: &[u8]| match bencode::raw(body, key) {
        Some(raw) => bytes_of(raw).ok_or("peers that are not compact"),
        None => Ok(&[][..]),
    };
    let (v4, v6) = (list(b"peers")?, list(b"peers6")?);
    let (peers, others) = if is_ipv4 { (v4, v6) } else { (v6, v4) };
    Ok(Reply::Announce {
        interval: number(body, b"interval").ok_or("reply without an interval")?,
        leechers: number(body, b"incomplete").unwrap_or(0),
        seeders: number(body, b"complete").unwrap_or(0),
        peers,
        others,
    })
}

/// Reads the reply to a scrape into rows in the order asked, zeros for what is not there; `None` if it is a failure
pub(crate) fn read_scrape(
    body: &[u8],
    asked: impl Iterator<Item = [u8; 20]>,
) -> Result<Option<Vec<[u8; 12]>>, &'static str> {
    if bencode::raw(body, b"failure reason").is_some() {
        return Ok(None);
    }
    let files = bencode::raw(body, b"files").ok_or("scrape without files")?;
    let row = |info_hash: [u8; 20]| {
        let mut row = [0; 12];
        let file = bencode::raw(files, &info_hash).unwrap_or_default();
        let keys = [&b"complete"[..], b"downloaded", b"incomplete"];
        for (field, key) in row.chunks_exact_mut(4).zip(keys) {
            field.copy_from_slice(&number(file, key).unwrap_or(0).to_be_bytes());
        }
        row
    };
    Ok(Some(asked.map(row).collect()))
}

/// Whether a body is bencode as it must be, which clients are not strict about
pub(crate) fn check_form(body: &[u8]) -> Result<(), &'static str> {
    match Value::parse(body) {
        Ok(_) => Ok(()),
        Err(BadBencode::Unsorted) => Err("keys that are not sorted"),
        Err(_) => Err("bencode"),
    }
}

fn bytes_of(raw: &[u8]) -> Option<&[u8]> {
    let digits = raw.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then(|| raw.get(digits + 1..))?
}

fn number(dictionary: &[u8], key: &[u8]) -> Option<u32> {
    let raw = bencode::raw(dictionary, key)?.strip_prefix(b"i")?.strip_suffix(b"e")?;
    str::from_utf8(raw).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsubame_http::head;
    use tsubame_http::query;
    use tsubame_storage::{AnnounceEvent, InfoHash, PeerId};

    fn announce() -> Announce {
        let info_hash = *b"\0\x01 az09-._~%&+#/?\x7f\x80\xff";
        Announce { info_hash, peer: 4, left: 5, event: Event::Stopped, num_want: 7, port: 6 }
    }

    #[test]
    fn the_tracker_reads_what_is_written() {
        let paths = Paths::new("t.example:80", "/k/announce?a=b");
        let mut text = String::new();
        paths.write_announce(&mut text, &announce(), true);
        let (head, len) = head::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((len, head.path, head.keep_alive), (text.len(), "/k/announce", false));
        let read = query::Announce::parse(head.query).unwrap();
        assert_eq!((read.info_hash, read.port), (InfoHash(announce().info_hash), 6));
        assert_eq!((read.left, read.event, read.numwant), (5, AnnounceEvent::Stopped, Some(7)));
        assert_eq!((read.peer_id, read.compact), (Some(PeerId(announce().peer_id())), true));
        text.clear();
        paths.write_scrape(&mut text, [[8; 20], [9; 20]].into_iter(), false);
        let (head, _) = head::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((head.path, head.keep_alive), ("/k/scrape", true));
        let read: Vec<_> = query::info_hashes(head.query).map(Result::unwrap).collect();
        assert_eq!(read, [InfoHash([8; 20]), InfoHash([9; 20])]);
        assert!(!Paths::new("t", "/a").has_scrape() && Paths::new("t", "").has_scrape());
        assert!(Paths::new("t", "/announce?k=a/b").has_scrape());
    }

    #[test]
    fn replies_are_read_when_they_are_whole() {
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 5  \r\n\r\nabc\r\nHTTP";
        assert!((0..reply.len() - 4).all(|len| read_whole(&reply[..len], false) == Ok(None)));
        let body = Cow::Borrowed(&b"abc"[..]);
        let whole = Whole { status: 200, body: body.clone(), len: reply.len() - 4, closes: false };
        assert_eq!(read_whole(reply, false), Ok(Some(whole)));
        let old = b"HTTP/1.0 200 OK\r\n\r\nabc";
        assert_eq!(read_whole(old, false), Ok(None));
        let whole = Whole { status: 200, body: body.clone(), len: old.len(), closes: true };
        assert_eq!(read_whole(old, true), Ok(Some(whole)));
        let chunked =
            b"HTTP/1.1 200 OK\r\nConnection: x, close\r\nTransfer-Encoding: chunked\r\n\r\n\
            2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert!((0..chunked.len()).all(|len| read_whole(&chunked[..len], false) == Ok(None)));
        let whole = Whole { status: 200, body, len: chunked.len(), closes: true };
        assert_eq!(read_whole(chunked, false), Ok(Some(whole)));
        for (reply, what) in [
            (&b"nothing\r\n\r\n"[..], "head of a reply"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "content-length"),
            (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "an encoding nobody asked for"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "chunks"),
        ] {
            assert_eq!(read_whole(reply, false), Err(what), "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn bodies_are_read() {
        let body = b"d8:completei1e10:incompletei2e8:intervali60e5:peers6:peer-16:peers60:e";
        let (peers, others) = (&b"peer-1"[..], &[][..]);
        let expected = Reply::Announce { interval: 60, leechers: 2, seeders: 1, peers, others };
        assert_eq!(read_announce(body, true), Ok(expected));
        let (peers, others) = (others, peers);
        let expected = Reply::Announce { interval: 60, leechers: 2, seeders: 1, peers, others };
        assert_eq!(read_announce(body, false), Ok(expected));
        assert_eq!(read_announce(b"d14:failure reason2:noe", true), Ok(Reply::Error));
        assert_eq!(read_announce(b"d5:peersl", true), Err("reply without an interval"));
        let (peers, others) = (&[][..], &[][..]);
        let expected = Reply::Announce { interval: 60, leechers: 0, seeders: 0, peers, others };
        assert_eq!(read_announce(b"d8:intervali60ee", true), Ok(expected), "as Chihaya says it");
        assert_eq!(check_form(b"d1:bi1e1:ai1ee"), Err("keys that are not sorted"));
        assert_eq!((check_form(b"d1:b"), check_form(b"de")), (Err("bencode"), Ok(())));
        let list = read_announce(b"d8:intervali60e5:peerslee", true);
        assert_eq!(list, Err("peers that are not compact"));
        let asked = || [[b'a'; 20], [b'b'; 20]].into_iter();
        let files =
            b"d5:filesd20:bbbbbbbbbbbbbbbbbbbbd8:completei1e10:downloadedi2e10:incompletei3eeee";
        let rows = vec![[0; 12], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]];
        assert_eq!(read_scrape(files, asked()), Ok(Some(rows)));
        assert_eq!(read_scrape(b"d14:failure reason2:noe", asked()), Ok(None));
        assert_eq!(read_scrape(b"de", asked()), Err("scrape without files"));
    }
}
