//! Input of the policy: lists, torrents, key sets, tokens, URL data, and configs of other trackers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tsubame::clock::Now;
use tsubame::config;
use tsubame::hex::parse_info_hash;
use tsubame::lines::{Mistakes, read_entries_from};
use tsubame::policy::Parameters;
use tsubame::policy::access_list::parse_entry;
use tsubame::policy::jwt::{Jwt, JwtSettings, KeySet, KeySource};
use tsubame::policy::torrent;
use tsubame_storage::{InfoHash, Seconds};
use tsubame_udp::wire::url_data;

/// The token check of a tracker, with a key for which no private key exists here.
static JWT: LazyLock<Mutex<Jwt>> = LazyLock::new(|| {
    let set = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let keys = KeySet::parse("k", set.as_bytes().to_vec()).unwrap();
    let settings = JwtSettings {
        issuer: None,
        audience: None,
        keys: KeySource::Url(String::new()),
        update_interval: Duration::from_secs(1),
        leeway_secs: 60,
        require_exp: true,
        scrapes: false,
    };
    Mutex::new(Jwt::new(Arc::new(settings), Arc::new(keys), 1))
});

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fuzz_target!(|input: (u8, &[u8])| {
    let (selector, bytes) = input;
    match selector % 5 {
        0 => list(bytes),
        1 => {
            if let Ok(hashes) = torrent::info_hashes(bytes) {
                assert!((1..=2).contains(&hashes.len()));
            }
        }
        2 => drop(KeySet::parse("fuzz", bytes.to_vec())),
        3 => url(bytes),
        _ => import(bytes),
    }
});

/// A list yields the info hashes of its lines, or an error if a line is invalid.
fn list(bytes: &[u8]) {
    let mut hashes = Vec::new();
    let mut mistakes = Mistakes::default();
    let take = |entry: &str| parse_entry(entry, &mut hashes);
    read_entries_from(Path::new("fuzz"), bytes, &mut mistakes, take);
    let result = mistakes.into_result(());
    let text = String::from_utf8_lossy(bytes);
    let lines = text.strip_prefix('\u{feff}').unwrap_or(&text).split('\n');
    let expected = lines.map(|line| {
        let text = line.split('#').next()?.trim();
        if text.is_empty() { Some(None) } else { parse_info_hash(text).map(Some) }
    });
    if bytes.split(|byte| *byte == b'\n').all(|line| line.len() < 4_000) {
        match expected.collect::<Option<Vec<_>>>() {
            Some(all) => {
                assert!(result.is_ok());
                assert!(hashes.into_iter().eq(all.into_iter().flatten()));
            }
            None => assert!(result.is_err()),
        }
    }
}

/// No token is valid, and a second check of the same token gives the same result.
fn url(bytes: &[u8]) {
    let mut scratch = Vec::new();
    let parameters = Parameters::of_url(url_data(bytes), &mut scratch);
    let now = Now { monotonic: Seconds(1), unix_secs: 1_000_000 };
    let mut jwt = JWT.lock().unwrap();
    jwt.begin_turn();
    let first = jwt.check(now, SOURCE, &InfoHash([1; 20]), &parameters, true);
    assert!(first.is_err());
    assert_eq!(jwt.check(now, SOURCE, &InfoHash([1; 20]), &parameters, true), first);
    if let Ok(text) = str::from_utf8(bytes) {
        let parameters = Parameters { key: None, query: text };
        assert!(jwt.check(now, SOURCE, &InfoHash([1; 20]), &parameters, true).is_err());
    }
}

/// The config that is converted from that of another tracker is YAML; if it is valid, no access rule was lost.
fn import(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(imported) = config::import("fuzz", text) else { return };
    if let Err(error) = config::Config::parse("made", &imported.config) {
        let error = error.to_string();
        assert!(!error.contains("is not YAML"), "{error}\n{}", imported.config);
    } else {
        assert!(imported.has_all_access_rules, "an access rule was lost:\n{}", imported.config);
    }
}
