//! Checks of the config and of its files.

use super::finding::{Finding, split_cure};
use super::host::Subject;
use crate::http::Certificate;
use crate::policy::HookConfig;
use crate::process::check;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Days before the end of a certificate from which a warning is returned. Let's Encrypt recommends renewal after two
/// thirds of 90 days.
const CERTIFICATE_DAYS_MIN: u64 = 21;

const SECS_PER_DAY: u64 = 86_400;

pub(super) fn findings(subject: &Subject<'_>) -> Vec<Finding> {
    let (config, mut findings) = (subject.config, Vec::new());
    let mistakes = subject.mistakes.iter().cloned().chain(check::mistakes(config));
    findings.extend(mistakes.map(|mistake| {
        let (text, cure) = split_cure(&mistake);
        Finding::problem("config", text, cure)
    }));
    findings.extend(check::setting_warnings(config).iter().map(|warning| {
        let (text, cure) = split_cure(warning);
        Finding::warning("config", text, cure)
    }));
    if findings.is_empty() {
        let name = subject
            .path
            .map_or_else(|| "the default config".to_owned(), |it| it.display().to_string());
        findings.push(Finding::ok("config", format!("{name} has no mistakes")));
    }
    findings.extend(certificate(subject));
    findings.extend(trusted_networks(subject));
    findings.extend(control_plane(subject));
    findings.extend(secrets(subject));
    findings
}

fn certificate(subject: &Subject<'_>) -> Option<Finding> {
    let tls = &subject.config.http.tls;
    if tls.listen.is_empty() {
        return None;
    }
    // An error of loading is a mistake of the config.
    let expiry = Certificate::load(&tls.certificate, &tls.key).ok()?.expiry_unix_secs()?;
    let now = subject.unix_secs;
    let days = expiry.saturating_sub(now) / SECS_PER_DAY;
    let path = tls.certificate.display();
    let cure = "renew it, for example: certbot renew; then: systemctl reload tsubame".to_owned();
    Some(match expiry {
        expiry if expiry <= now => {
            Finding::problem("certificate", format!("{path} has expired"), cure)
        }
        _ if days < CERTIFICATE_DAYS_MIN => {
            Finding::warning("certificate", format!("{path} expires in {days} days"), cure)
        }
        _ => Finding::ok("certificate", format!("{path} is valid for {days} days")),
    })
}

/// Networks that may state other addresses than their own let their clients forge peers.
fn trusted_networks(subject: &Subject<'_>) -> Option<Finding> {
    let keys = [
        ("announce.trust_client_ip", &subject.config.announce.trust_client_ip),
        ("http.trusted_proxies", &subject.config.http.trusted_proxies),
    ];
    keys.into_iter().find_map(|(key, networks)| {
        let all = networks.iter().find(|network| network.prefix_len() == 0)?;
        Some(Finding::warning(
            "trusted_networks",
            format!("{key}: {all} lets every client announce the address of somebody else"),
            format!("list only networks of your own in {key}"),
        ))
    })
}

fn control_plane(subject: &Subject<'_>) -> Option<Finding> {
    let address = subject.config.control.listen?;
    if address.ip().is_loopback() {
        return Some(Finding::ok(
            "control_plane",
            format!("{address} is reachable from this machine only"),
        ));
    }
    Some(Finding::warning(
        "control_plane",
        format!(
            "control.listen: {address} can be reached from other hosts, which can read the metrics"
        ),
        format!(
            "set control.listen to 127.0.0.1:{}, or permit only the monitoring host",
            address.port()
        ),
    ))
}

/// Files with secrets must not be readable by all users.
fn secrets(subject: &Subject<'_>) -> Vec<Finding> {
    let config = subject.config;
    let mut files: Vec<(&str, &Path)> = Vec::new();
    if !config.http.tls.listen.is_empty() {
        files.push(("the private key", &config.http.tls.key));
    }
    files.extend(
        config.control.token_file.as_deref().map(|it| ("the token of the control plane", it)),
    );
    let cluster = &config.cluster;
    let has_password = cluster.servers.iter().any(|server| server.contains('@'));
    files.extend(subject.path.filter(|_| has_password).map(|it| ("the password of NATS", it)));
    files.extend(cluster.credentials.as_deref().map(|it| ("the credentials of NATS", it)));
    files.extend(cluster.tls.key.as_deref().map(|it| ("the private key for NATS", it)));
    for hook in &config.hooks {
        match hook {
            HookConfig::Passkey { file, .. } => files.push(("the passkeys", file)),
            HookConfig::Custom(_) => {
                files.extend(subject.path.map(|it| ("the options of a hook", it)))
            }
            _ => {}
        }
    }
    let ids = &config.udp.connection_id_keys;
    if !ids.keys.is_empty() {
        let file = ids.file.as_deref().or(subject.path);
        files.extend(file.map(|file| ("the keys of connection ids", file)));
    }
    let readable = files.into_iter().filter(|(_, file)| is_readable_by_all(file));
    let findings: Vec<_> = readable
        .map(|(what, file)| {
            Finding::warning(
                "secrets",
                format!("{}: all users of this machine can read {what}", file.display()),
                format!("chmod o-r {}", file.display()),
            )
        })
        .collect();
    match findings.is_empty() {
        true => vec![Finding::ok("secrets", "no file with a secret is readable by all users")],
        false => findings,
    }
}

/// Returns whether all users can read a file, and enter all directories above it.
fn is_readable_by_all(file: &Path) -> bool {
    let has = |path: &Path, bit| {
        std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & bit != 0)
    };
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    has(&file, 0o004) && file.ancestors().skip(1).all(|directory| has(directory, 0o001))
}
