//! Any text as a config is accepted, or refused with mistakes that name the file. The parser never panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tsubame::config::{Config, ConfigError};

fuzz_target!(|text: &str| {
    // This key may name a file, and the fuzzer must not read files of this machine.
    if text.contains("connection_id_keys") {
        return;
    }
    match Config::parse("fuzz.yaml", text) {
        Ok(Config { udp, http, .. }) => {
            assert!([udp.listen, http.listen, http.tls.listen].iter().any(|list| !list.is_empty()));
        }
        Err(ConfigError::Invalid(mistakes)) => {
            assert!(!mistakes.is_empty());
            assert!(mistakes.iter().all(|mistake| mistake.to_string().starts_with("fuzz.yaml")));
        }
        Err(error) => panic!("{error}"),
    }
});
