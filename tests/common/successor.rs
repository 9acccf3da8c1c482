//! The new process of an upgrade.

use std::fs;
use std::path::Path;
use std::process::Command;

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

/// Copies a program, in place of one with the same name.
///
/// Another process writes the copy: a process that another test starts at the same time would have the file of this
/// process open for writing until it executes its own program, and a file open for writing cannot be executed.
pub(crate) fn install(from: &Path, to: &Path) {
    let status = Command::new("install").arg("--mode=755").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "{} cannot be copied to {}: {status}", from.display(), to.display());
}

/// Copies the tracker's program, in place of one with the same name.
pub(crate) fn install_tsubame(to: &Path) {
    install(Path::new(env!("CARGO_BIN_EXE_tsubame")), to);
}

/// Replaces a program by a shell script.
pub(crate) fn replace(program: &Path, script: &str) {
    let source = program.with_extension("sh");
    fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
    install(&source, program);
}
