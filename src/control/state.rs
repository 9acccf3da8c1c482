//! What the handlers of requests to the control plane share.

use super::access::RateLimit;
use super::monitored::Monitored;
use super::torrents::Torrents;
use crate::process::reload::ReloadCommand;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// What the handlers of requests share.
#[derive(Clone)]
pub(super) struct ControlState {
    pub(super) monitored: Monitored,
    pub(super) torrents: Arc<Torrents>,
    pub(super) commands: UnboundedSender<ReloadCommand>,
    /// Configured names of this host.
    pub(super) hosts: Arc<[String]>,
    pub(super) rate_limit: Arc<RateLimit>,
}

impl ControlState {
    pub(super) fn new(
        hosts: Vec<String>,
        monitored: Monitored,
        torrents: Arc<Torrents>,
        commands: UnboundedSender<ReloadCommand>,
    ) -> Self {
        let rate_limit = Arc::new(RateLimit::new(monitored.clock));
        Self { monitored, torrents, commands, hosts: hosts.into(), rate_limit }
    }
}
