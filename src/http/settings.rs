//! Settings of HTTP.

use super::connection_table::StateTimeouts;
use super::paths::Paths;
use ipnet::IpNet;
use std::net::IpAddr;
use tsubame_http::head::ClientAddressHeader;

/// Seconds that a client may take to read a reply.
const WRITE_TIMEOUT_SECS: u64 = 30;

/// How a shard serves HTTP; the same for all shards.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Paths of announces and scrapes.
    pub paths: Paths,
    /// Proxies whose statements about the address of the client are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Header in which trusted proxies send the address of the client.
    pub client_address_header: ClientAddressHeader,
    /// Maximum number of connections of a shard.
    pub connections_max: usize,
    /// Maximum number of requests on a connection.
    pub requests_max: u32,
    /// Seconds that a connection may be idle between requests.
    pub idle_timeout_secs: u64,
    /// Seconds that a request may take to arrive.
    pub request_timeout_secs: u64,
    /// Maximum number of connections of one source while at least half of `connections_max` are open.
    pub connections_per_source_max: usize,
    /// Networks that may get the list of all torrents.
    pub full_scrape_networks: Vec<IpNet>,
    /// Seconds until an address may get the list of all torrents again.
    pub full_scrape_interval_secs: u64,
    /// Networks that may get the statistics at `/stats`.
    pub stats_networks: Vec<IpNet>,
    /// Announce URLs without their host, as `("udp", ":6969/announce")`.
    pub urls: Vec<(&'static str, String)>,
}

impl HttpSettings {
    /// Returns the timeouts of the states of a connection.
    pub(super) fn timeouts(&self) -> StateTimeouts {
        StateTimeouts {
            idle: self.idle_timeout_secs,
            reading: self.request_timeout_secs,
            writing: WRITE_TIMEOUT_SECS,
        }
    }

    /// Returns whether an address may get the statistics.
    pub(super) fn permits_stats(&self, address: IpAddr) -> bool {
        self.stats_networks.iter().any(|network| network.contains(&address.to_canonical()))
    }

    /// Returns whether an address is that of a trusted proxy.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }
}
