//! `tsubame check --probe`: what the configured interfaces can do.

use super::privileged::{PREDECESSOR_TIMEOUT, attach, has_capabilities};
use crate::clock::Clock;
use crate::config::XdpConfig;
use crate::process::interfaces::{driver, ethernet, host_interfaces, receive_queues};
use crate::text::plural;
use tsubame_udp::xdp::{Filter, XdpError, XdpMode};

/// Returns a line for each configured interface with what it can do, and whether XDP works on all of them.
///
/// The program is attached to each interface for a moment; it passes all frames.
pub fn probe(config: &XdpConfig) -> (Vec<String>, bool) {
    let (found, mut works) = (host_interfaces().unwrap_or_default(), true);
    let mut lines = Vec::new();
    for name in &config.interfaces {
        let probed = ethernet(name, found.get(name))
            .and_then(|(index, mac)| modes(config, (name, index), mac));
        works &= probed.is_ok();
        let result = probed.unwrap_or_else(|error| error);
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
    let clock = Clock::new();
    let wait = (clock, PREDECESSOR_TIMEOUT);
    let mut try_mode = |mode| attach(&mut filter, interface, (0, mac), mode, wait).map(drop);
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
