//! Layout of the maps that the XDP program and this module share: `udp/bpf/filter.c` declares the same.

use crate::connection_id::ConnectionIds;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Maximum number of connection id keys.
pub const KEYS_MAX: usize = 8;

/// Number of receive queues of an interface that have counters of their own; the last one also counts for higher ones.
pub const QUEUES: usize = 128;

/// Maximum numbers of IPv4 addresses and of interfaces in the settings; others are in hash maps.
const INLINE_ADDRESSES: usize = 8;
const INLINE_INTERFACES: usize = 4;

/// Bytes of an entry of the map `settings`.
pub(super) const SETTINGS_LEN: usize =
    16 * KEYS_MAX + 8 + 6 * 4 + 12 * INLINE_ADDRESSES + 4 + 12 * INLINE_INTERFACES + 4;

/// Outcomes of the requests that the program answers or drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterOutcome {
    /// A connect was answered.
    Connected,
    /// The datagram is shorter than any request of its action.
    TooShort,
    /// The action is not that of a request.
    UnknownAction,
    /// A connect lacks the magic number.
    BadMagic,
    /// The connection id was not issued to the source, or has expired.
    WrongConnectionId,
    /// The network of the source is not permitted.
    ForbiddenNetwork,
}

impl FilterOutcome {
    /// All outcomes, in the order of their counters.
    pub const ALL: [Self; 6] = [
        Self::Connected,
        Self::TooShort,
        Self::UnknownAction,
        Self::BadMagic,
        Self::WrongConnectionId,
        Self::ForbiddenNetwork,
    ];
}

/// What the program did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameVerdict {
    /// Passed to the network stack.
    Passed,
    /// Turned into a reply and sent.
    Answered,
    /// Dropped.
    Dropped,
    /// Redirected to the AF_XDP socket of its receive queue.
    Redirected,
}

impl FrameVerdict {
    /// All verdicts, in the order of their counters.
    pub const ALL: [Self; 4] = [Self::Passed, Self::Answered, Self::Dropped, Self::Redirected];

    /// Returns the name of the verdict in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Answered => "answered",
            Self::Dropped => "dropped",
            Self::Redirected => "redirected",
        }
    }
}

/// Addresses and interfaces for which the program works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FilterScope {
    /// Addresses and ports on which the tracker listens.
    pub(super) listeners: BTreeSet<SocketAddr>,
    /// Addresses of this host.
    pub(super) local: BTreeSet<IpAddr>,
    /// Hardware addresses and numbers of the interfaces, by their indexes.
    pub(super) interfaces: BTreeMap<u32, ([u8; 6], u16)>,
}

/// Settings of the program that do not refer to other maps.
#[derive(Clone, Debug)]
pub struct FilterSettings {
    /// Issues and checks connection ids.
    pub ids: ConnectionIds,
    /// Whether requests with a wrong connection id are passed to user space, which replies with an error.
    pub passes_wrong_ids: bool,
}

/// Which networks the program looks up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NetworksInForce {
    /// Which of the two pairs of maps.
    pub(super) pair: u32,
    /// Whether sources are looked up: there are networks, or sources that are in none are refused.
    pub(super) is_used: bool,
    /// Whether sources that are in no network are refused.
    pub(super) refuses_others: bool,
    /// Whether there are networks that the maps lack: user space refuses their sources.
    pub(super) are_incomplete: bool,
}

/// Returns an entry of the map `settings`.
pub(super) fn settings_entry(
    settings: &FilterSettings,
    unix_secs: u64,
    networks: NetworksInForce,
    scope: &FilterScope,
) -> [u8; SETTINGS_LEN] {
    let mut entry = Vec::with_capacity(SETTINGS_LEN);
    let mut keys = [(0, 0); KEYS_MAX];
    let mut key_count: u32 = 0;
    for (to, key) in keys.iter_mut().zip(settings.ids.keys()) {
        (*to, key_count) = (key, key_count + 1);
    }
    entry.extend(
        keys.into_iter().flat_map(|(first, second)| [first, second]).flat_map(u64::to_ne_bytes),
    );
    entry.extend(ConnectionIds::epoch(unix_secs).to_ne_bytes());
    let words = [
        key_count,
        settings.ids.lifetime_epochs().into(),
        settings.passes_wrong_ids.into(),
        networks.pair,
        networks.is_used.into(),
        networks.refuses_others.into(),
    ];
    entry.extend(words.map(u32::to_ne_bytes).as_flattened());
    let v4 = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    };
    let listeners = scope.listeners.iter().filter_map(|it| Some((v4(&it.ip())?, it.port())));
    for number in 0..INLINE_ADDRESSES {
        let (ip, port) = listeners.clone().nth(number).unwrap_or((Ipv4Addr::UNSPECIFIED, 0));
        entry.extend(ip.octets());
        entry.extend(port.to_be_bytes());
        entry.extend([0; 2]);
    }
    let local = scope.local.iter().filter_map(v4);
    for number in 0..INLINE_ADDRESSES {
        entry.extend(local.clone().nth(number).unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    }
    let has_more = listeners.count().max(local.count()) > INLINE_ADDRESSES;
    entry.extend(u32::from(has_more).to_ne_bytes());
    entry.extend(u32::from(networks.are_incomplete).to_ne_bytes());
    let interfaces = || scope.interfaces.iter().map(|(index, it)| (*index, *it));
    let numbers = 0..INLINE_INTERFACES;
    let interfaces: Vec<_> =
        numbers.map(|number| interfaces().nth(number).unwrap_or_default()).collect();
    entry.extend(interfaces.iter().flat_map(|(index, _)| index.to_ne_bytes()));
    entry.extend(interfaces.iter().flat_map(|(_, (mac, number))| interface_entry(*mac, *number)));
    let mut bytes = [0; SETTINGS_LEN];
    bytes.copy_from_slice(&entry);
    bytes
}

/// Returns a value of the map `interfaces`.
pub(super) fn interface_entry(mac: [u8; 6], number: u16) -> [u8; 8] {
    let ([a, b, c, d, e, f], [g, h]) = (mac, number.to_ne_bytes());
    [a, b, c, d, e, f, g, h]
}

/// Bytes of a key of the map `listeners`.
pub(super) const LISTENER_LEN: usize = 24;

/// Returns a key of the map `listeners`; port 0 marks a local address.
pub(super) fn listener_key(address: IpAddr, port: u16) -> [u8; LISTENER_LEN] {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut key = [0; LISTENER_LEN];
    key[..16].copy_from_slice(&address.octets());
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key
}
