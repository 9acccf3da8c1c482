//! What the control plane tells the thread that controls XDP.

use crate::policy::networks::NetworkFilter;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use tokio::sync::oneshot;
use tsubame_udp::connection_id::ConnectionIds;
use tsubame_udp::xdp::AttachedInterface;

/// Settings of XDP that a reload can change.
#[derive(Debug)]
pub(crate) struct XdpSettings {
    pub(crate) ids: ConnectionIds,
    pub(crate) explain_wrong_connection_id: bool,
    pub(crate) networks: Vec<Arc<NetworkFilter>>,
}

pub(super) enum XdpCommand {
    /// Applies settings. The first ones also attach the program; then the problem that must end the start is
    /// sent, if there is one.
    Apply(Box<XdpSettings>, Option<Sender<Option<String>>>),
    /// Sends duplicates of the links of all interfaces to which the program is attached.
    Duplicate(Sender<Vec<AttachedInterface>>),
    /// Has the program pass requests to the UDP sockets instead of redirecting them, because another process takes
    /// over, and sends a message once no more frames arrive at the AF_XDP sockets.
    StopRedirecting(oneshot::Sender<()>),
    /// Ends the thread, which detaches the program if no other process has duplicates of the links.
    Stop,
}
