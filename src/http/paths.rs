//! Routes the path of a request to announce, scrape or the page with the announce URLs.

use std::fmt;
use thiserror::Error;

/// Placeholder of a passkey in a path pattern.
const KEY: &str = "{key}";

/// A path in which one segment may be a placeholder: `/announce`, `/{key}/announce`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// Text before the placeholder, or the whole path.
    before: String,
    /// Text after the placeholder; `None` without a placeholder.
    after: Option<String>,
}

/// Reason for which a text is not a path pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// The path is relative.
    #[error("does not begin with a slash")]
    Relative,
    /// The text has characters that are not allowed in a path.
    #[error("has characters that are not allowed in a path, such as ? or #")]
    InvalidCharacter,
    /// The placeholder is repeated or is not a whole segment.
    #[error("has {{key}} more than once, or not as a whole segment between slashes")]
    InvalidKey,
}

impl PathPattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if !text.starts_with('/') {
            return Err(PatternError::Relative);
        }
        let is_fit = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>".contains(&byte);
        if !text.bytes().all(is_fit) {
            return Err(PatternError::InvalidCharacter);
        }
        let Some((before, after)) = text.split_once(KEY) else {
            return Ok(Self { before: text.to_owned(), after: None });
        };
        let whole = before.ends_with('/') && (after.is_empty() || after.starts_with('/'));
        if !whole || after.contains(KEY) {
            return Err(PatternError::InvalidKey);
        }
        Ok(Self { before: before.to_owned(), after: Some(after.to_owned()) })
    }

    /// Matches a path; returns `None` if it does not match.
    ///
    /// The inner value is the segment at the placeholder, which is not empty, or `None` for a pattern without one.
    fn key<'p>(&self, path: &'p str) -> Option<Option<&'p str>> {
        let Some(after) = &self.after else { return (path == self.before).then_some(None) };
        let key = path.strip_prefix(self.before.as_str())?.strip_suffix(after)?;
        (!key.is_empty() && !key.contains('/')).then_some(Some(key))
    }

    /// Returns the scrape path that belongs to an announce path (BEP 48).
    ///
    /// `announce` at the beginning of the last segment is replaced by `scrape`; returns `None` if it is not there.
    pub fn scrape(&self) -> Option<Self> {
        let text = self.to_string();
        let (folder, last) = text.rsplit_once('/')?;
        let rest = last.strip_prefix("announce")?;
        Self::parse(&format!("{folder}/scrape{rest}")).ok()
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.before)?;
        self.after.as_ref().map_or(Ok(()), |after| write!(f, "{KEY}{after}"))
    }
}

/// Destination of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'p> {
    /// An announce, with the key in the path if there is one.
    Announce { key: Option<&'p str> },
    /// A scrape, with the key in the path if there is one.
    Scrape { key: Option<&'p str> },
    /// The page with the announce URLs.
    Page,
    /// Statistics in the formats of opentracker.
    Stats,
}

/// All paths of announces and scrapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Paths of announces.
    pub announce: Vec<PathPattern>,
    /// Paths of scrapes.
    pub scrape: Vec<PathPattern>,
}

impl Paths {
    /// Returns the destination of a path; `None` if it is unknown.
    pub(super) fn route<'p>(&self, path: &'p str) -> Option<Route<'p>> {
        let key = |patterns: &[PathPattern]| patterns.iter().find_map(|it| it.key(path));
        if let Some(key) = key(&self.announce) {
            Some(Route::Announce { key })
        } else if let Some(key) = key(&self.scrape) {
            Some(Route::Scrape { key })
        } else {
            match path {
                "/" => Some(Route::Page),
                "/stats" => Some(Route::Stats),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_routed_to_announce_and_scrape() {
        let pattern = |text| PathPattern::parse(text).unwrap();
        let announce = vec![pattern("/announce"), pattern("/{key}/announce"), pattern("/a/{key}")];
        let scrape = announce.iter().filter_map(PathPattern::scrape).collect();
        let paths = Paths { announce, scrape };
        for (path, route) in [
            ("/announce", Some(Route::Announce { key: None })),
            ("/0123abcd/announce", Some(Route::Announce { key: Some("0123abcd") })),
            ("/a/0123", Some(Route::Announce { key: Some("0123") })),
            ("/scrape", Some(Route::Scrape { key: None })),
            ("/0123abcd/scrape", Some(Route::Scrape { key: Some("0123abcd") })),
            ("/", Some(Route::Page)),
            ("/announce/", None),
            ("//announce", None),
            ("/x/y/announce", None),
            ("/a/", None),
            ("", None),
        ] {
            assert_eq!(paths.route(path), route, "{path}");
        }
        assert_eq!(pattern("/x/announce.php").scrape(), Some(pattern("/x/scrape.php")));
        assert_eq!(pattern("/x/tracker").scrape(), None);
    }

    #[test]
    fn invalid_patterns_are_refused() {
        for (text, error) in [
            ("announce", PatternError::Relative),
            ("", PatternError::Relative),
            ("/announce?x", PatternError::InvalidCharacter),
            ("/an nounce", PatternError::InvalidCharacter),
            ("/x{key}/announce", PatternError::InvalidKey),
            ("/{key}{key}", PatternError::InvalidKey),
            ("/{key}/{key}", PatternError::InvalidKey),
        ] {
            assert_eq!(PathPattern::parse(text), Err(error), "{text}");
        }
    }
}
