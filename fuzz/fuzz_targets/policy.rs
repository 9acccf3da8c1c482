//! What policy reads: lists, torrents, key sets, tokens, URL data, and configs of other trackers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tsubame::clock::Now;
use tsubame::config;
use tsubame::lines::{Mistakes, read_entries_of};
use tsubame::policy::Parameters;
use tsubame::policy::access_list::{parse_hash, take_hash};
use tsubame::policy::jwt::{Jwt, JwtTerms, KeySet, KeySource};
use tsubame::policy::torrent;
use tsubame_storage::{InfoHash, Seconds};
use tsubame_udp::wire::url_data;

/// A tracker's checks of tokens, with a key that nobody signs with
static JWT: LazyLock<Mutex<Jwt>> = LazyLock::new(|| {
    let set = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let keys = KeySet::parse("k", set.as_bytes().to_vec()).unwrap();
    let terms = JwtTerms {
        issuer: None,
        audience: None,
        keys: KeySource::Url(String::new()),
        update_interval: Duration::from_secs(1),
        leeway_secs: 60,
        require_exp: true,
        scrapes: false,
    };
    Mutex::new(Jwt::new(Arc::new(terms), Arc::new(keys), 1))
});

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fuzz_target!(|input: (u8, &[u8])| {
    let (which, bytes) = input;
    match which % 5 {
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

/// A list is what its lines are, or a mistake of one of them
fn list(bytes: &[u8]) {
    let mut hashes = Vec::new();
    let mut mistakes = Mistakes::default();
    let take = |entry: &str| take_hash(entry, &mut hashes);
    read_entries_of(Path::new("fuzz"), bytes, &mut mistakes, take);
    let read = mistakes.or(());
    let text = String::from_utf8_lossy(bytes);
    let lines = text.strip_prefix('\u{feff}').unwrap_or(&text).split('\n');
    let taken = lines.map(|line| {
        let text = line.split('#').next()?.trim();
        if text.is_empty() { Some(None) } else { parse_hash(text).map(Some) }
    });
    if bytes.split(|byte| *byte == b'\n').all(|line| line.len() < 4_000) {
        match taken.collect::<Option<Vec<_>>>() {
            Some(all) => {
                assert!(read.is_ok());
                assert!(hashes.into_iter().eq(all.into_iter().flatten()));
            }
            None => assert!(read.is_err()),
        }
    }
}

/// Nobody can sign, so no token is good, and none is looked at twice otherwise
fn url(bytes: &[u8]) {
    let mut scratch = Vec::new();
    let parameters = Parameters::of_url(url_data(bytes), &mut scratch);
    let now = Now { monotonic: Seconds(1), unix_secs: 1_000_000 };
    let mut jwt = JWT.lock().unwrap();
    jwt.begin_turn();
    let first = jwt.judge(now, SOURCE, &InfoHash([1; 20]), &parameters, true);
    assert!(first.is_err());
    assert_eq!(jwt.judge(now, SOURCE, &InfoHash([1; 20]), &parameters, true), first);
    if let Ok(text) = str::from_utf8(bytes) {
        let parameters = Parameters { key: None, query: text };
        assert!(jwt.judge(now, SOURCE, &InfoHash([1; 20]), &parameters, true).is_err());
    }
}

/// What is made of another tracker's config is a config, or says which key is mistaken
fn import(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(imported) = config::import("fuzz", text) else { return };
    if let Err(error) = config::Config::parse("made", &imported.config) {
        let error = error.to_string();
        assert!(!error.contains("is not YAML"), "{error}\n{}", imported.config);
    } else {
        assert!(imported.is_complete, "an access rule is gone:\n{}", imported.config);
    }
}
