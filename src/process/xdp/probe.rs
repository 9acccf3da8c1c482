//! `tsubame check --probe`: what the configured interfaces can do.

use super::privileged::{attach, has_capabilities};
use super::sockets::QueueSettings;
use crate::clock::Clock;
use crate::config::XdpConfig;
use crate::process::deadline::Deadline;
use crate::process::interfaces::{
    HostInterface, driver, ethernet, host_interfaces, receive_queues,
};
use crate::text::plural;
use tsubame_udp::xdp::{Filter, FrameSocket, XdpError, XdpMode};

/// Returns a line for each configured interface with what it can do, and whether XDP works on all of them.
///
/// The program is attached to each interface for a moment; it passes all frames.
pub fn probe(config: &XdpConfig) -> (Vec<String>, bool) {
    let (found, mut works) = (host_interfaces().unwrap_or_default(), true);
    let mut lines = Vec::new();
    for name in &config.interfaces {
        let (result, is_working) = probe_interface(config, name, found.get(name));
        works &= is_working;
        let driver = driver(name).unwrap_or_else(|| "unknown".to_owned());
        let queues = plural(receive_queues(name) as u64, "receive queue");
        lines.push(format!("{name}: driver {driver}, {queues}; {result}"));
    }
    (lines, works)
}

/// Returns what an interface can do, and whether that is what the config demands.
fn probe_interface(
    config: &XdpConfig,
    name: &str,
    found: Option<&HostInterface>,
) -> (String, bool) {
    let (index, mac) = match ethernet(name, found) {
        Ok(interface) => interface,
        Err(problem) => return (problem, false),
    };
    let (mode, obstacle) = match mode(config, (name, index), mac) {
        Ok(mode) => mode,
        Err(error) => return (error.to_string(), false),
    };
    let mut result = format!("{mode} mode works");
    if let Some(obstacle) = obstacle {
        result += &format!("; {obstacle}");
    }
    if !config.has_sockets() {
        return (result, true);
    }
    match sockets(config, (name, index), mode) {
        Ok(sockets) => (format!("{result}; {sockets}"), true),
        Err(error) => (format!("{result}; {error}"), !config.requires_sockets()),
    }
}

/// Tries the configured mode or, if that is `auto`, first native and then generic mode; returns the mode that works,
/// and why native mode does not.
fn mode(
    config: &XdpConfig,
    interface: (&str, u32),
    mac: [u8; 6],
) -> Result<(XdpMode, Option<XdpError>), XdpError> {
    if !has_capabilities() {
        return Err(XdpError::Forbidden);
    }
    let mut filter = Filter::load(1)?;
    let deadline = Deadline::of_predecessor(Clock::new());
    let mut try_mode = |mode| attach(&mut filter, interface, (0, mac), mode, deadline).map(drop);
    match try_mode(config.mode.unwrap_or(XdpMode::Native)) {
        Ok(()) => Ok((config.mode.unwrap_or(XdpMode::Native), None)),
        Err(error @ XdpError::Unsupported { .. }) if config.mode.is_none() => {
            try_mode(XdpMode::Generic)?;
            Ok((XdpMode::Generic, Some(error)))
        }
        Err(error) => Err(error),
    }
}

/// Tries to create AF_XDP sockets for all receive queues of an interface.
fn sockets(
    config: &XdpConfig,
    (name, index): (&str, u32),
    mode: XdpMode,
) -> Result<String, XdpError> {
    let settings = QueueSettings::read(name, mode, config.zero_copy);
    let deadline = Deadline::of_predecessor(Clock::new());
    let open = |queue| settings.open((name, index), queue, deadline);
    let sockets = (0..settings.receive).map(open);
    let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
    let with = match sockets.iter().all(FrameSocket::is_zero_copy) {
        true => "with",
        false => "without",
    };
    Ok(format!("AF_XDP works {with} zero copy"))
}
