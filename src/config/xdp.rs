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
    /// Names of the interfaces on which the driver answers connects; XDP is off without any.
    pub interfaces: Vec<String>,
    /// Where the program runs; with `None` in the driver if that is possible.
    pub mode: Option<XdpMode>,
}

impl XdpConfig {
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
        section.end();
        Self { interfaces, mode }
    }
}

fn interface_name(text: &str) -> values::ParseResult<String> {
    let is_valid = |c: char| c.is_ascii_graphic() && c != '/';
    if (1..=INTERFACE_NAME_MAX).contains(&text.len()) && text.chars().all(is_valid) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not the name of a network interface; write one that `ip link` lists"))
}
