//! The values of all config keys as text, for operators to read.

use super::read::ReadValues;
use crate::text::{plural, without_secrets};
use serde_yaml::Value;
use std::collections::BTreeMap;

/// Maximum number of items of a list that are written out.
const ITEMS_MAX: usize = 8;

/// Maximum number of characters of a value that are written out.
const CHARS_MAX: usize = 200;

/// A config key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigValue {
    /// Path of the key, such as `udp.listen` or `hooks.0.options.mode`.
    pub key: String,
    /// The value as in a config, shortened if it is long. Secrets are replaced by a note.
    pub value: String,
    /// Whether the value is the default. Keys of hooks have no default.
    pub is_default: bool,
}

/// Returns the values of all keys of a config.
///
/// `document` has the keys of its file, `defaults` those of the default config, and `derived` the values of keys whose
/// defaults depend on other keys.
pub(super) fn values(
    document: &ReadValues,
    defaults: &ReadValues,
    derived: &[(&str, String)],
) -> Vec<ConfigValue> {
    let set: BTreeMap<&str, &Value> =
        document.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let keys = defaults.iter().map(|(key, default)| {
        let default = text(key, default);
        let derived = derived.iter().find(|(of, _)| of == key).map(|(_, value)| value.clone());
        match set.get(key.as_str()).map(|value| text(key, value)) {
            Some(value) => ConfigValue { key: key.clone(), is_default: value == default, value },
            None => {
                let value = derived.unwrap_or(default);
                ConfigValue { key: key.clone(), is_default: true, value }
            }
        }
    });
    let hooks = document.iter().filter(|(key, _)| key.starts_with("hooks."));
    let hooks = hooks.map(|(key, value)| ConfigValue {
        key: key.clone(),
        value: text(key, value),
        is_default: false,
    });
    keys.chain(hooks).collect()
}

/// Returns the text of a value, without secrets.
fn text(key: &str, value: &Value) -> String {
    match value {
        // The path of a file is no secret.
        Value::Sequence(keys) if key == "udp.connection_id_keys" && !keys.is_empty() => {
            format!("({}, not shown)", plural(keys.len() as u64, "key"))
        }
        // Of a custom hook: only its code knows what its options mean.
        _ if key.starts_with("hooks.") && key.ends_with(".options") => "(not shown)".to_owned(),
        Value::Sequence(items) if items.len() > ITEMS_MAX => {
            let shown: Vec<String> = items.iter().take(ITEMS_MAX).map(inline).collect();
            shorten(format!("[{}, and {} more]", shown.join(", "), items.len() - ITEMS_MAX))
        }
        Value::Sequence(items) => {
            shorten(format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")))
        }
        value => shorten(inline(value)),
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => without_secrets(text),
        other => serde_yaml::to_string(other).unwrap_or_default().trim_end().to_owned(),
    }
}

fn shorten(text: String) -> String {
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn value_of(config: &Config, key: &str) -> (String, bool) {
        let found = config.values.iter().find(|it| it.key == key);
        let found = found.unwrap_or_else(|| panic!("{key} is missing"));
        (found.value.clone(), found.is_default)
    }

    #[test]
    fn values_are_those_of_the_file_and_the_defaults_of_absent_keys() {
        let hashes = "\"0123456789012345678901234567890123456789\", ".repeat(10);
        let source = format!(
            "announce: {{interval: 10m}}\ncpus: auto\nudp: {{connection_id_keys: \
             [00112233445566778899aabbccddeeff]}}\nhooks:\n- name: access_list\n  options: {{mode: allow, \
             info_hashes: [{hashes}]}}\n"
        );
        let config = Config::parse("t", &source).unwrap();
        for (key, value, is_default) in [
            ("announce.interval", "10m", false),
            ("announce.min_interval", "10m", true),
            ("announce.peer_lifetime", "45m", true),
            ("cpus", "auto", true),
            ("udp.connection_id_keys", "(1 key, not shown)", false),
            ("http.listen", "[0.0.0.0:6969, [::]:6969]", true),
            ("control.socket", "\"\"", true),
            ("hooks.0.name", "access_list", false),
            ("hooks.0.options.mode", "allow", false),
        ] {
            assert_eq!(value_of(&config, key), (value.to_owned(), is_default), "{key}");
        }
        let (list, _) = value_of(&config, "hooks.0.options.info_hashes");
        assert!(list.starts_with("[0123") && list.ends_with("..."), "{list}");
        assert!(list.len() < CHARS_MAX + 10);
    }

    #[test]
    fn no_value_contains_a_secret() {
        for options in ["{password: x}", "x", "[x, {key: x}]"] {
            let options = serde_yaml::from_str(options).unwrap();
            assert_eq!(text("hooks.0.options", &options), "(not shown)");
        }
        let url = Value::String("https://user:pass@keys.example/jwks?key=abc".to_owned());
        for value in [url.clone(), Value::Sequence(vec![url])] {
            let text = text("hooks.0.options.jwk_set_url", &value);
            assert!(text.contains("https://keys.example/jwks"), "{text}");
            assert!(!text.contains("pass") && !text.contains("abc"), "{text}");
        }
    }
}
