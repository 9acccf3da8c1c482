//! What the handlers of requests to the control plane share.

use super::access::{AccessError, ClientAddress, RateLimit, RefusalLog, authorize};
use super::monitored::Monitored;
use super::torrents::Torrents;
use crate::process::reload::ControlCommand;
use axum::http::HeaderMap;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;

/// Maximum number of lists that are sent at a time: each takes memory, and the list of all torrents needs
/// scans of all swarms.
const LISTS_MAX: usize = 2;

/// Maximum number of event streams at a time: a part of the connections, so that others stay free.
const EVENT_STREAMS_MAX: usize = 16;

/// What the handlers of requests share.
#[derive(Clone)]
pub(super) struct ControlState {
    pub(super) monitored: Monitored,
    pub(super) torrents: Arc<Torrents>,
    pub(super) commands: UnboundedSender<ControlCommand>,
    /// Configured names of this host.
    pub(super) hosts: Arc<[String]>,
    pub(super) rate_limit: Arc<RateLimit>,
    refusal_log: Arc<RefusalLog>,
    /// Permits for lists that are sent at a time.
    pub(super) lists: Arc<Semaphore>,
    /// Permits for event streams, each of which occupies a connection.
    pub(super) event_streams: Arc<Semaphore>,
}

impl ControlState {
    pub(super) fn new(
        hosts: Vec<String>,
        monitored: Monitored,
        torrents: Arc<Torrents>,
        commands: UnboundedSender<ControlCommand>,
    ) -> Self {
        let rate_limit = Arc::new(RateLimit::new(monitored.clock));
        let refusal_log = Arc::new(RefusalLog::new(monitored.clock));
        Self {
            monitored,
            torrents,
            commands,
            hosts: hosts.into(),
            rate_limit,
            refusal_log,
            lists: Arc::new(Semaphore::new(LISTS_MAX)),
            event_streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
        }
    }

    /// Permits a request as [`authorize`] does, and logs it if it is refused.
    pub(super) fn authorize(
        &self,
        client: ClientAddress,
        headers: &HeaderMap,
    ) -> Result<(), AccessError> {
        authorize(client, headers, &self.monitored)
            .inspect_err(|_| self.refusal_log.refused(client))
    }
}
