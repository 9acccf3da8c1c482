//! The config keys of addresses to listen on.

use std::fmt;

/// Config key of an address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenKey {
    /// `udp.listen`.
    Udp,
    /// `http.listen`.
    Http,
    /// `http.tls.listen`.
    Https,
}

impl fmt::Display for ListenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp.listen",
            Self::Http => "http.listen",
            Self::Https => "http.tls.listen",
        })
    }
}

impl ListenKey {
    /// Returns the option of `ss` that lists sockets of this protocol.
    pub(super) fn ss_option(self) -> char {
        if self == Self::Udp { 'u' } else { 't' }
    }
}
