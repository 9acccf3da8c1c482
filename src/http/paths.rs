//! Which paths are announces and which are scrapes.

use std::fmt;
use thiserror::Error;

/// What stands for a passkey in a path
const KEY: &str = "{key}";

/// A path of which one segment may be anything: `/announce`, `/{key}/announce`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    before: String,
    /// What follows the key, if there is one
    after: Option<String>,
}

/// Why a text is no pattern
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadPattern {
    /// It is relative
    #[error("does not begin with a slash")]
    Relative,
    /// It has characters no path has
    #[error("has characters that no path has; leave out what is behind ? or #")]
    NotAPath,
    /// The key is not a segment
    #[error("has {{key}} more than once, or not as all there is between two slashes")]
    Key,
}

impl PathPattern {
    /// Reads a pattern
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        if !text.starts_with('/') {
            return Err(BadPattern::Relative);
        }
        let is_fit = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>".contains(&byte);
        if !text.bytes().all(is_fit) {
            return Err(BadPattern::NotAPath);
        }
        let Some((before, after)) = text.split_once(KEY) else {
            return Ok(Self { before: text.to_owned(), after: None });
        };
        let whole = before.ends_with('/') && (after.is_empty() || after.starts_with('/'));
        if !whole || after.contains(KEY) {
            return Err(BadPattern::Key);
        }
        Ok(Self { before: before.to_owned(), after: Some(after.to_owned()) })
    }

    /// The key of a path of this pattern: any segment that is not empty, or none if the pattern has none
    fn key<'p>(&self, path: &'p str) -> Option<Option<&'p str>> {
        let Some(after) = &self.after else { return (path == self.before).then_some(None) };
        let key = path.strip_prefix(self.before.as_str())?.strip_suffix(after)?;
        (!key.is_empty() && !key.contains('/')).then_some(Some(key))
    }

    /// The scrape path of an announce path: `announce` at the beginning of the last segment is `scrape` (BEP 48)
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

/// What a path leads to
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'p> {
    /// With the key of the path, if it has one
    Announce {
        key: Option<&'p str>,
    },
    /// The same
    Scrape {
        key: Option<&'p str>,
    },
    Page,
}

/// All paths that are served
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Where announces go
    pub announce: Vec<PathPattern>,
    /// Where scrapes go
    pub scrape: Vec<PathPattern>,
}

impl Paths {
    pub(super) fn route<'p>(&self, path: &'p str) -> Option<Route<'p>> {
        let key = |patterns: &[PathPattern]| patterns.iter().find_map(|it| it.key(path));
        if let Some(key) = key(&self.announce) {
            Some(Route::Announce { key })
        } else if let Some(key) = key(&self.scrape) {
            Some(Route::Scrape { key })
        } else {
            (path == "/").then_some(Route::Page)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_announces_and_scrapes() {
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
    fn mistaken_patterns_are_named() {
        for (text, error) in [
            ("announce", BadPattern::Relative),
            ("", BadPattern::Relative),
            ("/announce?x", BadPattern::NotAPath),
            ("/an nounce", BadPattern::NotAPath),
            ("/x{key}/announce", BadPattern::Key),
            ("/{key}{key}", BadPattern::Key),
            ("/{key}/{key}", BadPattern::Key),
        ] {
            assert_eq!(PathPattern::parse(text), Err(error), "{text}");
        }
    }
}
