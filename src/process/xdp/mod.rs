//! The thread that controls XDP: it attaches the program, keeps its settings and addresses current, and reads its
//! counters.
//!
//! It keeps the capabilities that XDP needs, and uses them only to load and attach the program and to create AF_XDP
//! sockets. The only other thread that keeps them starts the new process of an upgrade, which needs them, too.

mod command;
mod control;
mod privileged;
mod probe;
mod sockets;

pub(crate) use command::XdpSettings;
pub(crate) use privileged::{CAPABILITIES, KEPT_CAPABILITIES, keep_capabilities};
pub use probe::probe;

use crate::clock::Clock;
use crate::config::XdpConfig;
use crate::shard::xdp_datapath::QueueChange;
use crate::stats::xdp_status::XdpStatus;
use command::XdpCommand;
use control::XdpControl;
use privileged::has_capabilities;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::oneshot;
use tsubame_udp::xdp::{AttachedInterface, Filter, XdpError};

/// Reason for which XDP cannot be used as configured.
#[derive(Debug, Error)]
pub enum XdpStartError {
    /// The program cannot be loaded.
    #[error("udp.xdp: {0}")]
    Load(XdpError),
    /// The program cannot be attached to an interface, or cannot work with the settings.
    #[error("udp.xdp: {0}")]
    Interface(String),
    /// The thread could not be started.
    #[error(
        "udp.xdp: cannot start a thread: {0}; raise the limit on threads (TasksMax in the unit)"
    )]
    Thread(io::Error),
}

/// The thread that controls XDP.
#[derive(Debug)]
pub(crate) struct XdpThread {
    commands: Sender<XdpCommand>,
    thread: JoinHandle<()>,
    pub(crate) status: Arc<XdpStatus>,
}

impl XdpThread {
    /// Starts the thread, which loads the program, unless no interfaces are configured. To be called while the calling
    /// thread has the capabilities that XDP needs. `listen` are the addresses of the UDP sockets; `shards` takes the
    /// receive queues that each shard is to serve, and is empty if AF_XDP sockets are not to be used. `inherited` are
    /// the interfaces to which the predecessor has attached its program.
    ///
    /// Unless the config demands XDP, returns `None` and logs a warning if the program cannot be loaded.
    ///
    /// # Errors
    ///
    /// Returns an error if the program cannot be loaded.
    pub(crate) fn start(
        config: &XdpConfig,
        (listen, shards): (Vec<SocketAddr>, Vec<Sender<QueueChange>>),
        (clock, inherited): (Clock, Vec<AttachedInterface>),
    ) -> Result<Option<Self>, XdpStartError> {
        if config.interfaces.is_empty() {
            return Ok(None);
        }
        let status = Arc::<XdpStatus>::default();
        let (commands, received) = channel();
        let (loaded, is_loaded) = channel();
        let (config_of_thread, status_of_thread) = (config.clone(), status.clone());
        let run = move || {
            if !has_capabilities() {
                // Fails only if the process is about to end.
                let _ = loaded.send(Err(XdpError::Forbidden));
                return;
            }
            keep_capabilities();
            // All capabilities stay until the first settings arrive: a process can change its user only if all of its
            // threads can.
            let filter = Filter::load(config_of_thread.interfaces.len() as u16);
            match filter {
                Ok(filter) => {
                    let _ = loaded.send(Ok(()));
                    let status = status_of_thread;
                    let targets = (listen, shards);
                    let program = (filter, inherited);
                    XdpControl::new(program, config_of_thread, targets, (clock, status))
                        .run(&received);
                }
                Err(error) => _ = loaded.send(Err(error)),
            }
        };
        let thread = std::thread::Builder::new().name("xdp".to_owned()).spawn(run);
        let thread = thread.map_err(XdpStartError::Thread)?;
        match is_loaded.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) if config.mode.is_none() && !config.requires_sockets() => {
                tracing::warn!("udp.xdp: {error}; all requests are answered over sockets");
                return Ok(None);
            }
            Ok(Err(error)) => return Err(XdpStartError::Load(error)),
            Err(_) => return Err(XdpStartError::Thread(io::Error::other("it ended"))),
        }
        Ok(Some(Self { commands, thread, status }))
    }

    /// Applies the first settings and attaches the program to the interfaces. To be called once the sockets are served.
    ///
    /// # Errors
    ///
    /// Returns an error if the config demands that XDP works on all interfaces, and it does not.
    pub(crate) fn attach(&self, settings: XdpSettings) -> Result<(), XdpStartError> {
        let (sender, problem) = channel();
        self.send(XdpCommand::Apply(Box::new(settings), Some(sender)));
        match problem.recv() {
            Ok(Some(problem)) => Err(XdpStartError::Interface(problem)),
            // The thread has logged what does not work.
            _ => Ok(()),
        }
    }

    /// Applies new settings, within two seconds; with hundreds of thousands of new networks it takes some seconds.
    pub(crate) fn apply(&self, settings: XdpSettings) {
        self.send(XdpCommand::Apply(Box::new(settings), None));
    }

    /// Returns a handle with which another thread can duplicate the links of the program.
    pub(crate) fn links(&self) -> XdpLinks {
        XdpLinks(self.commands.clone())
    }

    /// Has the program pass requests to the UDP sockets instead of redirecting them, because another process takes
    /// over. The returned channel gets a message once no more frames arrive at the AF_XDP sockets.
    pub(crate) fn stop_redirecting(&self) -> oneshot::Receiver<()> {
        let (reply, stopped) = oneshot::channel();
        self.send(XdpCommand::StopRedirecting(reply));
        stopped
    }

    /// Detaches the program, unless another process has duplicates of the links, and waits for that.
    pub(crate) fn stop(self) {
        self.send(XdpCommand::Stop);
        // A panic would have ended the process.
        let _ = self.thread.join();
    }

    fn send(&self, command: XdpCommand) {
        // The thread ends only at `Stop`, or by a panic, which ends the process.
        let _ = self.commands.send(command);
    }
}

/// Duplicates the links that keep the program attached.
#[derive(Debug)]
pub(crate) struct XdpLinks(Sender<XdpCommand>);

impl XdpLinks {
    /// Returns duplicates of the links of all interfaces to which the program is attached; `None` if the thread does
    /// not answer in time: it may be writing hundreds of thousands of networks.
    pub(crate) fn duplicate(&self, timeout: Duration) -> Option<Vec<AttachedInterface>> {
        let (reply, duplicated) = channel();
        let _ = self.0.send(XdpCommand::Duplicate(reply));
        duplicated.recv_timeout(timeout).ok()
    }
}
