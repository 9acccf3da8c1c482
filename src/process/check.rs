//! Checks of a config that depend on this machine: its files, cores, addresses and memory.

use crate::config::{Config, CpuSelection};
use crate::control::token::ControlToken;
use crate::http::Certificate;
use crate::policy::jwt::KeySource;
use crate::policy::{CompiledPolicy, HookConfig, ReadMode};
use crate::process::{cpus, memory};
use crate::text::{iec, without_secrets};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

/// Announce interval below which a warning is returned.
const INTERVAL_USUAL_MIN: Duration = Duration::from_secs(60);

/// Returns the mistakes that prevent a start with this config on this machine.
pub fn mistakes(config: &Config) -> Vec<String> {
    let tls = &config.http.tls;
    let certificate =
        (!tls.listen.is_empty()).then(|| Certificate::load(&tls.certificate, &tls.key));
    let certificate_error = certificate.and_then(Result::err).map(|error| error.to_string());
    let token_error = ControlToken::load(&config.control).err();
    let cpu_error = match &config.cpus {
        CpuSelection::Auto => None,
        list => cpus::choose(list).err().map(|error| error.to_string()),
    };
    // A passkey hook without a file is left out: reading the config has reported it already.
    let has_file = |hook: &&HookConfig| match hook {
        HookConfig::Passkey { file, .. } => !file.as_os_str().is_empty(),
        _ => true,
    };
    let hooks: Vec<HookConfig> = config.hooks.iter().filter(has_file).cloned().collect();
    let hook_error =
        CompiledPolicy::load(&hooks, &CompiledPolicy::default(), 0, ReadMode::Check).err();
    let hook_mistakes: Vec<String> =
        hook_error.iter().flat_map(|it| lines(&it.to_string())).collect();
    let listen = [
        ("udp.listen", &config.udp.listen),
        ("http.listen", &config.http.listen),
        ("http.tls.listen", &tls.listen),
    ];
    let control: Vec<SocketAddr> = config.control.listen.into_iter().collect();
    let address_errors =
        listen.into_iter().chain([("control.listen", &control)]).flat_map(|(key, addresses)| {
            addresses.iter().filter_map(move |it| address_error(key, *it))
        });
    let errors = cpu_error.into_iter().chain(token_error).chain(address_errors);
    errors.chain(certificate_error).chain(hook_mistakes).collect()
}

/// Returns warnings about settings that work but are probably not intended.
pub fn warnings(config: &Config) -> Vec<String> {
    memory_warning(config).into_iter().chain(setting_warnings(config)).collect()
}

/// Returns a warning if the memory limit exceeds the memory of this machine.
pub fn memory_warning(config: &Config) -> Option<String> {
    let memory_limit = memory::limit(config.storage.memory).bytes;
    let (available, name) =
        memory::available().filter(|(available, _)| memory_limit > *available)?;
    let shown = |bytes: usize| iec(bytes as u64);
    Some(format!(
        "storage.memory: {} exceeds {name} ({}), so that the kernel may kill the process; lower it, or set it to auto",
        shown(memory_limit),
        shown(available)
    ))
}

/// Returns warnings about settings that do not depend on this machine.
pub fn setting_warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let interval = config.announce.interval;
    if interval < INTERVAL_USUAL_MIN {
        warnings.push(format!(
            "announce.interval: {} makes clients announce very often; most trackers use 15m to 1h",
            humantime::format_duration(interval)
        ));
    }
    for hook in &config.hooks {
        if let HookConfig::Jwt(settings) = hook
            && let KeySource::Url(url) = &settings.keys
            && url.starts_with("http://")
        {
            warnings.push(format!(
                "hooks: jwt: jwk_set_url: {} is not encrypted: an attacker on the network can replace the keys and \
                 issue tokens; use https",
                without_secrets(url)
            ));
        }
    }
    warnings
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// Returns an error text if an address is not one of this machine.
fn address_error(key: &str, address: SocketAddr) -> Option<String> {
    if address.ip().is_unspecified() {
        return None;
    }
    let mut any_port = address;
    any_port.set_port(0);
    let error = UdpSocket::bind(any_port).err()?;
    (error.kind() == std::io::ErrorKind::AddrNotAvailable).then(|| {
        format!(
            "{key}: {address} is not an address of this machine; choose one that `ip address` lists"
        )
    })
}
