//! Gives up the privileges that only the start needs, such as those to bind sockets.

use crate::config::Config;
use crate::policy::HookConfig;
use crate::process::xdp;
use nix::unistd::{User, geteuid, initgroups, setresgid, setresuid};
use rustix::fs::Access;
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::ffi::CString;
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;
use thiserror::Error;

/// Capabilities that a process of root keeps: to read config, lists and certificates of other users, to write the
/// overrides of access lists, and to lock memory for io_uring.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::IPC_LOCK);

/// Reason why privileges could not be given up.
#[derive(Debug, Error)]
pub enum PrivilegeError {
    /// There is no such user.
    #[error(
        "user: {0:?} is not a user of this machine; create it (useradd --system {0}), or choose another"
    )]
    NoUser(String),
    /// The process may not change its user.
    #[error("user: only root can become {0:?}; start the tracker as root, or remove the key user")]
    NotRoot(String),
    /// The kernel refuses the change.
    #[error(
        "user: cannot become {0:?}: {1}; permit CAP_SETUID, CAP_SETGID and CAP_CHOWN, or remove the key user"
    )]
    Refused(String, #[source] io::Error),
}

/// Returns whether [`give_up`] will change the user of the process.
pub fn will_change_user(config: &Config) -> bool {
    geteuid().is_root() && !config.user.is_empty() && config.user != "root"
}

/// Gives up privileges. A process of root becomes the user of the config or, if that has none, keeps only the
/// capabilities that it needs; another process gives up the capabilities of XDP. `control_socket` is a unix socket that
/// the process has created, and that the user must be able to remove.
///
/// Must be called before other threads are started than that of XDP and the one that starts programs: each thread has
/// capabilities of its own.
///
/// # Errors
///
/// Returns an error if the process cannot become the user of the config.
pub fn give_up(config: &Config, control_socket: Option<&Path>) -> Result<(), PrivilegeError> {
    let name = config.user.as_str();
    let user = match name {
        "" => None,
        name => {
            let user = User::from_name(name).ok().flatten();
            Some(user.ok_or_else(|| PrivilegeError::NoUser(name.to_owned()))?)
        }
    };
    if !geteuid().is_root() {
        return match user {
            Some(user) if user.uid != geteuid() => Err(PrivilegeError::NotRoot(name.to_owned())),
            _ => {
                remove_capabilities(xdp::CAPABILITIES);
                Ok(())
            }
        };
    }
    match user.filter(|user| !user.uid.is_root()) {
        Some(user) => {
            let chown = |path| lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            let changed = control_socket.map_or(Ok(()), chown).and_then(|()| change_user(&user));
            changed.map_err(|error| PrivilegeError::Refused(name.to_owned(), error))
        }
        None => {
            drop_capabilities(CapabilitySet::empty());
            let _ = rustix::thread::set_no_new_privs(true);
            Ok(())
        }
    }
}

/// Changes the user and the groups of all threads; the kernel then removes all capabilities.
fn change_user(user: &User) -> io::Result<()> {
    let name = CString::new(user.name.as_str())?;
    initgroups(&name, user.gid)?;
    setresgid(user.gid, user.gid, user.gid)?;
    setresuid(user.uid, user.uid, user.uid)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Removes capabilities from the calling thread, and from threads and programs that it starts.
fn remove_capabilities(removed: CapabilitySet) {
    let Ok(now) = rustix::thread::capabilities(None) else { return };
    if !(now.effective | now.permitted | now.inheritable).intersects(removed) {
        // The unit kills processes that change capabilities, unless its drop-in for XDP permits that.
        return;
    }
    let [effective, permitted, inheritable] =
        [now.effective, now.permitted, now.inheritable].map(|set| set - removed);
    // Where the kernel refuses, the process keeps its capabilities, as it would without this function.
    let _ = rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective, permitted, inheritable },
    );
}

/// Returns the capabilities that a process of root keeps.
fn kept_by_root() -> CapabilitySet {
    // With this value, the kernel permits io_uring to processes with CAP_SYS_ADMIN, and to a group.
    let is_restricted = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .is_ok_and(|value| value.trim() == "1");
    KEPT | if is_restricted { CapabilitySet::SYS_ADMIN } else { CapabilitySet::empty() }
}

/// Removes all capabilities but those that root keeps from the calling thread, and from threads and programs that it
/// starts. `added` stay permitted, too.
fn drop_capabilities(added: CapabilitySet) {
    let Ok(now) = rustix::thread::capabilities(None) else { return };
    let kept = kept_by_root();
    let (effective, permitted) = (now.effective & kept, now.permitted & (kept | added));
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    // Where the kernel refuses, the process keeps its capabilities, as it would without this function.
    let _ = rustix::thread::set_capabilities(None, sets);
}

/// Limits the privileges of the calling thread, which only starts programs, to those that [`give_up`] leaves to the
/// process and to `added`, which are permitted and not effective. The programs have them, too. `was_root` says whether
/// the process has begun as root.
///
/// # Errors
///
/// Returns an error if the kernel refuses to limit the thread of a process that has changed its user, or to pass
/// `added` on: the thread may still have the capabilities of root.
pub fn limit_for_programs(was_root: bool, added: CapabilitySet) -> io::Result<()> {
    match (geteuid().is_root(), added.is_empty()) {
        (true, _) => drop_capabilities(added),
        (false, true) => remove_capabilities(xdp::CAPABILITIES),
        (false, false) => pass_on(was_root, added)?,
    }
    if was_root {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}

/// Has programs that the calling thread starts, which are not those of root, have `passed_on` of its capabilities.
fn pass_on(was_root: bool, passed_on: CapabilitySet) -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    let passed_on = now.permitted & passed_on;
    // What an unprivileged process has begun with is passed on anyway, if it is ambient.
    let permitted = if was_root { passed_on } else { now.permitted };
    let effective = now.effective & (permitted - passed_on);
    let inheritable = (now.inheritable & permitted) | passed_on;
    rustix::thread::set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
    for capability in passed_on.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Returns a text for each file that a reload reads, or to which the API writes, and that the user of this process
/// cannot read or write.
pub fn inaccessible_files(config: &Config, path: Option<&Path>) -> Vec<String> {
    let tls = &config.http.tls;
    let certificate = [tls.certificate.as_path(), tls.key.as_path()];
    let certificate = certificate.into_iter().filter(|_| !tls.listen.is_empty());
    let keys = config.udp.connection_id_keys.file.as_deref();
    let read = path.into_iter().chain(certificate).chain(config.control.token_file.as_deref());
    let read = read.chain(keys).chain(config.hooks.iter().flat_map(HookConfig::files));
    // Opening the files could block: one may have become a FIFO.
    let denied = |file: &Path, access, verb| {
        let error = io::Error::from(rustix::fs::access(file, access).err()?);
        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
        is_denied.then(|| {
            format!(
                "{}: {error}: a reload or a change over the API will fail, because this process runs as user {}; \
                 permit this user to {verb} the file",
                file.display(),
                user_name()
            )
        })
    };
    let unreadable = read.filter_map(|file| denied(file, Access::READ_OK, "read"));
    let written = config.hooks.iter().filter_map(HookConfig::overrides_file);
    let unwritable = written.filter_map(|file| denied(file, Access::WRITE_OK, "write"));
    unreadable.chain(unwritable).collect()
}

/// Returns the name of the user that this process runs as, or its number.
pub fn user_name() -> String {
    let uid = geteuid();
    // A static glibc would load libraries of the host to look up names.
    let user = match cfg!(target_feature = "crt-static") {
        true => None,
        false => User::from_uid(uid).ok().flatten(),
    };
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Returns whether this thread has capabilities that root does not keep.
pub fn has_privileges_of_root() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|now| !now.effective.difference(kept_by_root()).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_of_files_does_not_open_them() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let access_list = format!(
            "hooks: [{{name: access_list, options: {{mode: deny, files: {0}, overrides_file: {0}}}}}]",
            fifo.display()
        );
        let config = Config::parse("t", &access_list).unwrap();
        assert_eq!(inaccessible_files(&config, None), [""; 0]);
    }
}
