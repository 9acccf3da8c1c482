//! The listening sockets of the control plane.

use crate::config::ControlConfig;
use rustix::fs::Mode;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Reason why the control plane could not listen.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another process uses the address.
    #[error(
        "control.listen: {0} is taken by another process; choose another address, or \"\" to disable it"
    )]
    Taken(SocketAddr),
    /// The address could not be bound for another reason.
    #[error("control.listen: cannot bind {0}: {1}; choose another address, or \"\" to disable it")]
    Failed(SocketAddr, #[source] io::Error),
    /// Another process listens on the unix socket.
    #[error("control.socket: another process listens on {0}; stop it, or choose another path")]
    SocketTaken(PathBuf),
    /// The service manager passed a unix socket that all users can use.
    #[error(
        "control.socket: all users of this machine can use {0}, which the service manager passed; set SocketMode=0660 \
         in the socket unit"
    )]
    SocketForAll(PathBuf),
    /// The unix socket could not be created for another reason.
    #[error(
        "control.socket: cannot listen on {0}: {1}; choose a directory that this user may write to"
    )]
    SocketFailed(PathBuf, #[source] io::Error),
}

/// The listening sockets of the control plane.
#[derive(Debug, Default)]
pub struct ControlListeners {
    /// The TCP socket.
    pub tcp: Option<TcpListener>,
    /// The unix socket and its path.
    pub unix: Option<(UnixListener, PathBuf)>,
    /// Path of the unix socket if this process has created it, and removes it at the end.
    pub socket_to_remove: Option<PathBuf>,
}

impl ControlListeners {
    /// Binds the configured sockets, except those that the service manager has passed: `(tcp, unix)`.
    ///
    /// # Errors
    ///
    /// Returns an error if one of them cannot be bound, for example because another process uses it.
    pub fn bind(
        control: &ControlConfig,
        (tcp, unix): (Option<TcpListener>, Option<UnixListener>),
    ) -> Result<Self, ControlError> {
        let socket_to_remove = control.socket.clone().filter(|_| unix.is_none());
        let tcp = match (control.listen, tcp) {
            (Some(address), Some(passed)) => {
                passed
                    .set_nonblocking(true)
                    .map_err(|error| ControlError::Failed(address, error))?;
                Some(passed)
            }
            (address, _) => address.map(bind_tcp).transpose()?,
        };
        let unix = match (control.socket.as_deref(), unix) {
            (Some(path), Some(passed)) => {
                let failed = |error| ControlError::SocketFailed(path.to_owned(), error);
                let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
                if mode & 0o002 != 0 {
                    return Err(ControlError::SocketForAll(path.to_owned()));
                }
                passed.set_nonblocking(true).map_err(failed)?;
                Some(passed)
            }
            (path, _) => path.map(bind_unix).transpose()?,
        };
        Ok(Self { tcp, unix: unix.zip(control.socket.clone()), socket_to_remove })
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ControlError> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ControlError::Taken(address),
        _ => ControlError::Failed(address, error),
    })?;
    listener.set_nonblocking(true).map_err(|error| ControlError::Failed(address, error))?;
    Ok(listener)
}

fn bind_unix(path: &Path) -> Result<UnixListener, ControlError> {
    let failed = |error| ControlError::SocketFailed(path.to_owned(), error);
    // A process that was killed leaves its socket behind.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            return Err(ControlError::SocketTaken(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    // For the user only: every client of the socket may change what is served. No other thread creates files meanwhile.
    let previous = rustix::process::umask(Mode::XUSR | Mode::RWXG | Mode::RWXO);
    let listener = UnixListener::bind(path);
    rustix::process::umask(previous);
    let listener = listener.map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
