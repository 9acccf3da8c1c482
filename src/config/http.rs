//! Keys under `http`.

use super::read::{Reader, Section};
use super::sections::{UdpConfig, default_listen};
use super::values::{self, DAY};
use crate::http::paths::{PathPattern, Paths};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tsubame_http::head::ClientAddressHeader;

/// Keys under `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// HTTPS listener.
    pub tls: TlsConfig,
    /// Paths of announce and scrape.
    pub paths: Paths,
    /// Networks of reverse proxies whose client address headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Header in which trusted proxies pass the client address.
    pub proxy_header: ClientAddressHeader,
    /// Limits on connections and requests.
    pub limits: HttpLimitsConfig,
    /// Networks that may request the scrape of all torrents.
    pub full_scrape_networks: Vec<IpNet>,
    /// Networks that may get the statistics at `/stats`.
    pub stats_networks: Vec<IpNet>,
    /// Minimum time between two full scrapes of one address.
    pub full_scrape_interval: Duration,
}

/// Keys under `http.tls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// File with the certificate chain.
    pub certificate: PathBuf,
    /// File with the private key of the certificate.
    pub key: PathBuf,
}

/// Keys under `http.limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimitsConfig {
    /// Maximum number of open connections.
    pub connections: u32,
    /// Maximum number of requests on a connection.
    pub requests: u32,
    /// Maximum idle time between two requests.
    pub idle_timeout: Duration,
    /// Maximum time for a request to arrive completely.
    pub request_timeout: Duration,
    /// Share of the connections, in percent, that one source may hold while at least half of all are in use.
    pub per_source_percent: u32,
}

impl HttpConfig {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let listen = section.value("listen", default_listen(), values::addresses);
        let default_paths = PathPattern::parse("/announce").into_iter().collect();
        let announce = section.value("announce_paths", default_paths, values::paths);
        let derived = announce.iter().filter_map(PathPattern::scrape).collect();
        let scrape =
            section.value("scrape_paths", None, |value| values::auto_or(value, values::paths));
        let paths = Paths { announce, scrape: scrape.unwrap_or(derived) };
        let trusted_proxies = section.value("trusted_proxies", Vec::new(), values::networks);
        let proxy_header = section.value("proxy_header", ClientAddressHeader::Either, |value| {
            let all = [
                ("auto", ClientAddressHeader::Either),
                ("x-forwarded-for", ClientAddressHeader::ForwardedFor),
                ("x-real-ip", ClientAddressHeader::RealIp),
            ];
            values::choice(value, &all)
        });
        let stats_networks = section.value("stats_networks", Vec::new(), values::networks);
        let limits = HttpLimitsConfig::read(section.section("limits"));
        let mut full_scrape = section.section("full_scrape");
        let full_scrape_networks = full_scrape.value("networks", Vec::new(), values::networks);
        let ten_minutes = Duration::from_secs(600);
        let full_scrape_interval = full_scrape.value("interval", ten_minutes, |value| {
            values::duration(value, Duration::from_secs(1), DAY)
        });
        full_scrape.end();
        let mut tls = section.section("tls");
        let tls_listen = tls.value("listen", Vec::new(), values::addresses);
        let certificate = tls.value("certificate", PathBuf::new(), values::path);
        let key = tls.value("key", PathBuf::new(), values::path);
        tls.end();
        section.end();
        let tls = TlsConfig { listen: tls_listen, certificate, key };
        Self {
            listen,
            tls,
            paths,
            trusted_proxies,
            proxy_header,
            limits,
            full_scrape_networks,
            full_scrape_interval,
            stats_networks,
        }
    }

    /// Checks conditions that involve more than one key.
    pub(super) fn check(&self, udp: &UdpConfig, reader: &mut Reader) {
        let Self { listen, tls, .. } = self;
        if udp.listen.is_empty() && listen.is_empty() && tls.listen.is_empty() {
            reader.mistake(
                "udp.listen",
                "is empty, and so are http.listen and http.tls.listen; give at least one address"
                    .to_owned(),
            );
        }
        let paths = &self.paths;
        if let Some(path) = paths.scrape.iter().find(|path| paths.announce.contains(path)) {
            let text = format!("{path} is also in announce_paths; choose another path");
            reader.mistake("http.scrape_paths", text);
        }
        if !tls.listen.is_empty() {
            for (key, path) in
                [("http.tls.certificate", &tls.certificate), ("http.tls.key", &tls.key)]
            {
                if path.as_os_str().is_empty() {
                    let message = "is empty although http.tls.listen is set; give a PEM file";
                    reader.mistake(key, message.to_owned());
                }
            }
        }
        let both =
            |address: &&SocketAddr| tls.listen.iter().any(|other| overlap(**address, *other));
        if let Some(address) = listen.iter().find(both) {
            reader.mistake(
                "http.tls.listen",
                format!("overlaps {address} of http.listen; choose another address"),
            );
        }
    }
}

impl HttpLimitsConfig {
    fn read(mut section: Section<'_>) -> Self {
        let span =
            |value: &_| values::duration(value, Duration::from_secs(1), Duration::from_secs(3_600));
        let limits = Self {
            connections: section
                .value("connections", 20_000, |value| values::number(value, 1, 10_000_000)),
            requests: section.value("requests", 1_000, |value| values::number(value, 1, u32::MAX)),
            idle_timeout: section.value("idle_timeout", Duration::from_secs(30), span),
            request_timeout: section.value("request_timeout", Duration::from_secs(10), span),
            // At most 100.
            per_source_percent: (section.value("per_source", 0.05, values::share) * 100.0).round()
                as u32,
        };
        section.end();
        limits
    }
}

/// Returns whether two listeners cannot both bind these addresses.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let wildcard = a.ip().is_unspecified() || b.ip().is_unspecified();
    let addresses_overlap = a.is_ipv4() == b.is_ipv4() && (wildcard || a.ip() == b.ip());
    a.port() != 0 && a.port() == b.port() && addresses_overlap
}
