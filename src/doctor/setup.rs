//! Checks of the config and of its files.

use super::finding::Finding;
use super::host::Subject;
use crate::clock::Clock;
use crate::http::Certificate;
use crate::process::check;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Days before the end of a certificate from which a warning is returned. Let's Encrypt recommends renewal after two
/// thirds of 90 days.
const CERTIFICATE_DAYS_MIN: u64 = 21;

const SECS_PER_DAY: u64 = 86_400;

pub(super) fn findings(subject: &Subject<'_>) -> Vec<Finding> {
    let (config, mut findings) = (subject.config, Vec::new());
    let mistakes = check::mistakes(config).into_iter();
    findings.extend(mistakes.map(|mistake| Finding::problem("config", mistake, None)));
    findings.extend(
        check::setting_warnings(config)
            .into_iter()
            .map(|text| Finding::warning("config", text, None)),
    );
    if findings.is_empty() {
        let name = subject
            .path
            .map_or_else(|| "the default config".to_owned(), |it| it.display().to_string());
        findings.push(Finding::ok("config", format!("{name} has no mistakes")));
    }
    findings.extend(certificate(subject));
    findings.extend(trusted_networks(subject));
    findings.extend(control_plane(subject));
    findings.push(secrets(subject));
    findings
}

fn certificate(subject: &Subject<'_>) -> Option<Finding> {
    let tls = &subject.config.http.tls;
    if tls.listen.is_empty() {
        return None;
    }
    // An error of loading is a mistake of the config.
    let expiry = Certificate::load(&tls.certificate, &tls.key).ok()?.expiry_unix_secs()?;
    let now = Clock::new().now().unix_secs;
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
            "listen on 127.0.0.1:{port}, or permit only the monitoring host: nft add rule inet filter input tcp dport \
             {port} ip saddr != MONITOR drop",
            port = address.port()
        ),
    ))
}

/// Files with secrets must not be readable by all users.
fn secrets(subject: &Subject<'_>) -> Finding {
    let config = subject.config;
    let tls_key = (!config.http.tls.listen.is_empty()).then_some(config.http.tls.key.as_path());
    let token = config.control.token_file.as_deref();
    for (what, file) in [
        ("the private key", tls_key),
        ("the token of the control plane", token),
        ("the keys of connection ids", file_of_keys(subject)),
    ] {
        if let Some(file) = file.filter(|file| is_readable_by_all(file)) {
            return Finding::warning(
                "secrets",
                format!("{}: all users of this machine can read {what}", file.display()),
                format!("chmod o-r {}", file.display()),
            );
        }
    }
    Finding::ok("secrets", "no file with a secret is readable by all users")
}

/// Returns the file with the keys of connection ids: the config, or the file that it names.
fn file_of_keys<'a>(subject: &Subject<'a>) -> Option<&'a Path> {
    if subject.config.udp.connection_id_keys.is_empty() {
        return None;
    }
    let value = subject.config.values.iter().find(|it| it.key == "udp.connection_id_keys")?;
    let named = Path::new(&value.value);
    if named.exists() { Some(named) } else { subject.path }
}

fn is_readable_by_all(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
