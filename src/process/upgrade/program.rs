//! The program of this process, and the thread that starts it for an upgrade.

use crate::process::{privileges, xdp};
use nix::unistd::geteuid;
use rustix::thread::CapabilitySet;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};

/// The program of this process and its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
}

impl Program {
    /// Returns the program as this process was started: a new version has the same path. To be called at start, as the
    /// kernel does not tell the path of a file that was replaced.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        // A name without a slash was found in PATH.
        let path = match name.components().count() {
            0 | 1 => std::env::current_exe()?,
            _ => std::path::absolute(name)?,
        };
        Ok(Self { path, arguments: arguments.collect() })
    }
}

/// A message to the thread that starts programs.
enum StarterCommand {
    /// Gives up privileges, as the process has done.
    LimitPrivileges,
    /// Starts a program.
    Start(Box<Command>, Sender<io::Result<Child>>),
}

/// Starts programs from a thread with the priority and the capabilities that the process had at its start: the control
/// plane lowers its own priority and gives up the capabilities of XDP, which a program that it starts would inherit and
/// could not get back.
#[derive(Clone, Debug)]
pub(crate) struct ProgramStarter(Sender<StarterCommand>);

impl ProgramStarter {
    /// Starts the thread, with the priority and the capabilities of the calling one. Programs need those of XDP if
    /// `has_xdp`.
    ///
    /// # Errors
    ///
    /// Returns an error if the thread cannot be started.
    pub(crate) fn new(has_xdp: bool) -> io::Result<Self> {
        let (sender, commands) = channel();
        let (ready, is_ready) = channel();
        let was_root = geteuid().is_root();
        std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
            let for_xdp = if has_xdp { xdp::KEPT_CAPABILITIES } else { CapabilitySet::empty() };
            if has_xdp {
                xdp::keep_capabilities();
            }
            let _ = ready.send(());
            for command in commands {
                match command {
                    StarterCommand::LimitPrivileges => {
                        if let Err(error) = privileges::limit_for_programs(was_root, for_xdp) {
                            tracing::warn!(
                                "upgrades are refused, because the thread that starts programs cannot give up its \
                                 privileges: {error}"
                            );
                            return;
                        }
                    }
                    StarterCommand::Start(mut command, reply) => {
                        let child = command.spawn();
                        // The command holds the socket of the child. While it is open here, the exit of the child does
                        // not close the channel.
                        drop(command);
                        let _ = reply.send(child);
                    }
                }
            }
        })?;
        // The process may change its user only afterwards.
        is_ready.recv().map_err(|_| ended())?;
        Ok(Self(sender))
    }

    /// Has the thread give up the privileges that the process has given up, but keep the capabilities that programs
    /// need.
    pub(crate) fn limit_privileges(&self) {
        let _ = self.0.send(StarterCommand::LimitPrivileges);
    }

    pub(super) fn start(&self, command: Command) -> io::Result<Child> {
        let (reply, child) = channel();
        self.0.send(StarterCommand::Start(Box::new(command), reply)).map_err(|_| ended())?;
        child.recv().map_err(|_| ended())?
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that starts programs has ended")
}
