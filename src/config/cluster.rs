//! The section `cluster`.

use super::read::Section;
use super::values::{self, ParseResult};
use crate::cluster::{NODE_NAME_MAX, is_node_name};
use crate::text::without_secrets;
use async_nats::ServerAddr;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Maximum length of the first part of subjects.
const SUBJECT_LEN_MAX: usize = 64;

/// Keys under `cluster`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// URLs of the NATS servers. If there are none, the tracker is in no cluster.
    pub servers: Vec<String>,
    /// Name of this node; `None` uses the name of the host.
    pub node: Option<String>,
    /// First part of all subjects.
    pub subject: String,
    /// NATS credentials file.
    pub credentials: Option<PathBuf>,
    /// Keys of `cluster.tls`.
    pub tls: ClusterTlsConfig,
}

/// Keys under `cluster.tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterTlsConfig {
    /// Certificates of the authorities that are trusted; `None` trusts those of the system.
    pub ca: Option<PathBuf>,
    /// Certificate of this node, if the servers ask for one.
    pub certificate: Option<PathBuf>,
    /// The private key of this certificate.
    pub key: Option<PathBuf>,
}

impl ClusterConfig {
    /// Returns whether the tracker is in a cluster.
    pub fn is_enabled(&self) -> bool {
        !self.servers.is_empty()
    }

    pub(super) fn read(mut section: Section<'_>) -> Self {
        let servers = section.value("servers", Vec::new(), |value| {
            let servers = values::texts(value, server)?;
            let users: BTreeSet<_> = servers.iter().map(|server| user_of(server)).collect();
            match users.len() {
                ..=1 => Ok(servers),
                _ => Err("has servers with different users; write the same user and password in each URL".to_owned()),
            }
        });
        let node = section.value("node", None, |value| {
            values::auto_or(value, |value| {
                let name = values::text(value)?;
                is_node_name(&name).then_some(name.clone()).ok_or_else(|| {
                    format!(
                        "{name:?} is not a name of 1 to {NODE_NAME_MAX} bytes without control characters; write one \
                         such as node1, or auto"
                    )
                })
            })
        });
        let subject = section.value("subject", "tsubame".to_owned(), |value| {
            let text = values::text(value)?;
            let is_token = |token: &str| {
                let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                !token.is_empty() && token.chars().all(is_valid)
            };
            let is_valid = text.len() <= SUBJECT_LEN_MAX && text.split('.').all(is_token);
            is_valid.then_some(text.clone()).ok_or_else(|| {
                format!(
                    "{text:?} is not 1 to {SUBJECT_LEN_MAX} letters, digits, - and _, in parts divided by dots; write \
                     one such as tsubame or trackers.public"
                )
            })
        });
        let credentials = section.value("credentials", None, values::optional_path);
        let mut tls = section.section("tls");
        let [ca, certificate, key] =
            ["ca", "certificate", "key"].map(|name| tls.value(name, None, values::optional_path));
        if certificate.is_some() != key.is_some() {
            let (missing, other) =
                if key.is_none() { ("key", "certificate") } else { ("certificate", "key") };
            tls.missing(missing, &format!("give both, or remove {other}"));
        }
        tls.end();
        section.end();
        Self { servers, node, subject, credentials, tls: ClusterTlsConfig { ca, certificate, key } }
    }
}

/// Returns the user and password of the URL of a server.
fn user_of(server: &str) -> Option<&str> {
    let (_, rest) = server.split_once("://")?;
    rest.rsplit_once('@').map(|(user, _)| user)
}

/// Reads the URL of a server.
fn server(text: &str) -> ParseResult<String> {
    let shown = without_secrets(text);
    let has_scheme = text.starts_with("nats://") || text.starts_with("tls://");
    if has_scheme && text.parse::<ServerAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{shown:?} is not the URL of a NATS server; write it as nats://10.0.0.1:4222 or tls://host:4222"
    ))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn mistakes_name_the_value_and_the_cure() {
        for (values, expected) in [
            ("servers: [\"10.0.0.1:4222\"]", "\"10.0.0.1:4222\" is not the URL of a NATS server"),
            ("servers: [\"http://u:secret@h\"]", "\"http://h\" is not the URL of a NATS server"),
            ("servers: [\"nats://u:p@a\", \"nats://b\"]", "servers with different users"),
            ("node: \"\"", "is not a name of 1 to 64 bytes"),
            ("subject: \"a..b\"", "letters, digits, - and _, in parts"),
            ("subject: \"a.>\"", "letters, digits, - and _, in parts"),
            ("tls: {key: k.pem}", "cluster.tls.certificate: is missing; give both"),
        ] {
            let mistake = Config::parse("t", &format!("cluster: {{{values}}}")).unwrap_err();
            let text = mistake.to_string();
            assert!(text.contains(expected) && !text.contains("secret"), "{text}");
        }
        let valid =
            "cluster: {servers: \"tls://u:p@a:4222\", node: n.1, subject: a.b, credentials: c}";
        let cluster = Config::parse("t", valid).unwrap().cluster;
        assert!(cluster.is_enabled() && cluster.credentials.is_some());
        assert!(!Config::parse("t", "").unwrap().cluster.is_enabled());
    }
}
