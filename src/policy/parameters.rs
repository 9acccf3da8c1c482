//! Data in the announce URL of a client in addition to the request: a passkey in the path, and query parameters.

use tsubame_udp::wire::UrlData;

/// Path segment that is not a passkey, alone or with an extension as in `announce.php`.
const ANNOUNCE: &str = "announce";

/// The parts of the path and query of an announce URL that hooks use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters<'a> {
    /// Passkey in the path, without decoding.
    pub key: Option<&'a str>,
    /// Text after the question mark, without decoding.
    pub query: &'a str,
}

impl<'a> Parameters<'a> {
    /// Reads the URL data of a UDP announce (BEP 41), whose pieces are joined in `scratch`.
    ///
    /// The passkey is the only segment of the path that is not `announce`: `/KEY/announce`, `/announce/KEY` and `/KEY`
    /// are all in use. URL data that is not UTF-8 is ignored.
    pub fn of_url(data: UrlData<'_>, scratch: &'a mut Vec<u8>) -> Self {
        scratch.clear();
        data.for_each(|piece| scratch.extend_from_slice(piece));
        let Ok(url) = str::from_utf8(scratch) else { return Self::default() };
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let mut keys = path.split('/').filter(|it| !it.is_empty() && !is_announce(it));
        let key = keys.next().filter(|_| keys.next().is_none());
        Self { key, query }
    }

    /// Returns the value of a query parameter, without decoding; if it is repeated, the first value.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        let parameters = self.query.split('&').filter_map(|parameter| parameter.split_once('='));
        parameters.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }
}

/// Returns whether a path segment is `announce`, alone or with an extension. A passkey may begin with the same letters.
fn is_announce(segment: &str) -> bool {
    segment.strip_prefix(ANNOUNCE).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsubame_udp::wire::url_data;

    fn options(pieces: &[&[u8]]) -> Vec<u8> {
        let option = |piece: &&[u8]| [&[2, piece.len() as u8], *piece].concat();
        pieces.iter().flat_map(option).collect()
    }

    #[test]
    fn the_url_of_a_udp_announce_is_joined_from_its_pieces() {
        for (pieces, key, jwt) in [
            (
                &[&b"/abc/ann"[..], b"ounce?x=1&jw", b"t=a.b.c&jwt=d"][..],
                Some("abc"),
                Some("a.b.c"),
            ),
            (&[b"/announce/abc"], Some("abc"), None),
            (&[b"/abc"], Some("abc"), None),
            (&[b"/announcer42/announce.php"], Some("announcer42"), None),
            (&[b"/announce?jwt="], None, Some("")),
            (&[b"/a/b/announce"], None, None),
            (&[b"?jwt=x"], None, Some("x")),
            (&[b"\xff/announce"], None, None),
            (&[], None, None),
        ] {
            let (options, mut scratch) = (options(pieces), Vec::new());
            let parameters = Parameters::of_url(url_data(&options), &mut scratch);
            assert_eq!((parameters.key, parameters.get("jwt")), (key, jwt), "{pieces:?}");
        }
    }
}
