//! The hook `jwt`: refuses announces without a JSON web token (RFC 7519) for the torrent, signed by the configured
//! issuer. The claims are those of Chihaya's `jwt` hook.
//!
//! An attacker can send forged tokens at any rate. Therefore the results of checks are cached, refusals too; a shard
//! verifies a limited number of signatures per turn; and while there are more to verify, each source has a limit per
//! second. A token without an expiry time would be valid for ever: it is refused unless the operator permits it.

mod keys;
mod token_cache;

pub use keys::{KeySet, KeySource, KeysError};
pub use token_cache::LEEWAY_SECS_MAX;

use super::parameters::Parameters;
use super::refusal::{PausedRequest, PolicyStop, Refusal, RefusalReply};
use crate::clock::Now;
use crate::hex::parse_info_hash;
use crate::stats::outcome::Outcome;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use token_cache::{TokenCache, TokenResult, TokenTag};
use tsubame_storage::InfoHash;

/// Maximum bytes of a token; longer ones are refused unread.
const TOKEN_LEN_MAX: usize = 4_096;

/// Maximum number of signatures that a shard verifies in a turn, each of which takes 30 to 80 microseconds.
const CHECKS_PER_TURN: u32 = 2;

/// Maximum number of checks of a source per second while other requests wait. Sources that share a counter share the
/// limit.
const CHECKS_PER_SOURCE: u8 = 8;

/// Number of counters of checks, by the hash of the source.
const SOURCES: usize = 256;

/// Settings of the hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSettings {
    /// Required value of the claim `iss`, if any.
    pub issuer: Option<String>,
    /// Required value of the claim `aud`, or of one of its elements, if any.
    pub audience: Option<String>,
    /// Source of the key set.
    pub keys: KeySource,
    /// Interval at which the key set is fetched.
    pub update_interval: Duration,
    /// Tolerated difference between clocks in seconds.
    pub leeway_secs: u64,
    /// Whether a token must have an expiry time.
    pub require_exp: bool,
    /// Whether scrapes need a token as well.
    pub scrapes: bool,
}

/// The claims of a token that the tracker uses.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: Option<String>,
    aud: Option<Audience>,
    infohash: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Reason why a token is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenError {
    /// It is not a token of this issuer for this tracker.
    Token,
    /// Its key is not in the key set.
    Key,
    /// One of its times is negative or not finite, or it lacks the required expiry time.
    Time,
}

/// The token checks of a shard.
pub struct Jwt {
    settings: Arc<JwtSettings>,
    keys: Arc<KeySet>,
    cache: TokenCache,
    checks_left: u32,
    quota: CheckQuota,
    /// Whether this instance was matched with another one already: see [`Self::inherit`].
    is_matched: bool,
}

/// Hides keys and tokens from logs.
impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt").field("keys", &self.keys).finish_non_exhaustive()
    }
}

const fn refusal(outcome: Outcome, text: &'static str) -> Refusal {
    Refusal { outcome, reply: RefusalReply::Error(text) }
}

const BAD_TOKEN: Refusal = refusal(Outcome::BadToken, "the token is not valid for this tracker");

/// Reason why a token does not permit a request, or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenStop {
    /// The request is refused.
    Refused(Refusal),
    /// The signature must be verified, but no check is left in this turn.
    NoCheckLeft,
}

impl From<Refusal> for TokenStop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl TokenStop {
    /// Adds the position at which the hooks continue when a check is permitted.
    pub(super) fn at(self, paused: PausedRequest) -> PolicyStop {
        match self {
            Self::Refused(refusal) => PolicyStop::Refused(refusal),
            Self::NoCheckLeft => PolicyStop::Paused(paused),
        }
    }
}

/// Distributes signature checks among sources while there are too few.
struct CheckQuota {
    second: u64,
    /// Number of checks in this second, by the hash of the source.
    checked: [u8; SOURCES],
    /// Whether a check was refused in this second, and in the last.
    contended: [bool; 2],
}

impl Default for CheckQuota {
    fn default() -> Self {
        Self { second: 0, checked: [0; SOURCES], contended: [false; 2] }
    }
}

impl CheckQuota {
    /// Returns whether a signature of a source may be verified now, and counts it; `left` is the number of checks that
    /// are left in this turn.
    fn permits(&mut self, second: u64, source: u64, left: u32) -> bool {
        if second != self.second {
            self.contended = [false, self.contended[0] && second == self.second + 1];
            (self.second, self.checked) = (second, [0; SOURCES]);
        }
        let checked = &mut self.checked[source as usize % SOURCES];
        let exceeds = self.contended != [false; 2] && *checked >= CHECKS_PER_SOURCE;
        if left == 0 || exceeds {
            self.contended[0] = true;
            return false;
        }
        *checked = checked.saturating_add(1);
        true
    }
}

impl Jwt {
    /// Creates the checks with a key set; `seed` determines the hash keys of the cache.
    pub fn new(settings: Arc<JwtSettings>, keys: Arc<KeySet>, seed: u64) -> Self {
        let (cache, quota) = (TokenCache::new(seed), CheckQuota::default());
        Self { settings, keys, cache, checks_left: CHECKS_PER_TURN, quota, is_matched: false }
    }

    /// Returns whether scrapes need a token.
    pub fn covers_scrapes(&self) -> bool {
        self.settings.scrapes
    }

    /// Starts a new turn, with a new budget of signature checks.
    pub fn begin_turn(&mut self) {
        self.checks_left = CHECKS_PER_TURN;
    }

    /// Takes over the cached results of another instance if all its keys are still in the key set: a key that is added
    /// must not cause all tokens to be verified again.
    ///
    /// Returns whether the settings of both are equal and neither was matched with another instance before.
    pub fn inherit(&mut self, from: &mut Self) -> bool {
        if self.is_matched || from.is_matched || self.settings != from.settings {
            return false;
        }
        (self.is_matched, from.is_matched) = (true, true);
        if self.keys.has_all_of(&from.keys) {
            std::mem::swap(&mut self.cache, &mut from.cache);
            // The key of a token that was refused for an unknown key may be in the key set now.
            self.cache.key_set += u32::from(self.keys != from.keys);
        }
        true
    }

    /// Checks that a request has a token that approves its torrent.
    ///
    /// With `permit` the signature is verified even if no check is left in this turn.
    pub fn check(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hash: &InfoHash,
        parameters: &Parameters<'_>,
        permit: bool,
    ) -> Result<(), TokenStop> {
        let token = parameters.get("jwt").filter(|token| !token.is_empty());
        let token = token.ok_or(refusal(Outcome::NoToken, "no token (jwt) in the announce URL"))?;
        if token.len() > TOKEN_LEN_MAX {
            return Err(BAD_TOKEN.into());
        }
        let tag = self.cache.tag(token);
        let token_result =
            self.token_result(now, source, token, tag, permit).ok_or(TokenStop::NoCheckLeft)?;
        self.approve(now, token_result, info_hash).map_err(TokenStop::Refused)
    }

    /// Checks that the result of a token approves a torrent now.
    fn approve(&self, now: Now, token_result: TokenResult, hash: &InfoHash) -> Result<(), Refusal> {
        match token_result {
            TokenResult::Valid { hash: approved, from, until, .. } => {
                let leeway = self.settings.leeway_secs;
                if now.unix_secs + leeway < from {
                    Err(refusal(Outcome::EarlyToken, "the token is not valid yet"))
                } else if now.unix_secs > until.saturating_add(leeway) {
                    Err(refusal(Outcome::ExpiredToken, "the token has expired"))
                } else if approved != *hash {
                    Err(refusal(Outcome::TokenOfAnotherTorrent, "the token is for another torrent"))
                } else {
                    Ok(())
                }
            }
            TokenResult::Invalid { .. } => Err(BAD_TOKEN),
            TokenResult::NoKey { .. } => {
                Err(refusal(Outcome::UnknownTokenKey, "the key of the token is unknown"))
            }
        }
    }

    /// Returns the result of a token, from the cache or by verification; `None` if its signature may not be verified in
    /// this turn.
    fn token_result(
        &mut self,
        now: Now,
        source: IpAddr,
        token: &str,
        tag: TokenTag,
        permit: bool,
    ) -> Option<TokenResult> {
        if let Some(token_result) = self.cache.find(tag, now.unix_secs) {
            return Some(token_result);
        }
        let checked_at = now.unix_secs;
        // Malformed tokens and tokens with an unknown key are refused without a check: junk must not use up the budget.
        let (keys, left) = (self.keys.clone(), self.checks_left);
        let verified = match key_of(&keys, token) {
            Ok((algorithm, key)) => {
                let source = self.cache.source_hash(source);
                if !permit && !self.quota.permits(now.monotonic.0, source, left) {
                    return None;
                }
                let verified = self.verify(token, algorithm, key);
                self.checks_left = left.saturating_sub(u32::from(!permit));
                verified
            }
            Err(bad) => Err(bad),
        };
        let token_result = match verified {
            Ok((hash, from, until)) => TokenResult::Valid { hash, from, until, checked_at },
            Err(TokenError::Key) => TokenResult::NoKey { checked_at, key_set: self.cache.key_set },
            Err(TokenError::Token | TokenError::Time) => TokenResult::Invalid { checked_at },
        };
        self.cache.insert(tag, token_result, now.unix_secs);
        Some(token_result)
    }

    /// Returns the torrent of a token, and the times from which and until which it is valid.
    fn verify(
        &self,
        token: &str,
        algorithm: Algorithm,
        key: &DecodingKey,
    ) -> Result<(InfoHash, u64, u64), TokenError> {
        let mut validation = Validation::new(algorithm);
        // Claims are checked below, by the clock of the tracker.
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_aud) = (false, false);
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation);
        let claims = claims.map_err(|_| TokenError::Token)?.claims;
        let JwtSettings { issuer, audience, require_exp, .. } = &*self.settings;
        if issuer.is_some() && claims.iss != *issuer {
            return Err(TokenError::Token);
        }
        let is_for = |audience: &String| match &claims.aud {
            Some(Audience::One(one)) => one == audience,
            Some(Audience::Many(many)) => many.contains(audience),
            None => false,
        };
        if !audience.as_ref().is_none_or(is_for) {
            return Err(TokenError::Token);
        }
        let hash = claims.infohash.as_deref().and_then(parse_info_hash).ok_or(TokenError::Token)?;
        let time = |claim: Option<f64>| match claim {
            Some(time) if time.is_finite() && time >= 0.0 => Ok(Some(time as u64)),
            Some(_) => Err(TokenError::Time),
            None => Ok(None),
        };
        let until = match time(claims.exp)? {
            Some(until) => until,
            None if *require_exp => return Err(TokenError::Time),
            None => u64::MAX,
        };
        Ok((hash, time(claims.nbf)?.unwrap_or(0), until))
    }
}

/// Returns the algorithm and the key that a token names in its header.
fn key_of<'k>(keys: &'k KeySet, token: &str) -> Result<(Algorithm, &'k DecodingKey), TokenError> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Token)?;
    // A token must not choose `none`, or an algorithm that uses a public key as a shared secret.
    let accepted = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
    if !accepted.contains(&header.alg) {
        return Err(TokenError::Token);
    }
    let key = keys.find(header.kid.as_deref(), header.alg).ok_or(TokenError::Key)?;
    Ok((header.alg, key))
}

#[cfg(test)]
mod tests;
