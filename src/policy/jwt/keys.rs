//! Sets of public keys (RFC 7517), from a file or a server.

use super::KeySource;
use crate::lines;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Longer key sets are not read
const SET_LEN_MAX: u64 = 1 << 20;

/// How long a server may take
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest RSA modulus, in characters of base64: 4,096 bits. Each larger key would take a shard longer
const RSA_LEN_MAX: usize = 684;

/// Why there are no keys
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file cannot be read
    #[error("cannot read {0}: {1}; give a file that this user may read")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// The server does not answer as it should
    #[error("cannot fetch {0}: {1}; see that this machine reaches the server")]
    Unreachable(String, String),
    /// It is no key set
    #[error("{0}: is no JWK set: {1}; give JSON with a list of keys (RFC 7517)")]
    BadSet(String, String),
    /// It has no key that can be used
    #[error(
        "{0}: has no key that can be used; give RSA (2,048 to 4,096 bits), P-256 or Ed25519 keys for signatures"
    )]
    NoKey(String),
}

/// Keys by their ids
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Vec<(Option<String>, Algorithm, DecodingKey)>,
    /// What each was read from, to tell whether it is the same
    texts: Vec<serde_json::Value>,
}

/// Key sets are the same if the same keys stand in them in the same order
impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl KeySet {
    /// Reads or fetches a key set; this takes as long as the server does, up to ten seconds
    pub fn load(source: &KeySource) -> Result<Self, KeysError> {
        let (name, text) = match source {
            KeySource::File(path) => {
                let text = lines::read(path, SET_LEN_MAX)
                    .map_err(|error| KeysError::Unreadable(path.clone(), error))?;
                (path.display().to_string(), text)
            }
            KeySource::Url(url) => (url.clone(), fetch(url)?),
        };
        Self::parse(&name, text)
    }

    /// Reads a key set; keys that cannot be used are left out
    pub fn parse(name: &str, text: Vec<u8>) -> Result<Self, KeysError> {
        #[derive(serde::Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(&text)
            .map_err(|error| KeysError::BadSet(name.to_owned(), error.to_string()))?;
        // One key of a kind that the library does not know is no reason to refuse the others.
        let read = |text: serde_json::Value| {
            let key = serde_json::from_value::<Jwk>(text.clone()).ok()?;
            Some((usable(&key)?, text))
        };
        let (keys, texts): (Vec<_>, Vec<_>) = set.keys.into_iter().filter_map(read).unzip();
        if keys.is_empty() {
            return Err(KeysError::NoKey(name.to_owned()));
        }
        Ok(Self { keys, texts })
    }

    /// Whether all keys of another are among these
    pub fn has_all_of(&self, other: &Self) -> bool {
        other.texts.iter().all(|key| self.texts.contains(key))
    }

    /// How many keys can be used
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key of this id; without an id the only one there is
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let mut fitting = self.keys.iter().filter(|(_, of, _)| *of == algorithm);
        let found = match id {
            Some(id) => fitting.find(|(found, ..)| found.as_deref() == Some(id)),
            None => fitting.next().filter(|_| fitting.next().is_none()),
        };
        found.map(|(.., key)| key)
    }
}

fn usable(jwk: &Jwk) -> Option<(Option<String>, Algorithm, DecodingKey)> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) if rsa.n.len() <= RSA_LEN_MAX => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let common = &jwk.common;
    let is_for_this =
        common.key_algorithm.is_none_or(|of| of.to_string() == format!("{algorithm:?}"));
    let is_for_signatures =
        common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
    let key = DecodingKey::from_jwk(jwk).ok()?;
    (is_for_this && is_for_signatures).then(|| (common.key_id.clone(), algorithm, key))
}

fn fetch(url: &str) -> Result<Vec<u8>, KeysError> {
    use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
    let unreachable =
        |error: &dyn std::fmt::Display| KeysError::Unreachable(url.to_owned(), error.to_string());
    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .max_redirects(3)
        // Nobody on the way shall send the tracker elsewhere.
        .https_only(url.starts_with("https:"))
        .user_agent(concat!("tsubame/", env!("CARGO_PKG_VERSION")));
    if url.starts_with("https:") {
        let found = rustls_native_certs::load_native_certs().certs;
        let roots = found.iter().map(|it| ureq::tls::Certificate::from_der(it).to_owned());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(std::sync::Arc::new(roots.collect())))
            .unversioned_rustls_crypto_provider(std::sync::Arc::new(
                rustls::crypto::ring::default_provider(),
            ));
        config = config.tls_config(tls.build());
    }
    let agent = config.build().new_agent();
    let mut reply = agent.get(url).call().map_err(|error| unreachable(&error))?;
    reply
        .body_mut()
        .with_config()
        .limit(SET_LEN_MAX)
        .read_to_vec()
        .map_err(|error| unreachable(&error))
}
