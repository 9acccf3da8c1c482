//! A running tracker, as the control plane sees it.

use crate::control::monitored::Monitored;
use crate::process::reload::Reloader;
use crate::process::snapshot::SnapshotSettings;
use crate::process::steering::Steering;
use crate::process::supervisor::Supervisor;
use crate::process::xdp::XdpThread;
use crate::shard::mesh::MeshEndpoint;
use crate::shard::update::ShardUpdate;
use crate::stats::client_samples::SampleReader;
use tokio::sync::mpsc::UnboundedReceiver;
use tsubame_udp::steering::SteeringKeys;

/// A running tracker, with everything that the control plane needs to monitor it.
pub(crate) struct RunningTracker {
    pub(crate) supervisor: Supervisor,
    pub(crate) control: MeshEndpoint,
    pub(crate) monitored: Monitored,
    pub(crate) steering: Steering,
    pub(crate) reloader: Reloader,
    /// Receives replaced policies and settings, which are freed outside the shards.
    pub(crate) to_free: UnboundedReceiver<Box<ShardUpdate>>,
    /// Keys of the function that decides which shard owns a torrent, and the key by which distinct peers are counted.
    pub(crate) keys: (SteeringKeys, (u64, u64)),
    /// Client programs of sampled announces of each shard.
    pub(crate) sample_readers: Vec<SampleReader>,
    /// The thread that controls XDP, if it is in use.
    pub(crate) xdp: Option<XdpThread>,
    /// The settings of snapshots, if there are to be some.
    pub(crate) snapshots: Option<SnapshotSettings>,
}
