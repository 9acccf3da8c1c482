//! The outcome of a request. Each outcome is a counter: requests are counted and never logged.

use tsubame_storage::{JoinRefusal, SwarmChange};
use tsubame_udp::wire::RequestError;

/// Declares the outcomes with their names in metrics.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The outcome of a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Outcome {
            $($(#[$doc])* $variant,)*
        }

        impl Outcome {
            /// All outcomes, in the order of their counters.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// Returns the name in metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

outcomes! {
    /// A connect was answered.
    Connected = "connected",
    /// An announce was answered and a new peer was stored.
    Joined = "joined",
    /// An announce was answered and the lifetime of a stored peer was renewed.
    Refreshed = "refreshed",
    /// An announce was answered and a stored peer became a seeder.
    Completed = "completed",
    /// An announce was answered and the peer was removed.
    Stopped = "stopped",
    /// An announce was answered and there was nothing to store: it was `stopped` for a peer that was not stored, or its
    /// port cannot be connected to.
    NotStored = "not_stored",
    /// An announce was answered but not stored: the memory ceiling is almost reached.
    RefusedMemory = "refused_memory",
    /// An announce was answered but not stored: the torrent is new and the memory ceiling is almost reached.
    RefusedNewTorrent = "refused_new_torrent",
    /// An announce was answered but not stored: memory is short and its network has used its share.
    RefusedSource = "refused_source",
    /// An announce was answered but not stored: the swarm has reached its cap.
    RefusedSwarmCap = "refused_swarm_cap",
    /// An announce was answered but not stored: its address has reached the cap within the swarm.
    RefusedAddressCap = "refused_address_cap",
    /// A scrape was answered.
    Scraped = "scraped",
    /// Dropped: shorter than any request with its action. The source may be forged.
    TooShort = "too_short",
    /// Dropped: unknown action. The source may be forged.
    UnknownAction = "unknown_action",
    /// Dropped: a connect without the protocol id of BEP 15. The source may be forged.
    BadMagic = "bad_magic",
    /// Dropped or refused: the connection id was not issued to this source, or has expired. The source may be forged,
    /// or the client keeps ids for too long.
    WrongConnectionId = "wrong_connection_id",
    /// Dropped: the source port is 0, to which no reply can be sent. Such datagrams are forged.
    SourcePortZero = "source_port_zero",
    /// Dropped: the message header of the datagram could not be read.
    Unreadable = "unreadable",
    /// Forwarded to the shard that owns the info hash, which counts the outcome.
    Forwarded = "forwarded",
    /// Dropped, or refused over HTTP: the queue to the shard that owns the info hash is full.
    ShedMesh = "shed_mesh",
    /// Dropped: no free slot for the reply to another shard's datagram.
    ShedSlots = "shed_slots",
    /// Dropped: a scrape over several shards of which a part was late, or too many such scrapes are pending.
    ShedScrape = "shed_scrape",
    /// Refused: another shard did not answer an HTTP request in time.
    ShedLate = "shed_late",
    /// The connection was closed: its PROXY header is invalid.
    BrokenProxyHeader = "broken_proxy_header",
    /// Refused with 400: not an HTTP request.
    BadRequest = "bad_request",
    /// Refused with 431: the request head is too long.
    HeadTooLong = "head_too_long",
    /// Refused with 405: neither `GET` nor `HEAD`.
    MethodNotAllowed = "method_not_allowed",
    /// Refused with 404: the path is not served.
    NotFound = "not_found",
    /// Answered with `failure reason`: a parameter of an announce or scrape is missing or invalid.
    BadQuery = "bad_query",
    /// A full scrape was sent.
    FullScrape = "full_scrape",
    /// Refused with 403: a full scrape from a network that may not request it.
    FullScrapeForbidden = "full_scrape_forbidden",
    /// Refused with 429: a full scrape too soon after the last one, or while another is sent.
    FullScrapeTooSoon = "full_scrape_too_soon",
    /// A full scrape was ended early, because a shard or the client was too slow.
    FullScrapeBroken = "full_scrape_broken",
    /// Refused: an access list does not permit the torrent.
    ForbiddenTorrent = "forbidden_torrent",
    /// Refused: the client program is not permitted.
    ForbiddenClient = "forbidden_client",
    /// Dropped: the network is not permitted.
    ForbiddenNetwork = "forbidden_network",
    /// Refused: an announce without a passkey.
    NoPasskey = "no_passkey",
    /// Refused: an announce with an unknown passkey.
    WrongPasskey = "wrong_passkey",
    /// Refused: a request without a token.
    NoToken = "no_token",
    /// Refused: the token has another issuer or audience, or an invalid signature.
    BadToken = "bad_token",
    /// Refused: the key of the token is unknown.
    UnknownTokenKey = "unknown_token_key",
    /// Refused: the token has expired.
    ExpiredToken = "expired_token",
    /// Refused: the token is not yet valid.
    EarlyToken = "token_not_yet_valid",
    /// Refused: the token is for another torrent.
    TokenOfAnotherTorrent = "token_of_another_torrent",
    /// Dropped, or refused over HTTP: too many new tokens arrived in one turn to check this one.
    TokenNotChecked = "token_not_checked",
    /// Refused: a scrape over UDP, which can carry neither passkey nor token.
    ScrapeWithoutProof = "scrape_without_proof",
    /// Refused: the source exceeded its rate of announces.
    TooManyAnnounces = "too_many_announces",
    /// Refused: the source exceeded its rate of different torrents.
    TooManyTorrents = "too_many_torrents",
    /// Refused by a custom hook.
    CustomHook = "custom_hook",
    /// The page at `/` was sent.
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
