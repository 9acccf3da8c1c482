//! What the control plane can change about a running shard.

use crate::http::settings::HttpSettings;
use crate::policy::Policy;
use crate::tracker::AnnounceSettings;
use std::sync::Arc;
use std::time::Duration;
use tsubame_storage::TableSettings;
use tsubame_udp::connection_id::ConnectionIds;

/// The settings of a shard that can change at run time, except its policy.
#[derive(Clone, Debug)]
pub struct ShardSettings {
    /// Issues and checks connection ids.
    pub ids: ConnectionIds,
    /// Settings of announces.
    pub announce: AnnounceSettings,
    /// Settings of the swarm table.
    pub table: TableSettings,
    /// How long datagrams are gathered; zero disables it, and with `None` trials choose the time.
    pub gather: Option<Duration>,
    /// Settings of HTTP.
    pub http: Arc<HttpSettings>,
}

/// A change of a running shard. The replaced policy is left in it, so that it can be freed by another thread.
#[derive(Debug, Default)]
pub struct ShardUpdate {
    /// The new policy.
    pub policy: Option<Policy>,
    /// The new settings.
    pub settings: Option<ShardSettings>,
    /// Whether all torrents without peers are removed.
    pub evict_empty_torrents: bool,
}
