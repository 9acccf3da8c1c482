//! `tsubame check --probe`: what the configured interfaces can do.

use super::privileged::{Deadline, attach, has_capabilities};
use super::sockets::open_socket;
use crate::clock::Clock;
use crate::config::XdpConfig;
use crate::process::interfaces::{driver, ethernet, host_interfaces, receive_queues};
use crate::text::plural;
use tsubame_udp::xdp::{Filter, QueueProblem, XdpError, XdpMode};

/// Returns a line for each configured interface with what it can do, and whether XDP works on all of them.
///
/// The program is attached to each interface for a moment; it passes all frames.
pub fn probe(config: &XdpConfig) -> (Vec<String>, bool) {
    let (found, mut works) = (host_interfaces().unwrap_or_default(), true);
    let mut lines = Vec::new();
    for name in &config.interfaces {
        let probed = ethernet(name, found.get(name)).and_then(|(index, mac)| {
            Ok((modes(config, (name, index), mac)?, sockets(config, index)))
        });
        let result = match probed {
            Ok((mode, sockets)) => {
                works &= sockets.is_ok() || !config.requires_sockets();
                format!("{mode}; {}", sockets.unwrap_or_else(|error| error))
            }
            Err(error) => {
                works = false;
                error
            }
        };
        let driver = driver(name).unwrap_or_else(|| "unknown".to_owned());
        let queues = plural(receive_queues(name) as u64, "receive queue");
        lines.push(format!("{name}: driver {driver}, {queues}; {result}"));
    }
    (lines, works)
}

/// Tries the configured mode or, if that is `auto`, first native and then generic mode.
fn modes(config: &XdpConfig, interface: (&str, u32), mac: [u8; 6]) -> Result<String, String> {
    if !has_capabilities() {
        return Err(XdpError::Forbidden.to_string());
    }
    let mut filter = Filter::load(1).map_err(|error| error.to_string())?;
    let deadline = Deadline::of_predecessor(Clock::new());
    let mut try_mode = |mode| attach(&mut filter, interface, (0, mac), mode, deadline).map(drop);
    let attached = try_mode(config.mode.unwrap_or(XdpMode::Native));
    match (attached, config.mode) {
        (Ok(()), mode) => {
            let mode = mode.unwrap_or(XdpMode::Native);
            Ok(format!("{mode} mode works"))
        }
        (Err(error @ XdpError::Unsupported { .. }), None) => {
            try_mode(XdpMode::Generic).map_err(|error| error.to_string())?;
            Ok(format!("generic mode works; {error}"))
        }
        (Err(error), _) => Err(error.to_string()),
    }
}

/// Tries AF_XDP with the first receive queue of an interface: zero copy, unless it is switched off, then copies.
fn sockets(config: &XdpConfig, interface: u32) -> Result<String, String> {
    let deadline = Deadline::of_predecessor(Clock::new());
    let zero_copy = config.zero_copy.unwrap_or(true);
    match open_socket(interface, 0, Some(zero_copy), deadline) {
        Ok(_) if zero_copy => return Ok("AF_XDP works with zero copy".to_owned()),
        Err(QueueProblem::NoZeroCopy) if config.zero_copy.is_none() => {
            let opened = open_socket(interface, 0, Some(false), deadline);
            opened.map(|_| "AF_XDP works without zero copy".to_owned())
        }
        result => result.map(|_| "AF_XDP works without zero copy".to_owned()),
    }
    .map_err(|problem| format!("AF_XDP does not work: {problem}"))
}
