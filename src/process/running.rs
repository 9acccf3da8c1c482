//! A running tracker, as the control plane sees it.

use crate::control::monitored::Monitored;
use crate::process::cluster::ClusterLinks;
use crate::process::identity::Identity;
use crate::process::reload::Reloader;
use crate::process::snapshot::SnapshotSettings;
use crate::process::steering::Steering;
use crate::process::supervisor::Supervisor;
use crate::process::upgrade::program::{Program, ProgramStarter};
use crate::process::upgrade::sockets::SocketCopies;
use crate::process::upgrade::take_over::TakeOver;
use crate::process::xdp::XdpThread;
use crate::shard::mesh::MeshEndpoint;
use crate::shard::update::ShardUpdate;
use crate::stats::client_samples::SampleReader;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;
use tsubame_udp::steering::SteeringKeys;

/// What another process of the tracker needs to take over.
#[derive(Debug)]
pub(crate) struct UpgradeState {
    /// The program of this process.
    pub(crate) program: io::Result<Program>,
    /// The thread that starts it.
    pub(crate) starter: ProgramStarter,
    pub(crate) identity: Identity,
    pub(crate) sockets: Arc<SocketCopies>,
    /// The rest of the upgrade by which this process has begun.
    pub(crate) take_over: Option<TakeOver>,
}

impl UpgradeState {
    /// Creates the state. To be called at start, because the kernel does not tell the path of a program that was
    /// replaced.
    pub(crate) fn new(
        starter: ProgramStarter,
        identity: Identity,
        sockets: Arc<SocketCopies>,
        take_over: Option<TakeOver>,
    ) -> Self {
        Self { program: Program::of_this_process(), starter, identity, sockets, take_over }
    }
}

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
    pub(crate) upgrade: UpgradeState,
    /// What connects the thread of the cluster with the shards, if there is to be one.
    pub(crate) cluster: Option<ClusterLinks>,
}
