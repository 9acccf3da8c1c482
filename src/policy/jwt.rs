//! `jwt`: tokens that approve a torrent, signed by somebody the operator trusts (RFC 7519, as Chihaya reads them).
//!
//! An attacker sends what claims to be a token as often as it can: so what a token came to is remembered, refusals
//! too; a shard checks so many signatures a turn and no more; and where there are more to check, a source has so many
//! a second. A token without a time at which it ends would be good
//! for ever, and is refused unless the operator says otherwise.

mod keys;
mod memory;

pub use keys::{KeySet, KeysError};

use super::access_list::parse_hash;
use super::{Answer, Interrupted, Parameters, Paused, Refusal};
use crate::clock::Now;
use crate::outcome::Outcome;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use memory::{Known, Memory, Tag};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::InfoHash;

/// The most by which clocks may be permitted to differ
pub const LEEWAY_SECS_MAX: u64 = 3_600;

/// Longer ones are not looked at
const TOKEN_LEN_MAX: usize = 4_096;

/// Signatures that are checked between two turns of a shard, of 30 to 80 microseconds each
const CHECKS_PER_TURN: u32 = 2;

/// Checks that a source has in a second, where others have to wait; sources that share a counter share them
const CHECKS_PER_SOURCE: u8 = 8;

/// Counters of checks by source
const SOURCES: usize = 256;

/// What is permitted
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtTerms {
    /// What the claim `iss` must be, if it is asked for
    pub issuer: Option<String>,
    /// What the claim `aud` must be, or one of it
    pub audience: Option<String>,
    /// Where the key set comes from
    pub keys: KeySource,
    /// How often it is fetched
    pub update_interval: Duration,
    /// Seconds by which clocks may differ
    pub leeway_secs: u64,
    /// Whether a token must say when it ends
    pub require_exp: bool,
    /// Whether scrapes need a token, too
    pub scrapes: bool,
}

/// Where a key set comes from
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A server, over HTTP or HTTPS
    Url(String),
    /// A file
    File(PathBuf),
}

/// What a token says, as far as it matters here
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

/// Why a token is not good
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// It is no token of this issuer for this tracker
    Token,
    /// Nobody here has its key
    Key,
    /// Its time has not come, or is over
    Time,
}

/// A shard's checks of tokens
pub struct Jwt {
    terms: Arc<JwtTerms>,
    keys: Arc<KeySet>,
    memory: Memory,
    checks_left: u32,
    fairness: Fairness,
    /// Whether this memory was taken over from another already
    inherited: bool,
}

/// Neither keys nor tokens show in logs
impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt").field("keys", &self.keys).finish_non_exhaustive()
    }
}

const fn refusal(outcome: Outcome, text: &'static str) -> Refusal {
    Refusal { outcome, answer: Answer::Error(text) }
}

const BAD_TOKEN: Refusal = refusal(Outcome::BadToken, "the token is not valid here");

/// Why a token does not permit a request, or not now
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is refused
    Refused(Refusal),
    /// Its signature is to be checked, and may not be in this turn
    NoCheckLeft,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Stop {
    /// Says where hooks go on once a check is permitted
    pub(super) fn at(self, paused: Paused) -> Interrupted {
        match self {
            Self::Refused(refusal) => Interrupted::Refused(refusal),
            Self::NoCheckLeft => Interrupted::Paused(paused),
        }
    }
}

/// Shares the checks of signatures out among sources while there are too few
struct Fairness {
    second: u64,
    /// Checks of this second by the hash of their source
    checked: [u8; SOURCES],
    /// Whether a check was refused in this second or the last
    contended: [bool; 2],
}

impl Default for Fairness {
    fn default() -> Self {
        Self { second: 0, checked: [0; SOURCES], contended: [false; 2] }
    }
}

impl Fairness {
    /// Whether a source may have a signature checked now, of so many that are left in this turn
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
    /// Checks with these keys
    pub fn new(terms: Arc<JwtTerms>, keys: Arc<KeySet>, seed: u64) -> Self {
        let (memory, fairness) = (Memory::new(seed), Fairness::default());
        Self { terms, keys, memory, checks_left: CHECKS_PER_TURN, fairness, inherited: false }
    }

    /// Whether scrapes need a token
    pub fn covers_scrapes(&self) -> bool {
        self.terms.scrapes
    }

    /// Signatures may be checked again
    pub fn begin_turn(&mut self) {
        self.checks_left = CHECKS_PER_TURN;
    }

    /// Takes over what another has found out with keys that are good still: a key that is added to a set must not have
    /// all tokens checked anew
    ///
    /// True if it has, or there is nothing to take over: their terms are the same.
    pub fn inherit(&mut self, from: &mut Self) -> bool {
        if self.inherited || from.inherited || self.terms != from.terms {
            return false;
        }
        (self.inherited, from.inherited) = (true, true);
        if self.keys.has_all_of(&from.keys) {
            std::mem::swap(&mut self.memory, &mut from.memory);
            // What had no key may have one now.
            self.memory.key_set += u32::from(self.keys != from.keys);
        }
        true
    }

    /// Whether a request has a token that approves its torrent
    ///
    /// With a `permit` its signature is checked whatever was checked in this turn.
    pub fn judge(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hash: &InfoHash,
        parameters: &Parameters<'_>,
        permit: bool,
    ) -> Result<(), Stop> {
        let token = parameters.get("jwt").filter(|token| !token.is_empty());
        let token = token.ok_or(refusal(Outcome::NoToken, "no token (jwt) in the announce URL"))?;
        if token.len() > TOKEN_LEN_MAX {
            return Err(BAD_TOKEN.into());
        }
        let tag = self.memory.tag(token);
        let known = self.known(now, source, token, tag, permit).ok_or(Stop::NoCheckLeft)?;
        self.approve(now, known, info_hash).map_err(Stop::Refused)
    }

    /// Whether a token approves a torrent
    fn approve(&self, now: Now, known: Known, hash: &InfoHash) -> Result<(), Refusal> {
        match known {
            Known::Good { hash: approved, from, until, .. } => {
                let leeway = self.terms.leeway_secs;
                if now.unix_secs + leeway < from {
                    Err(refusal(Outcome::EarlyToken, "the token is not valid yet"))
                } else if now.unix_secs > until.saturating_add(leeway) {
                    Err(refusal(Outcome::ExpiredToken, "the token has expired"))
                } else if approved != *hash {
                    Err(refusal(Outcome::TokenOfAnother, "the token is for another torrent"))
                } else {
                    Ok(())
                }
            }
            Known::Bad { .. } => Err(BAD_TOKEN),
            Known::NoKey { .. } => {
                Err(refusal(Outcome::UnknownTokenKey, "the token's key is not known here"))
            }
        }
    }

    /// What a token is; `None` if its signature may not be checked in this turn
    fn known(
        &mut self,
        now: Now,
        source: IpAddr,
        token: &str,
        tag: Tag,
        permit: bool,
    ) -> Option<Known> {
        if let Some(known) = self.memory.find(tag, now.unix_secs) {
            return Some(known);
        }
        let checked_at = now.unix_secs;
        // What is no token, or has no key here, takes no signature to refuse: junk is not to use up the checks.
        let (keys, left) = (self.keys.clone(), self.checks_left);
        let verified = match key(&keys, token) {
            Ok((algorithm, key)) => {
                let source = self.memory.source_hash(source);
                if !permit && !self.fairness.permits(now.monotonic.0, source, left) {
                    return None;
                }
                let verified = self.verify(token, algorithm, key);
                self.checks_left = left.saturating_sub(u32::from(!permit));
                verified
            }
            Err(bad) => Err(bad),
        };
        let known = match verified {
            Ok((hash, from, until)) => Known::Good { hash, from, until, checked_at },
            Err(Bad::Key) => Known::NoKey { checked_at, key_set: self.memory.key_set },
            Err(Bad::Token | Bad::Time) => Known::Bad { checked_at },
        };
        self.memory.keep(tag, known, now.unix_secs);
        Some(known)
    }

    /// The torrent of a token, and from when to when it is good
    fn verify(
        &self,
        token: &str,
        algorithm: Algorithm,
        key: &DecodingKey,
    ) -> Result<(InfoHash, u64, u64), Bad> {
        let mut validation = Validation::new(algorithm);
        // Claims are looked at below, by this tracker's clock.
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_aud) = (false, false);
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation);
        let claims = claims.map_err(|_| Bad::Token)?.claims;
        let JwtTerms { issuer, audience, require_exp, .. } = &*self.terms;
        if issuer.is_some() && claims.iss != *issuer {
            return Err(Bad::Token);
        }
        let is_for = |audience: &String| match &claims.aud {
            Some(Audience::One(one)) => one == audience,
            Some(Audience::Many(many)) => many.contains(audience),
            None => false,
        };
        if !audience.as_ref().is_none_or(is_for) {
            return Err(Bad::Token);
        }
        let hash = claims.infohash.as_deref().and_then(parse_hash).ok_or(Bad::Token)?;
        let time = |claim: Option<f64>| match claim {
            Some(time) if time.is_finite() && time >= 0.0 => Ok(Some(time as u64)),
            Some(_) => Err(Bad::Time),
            None => Ok(None),
        };
        let until = match time(claims.exp)? {
            Some(until) => until,
            None if *require_exp => return Err(Bad::Time),
            None => u64::MAX,
        };
        Ok((hash, time(claims.nbf)?.unwrap_or(0), until))
    }
}

/// By what a token says it is signed
fn key<'k>(keys: &'k KeySet, token: &str) -> Result<(Algorithm, &'k DecodingKey), Bad> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| Bad::Token)?;
    // A token chooses neither `none` nor that a public key is used as a secret.
    let usual = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
    if !usual.contains(&header.alg) {
        return Err(Bad::Token);
    }
    let key = keys.find(header.kid.as_deref(), header.alg).ok_or(Bad::Key)?;
    Ok((header.alg, key))
}

#[cfg(test)]
mod tests;
