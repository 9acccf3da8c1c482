//! What the test clients of all protocols have in common.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;
use tsubame_storage::Endpoint;

/// How long to wait for each reply, and how often to ask
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
pub(super) const ATTEMPTS: usize = 3;

/// What did not go as a client needs it
#[derive(Debug, Error)]
pub enum E2eError {
    /// Not a tracker this can ask
    #[error(
        "{0:?} is not the URL of a tracker; write it as udp://host:6969, http://host:6969/announce or https://..."
    )]
    Url(String),
    /// No address for the name
    #[error("{0} has no address: {1}")]
    Name(String, #[source] io::Error),
    /// The socket failed
    #[error("cannot send to {0}: {1}; is anything listening there?")]
    Socket(SocketAddr, #[source] io::Error),
    /// No encrypted connection
    #[error(
        "{0} cannot be reached over TLS: {1}; is the certificate of this name, and of an authority this machine trusts?"
    )]
    Tls(SocketAddr, String),
    /// Nothing came back
    #[error(
        "{0} does not answer a {1}; is it running, and does a firewall let it through both ways?"
    )]
    Silence(SocketAddr, &'static str),
    /// An error came back
    #[error("{0} refuses a {1}: {2:?}")]
    Refused(SocketAddr, &'static str, String),
    /// The reply is not what the BEPs say
    #[error("{0} answers a {1} wrongly: {2}")]
    Wrong(SocketAddr, &'static str, String),
}

/// What both protocols can ask
pub(super) trait TestClient {
    fn tracker(&self) -> SocketAddr;

    /// What comes before the first announce, if anything does; what to say of it
    fn prepare(&mut self) -> Result<Option<String>, E2eError>;

    fn announce(
        &mut self,
        port: u16,
        event: E2eEvent,
        left: u64,
    ) -> Result<AnnounceResult, E2eError>;

    fn scrape(&mut self) -> Result<ScrapeResult, E2eError>;
}

/// Why the pretended clients announce
#[derive(Clone, Copy)]
pub(super) enum E2eEvent {
    Started,
    Stopped,
}

/// An announce reply, read
pub(super) struct AnnounceResult {
    pub(super) interval: u32,
    pub(super) leechers: u32,
    pub(super) seeders: u32,
    pub(super) peers: Vec<Endpoint>,
}

/// A scrape reply, read
pub(super) struct ScrapeResult {
    pub(super) seeders: u32,
    pub(super) completed: u32,
    pub(super) leechers: u32,
}

pub(super) fn expect(
    tracker: SocketAddr,
    holds: bool,
    what: &'static str,
    otherwise: impl FnOnce() -> String,
) -> Result<(), E2eError> {
    if holds { Ok(()) } else { Err(E2eError::Wrong(tracker, what, otherwise())) }
}

/// A torrent nobody else has
pub(super) fn info_hash(entropy: u64) -> [u8; 20] {
    let mut info_hash = [0x7e; 20];
    info_hash[..8].copy_from_slice(&entropy.to_be_bytes());
    info_hash
}
