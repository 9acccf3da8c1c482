//! The section `udp.xdp`.

use super::read::Section;
use super::values;
use std::collections::BTreeSet;
use tsubame_udp::xdp::XdpMode;

/// Maximum length of the name of a network interface.
const INTERFACE_NAME_MAX: usize = 15;

/// Maximum number of interfaces.
const INTERFACES_MAX: usize = 64;

/// Keys under `udp.xdp`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XdpConfig {
    /// Names of the interfaces on which XDP is used; without any, it is switched off.
    pub interfaces: Vec<String>,
    /// Where the program runs; with `None` in the driver if that is possible.
    pub mode: Option<XdpMode>,
    /// How announces and scrapes reach a shard.
    pub announces: AnnouncePath,
    /// Whether drivers must use the buffers of AF_XDP sockets (zero copy); with `None`, they do if they can.
    pub zero_copy: Option<bool>,
}

/// How announces and scrapes reach a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnnouncePath {
    /// By AF_XDP sockets where each receive queue of an interface can have one, else by UDP sockets.
    #[default]
    Auto,
    /// By AF_XDP sockets.
    AfXdp,
    /// By UDP sockets.
    Socket,
}

impl XdpConfig {
    /// Returns whether AF_XDP sockets may be used.
    pub fn has_sockets(&self) -> bool {
        !self.interfaces.is_empty() && self.announces != AnnouncePath::Socket
    }

    /// Returns whether the config demands AF_XDP sockets: then their lack ends the start.
    pub fn requires_sockets(&self) -> bool {
        self.announces == AnnouncePath::AfXdp || self.has_sockets() && self.zero_copy == Some(true)
    }

    pub(super) fn read(mut section: Section<'_>) -> Self {
        let interfaces = section.value("interfaces", Vec::new(), |value| {
            let names = values::texts(value, interface_name)?;
            let distinct: BTreeSet<&String> = names.iter().collect();
            if distinct.len() < names.len() {
                return Err("has an interface twice; remove one of the two".to_owned());
            }
            match names.len() {
                ..=INTERFACES_MAX => Ok(names),
                len => Err(format!("has {len} interfaces; the maximum is {INTERFACES_MAX}")),
            }
        });
        let mode = section.value("mode", None, |value| {
            let native = ("native", Some(XdpMode::Native));
            values::choice(value, &[("auto", None), native, ("generic", Some(XdpMode::Generic))])
        });
        let announces = section.value("announces", AnnouncePath::Auto, |value| {
            let (auto, socket) = (("auto", AnnouncePath::Auto), ("socket", AnnouncePath::Socket));
            values::choice(value, &[auto, ("af_xdp", AnnouncePath::AfXdp), socket])
        });
        let zero_copy = section.value("zero_copy", None, |value| {
            values::choice(value, &[("auto", None), ("on", Some(true)), ("off", Some(false))])
        });
        section.end();
        Self { interfaces, mode, announces, zero_copy }
    }
}

fn interface_name(text: &str) -> values::ParseResult<String> {
    let is_valid = |c: char| c.is_ascii_graphic() && c != '/';
    if (1..=INTERFACE_NAME_MAX).contains(&text.len()) && text.chars().all(is_valid) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not the name of a network interface; write one that `ip link` lists"))
}
