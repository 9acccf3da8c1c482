//! A hook of a shard, with its counters.

use super::access_rule::AccessRule;
use super::clients::ClientFilter;
use super::custom::CustomHook;
use super::interval::{IntervalVariation, LoadBasedInterval, LoadMeter};
use super::jwt::Jwt;
use super::limits::{LimitExceeded, Limits};
use super::parameters::Parameters;
use super::passkeys::Passkeys;
use super::refusal::{Refusal, RefusalReply};
use super::request::{AnnounceContext, Intervals};
use crate::stats::outcome::Outcome;
use std::sync::Arc;

/// Whether a hook checks scrapes as well.
pub(super) type CoversScrapes = bool;

/// A hook with its counters.
#[derive(Debug)]
pub(super) enum Hook {
    AccessList(AccessRule),
    Clients(Arc<ClientFilter>),
    Passkey(Arc<Passkeys>, CoversScrapes),
    Jwt(Box<Jwt>),
    Limits(Limits),
    IntervalVariation(IntervalVariation),
    IntervalLoad(LoadBasedInterval, LoadMeter),
    Custom(Arc<dyn CustomHook>),
}

/// Checks the passkey of a request.
pub(super) fn check_passkey(keys: &Passkeys, parameters: &Parameters<'_>) -> Result<(), Refusal> {
    let refused = |outcome, text| Err(Refusal { outcome, reply: RefusalReply::Error(text) });
    match parameters.key.or_else(|| parameters.get("passkey")) {
        Some(key) if keys.has(key) => Ok(()),
        Some(_) => refused(Outcome::WrongPasskey, "unknown passkey"),
        None => refused(Outcome::NoPasskey, "no passkey in the announce URL"),
    }
}

impl Hook {
    /// Returns whether the hook checks scrapes as well.
    pub(super) fn covers_scrapes(&self) -> bool {
        match self {
            Self::Passkey(_, scrapes) => *scrapes,
            Self::Jwt(jwt) => jwt.covers_scrapes(),
            Self::Limits(limits) => {
                limits.settings().scrapes && limits.settings().announces_per_s > 0
            }
            _ => false,
        }
    }

    /// Returns whether the hook reads parameters of the announce URL.
    pub(super) fn reads_parameters(&self) -> bool {
        matches!(self, Self::Passkey(..) | Self::Jwt(_) | Self::Custom(_))
    }

    /// Takes over the state of a hook of the previous policy; returns whether the two hooks belong together.
    ///
    /// With `same_options`, the options of both must be equal; without it, they must differ.
    pub(super) fn inherit(&mut self, from: &mut Self, same_options: bool) -> bool {
        match (self, from) {
            (Self::Limits(new), Self::Limits(old)) => new.inherit(old, same_options),
            (Self::IntervalLoad(by_load, new), Self::IntervalLoad(before, old)) => {
                (by_load == before) == same_options && new.inherit(old)
            }
            (Self::Jwt(new), Self::Jwt(old)) => same_options && new.inherit(old),
            _ => false,
        }
    }

    /// Checks an announce; may change the intervals of the reply.
    ///
    /// Tokens are checked by `Policy::check`, as their requests may have to wait for a check.
    pub(super) fn check(
        &mut self,
        context: &AnnounceContext<'_>,
        parameters: &Parameters<'_>,
        rng: &mut fastrand::Rng,
        intervals: &mut Intervals,
    ) -> Result<(), Refusal> {
        let refused = |outcome, reply| Err(Refusal { outcome, reply });
        match self {
            Self::AccessList(torrents)
                if !context.is_known_permitted && !torrents.permits(context.info_hash) =>
            {
                refused(Outcome::ForbiddenTorrent, torrents.reply)
            }
            Self::Clients(clients) if !clients.permits(context.peer_id) => {
                let text = "this client is not permitted on this tracker";
                refused(Outcome::ForbiddenClient, RefusalReply::Error(text))
            }
            Self::Passkey(keys, _) => check_passkey(keys, parameters),
            Self::Limits(limits) => {
                let result = limits.count(context.now.monotonic, context.source, context.info_hash);
                let Err(exceeded) = result else { return Ok(()) };
                let outcome = match exceeded {
                    LimitExceeded::Announces => Outcome::TooManyAnnounces,
                    LimitExceeded::Torrents => Outcome::TooManyTorrents,
                };
                refused(outcome, limits.refusal().reply)
            }
            Self::IntervalVariation(variation) => {
                let added = variation.draw(rng);
                let added_min = if variation.min_interval { added } else { 0 };
                intervals.interval_secs = intervals.interval_secs.saturating_add(added);
                intervals.min_interval_secs = intervals.min_interval_secs.saturating_add(added_min);
                Ok(())
            }
            Self::IntervalLoad(by_load, load) => {
                let load = load.count(context.now.monotonic.0);
                intervals.interval_secs = by_load.interval(intervals.interval_secs, load);
                Ok(())
            }
            Self::Custom(hook) => hook
                .check(context, parameters, intervals)
                .map_err(|reply| Refusal { outcome: Outcome::CustomHook, reply }),
            Self::AccessList(_) | Self::Clients(_) | Self::Jwt(_) => Ok(()),
        }
    }
}
