//! Tests with valid and with hostile tokens.

use super::*;
use crate::policy::Intervals;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData};
use serde_json::{Value, json};
use tsubame_storage::Seconds;

const NOW: u64 = 2_000_000;

/// Checks a token for a torrent. A request that would have to wait for the check is refused.
fn approve(jwt: &mut Jwt, now: Now, token: &str, hash: &InfoHash) -> Result<(), Refusal> {
    let query = format!("jwt={token}");
    let parameters = Parameters { key: None, query: &query };
    let source = IpAddr::from([192, 0, 2, 1]);
    let intervals = Intervals::default();
    let outcome = jwt.check(now, source, hash, &parameters, false);
    outcome.map_err(|stop| stop.at(PausedRequest { hook: 0, generation: 0, intervals }).refusal())
}

fn now() -> Now {
    Now { monotonic: Seconds(5), unix_secs: NOW }
}

fn hash(byte: u8) -> InfoHash {
    InfoHash([byte; 20])
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Keys of each algorithm: the private keys, and the public key set.
struct Keys {
    signing: [(Algorithm, EncodingKey); 3],
    set: Value,
}

fn keys(name: &str) -> Keys {
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let ec = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let (x, y) = ec.der_bytes()[1..].split_at(32);
    let rsa = include_bytes!("test_keys/rsa.der");
    let id = |kind: &str| format!("{name}-{kind}");
    let set = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": id("EdDSA"), "x": b64(ed.der_bytes())},
        {"kty": "EC", "crv": "P-256", "kid": id("ES256"), "use": "sig", "x": b64(x), "y": b64(y)},
        {"kty": "RSA", "alg": "RS256", "kid": id("RS256"), "e": "AQAB",
         "n": include_str!("test_keys/rsa.n")},
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
        {"kty": "of the future", "kid": "new"},
        {"kty": "RSA", "kid": "for encryption", "use": "enc", "e": "AQAB",
         "n": include_str!("test_keys/rsa.n")},
    ]});
    let signing = [
        (Algorithm::EdDSA, EncodingKey::from_ed_der(ed.serialized_der())),
        (Algorithm::ES256, EncodingKey::from_ec_der(ec.serialized_der())),
        (Algorithm::RS256, EncodingKey::from_rsa_der(rsa)),
    ];
    Keys { signing, set }
}

impl Keys {
    fn set(&self) -> Arc<KeySet> {
        Arc::new(KeySet::parse("keys", self.set.to_string().into_bytes()).unwrap())
    }

    fn sign(&self, which: usize, id: Option<&str>, claims: &Value) -> String {
        let (algorithm, key) = &self.signing[which];
        let header = Header { kid: id.map(str::to_owned), ..Header::new(*algorithm) };
        jsonwebtoken::encode(&header, claims, key).unwrap()
    }
}

fn settings() -> JwtSettings {
    JwtSettings {
        issuer: Some("i".to_owned()),
        audience: Some("a".to_owned()),
        keys: KeySource::Url(String::new()),
        update_interval: Duration::from_secs(1),
        leeway_secs: 60,
        require_exp: true,
        scrapes: false,
    }
}

fn claims() -> Value {
    json!({"iss": "i", "aud": ["b", "a"], "infohash": "07".repeat(20), "exp": NOW + 600, "nbf": NOW - 600})
}

/// Checks a token for the torrent `hash(7)` with a new hook; a refusal is returned as its outcome.
fn outcome(keys: &Keys, settings: JwtSettings, token: &str) -> Result<(), Outcome> {
    let mut jwt = Jwt::new(Arc::new(settings), keys.set(), 1);
    approve(&mut jwt, now(), token, &hash(7)).map_err(|refusal| refusal.outcome)
}

#[test]
fn tokens_of_each_algorithm_approve_their_torrent() {
    let keys = keys("k");
    for (which, kind) in ["EdDSA", "ES256", "RS256"].into_iter().enumerate() {
        let token = keys.sign(which, Some(&format!("k-{kind}")), &claims());
        assert_eq!(outcome(&keys, settings(), &token), Ok(()), "{kind}");
        // A token need not name the only key for its algorithm.
        assert_eq!(
            outcome(&keys, settings(), &keys.sign(which, None, &claims())),
            Ok(()),
            "{kind}"
        );
        let other = keys.sign(which, Some("k-gone"), &claims());
        assert_eq!(outcome(&keys, settings(), &other), Err(Outcome::UnknownTokenKey));
        let mut jwt = Jwt::new(Arc::new(settings()), keys.set(), 1);
        let refusal = approve(&mut jwt, now(), &token, &hash(8)).unwrap_err();
        assert_eq!(refusal.outcome, Outcome::TokenOfAnotherTorrent);
    }
}

#[test]
fn claims_are_checked() {
    let keys = keys("k");
    let check = |settings: JwtSettings, change: &dyn Fn(&mut Value)| {
        let mut claims = claims();
        change(&mut claims);
        outcome(&keys, settings, &keys.sign(0, Some("k-EdDSA"), &claims))
    };
    let bad = Err(Outcome::BadToken);
    for (key, value, expected) in [
        ("aud", json!("a"), Ok(())),
        ("infohash", json!("07".repeat(32)), Ok(())),
        ("exp", json!(f64::from(NOW as u32) + 0.5), Ok(())),
        ("exp", json!(NOW - 60), Ok(())),
        ("exp", json!(NOW - 61), Err(Outcome::ExpiredToken)),
        ("nbf", json!(NOW + 60), Ok(())),
        ("nbf", json!(NOW + 61), Err(Outcome::EarlyToken)),
        ("exp", json!(1e300), Ok(())),
        ("exp", json!(-1), bad),
        ("exp", json!("soon"), bad),
        ("exp", json!(null), bad),
        ("nbf", json!([]), bad),
        ("iss", json!("j"), bad),
        ("iss", json!(["i"]), bad),
        ("iss", json!(null), bad),
        ("aud", json!("b"), bad),
        ("aud", json!([]), bad),
        ("aud", json!({"a": 1}), bad),
        ("aud", json!(null), bad),
        ("infohash", json!("07".repeat(19)), bad),
        ("infohash", json!(null), bad),
        ("infohash", json!(7), bad),
    ] {
        let outcome = check(settings(), &|claims| claims[key] = value.clone());
        assert_eq!(outcome, expected, "{key}: {value}");
    }
    let lenient = JwtSettings { issuer: None, audience: None, require_exp: false, ..settings() };
    let bare = check(lenient, &|claims| *claims = json!({"infohash": "07".repeat(20)}));
    assert_eq!(bare, Ok(()));
}

#[test]
fn hostile_tokens_are_refused() {
    let keys = keys("k");
    let good = keys.sign(1, Some("k-ES256"), &claims());
    let [head, body, signature]: [&str; 3] =
        good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let header = |text: &str| b64(text.as_bytes());
    let secret = EncodingKey::from_secret(include_str!("test_keys/rsa.n").as_bytes());
    // Algorithm confusion: HMAC, with the public RSA key as its secret.
    let header_hmac = Header { kid: Some("k-RS256".to_owned()), ..Header::new(Algorithm::HS256) };
    let algorithm_confusion = jsonwebtoken::encode(&header_hmac, &claims(), &secret).unwrap();
    let impostor = self::keys("k");
    for token in [
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        format!("{}.{body}.", header(r#"{"alg":"none"}"#)),
        format!("{}.{body}.", header(r#"{"alg":"None","kid":"k-ES256"}"#)),
        format!("{}.{body}.{signature}", header(r#"{"alg":"RS256","kid":"k-RS256"}"#)),
        format!("{}.{body}.{signature}", header(r#"{"alg":["ES256"],"kid":"k-ES256"}"#)),
        format!("{}.{body}.{signature}", header("[]")),
        format!("{head}.{body}"),
        format!("{head}.{body}."),
        format!("{head}.{body}.{signature}.{signature}"),
        format!("{head}.{body}.{}", b64(&[0; 64])),
        format!("{head}.{}.{signature}", header("{}")),
        format!("{head}.{}.{signature}", header(&"[".repeat(2_000))),
        format!("{head}.{body}.{}", "A".repeat(100_000)),
        format!("{head} .{body}.{signature}"),
        "\u{0}\u{7f}é.é.é".to_owned(),
        algorithm_confusion,
        // Another key with the same id.
        impostor.sign(1, Some("k-ES256"), &claims()),
    ] {
        let outcome = outcome(&keys, settings(), &token);
        let shown: String = token.chars().take(60).collect();
        assert_eq!(outcome, Err(Outcome::BadToken), "{shown}");
    }
    assert_eq!(outcome(&keys, settings(), &good), Ok(()));
}

#[test]
fn signature_checks_per_turn_are_limited_and_cached_results_are_free() {
    let keys = keys("k");
    let mut jwt = Jwt::new(Arc::new(settings()), keys.set(), 1);
    let good = keys.sign(0, None, &claims());
    let approve = |jwt: &mut Jwt, token: &str| {
        approve(jwt, now(), token, &hash(7)).map_err(|refusal| refusal.outcome)
    };
    assert_eq!(approve(&mut jwt, &good), Ok(()));
    // Tokens that are refused before verification use none of the checks.
    for junk in ["x", "a.b.c", &keys.sign(0, Some("k-gone"), &claims())] {
        assert!(approve(&mut jwt, junk).is_err());
    }
    let forged = |number: u32| format!("{good}{number}");
    let outcomes: Vec<_> = (0..10).map(|number| approve(&mut jwt, &forged(number))).collect();
    let checked = outcomes.iter().filter(|it| **it == Err(Outcome::BadToken)).count();
    let delayed = outcomes.iter().filter(|it| **it == Err(Outcome::TokenNotChecked)).count();
    assert_eq!((checked, delayed), (1, 9));
    assert_eq!(approve(&mut jwt, &good), Ok(()), "the result is cached");
    assert_eq!(approve(&mut jwt, &forged(0)), Err(Outcome::BadToken), "the refusal is cached");
    jwt.begin_turn();
    assert_eq!(approve(&mut jwt, &forged(5)), Err(Outcome::BadToken));
    let mut old = claims();
    old["exp"] = json!(NOW - 5_000);
    let old = keys.sign(0, None, &old);
    for _ in 0..3 {
        assert_eq!(approve(&mut jwt, &old), Err(Outcome::ExpiredToken), "verified once");
    }
}

#[test]
fn keys_rotate_without_a_gap() {
    let (old, new) = (keys("old"), keys("new"));
    let token = |keys: &Keys, name: &str| keys.sign(0, Some(name), &claims());
    let (first, second) = (token(&old, "old-EdDSA"), token(&new, "new-EdDSA"));
    let mut jwt = Jwt::new(Arc::new(settings()), old.set(), 1);
    let unknown = approve(&mut jwt, now(), &second, &hash(7)).unwrap_err();
    assert_eq!(unknown.outcome, Outcome::UnknownTokenKey);
    assert_eq!(approve(&mut jwt, now(), &first, &hash(7)), Ok(()));
    let mut both = old.set.clone();
    let more = new.set["keys"].as_array().unwrap().clone();
    both["keys"].as_array_mut().unwrap().extend(more);
    let set = Arc::new(KeySet::parse("both", both.to_string().into_bytes()).unwrap());
    let mut with_both_keys = Jwt::new(Arc::new(settings()), set, 2);
    with_both_keys.inherit(&mut jwt);
    with_both_keys.checks_left = 0;
    assert_eq!(
        approve(&mut with_both_keys, now(), &first, &hash(7)),
        Ok(()),
        "its key is still in the set"
    );
    with_both_keys.begin_turn();
    assert_eq!(
        approve(&mut with_both_keys, now(), &second, &hash(7)),
        Ok(()),
        "the missing key was added"
    );
    let mut with_new_keys = Jwt::new(Arc::new(settings()), new.set(), 3);
    with_new_keys.inherit(&mut with_both_keys);
    let unknown = approve(&mut with_new_keys, now(), &first, &hash(7)).unwrap_err();
    assert_eq!(unknown.outcome, Outcome::UnknownTokenKey, "its key was removed");
    let mut with_same_keys = Jwt::new(Arc::new(settings()), new.set(), 4);
    assert_eq!(approve(&mut with_new_keys, now(), &second, &hash(7)), Ok(()));
    with_same_keys.inherit(&mut with_new_keys);
    with_same_keys.checks_left = 0;
    assert_eq!(
        approve(&mut with_same_keys, now(), &second, &hash(7)),
        Ok(()),
        "the keys are unchanged"
    );
}

#[test]
fn invalid_key_sets_are_refused() {
    let parse = |text: &str| KeySet::parse("u", text.as_bytes().to_vec()).unwrap_err().to_string();
    assert!(parse("<html>").contains("u: is not a JWK set"));
    assert!(parse("[]").contains("u: is not a JWK set"));
    assert!(parse(r#"{"keys": 5}"#).contains("u: is not a JWK set"));
    assert!(parse(r#"{"keys": []}"#).contains("u: has no usable key"));
    assert!(parse(r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#).contains("no usable key"));
    let huge = json!({"keys": [{"kty": "RSA", "e": "AQAB", "n": "A".repeat(685)}]}).to_string();
    assert!(parse(&huge).contains("no usable key"));
    assert_eq!(keys("k").set().len(), 3);
    let absent = KeySet::load(&KeySource::File("/nowhere/keys".into())).unwrap_err();
    assert!(absent.to_string().contains("cannot read /nowhere/keys"));
}
