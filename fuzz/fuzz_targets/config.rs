//! Any text as a config: read or refused with mistakes that name the file, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tsubame::config::{Config, ConfigError};

fuzz_target!(|text: &str| {
    // A path would have files of this machine read.
    if text.contains("connection_id_keys") {
        return;
    }
    match Config::parse("fuzz.yaml", text) {
        Ok(Config { udp, http, .. }) => {
            assert!([udp.listen, http.listen, http.tls.listen].iter().any(|list| !list.is_empty()));
        }
        Err(ConfigError::Mistaken(mistakes)) => {
            assert!(!mistakes.is_empty());
            assert!(mistakes.iter().all(|mistake| mistake.to_string().starts_with("fuzz.yaml")));
        }
        Err(error) => panic!("{error}"),
    }
});
