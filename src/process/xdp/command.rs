//! What the control plane tells the thread that controls XDP.

use crate::policy::networks::NetworkFilter;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use tsubame_udp::connection_id::ConnectionIds;

/// Settings of XDP that a reload can change.
#[derive(Debug)]
pub(crate) struct XdpSettings {
    pub(crate) ids: ConnectionIds,
    pub(crate) explain_wrong_connection_id: bool,
    pub(crate) networks: Vec<Arc<NetworkFilter>>,
}

pub(super) enum XdpCommand {
    /// Applies settings. The first ones also attach the program; then the problem is sent that must end the start, if
    /// there is one.
    Apply(Box<XdpSettings>, Option<Sender<Option<String>>>),
    Stop,
}
