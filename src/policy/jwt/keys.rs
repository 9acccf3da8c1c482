//! Sets of public keys (RFC 7517), from a file or a server.

use crate::lines;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Source of a key set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// URL of a server, HTTP or HTTPS.
    Url(String),
    /// Path of a file.
    File(PathBuf),
}

/// Maximum bytes of a key set.
const SET_LEN_MAX: u64 = 1 << 20;

/// Timeout of a request to a key server.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum length of an RSA modulus in base64 characters: 4,096 bits. A larger key would take too long to verify with.
const RSA_LEN_MAX: usize = 684;

/// Reason why a key set cannot be used.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("cannot read {0}: {1}; check the path and its permissions")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// The server cannot be reached, or returns an error.
    #[error("cannot fetch {0}: {1}; check that this machine can reach the server")]
    Unreachable(String, String),
    /// The text is not a key set.
    #[error("{0}: is not a JWK set: {1}; use JSON with a list `keys` (RFC 7517)")]
    BadSet(String, String),
    /// The key set has no usable key.
    #[error("{0}: has no usable key; add RSA (2,048 to 4,096 bits), P-256 or Ed25519 keys")]
    NoKey(String),
}

/// The usable keys of a key set, each with its id, if it has one.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Vec<(Option<String>, Algorithm, DecodingKey)>,
    /// JSON of each key, by which key sets are compared.
    texts: Vec<serde_json::Value>,
}

/// Two key sets are equal if they have the same keys in the same order.
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
    /// Reads or fetches a key set. A fetch blocks for up to ten seconds.
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

    /// Parses a key set; keys that cannot be used are skipped.
    pub fn parse(name: &str, text: Vec<u8>) -> Result<Self, KeysError> {
        #[derive(serde::Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(&text)
            .map_err(|error| KeysError::BadSet(name.to_owned(), error.to_string()))?;
        // A key of a kind that the library does not know is skipped: the others can still be used.
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

    /// Returns whether all keys of another set are in this one.
    pub fn has_all_of(&self, other: &Self) -> bool {
        other.texts.iter().all(|key| self.texts.contains(key))
    }

    /// Returns the number of usable keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns whether there are no usable keys.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the key with this id and algorithm; without an id, the key for the algorithm if there is exactly one.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let mut candidates = self.keys.iter().filter(|(_, of, _)| *of == algorithm);
        let found = match id {
            Some(id) => candidates.find(|(found, ..)| found.as_deref() == Some(id)),
            None => candidates.next().filter(|_| candidates.next().is_none()),
        };
        found.map(|(.., key)| key)
    }
}

/// Returns the id, the algorithm and the key of a JWK, unless the tracker cannot use it.
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
    let fits_algorithm =
        common.key_algorithm.is_none_or(|of| of.to_string() == format!("{algorithm:?}"));
    let is_for_signatures =
        common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
    let key = DecodingKey::from_jwk(jwk).ok()?;
    (fits_algorithm && is_for_signatures).then(|| (common.key_id.clone(), algorithm, key))
}

fn fetch(url: &str) -> Result<Vec<u8>, KeysError> {
    use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
    let unreachable =
        |error: &dyn std::fmt::Display| KeysError::Unreachable(url.to_owned(), error.to_string());
    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(FETCH_TIMEOUT))
        .max_redirects(3)
        // A redirect must not downgrade the connection to HTTP, which an attacker could tamper with.
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
