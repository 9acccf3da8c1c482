//! Code that the test clients of all protocols share.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::Endpoint;

/// Time to wait for each reply.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of times that a UDP request is sent.
pub(super) const ATTEMPTS: usize = 3;

/// Error of a test client.
#[derive(Debug, Error)]
pub enum E2eError {
    /// The URL is not that of a UDP or HTTP tracker.
    #[error(
        "{0:?} is not the URL of a tracker; write it as udp://host:6969, http://host:6969/announce or https://..."
    )]
    Url(String),
    /// The host name has no address.
    #[error("cannot resolve {0}: {1}")]
    Resolve(String, #[source] io::Error),
    /// A socket operation failed.
    #[error("cannot reach {0}: {1}; check that the tracker listens there")]
    Socket(SocketAddr, #[source] io::Error),
    /// The TLS handshake failed.
    #[error(
        "{0} cannot be reached over TLS: {1}; check the name in the certificate and that its authority is trusted"
    )]
    Tls(SocketAddr, String),
    /// There was no reply.
    #[error(
        "no reply from {0} to the {1}; check that the tracker is running and that firewalls pass both directions"
    )]
    NoReply(SocketAddr, &'static str),
    /// The tracker replied with an error.
    #[error("{0} refused the {1}: {2:?}")]
    Refused(SocketAddr, &'static str, String),
    /// The reply violates a BEP.
    #[error("invalid reply from {0} to the {1}: {2}")]
    InvalidReply(SocketAddr, &'static str, String),
}

/// Requests that a test client of either protocol can send.
pub(super) trait TestClient {
    fn tracker(&self) -> SocketAddr;

    /// Gets what the first announce needs, over UDP a connection id, and describes it.
    fn prepare(&mut self) -> Result<Option<String>, E2eError>;

    fn announce(
        &mut self,
        port: u16,
        event: E2eEvent,
        left: u64,
    ) -> Result<AnnounceResult, E2eError>;

    fn scrape(&mut self) -> Result<ScrapeResult, E2eError>;
}

/// Event of an announce.
#[derive(Clone, Copy)]
pub(super) enum E2eEvent {
    Started,
    Stopped,
}

/// A parsed announce reply.
pub(super) struct AnnounceResult {
    pub(super) interval: u32,
    pub(super) leechers: u32,
    pub(super) seeders: u32,
    pub(super) peers: Vec<Endpoint>,
}

/// A parsed scrape reply.
pub(super) struct ScrapeResult {
    pub(super) seeders: u32,
    pub(super) completed: u32,
    pub(super) leechers: u32,
}

/// Returns an error about a reply, with the text of `otherwise`, unless `holds` is true.
pub(super) fn expect(
    tracker: SocketAddr,
    holds: bool,
    what: &'static str,
    otherwise: impl FnOnce() -> String,
) -> Result<(), E2eError> {
    if holds { Ok(()) } else { Err(E2eError::InvalidReply(tracker, what, otherwise())) }
}

/// Returns a random info hash, which no other client announces.
pub(super) fn info_hash(entropy: u64) -> [u8; 20] {
    let mut info_hash = [0x7e; 20];
    info_hash[..8].copy_from_slice(&entropy.to_be_bytes());
    info_hash
}
