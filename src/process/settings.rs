//! Settings of the shards, derived from the config at start and at each reload.

use crate::config::{Config, UdpConfig};
use crate::control::monitored::ServedValue;
use crate::http::settings::HttpSettings;
use crate::policy::Intervals;
use crate::process::identity::Identity;
use crate::process::memory;
use crate::shard::mesh;
use crate::shard::update::ShardSettings;
use crate::tracker::AnnounceSettings;
use humantime::format_duration;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::{TableSettings, longest_lifetime_secs, source_counts_bytes};
use tsubame_udp::connection_id::{ConnectionIdKey, ConnectionIds};

/// Config keys that take effect only after a restart.
pub const KEYS_THAT_NEED_RESTART: [&str; 23] = [
    "cpus",
    "user",
    "udp.listen",
    "udp.steering",
    "udp.receive_buffer",
    "udp.xdp.interfaces",
    "udp.xdp.mode",
    "udp.xdp.announces",
    "udp.xdp.zero_copy",
    "http.listen",
    "http.tls.listen",
    "storage.directory",
    "cluster.servers",
    "cluster.node",
    "cluster.subject",
    "cluster.credentials",
    "cluster.tls.ca",
    "cluster.tls.certificate",
    "cluster.tls.key",
    "control.listen",
    "control.socket",
    "control.hosts",
    "log.format",
];

/// State that is determined at start and does not change until the process ends.
#[derive(Clone, Debug)]
pub struct StartupState {
    /// The config at start.
    pub config: Arc<Config>,
    /// Random keys of this process.
    pub identity: Identity,
    /// Addresses that are served over UDP, HTTP and HTTPS, with the ports that were assigned.
    pub addresses: [Vec<SocketAddr>; 3],
    /// Maximum number of files for HTTP connections. Other files are reserved for the control plane and for reloads.
    pub files_for_connections: usize,
}

impl StartupState {
    /// Returns the settings of a shard for a config. Addresses and cores remain those of the start.
    pub fn shard_settings(&self, config: &Config, shard: u16) -> ShardSettings {
        let (udp, announce) = (&config.udp, &config.announce);
        let shards = self.identity.shards;
        ShardSettings {
            ids: self.connection_ids(udp),
            announce: AnnounceSettings {
                intervals: Intervals {
                    interval_secs: announce.interval.as_secs() as u32,
                    min_interval_secs: announce.min_interval.as_secs() as u32,
                },
                numwant_default: announce.numwant_default,
                numwant_max: announce.numwant_max,
                reply_len_max: udp.max_reply_size,
                trust_client_ip: announce.trust_client_ip.clone(),
                explain_wrong_connection_id: udp.explain_wrong_connection_id,
            },
            table: TableSettings {
                peer_lifetime_secs: announce.peer_lifetime.as_secs() as u32,
                keep_completed_secs: config.storage.keep_completed.as_secs() as u32,
                memory_bytes: table_bytes(config, shards),
                source_share_per_10_000: config.storage.source_share_per_10_000,
                caps: config.storage.caps,
                allow_private: announce.allow_private,
                hash_key: self.identity.table_hash_key(),
                seed: self.identity.seed(shard),
            },
            gather: udp.gather,
            http: Arc::new(self.http_settings(config)),
        }
    }

    /// Returns the issuer of connection ids for a config.
    pub fn connection_ids(&self, udp: &UdpConfig) -> ConnectionIds {
        let others = udp.connection_id_keys.keys.get(1..).unwrap_or_default();
        let lifetime_secs = udp.connection_id_lifetime.as_secs();
        ConnectionIds::new(self.connection_id_key(udp), others, lifetime_secs)
    }

    /// Returns the key with which connection ids are issued.
    pub(crate) fn connection_id_key(&self, udp: &UdpConfig) -> ConnectionIdKey {
        let configured = udp.connection_id_keys.keys.first().copied();
        configured.unwrap_or_else(|| self.identity.connection_id_key())
    }

    /// Returns the config keys whose values differ from those at start and take effect only after a restart.
    pub fn keys_that_need_restart(&self, config: &Config) -> Vec<&'static str> {
        let (old, new) = (&*self.config, config);
        // The longest lifetime that a table can be changed to depends on its lifetime at start.
        let is_within_limit = |old: Duration, new: Duration| {
            new.as_secs() <= u64::from(longest_lifetime_secs(old.as_secs() as u32))
        };
        // In the order of `KEYS_THAT_NEED_RESTART`.
        let is_same = [
            old.cpus == new.cpus,
            old.user == new.user,
            old.udp.listen == new.udp.listen,
            old.udp.steering == new.udp.steering,
            old.udp.receive_buffer == new.udp.receive_buffer,
            old.udp.xdp.interfaces == new.udp.xdp.interfaces,
            old.udp.xdp.mode == new.udp.xdp.mode,
            old.udp.xdp.announces == new.udp.xdp.announces,
            old.udp.xdp.zero_copy == new.udp.xdp.zero_copy,
            old.http.listen == new.http.listen,
            old.http.tls.listen == new.http.tls.listen,
            old.storage.directory == new.storage.directory,
            old.cluster.servers == new.cluster.servers,
            old.cluster.node == new.cluster.node,
            old.cluster.subject == new.cluster.subject,
            old.cluster.credentials == new.cluster.credentials,
            old.cluster.tls.ca == new.cluster.tls.ca,
            old.cluster.tls.certificate == new.cluster.tls.certificate,
            old.cluster.tls.key == new.cluster.tls.key,
            old.control.listen == new.control.listen,
            old.control.socket == new.control.socket,
            old.control.hosts == new.control.hosts,
            old.log.format == new.log.format,
        ];
        let changed = KEYS_THAT_NEED_RESTART.into_iter().zip(is_same).filter(|(_, same)| !same);
        let lifetimes = [
            ("announce.peer_lifetime", old.announce.peer_lifetime, new.announce.peer_lifetime),
            ("storage.keep_completed", old.storage.keep_completed, new.storage.keep_completed),
        ];
        let too_long = lifetimes.into_iter().filter(|(_, old, new)| !is_within_limit(*old, *new));
        changed.map(|(key, _)| key).chain(too_long.map(|(key, ..)| key)).collect()
    }

    /// Returns the values of all config keys that are in force: those of the config, except for keys that take effect
    /// only after a restart.
    pub fn values_in_force(&self, config: &Config) -> Vec<ServedValue> {
        let waiting = self.keys_that_need_restart(config);
        let lifetimes = [
            ("announce.peer_lifetime", self.config.announce.peer_lifetime),
            ("storage.keep_completed", self.config.storage.keep_completed),
        ];
        let values = config.values.iter().map(|new| {
            let is_waiting = waiting.contains(&new.key.as_str());
            let old = self.config.values.iter().find(|old| old.key == new.key && is_waiting);
            let lifetime = lifetimes.iter().find(|(key, _)| *key == new.key);
            let (value, is_default) = match (old, lifetime) {
                // The table has cut the lifetime.
                (Some(_), Some((_, at_start))) => {
                    let longest = longest_lifetime_secs(at_start.as_secs() as u32);
                    (format_duration(Duration::from_secs(longest.into())).to_string(), false)
                }
                (Some(old), None) => (old.value.clone(), old.is_default),
                (None, _) => (new.value.clone(), new.is_default),
            };
            let after_restart = is_waiting.then(|| new.value.clone());
            ServedValue { key: new.key.clone(), value, is_default, after_restart }
        });
        values.collect()
    }

    fn http_settings(&self, config: &Config) -> HttpSettings {
        let limits = config.http.limits;
        let connections = (limits.connections as usize).min(self.files_for_connections);
        let connections = connections.div_ceil(self.identity.shards.into());
        HttpSettings {
            paths: config.http.paths.clone(),
            trusted_proxies: config.http.trusted_proxies.clone(),
            client_address_header: config.http.proxy_header,
            connections_max: connections,
            requests_max: limits.requests,
            idle_timeout_secs: limits.idle_timeout.as_secs(),
            request_timeout_secs: limits.request_timeout.as_secs(),
            connections_per_source_max: share_of(connections, limits.per_source_percent),
            full_scrape_networks: config.http.full_scrape_networks.clone(),
            full_scrape_interval_secs: config.http.full_scrape_interval.as_secs(),
            stats_networks: config.http.stats_networks.clone(),
            urls: self.announce_urls(config),
        }
    }

    /// Returns the scheme, port and path of each announce URL over UDP, HTTP and HTTPS, without duplicates.
    fn announce_urls(&self, config: &Config) -> Vec<(&'static str, String)> {
        let [udp, http, https] = &self.addresses;
        let over_udp = udp.iter().map(|address| ("udp", format!(":{}/announce", address.port())));
        let mut urls: Vec<_> = over_udp.collect();
        for (scheme, addresses) in [("http", http), ("https", https)] {
            for address in addresses {
                let paths = config.http.paths.announce.iter();
                urls.extend(paths.map(|path| (scheme, format!(":{}{path}", address.port()))));
            }
        }
        // Both families usually have the same port.
        let mut seen = BTreeSet::new();
        urls.retain(|url| seen.insert(url.clone()));
        urls
    }
}

/// Number of files that are reserved for the control plane, lists and key sets.
const RESERVED_FILES: usize = 160;

/// Number of files that are reserved for each shard in addition to those it has open at start: its rings, and
/// connections that are accepted before others are closed in their place.
const RESERVED_FILES_PER_SHARD: usize = 48;

/// Minimum number of connections that are served, however low the limit on open files is.
const CONNECTIONS_MIN: usize = 16;

/// Returns the number of files that may be open for HTTP connections, from the limit on open files and those open now.
pub fn files_for_connections(shards: u16) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let reserved = RESERVED_FILES + usize::from(shards) * RESERVED_FILES_PER_SHARD;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    limit.saturating_sub(open + reserved).max(CONNECTIONS_MIN)
}

/// Minimum of the maximum number of connections per source. A browser opens as many at once.
const CONNECTIONS_PER_SOURCE_MIN: usize = 8;

/// Returns a percentage of a number of connections, at least [`CONNECTIONS_PER_SOURCE_MIN`].
fn share_of(connections: usize, percent: u32) -> usize {
    (connections * percent as usize / 100).max(CONNECTIONS_PER_SOURCE_MIN)
}

/// Returns the memory limit of the swarm table of one of `shards` shards.
///
/// `storage.memory` also covers the queues between shards and the counts by source. If it is small, half of it remains
/// for the tables.
pub fn table_bytes(config: &Config, shards: u16) -> usize {
    let all = memory::limit(config.storage.memory).bytes;
    let fixed = mesh::memory_bytes(shards) + usize::from(shards) * source_counts_bytes();
    all.saturating_sub(fixed).max(all / 2) / usize::from(shards.max(1))
}
