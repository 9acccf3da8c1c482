//! Outcomes of requests. Each outcome is a counter; single requests are never logged.

use tsubame_storage::{JoinRefusal, SwarmChange};
use tsubame_udp::wire::RequestError;
use tsubame_udp::xdp::FilterOutcome;

/// Declares the outcomes with their names in metrics.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Outcome of a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Outcome {
            $($(#[$doc])* $variant,)*
        }

        impl Outcome {
            /// All outcomes, in the order of their counters.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// Returns the name of the outcome in metrics.
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
    /// An announce was answered; its peer was added to the swarm.
    Joined = "joined",
    /// An announce was answered; its peer was in the swarm already.
    Refreshed = "refreshed",
    /// An announce was answered; its peer has completed its download.
    Completed = "completed",
    /// An announce was answered; its peer was removed.
    Stopped = "stopped",
    /// An announce was answered and changed nothing: an unknown peer stopped, or the port cannot be connected to.
    NotStored = "not_stored",
    /// An announce was answered; its peer was not stored because the memory limit is reached, or the swarm has the most
    /// peers that the table supports.
    RefusedMemory = "refused_memory",
    /// An announce was answered; its torrent is new and was not stored because the memory limit is nearly reached.
    RefusedNewTorrent = "refused_new_torrent",
    /// An announce was answered; its peer was not stored because memory is short and the network of the source has its
    /// share of the memory already.
    RefusedSource = "refused_source",
    /// An announce was answered; its peer was not stored because the swarm has its maximum number of peers.
    RefusedSwarmCap = "refused_swarm_cap",
    /// An announce was answered; its peer was not stored because the swarm has the maximum number of peers of its
    /// address.
    RefusedAddressCap = "refused_address_cap",
    /// A scrape was answered.
    Scraped = "scraped",
    /// Dropped: the datagram is shorter than any request of its action. Such datagrams may be forged.
    TooShort = "too_short",
    /// Dropped: the action is not that of a request. Such datagrams may be forged.
    UnknownAction = "unknown_action",
    /// Dropped: a connect without the magic number. Such datagrams may be forged.
    BadMagic = "bad_magic",
    /// Dropped or refused: the connection id was not issued to this source, or has expired. Requests from forged
    /// sources end here, and those of clients that keep connection ids for too long.
    WrongConnectionId = "wrong_connection_id",
    /// Dropped: the source port is 0, to which no reply can be sent. Only forged datagrams have it.
    SourcePortZero = "source_port_zero",
    /// Dropped: the kernel's metadata of the datagram could not be parsed.
    Unreadable = "unreadable",
    /// Forwarded to the shard that owns the info hash, which counts the answer.
    Forwarded = "forwarded",
    /// Dropped, or over HTTP refused: the queue to the shard that owns the info hash is full.
    ShedMesh = "shed_mesh",
    /// Dropped: no slot was free for the reply to a datagram of another shard.
    ShedSlots = "shed_slots",
    /// Dropped: a scrape over several shards of which one replied late, or too many such scrapes were pending.
    ShedScrape = "shed_scrape",
    /// Refused: another shard did not reply in time to a request over HTTP.
    ShedLate = "shed_late",
    /// Disconnected: the PROXY header is malformed.
    BrokenProxyHeader = "broken_proxy_header",
    /// Refused with 400: the bytes are not an HTTP request.
    BadRequest = "bad_request",
    /// Refused with 431: the head of the request is too long.
    HeadTooLong = "head_too_long",
    /// Refused with 405: the method is neither `GET` nor `HEAD`.
    MethodNotAllowed = "method_not_allowed",
    /// Refused with 404: the path is not served.
    NotFound = "not_found",
    /// Answered with a failure: a parameter of an announce or scrape is missing or invalid.
    BadQuery = "bad_query",
    /// The list of all torrents was sent.
    FullScrape = "full_scrape",
    /// Refused with 403: the network of the source may not request the list of all torrents.
    FullScrapeForbidden = "full_scrape_forbidden",
    /// Refused with 429: the list of all torrents was sent too recently, or is being sent.
    FullScrapeTooSoon = "full_scrape_too_soon",
    /// Ended early: the list of all torrents was not produced or read in time.
    FullScrapeBroken = "full_scrape_broken",
    /// Refused: an access list does not permit the torrent.
    ForbiddenTorrent = "forbidden_torrent",
    /// Refused: the client software is not permitted.
    ForbiddenClient = "forbidden_client",
    /// Dropped: the network of the source is not permitted.
    ForbiddenNetwork = "forbidden_network",
    /// Refused: a request without a passkey.
    NoPasskey = "no_passkey",
    /// Refused: a request with an unknown passkey.
    WrongPasskey = "wrong_passkey",
    /// Refused: a request without a token.
    NoToken = "no_token",
    /// Refused: the token is not one of the issuer for this tracker, or its signature is invalid.
    BadToken = "bad_token",
    /// Refused: the key of the token is unknown.
    UnknownTokenKey = "unknown_token_key",
    /// Refused: the token has expired.
    ExpiredToken = "expired_token",
    /// Refused: the token is not valid yet.
    EarlyToken = "token_not_yet_valid",
    /// Refused: the token is for another torrent.
    TokenOfAnotherTorrent = "token_of_another_torrent",
    /// Dropped, or over HTTP refused: too many new tokens arrived in one turn to check this one.
    TokenNotChecked = "token_not_checked",
    /// Refused: a scrape over UDP, which can have neither a passkey nor a token.
    ScrapeWithoutProof = "scrape_without_proof",
    /// Refused: the source exceeds its limit of announces, which may count scrapes, too.
    TooManyAnnounces = "too_many_announces",
    /// Refused: the source exceeds its limit of torrents.
    TooManyTorrents = "too_many_torrents",
    /// Refused by a hook that is not part of this crate.
    CustomHook = "custom_hook",
    /// The page at `/` or a page of statistics was sent.
    PageShown = "page_shown",
}

impl Outcome {
    /// Returns whether a request with this outcome was answered as requested: not refused, dropped or forwarded. An
    /// announce is answered also if its peer is not stored.
    pub fn is_answered(self) -> bool {
        matches!(
            self,
            Self::Connected
                | Self::Joined
                | Self::Refreshed
                | Self::Completed
                | Self::Stopped
                | Self::NotStored
                | Self::RefusedMemory
                | Self::RefusedNewTorrent
                | Self::RefusedSource
                | Self::RefusedSwarmCap
                | Self::RefusedAddressCap
                | Self::Scraped
                | Self::FullScrape
                | Self::PageShown
        )
    }

    /// Returns the name of the hook that refuses requests with this outcome, if there is one.
    pub fn hook(self) -> Option<&'static str> {
        match self {
            Self::ForbiddenNetwork => Some("networks"),
            Self::ForbiddenTorrent => Some("access_list"),
            Self::ForbiddenClient => Some("clients"),
            Self::NoPasskey | Self::WrongPasskey => Some("passkey"),
            Self::NoToken
            | Self::BadToken
            | Self::UnknownTokenKey
            | Self::ExpiredToken
            | Self::EarlyToken
            | Self::TokenOfAnotherTorrent
            | Self::TokenNotChecked => Some("jwt"),
            Self::TooManyAnnounces | Self::TooManyTorrents => Some("limits"),
            _ => None,
        }
    }

    /// Returns the kind of request in metrics: `connect`, `announce`, `scrape`, `page`, or `any` if requests of several
    /// kinds can have it.
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
            | Self::ForbiddenTorrent
            | Self::ForbiddenClient
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
            | Self::ShedMesh
            | Self::ShedSlots
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
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::TooShort => Self::TooShort,
            RequestError::UnknownAction => Self::UnknownAction,
            RequestError::BadMagic => Self::BadMagic,
        }
    }
}

impl From<FilterOutcome> for Outcome {
    fn from(outcome: FilterOutcome) -> Self {
        match outcome {
            FilterOutcome::Connected => Self::Connected,
            FilterOutcome::TooShort => Self::TooShort,
            FilterOutcome::UnknownAction => Self::UnknownAction,
            FilterOutcome::BadMagic => Self::BadMagic,
            FilterOutcome::WrongConnectionId => Self::WrongConnectionId,
            FilterOutcome::ForbiddenNetwork => Self::ForbiddenNetwork,
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
    fn every_outcome_has_its_own_counter_and_name() {
        let names: BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
    }
}
