//! Converts configs of other trackers.
//!
//! The result keeps the meaning of the original; a comment on each line names the key that it was made from. Invalid
//! values, and keys without an exact counterpart, are reported. An access rule that cannot be converted is replaced by
//! a hook that keeps the tracker from starting, so that it is never silently lost. `docs/migration.md` has a table of
//! all keys.

mod chihaya;
mod draft;
mod opentracker;

pub use draft::ImportedConfig;

use super::read::check_bounds;
use thiserror::Error;

/// Error of [`import`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ImportError {
    /// The file is the config of neither tracker.
    #[error(
        "is neither a Chihaya config (YAML below chihaya:) nor an opentracker one (lines such as listen.udp ADDRESS)"
    )]
    Unknown,
    /// The file has YAML syntax errors, or is too long or too deeply nested.
    #[error("is not YAML: {0}")]
    InvalidYaml(String),
}

/// Converts the text of a Chihaya or opentracker config; the result refers to the file as `name`.
pub fn import(name: &str, text: &str) -> Result<ImportedConfig, ImportError> {
    check_bounds(text).map_err(|(_, message)| ImportError::InvalidYaml(message))?;
    let draft = match serde_yaml::from_str::<serde_yaml::Value>(text) {
        Ok(value) if value.get("chihaya").is_some() => chihaya::read(text, &value["chihaya"]),
        _ if opentracker::is_opentracker_config(text) => opentracker::read(text),
        Err(error) if text.lines().any(|line| line.starts_with("chihaya:")) => {
            return Err(ImportError::InvalidYaml(error.to_string()));
        }
        _ => return Err(ImportError::Unknown),
    };
    Ok(draft.finish(name))
}

#[cfg(test)]
mod tests {
    use super::draft::addresses;
    use super::*;
    use crate::config::Config;
    use crate::policy::HookConfig;
    use std::time::Duration;

    fn convert(text: &str) -> (Config, ImportedConfig) {
        let imported = import("the file", text).unwrap();
        let config = Config::parse("made", &imported.config);
        (config.unwrap_or_else(|error| panic!("{error}\n{}", imported.config)), imported)
    }

    #[test]
    fn a_full_chihaya_config_is_converted() {
        let (config, imported) = convert(include_str!("../../tests/import/chihaya.yaml"));
        let notes = imported.notes.join("\n");
        assert_eq!(config.udp.listen, addresses("0.0.0.0:6969").unwrap());
        assert_eq!(config.http.listen, addresses(":6969").unwrap());
        assert_eq!(config.http.tls.listen, addresses("0.0.0.0:443").unwrap());
        assert_eq!(config.announce.interval, Duration::from_secs(1_800));
        assert_eq!(config.announce.min_interval, Duration::from_secs(900));
        assert_eq!((config.announce.numwant_default, config.announce.numwant_max), (50, 100));
        assert_eq!(config.http.limits.idle_timeout, Duration::from_secs(30));
        assert_eq!(config.http.limits.requests, 1, "without keep-alive");
        assert_eq!(config.http.paths.announce.len(), 2);
        let control = config.control.listen.map(|it| it.to_string());
        assert_eq!(control.as_deref(), Some("127.0.0.1:6880"), "loopback only");
        assert!(imported.has_all_access_rules);
        let [jwt, clients, torrents, variation] = &config.hooks[..] else { panic!("{config:?}") };
        assert!(
            matches!(jwt, HookConfig::Jwt(settings) if settings.issuer.as_deref() == Some("https://issuer.example"))
        );
        assert!(matches!(clients, HookConfig::Clients(clients) if clients.prefixes.len() == 2));
        assert!(
            matches!(torrents, HookConfig::AccessList { sources, .. } if sources.info_hashes.len() == 1)
        );
        assert!(matches!(variation, HookConfig::IntervalVariation(it) if it.increase_secs == 60));
        assert_eq!(config.announce.peer_lifetime, Duration::from_secs(2_790));
        for named in [
            "udp.private_key",
            "udp.max_clock_skew",
            "http.real_ip_header",
            "http.max_scrape_infohashes",
            "storage.config.gc_interval",
            "http.write_timeout",
            "posthooks.0",
            "mistyped",
        ] {
            assert!(notes.contains(&format!("{named}:")), "no {named} in\n{notes}");
        }
        assert!(imported.config.contains("# no exact counterpart: line 30: udp.private_key"));
    }

    #[test]
    fn a_full_opentracker_config_is_converted() {
        let (config, imported) = convert(include_str!("../../tests/import/opentracker.conf"));
        assert!(imported.has_all_access_rules);
        let notes = imported.notes.join("\n");
        let expected = [addresses("0.0.0.0"), addresses("[::]:6969")].map(Option::unwrap).concat();
        assert_eq!(config.udp.listen, expected);
        assert_eq!(config.http.listen, [expected, addresses("192.0.2.1:80").unwrap()].concat());
        assert_eq!(config.http.trusted_proxies.len(), 2);
        assert_eq!(config.http.stats_networks, ["192.0.2.2/32".parse().unwrap()]);
        let HookConfig::AccessList { sources, .. } = &config.hooks[0] else { panic!("{config:?}") };
        assert_eq!(sources.files, [std::path::PathBuf::from("/etc/opentracker/whitelist")]);
        assert!(
            matches!(&config.hooks[1], HookConfig::IntervalVariation(it) if it.increase_secs == 360)
        );
        assert_eq!(config.announce.interval, Duration::from_secs(1_620));
        for named in [
            "access.fifo_add",
            "access.stats_path",
            "batchsync.cluster.admin_ip",
            "livesync.cluster.node_ip",
            "tracker.user",
            "tracker.redirect_url",
            "listen.udp.workers",
            "tracker.mistyped",
        ] {
            assert!(notes.contains(&format!("{named}:")), "no {named} in\n{notes}");
        }
    }

    #[test]
    fn the_documentation_has_every_key() {
        let documentation = include_str!("../../docs/migration.md");
        let original: serde_yaml::Value =
            serde_yaml::from_str(include_str!("../../tests/import/chihaya.yaml")).unwrap();
        let mut keys = opentracker::ALL_KEYS.map(str::to_owned).to_vec();
        collect_keys(&original["chihaya"], "", &mut keys);
        for key in keys.iter().filter(|key| *key != "mistyped") {
            assert!(documentation.contains(&format!("`{key}`")), "no {key} in docs/migration.md");
        }
    }

    /// Adds the paths of all keys; those of a hook's options without the path of the hook.
    fn collect_keys(value: &serde_yaml::Value, path: &str, keys: &mut Vec<String>) {
        for (key, value) in value.as_mapping().into_iter().flatten() {
            let key = key.as_str().unwrap();
            let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            match value {
                serde_yaml::Value::Mapping(_) if key == "options" => collect_keys(value, "", keys),
                serde_yaml::Value::Mapping(_) => collect_keys(value, &path, keys),
                serde_yaml::Value::Sequence(items) => {
                    keys.push(path);
                    items.iter().for_each(|item| collect_keys(item, "", keys));
                }
                _ => keys.push(path),
            }
        }
    }

    #[test]
    fn minimal_configs_are_converted_and_unknown_formats_refused() {
        let (config, _) = convert("chihaya: {udp: {addr: ':1234'}, announce_interval: 1h}");
        assert_eq!(config.udp.listen, addresses(":1234").unwrap());
        assert!(config.http.listen.is_empty(), "the original config does not serve HTTP");
        assert_eq!(config.announce.peer_lifetime, Duration::from_secs(5_400));
        let (config, _) = convert("access.blacklist /x \"y\"\n");
        assert_eq!((config.udp.listen.len(), config.http.listen.len()), (1, 1));
        for none in ["", "hello", "udp: {}", "- 5"] {
            assert_eq!(import("x", none), Err(ImportError::Unknown), "{none}");
        }
        assert!(matches!(import("x", "chihaya:\n  - [\n"), Err(ImportError::InvalidYaml(_))));
    }

    #[test]
    fn values_of_a_wrong_type_are_reported_and_left_out() {
        let odd = "chihaya:\n  announce_interval: [1]\n  metrics_addr: nowhere\n  udp: {addr: {}}\n  \
                   storage: 5\n  http: {addr: ':80'}\n  announce_intervall: 5m\n";
        let (_, imported) = convert(odd);
        let notes = imported.notes.join("\n");
        for note in [
            "mistake: line 2: announce_interval: ",
            "mistake: line 3: metrics_addr: \"nowhere\"",
            "mistake: line 4: udp.addr: ",
            "mistake: line 5: storage: ",
            "mistake: line 7: announce_intervall: is not a key; did you mean announce_interval?",
        ] {
            assert!(notes.contains(note), "no {note} in\n{notes}");
        }
    }

    /// An access rule that cannot be converted does not result in an open tracker.
    #[test]
    fn access_rules_are_never_left_out() {
        for text in [
            "chihaya: {prehooks: [{name: torrent approval, options: {whitelist: ['01234567890123456789']}}]}",
            "chihaya: {prehooks: [{name: torrent aproval, options: {whitelist: []}}]}",
            "chihaya: {prehooks: [{name: torrent approval, options: {whitelst: []}}]}",
            "chihaya: {prehooks: [{name: client approval, options: {whitelist: [5, 'a b']}}]}",
            "chihaya: {prehooks: [{name: jwt}]}",
            "chihaya: {prehooks: [5]}",
            "chihaya: {prehooks: {name: jwt}}",
            "chihaya: {prehoks: [{name: jwt}]}",
            "access.whitelst /etc/whitelist\n",
            "access.whitelist\n",
            "listen.udp 0.0.0.0\naccess.blaklist /x\n",
        ] {
            let imported = import("the file", text).unwrap();
            assert!(!imported.has_all_access_rules, "{text}:\n{}", imported.config);
            let error = Config::parse("made", &imported.config).unwrap_err().to_string();
            assert!(error.contains("could not be imported"), "{text}: {error}");
        }
        let notes = import("x", "access.whitelst /w\n").unwrap().notes.join("\n");
        assert!(
            notes.contains(
                "line 1: access.whitelst: /w: is not a key; did you mean access.whitelist?"
            ),
            "{notes}"
        );
    }
}
