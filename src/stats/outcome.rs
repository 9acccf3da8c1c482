//! The outcome of a request. Each outcome is a counter: requests are counted and never logged.

use tsubame_storage::{JoinRefusal, SwarmChange};
use tsubame_udp::wire::RequestError;

/// Declares the outcomes with the name each has in metrics
macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// How a request ended
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Outcome {
            $($(#[$doc])* $variant,)*
        }

        impl Outcome {
            /// All, in the order of their counters
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// Its name in metrics
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

outcomes! {
    /// A connect was answered
    Connected = "connected",
    /// An announce was answered; a new peer is in the swarm
    Joined = "joined",
    /// An announce was answered; a known peer is fresh again
    Refreshed = "refreshed",
    /// An announce was answered; a known peer has finished its download
    Completed = "completed",
    /// An announce was answered; the peer is gone
    Stopped = "stopped",
    /// An announce was answered; there was nothing to store: it left without being there, or its port
    /// cannot be connected to
    NotStored = "not_stored",
    /// An announce was answered but not stored: the memory ceiling is near
    RefusedMemory = "refused_memory",
    /// An announce was answered but not stored: the torrent is new and the memory ceiling is near
    RefusedNewTorrent = "refused_new_torrent",
    /// An announce was answered but not stored: memory is short, and its network has its share of it
    RefusedSource = "refused_source",
    /// An announce was answered but not stored: the swarm is at its cap
    RefusedSwarmCap = "refused_swarm_cap",
    /// An announce was answered but not stored: its address has as many peers in the swarm as it may
    RefusedAddressCap = "refused_address_cap",
    /// A scrape was answered
    Scraped = "scraped",
    /// Dropped: shorter than any request of its action. Anybody can send these
    TooShort = "too_short",
    /// Dropped: no action of a request. Anybody can send these
    UnknownAction = "unknown_action",
    /// Dropped: a connect without the magic number. Anybody can send these
    BadMagic = "bad_magic",
    /// Dropped or refused: a connection id that this source was not given, or too long ago. Forged
    /// sources end here, and clients that keep ids for too long
    WrongConnectionId = "wrong_connection_id",
    /// Dropped: from port 0, where no reply can go. Only forged datagrams come from there
    SourcePortZero = "source_port_zero",
    /// Dropped: the kernel's account of the datagram could not be read
    Unreadable = "unreadable",
    /// Passed on to the shard that owns the info hash, which counts the answer
    Forwarded = "forwarded",
    /// Dropped, or over HTTP refused: the ring to the shard that owns the info hash is full
    ShedMesh = "shed_mesh",
    /// Dropped: no slot for the reply to another shard's datagram
    ShedSlots = "shed_slots",
    /// Dropped: a scrape over several shards of which a part was late or too many wait already
    ShedScrape = "shed_scrape",
    /// Refused: another shard has not answered a request over HTTP in time
    ShedLate = "shed_late",
    /// Ended: a PROXY header that is broken
    BrokenProxyHeader = "broken_proxy_header",
    /// Refused with 400: bytes that are no HTTP request
    BadRequest = "bad_request",
    /// Refused with 431: a request whose head is too long
    HeadTooLong = "head_too_long",
    /// Refused with 405: neither `GET` nor `HEAD`
    MethodNotAllowed = "method_not_allowed",
    /// Refused with 404: a path that is not served
    NotFound = "not_found",
    /// Answered with a failure: an announce or scrape that lacks something, or has it wrong
    BadQuery = "bad_query",
    /// The list of all torrents was sent
    FullScrape = "full_scrape",
    /// Refused with 403: the list of all torrents, to a network that may not have it
    FullScrapeForbidden = "full_scrape_forbidden",
    /// Refused with 429: the list of all torrents, too soon after the last or while another is sent
    FullScrapeTooSoon = "full_scrape_too_soon",
    /// Ended early: the list of all torrents, which was not made or taken in time
    FullScrapeBroken = "full_scrape_broken",
    /// Refused: a torrent that an access list does not permit
    ForbiddenTorrent = "forbidden_torrent",
    /// Refused: a client that is not permitted
    ForbiddenClient = "forbidden_client",
    /// Dropped: from a network that is not permitted
    ForbiddenNetwork = "forbidden_network",
    /// Refused: an announce without a passkey
    NoPasskey = "no_passkey",
    /// Refused: an announce with a passkey that nobody has
    WrongPasskey = "wrong_passkey",
    /// Refused: a request without a token
    NoToken = "no_token",
    /// Refused: a token that is none of the issuer for this tracker, or whose signature is wrong
    BadToken = "bad_token",
    /// Refused: a token whose key is not known
    UnknownTokenKey = "unknown_token_key",
    /// Refused: a token whose time is over
    ExpiredToken = "expired_token",
    /// Refused: a token whose time has not come
    EarlyToken = "token_not_yet_valid",
    /// Refused: a token for another torrent
    TokenOfAnotherTorrent = "token_of_another_torrent",
    /// Dropped, or over HTTP refused: too many new tokens in a turn to check this one
    TokenNotChecked = "token_not_checked",
    /// Refused: a scrape over UDP, which can carry neither passkey nor token
    ScrapeWithoutProof = "scrape_without_proof",
    /// Refused: more announces from one source than are permitted
    TooManyAnnounces = "too_many_announces",
    /// Refused: announces of more torrents from one source than are permitted
    TooManyTorrents = "too_many_torrents",
    /// Refused: by a hook that this program brings along beside those of the tracker
    CustomHook = "custom_hook",
    /// The page at `/` was shown
    PageShown = "page_shown",
}

impl Outcome {
    /// Returns the kind of request, as far as it was parsed.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Connected => "connect",
            Self::Joined
            | Self::Refreshed
            | Self::Completed
            | Self::Stopped
            | Self::NotStored
            | Self::RefusedMemory
            | Self::RefusedNewTorrent
            | Self::RefusedSource
            | Self::RefusedSwarmCap
            | Self::RefusedAddressCap
            | Self::Forwarded
            | Self::ShedSlots
            | Self::ForbiddenTorrent
            | Self::ForbiddenClient
            | Self::NoPasskey
            | Self::WrongPasskey
            | Self::NoToken
            | Self::BadToken
            | Self::UnknownTokenKey
            | Self::ExpiredToken
            | Self::EarlyToken
            | Self::TokenOfAnotherTorrent
            | Self::TokenNotChecked
            | Self::TooManyAnnounces
            | Self::TooManyTorrents
            | Self::CustomHook => "announce",
            Self::Scraped
            | Self::ShedScrape
            | Self::ScrapeWithoutProof
            | Self::FullScrape
            | Self::FullScrapeForbidden
            | Self::FullScrapeTooSoon
            | Self::FullScrapeBroken => "scrape",
            Self::PageShown => "page",
            Self::TooShort
            | Self::UnknownAction
            | Self::BadMagic
            | Self::WrongConnectionId
            | Self::SourcePortZero
            | Self::Unreadable
            | Self::ForbiddenNetwork
            | Self::ShedMesh
            | Self::ShedLate
            | Self::BrokenProxyHeader
            | Self::BadRequest
            | Self::HeadTooLong
            | Self::MethodNotAllowed
            | Self::NotFound
            | Self::BadQuery => "any",
        }
    }
}

impl From<RequestError> for Outcome {
    fn from(malformed: RequestError) -> Self {
        match malformed {
            RequestError::TooShort => Self::TooShort,
            RequestError::UnknownAction => Self::UnknownAction,
            RequestError::BadMagic => Self::BadMagic,
        }
    }
}

impl From<SwarmChange> for Outcome {
    fn from(change: SwarmChange) -> Self {
        match change {
            SwarmChange::Joined => Self::Joined,
            SwarmChange::Refreshed => Self::Refreshed,
            SwarmChange::Completed => Self::Completed,
            SwarmChange::Stopped => Self::Stopped,
            SwarmChange::Nothing => Self::NotStored,
            SwarmChange::Refused(JoinRefusal::Memory) => Self::RefusedMemory,
            SwarmChange::Refused(JoinRefusal::NewTorrent) => Self::RefusedNewTorrent,
            SwarmChange::Refused(JoinRefusal::Source) => Self::RefusedSource,
            SwarmChange::Refused(JoinRefusal::SwarmCap) => Self::RefusedSwarmCap,
            SwarmChange::Refused(JoinRefusal::AddressCap) => Self::RefusedAddressCap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_outcome_has_a_counter_and_a_name_of_its_own() {
        let names: BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
    }
}
