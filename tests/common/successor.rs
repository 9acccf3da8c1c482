//! The new process of an upgrade.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Ends a process that a tracker has started, when it is dropped.
pub(crate) struct Successor(pub(crate) i32);

impl Drop for Successor {
    fn drop(&mut self) {
        let process = rustix::process::Pid::from_raw(self.0).unwrap();
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    }
}

/// Returns the number of the process that is named in the output of an upgrade.
pub(crate) fn process_in(text: &str) -> i32 {
    let (_, rest) = text.split_once("process ").unwrap_or_else(|| panic!("{text}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// Replaces a program by a shell script.
pub(crate) fn replace(program: &Path, script: &str) {
    fs::remove_file(program).unwrap();
    fs::write(program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
}
